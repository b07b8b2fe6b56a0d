//! Ethernet frames of IPv4 and IPv6 packets: checked views of the guest's frames, complete frames for the guest.
//!
//! Checksums above IP are not checked: with checksum offload the kernel fills them in on the way out, which comes after
//! this. Fragments, packets with extension headers and those with a false length are rejected.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A frame as it is on the wire, from the destination address on, without its check sequence.
pub type Frame = Vec<u8>;

/// Octets of an Ethernet address.
pub(super) type Octets = [u8; 6];

/// All stations (IEEE 802.3 3.2.3).
pub(super) const BROADCAST: Octets = [0xff; 6];

/// Octets before the payload of a UDP datagram: those of Ethernet, of IP without options, of UDP.
pub(super) const ETHERNET_BYTES: usize = 14;
pub(super) const IPV4_BYTES: usize = 20;
pub(super) const IPV6_BYTES: usize = 40;
pub(super) const UDP_BYTES: usize = 8;

/// EtherTypes.
pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Bits of the fragment field (RFC 791 3.1): do not fragment, and those that only a fragment has.
const DONT_FRAGMENT: u16 = 0x4000;
pub(super) const FRAGMENT_MASK: u16 = 0x3fff;

/// The protocol above IP, by its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp = 6,
    Udp = 17,
    Icmpv6 = 58,
}

/// An IP packet that arrived: whole, untagged, without extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    pub(super) source_mac: Octets,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: Protocol,
    pub(super) hops: u8,
    pub(super) payload: &'a [u8],
}

/// A UDP datagram that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Datagram<'a> {
    pub(super) source_mac: Octets,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) payload: &'a [u8],
}

/// The two ends of a link, as a frame names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) source: Octets,
    pub(super) destination: Octets,
}

impl Protocol {
    fn of(number: u8) -> Option<Self> {
        // The discriminants are the numbers of the protocols.
        [Self::Tcp, Self::Udp, Self::Icmpv6].into_iter().find(|protocol| *protocol as u8 == number)
    }

    /// The offset of the checksum.
    fn checksum_at(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
            Self::Icmpv6 => 2,
        }
    }

    /// Hops that a packet of ours may take. A full count proves that a neighbour message took none (RFC 4861 6.1).
    fn hops(self) -> u8 {
        match self {
            Self::Tcp | Self::Udp => 64,
            Self::Icmpv6 => 255,
        }
    }
}

impl<'a> Packet<'a> {
    /// The packet in `frame`, if it is a valid one.
    pub(super) fn parse(frame: &'a [u8]) -> Option<Self> {
        let source_mac = *frame.get(6..)?.first_chunk()?;
        let bytes = frame.get(ETHERNET_BYTES..)?;
        match be16(frame, 12)? {
            ETHERTYPE_IPV4 => Self::ipv4(bytes, source_mac),
            ETHERTYPE_IPV6 => Self::ipv6(bytes, source_mac),
            _ => None,
        }
    }

    /// The packet of RFC 791 at the start of `bytes`; what follows it is padding.
    fn ipv4(bytes: &'a [u8], source_mac: Octets) -> Option<Self> {
        let first = *bytes.first()?;
        let header_len = usize::from(first & 0xf) * 4;
        let header = bytes.get(..header_len).filter(|header| header.len() >= IPV4_BYTES)?;
        if first >> 4 != 4 || sum(0, header) != u16::MAX || be16(header, 6)? & FRAGMENT_MASK != 0 {
            return None;
        }
        let address = |at: usize| header.get(at..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into());
        Some(Self {
            source_mac,
            source: address(12)?,
            destination: address(16)?,
            protocol: Protocol::of(*header.get(9)?)?,
            hops: *header.get(8)?,
            payload: bytes.get(header_len..usize::from(be16(header, 2)?))?,
        })
    }

    /// The packet of RFC 8200 at the start of `bytes`; what follows it is padding.
    fn ipv6(bytes: &'a [u8], source_mac: Octets) -> Option<Self> {
        if bytes.first()? >> 4 != 6 {
            return None;
        }
        let address = |at: usize| bytes.get(at..)?.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into());
        Some(Self {
            source_mac,
            source: address(8)?,
            destination: address(24)?,
            protocol: Protocol::of(*bytes.get(6)?)?,
            hops: *bytes.get(7)?,
            payload: bytes.get(IPV6_BYTES..)?.get(..usize::from(be16(bytes, 4)?))?,
        })
    }
}

impl<'a> Datagram<'a> {
    /// The datagram in `packet`, if it is one.
    pub(super) fn parse(packet: &Packet<'a>) -> Option<Self> {
        let Packet { source_mac, source, destination, protocol: Protocol::Udp, payload, .. } = *packet else {
            return None;
        };
        let len = usize::from(be16(payload, 4)?);
        Some(Self {
            source_mac,
            source: SocketAddr::new(source, be16(payload, 0)?),
            destination: SocketAddr::new(destination, be16(payload, 2)?),
            payload: payload.get(UDP_BYTES..len)?,
        })
    }
}

