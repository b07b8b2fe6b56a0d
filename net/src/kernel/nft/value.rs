//! Values that a field of a packet can be compared with.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::identity::mac::{MAC_LEN, MacAddr};
use crate::spec::IfName;

/// A value in the form of a kernel register.
pub trait Datum: Clone + fmt::Debug {
    /// The number that `nft` has for this type (its `enum datatypes`). The kernel stores it with a set and does not
    /// interpret it.
    const KEY_TYPE: u32;
    /// Bytes in a register.
    const LEN: usize;
    /// True if `nft` takes it as a number in host byte order.
    const HOST_ORDER: bool = false;

    /// The bytes in a register; ordered values keep their order as bytes.
    fn bytes(&self) -> Vec<u8>;
    /// The value in nft's syntax.
    fn text(&self) -> String;
}

/// Bytes of an interface name in a register (`IFNAMSIZ`).
const IFNAME_LEN: usize = 16;

impl Datum for IfName {
    const KEY_TYPE: u32 = 41;
    const LEN: usize = IFNAME_LEN;
    const HOST_ORDER: bool = true;

    fn bytes(&self) -> Vec<u8> {
        padded(self.as_str())
    }

    fn text(&self) -> String {
        format!("\"{self}\"")
    }
}

/// The beginning of an interface's name: 1 to 15 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamePrefix(pub &'static str);

impl fmt::Display for NamePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}*\"", self.0)
    }
}

/// A kind of interface as `ip -d link` shows it: `tun`, `bridge`, `veth`. At most 15 bytes are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkKind(pub String);

impl Datum for LinkKind {
    const KEY_TYPE: u32 = IfName::KEY_TYPE;
    const LEN: usize = IFNAME_LEN;
    const HOST_ORDER: bool = true;

    fn bytes(&self) -> Vec<u8> {
        padded(&self.0)
    }

    fn text(&self) -> String {
        format!("\"{}\"", self.0)
    }
}

/// A name in a register, padded with at least one zero byte.
fn padded(name: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = name.bytes().take(IFNAME_LEN - 1).collect();
    bytes.resize(IFNAME_LEN, 0);
    bytes
}

/// Any Ethernet address: unlike [`MacAddr`] also multicast, and all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EtherAddr(pub [u8; MAC_LEN]);

impl EtherAddr {
    /// The broadcast address.
    pub const BROADCAST: Self = Self([0xff; MAC_LEN]);
}

impl From<MacAddr> for EtherAddr {
    fn from(mac: MacAddr) -> Self {
        Self(mac.octets())
    }
}

impl Datum for EtherAddr {
    const KEY_TYPE: u32 = 9;
    const LEN: usize = MAC_LEN;

    fn bytes(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    fn text(&self) -> String {
        let [a, b, c, d, e, f] = self.0;
        format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl Datum for Ipv4Addr {
    const KEY_TYPE: u32 = 7;
    const LEN: usize = 4;

    fn bytes(&self) -> Vec<u8> {
        self.octets().to_vec()
    }

    fn text(&self) -> String {
        self.to_string()
    }
}

impl Datum for Ipv6Addr {
    const KEY_TYPE: u32 = 8;
    const LEN: usize = 16;

    fn bytes(&self) -> Vec<u8> {
        self.octets().to_vec()
    }

    fn text(&self) -> String {
        self.to_string()
    }
}

/// A port of TCP or UDP.
impl Datum for u16 {
    const KEY_TYPE: u32 = 13;
    const LEN: usize = 2;

    fn bytes(&self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }

    fn text(&self) -> String {
        self.to_string()
    }
}

/// A number with names in nft's syntax.
macro_rules! named_number {
    ($(#[$doc:meta])* $name:ident($number:ty), $key_type:literal, $to_bytes:ident, $other:literal,
     { $($constant:ident = $value:literal $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(pub $number);

        impl $name {
            $(#[doc = concat!("`", $text, "`")] pub const $constant: Self = Self($value);)+
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    $(Self::$constant => f.write_str($text),)+
                    Self(number) => write!(f, $other, number),
                }
            }
        }

        impl Datum for $name {
            const KEY_TYPE: u32 = $key_type;
            const LEN: usize = size_of::<$number>();

            fn bytes(&self) -> Vec<u8> {
                self.0.$to_bytes().to_vec()
            }

            fn text(&self) -> String {
                self.to_string()
            }
        }
    };
}

named_number! {
    /// The protocol family under which a packet is filtered.
    NfProto(u8), 2, to_be_bytes, "{}", { IP4 = 2 "ipv4", IP6 = 10 "ipv6" }
}
named_number! {
    /// An IP protocol (<https://www.iana.org/assignments/protocol-numbers>).
    L4Proto(u8), 12, to_be_bytes, "{}", { ICMP = 1 "icmp", TCP = 6 "tcp", UDP = 17 "udp", FRAGMENT = 44 "ipv6-frag", ICMP6 = 58 "ipv6-icmp" }
}
named_number! {
    /// A protocol above Ethernet (linux/if_ether.h).
    EtherType(u16), 10, to_be_bytes, "{:#06x}", {
        IP4 = 0x0800 "ip",
        ARP = 0x0806 "arp",
        VLAN = 0x8100 "8021q",
        IP6 = 0x86dd "ip6",
        PROVIDER_VLAN = 0x88a8 "8021ad",
    }
}
named_number! {
    /// The operation of an ARP packet (RFC 826).
    ArpOp(u16), 11, to_be_bytes, "{}", { REQUEST = 1 "request", REPLY = 2 "reply" }
}
named_number! {
    /// RFC 792.
    IcmpType(u8), 14, to_be_bytes, "{}", {
        ECHO_REPLY = 0 "echo-reply",
        DESTINATION_UNREACHABLE = 3 "destination-unreachable",
        REDIRECT = 5 "redirect",
        ECHO_REQUEST = 8 "echo-request",
        ROUTER_ADVERTISEMENT = 9 "router-advertisement",
        TIME_EXCEEDED = 11 "time-exceeded",
        PARAMETER_PROBLEM = 12 "parameter-problem",
    }
}
named_number! {
    /// RFC 4443, RFC 4861, RFC 2710, RFC 3810.
    Icmp6Type(u8), 29, to_be_bytes, "{}", {
        DESTINATION_UNREACHABLE = 1 "destination-unreachable",
        PACKET_TOO_BIG = 2 "packet-too-big",
        TIME_EXCEEDED = 3 "time-exceeded",
        PARAMETER_PROBLEM = 4 "parameter-problem",
        ECHO_REQUEST = 128 "echo-request",
        ECHO_REPLY = 129 "echo-reply",
        MLD_QUERY = 130 "mld-listener-query",
        MLD_REPORT = 131 "mld-listener-report",
        MLD_DONE = 132 "mld-listener-done",
        ROUTER_SOLICIT = 133 "nd-router-solicit",
        ROUTER_ADVERT = 134 "nd-router-advert",
        NEIGHBOR_SOLICIT = 135 "nd-neighbor-solicit",
        NEIGHBOR_ADVERT = 136 "nd-neighbor-advert",
        REDIRECT = 137 "nd-redirect",
        MLD2_REPORT = 143 "mld2-listener-report",
    }
}
named_number! {
    /// The type of an address for this host (`RTN_*` of linux/rtnetlink.h).
    AddrType(u32), 38, to_ne_bytes, "{}", {
        UNICAST = 1 "unicast",
        LOCAL = 2 "local",
        BROADCAST = 3 "broadcast",
        MULTICAST = 5 "multicast",
    }
}
