//! The values of `--net` keys, each parsed once into a type that cannot hold an invalid one.
//!
//! Every type reads the text of a flag (`mtu=1500`) as well as the native value of a configuration file or an API call
//! (`mtu = 1500`), and names its key in its errors, because serde does not.

use std::fmt;
use std::os::fd::RawFd;
use std::str::FromStr;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

/// Longest interface name: `IFNAMSIZ` less the closing zero (linux/if.h).
const NAME_MAX: usize = 15;

/// Smallest MTU that IPv4 allows (RFC 791) and virtio-net can announce (virtio 1.3 5.1.4.1).
pub const MTU_MIN: u16 = 68;

/// Most queue pairs of one card. A tap can have 256, but a guest has no use for more pairs than CPUs.
pub const QUEUES_MAX: u16 = 64;

/// Most queue pairs of a card for which `queues=` was not given: a guest with more vCPUs rarely has traffic for all of
/// them, and each pair costs a thread and two interrupts.
const DEFAULT_QUEUES_MAX: u16 = 8;

/// Limits of the size of a queue. The guest's kernel driver needs room for the pieces of one frame; the size of a split
/// ring is a power of two (virtio 1.3 2.7). Above 4096 nothing gets faster.
const RING_MIN: u16 = 64;
const RING_MAX: u16 = 4096;

/// Descriptors 0, 1 and 2 are the standard streams.
const FIRST_FREE_FD: RawFd = 3;

/// The name of an interface: 1 to 15 bytes, no slash, colon, blank or control character, not `.` or `..`
/// (`dev_valid_name` of the kernel), and not a pattern (`%`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName(String);

impl IfName {
    /// The bridge of our network `network`; `prefix` has at most 4 bytes, the network's name at most 11.
    pub(super) fn of_network(prefix: &str, network: &str) -> Self {
        Self(format!("{prefix}{network}"))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let refuse = |reason| Err(FieldError::Name { name: text.to_owned(), reason });
        if text.is_empty() {
            return refuse("it is empty");
        }
        if text.len() > NAME_MAX {
            return refuse("Linux takes at most 15 bytes");
        }
        if text == "." || text == ".." {
            return refuse("Linux reserves it");
        }
        if text.chars().any(|c| matches!(c, '/' | ':' | '%' | ',') || c.is_whitespace() || c.is_control()) {
            return refuse("/, :, %, commas, blanks and control characters cannot be part of one");
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for IfName {
    type Error = FieldError;

    fn try_from(text: String) -> Result<Self, FieldError> {
        text.parse()
    }
}

impl From<IfName> for String {
    fn from(name: IfName) -> Self {
        name.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An MTU in bytes, 68 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Mtu(u16);

impl Mtu {
    /// The MTU in bytes.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl FromStr for Mtu {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        match whole_number(text).and_then(|value| u16::try_from(value).ok()) {
            Some(bytes) if bytes >= MTU_MIN => Ok(Self(bytes)),
            _ => Err(FieldError::Mtu(text.to_owned())),
        }
    }
}

/// Queue pairs of a card, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Queues(u16);

impl Queues {
    /// One queue pair.
    pub const ONE: Self = Self(1);

    /// The default of a VM: a pair for each vCPU, at most 8.
    pub fn for_vcpus(vcpus: u32) -> Self {
        Self(u16::try_from(vcpus).unwrap_or(u16::MAX).clamp(1, DEFAULT_QUEUES_MAX))
    }

    /// The number of pairs.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl FromStr for Queues {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        match whole_number(text).and_then(|value| u16::try_from(value).ok()) {
            Some(pairs @ 1..=QUEUES_MAX) => Ok(Self(pairs)),
            _ => Err(FieldError::Queues(text.to_owned())),
        }
    }
}

/// Descriptors of a queue: a power of two from 64 to 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RingSize(u16);

impl RingSize {
    /// The number of descriptors.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Default for RingSize {
    /// The size that most cards have.
    fn default() -> Self {
        Self(256)
    }
}

impl FromStr for RingSize {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        match whole_number(text).and_then(|value| u16::try_from(value).ok()) {
            Some(size @ RING_MIN..=RING_MAX) if size.is_power_of_two() => Ok(Self(size)),
            _ => Err(FieldError::Ring(text.to_owned())),
        }
    }
}

/// `on` or `off`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// `on`.
    On,
    /// `off`.
    #[default]
    Off,
}

