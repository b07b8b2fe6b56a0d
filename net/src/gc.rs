//! Removes what is left when both VMM and keeper were killed: bridges of ours without ports, and rules in Docker's chain for others.
//!
//! All else belongs to the kernel and has gone with them. The next VM on such a bridge would remove it as well, and the next one behind NAT
//! the rules.

use crate::docker;
use crate::error::{Error, Report};
use crate::lock::NamespaceLock;
use crate::nft::NftError;
use crate::rtnl::Rtnl;
use crate::spec::IfName;
use crate::step::remove_bridge_if_unused;
use crate::survey;

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// The bridges that have gone.
    pub removed: Vec<String>,
    /// How many rules have gone from Docker's chain.
    pub rules: usize,
    /// What could not be done.
    pub failed: Vec<Report>,
}

/// Removes every bridge of ours that has no ports, and puts back what was changed for it. VMs that run or start are not
/// disturbed: the lock of the network namespace keeps out those that are about to use such a bridge.
///
/// # Errors
/// The kernel does not say what there is.
pub fn collect() -> Result<Collected, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    runtime.map_err(Error::Runtime)?.block_on(async {
        let rtnl = Rtnl::connect().map_err(Error::Connect)?;
        let _lock = NamespaceLock::take().await;
        let links: Vec<_> = rtnl.links().await.map_err(Error::Survey)?.iter().filter_map(survey::link).collect();
        let unused = |index| !links.iter().any(|link| link.master == Some(index));
        let bridges = links.iter().filter(|link| link.is_our_bridge() && unused(link.index));
        let mut collected = Collected::default();
        match docker::sweep(&links) {
            Ok(rules) => collected.rules = rules,
            Err(source @ NftError::Refused { .. }) => collected.failed.push(Error::Docker(source).report()),
            // Whoever may not look has put none there, and neither has anybody on a kernel without nf_tables.
            Err(error) => log::debug!("{error}"),
        }
        for bridge in bridges {
            // The kernel takes a few names that the command line does not, and minivmm makes none of them.
            let Ok(name) = bridge.name.parse::<IfName>() else { continue };
            match remove_bridge_if_unused(&rtnl, &name).await {
                Ok(()) => collected.removed.push(name.to_string()),
                Err(source) => collected.failed.push(Error::Remove { link: name.to_string(), source }.report()),
            }
        }
        Ok(collected)
    })
}
