//! Has the kernel copy the frames of cards, for as long as the keeper lives.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::host::mirror::Mirror;

/// Have the kernel copy the frames of cards, for as long as the keeper lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MirrorFrames {
    /// The VM.
    pub vm: String,
    /// The cards.
    pub mirrors: Vec<Mirror>,
}

impl Kind for MirrorFrames {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        made.mirror(&self.vm, &self.mirrors)
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        // The table belongs to the socket.
        made.mirrors = None;
        Ok(())
    }

    fn undo_text(&self) -> String {
        "copy them no longer".to_owned()
    }
}

impl fmt::Display for MirrorFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let copy = |mirror: &Mirror| format!("the frames of card {} to {}", mirror.card, mirror.to);
        write!(f, "copy {}", self.mirrors.iter().map(copy).collect::<Vec<_>>().join(" and "))
    }
}
