//! `vlan=`, `trunk=` and `native=`: the VLANs of a card on a bridge (IEEE 802.1Q).
//!
//! ```text
//! vlan=100                     untagged in VLAN 100: the guest sees no tags
//! trunk=10+20+100-110          tagged in these VLANs: the guest sees and sends tags
//! trunk=10+20,native=30        tagged in 10 and 20, untagged in VLAN 30
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::fields::{FieldError, deserialize_as_flag_text, whole_number};

/// The largest number of a VLAN: 4095 is reserved (IEEE 802.1Q, table 9-2).
const VLAN_MAX: u16 = 4094;

/// The number of a VLAN, 1 to 4094.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct VlanId(u16);

impl VlanId {
    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl FromStr for VlanId {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        match whole_number(text).and_then(|value| u16::try_from(value).ok()) {
            Some(id @ 1..=VLAN_MAX) => Ok(Self(id)),
            _ => Err(FieldError::Vlan(text.to_owned())),
        }
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A range of VLANs, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanRange {
    /// The first.
    pub first: VlanId,
    /// The last, at least the first.
    pub last: VlanId,
}

impl VlanRange {
    fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl FromStr for VlanRange {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (first.parse()?, last.parse()?);
        if first > last {
            return Err(FieldError::VlanRange(text.to_owned()));
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for VlanRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// VLANs without duplicates, in the given order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VlanList(Vec<VlanRange>);

impl VlanList {
    /// The ranges.
    pub fn as_slice(&self) -> &[VlanRange] {
        &self.0
    }

    /// True if the list is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if VLAN `id` is in the list.
    pub fn contains(&self, id: u16) -> bool {
        self.0.iter().any(|range| (range.first.get()..=range.last.get()).contains(&id))
    }
}

impl FromStr for VlanList {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let mut list: Vec<VlanRange> = Vec::new();
        // A list of numbers in a configuration file is joined with ':'.
        for part in text.split(['+', ':']) {
            let range: VlanRange = part.parse()?;
            if let Some(other) = list.iter().find(|other| other.overlaps(range)) {
                return Err(FieldError::VlanTwice { first: other.to_string(), second: range.to_string() });
            }
            list.push(range);
        }
        Ok(Self(list))
    }
}

impl fmt::Display for VlanList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join("+"))
    }
}

impl Serialize for VlanList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(ToString::to_string))
    }
}

/// The VLANs of a card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VlanSpec {
    /// The VLAN of a guest that sees no tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanId>,
    /// The VLANs of a guest that sees tags.
    #[serde(default, skip_serializing_if = "VlanList::is_empty")]
    pub trunk: VlanList,
    /// The VLAN of such a guest's untagged frames; they are dropped if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native: Option<VlanId>,
}

impl VlanSpec {
    /// True if none of its keys is given: the card is in the bridge's default VLAN, if the bridge filters VLANs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The VLAN of untagged frames.
    pub fn untagged(&self) -> Option<VlanId> {
        self.vlan.or(self.native)
    }

    /// All of its VLANs except `id`.
    pub(crate) fn all_but(&self, id: u16) -> VlanList {
        let own = self.untagged().filter(|own| !self.trunk.contains(own.get()));
        let own = own.map(|own| VlanRange { first: own, last: own });
        let parts = |range: &VlanRange| {
            let (first, last) = (range.first.get(), range.last.get());
            if !(first..=last).contains(&id) {
                return vec![*range];
            }
            let ends = [(first, id.saturating_sub(1)), (id.saturating_add(1), last)].into_iter();
            let ends = ends.filter(|(first, last)| first <= last);
            ends.map(|(first, last)| VlanRange { first: VlanId(first), last: VlanId(last) }).collect()
        };
        VlanList(self.trunk.as_slice().iter().chain(&own).flat_map(parts).collect())
    }
}

impl fmt::Display for VlanSpec {
    /// The part of a flag that gives this spec, with a comma before each key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(vlan) = self.vlan {
            write!(f, ",vlan={vlan}")?;
        }
        if !self.trunk.is_empty() {
            write!(f, ",trunk={}", self.trunk)?;
        }
        if let Some(native) = self.native {
            write!(f, ",native={native}")?;
        }
        Ok(())
    }
}

deserialize_as_flag_text!(VlanId, VlanList);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_one_leaves_the_others() {
        let (trunk, native) = ("10+20-22".parse().unwrap(), "30".parse().ok());
        let spec = VlanSpec { vlan: None, trunk, native };
        for (id, rest) in
            [(1, "10+20-22+30"), (10, "20-22+30"), (20, "10+21-22+30"), (21, "10+20+22+30"), (30, "10+20-22")]
        {
            assert_eq!(spec.all_but(id).to_string(), rest);
        }
    }

    #[test]
    fn lists_read_back() {
        for text in ["1", "4094", "10+20+100-110", "1-4094", "20+10"] {
            assert_eq!(text.parse::<VlanList>().unwrap().to_string(), text);
        }
        assert_eq!("10:20:7-7".parse::<VlanList>().unwrap().to_string(), "10+20+7");
    }

    #[test]
    fn wrong_lists_are_refused_with_what_is_wrong() {
        for (text, part) in [
            ("", "from 1 to 4094"),
            ("0", "from 1 to 4094"),
            ("4095", "from 1 to 4094"),
            ("x", "from 1 to 4094"),
            ("10+", "from 1 to 4094"),
            ("1-2-3", "from 1 to 4094"),
            ("20-10", "FIRST-LAST"),
            ("10+10", "10 and 10"),
            ("10-20+15", "10-20 and 15"),
            ("15+10-20", "15 and 10-20"),
        ] {
            let error = text.parse::<VlanList>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