impl FromStr for Switch {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        match text {
            "on" | "true" => Ok(Self::On),
            "off" | "false" => Ok(Self::Off),
            _ => Err(FieldError::Switch(text.to_owned())),
        }
    }
}

/// Inherited descriptors of one tap, one for each queue pair: at least one, at most [`QUEUES_MAX`], all different.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FdList(Vec<RawFd>);

impl FdList {
    /// The descriptor numbers in queue order.
    pub fn as_slice(&self) -> &[RawFd] {
        &self.0
    }

    /// One queue pair for each descriptor.
    pub fn queues(&self) -> Queues {
        // The list has at most QUEUES_MAX entries, so the conversion cannot fail.
        Queues(u16::try_from(self.0.len()).unwrap_or(QUEUES_MAX))
    }
}

impl FromStr for FdList {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let mut fds = Vec::new();
        for part in text.split(':') {
            let fd = whole_number(part).and_then(|value| RawFd::try_from(value).ok());
            let fd = fd.ok_or_else(|| FieldError::Fd(part.to_owned()))?;
            if fd < FIRST_FREE_FD {
                return Err(FieldError::StandardStream(fd));
            }
            if fds.contains(&fd) {
                return Err(FieldError::FdTwice(fd));
            }
            fds.push(fd);
        }
        if fds.len() > usize::from(QUEUES_MAX) {
            return Err(FieldError::FdCount(fds.len()));
        }
        Ok(Self(fds))
    }
}

impl fmt::Display for FdList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join(":"))
    }
}

