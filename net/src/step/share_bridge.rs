//! Shares a bridge that another VM made: if that VM ends first, the undo of this step removes the bridge, with all that
//! was changed for it.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::host::bridge::Part;
use crate::spec::IfName;

/// Share a bridge that another VM made, and the duty to remove it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShareBridge {
    /// Its name.
    pub bridge: IfName,
}

impl Kind for ShareBridge {
    async fn apply(&self, _made: &mut Applied) -> Result<(), Error> {
        // The tap that follows keeps the bridge.
        Ok(())
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        let removed = made.take_back(&self.bridge, Part::Whole).await;
        removed.map_err(|error| Error::of_bridge(&self.bridge, error))
    }

    fn undo_text(&self) -> String {
        format!("remove bridge {} if it has no ports left", self.bridge)
    }
}

impl fmt::Display for ShareBridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "share bridge {}, which minivmm made", self.bridge)
    }
}
