//! Bridges of ours: detection of unused ones, and their removal with all that was changed for them.
//!
//! Each of the three things that a start may change for a bridge of ours can be put back by itself, if no VM is on the
//! bridge any more: its uplink, and forwarding of either family. Removing the bridge puts back the rest of them. The
//! caller holds the namespace's lock, so no other keeper attaches a tap between the check and the change.

use std::io;

use super::forwarding::{self, Family};
use super::uplink::{self, MoveError};
use crate::facts::Link;
use crate::kernel::rtnl::Rtnl;
use crate::spec::IfName;
use crate::survey;

/// Failure to remove a bridge of ours, or to put back what was changed for it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BridgeError {
    /// The kernel refuses.
    #[error(transparent)]
    Link(#[from] io::Error),
    /// The bridge could not give its uplink's addresses and routes back.
    #[error("Cannot give {uplink} back the addresses and routes that its bridge has from it")]
    GiveBack {
        /// The interface.
        uplink: String,
        /// The cause.
        source: MoveError,
    },
}

/// Returns whether a bridge of ours has no ports but its uplink.
pub(crate) fn is_unused(bridge: &Link, links: &[Link]) -> bool {
    let uplink = bridge.uplink().map(|alias| alias.uplink);
    !links.iter().any(|link| link.master == Some(bridge.index) && Some(&link.name) != uplink.as_ref())
}

/// A part of what a start changes for a bridge of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The bridge itself, with the rest of the other parts.
    Whole,
    /// Its uplink's addresses and routes.
    Uplink,
    /// Forwarding of a family that was switched on for it.
    Forwarding(Family),
}

/// Takes back a part of what was changed for a bridge of ours that no VM is on any more.
pub(crate) async fn take_back_if_unused(rtnl: &Rtnl, bridge: &IfName, part: Part) -> Result<(), BridgeError> {
    let links = survey::links(rtnl).await?;
    take_back(rtnl, bridge, part, &links).await.map(drop)
}

/// [`take_back_if_unused`] with links that the caller has read. Returns false if there was nothing to do.
pub(crate) async fn take_back(rtnl: &Rtnl, bridge: &IfName, part: Part, links: &[Link]) -> Result<bool, BridgeError> {
    let ours = links.iter().find(|link| link.name == bridge.as_str() && link.is_our_bridge());
    let Some(ours) = ours.filter(|ours| is_unused(ours, links)) else { return Ok(false) };
    match part {
        Part::Whole => {
            forwarding::release(rtnl, ours, links, &[Family::Ipv4, Family::Ipv6]).await?;
            give_back(rtnl, ours, links).await?;
            rtnl.remove(ours.index).await?;
        }
        Part::Uplink => give_back(rtnl, ours, links).await?,
        Part::Forwarding(family) => forwarding::release(rtnl, ours, links, &[family]).await?,
    }
    Ok(true)
}

async fn give_back(rtnl: &Rtnl, ours: &Link, links: &[Link]) -> Result<(), BridgeError> {
    let Some(alias) = ours.uplink() else { return Ok(()) };
    let Some(uplink) = links.iter().find(|link| link.name == alias.uplink) else { return Ok(()) };
    let given = uplink::give_back(rtnl, ours, &alias, uplink).await;
    given.map_err(|source| BridgeError::GiveBack { uplink: alias.uplink, source })
}
