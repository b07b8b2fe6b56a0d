//! Hashes of frames against the verification suite that Microsoft publishes for RSS, and against a hash that goes bit
//! by bit.

use super::dissect::{HEAD_LEN, Types};
use super::settings::{HashSettings, RssSettings};
use super::toeplitz::{MAX_INPUT, Toeplitz};
use proptest::prelude::*;
use std::net::IpAddr;

/// The key of the verification suite.
pub(in crate::virtio::net) const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b,
    0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac,
    0x01, 0xfa,
];

/// Source, destination, their ports, and the hashes of addresses alone and with ports.
const SUITE: [(&str, &str, [u16; 2], [u32; 2]); 8] = [
    ("66.9.149.187", "161.142.100.80", [2794, 1766], [0x323e_8fc2, 0x51cc_c178]),
    ("199.92.111.2", "65.69.140.83", [14230, 4739], [0xd718_262a, 0xc626_b0ea]),
    ("24.19.198.95", "12.22.207.184", [12898, 38024], [0xd2d0_a5de, 0x5c2b_394a]),
    ("38.27.205.30", "209.142.163.6", [48228, 2217], [0x8298_9176, 0xafc7_327f]),
    ("153.39.163.191", "202.188.127.2", [44251, 1303], [0x5d18_09c5, 0x10e8_28a2]),
    ("3ffe:2501:200:1fff::7", "3ffe:2501:200:3::1", [2794, 1766], [0x2cc1_8cd5, 0x4020_7d3d]),
    ("3ffe:501:8::260:97ff:fe40:efab", "ff02::1", [14230, 4739], [0x0f0c_461c, 0xdde5_1bbf]),
    ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", "fe80::200:f8ff:fe21:67cf", [44251, 38024], [0x4b61_e985, 0x02d1_feef]),
];

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// A packet between two addresses of the suite.
pub(in crate::virtio::net) struct Packet {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) ports: [u16; 2],
    pub(super) protocol: u8,
    /// The IPv4 field with the fragment's offset.
    pub(super) fragment: u16,
    /// The type of the first IPv6 extension header and the bytes of all of them.
    pub(super) extensions: Option<(u8, Vec<u8>)>,
    /// Ethernet types of the tags in front.
    pub(super) tags: Vec<u16>,
}

impl Packet {
    pub(in crate::virtio::net) fn new(source: &str, destination: &str, ports: [u16; 2]) -> Self {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        Self { source, destination, ports, protocol: TCP, fragment: 0, extensions: None, tags: Vec::new() }
    }

    /// The packet as a frame, with 8 bytes behind the ports.
    pub(in crate::virtio::net) fn frame(&self) -> Vec<u8> {
        let mut frame = vec![2; 12];
        for tag in &self.tags {
            frame.extend([tag.to_be_bytes(), [0, 5]].concat());
        }
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0]);
                frame.extend(self.fragment.to_be_bytes());
                frame.extend([64, self.protocol, 0, 0]);
                frame.extend([source.octets(), destination.octets()].concat());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (first, bytes) = self.extensions.clone().unwrap_or((self.protocol, Vec::new()));
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, first, 64]);
                frame.extend([source.octets(), destination.octets()].concat());
                frame.extend(bytes);
            }
            mixed => panic!("Addresses of two versions: {mixed:?}"),
        }
        frame.extend(self.ports.iter().flat_map(|port| port.to_be_bytes()));
        frame.extend([0; 8]);
        frame
    }
}

/// A packet of the suite's first IPv6 line, with these extension headers in front of TCP.
fn extended(first: u8, bytes: &[u8]) -> Packet {
    let (source, destination, ports, _) = SUITE[5];
    Packet { extensions: Some((first, bytes.to_vec())), ..Packet::new(source, destination, ports) }
}

pub(super) fn settings(types: Types) -> HashSettings {
    HashSettings { types, toeplitz: Toeplitz::new(&KEY) }
}

/// The hash and report of `packet`.
fn hash(types: Types, packet: &Packet) -> Option<(u32, u16)> {
    settings(types).hash(&packet.frame())
}