/// A frame with a UDP datagram and all its checksums; none if the addresses are of two families, or the payload is too
/// long.
pub(super) fn udp(link: Link, source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Option<Frame> {
    let len = u16::try_from(UDP_BYTES + payload.len()).ok()?;
    let mut datagram = Vec::with_capacity(len.into());
    for field in [source.port(), destination.port(), len, 0] {
        datagram.extend(field.to_be_bytes());
    }
    datagram.extend(payload);
    packet(link, source.ip(), destination.ip(), Protocol::Udp, &datagram)
}

/// A frame with an IP packet whose `payload` is of `protocol` and has zero for its checksum; none as for [`udp`].
pub(super) fn packet(
    link: Link,
    source: IpAddr,
    destination: IpAddr,
    protocol: Protocol,
    payload: &[u8],
) -> Option<Frame> {
    let len = u16::try_from(payload.len()).ok()?;
    // The discriminant is the number of the protocol.
    let number = protocol as u8;
    let mut frame = Frame::with_capacity(ETHERNET_BYTES + IPV6_BYTES + payload.len());
    frame.extend(link.destination);
    frame.extend(link.source);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend(ETHERTYPE_IPV4.to_be_bytes());
            let total_len = len.checked_add(20)?;
            for field in [0x4500, total_len, 0, DONT_FRAGMENT, u16::from_be_bytes([protocol.hops(), number]), 0] {
                frame.extend(field.to_be_bytes());
            }
            frame.extend(source.octets());
            frame.extend(destination.octets());
            let checksum = !sum(0, &frame[ETHERNET_BYTES..]);
            frame[ETHERNET_BYTES + 10..ETHERNET_BYTES + 12].copy_from_slice(&checksum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend(ETHERTYPE_IPV6.to_be_bytes());
            for field in [0x6000, 0, len, u16::from_be_bytes([number, protocol.hops()])] {
                frame.extend(field.to_be_bytes());
            }
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => return None,
    }
    let at = frame.len() + protocol.checksum_at();
    frame.extend(payload);
    let checksum = match !sum(pseudo_sum(source, destination, number, len), payload) {
        // Zero says that there is none (RFC 768); in the other protocols both are the same number.
        0 => u16::MAX,
        checksum => checksum,
    };
    frame.get_mut(at..at + 2)?.copy_from_slice(&checksum.to_be_bytes());
    Some(frame)
}

/// The sum over the pseudo header (RFC 768, RFC 8200 8.1).
fn pseudo_sum(source: IpAddr, destination: IpAddr, protocol: u8, len: u16) -> u16 {
    let addresses = [source, destination].iter().fold(0, |total, address| match address {
        IpAddr::V4(address) => sum(total, &address.octets()),
        IpAddr::V6(address) => sum(total, &address.octets()),
    });
    sum(sum(addresses, &[0, protocol]), &len.to_be_bytes())
}

/// The ones' complement sum of `bytes` and `start` (RFC 1071).
fn sum(start: u16, bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    words.fold(start, |total, word| {
        let (total, carry) = total.overflowing_add(word);
        total + u16::from(carry)
    })
}

/// The 16-bit number at `at`, in network byte order.
pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|pair| u16::from_be_bytes(*pair))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const LINK: Link = Link { source: [2, 0, 0, 0, 0, 1], destination: [2, 0, 0, 0, 0, 2] };

    fn datagram(frame: &[u8]) -> Option<Datagram<'_>> {
        Packet::parse(frame).as_ref().and_then(Datagram::parse)
    }

    fn ends(family: &str) -> (SocketAddr, SocketAddr) {
        match family {
            "ipv4" => ("10.0.0.1:53".parse().unwrap(), "10.0.0.2:1053".parse().unwrap()),
            _ => ("[fd00::1]:53".parse().unwrap(), "[fd00::2]:1053".parse().unwrap()),
        }
    }

    #[test]
    fn frame_of_ours_has_the_checksums_of_an_independent_computation() {
        let (source, destination) = ends("ipv4");
        let frame = udp(LINK, source, destination, b"abc").unwrap();

        assert_eq!(frame[24..26], [0x26, 0xcc]);
        assert_eq!(frame[40..42], [0x23, 0x21]);
    }

    #[test]
    fn families_do_not_mix() {
        assert_eq!(udp(LINK, ends("ipv4").0, ends("ipv6").1, &[]), None);
    }

    #[test]
    fn fragment_is_nobodys() {
        let (source, destination) = ends("ipv4");
        let mut frame = udp(LINK, source, destination, b"abc").unwrap();
        frame[20] = 0x20;
        let checksum = !sum(0, &[&frame[14..24], &[0, 0], &frame[26..34]].concat());
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());

        assert_eq!(datagram(&frame), None);
    }

    proptest! {
        #[test]
        fn frame_of_ours_parses_as_what_it_was_made_of(
            payload in vec(any::<u8>(), 0..1500),
            family in prop_oneof![Just("ipv4"), Just("ipv6")],
            padding in 0_usize..40,
        ) {
            let (source, destination) = ends(family);
            let mut frame = udp(LINK, source, destination, &payload).unwrap();
            let pseudo = pseudo_sum(source.ip(), destination.ip(), 17, u16::try_from(payload.len() + 8).unwrap());
            let start = frame.len() - payload.len() - 8;
            prop_assert_eq!(sum(pseudo, &frame[start..]), u16::MAX);
            frame.extend(vec![0; padding]);
            let datagram = datagram(&frame).unwrap();
            let expected = Datagram { source_mac: LINK.source, source, destination, payload: &payload };
            prop_assert_eq!(datagram, expected);
        }

        #[test]
        fn any_bytes_are_a_datagram_or_not(
            bytes in vec(any::<u8>(), 0..200),
            head in prop_oneof![Just(vec![]), Just([&[0; 12][..], &[8, 0, 0x45]].concat()), Just([&[0; 12][..], &[0x86, 0xdd, 0x60]].concat())],
        ) {
            let frame = [head, bytes].concat();
            let _ = datagram(&frame);
        }

        #[test]
        fn cut_frame_is_nobodys(cut in 0_usize..45) {
            let (source, destination) = ends("ipv4");
            let frame = udp(LINK, source, destination, b"abc").unwrap();
            prop_assert_eq!(datagram(&frame[..cut]), None);
        }
    }
}
