//! Makes a tap that the kernel names. It goes with its last descriptor, if not before.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::host::tap;
use crate::kernel::tun::TAP_PATTERN;

/// Make a tap named by the kernel, which goes with its last descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CreateTap {
    /// The card that it is for.
    pub card: usize,
    /// Queue pairs.
    pub queues: u16,
}

impl Kind for CreateTap {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let Self { card, queues } = self;
        let (tap, index) = tap::create(TAP_PATTERN, *queues)?;
        made.taps.insert(*card, tap);
        if let Err(error) = made.rtnl.bypass_queueing(index).await {
            // A kernel without traffic control; the tap works, and costs more.
            log::debug!("Cannot replace the queueing discipline of the tap of card {card}: {error}");
        }
        Ok(())
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        made.remove_tap(self.card).await
    }

    fn undo_text(&self) -> String {
        "remove the tap".to_owned()
    }
}

impl fmt::Display for CreateTap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "create a tap with {} queue pairs for card {}", self.queues, self.card)
    }
}
