//! Lets IPv6 packets pass through the host, behind a fence.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use super::text::names;
use crate::error::Error;
use crate::host::bridge::Part;
use crate::host::forwarding::Family;
use crate::spec::IfName;

/// Let IPv6 packets pass through the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnableForwarding6 {
    /// The network's bridge.
    pub bridge: IfName,
    /// The interfaces that go on taking router advertisements.
    pub uplinks: Vec<IfName>,
}

impl Kind for EnableForwarding6 {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        made.forward6(&self.bridge).await
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        // The fence comes last: it holds until the host forwards no longer.
        let stopped = made.take_back(&self.bridge, Part::Forwarding(Family::Ipv6)).await;
        made.unfence(&self.bridge, Family::Ipv6).map_err(Error::Nftables)?;
        stopped.map_err(|error| Error::of_bridge(&self.bridge, error))
    }

    fn undo_text(&self) -> String {
        format!("with bridge {}, forward IPv6 no longer", self.bridge)
    }
}

impl fmt::Display for EnableForwarding6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uplinks, .. } = self;
        if uplinks.is_empty() {
            return write!(f, "forward IPv6");
        }
        write!(f, "forward IPv6, and go on taking router advertisements on {}", names(uplinks))
    }
}
