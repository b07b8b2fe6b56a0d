//! MAC addresses of cards.
//!
//! A [`MacAddr`] is always a non-zero unicast address, so a card can have it. Whether another machine uses the address
//! is for the plan to check.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::identity::hash;

/// Octets in an Ethernet address.
pub const MAC_LEN: usize = 6;

/// An Ethernet address as the kernel reports it. It may be zero, as for a bridge that lost its last port.
pub type RawMac = [u8; MAC_LEN];

/// First octet of the addresses minivmm derives: locally administered (bit 1), unicast (bit 0 clear), IEEE 802 8.2.2.
const DERIVED_PREFIX: u8 = 0x02;

/// First octet of the host side of a card. It is the highest value a locally administered unicast address can start
/// with, so a bridge that takes the lowest address among its ports never takes this one while it has another.
pub(crate) const HOST_SIDE_PREFIX: u8 = 0xfe;

/// A unicast, non-zero Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr([u8; MAC_LEN]);

/// The reason why a text or some octets are not the address of a card.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six two-digit octets with colons between them.
    #[error("{0:?} is not a MAC address: it takes 6 octets, such as 52:54:00:12:34:56")]
    Form(String),
    /// Bit 0 of the first octet is set: a group address cannot be the source of a frame.
    #[error("{0} is a multicast MAC address and cannot belong to a card: make the first octet even")]
    Multicast(String),
    /// All octets are zero.
    #[error("00:00:00:00:00:00 cannot be the MAC address of a card: give another or leave mac= out")]
    Zero,
}

impl MacAddr {
    /// The address of these octets, in transmission order.
    ///
    /// # Errors
    /// Multicast (which includes broadcast) and all-zero addresses.
    pub fn new(octets: [u8; MAC_LEN]) -> Result<Self, MacError> {
        if octets == [0; MAC_LEN] {
            return Err(MacError::Zero);
        }
        if octets[0] & 1 != 0 {
            return Err(MacError::Multicast(Octets(octets).to_string()));
        }
        Ok(Self(octets))
    }

    /// The default address of card `card_idx` of the VM `name`: the same at every start.
    pub fn for_vm(name: &str, card_idx: usize) -> Self {
        let [b0, b1, b2, b3, b4, ..] = hash::of_card(name, card_idx).to_le_bytes();
        Self([DERIVED_PREFIX, b0, b1, b2, b3, b4])
    }

    /// A locally administered address with these random octets.
    pub(crate) fn local(random: [u8; MAC_LEN - 1]) -> Self {
        let [b0, b1, b2, b3, b4] = random;
        Self([DERIVED_PREFIX, b0, b1, b2, b3, b4])
    }

    /// The address of the host's end of the link whose guest end has this address.
    pub fn host_side(self) -> Self {
        let mut octets = self.0;
        octets[0] = HOST_SIDE_PREFIX;
        Self(octets)
    }

    /// The octets in transmission order.
    pub fn octets(self) -> [u8; MAC_LEN] {
        self.0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Octets(self.0), f)
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Octets(self.0), f)
    }
}

impl FromStr for MacAddr {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let form = || MacError::Form(text.to_owned());
        let mut octets = [0; MAC_LEN];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or_else(form)?;
            if part.len() != 2 || !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(form());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| form())?;
        }
        if parts.next().is_some() {
            return Err(form());
        }
        Self::new(octets)
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Octets as text, also of addresses that a card cannot have.
struct Octets([u8; MAC_LEN]);

impl fmt::Display for Octets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_in_lower_case() {
        let mac: MacAddr = "52:54:00:AB:cd:0f".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0f");
        assert_eq!(mac.octets(), [0x52, 0x54, 0, 0xab, 0xcd, 0x0f]);
    }

    #[test]
    fn json_is_the_text() {
        let mac: MacAddr = serde_json::from_str("\"52:54:00:12:34:56\"").unwrap();
        assert_eq!(serde_json::to_string(&mac).unwrap(), "\"52:54:00:12:34:56\"");
    }

    #[test]
    fn wrong_forms_are_refused() {
        for text in [
            "",
            "52",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52-54-00-12-34-56",
            "5:4:0:1:3:6",
            "52:54:00:12:34:5g",
            "+2:54:00:12:34:56",
        ] {
            assert_eq!(text.parse::<MacAddr>(), Err(MacError::Form(text.to_owned())));
        }
    }

    #[test]
    fn addresses_no_card_can_have_are_refused() {
        assert_eq!("00:00:00:00:00:00".parse::<MacAddr>(), Err(MacError::Zero));
        assert_eq!("ff:ff:ff:ff:ff:ff".parse::<MacAddr>(), Err(MacError::Multicast("ff:ff:ff:ff:ff:ff".to_owned())));
        assert_eq!("33:33:00:00:00:01".parse::<MacAddr>(), Err(MacError::Multicast("33:33:00:00:00:01".to_owned())));
    }

    #[test]
    fn derived_addresses_never_change_between_releases() {
        assert_eq!(MacAddr::for_vm("web", 0).to_string(), "02:8a:69:3c:c2:14");
        assert_eq!(MacAddr::for_vm("web", 1).to_string(), "02:85:88:2f:a0:0b");
    }

    #[test]
    fn derived_addresses_differ_by_name_and_card() {
        let mut seen = std::collections::BTreeSet::new();
        for vm in 0..500 {
            for card in 0..8 {
                assert!(seen.insert(MacAddr::for_vm(&format!("vm{vm}"), card)));
            }
        }
    }

    #[test]
    fn the_host_side_differs_in_the_first_octet_only() {
        let mac: MacAddr = "52:54:00:12:34:56".parse().unwrap();
        assert_eq!(mac.host_side().to_string(), "fe:54:00:12:34:56");
    }
}
