//! `macvtap=`: a card with its own MAC address on an interface of the host, without a bridge.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::card::CardSpec;
use super::fields::{FieldError, IfName, deserialize_as_flag_text};

/// `macvtap=`: a new macvtap on an interface of the host, for as long as the VM runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacvtapSpec {
    /// The interface.
    pub macvtap: IfName,
    /// Traffic between the VMs on the interface.
    #[serde(default)]
    pub mode: MacvtapMode,
    /// The card.
    #[serde(flatten)]
    pub card: CardSpec,
}

/// Handling of frames between macvtaps on the same interface (`MACVLAN_MODE_*`, linux/if_link.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MacvtapMode {
    /// Delivers them.
    #[default]
    Bridge,
    /// Drops them, even if a switch sends them back.
    Private,
    /// Sends them out: the switch decides and sends back what may pass.
    Vepa,
    /// There are no others: the interface is the guest's alone.
    Passthru,
}

impl MacvtapMode {
    const ALL: [Self; 4] = [Self::Bridge, Self::Private, Self::Vepa, Self::Passthru];

    /// The value of `mode=`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Passthru => "passthru",
        }
    }
}

impl FromStr for MacvtapMode {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let mode = Self::ALL.into_iter().find(|mode| mode.name() == text);
        mode.ok_or_else(|| FieldError::MacvtapMode(text.to_owned()))
    }
}

impl fmt::Display for MacvtapMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for MacvtapMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The reason why `macvtap=` lacks a key of other modes, if users are likely to look for it there.
pub(super) fn missing_key(key: &str) -> Option<&'static str> {
    Some(match key {
        "antispoof" | "addresses" => {
            "what the guest sends does not come in on an interface where it could be checked: use bridge=NAME with \
             antispoof=on, on a bridge that has the interface as a port"
        }
        "isolate" => "mode=private keeps VMs on the same interface apart",
        "vlan" | "trunk" | "native" => {
            "make a VLAN interface and give that: ip link add link IFACE name IFACE.100 type vlan id 100"
        }
        "create" | "stp" | "forward-delay" => "there is no bridge",
        _ => return None,
    })
}

deserialize_as_flag_text!(MacvtapMode);