/// The hash by its definition.
fn reference(key: &[u8], input: &[u8]) -> u32 {
    let bit = |bytes: &[u8], at: usize| bytes.get(at / 8).is_some_and(|byte| byte & 0x80 >> (at % 8) != 0);
    let window = |at: usize| (0..32).fold(0, |window, i| window << 1 | u32::from(bit(key, at + i)));
    (0..input.len() * 8).filter(|at| bit(input, *at)).fold(0, |sum, at| sum ^ window(at))
}

#[test]
fn hashes_are_those_of_the_published_suite() {
    for (source, destination, ports, [by_addresses, by_ports]) in SUITE {
        let packet = Packet::new(source, destination, ports);
        let version = if packet.source.is_ipv4() { 0 } else { 3 };
        assert_eq!(hash(Types::IPV4 | Types::IPV6, &packet), Some((by_addresses, 1 + version)), "{source}");
        assert_eq!(hash(Types::ALL, &packet), Some((by_ports, 2 + version)), "{source}");
        let udp = Packet { protocol: UDP, ..packet };
        assert_eq!(hash(Types::ALL, &udp), Some((by_ports, 3 + version)), "{source}");
    }
}

#[test]
fn type_that_is_not_enabled_falls_back_to_addresses_or_nothing() {
    let (source, destination, ports, [by_addresses, _]) = SUITE[0];
    let packet = Packet::new(source, destination, ports);
    assert_eq!(hash(Types::UDPV4 | Types::IPV4, &packet), Some((by_addresses, 1)));
    assert_eq!(hash(Types::UDPV4 | Types::IPV6, &packet), None);
    let icmp = Packet { protocol: 1, ..packet };
    assert_eq!(hash(Types::ALL, &icmp), Some((by_addresses, 1)));
}

#[test]
fn fragments_are_hashed_by_addresses_first_and_last_alike() {
    let (source, destination, ports, [by_addresses, by_ports]) = SUITE[0];
    for (fragment, expected) in [(0x2000, (by_addresses, 1)), (0x00b9, (by_addresses, 1)), (0x4000, (by_ports, 2))] {
        let packet = Packet { fragment, ..Packet::new(source, destination, ports) };
        assert_eq!(hash(Types::ALL, &packet), Some(expected), "{fragment:#x}");
    }
    let [by_addresses, by_ports] = SUITE[5].3;
    let types = Types::TCPV6 | Types::IPV6;
    assert_eq!(hash(types, &extended(44, &[TCP, 0, 0, 1, 0, 0, 0, 9])), Some((by_addresses, 4)));
    // A packet that is its own only fragment is whole (RFC 6946).
    assert_eq!(hash(types, &extended(44, &[TCP, 0, 0, 0, 0, 0, 0, 9])), Some((by_ports, 5)));
}

#[test]
fn tags_are_skipped_up_to_two() {
    let (source, destination, ports, [_, by_ports]) = SUITE[0];
    for (tags, expected) in [
        (vec![0x8100], Some((by_ports, 2))),
        (vec![0x88a8, 0x8100], Some((by_ports, 2))),
        (vec![0x88a8, 0x8100, 0x8100], None),
    ] {
        let packet = Packet { tags, ..Packet::new(source, destination, ports) };
        assert_eq!(hash(Types::ALL, &packet), expected, "{:x?}", packet.tags);
    }
}

