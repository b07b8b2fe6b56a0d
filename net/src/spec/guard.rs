//! `antispoof=`, `addresses=` and `isolate=`: the addresses a guest may send from, and its isolation from other VMs.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::fields::{FieldError, Switch, deserialize_as_flag_text};

/// Most addresses of one card. A guest with more is a router, which a list of addresses does not suit.
pub const ADDRESSES_MAX: usize = 64;

/// Restrictions on a guest. Its fields are keys of `bridge`, `nat` and `host`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardSpec {
    /// On if the guest sends from its own MAC and addresses only; the default of the mode if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub antispoof: Option<Switch>,
    /// On if other VMs of this host are out of reach.
    #[serde(default)]
    pub isolate: Switch,
}

impl GuardSpec {
    /// The value of `antispoof=` in a mode with this default.
    pub(crate) fn antispoof_or(self, default: Switch) -> Switch {
        self.antispoof.unwrap_or(default)
    }
}

impl fmt::Display for GuardSpec {
    /// The part of a flag that gives this spec, with a comma before each key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.antispoof {
            Some(Switch::On) => f.write_str(",antispoof=on")?,
            Some(Switch::Off) => f.write_str(",antispoof=off")?,
            None => {}
        }
        if self.isolate == Switch::On { f.write_str(",isolate=on") } else { Ok(()) }
    }
}

/// Unicast addresses of a guest, all different; a flag has `+` between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressList(Vec<IpAddr>);

impl AddressList {
    /// The addresses in the given order.
    pub fn as_slice(&self) -> &[IpAddr] {
        &self.0
    }

    /// True if no address is given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for AddressList {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let refuse = |given: &str, reason| Err(FieldError::Address { given: given.to_owned(), reason });
        let mut addresses = Vec::new();
        for part in text.split('+') {
            let Ok(address) = part.parse::<IpAddr>() else {
                return refuse(part, "give IPv4 and IPv6 addresses, with + between them");
            };
            let broadcast = IpAddr::from([255; 4]);
            if address.is_unspecified() || address.is_loopback() || address.is_multicast() || address == broadcast {
                return refuse(part, "no machine on a network has it");
            }
            if addresses.contains(&address) {
                return refuse(part, "it is given twice");
            }
            addresses.push(address);
        }
        if addresses.len() > ADDRESSES_MAX {
            return refuse(text, "a card has at most 64 addresses");
        }
        Ok(Self(addresses))
    }
}

impl fmt::Display for AddressList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join("+"))
    }
}

impl Serialize for AddressList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

deserialize_as_flag_text!(AddressList);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_addresses_reads_back() {
        let list: AddressList = "192.0.2.5+2001:db8::5".parse().unwrap();
        assert_eq!(list.as_slice(), ["192.0.2.5".parse::<IpAddr>().unwrap(), "2001:db8::5".parse().unwrap()]);
        assert_eq!(list.to_string(), "192.0.2.5+2001:db8::5");
    }

    #[test]
    fn addresses_that_no_machine_has_are_refused() {
        for text in
            ["", "x", "1.2.3", "192.0.2.0/24", "0.0.0.0", "::", "127.0.0.1", "224.0.0.1", "ff02::1", "255.255.255.255"]
        {
            assert!(text.parse::<AddressList>().is_err(), "{text}");
        }
        assert!("192.0.2.5+192.0.2.5".parse::<AddressList>().is_err());
        let many: Vec<String> = (1..=65).map(|idx| format!("192.0.2.{idx}")).collect();
        assert!(many.join("+").parse::<AddressList>().is_err());
        assert!(many[..64].join("+").parse::<AddressList>().is_ok());
    }
}
