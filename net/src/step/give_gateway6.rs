//! Makes a bridge of ours the IPv6 gateway of a network, for as long as it lives.

use std::fmt;
use std::io;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::kernel::link::index_of;
use crate::kernel::rtnl::Rtnl;
use crate::kernel::sysctl::{self, Conf};
use crate::services::{Ipv6Network, PREFIX_LEN};
use crate::spec::{IfName, NETWORK_PREFIXES};

/// Make a bridge of ours the IPv6 gateway of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GiveGateway6 {
    /// The bridge.
    pub bridge: IfName,
    /// The network.
    pub network: Ipv6Network,
}

impl Kind for GiveGateway6 {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let given = self.give(&made.rtnl).await;
        given.map_err(|source| Error::GiveGateway { bridge: self.bridge.clone(), source })
    }

    async fn undo(&self, _made: &mut Applied) -> Result<(), Error> {
        // The addresses are the bridge's, which CreateBridge or ShareBridge removes.
        Ok(())
    }

    fn undo_text(&self) -> String {
        format!("nothing, it goes with bridge {}", self.bridge)
    }
}

impl fmt::Display for GiveGateway6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bridge, network } = self;
        write!(f, "give bridge {bridge} the addresses {}/64 and {}/64", network.gateway, network.link_local)
    }
}

impl GiveGateway6 {
    /// Gives the bridge its addresses, and none of its own making.
    async fn give(&self, rtnl: &Rtnl) -> io::Result<()> {
        let Self { bridge, network } = self;
        // 1: no address is generated (IN6_ADDR_GEN_MODE_NONE).
        sysctl::set(Conf::Ipv6, bridge.as_str(), "addr_gen_mode", "1")?;
        // The host ignores router advertisements of guests.
        sysctl::set(Conf::Ipv6, bridge.as_str(), "accept_ra", "0")?;
        // A gateway that leads out is a router, and says so in its neighbour advertisements. Where the host does not
        // forward yet it becomes one with the host: before that, the kernel would drop the routes that the host has
        // from other routers.
        if sysctl::forwards6() && bridge.as_str().starts_with(NETWORK_PREFIXES[0]) {
            sysctl::set(Conf::Ipv6, bridge.as_str(), "forwarding", "1")?;
        }
        sysctl::set(Conf::Ipv6, bridge.as_str(), "disable_ipv6", "0")?;
        let link = index_of(bridge.as_str())?;
        for ip in [network.link_local, network.gateway] {
            rtnl.add_address6(link, ip, PREFIX_LEN).await?;
        }
        Ok(())
    }
}
