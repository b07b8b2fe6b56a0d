//! Lets IPv4 packets pass between a network of ours and the interfaces that lead out, behind a fence.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use super::text::names;
use crate::error::Error;
use crate::host::bridge::Part;
use crate::host::forwarding::Family;
use crate::spec::IfName;

/// Let packets pass between a network of ours and the rest of the world.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnableForwarding {
    /// The network's bridge.
    pub bridge: IfName,
    /// The interfaces that did not forward.
    pub uplinks: Vec<IfName>,
}

impl Kind for EnableForwarding {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        made.forward(&self.bridge, &self.uplinks).await
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        // The fence comes last: it holds until nothing forwards that did not before.
        let stopped = made.take_back(&self.bridge, Part::Forwarding(Family::Ipv4)).await;
        made.unfence(&self.bridge, Family::Ipv4).map_err(Error::Nftables)?;
        stopped.map_err(|error| Error::of_bridge(&self.bridge, error))
    }

    fn undo_text(&self) -> String {
        let Self { bridge, uplinks } = self;
        if uplinks.is_empty() {
            return format!("nothing, it goes with bridge {bridge}");
        }
        format!("with bridge {bridge}, forward from {} no longer", names(uplinks))
    }
}

impl fmt::Display for EnableForwarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bridge, uplinks } = self;
        if uplinks.is_empty() {
            return write!(f, "forward packets from {bridge}");
        }
        write!(f, "forward packets from {bridge} and {}", names(uplinks))
    }
}
