//! The values of a policy's keys: ports and prefixes, alone or in lists.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::kernel::nft::Item;

/// A range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last, which may be the first.
    pub last: u16,
}

/// Ports; a file has a number, a text such as `"80-89"`, or a list of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortList(Vec<PortRange>);

/// A prefix: all addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    addr: IpAddr,
    len: u8,
}

/// Prefixes; a file has a text such as `"192.0.2.0/24"`, or a list of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CidrList(Vec<Cidr>);

/// An invalid value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadField {
    /// Not a port or a range.
    #[error("{0:?} is not a port or a range of ports: give 1 to 65535, such as 80 or \"8000-8010\"")]
    Port(String),
    /// Not an address or a prefix.
    #[error("{0:?} is not an address or a prefix: give one such as 192.0.2.0/24 or 2001:db8::/32")]
    Cidr(String),
    /// A prefix with host bits set.
    #[error("{given} has bits behind the first {len}: write {network}")]
    Bits {
        /// The given text.
        given: String,
        /// The length of the prefix in bits.
        len: u8,
        /// The prefix without host bits.
        network: Cidr,
    },
}

impl FromStr for PortRange {
    type Err = BadField;

    fn from_str(text: &str) -> Result<Self, BadField> {
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(BadField::Port(text.to_owned())),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last { serializer.serialize_u16(self.first) } else { serializer.collect_str(self) }
    }
}

impl PortList {
    /// True if no port is given, which means all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ports that a rule tests for.
    pub(super) fn items(&self) -> Vec<Item<u16>> {
        let item = |range: &PortRange| match range {
            PortRange { first, last } if first == last => Item::One(*first),
            PortRange { first, last } => Item::Range(*first, *last),
        };
        self.0.iter().map(item).collect()
    }
}

impl FromStr for Cidr {
    type Err = BadField;

    fn from_str(text: &str) -> Result<Self, BadField> {
        let bad = || BadField::Cidr(text.to_owned());
        let (addr, len) = text.split_once('/').map_or((text, None), |(addr, len)| (addr, Some(len)));
        let addr: IpAddr = addr.parse().map_err(|_| bad())?;
        let bits = if addr.is_ipv4() { 32 } else { 128 };
        let len = match len {
            Some(len) if len.bytes().all(|byte| byte.is_ascii_digit()) => len.parse().map_err(|_| bad())?,
            Some(_) => return Err(bad()),
            None => bits,
        };
        if len > bits {
            return Err(bad());
        }
        let network = Self { addr: first_of(addr, len), len };
        if network.addr == addr { Ok(network) } else { Err(BadField::Bits { given: text.to_owned(), len, network }) }
    }
}

/// The first address that begins with `len` bits of this one.
fn first_of(addr: IpAddr, len: u8) -> IpAddr {
    let len = u32::from(len);
    match addr {
        IpAddr::V4(addr) => Ipv4Addr::from_bits(addr.to_bits() & !u32::MAX.checked_shr(len).unwrap_or(0)).into(),
        IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits() & !u128::MAX.checked_shr(len).unwrap_or(0)).into(),
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl CidrList {
    /// True if no prefix is given, which means any address.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if an IPv4 packet can match.
    pub(super) fn has_ip4(&self) -> bool {
        self.is_empty() || self.0.iter().any(|cidr| cidr.addr.is_ipv4())
    }

    /// True if an IPv6 packet can match.
    pub(super) fn has_ip6(&self) -> bool {
        self.is_empty() || self.0.iter().any(|cidr| cidr.addr.is_ipv6())
    }

    /// The prefixes that an IPv4 rule tests for.
    pub(super) fn items4(&self) -> Vec<Item<Ipv4Addr>> {
        let item =
            |cidr: &Cidr| if let IpAddr::V4(addr) = cidr.addr { Some(Item::Prefix(addr, cidr.len)) } else { None };
        self.0.iter().filter_map(item).collect()
    }

    /// The prefixes that an IPv6 rule tests for.
    pub(super) fn items6(&self) -> Vec<Item<Ipv6Addr>> {
        let item =
            |cidr: &Cidr| if let IpAddr::V6(addr) = cidr.addr { Some(Item::Prefix(addr, cidr.len)) } else { None };
        self.0.iter().filter_map(item).collect()
    }
}

impl Serialize for PortList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

impl Serialize for CidrList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

impl<'de> Deserialize<'de> for PortList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a port, a range of ports such as \"8000-8010\", or a list of these";
        deserializer.deserialize_any(OneOrMany { expected, value: PhantomData }).map(Self)
    }
}

impl<'de> Deserialize<'de> for CidrList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a prefix such as \"192.0.2.0/24\", or a list of these";
        deserializer.deserialize_any(OneOrMany { expected, value: PhantomData }).map(Self)
    }
}

/// Reads a value or a list of values; a number is read like its text.
struct OneOrMany<T> {
    expected: &'static str,
    value: PhantomData<T>,
}

/// A value in a list.
struct Piece<T>(T);

impl<'de, T: FromStr<Err = BadField>> Visitor<'de> for OneOrMany<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
        text.parse().map(|value| vec![value]).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Vec<T>, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Vec<T>, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut values = Vec::new();
        while let Some(Piece(value)) = seq.next_element()? {
            values.push(value);
        }
        if values.is_empty() {
            Err(de::Error::custom("The list is empty: leave the key out for all"))
        } else {
            Ok(values)
        }
    }
}

impl<'de, T: FromStr<Err = BadField>> Deserialize<'de> for Piece<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number or a text")]
        enum Scalar {
            Number(i64),
            Text(String),
        }
        let text = match Scalar::deserialize(deserializer)? {
            Scalar::Number(number) => number.to_string(),
            Scalar::Text(text) => text,
        };
        text.parse().map(Self).map_err(de::Error::custom)
    }
}
