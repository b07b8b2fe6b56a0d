//! `forward=`: ports of the host that lead to the guest.
//!
//! ```text
//! tcp:8080:80                  port 8080 of every IPv4 address of the host leads to port 80 of the guest
//! udp:127.0.0.1:5353:53        port 5353 of one address of the host
//! tcp:8000-8010:9000-9010      a range, port by port
//! tcp:8080:80+udp:5353:53      several forwards
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::fields::{FieldError, deserialize_as_flag_text};

/// Most host ports of one card. A socket of the keeper reserves each; most hosts allow a process 1024 descriptors.
pub const FORWARDED_PORTS_MAX: usize = 512;

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its number in an IP header (`IPPROTO_*`).
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Its name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Ports of the host that lead to as many ports of the guest, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Forward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The host's address; all of its IPv4 addresses if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// The first of the host's ports.
    pub host_port: u16,
    /// The first of the guest's ports.
    pub guest_port: u16,
    /// The number of ports, at least one. The last port is at most 65535 on both sides.
    pub count: u16,
}

impl Forward {
    /// Pairs of a host port and the guest port that it leads to.
    pub fn pairs(self) -> impl Iterator<Item = (u16, u16)> {
        // The last ones are at most 65535 by construction.
        (0..self.count).map(move |idx| (self.host_port.saturating_add(idx), self.guest_port.saturating_add(idx)))
    }

    /// The last of the host's ports.
    pub fn last_host_port(self) -> u16 {
        self.host_port.saturating_add(self.count - 1)
    }

    /// The last of the guest's ports.
    pub fn last_guest_port(self) -> u16 {
        self.guest_port.saturating_add(self.count - 1)
    }

    /// True if both match the same packets.
    pub fn overlaps(self, other: Self) -> bool {
        let same_address = self.address.is_none() || other.address.is_none() || self.address == other.address;
        let apart = self.host_port > other.last_host_port() || other.host_port > self.last_host_port();
        self.protocol == other.protocol && same_address && !apart
    }
}

impl FromStr for Forward {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let refuse = |reason| FieldError::Forward { given: text.to_owned(), reason };
        let form = "write tcp:HOSTPORT:GUESTPORT or udp:ADDRESS:HOSTPORT:GUESTPORT";
        let (protocol, rest) = text.split_once(':').ok_or_else(|| refuse(form))?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(refuse("the protocol is tcp or udp")),
        };
        if rest.starts_with('[') {
            return Err(refuse("only IPv4 addresses of the host can be forwarded"));
        }
        let parts: Vec<&str> = rest.split(':').collect();
        let (address, host, guest) = match parts.as_slice() {
            [host, guest] => (None, *host, *guest),
            [address, host, guest] => {
                let address = address.parse().map_err(|_| refuse("the address is not one of IPv4"))?;
                (Some(address), *host, *guest)
            }
            _ => return Err(refuse(form)),
        };
        // 0.0.0.0 means all addresses, as no address does.
        let address = address.filter(|address: &Ipv4Addr| !address.is_unspecified());
        let ((host_port, count), (guest_port, guests)) =
            (ports(host).ok_or_else(|| refuse(PORTS))?, ports(guest).ok_or_else(|| refuse(PORTS))?);
        if count != guests {
            return Err(refuse("host and guest have different numbers of ports"));
        }
        Ok(Self { protocol, address, host_port, guest_port, count })
    }
}

/// The reason why ports are refused.
const PORTS: &str = "a port is a number from 1 to 65535, and a range is FIRST-LAST";

/// The first port and the number of ports of `N` or `N-M`.
fn ports(text: &str) -> Option<(u16, u16)> {
    let port = |text: &str| -> Option<u16> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|port| digits && *port > 0)
    };
    let Some((first, last)) = text.split_once('-') else { return Some((port(text)?, 1)) };
    let (first, last) = (port(first)?, port(last)?);
    Some((first, last.checked_sub(first)?.checked_add(1)?))
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.protocol.name())?;
        if let Some(address) = self.address {
            write!(f, "{address}:")?;
        }
        match self.count {
            1 => write!(f, "{}:{}", self.host_port, self.guest_port),
            _ => {
                write!(f, "{}-{}:{}-{}", self.host_port, self.last_host_port(), self.guest_port, self.last_guest_port())
            }
        }
    }
}

