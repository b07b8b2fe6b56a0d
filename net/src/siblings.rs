//! The VMs of a network of ours by name, as their taps tell: a look at the links, for which no privilege is needed.

use std::io;
use std::net::IpAddr;

use crate::alias::{Mode, TapAlias};
use crate::rtnl::Rtnl;
use crate::services::Names;
use crate::survey;

/// Knows the VMs of a network.
#[derive(Clone, Debug)]
pub struct Siblings {
    mode: Mode,
    net: String,
}

impl Siblings {
    /// Of the network that `tap` is on.
    pub fn of(tap: &TapAlias) -> Self {
        Self { mode: tap.mode, net: tap.net.clone() }
    }

    /// The cards on the network.
    fn taps(&self) -> io::Result<Vec<TapAlias>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let links = runtime.block_on(async { Rtnl::connect()?.links().await })?;
        let links = links.iter().filter_map(survey::link);
        let taps = links.filter(|link| link.tun.is_some()).filter_map(|link| TapAlias::parse(link.alias.as_deref()?));
        Ok(taps.filter(|tap| tap.mode == self.mode && tap.net == self.net).collect())
    }

    /// The same, nobody if the kernel does not say.
    fn known(&self) -> Vec<TapAlias> {
        self.taps().inspect_err(|error| log::debug!("Cannot look for other VMs: {error}")).unwrap_or_default()
    }
}

impl Names for Siblings {
    fn lookup(&mut self, name: &str) -> Vec<IpAddr> {
        self.known().iter().filter(|tap| tap.vm == name).flat_map(addresses).collect()
    }

    fn reverse(&mut self, address: IpAddr) -> Option<String> {
        self.known().into_iter().find(|tap| addresses(tap).any(|own| own == address)).map(|tap| tap.vm)
    }
}

fn addresses(tap: &TapAlias) -> impl Iterator<Item = IpAddr> {
    tap.ip4.map(IpAddr::V4).into_iter().chain(tap.ip6.map(IpAddr::V6))
}
