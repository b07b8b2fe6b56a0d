//! `ovs=`: a port of an Open vSwitch bridge.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::card::CardSpec;
use super::fields::{FieldError, IfName, deserialize_as_flag_text};
use super::vlan::VlanId;

/// Longest interface ID. IDs in use are UUIDs and `NAMESPACE_NAME` of Kubernetes, whose parts have at most 63 bytes
/// each.
const ID_MAX: usize = 127;

/// `ovs=`: a new tap that is a port of an Open vSwitch bridge for as long as the VM runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OvsSpec {
    /// The bridge.
    pub ovs: IfName,
    /// The VLAN that the port is an untagged member of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanId>,
    /// The ID by which a controller knows the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iface_id: Option<IfaceId>,
    /// The card.
    #[serde(flatten)]
    pub card: CardSpec,
}

/// The ID by which a controller such as OVN knows a port (`external-ids:iface-id`): 1 to 127 letters, digits and
/// `._:/@-`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IfaceId(String);

impl FromStr for IfaceId {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/@-".contains(&byte);
        if (1..=ID_MAX).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(FieldError::IfaceId(text.to_owned()))
        }
    }
}

impl fmt::Display for IfaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for OvsSpec {
    /// The beginning of a flag that gives this spec, without the card's keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ovs={}", self.ovs)?;
        if let Some(vlan) = self.vlan {
            write!(f, ",vlan={vlan}")?;
        }
        if let Some(id) = &self.iface_id {
            write!(f, ",iface-id={id}")?;
        }
        Ok(())
    }
}

/// The reason why `ovs=` lacks a key of other modes, if users are likely to look for it there.
pub(super) fn missing_key(key: &str) -> Option<&'static str> {
    Some(match key {
        "antispoof" | "addresses" | "isolate" => {
            "what passes its bridge is up to Open vSwitch: use the port security of its controller, such as OVN, or flows"
        }
        "trunk" | "native" => "set trunks= of its port in Open vSwitch, or give the guest a card for each VLAN",
        "create" => "make the bridge first: ovs-vsctl add-br NAME",
        _ => return None,
    })
}

deserialize_as_flag_text!(IfaceId);
