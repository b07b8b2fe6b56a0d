//! Flows of every kind, and where they belong, computed here once more and in the plainest way.

/// The key that Microsoft's verification suite uses.
const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b,
    0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac,
    0x01, 0xfa,
];

/// The kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    TcpV4,
    UdpV4,
    TcpV6,
    UdpV6,
    /// UDP behind a hop-by-hop header.
    ExtendedUdpV6,
    /// TCP in a VLAN.
    TaggedTcpV4,
    /// The first fragment of a UDP packet.
    FragmentV4,
    /// The same of IPv6.
    FragmentV6,
    IcmpV4,
    /// Neither IPv4 nor IPv6.
    Other,
}

const KINDS: [Kind; 10] = [
    Kind::TcpV4,
    Kind::UdpV4,
    Kind::TcpV6,
    Kind::UdpV6,
    Kind::ExtendedUdpV6,
    Kind::TaggedTcpV4,
    Kind::FragmentV4,
    Kind::FragmentV6,
    Kind::IcmpV4,
    Kind::Other,
];

/// Addresses and ports, as numbers that differ between flows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    kind: Kind,
    number: u32,
}

/// This many flows of all kinds, most of them of TCP and UDP.
pub(crate) fn flows(count: u32) -> Vec<Flow> {
    let kind = |number: u32| match usize::try_from(number % 32).unwrap() {
        rare @ 0..10 => KINDS[rare],
        frequent => KINDS[frequent % 4],
    };
    (0..count).map(|number| Flow { kind: kind(number), number }).collect()
}

impl Flow {
    fn is_v4(&self) -> bool {
        matches!(self.kind, Kind::TcpV4 | Kind::UdpV4 | Kind::TaggedTcpV4 | Kind::FragmentV4 | Kind::IcmpV4)
    }

    /// Source and destination address, one behind the other.
    fn addresses(&self) -> Vec<u8> {
        let number = self.number.wrapping_mul(0x9e37_79b9).to_be_bytes();
        if self.is_v4() {
            [&[10][..], &number[..3], &[192, 168, 7, number[3]]].concat()
        } else {
            let half = |first: u8| [&[0x20, 0x01, 0x0d, 0xb8, first][..], &[0; 7], &number].concat();
            [half(1), half(2)].concat()
        }
    }

    fn ports(&self) -> [u8; 4] {
        (self.number.wrapping_mul(0x85eb_ca6b) | 0x0001_0001).to_be_bytes()
    }

    /// The frame, of which `id` is a part.
    pub(crate) fn frame(&self, to: [u8; 6], id: u32) -> Vec<u8> {
        let mut frame = [&to[..], &[2, 0, 0, 0, 0, 99]].concat();
        let (extension, protocol): (&[u8], u8) = match self.kind {
            Kind::TcpV4 | Kind::TaggedTcpV4 | Kind::TcpV6 => (&[], 6),
            Kind::IcmpV4 => (&[], 1),
            Kind::ExtendedUdpV6 => (&[17, 0, 1, 4, 0, 0, 0, 0], 0),
            Kind::FragmentV6 => (&[17, 0, 0, 1, 0, 0, 0, 7], 44),
            _ => (&[], 17),
        };
        if self.kind == Kind::TaggedTcpV4 {
            frame.extend([0x81, 0, 0, 5]);
        }
        let fragment = if self.kind == Kind::FragmentV4 { 0x20 } else { 0 };
        match (self.kind, self.is_v4()) {
            (Kind::Other, _) => frame.extend([0x88, 0xb5]),
            (_, true) => frame.extend([0x08, 0, 0x45, 0, 0, 32, 0, 0, fragment, 0, 64, protocol, 0, 0]),
            (_, false) => frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 12, protocol, 64]),
        }
        frame.extend(self.addresses());
        frame.extend([extension, &self.ports()].concat());
        frame.resize(frame.len().max(76), 0);
        frame.extend(id.to_be_bytes());
        frame
    }
}

/// The number at the end of a frame.
pub(crate) fn id(frame: &[u8]) -> u32 {
    u32::from_be_bytes(*frame.last_chunk().unwrap())
}

/// The settings that the driver asks for.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) types: u32,
    pub(crate) table: Vec<u16>,
    pub(crate) unclassified: u16,
}

impl Settings {
    /// A table of 128 entries.
    pub(crate) fn new(types: u32, queue: impl Fn(usize) -> u16, unclassified: u16) -> Self {
        Self { types, table: (0..128).map(queue).collect(), unclassified }
    }

    /// As after reset.
    pub(crate) fn one_queue() -> Self {
        Self { types: 0, table: vec![0], unclassified: 0 }
    }

    /// `struct virtio_net_rss_config`.
    pub(crate) fn config(&self, max_tx_vq: u16) -> Vec<u8> {
        let mask = u16::try_from(self.table.len() - 1).unwrap();
        let mut bytes = self.types.to_le_bytes().to_vec();
        bytes.extend([mask, self.unclassified].iter().chain(&self.table).flat_map(|entry| entry.to_le_bytes()));
        bytes.extend(max_tx_vq.to_le_bytes());
        bytes.push(40);
        bytes.extend(KEY);
        bytes
    }

    /// `struct virtio_net_hash_config`.
    pub(crate) fn hash_config(&self) -> Vec<u8> {
        [&self.types.to_le_bytes()[..], &[0; 8], &[40], &KEY].concat()
    }

    /// The hash of a flow and what it is reported as (virtio 1.3 5.1.6.4.3).
    pub(crate) fn hash(&self, flow: &Flow) -> Option<(u32, u16)> {
        let with_ports = match flow.kind {
            Kind::TcpV4 | Kind::TaggedTcpV4 => Some((0x02, 2)),
            Kind::UdpV4 => Some((0x04, 3)),
            Kind::TcpV6 => Some((0x10, 5)),
            Kind::UdpV6 | Kind::ExtendedUdpV6 => Some((0x20, 6)),
            _ => None,
        };
        let alone = match flow.kind {
            Kind::Other => return None,
            _ if flow.is_v4() => (0x01, 1),
            _ => (0x08, 4),
        };
        let enabled = |(bit, _): &(u32, u16)| self.types & bit != 0;
        if let Some((_, report)) = with_ports.filter(enabled) {
            return Some((toeplitz(&[&flow.addresses()[..], &flow.ports()].concat()), report));
        }
        Some(alone).filter(enabled).map(|(_, report)| (toeplitz(&flow.addresses()), report))
    }

    /// The queue that a flow belongs to.
    pub(crate) fn queue(&self, flow: &Flow) -> u16 {
        let idx = |(hash, _): (u32, u16)| usize::try_from(hash).unwrap() % self.table.len();
        self.hash(flow).map_or(self.unclassified, |hash| self.table[idx(hash)])
    }
}

/// The hash, bit by bit.
fn toeplitz(input: &[u8]) -> u32 {
    let key_bit = |at: usize| u32::from(KEY[at / 8] >> (7 - at % 8) & 1);
    let mut window = (0..32).fold(0, |window, at| window << 1 | key_bit(at));
    let mut hash = 0;
    for at in 0..input.len() * 8 {
        if input[at / 8] >> (7 - at % 8) & 1 == 1 {
            hash ^= window;
        }
        window = window << 1 | key_bit((at + 32) % 320);
    }
    hash
}
