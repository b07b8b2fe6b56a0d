//! Sets the current address of a bridge of the host explicitly, so that it does not follow its ports.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::identity::mac::MacAddr;
use crate::spec::IfName;

/// Set the address that a bridge has, so that it does not follow its ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PinAddress {
    /// The bridge.
    pub bridge: IfName,
    /// Its address.
    pub mac: MacAddr,
}

impl Kind for PinAddress {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let Self { bridge, mac } = self;
        let pinned = made.rtnl.set_address(bridge.as_str(), *mac).await;
        pinned.map_err(|source| Error::PinAddress { bridge: bridge.clone(), source })
    }

    async fn undo(&self, _made: &mut Applied) -> Result<(), Error> {
        // The address is the same, and the bridge is not ours.
        Ok(())
    }

    fn undo_text(&self) -> String {
        "nothing, the address is the same".to_owned()
    }
}

impl fmt::Display for PinAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "keep the address of bridge {} at {}", self.bridge, self.mac)
    }
}