/// A value that its key cannot take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// Not the name of an interface.
    #[error("{name:?} cannot be the name of an interface: {reason}")]
    Name {
        /// The given text.
        name: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// Not an MTU.
    #[error("mtu={0} is not possible: give whole bytes from {MTU_MIN} to 65535")]
    Mtu(String),
    /// Not a number of queue pairs.
    #[error("queues={0} is not possible: give a whole number from 1 to {QUEUES_MAX}")]
    Queues(String),
    /// Not the size of a queue.
    #[error("ring={0} is not possible: give a power of two from {RING_MIN} to {RING_MAX}")]
    Ring(String),
    /// Not a list of offloads.
    #[error("offload={0} is not possible: give on, off, or some of csum:tso:ecn:ufo:uso")]
    Offload(String),
    /// An offload without the one that it needs.
    #[error("offload= with {offload} needs {needed} as well: write {needed}:{offload}")]
    OffloadNeeds {
        /// The given text.
        offload: &'static str,
        /// The offload that it needs.
        needed: &'static str,
    },
    /// Not an interface ID.
    #[error("iface-id={0} is not possible: give 1 to 127 letters, digits and ._:/@-")]
    IfaceId(String),
    /// Not a macvtap mode.
    #[error("mode={0} is not possible: give bridge, private, vepa or passthru")]
    MacvtapMode(String),
    /// Not a pair of rates.
    #[error(
        "rate={0} is not possible: give bits per second to and from the guest, such as 100M/20M, from 100 to 1000G"
    )]
    Rate(String),
    /// Not the size of a burst.
    #[error("burst={0} is not possible: give bytes, such as 64K or 1M, at most 1G")]
    Burst(String),
    /// Not a delay.
    #[error("delay or jitter \"{0}\" is not possible: give a whole number with us, ms or s, such as 20ms, at most 10s")]
    Delay(String),
    /// Not a percentage.
    #[error("loss={0} is not possible: give a percentage with at most four decimals, such as 1% or 0.1%")]
    Loss(String),
    /// Not a snap length.
    #[error("snaplen={0} is not possible: give whole bytes from 14 to 65553")]
    Snaplen(String),
    /// Not the size of a capture file.
    #[error("capture-size={0} is not possible: give bytes from 64K to 1024G, such as 100M")]
    CaptureSize(String),
    /// Not a seed.
    #[error("seed={0} is not possible: give a whole number below 2^64")]
    Seed(String),
    /// Neither on nor off.
    #[error("\"{0}\" is not possible: give on or off")]
    Switch(String),
    /// Not the name of a network.
    #[error("{0:?} cannot be the name of a network: give 1 to 11 characters of a-z, 0-9 and '-'")]
    NetworkName(String),
    /// Not a subnet for guests.
    #[error("subnet={0} is not possible: give an IPv4 subnet of 8 to 30 bits, such as 10.20.30.0/24")]
    Subnet(String),
    /// A subnet with host bits set.
    #[error("subnet={given} is the address of a machine: give subnet={subnet}")]
    SubnetBits {
        /// The given text.
        given: String,
        /// The subnet that it is in.
        subnet: String,
    },
    /// Not a forwarded port.
    #[error("forward={given} is not possible: {reason}")]
    Forward {
        /// The given text.
        given: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// Not a list of places.
    #[error("reach={0} is not possible: give none, or a list out of world+private+host")]
    Reach(String),
    /// Not a list of domains.
    #[error(
        "search={0} is not possible: give host, off, or up to 6 domains of 256 characters together, \
         with + between them"
    )]
    Search(String),
    /// Not a number of connections.
    #[error("connections={0} is not possible: give a whole number from 1 to 10000000")]
    Connections(String),
    /// Not a rate of new connections.
    #[error("new-connections={0} is not possible: give a whole number in a second, such as 100/s, up to 10000000/s")]
    NewConnections(String),
    /// Not an address of a guest.
    #[error("addresses= with \"{given}\" is not possible: {reason}")]
    Address {
        /// The given text.
        given: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// Two forwards of the same host port.
    #[error("forward={first} and forward={second} both lead the same port of the host: keep one of them")]
    ForwardTwice {
        /// The first.
        first: String,
        /// The second.
        second: String,
    },
    /// More ports than a card can have.
    #[error("forward= lists {count} ports, and a card has at most {max}: give fewer")]
    ForwardCount {
        /// The number of listed ports.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// Not a forward delay.
    #[error("forward-delay={0} is not possible: give whole seconds from 2 to 30")]
    ForwardDelay(String),
    /// Not a VLAN.
    #[error("VLAN {0:?} is not possible: give a whole number from 1 to 4094")]
    Vlan(String),
    /// A range that ends before it begins.
    #[error("VLANs {0} are not possible: a range is FIRST-LAST, such as 100-110")]
    VlanRange(String),
    /// The same VLAN twice.
    #[error("trunk= lists a VLAN twice, in {first} and {second}: keep one of them")]
    VlanTwice {
        /// The first.
        first: String,
        /// The second.
        second: String,
    },
    /// Not a descriptor.
    #[error("fd={0} is not possible: give the numbers of inherited descriptors, such as fd=3 or fd=3:4")]
    Fd(String),
    /// A standard stream.
    #[error("fd={0} is a standard stream and cannot be a tap: give a descriptor from {FIRST_FREE_FD} up")]
    StandardStream(RawFd),
    /// The same descriptor twice.
    #[error("fd={0} is given twice: every queue pair takes a descriptor of its own")]
    FdTwice(RawFd),
    /// More queues than a card can have.
    #[error("fd= lists {0} descriptors, and a card has at most {QUEUES_MAX} queue pairs: give fewer")]
    FdCount(usize),
}

/// A number written in decimal digits only; `+5`, ` 5` and `0x5` are refused.
pub(super) fn whole_number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// A whole number with one of these units, scaled.
pub(super) fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

/// An element of a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Element {
    Number(i64),
    Text(String),
}

/// Deserializes a type of `spec` from a text, a number, a boolean or a list, by way of the text that a flag would have:
/// one parser, one set of messages.
pub(super) struct FlagText<T>(std::marker::PhantomData<T>);

impl<T> FlagText<T> {
    pub(super) fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<'de, T: FromStr<Err = FieldError>> Visitor<'de> for FlagText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number or a list of them")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<T, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<T, A::Error> {
        // Descriptors are numbers, forwarded ports are texts; each kind has its own separator in a flag.
        let mut joined = String::new();
        while let Some(element) = seq.next_element::<Element>()? {
            let (separator, text) = match element {
                Element::Number(number) => (':', number.to_string()),
                Element::Text(text) => ('+', text),
            };
            if !joined.is_empty() {
                joined.push(separator);
            }
            joined.push_str(&text);
        }
        self.visit_str(&joined)
    }
}

/// Implements `Deserialize` by way of `FromStr`, for the values of flags, configuration files and API calls.
macro_rules! deserialize_as_flag_text {
    ($($name:ty),+) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any($crate::spec::fields::FlagText::new())
            }
        }
    )+};
}
pub(super) use deserialize_as_flag_text;

deserialize_as_flag_text!(Mtu, Queues, RingSize, Switch, FdList);
