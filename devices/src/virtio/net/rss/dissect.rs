//! The input of a frame's hash (virtio 1.3 5.1.6.4.3): addresses and ports, by the hash types that the driver enabled.
//!
//! Total on any bytes: what is cut, of another protocol or nested deeper than is looked at is hashed by its addresses
//! alone, or not at all. A fragment has no ports, not even the first, so that all fragments of a packet go the same
//! way. VLAN tags are skipped.

use super::toeplitz::MAX_INPUT;
use std::ops::BitOr;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_HASH_REPORT_IPv4, VIRTIO_NET_HASH_REPORT_IPv6, VIRTIO_NET_HASH_REPORT_IPv6_EX,
    VIRTIO_NET_HASH_REPORT_TCPv4, VIRTIO_NET_HASH_REPORT_TCPv6, VIRTIO_NET_HASH_REPORT_TCPv6_EX,
    VIRTIO_NET_HASH_REPORT_UDPv4, VIRTIO_NET_HASH_REPORT_UDPv6, VIRTIO_NET_HASH_REPORT_UDPv6_EX,
    VIRTIO_NET_RSS_HASH_TYPE_IP_EX, VIRTIO_NET_RSS_HASH_TYPE_IPv4, VIRTIO_NET_RSS_HASH_TYPE_IPv6,
    VIRTIO_NET_RSS_HASH_TYPE_TCP_EX, VIRTIO_NET_RSS_HASH_TYPE_TCPv4, VIRTIO_NET_RSS_HASH_TYPE_TCPv6,
    VIRTIO_NET_RSS_HASH_TYPE_UDP_EX, VIRTIO_NET_RSS_HASH_TYPE_UDPv4, VIRTIO_NET_RSS_HASH_TYPE_UDPv6,
};

/// VLAN tags that are skipped: a customer's within a provider's.
pub(super) const MAX_TAGS: usize = 2;

/// IPv6 extension headers that are skipped; no ordinary packet has more than three.
pub(super) const MAX_EXTENSIONS: usize = 6;

/// Bytes from the start of the IP header to the ports, at most.
pub(super) const MAX_IP_LEN: usize = 228;

/// Bytes of a frame that are looked at: Ethernet header, tags, IP with its extensions, ports.
pub(super) const HEAD_LEN: usize = 14 + 4 * MAX_TAGS + MAX_IP_LEN + 4;

/// Ethernet types.
pub(super) const VLAN: u16 = 0x8100;
pub(super) const PROVIDER_VLAN: u16 = 0x88a8;
pub(super) const IPV4: u16 = 0x0800;
pub(super) const IPV6: u16 = 0x86dd;

/// Protocol numbers, of which the last are IPv6 extension headers (RFC 8200 4, RFC 6275 6.1).
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const HOP_BY_HOP: u8 = 0;
pub(super) const ROUTING: u8 = 43;
pub(super) const FRAGMENT: u8 = 44;
pub(super) const AUTHENTICATION: u8 = 51;
pub(super) const DESTINATION: u8 = 60;
pub(super) const MOBILITY: u8 = 135;

/// The Home Address option, and a routing header for the home address (RFC 6275 6.3, 6.4).
const HOME_ADDRESS_OPTION: u8 = 0xc9;
const HOME_ROUTING: u8 = 2;

/// More fragments, and the offset of this one (RFC 791 3.1).
pub(super) const IPV4_FRAGMENT: u16 = 0x3fff;
/// The same in an IPv6 fragment header (RFC 8200 4.5).
pub(super) const IPV6_FRAGMENT: u16 = 0xfff9;

/// A set of hash types (virtio 1.3 5.1.6.4.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::virtio::net) struct Types(u32);

impl Types {
    pub(super) const NONE: Self = Self(0);
    pub(super) const IPV4: Self = Self(VIRTIO_NET_RSS_HASH_TYPE_IPv4);
    pub(super) const TCPV4: Self = Self(VIRTIO_NET_RSS_HASH_TYPE_TCPv4);
    pub(super) const UDPV4: Self = Self(VIRTIO_NET_RSS_HASH_TYPE_UDPv4);
    pub(super) const IPV6: Self = Self(VIRTIO_NET_RSS_HASH_TYPE_IPv6);
    pub(super) const TCPV6: Self = Self(VIRTIO_NET_RSS_HASH_TYPE_TCPv6);
    pub(super) const UDPV6: Self = Self(VIRTIO_NET_RSS_HASH_TYPE_UDPv6);
    pub(super) const IP_EX: Self = Self(VIRTIO_NET_RSS_HASH_TYPE_IP_EX);
    pub(super) const TCP_EX: Self = Self(VIRTIO_NET_RSS_HASH_TYPE_TCP_EX);
    pub(super) const UDP_EX: Self = Self(VIRTIO_NET_RSS_HASH_TYPE_UDP_EX);

