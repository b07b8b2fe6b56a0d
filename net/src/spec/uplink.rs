//! `uplink=` and `move-addresses=`: the uplink of a bridge that minivmm makes.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::SpecError;
use super::fields::{IfName, Switch};

/// The uplink of a bridge that minivmm makes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkSpec {
    /// The interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<IfName>,
    /// On if its addresses and routes move to the bridge while the bridge exists.
    #[serde(default, rename = "move-addresses")]
    pub move_addresses: Switch,
}

impl UplinkSpec {
    /// Refuses keys without effect, and a spanning tree that would cut the host off while its port waits.
    pub(super) fn check(&self, create: Switch, stp: Switch) -> Result<(), SpecError> {
        let moves = self.move_addresses == Switch::On;
        match &self.uplink {
            Some(_) if create == Switch::Off => Err(SpecError::Idle { key: "uplink", needed: "create=on" }),
            None if moves => Err(SpecError::Idle { key: "move-addresses", needed: "uplink=IFACE" }),
            Some(_) if moves && stp == Switch::On => Err(SpecError::CutOff),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for UplinkSpec {
    /// The part of a flag that gives this spec, with a comma before each key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(uplink) = &self.uplink {
            write!(f, ",uplink={uplink}")?;
        }
        if self.move_addresses == Switch::On { f.write_str(",move-addresses=on") } else { Ok(()) }
    }
}
