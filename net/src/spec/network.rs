//! The values of `nat=` and `host=`: the network's name and its addresses.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::fields::{FieldError, deserialize_as_flag_text};

/// Longest name of a network. The name of its bridge is `mvn-` and this name, at most 15 bytes.
const NAME_MAX: usize = 11;

/// The name of a network that is given none.
pub(super) const DEFAULT_NAME: &str = "default";

/// Prefix lengths of the largest and the smallest subnet. The smallest has room for the gateway and one guest.
const PREFIX_MIN: u8 = 8;
const PREFIX_MAX: u8 = 30;

/// The name of a network that minivmm makes: 1 to 11 characters of a-z, 0-9 and '-'.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct NetworkName(String);

impl NetworkName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True if it is the name of a network that is given none.
    pub fn is_default(&self) -> bool {
        self.0 == DEFAULT_NAME
    }
}

impl FromStr for NetworkName {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(FieldError::NetworkName(text.to_owned()))
        }
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An IPv4 subnet for guests: 8 to 30 bits, host bits zero, unicast, neither loopback nor link-local.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    network: Ipv4Addr,
    prefix_len: u8,
}

impl Subnet {
    /// The subnet that contains `address`; `None` if it cannot be used for guests.
    pub fn around(address: Ipv4Addr, prefix_len: u8) -> Option<Self> {
        if !(PREFIX_MIN..=PREFIX_MAX).contains(&prefix_len) {
            return None;
        }
        let network = Ipv4Addr::from_bits(address.to_bits() & mask(prefix_len));
        let [first, second, ..] = network.octets();
        let usable = !matches!(first, 0 | 127 | 224..) && (first, second) != (169, 254);
        usable.then_some(Self { network, prefix_len })
    }

    /// The address of the subnet itself, the lowest.
    pub fn network(self) -> Ipv4Addr {
        self.network
    }

    /// The length of the prefix in bits.
    pub fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    /// The first usable address: the host's own, which is gateway and name server.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + 1)
    }

    /// The last address, for broadcasts.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !mask(self.prefix_len))
    }

    /// The number of guests that fit.
    pub fn guests(self) -> u32 {
        // At least 4 addresses: network, gateway, broadcast, and one or more guests.
        self.broadcast().to_bits() - self.gateway().to_bits() - 1
    }

    /// The address of a guest, counted from 0.
    pub fn guest(self, index: u32) -> Option<Ipv4Addr> {
        (index < self.guests()).then(|| Ipv4Addr::from_bits(self.gateway().to_bits() + 1 + index))
    }

    /// True if `address` is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix_len) == self.network.to_bits()
    }
}

/// The netmask of a prefix.
pub(crate) fn mask(prefix_len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0)
}

impl FromStr for Subnet {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let refuse = || FieldError::Subnet(text.to_owned());
        let (address, len) = text.split_once('/').ok_or_else(refuse)?;
        let address: Ipv4Addr = address.parse().map_err(|_| refuse())?;
        let len = len.parse().ok().filter(|_| !len.starts_with('+')).ok_or_else(refuse)?;
        let subnet = Self::around(address, len).ok_or_else(refuse)?;
        if subnet.network != address {
            return Err(FieldError::SubnetBits { given: text.to_owned(), subnet: subnet.to_string() });
        }
        Ok(subnet)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_len)
    }
}

impl Serialize for Subnet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

deserialize_as_flag_text!(NetworkName, Subnet);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smallest_subnet_has_one_guest() {
        let subnet: Subnet = "192.168.7.4/30".parse().unwrap();
        assert_eq!(subnet.gateway(), Ipv4Addr::new(192, 168, 7, 5));
        assert_eq!((subnet.guests(), subnet.guest(0)), (1, Some(Ipv4Addr::new(192, 168, 7, 6))));
        assert_eq!((subnet.guest(1), subnet.broadcast()), (None, Ipv4Addr::new(192, 168, 7, 7)));
    }

    #[test]
    fn largest_subnet_has_all_but_three() {
        let subnet: Subnet = "10.0.0.0/8".parse().unwrap();
        assert_eq!(subnet.guests(), (1 << 24) - 3);
        assert_eq!(subnet.guest(subnet.guests() - 1), Some(Ipv4Addr::new(10, 255, 255, 254)));
        assert!(subnet.contains(Ipv4Addr::new(10, 9, 8, 7)) && !subnet.contains(Ipv4Addr::new(11, 0, 0, 0)));
    }

    #[test]
    fn subnets_without_room_or_use_are_refused() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/31",
            "10.0.0.0/7",
            "10.0.0.0/+9",
            "127.0.0.0/8",
            "0.0.0.0/8",
            "224.0.0.0/24",
            "255.255.255.0/24",
            "169.254.3.0/24",
            "10.0.0/24",
            "fd00::/64",
        ] {
            assert_eq!(text.parse::<Subnet>(), Err(FieldError::Subnet(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn subnet_with_bits_of_a_machine_is_refused_with_the_one_that_was_meant() {
        let error = "10.1.2.3/24".parse::<Subnet>().unwrap_err();
        assert_eq!(error.to_string(), "subnet=10.1.2.3/24 is the address of a machine: give subnet=10.1.2.0/24");
    }

    #[test]
    fn names_that_fit_an_interface_are_taken() {
        for text in ["a", "default", "0-9", "abcdefghijk"] {
            assert_eq!(text.parse::<NetworkName>().unwrap().as_str(), text);
        }
        for text in ["", "abcdefghijkl", "Web", "a.b", "a b", "ä"] {
            assert_eq!(text.parse::<NetworkName>(), Err(FieldError::NetworkName(text.to_owned())));
        }
    }
}
