//! Opens the packet socket on which a card's services answer.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::host::tap::Tap;
use crate::services::{self, ServiceSpec};

/// Open the socket on which a card's services answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpenServices {
    /// The card.
    pub card: usize,
    /// The configuration that they announce.
    pub spec: ServiceSpec,
}

impl Kind for OpenServices {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let Tap { name, index, .. } = made.tap(self.card)?;
        let Some(index) = index else { return Err(Error::NoTap { card: self.card }) };
        let socket = services::open_socket(*index, &self.spec);
        let socket = socket.map_err(|source| Error::OpenServices { tap: name.clone(), source })?;
        made.services.insert(self.card, (self.spec.clone(), socket));
        Ok(())
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        made.services.remove(&self.card);
        Ok(())
    }

    fn undo_text(&self) -> String {
        "close it".to_owned()
    }
}

impl fmt::Display for OpenServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "answer DHCP and DNS of card {}, which has {}", self.card, self.spec.ipv4.address)
    }
}
