//! The VMs of a network of ours by name, from the aliases of their taps. Reading the links takes no privilege.
//!
//! A guest decides how often it asks, and reading the links takes a lock of the kernel that every program needs to
//! change one. So one reading serves all questions of a tenth of a second.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::identity::alias::{Mode, TapAlias};
use crate::kernel::rtnl::Rtnl;
use crate::services::Names;
use crate::survey;

/// The time for which a reading serves.
const FRESH: Duration = Duration::from_millis(100);

/// Finds the VMs of a network.
#[derive(Clone, Debug)]
pub struct Siblings {
    mode: Mode,
    net: String,
    /// The last reading: when, and the cards that were there.
    seen: Option<(Instant, Vec<TapAlias>)>,
}

impl Siblings {
    /// The VMs of the network that `tap` is on.
    pub fn of(tap: &TapAlias) -> Self {
        Self { mode: tap.mode, net: tap.net.clone(), seen: None }
    }

    /// The cards on the network.
    fn taps(&self) -> io::Result<Vec<TapAlias>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let links = runtime.block_on(async { survey::links(&Rtnl::connect()?).await })?;
        let taps =
            links.iter().filter(|link| link.tun.is_some()).filter_map(|link| TapAlias::parse(link.alias.as_deref()?));
        Ok(taps.filter(|tap| tap.mode == self.mode && tap.net == self.net).collect())
    }

    /// The same, at most [`FRESH`] old; empty if the kernel does not answer.
    fn known(&mut self) -> &[TapAlias] {
        let stale = self.seen.as_ref().is_none_or(|(when, _)| when.elapsed() >= FRESH);
        if stale {
            let taps = self.taps().inspect_err(|error| log::debug!("Cannot look for other VMs: {error}"));
            self.seen = Some((Instant::now(), taps.unwrap_or_default()));
        }
        self.seen.as_ref().map_or(&[], |(_, taps)| taps)
    }
}

impl Names for Siblings {
    fn lookup(&mut self, name: &str) -> Vec<IpAddr> {
        self.known().iter().filter(|tap| tap.vm == name).flat_map(addresses).collect()
    }

    fn reverse(&mut self, address: IpAddr) -> Option<String> {
        self.known().iter().find(|tap| addresses(tap).any(|own| own == address)).map(|tap| tap.vm.clone())
    }
}

fn addresses(tap: &TapAlias) -> impl Iterator<Item = IpAddr> {
    tap.ip4.map(IpAddr::V4).into_iter().chain(tap.ip6.map(IpAddr::V6))
}
