//! Reserves the host's ports that lead to a guest, so that no other program gets them.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::host::ports;
use crate::spec::{Forward, Switch};

/// Take the host's ports that lead to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReservePorts {
    /// The card.
    pub card: usize,
    /// The ports.
    pub forward: Vec<Forward>,
    /// On if ports of all addresses are taken for IPv6 as well.
    pub ipv6: Switch,
}

impl Kind for ReservePorts {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        made.ports.insert(self.card, ports::reserve(&self.forward, self.ipv6)?);
        Ok(())
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        made.ports.remove(&self.card);
        Ok(())
    }

    fn undo_text(&self) -> String {
        "close them".to_owned()
    }
}

impl fmt::Display for ReservePorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.forward.iter().map(ToString::to_string).collect();
        write!(f, "hold the host's ports of {} for card {}", texts.join(" and "), self.card)
    }
}
