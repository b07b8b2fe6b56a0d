//! Makes a bridge of ours the IPv4 gateway of a network, for as long as it lives.

use std::fmt;
use std::io;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::identity::alias::NetworkAlias;
use crate::kernel::link::index_of;
use crate::kernel::rtnl::{Ipv4Setting, Rtnl};
use crate::kernel::sysctl::{self, Conf};
use crate::spec::{IfName, Subnet, Switch};

/// Make a bridge of ours the gateway of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GiveGateway {
    /// The bridge.
    pub bridge: IfName,
    /// The network's addresses.
    pub subnet: Subnet,
    /// The bridge's alias.
    pub alias: NetworkAlias,
}

impl Kind for GiveGateway {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let given = self.give(&made.rtnl).await;
        given.map_err(|source| Error::GiveGateway { bridge: self.bridge.clone(), source })
    }

    async fn undo(&self, _made: &mut Applied) -> Result<(), Error> {
        // Address and name are the bridge's, which CreateBridge or ShareBridge removes.
        Ok(())
    }

    fn undo_text(&self) -> String {
        format!("nothing, it goes with bridge {}", self.bridge)
    }
}

impl fmt::Display for GiveGateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bridge, subnet, .. } = self;
        write!(f, "give bridge {bridge} the address {}/{}", subnet.gateway(), subnet.prefix_len())
    }
}

impl GiveGateway {
    /// Gives the bridge its address and its name as a network.
    async fn give(&self, rtnl: &Rtnl) -> io::Result<()> {
        let Self { bridge, subnet, alias } = self;
        rtnl.set_alias(bridge.as_str(), &alias.to_string()).await?;
        // Without IPv6 addresses of its own the host is out of reach for guests by IPv6, which have link-local ones
        // only.
        sysctl::set_if_there(Conf::Ipv6, bridge.as_str(), "disable_ipv6", "1")?;
        // Guests reach each other by themselves; a packet that comes back to its network has been translated.
        rtnl.set_ipv4(bridge.as_str(), Ipv4Setting::SendRedirects, Switch::Off).await?;
        rtnl.add_address(index_of(bridge.as_str())?, subnet.gateway().into(), subnet.prefix_len()).await
    }
}
