//! `offload=`: the work on frames that is left to the tap.
//!
//! ```text
//! offload=on                 all that the tap can do
//! offload=off                nothing: whole frames with complete checksums
//! offload=csum:tso           these, as far as the tap can do them
//! ```
//!
//! An offload that needs another has to be listed with it. Silently adding the other would give a card that does more
//! than its owner wrote, and silently dropping the first would be worse.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::fields::{FieldError, deserialize_as_flag_text};

/// An offload, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Checksums of TCP and UDP.
    Csum,
    /// Segmentation of TCP.
    Tso,
    /// Segmentation of TCP with congestion notification.
    Ecn,
    /// Fragmentation of UDP.
    Ufo,
    /// Segmentation of UDP.
    Uso,
}

impl Offload {
    /// All offloads, in the order of their text.
    pub const ALL: [Self; 5] = [Self::Csum, Self::Tso, Self::Ecn, Self::Ufo, Self::Uso];

    fn name(self) -> &'static str {
        match self {
            Self::Csum => "csum",
            Self::Tso => "tso",
            Self::Ecn => "ecn",
            Self::Ufo => "ufo",
            Self::Uso => "uso",
        }
    }

    /// The offload that this one needs (virtio 1.3 5.1.3.1).
    fn needs(self) -> Option<Self> {
        match self {
            Self::Csum => None,
            Self::Ecn => Some(Self::Tso),
            Self::Tso | Self::Ufo | Self::Uso => Some(Self::Csum),
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::Csum => 1,
            Self::Tso => 2,
            Self::Ecn => 4,
            Self::Ufo => 8,
            Self::Uso => 16,
        }
    }
}

/// A set of offloads that contains what each of them needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffloadList(u8);

impl OffloadList {
    /// Nothing: whole frames with complete checksums.
    pub const NONE: Self = Self(0);

    /// True if `offload` is in it.
    pub fn has(self, offload: Offload) -> bool {
        self.0 & offload.bit() != 0
    }

    /// The offloads in it.
    pub fn iter(self) -> impl Iterator<Item = Offload> {
        Offload::ALL.into_iter().filter(move |offload| self.has(*offload))
    }
}

impl Default for OffloadList {
    /// All offloads.
    fn default() -> Self {
        Self(Offload::ALL.iter().fold(0, |bits, offload| bits | offload.bit()))
    }
}

impl FromStr for OffloadList {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        match text {
            "on" | "true" => return Ok(Self::default()),
            "off" | "false" => return Ok(Self::NONE),
            _ => {}
        }
        let mut list = Self::NONE;
        for part in text.split(':') {
            let offload = Offload::ALL.into_iter().find(|offload| offload.name() == part);
            list.0 |= offload.ok_or_else(|| FieldError::Offload(text.to_owned()))?.bit();
        }
        for offload in list.iter() {
            if let Some(needed) = offload.needs().filter(|needed| !list.has(*needed)) {
                return Err(FieldError::OffloadNeeds { offload: offload.name(), needed: needed.name() });
            }
        }
        Ok(list)
    }
}

impl fmt::Display for OffloadList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE {
            return f.write_str("off");
        }
        if *self == Self::default() {
            return f.write_str("on");
        }
        let names: Vec<&str> = self.iter().map(Offload::name).collect();
        f.write_str(&names.join(":"))
    }
}

impl Serialize for OffloadList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

deserialize_as_flag_text!(OffloadList);
