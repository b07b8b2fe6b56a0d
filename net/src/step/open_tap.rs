//! Opens a tap that exists, which stays.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::host::tap;
use crate::kernel::tun::QueueMode;
use crate::spec::IfName;

/// Open a tap that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpenTap {
    /// The card that it is for.
    pub card: usize,
    /// Its name.
    pub tap: IfName,
    /// Queue pairs.
    pub queues: u16,
    /// Its device type, which every open has to state.
    pub mode: QueueMode,
}

impl Kind for OpenTap {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        made.taps.insert(self.card, tap::open(&self.tap, self.queues, self.mode)?);
        Ok(())
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        made.taps.remove(&self.card);
        Ok(())
    }

    fn undo_text(&self) -> String {
        "close it".to_owned()
    }
}

impl fmt::Display for OpenTap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { card, tap, queues, .. } = self;
        write!(f, "open tap {tap} with {queues} queue pairs for card {card}")
    }
}
