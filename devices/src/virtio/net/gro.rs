//! Consecutive datagrams of one UDP flow leave as one frame: generic receive offload for what the guest sends.
//!
//! A small frame costs the host a thousand nanoseconds from the tap to the next port of its bridge, whatever its
//! length. Where the ring holds several datagrams of one flow, one frame with a segment size
//! (VIRTIO_NET_HDR_GSO_UDP_L4) takes them there for the price of one. The kernel makes the datagrams of it again, at
//! the last moment, for whoever cannot take the whole; a guest with GUEST_USO and a NIC that segments can. Nothing
//! waits for company: only what is in the ring at that moment is joined.
//!
//! Only what segmentation gives back as it was is joined: the frames differ in length, identification and checksums
//! alone, these are right, and all datagrams are as long as the first, but for a shorter last one. The identification
//! of a datagram that must not be fragmented means nothing (RFC 6864 4.1) and may come back different; that of others
//! has to count up by one. Headers are copied out of guest memory before they are looked at, and the copy is what is
//! sent.

use crate::virtio::iovec::IoVecs;
use virtio_bindings::virtio_net::{VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_UDP_L4};

/// Bytes of the virtio header that this looks at; what may follow belongs to hash reports.
const VNET: usize = 12;
const ETHERNET: usize = 14;
const UDP: usize = 8;
/// The longest headers: Ethernet, IPv6, UDP.
const MAX_HEADERS: usize = ETHERNET + 40 + UDP;

const IPPROTO_UDP: u8 = 17;
/// Flags and offset of an IPv4 header: don't fragment.
const DONT_FRAGMENT: u16 = 0x4000;
/// Offset of the checksum in a UDP header.
const UDP_CHECKSUM: u16 = 6;

/// Datagrams of one frame at most: the kernel's UDP_MAX_SEGMENTS.
const MAX_DATAGRAMS: usize = 64;
/// Pieces of one frame at most, so that one system call takes them with room to spare.
const MAX_PIECES: usize = 512;
/// Bytes of an IPv4 packet, and of what is behind an IPv6 header.
const MAX_PACKET: usize = 65535;

/// The virtio header of a frame, where the data path has it.
type VnetHeader = [u8; VNET];

/// The fields of one datagram's headers that joining is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Headers {
    bytes: [u8; MAX_HEADERS],
    /// Offset of the UDP header; `bytes` are 8 more.
    udp: usize,
}

impl Headers {
    fn len(&self) -> usize {
        self.udp + UDP
    }

    fn is_ipv4(&self) -> bool {
        self.udp == ETHERNET + 20
    }

