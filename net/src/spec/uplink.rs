//! `uplink=` and `move-addresses=`: the interface of the host by which a bridge of ours leads out.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::SpecError;
use super::fields::{IfName, Switch};

/// The interface that a bridge that minivmm makes is to lead out by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkSpec {
    /// The interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<IfName>,
    /// Whether its addresses and routes go to the bridge for that time.
    #[serde(default, rename = "move-addresses")]
    pub move_addresses: Switch,
}

impl UplinkSpec {
    /// Refuses keys that do nothing, and a spanning tree that would cut the host off while its port waits.
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
