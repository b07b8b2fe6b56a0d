//! Makes an interface of the host a port of a bridge of ours, which takes over its addresses and routes.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::host::bridge::Part;
use crate::host::uplink;
use crate::identity::alias::UplinkAlias;
use crate::spec::IfName;

/// Make an interface of the host a port of a bridge of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TakeUplink {
    /// The bridge.
    pub bridge: IfName,
    /// The interface.
    pub uplink: IfName,
    /// The bridge's alias.
    pub alias: UplinkAlias,
    /// The addresses that go to the bridge.
    pub addresses: Vec<String>,
    /// The number of routes that go with them.
    pub routes: usize,
}

impl Kind for TakeUplink {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let taken = uplink::take(&made.rtnl, self.bridge.as_str(), &self.alias).await;
        taken.map_err(|source| Error::TakeUplink { uplink: self.uplink.to_string(), source })
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        // Another VM on the bridge still needs it: then its ShareBridge gives it back.
        let released = made.take_back(&self.bridge, Part::Uplink).await;
        released.map_err(|error| Error::of_bridge(&self.bridge, error))
    }

    fn undo_text(&self) -> String {
        let Self { bridge, uplink, addresses, routes, .. } = self;
        if addresses.is_empty() && *routes == 0 {
            return format!("with bridge {bridge}, release {uplink}");
        }
        format!("with bridge {bridge}, move them back to {uplink} and release it")
    }
}

impl fmt::Display for TakeUplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bridge, uplink, addresses, routes, .. } = self;
        write!(f, "make {uplink} a port of bridge {bridge}")?;
        match addresses.as_slice() {
            [] if *routes == 0 => Ok(()),
            [] => write!(f, ", which takes over {routes} routes"),
            list => write!(f, ", which takes over {} and {routes} routes", list.join(", ")),
        }
    }
}