    /// Those that need a look into extension headers.
    pub(super) const EXTENDED: Self = Self(Self::IP_EX.0 | Self::TCP_EX.0 | Self::UDP_EX.0);

    /// Every one that there is.
    pub(super) const ALL: Self = Self(0x1ff);

    /// The set with these bits; `None` if one of them is no hash type.
    pub(super) fn from_bits(bits: u32) -> Option<Self> {
        (bits & !Self::ALL.0 == 0).then_some(Self(bits))
    }

    /// The set as the driver gives it.
    pub(super) fn bits(self) -> u32 {
        self.0
    }

    /// Returns whether one of `others` is in this set.
    pub(super) fn has_any(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }
}

impl BitOr for Types {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The input of a frame's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Input {
    bytes: [u8; MAX_INPUT],
    len: usize,
    /// The type that the hash is reported as: VIRTIO_NET_HASH_REPORT_*.
    pub(super) report: u16,
}

impl Input {
    /// The input of the hash that `frame`, from its Ethernet header on, has under `types`. `None` if it has none.
    pub(super) fn of(frame: &[u8], types: Types) -> Option<Self> {
        let mut packet = 14;
        for _ in 0..MAX_TAGS {
            if matches!(u16_at(frame, packet - 2)?, VLAN | PROVIDER_VLAN) {
                packet += 4;
            }
        }
        let ether_type = u16_at(frame, packet - 2)?;
        let packet = frame.get(packet..)?;
        match ether_type {
            IPV4 => of_ipv4(packet, types),
            IPV6 => of_ipv6(packet, types),
            _ => None,
        }
    }