#[test]
fn extension_headers_are_skipped() {
    let by_ports = SUITE[5].3[1];
    let types = Types::TCPV6 | Types::IPV6;
    let options = [60, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let authentication = [TCP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (first, bytes) in [
        (0, [&options[..], &[TCP, 0, 1, 4, 0, 0, 0, 0]].concat()),
        (51, authentication.to_vec()),
        (60, [60, 0, 1, 4, 0, 0, 0, 0].repeat(5).into_iter().chain([TCP, 0, 1, 4, 0, 0, 0, 0]).collect()),
    ] {
        assert_eq!(hash(types, &extended(first, &bytes)), Some((by_ports, 5)), "{bytes:?}");
    }
    let seven = [60, 0, 1, 4, 0, 0, 0, 0].repeat(6).into_iter().chain([TCP, 0, 1, 4, 0, 0, 0, 0]).collect::<Vec<_>>();
    assert_eq!(hash(types, &extended(60, &seven)), Some((SUITE[5].3[0], 4)));
}

#[test]
fn addresses_of_mobile_nodes_count_with_extended_types() {
    let home = [0x20; 16];
    let options = [&[TCP, 2, 1, 2, 0, 0, 0xc9, 16][..], &home].concat();
    let routing = [&[TCP, 2, 2, 1, 0, 0, 0, 0][..], &home].concat();
    let IpAddr::V6(source) = extended(0, &[]).source else { unreachable!() };
    let IpAddr::V6(destination) = extended(0, &[]).destination else { unreachable!() };
    let ports = [2794_u16.to_be_bytes(), 1766_u16.to_be_bytes()].concat();
    for (first, bytes, from, to) in [(60, options, home, destination.octets()), (43, routing, source.octets(), home)] {
        let addresses = [from, to].concat();
        let flow = [&addresses[..], &ports].concat();
        let packet = extended(first, &bytes);
        assert_eq!(hash(Types::ALL, &packet), Some((reference(&KEY, &flow), 8)), "{first}");
        assert_eq!(hash(Types::IP_EX | Types::TCPV6, &packet), Some((reference(&KEY, &addresses), 7)), "{first}");
        assert_eq!(hash(Types::UDP_EX | Types::TCPV6, &packet), Some((SUITE[5].3[1], 5)), "{first}");
    }
}

#[test]
fn ports_that_are_cut_off_do_not_count() {
    let (source, destination, ports, [by_addresses, _]) = SUITE[0];
    let frame = Packet::new(source, destination, ports).frame();
    assert_eq!(settings(Types::ALL).hash(&frame[..14 + 20 + 3]), Some((by_addresses, 1)));
    assert_eq!(settings(Types::ALL).hash(&frame[..14 + 19]), None);
}

/// `struct virtio_net_rss_config` with a table of `len` entries, all of queue 1.
pub(in crate::virtio::net) fn rss_config(types: u32, mask: u16, len: usize, max_tx_vq: u16, key: &[u8]) -> Vec<u8> {
    let mut bytes = types.to_le_bytes().to_vec();
    bytes.extend([mask.to_le_bytes(), [0, 0]].concat());
    bytes.extend([1, 0].repeat(len));
    bytes.extend(max_tx_vq.to_le_bytes());
    bytes.push(u8::try_from(key.len()).unwrap());
    bytes.extend(key);
    bytes
}

#[test]
fn settings_of_a_table_are_read() {
    let settings = RssSettings::parse(&rss_config(0x1ff, 127, 128, 4, &KEY)).unwrap();
    assert_eq!(settings.pairs(), 4);
    assert_eq!(settings.indirection.queue(Some(0xffff_ffff)), 1);
    assert_eq!(settings.indirection.queue(None), 0);
    assert_eq!(settings.hash.toeplitz, Toeplitz::new(&KEY));
    assert_eq!(RssSettings::parse(&rss_config(1, 0, 1, 1, &[1])).unwrap().pairs(), 2);
}

#[test]
fn settings_that_lie_or_ask_for_too_much_are_refused() {
    let good = rss_config(0x1ff, 3, 4, 2, &KEY);
    assert!(RssSettings::parse(&good).is_some());
    let padded = [&good[..], &[0]].concat();
    assert_eq!(RssSettings::parse(&padded), RssSettings::parse(&good));
    for cut in 0..good.len() {
        assert_eq!(RssSettings::parse(&good[..cut]), None, "{cut} bytes");
    }
    for bad in [
        rss_config(0x3ff, 3, 4, 2, &KEY),
        rss_config(0x1ff, 2, 3, 2, &KEY),
        rss_config(0x1ff, 0xffff, 0, 2, &KEY),
        rss_config(0x1ff, 255, 256, 2, &KEY),
        rss_config(0x1ff, 3, 4, 0, &KEY),
        rss_config(0x1ff, 3, 4, 2, &[0; 41]),
        rss_config(0x1ff, 3, 4, 2, &[]),
    ] {
        assert_eq!(RssSettings::parse(&bad), None, "{bad:?}");
    }
    // A queue number with its reserved bit set asks for more pairs than there can be.
    let mut reserved = good.clone();
    reserved[7] = 0x80;
    assert!(RssSettings::parse(&reserved).unwrap().pairs() > 0x8000);
}

#[test]
fn hash_settings_are_read_whatever_is_reserved() {
    let config = |types: u32, key: &[u8]| {
        [&types.to_le_bytes()[..], &[0xff; 8], &[u8::try_from(key.len()).unwrap()], key].concat()
    };
    let settings = HashSettings::parse(&config(0x3f, &KEY)).unwrap();
    assert_eq!((settings.types.bits(), settings.toeplitz), (0x3f, Toeplitz::new(&KEY)));
    assert!(HashSettings::parse(&config(0, &[])).is_some());
    for bad in [config(0x200, &KEY), config(1, &[]), config(1, &[0; 41]), config(1, &KEY)[..52].to_vec()] {
        assert_eq!(HashSettings::parse(&bad), None, "{bad:?}");
    }
}

proptest! {
    #[test]
    fn hash_is_that_of_its_definition(
        key in proptest::collection::vec(any::<u8>(), 0..=40),
        input in proptest::collection::vec(any::<u8>(), 0..=MAX_INPUT),
    ) {
        prop_assert_eq!(Toeplitz::new(&key).hash(&input), reference(&key, &input));
    }

    #[test]
    fn any_bytes_have_a_hash_or_none_and_those_past_the_head_do_not_count(
        frame in frames(),
        types in 0_u32..0x200,
    ) {
        let settings = settings(Types::from_bits(types).unwrap());
        prop_assert_eq!(settings.hash(&frame), settings.hash(&frame[..frame.len().min(HEAD_LEN)]));
    }

    #[test]
    fn any_bytes_are_settings_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..320)) {
        let _ = (RssSettings::parse(&bytes), HashSettings::parse(&bytes));
    }
}

