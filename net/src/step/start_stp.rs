//! Has a new bridge take part in a spanning tree, for as long as it lives.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::kernel::link::index_of;
use crate::spec::{ForwardDelay, IfName};

/// Have a new bridge take part in a spanning tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StartStp {
    /// The bridge.
    pub bridge: IfName,
    /// Forward delay: a new port waits it twice.
    pub delay: ForwardDelay,
}

impl Kind for StartStp {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let Self { bridge, delay } = self;
        let start = async { made.rtnl.start_stp(index_of(bridge.as_str())?, *delay).await };
        start.await.map_err(|source| Error::StartStp { bridge: bridge.clone(), source })
    }

    async fn undo(&self, _made: &mut Applied) -> Result<(), Error> {
        // A setting of the bridge, which CreateBridge removes.
        Ok(())
    }

    fn undo_text(&self) -> String {
        format!("nothing, it goes with bridge {}", self.bridge)
    }
}

impl fmt::Display for StartStp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bridge, delay } = self;
        write!(f, "have bridge {bridge} take part in a spanning tree with a forward delay of {} s", delay.seconds())
    }
}