    /// The bytes to hash.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Addresses and ports that may be hashed, and as what.
struct Flow<'a> {
    source: &'a [u8],
    destination: &'a [u8],
    transport: Option<(Transport, &'a [u8; 4])>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

/// A hash type and what it is reported as.
type Kind = (Types, u32);

/// The three kinds of an IP version: of TCP, of UDP, of addresses alone.
const KINDS_IPV4: [Kind; 3] = [
    (Types::TCPV4, VIRTIO_NET_HASH_REPORT_TCPv4),
    (Types::UDPV4, VIRTIO_NET_HASH_REPORT_UDPv4),
    (Types::IPV4, VIRTIO_NET_HASH_REPORT_IPv4),
];
const KINDS_IPV6: [Kind; 3] = [
    (Types::TCPV6, VIRTIO_NET_HASH_REPORT_TCPv6),
    (Types::UDPV6, VIRTIO_NET_HASH_REPORT_UDPv6),
    (Types::IPV6, VIRTIO_NET_HASH_REPORT_IPv6),
];
const KINDS_EXTENDED: [Kind; 3] = [
    (Types::TCP_EX, VIRTIO_NET_HASH_REPORT_TCPv6_EX),
    (Types::UDP_EX, VIRTIO_NET_HASH_REPORT_UDPv6_EX),
    (Types::IP_EX, VIRTIO_NET_HASH_REPORT_IPv6_EX),
];

impl Flow<'_> {
    /// The input by the first of `kinds` that is among `types` and fits.
    fn input(&self, types: Types, kinds: [Kind; 3]) -> Option<Input> {
        let [tcp, udp, addresses] = kinds;
        let by_ports = match self.transport {
            Some((Transport::Tcp, ports)) if types.has_any(tcp.0) => Some((tcp, &ports[..])),
            Some((Transport::Udp, ports)) if types.has_any(udp.0) => Some((udp, &ports[..])),
            _ => None,
        };
        let by_addresses = types.has_any(addresses.0).then_some((addresses, &[][..]));
        let ((_, report), ports) = by_ports.or(by_addresses)?;
        let mut input = Input { bytes: [0; MAX_INPUT], len: 0, report: u16::try_from(report).unwrap_or(0) };
        for part in [self.source, self.destination, ports] {
            input.bytes.get_mut(input.len..input.len + part.len())?.copy_from_slice(part);
            input.len += part.len();
        }
        Some(input)
    }
}

fn of_ipv4(packet: &[u8], types: Types) -> Option<Input> {
    let header = packet.first_chunk::<20>()?;
    let header_len = usize::from(header[0] & 0xf) * 4;
    if header[0] >> 4 != 4 || header_len < header.len() {
        return None;
    }
    let is_fragment = u16_at(header, 6)? & IPV4_FRAGMENT != 0;
    let transport = if is_fragment { None } else { transport(packet, header[9], header_len) };
    Flow { source: &header[12..16], destination: &header[16..], transport }.input(types, KINDS_IPV4)
}

fn of_ipv6(packet: &[u8], types: Types) -> Option<Input> {
    let header = packet.first_chunk::<40>()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let extensions = Extensions::read(packet, header[6]);
    let (source, destination) = (&header[8..24], &header[24..]);
    let transport = extensions.end.and_then(|(protocol, at)| transport(packet, protocol, at));
    if extensions.present && types.has_any(Types::EXTENDED) {
        let source = extensions.home_source.unwrap_or(source);
        let destination = extensions.home_destination.unwrap_or(destination);
        let flow = Flow { source, destination, transport };
        if let Some(input) = flow.input(types, KINDS_EXTENDED) {
            return Some(input);
        }
    }
    Flow { source, destination, transport }.input(types, KINDS_IPV6)
}

/// The ports behind the IP headers.
fn transport(packet: &[u8], protocol: u8, at: usize) -> Option<(Transport, &[u8; 4])> {
    let transport = match protocol {
        TCP => Transport::Tcp,
        UDP => Transport::Udp,
        _ => return None,
    };
    if at > MAX_IP_LEN {
        return None;
    }
    Some((transport, packet.get(at..)?.first_chunk()?))
}

/// The extension headers between an IPv6 header and its payload.
struct Extensions<'a> {
    present: bool,
    home_source: Option<&'a [u8]>,
    home_destination: Option<&'a [u8]>,
    /// The protocol behind them and where it begins; `None` if it cannot be known, or the packet is a fragment.
    end: Option<(u8, usize)>,
}

impl<'a> Extensions<'a> {
    fn read(packet: &'a [u8], first: u8) -> Self {
        let mut all = Self { present: false, home_source: None, home_destination: None, end: None };
        all.end = all.walk(packet, first);
        all
    }

    fn walk(&mut self, packet: &'a [u8], first: u8) -> Option<(u8, usize)> {
        let (mut protocol, mut at) = (first, 40);
        for _ in 0..MAX_EXTENSIONS {
            let unit = match protocol {
                HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | FRAGMENT => 8,
                AUTHENTICATION => 4,
                _ => break,
            };
            self.present = true;
            let [next, units, field @ ..] = *packet.get(at..)?.first_chunk::<4>()?;
            let len = match protocol {
                FRAGMENT if u16::from_be_bytes(field) & IPV6_FRAGMENT != 0 => return None,
                FRAGMENT => 8,
                AUTHENTICATION => (usize::from(units) + 2) * unit,
                _ => (usize::from(units) + 1) * unit,
            };
            let body = packet.get(at..(at + len).min(packet.len())).unwrap_or_default();
            match protocol {
                DESTINATION => self.home_source = self.home_source.or_else(|| home_address(body)),
                ROUTING if field[0] == HOME_ROUTING && len == 24 => self.home_destination = body.get(8..24),
                _ => {}
            }
            (protocol, at) = (next, at + len);
        }
        Some((protocol, at))
    }
}

/// The address in the Home Address option of a destination options header.
fn home_address(header: &[u8]) -> Option<&[u8]> {
    let mut options = header.get(2..)?;
    // Every turn takes at least one byte of a header that is at most 2 KiB long.
    while let Some((&option, rest)) = options.split_first() {
        // Pad1 is the one option without a length (RFC 8200 4.2).
        if option == 0 {
            options = rest;
            continue;
        }
        let (&len, rest) = rest.split_first()?;
        let (value, after) = rest.split_at_checked(len.into())?;
        if option == HOME_ADDRESS_OPTION && value.len() == 16 {
            return Some(value);
        }
        options = after;
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}