    fn u16_at(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn set_u16(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    /// The headers of the datagram in a frame of `len` bytes behind its virtio header; `None` if it is none, or there
    /// is anything special about it.
    fn read(vnet: VnetHeader, bytes: [u8; MAX_HEADERS], len: usize) -> Option<Self> {
        let udp = ETHERNET + if bytes[12..14] == [0x08, 0x00] { 20 } else { 40 };
        let headers = Self { bytes, udp };
        let partial = [vnet[0], vnet[1]].map(u32::from) == [VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE];
        let start = usize::from(u16::from_le_bytes([vnet[6], vnet[7]]));
        let offset = u16::from_le_bytes([vnet[8], vnet[9]]);
        if !partial || start != udp || offset != UDP_CHECKSUM || len <= headers.len() {
            return None;
        }
        let network = match bytes[12..14] {
            [0x08, 0x00] => {
                bytes[14] == 0x45
                    && usize::from(headers.u16_at(16)) == len - ETHERNET
                    && headers.u16_at(20) & !DONT_FRAGMENT == 0
                    && bytes[23] == IPPROTO_UDP
                    && sum(&bytes[ETHERNET..udp], 0) == 0xffff
            }
            [0x86, 0xdd] => {
                bytes[14] >> 4 == 6 && usize::from(headers.u16_at(18)) == len - udp && bytes[20] == IPPROTO_UDP
            }
            _ => false,
        };
        let datagram =
            usize::from(headers.u16_at(udp + 4)) == len - udp && headers.u16_at(udp + 6) == headers.pseudo_sum();
        (network && datagram).then_some(headers)
    }

    /// The sum of the pseudo header, which is where a partial checksum begins.
    fn pseudo_sum(&self) -> u16 {
        let addresses = if self.is_ipv4() { ETHERNET + 12..self.udp } else { ETHERNET + 8..self.udp };
        sum(&self.bytes[addresses], u32::from(IPPROTO_UDP) + u32::from(self.u16_at(self.udp + 4)))
    }

    /// The same headers with everything that may differ between datagrams of one frame set to zero.
    fn common(mut self) -> Self {
        let len = self.len();
        if self.is_ipv4() {
            [16, 18, 24].into_iter().for_each(|at| self.set_u16(at, 0));
        } else {
            self.set_u16(18, 0);
        }
        self.set_u16(self.udp + 4, 0);
        self.set_u16(self.udp + 6, 0);
        self.bytes[len..].fill(0);
        self
    }

    /// The identification, where it means something.
    fn identification(&self) -> Option<u16> {
        (self.is_ipv4() && self.u16_at(20) & DONT_FRAGMENT == 0).then(|| self.u16_at(18))
    }

    /// The headers of a frame with `payload` bytes.
    fn enclosing(mut self, payload: usize) -> Self {
        let udp_len = u16::try_from(UDP + payload).unwrap_or(u16::MAX);
        self.set_u16(self.udp + 4, udp_len);
        if self.is_ipv4() {
            self.set_u16(16, udp_len.saturating_add(20));
            self.set_u16(24, 0);
            self.set_u16(24, !sum(&self.bytes[ETHERNET..self.udp], 0));
        } else {
            self.set_u16(18, udp_len);
        }
        self.set_u16(self.udp + 6, self.pseudo_sum());
        self
    }
}

/// The ones' complement sum of 16-bit words (RFC 1071), from `start` on.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
    let sum = words.fold(start, |sum, word| sum + word);
    let sum = (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = (sum + (sum >> 16)).to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// A datagram that can be joined with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Datagram {
    headers: Headers,
    payload: usize,
}

impl Datagram {
    /// The datagram in `frame`, whose virtio header has `header_len` bytes; `None` if there is none that can be joined.
    pub(super) fn read(frame: &IoVecs, header_len: usize) -> Option<Self> {
        let len = usize::try_from(frame.len_bytes()).ok()?.checked_sub(header_len)?;
        let (mut vnet, mut bytes) = ([0; VNET], [0; MAX_HEADERS]);
        frame.copy_out(0, &mut vnet);
        frame.copy_out(header_len, &mut bytes);
        let headers = Headers::read(vnet, bytes, len)?;
        Some(Self { payload: len - headers.len(), headers })
    }
}

/// Datagrams of one flow that have been joined.
#[derive(Debug)]
pub(super) struct Joined {
    first: Datagram,
    common: Headers,
    datagrams: usize,
    payload: usize,
    /// True if the last one was shorter than the first.
    closed: bool,
}

impl Joined {
    /// Begins with one.
    pub(super) fn new(first: Datagram) -> Self {
        Self { first, common: first.headers.common(), datagrams: 1, payload: first.payload, closed: false }
    }

    /// Bytes of the next datagram's frame, behind its virtio header, that are not needed if it can follow; `None` if it
    /// cannot. `pieces` is how many there will be.
    pub(super) fn follow(&mut self, next: &Datagram, pieces: usize) -> Option<usize> {
        let payload = self.payload + next.payload;
        let headers = self.first.headers;
        let fits = !self.closed
            && self.datagrams < MAX_DATAGRAMS
            && pieces < MAX_PIECES
            && next.payload <= self.first.payload
            && payload + headers.len() - ETHERNET <= MAX_PACKET
            && next.headers.common() == self.common;
        let numbered = match headers.identification() {
            Some(first) => {
                let expected = u16::try_from(self.datagrams).map(|count| first.wrapping_add(count));
                expected.is_ok_and(|expected| next.headers.identification() == Some(expected))
            }
            None => true,
        };
        if !fits || !numbered {
            return None;
        }
        self.closed = next.payload < self.first.payload;
        self.datagrams += 1;
        self.payload = payload;
        Some(headers.len())
    }

    /// The start of the frame with all of them: a virtio header of `header_len` bytes, and the headers.
    pub(super) fn head(&self, header_len: usize, head: &mut Vec<u8>) {
        let headers = self.first.headers.enclosing(self.payload);
        let u16_le = |value: usize| u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes();
        head.clear();
        head.extend([VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_UDP_L4].map(|value| value.to_le_bytes()[0]));
        head.extend([u16_le(headers.len()), u16_le(self.first.payload), u16_le(headers.udp)].concat());
        head.extend(UDP_CHECKSUM.to_le_bytes());
        head.resize(header_len, 0);
        head.extend(&headers.bytes[..headers.len()]);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::virtio::chain::Buffer;
    use crate::virtio::device::Memory;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    /// How one datagram differs from the others.
    #[derive(Debug, Clone, Copy)]
    pub(in crate::virtio::net) struct Shape {
        pub(in crate::virtio::net) ipv6: bool,
        pub(in crate::virtio::net) flags: u16,
        pub(in crate::virtio::net) id: u16,
        pub(in crate::virtio::net) port: u16,
        pub(in crate::virtio::net) payload: usize,
    }

    pub(in crate::virtio::net) const PLAIN: Shape =
        Shape { ipv6: false, flags: DONT_FRAGMENT, id: 7, port: 53, payload: 18 };

    /// A frame as a driver hands it over: 12 bytes of virtio header, a partial checksum.
    pub(in crate::virtio::net) fn frame(shape: Shape) -> Vec<u8> {
        let mut bytes = [0; MAX_HEADERS];
        bytes[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        let network = if shape.ipv6 { 40 } else { 20 };
        let mut headers = Headers { bytes, udp: ETHERNET + network };
        if shape.ipv6 {
            headers.bytes[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
            (headers.bytes[20], headers.bytes[21]) = (IPPROTO_UDP, 64);
        } else {
            headers.bytes[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
            headers.set_u16(18, shape.id);
            headers.set_u16(20, shape.flags);
            (headers.bytes[22], headers.bytes[23]) = (64, IPPROTO_UDP);
        }
        let udp = headers.udp;
        headers.bytes[udp - 8..udp].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        headers.set_u16(udp, shape.port);
        let headers = headers.enclosing(shape.payload);
        let start = u8::try_from(udp).unwrap();
        let mut frame = vec![1, 0, 0, 0, 0, 0, start, 0, 6, 0, 0, 0];
        frame.extend(&headers.bytes[..headers.len()]);
        frame.extend((0..shape.payload).map(|i| u8::try_from(i % 251).unwrap()));
        frame
    }

    fn read(frame: &[u8]) -> Option<Datagram> {
        let mem = Memory::from_ranges(&[(GuestAddress(0), 0x20000)]).unwrap();
        mem.write_slice(frame, GuestAddress(0x1000)).unwrap();
        let mut list = IoVecs::new(mem);
        list.push(Buffer { addr: GuestAddress(0x1000), len: u32::try_from(frame.len()).unwrap() }).unwrap();
        Datagram::read(&list, VNET)
    }

    /// Segments a frame as the kernel does (__udp_gso_segment, inet_gso_segment).
    fn segment(head: &[u8], payload: &[u8]) -> Vec<Vec<u8>> {
        let size = usize::from(u16::from_le_bytes([head[4], head[5]]));
        let udp = usize::from(u16::from_le_bytes([head[6], head[7]]));
        let mut bytes = [0; MAX_HEADERS];
        bytes[..head.len() - VNET].copy_from_slice(&head[VNET..]);
        let large = Headers { bytes, udp };
        let chunks = payload.chunks(size).zip(0_u16..).map(|(chunk, n)| {
            let mut small = large;
            small.set_u16(18, if large.is_ipv4() { large.u16_at(18).wrapping_add(n) } else { 0 });
            let small = small.enclosing(chunk.len());
            [&[1, 0, 0, 0, 0, 0, head[6], 0, 6, 0, 0, 0], &small.bytes[..small.len()], chunk].concat()
        });
        chunks.collect()
    }

    /// Joins as many as can be and takes them apart again. Returns how many that were.
    fn there_and_back(frames: &[Vec<u8>]) -> usize {
        let mut joined = Joined::new(read(&frames[0]).unwrap());
        let headers = joined.first.headers.len();
        let mut payload = frames[0][VNET + headers..].to_vec();
        let mut count = 1;
        for frame in &frames[1..] {
            let Some(skip) = read(frame).and_then(|next| joined.follow(&next, count)) else { break };
            payload.extend(&frame[VNET + skip..]);
            count += 1;
        }
        let mut head = Vec::new();
        joined.head(VNET, &mut head);
        assert_eq!(head.len(), VNET + headers);
        assert_eq!(segment(&head, &payload), frames[..count]);
        count
    }

    #[test]
    fn datagrams_of_one_flow_are_joined_and_come_back_as_they_were() {
        for ipv6 in [false, true] {
            for (payloads, expected) in [
                (&[18, 18, 18][..], 3),
                (&[1000, 1000, 999, 1000], 3),
                (&[18, 19], 1),
                (&[1; 80], MAX_DATAGRAMS),
                (&[1472; 60], 44),
            ] {
                let shapes = (7..).zip(payloads).map(|(id, payload)| Shape { ipv6, id, payload: *payload, ..PLAIN });
                let frames: Vec<_> = shapes.map(frame).collect();
                assert_eq!(there_and_back(&frames), expected, "{payloads:?}");
            }
        }
    }

    #[test]
    fn identification_counts_up_where_it_means_something() {
        let frames = |flags, ids: [u16; 3]| ids.map(|id| frame(Shape { flags, id, ..PLAIN }));
        assert_eq!(there_and_back(&frames(0, [0xffff, 0, 1])), 3);
        assert_eq!(there_and_back(&frames(0, [7, 8, 8])), 2);
        assert_eq!(there_and_back(&frames(0, [7, 7, 7])), 1);
        let same = read(&frames(DONT_FRAGMENT, [7, 7, 7])[1]).unwrap();
        assert!(Joined::new(same).follow(&same, 1).is_some());
    }

    #[test]
    fn other_flows_and_longer_lists_are_not_joined() {
        let first = read(&frame(PLAIN)).unwrap();
        for other in [Shape { port: 54, ..PLAIN }, Shape { ipv6: true, ..PLAIN }, Shape { flags: 0, ..PLAIN }] {
            let other = read(&frame(other)).unwrap();
            assert_eq!(Joined::new(first).follow(&other, 2), None);
        }
        assert_eq!(Joined::new(first).follow(&first, MAX_PIECES), None);
        assert_eq!(Joined::new(first).follow(&first, MAX_PIECES - 1), Some(42));
    }

    #[test]
    fn anything_special_is_left_alone() {
        for ipv6 in [false, true] {
            let plain = frame(Shape { ipv6, ..PLAIN });
            assert!(read(&plain).is_some());
            assert_eq!(read(&plain[..plain.len() - 1]), None, "cut");
            assert_eq!(read(&[&plain[..], &[0]].concat()), None, "padded");
            // Flags, type, checksum offsets, EtherType, version, protocol, length, ports' neighbours: every bit of
            // these counts.
            let udp = if ipv6 { 66 } else { 46 };
            let network = if ipv6 { vec![26, 30, 31, 32] } else { vec![26, 28, 29, 32, 33, 34, 35, 36, 37] };
            for at in [0, 1, 6, 7, 8, 9, 24, 25, udp + 4, udp + 5, udp + 6, udp + 7].into_iter().chain(network) {
                let mut changed = plain.clone();
                changed[at] ^= 0x10;
                assert_eq!(read(&changed), None, "byte {at}");
            }
        }
        for flags in [0x2000, 0x0001, 0x8000] {
            assert_eq!(read(&frame(Shape { flags, ..PLAIN })), None, "fragment {flags:#x}");
        }
        assert_eq!(read(&frame(Shape { payload: 0, ..PLAIN })), None, "empty");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_datagram_or_not(mut bytes in proptest::collection::vec(any::<u8>(), 12..200), udp: bool) {
            if udp {
                let len = bytes.len().min(12 + 24);
                bytes[..len].copy_from_slice(&frame(PLAIN)[..len]);
            }
            if let Some(datagram) = read(&bytes) {
                let mut joined = Joined::new(datagram);
                let _ = joined.follow(&datagram, 2);
                joined.head(20, &mut Vec::new());
            }
        }

        #[test]
        fn whatever_is_joined_comes_back(
            payloads in proptest::collection::vec(1..30_usize, 1..20),
            ipv6: bool,
            id: u16,
        ) {
            let frames: Vec<_> = (0..).zip(payloads).map(|(n, payload)| {
                frame(Shape { ipv6, id: id.wrapping_add(n), payload, ..PLAIN })
            }).collect();
            there_and_back(&frames);
        }
    }
}
