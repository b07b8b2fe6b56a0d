//! Makes a bridge that is ours; the undo of the last VM on it removes it, with all that was changed for it.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::host::bridge::Part;
use crate::identity::mac::MacAddr;
use crate::spec::IfName;

/// Make a bridge that is ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CreateBridge {
    /// Its name.
    pub bridge: IfName,
    /// Its own address, set so that it never follows its ports.
    pub mac: MacAddr,
    /// Its MTU in bytes.
    pub mtu: u16,
}

impl Kind for CreateBridge {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let Self { bridge, mac, mtu } = self;
        let created = made.rtnl.create_bridge(bridge.as_str(), *mac, *mtu).await;
        created.map_err(|source| Error::CreateBridge { bridge: bridge.clone(), source })
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        let removed = made.take_back(&self.bridge, Part::Whole).await;
        removed.map_err(|error| Error::of_bridge(&self.bridge, error))
    }

    fn undo_text(&self) -> String {
        format!("remove bridge {} if it has no ports left", self.bridge)
    }
}

impl fmt::Display for CreateBridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bridge, mac, mtu } = self;
        write!(f, "create bridge {bridge} with address {mac} and mtu {mtu}, and raise it")
    }
}
