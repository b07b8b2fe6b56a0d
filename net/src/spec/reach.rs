//! `reach=` and `metadata=`: the destinations beyond its network that a guest may reach.
//!
//! ```text
//! reach=world+private        unless given, with nat: all but the host itself
//! reach=world                for code of strangers: neither the host nor the networks beside it
//! reach=host                 unless given, with host
//! reach=none                 its own network, the gateway's services and a ping of it, and what comes in by forward=
//! ```
//!
//! A CI job downloads from the internet and from mirrors, caches and proxies on private networks, so both are in reach
//! by default. A service of the host is usually meant for its owner only; `reach=world+private+host` opens it to the
//! guest.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::fields::{FieldError, Switch, deserialize_as_flag_text};

/// Addresses beyond a guest's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// All addresses that are neither private nor the host's.
    World,
    /// The host's own addresses, on any interface.
    Host,
    /// Addresses of private networks: RFC 1918, RFC 6598 and RFC 4193.
    Private,
}

impl Place {
    /// All places, in the order of their text.
    const ALL: [Self; 3] = [Self::World, Self::Private, Self::Host];

    fn name(self) -> &'static str {
        match self {
            Self::World => "world",
            Self::Host => "host",
            Self::Private => "private",
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::World => 1,
            Self::Private => 2,
            Self::Host => 4,
        }
    }
}

/// A set of places; a flag separates them by `+`, or by `:` as offloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReachList(u8);

impl ReachList {
    /// Nothing beyond the network.
    pub const NONE: Self = Self(0);

    /// A list of `places`.
    pub fn of(places: &[Place]) -> Self {
        Self(places.iter().fold(0, |bits, place| bits | place.bit()))
    }

    /// Returns true if `place` is in it.
    pub fn has(self, place: Place) -> bool {
        self.0 & place.bit() != 0
    }
}

impl FromStr for ReachList {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        if text == "none" {
            return Ok(Self::NONE);
        }
        let place = |word: &str| Place::ALL.into_iter().find(|place| place.name() == word);
        let places: Option<Vec<Place>> = text.split(['+', ':']).map(place).collect();
        places.map(|places| Self::of(&places)).ok_or_else(|| FieldError::Reach(text.to_owned()))
    }
}

impl fmt::Display for ReachList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE {
            return f.write_str("none");
        }
        let names = Place::ALL.into_iter().filter(|place| self.has(*place)).map(Place::name);
        f.write_str(&names.collect::<Vec<_>>().join("+"))
    }
}

impl Serialize for ReachList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The destinations of a guest. Its fields are keys of `nat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachSpec {
    /// Places beyond its network; the default of the mode if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<ReachList>,
    /// On if they include the addresses where a cloud serves credentials to its machines.
    #[serde(default)]
    pub metadata: Switch,
}

impl ReachSpec {
    /// The places, for a network with a way out.
    pub(crate) fn places(self) -> ReachList {
        self.reach.unwrap_or(ReachList::of(&[Place::World, Place::Private]))
    }
}

impl fmt::Display for ReachSpec {
    /// The part of a flag that gives this spec, with a comma before each key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(reach) = self.reach {
            write!(f, ",reach={reach}")?;
        }
        if self.metadata == Switch::On { f.write_str(",metadata=on") } else { Ok(()) }
    }
}

deserialize_as_flag_text!(ReachList);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_places_reads_back_in_one_order() {
        for (text, written) in
            [("world", "world"), ("host+world", "world+host"), ("private:world", "world+private"), ("none", "none")]
        {
            assert_eq!(text.parse::<ReachList>().unwrap().to_string(), written);
        }
        for text in ["", "lan", "world+", "none+world", "World"] {
            assert!(text.parse::<ReachList>().is_err(), "{text}");
        }
    }

    #[test]
    fn unless_given_all_but_the_host_is_in_reach() {
        assert_eq!(ReachSpec::default().places().to_string(), "world+private");
    }
}
