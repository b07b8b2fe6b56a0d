//! Bridges of ours: when one is out of use, and what goes with it.
//!
//! Each of the three things that a start may change for a bridge of ours can be put back by itself, if no VM is on the bridge any
//! more: its uplink, and forwarding of either family. Removing the bridge puts back what is left of them. The caller holds the
//! namespace's lock, so no other keeper attaches a tap between the look and the change.

use std::io;

use super::forwarding::{self, Family};
use super::uplink::{self, MoveError};
use crate::facts::Link;
use crate::kernel::rtnl::Rtnl;
use crate::spec::IfName;
use crate::survey;

/// Why a bridge of ours could not be removed, or what was changed for it not be put back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BridgeError {
    /// The kernel refuses.
    #[error(transparent)]
    Link(#[from] io::Error),
    /// Its uplink could not have back what the bridge has from it.
    #[error("Cannot give back to {uplink} what the bridge has from it")]
    GiveBack {
        /// The interface.
        uplink: String,
        /// What went wrong.
        source: MoveError,
    },
}

/// Returns whether a bridge of ours has no ports but its uplink.
pub(crate) fn is_unused(bridge: &Link, links: &[Link]) -> bool {
    let uplink = bridge.uplink().map(|alias| alias.uplink);
    !links.iter().any(|link| link.master == Some(bridge.index) && Some(&link.name) != uplink.as_ref())
}

/// Removes a bridge of ours that no VM is on, after it has put back what was changed for it.
pub(crate) async fn remove_if_unused(rtnl: &Rtnl, bridge: &IfName) -> Result<(), BridgeError> {
    let links = survey::links(rtnl).await?;
    let Some(ours) = unused(bridge, &links) else { return Ok(()) };
    forwarding::release(rtnl, ours, &links, &[Family::Ipv4, Family::Ipv6]).await?;
    give_back(rtnl, ours, &links).await?;
    Ok(rtnl.remove(ours.index).await?)
}

/// Gives back to its uplink what a bridge of ours that no VM is on has from it.
pub(crate) async fn release_uplink_if_unused(rtnl: &Rtnl, bridge: &IfName) -> Result<(), BridgeError> {
    let links = survey::links(rtnl).await?;
    match unused(bridge, &links) {
        Some(ours) => give_back(rtnl, ours, &links).await,
        None => Ok(()),
    }
}

/// Puts back the forwarding of a family that was switched on for a bridge of ours that no VM is on.
pub(crate) async fn stop_forwarding_if_unused(rtnl: &Rtnl, bridge: &IfName, family: Family) -> io::Result<()> {
    let links = survey::links(rtnl).await?;
    match unused(bridge, &links) {
        Some(ours) => forwarding::release(rtnl, ours, &links, &[family]).await,
        None => Ok(()),
    }
}

fn unused<'a>(bridge: &IfName, links: &'a [Link]) -> Option<&'a Link> {
    let ours = links.iter().find(|link| link.name == bridge.as_str() && link.is_our_bridge());
    ours.filter(|ours| is_unused(ours, links))
}

async fn give_back(rtnl: &Rtnl, ours: &Link, links: &[Link]) -> Result<(), BridgeError> {
    let Some(alias) = ours.uplink() else { return Ok(()) };
    let Some(uplink) = links.iter().find(|link| link.name == alias.uplink) else { return Ok(()) };
    let given = uplink::give_back(rtnl, ours, &alias, uplink).await;
    given.map_err(|source| BridgeError::GiveBack { uplink: alias.uplink, source })
}