/// Bytes that look like frames: tags, a protocol and the bytes that lead into its headers are likely.
pub(super) fn frames() -> impl Strategy<Value = Vec<u8>> {
    let tags = proptest::collection::vec(prop_oneof![Just([0x81, 0, 0, 1]), Just([0x88, 0xa8, 0, 1])], 0..3);
    let ipv4 = (prop_oneof![4 => Just(0x45_u8), 1 => any::<u8>()], any::<[u8; 2]>(), protocols()).prop_map(
        |(first, fragment, protocol)| {
            vec![0x08, 0, first, 0, 0, 0, 0, 0, fragment[0] & 0x3f, fragment[1] & 0x01, 64, protocol]
        },
    );
    let ipv6 = protocols()
        .prop_map(|protocol| vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, protocol, 64])
        .prop_flat_map(|head| any::<[u8; 32]>().prop_map(move |addresses| [&head[..], &addresses].concat()));
    let extension =
        (protocols(), prop_oneof![8 => 0_u8..3, 1 => any::<u8>()], any::<[u8; 6]>()).prop_map(|(next, len, bytes)| {
            let mut header = vec![next, len];
            header.extend(bytes.iter().cycle().take(usize::from(len) * 8 + 6));
            header
        });
    let extensions = proptest::collection::vec(extension, 0..8).prop_map(|all| all.concat());
    let rest = proptest::collection::vec(any::<u8>(), 0..300);
    (tags, prop_oneof![ipv4, ipv6, any::<[u8; 2]>().prop_map(Vec::from)], extensions, rest)
        .prop_map(|(tags, head, extensions, rest)| [&[2; 12][..], &tags.concat(), &head, &extensions, &rest].concat())
}

fn protocols() -> impl Strategy<Value = u8> {
    prop_oneof![Just(TCP), Just(UDP), Just(0), Just(43), Just(44), Just(51), Just(60), Just(135), any::<u8>()]
}
