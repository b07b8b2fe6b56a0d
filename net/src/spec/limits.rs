//! `connections=` and `new-connections=`: limits of a guest's share of the host's connection tracking.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::fields::{FieldError, deserialize_as_flag_text, whole_number};

/// The largest value of either key: more than hosts track.
const LIMIT_MAX: u32 = 10_000_000;

/// The divisor of the host's table that gives a guest's default limit.
const SHARE: u32 = 8;

/// The assumed size of a table that does not exist yet: the smallest `nf_conntrack_max` of hosts with more than 1 GiB
/// of memory.
const TABLE_MIN: u32 = 65_536;

/// Limits of a guest in the host's connection tracking. Its fields are keys of `nat` and `host`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LimitSpec {
    /// Connections at a time; an eighth of the host's table if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<Connections>,
    /// New connections in a second; no limit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_connections: Option<NewConnections>,
}

impl LimitSpec {
    /// The same limits with the default of `connections` filled in, for a host that tracks `table` connections.
    pub(crate) fn within(self, table: Option<u32>) -> Self {
        let share = table.unwrap_or(TABLE_MIN) / SHARE;
        Self { connections: self.connections.or(Some(Connections(share.clamp(1, LIMIT_MAX)))), ..self }
    }

    /// True if it limits nothing.
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for LimitSpec {
    /// The part of a flag that gives this spec, with a comma before each key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(connections) = self.connections {
            write!(f, ",connections={}", connections.get())?;
        }
        self.new_connections.map_or(Ok(()), |rate| write!(f, ",new-connections={rate}"))
    }
}

/// Connections at a time, from 1 to 10,000,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Connections(u32);

impl Connections {
    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for Connections {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        limit(text).map(Self).ok_or_else(|| FieldError::Connections(text.to_owned()))
    }
}

/// New connections in a second, from 1 to 10,000,000; a flag has `/s` after the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewConnections(u32);

impl NewConnections {
    /// The number in a second.
    pub fn per_second(self) -> u32 {
        self.0
    }
}

impl FromStr for NewConnections {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let number = text.strip_suffix("/s").and_then(limit);
        number.map(Self).ok_or_else(|| FieldError::NewConnections(text.to_owned()))
    }
}

impl fmt::Display for NewConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

impl Serialize for NewConnections {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn limit(text: &str) -> Option<u32> {
    whole_number(text).and_then(|value| u32::try_from(value).ok()).filter(|value| (1..=LIMIT_MAX).contains(value))
}

deserialize_as_flag_text!(Connections, NewConnections);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_whole_numbers_with_their_unit() {
        assert_eq!("100".parse(), Ok(Connections(100)));
        assert_eq!("20/s".parse(), Ok(NewConnections(20)));
        for text in ["0", "-1", "1.5", "10000001", "20/s", ""] {
            assert!(text.parse::<Connections>().is_err(), "{text}");
        }
        for text in ["20", "0/s", "20/m", "/s", "20 /s"] {
            assert!(text.parse::<NewConnections>().is_err(), "{text}");
        }
    }
}
