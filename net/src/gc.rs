//! Removes the leftovers of a VMM and keeper that were both killed: bridges of ours without VMs, whose uplinks get
//! their addresses and routes back, unused macvtaps and ports of Open vSwitch, ifbs of rate limits, and rules in
//! Docker's chain for others. Knows no plan.
//!
//! All else belongs to the kernel and has gone with the processes. The next VM on such a bridge or interface would
//! remove it as well, and the next one behind NAT the rules.

use std::fmt;

use crate::error::{Error, Report};
use crate::host::bridge::{self, Part};
use crate::host::docker;
use crate::host::lock::NamespaceLock;
use crate::host::macvtap::remove_if_left_behind;
use crate::host::ovs;
use crate::host::rates;
use crate::kernel::nft::NftError;
use crate::kernel::rtnl::Rtnl;
use crate::spec::IfName;
use crate::survey;

/// The outcome of a collection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// The links that have gone.
    pub removed: Vec<Removed>,
    /// The number of rules removed from Docker's chain.
    pub rules: usize,
    /// The removals that failed.
    pub failed: Vec<Report>,
}

/// A removed object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// A bridge.
    Bridge(String),
    /// A macvtap.
    Macvtap(String),
    /// A port of Open vSwitch.
    OvsPort(IfName),
    /// An ifb, where frames of a card on vhost-net waited for their turn.
    Ifb(String),
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge(name) => write!(f, "bridge {name}, which had no ports left"),
            Self::Ifb(name) => write!(f, "interface {name}, where frames of a VM waited"),
            Self::Macvtap(name) => write!(f, "macvtap {name}, which no VM had any more"),
            Self::OvsPort(name) => write!(f, "Open vSwitch port {name}, which no VM had any more"),
        }
    }
}

/// Removes every bridge of ours that has no ports but an uplink, every macvtap, port of Open vSwitch and ifb of ours
/// that no VM has, and rules in Docker's chain for VMs that are gone, and puts back what was changed for them. VMs that
/// run or start are not disturbed: the lock of the network namespace excludes starts that are about to use such a
/// bridge.
///
/// # Errors
/// The kernel does not list its links.
pub fn collect() -> Result<Collected, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    runtime.map_err(Error::Runtime)?.block_on(async {
        let rtnl = Rtnl::connect().map_err(Error::Connect)?;
        let _lock = NamespaceLock::take().await;
        let links = survey::links(&rtnl).await.map_err(Error::Survey)?;
        let bridges = links.iter().filter(|link| link.is_our_bridge() && bridge::is_unused(link, &links));
        let mut collected = Collected::default();
        match docker::sweep(&links) {
            Ok(rules) => collected.rules = rules,
            Err(source @ NftError::Refused { .. }) => collected.failed.push(Error::Docker(source).report()),
            // A user without the right to look has put no rules there, and a kernel without nf_tables has none.
            Err(error) => log::debug!("{error}"),
        }
        match rates::sweep(&rtnl, &links).await {
            Ok(swept) => collected.removed.extend(swept.into_iter().map(Removed::Ifb)),
            Err(source) => collected.failed.push(Error::LimitRates(source.into()).report()),
        }
        for bridge in bridges {
            // The kernel takes a few names that the command line does not, and minivmm makes none of them.
            let Ok(name) = bridge.name.parse::<IfName>() else { continue };
            match bridge::take_back_if_unused(&rtnl, &name, Part::Whole).await {
                Ok(()) => collected.removed.push(Removed::Bridge(name.to_string())),
                Err(error) => collected.failed.push(Error::of_bridge(&name, error).report()),
            }
        }
        for link in links.iter().filter(|link| link.is_our_macvtap()) {
            match remove_if_left_behind(&rtnl, &link.name).await {
                Ok(true) => collected.removed.push(Removed::Macvtap(link.name.clone())),
                Ok(false) => {}
                Err(source) => collected.failed.push(Error::Remove { link: link.name.clone(), source }.report()),
            }
        }
        // A host without Open vSwitch has no ports there.
        let ports = survey::ovs::left_behind().inspect_err(|error| log::debug!("{error}")).unwrap_or_default();
        for port in ports {
            match ovs::remove(&port) {
                Ok(()) => collected.removed.push(Removed::OvsPort(port)),
                Err(source) => collected.failed.push(Error::RemoveOvsPort { port, source }.report()),
            }
        }
        Ok(collected)
    })
}
