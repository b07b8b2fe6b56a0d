//! `reach=` and `metadata=`: where a guest gets beyond its network.
//!
//! ```text
//! reach=world+private        unless given, with nat: all but the host itself
//! reach=world                for code of strangers: neither the host nor the networks beside it
//! reach=host                 unless given, with host
//! reach=none                 its own network, the gateway's services and a ping of it, and what comes in by forward=
//! ```
//!
//! A CI job downloads from the internet and from mirrors, caches and proxies on private networks, so both are in reach.
//! A service of the host is usually there for its owner, and has an address that the guest can be given
//! (`reach=world+private+host`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::fields::{FieldError, Switch, deserialize_as_flag_text};

/// Addresses beyond a guest's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// All that are neither private nor the host's.
    World,
    /// The host's own, on whatever interface.
    Host,
    /// Those of private networks: RFC 1918, RFC 6598 and RFC 4193.
    Private,
}

impl Place {
    /// All, in the order in which they are written.
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

/// A set of places; a flag has `+` between them, or `:` as between offloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReachList(u8);

impl ReachList {
    /// Nothing beyond the network.
    pub const NONE: Self = Self(0);

    /// A list of `places`.
    pub fn of(places: &[Place]) -> Self {
        Self(places.iter().fold(0, |bits, place| bits | place.bit()))
    }

    /// Returns whether `place` is in it.
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

/// Where a guest gets. Its fields are keys of `nat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachSpec {
    /// Places beyond its network; what the mode has if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<ReachList>,
    /// On if these include the addresses where a cloud tells a machine its credentials.
    #[serde(default)]
    pub metadata: Switch,
}

impl ReachSpec {
    /// The places, of a network with a way out.
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
