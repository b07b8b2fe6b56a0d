//! Removes a macvtap of ours whose VM was killed with its keeper.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::host::macvtap;
use crate::spec::IfName;

/// Remove a macvtap of ours that is out of use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RemoveLeftBehind {
    /// Its name.
    pub link: IfName,
}

impl Kind for RemoveLeftBehind {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let removed = macvtap::remove_if_left_behind(&made.rtnl, self.link.as_str()).await;
        removed.map(drop).map_err(|source| Error::Remove { link: self.link.to_string(), source })
    }

    async fn undo(&self, _made: &mut Applied) -> Result<(), Error> {
        // No VM has it.
        Ok(())
    }

    fn undo_text(&self) -> String {
        "nothing, no VM has it".to_owned()
    }
}

impl fmt::Display for RemoveLeftBehind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "remove macvtap {}, which a VM that was killed with its keeper left behind", self.link)
    }
}