/// The forwards of a card: at most [`FORWARDED_PORTS_MAX`] ports of the host, none of them twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForwardList(Vec<Forward>);

impl ForwardList {
    /// The forwards in the given order.
    pub fn as_slice(&self) -> &[Forward] {
        &self.0
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The protocols of the forwards.
    pub fn protocols(&self) -> BTreeSet<Protocol> {
        self.0.iter().map(|forward| forward.protocol).collect()
    }
}

impl FromStr for ForwardList {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let list: Vec<Forward> = text.split('+').map(str::parse).collect::<Result<_, _>>()?;
        for (idx, forward) in list.iter().enumerate() {
            if let Some(other) = list[..idx].iter().find(|other| other.overlaps(*forward)) {
                return Err(FieldError::ForwardTwice { first: other.to_string(), second: forward.to_string() });
            }
        }
        let count: usize = list.iter().map(|forward| usize::from(forward.count)).sum();
        if count > FORWARDED_PORTS_MAX {
            return Err(FieldError::ForwardCount { count, max: FORWARDED_PORTS_MAX });
        }
        Ok(Self(list))
    }
}

impl fmt::Display for ForwardList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join("+"))
    }
}

impl Serialize for ForwardList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(ToString::to_string))
    }
}

deserialize_as_flag_text!(ForwardList);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_read_back() {
        for text in ["tcp:8080:80", "udp:127.0.0.1:5353:53", "tcp:8000-8010:9000-9010", "tcp:1:65535+udp:1:1"] {
            assert_eq!(text.parse::<ForwardList>().unwrap().to_string(), text);
        }
        assert_eq!("tcp:0.0.0.0:8080:80".parse::<ForwardList>().unwrap().to_string(), "tcp:8080:80");
    }

    #[test]
    fn pairs_go_in_order() {
        let forward: Forward = "tcp:65534-65535:1-2".parse().unwrap();
        assert_eq!(forward.pairs().collect::<Vec<_>>(), [(65534, 1), (65535, 2)]);
    }

    #[test]
    fn wrong_forwards_are_refused_with_what_is_wrong() {
        for (text, part) in [
            ("", "tcp:HOSTPORT:GUESTPORT"),
            ("tcp", "tcp:HOSTPORT:GUESTPORT"),
            ("tcp:80", "tcp:HOSTPORT:GUESTPORT"),
            ("sctp:80:80", "tcp or udp"),
            ("tcp:0:80", "from 1 to 65535"),
            ("tcp:80:65536", "from 1 to 65535"),
            ("tcp: 80:80", "from 1 to 65535"),
            ("tcp:9-8:9-8", "FIRST-LAST"),
            ("tcp:1-65536:1-65536", "from 1 to 65535"),
            ("tcp:80-81:80", "different numbers"),
            ("tcp:1.2.3:80:80", "not one of IPv4"),
            ("tcp:[::1]:80:80", "only IPv4"),
            ("tcp:1:2:3:4", "HOSTPORT"),
            ("tcp:80:80+", "HOSTPORT"),
            ("tcp:80:80+tcp:79-81:1-3", "both lead"),
            ("tcp:80:80+tcp:1.2.3.4:80:81", "both lead"),
            ("tcp:1-513:1-513", "513 ports"),
        ] {
            let error = text.parse::<ForwardList>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn one_port_of_two_protocols_or_addresses_is_two() {
        for text in ["tcp:80:80+udp:80:80", "tcp:127.0.0.1:80:80+tcp:127.0.0.2:80:80"] {
            assert!(text.parse::<ForwardList>().is_ok(), "{text}");
        }
    }
}
