//! Frames of the benchmark: IPv4, so that the host tells flows apart, with UDP or a TCP super-frame in it, behind the
//! virtio-net header (virtio 1.3 5.1.6).

use super::Terms;
use crate::{arena, cpu};

/// Bytes of the virtio-net header.
pub(super) const HEADER: u64 = 12;
/// Where a UDP frame's payload begins, counted from the Ethernet header.
pub(super) const PAYLOAD: u64 = 14 + 20 + 8;
/// The host's sink and its peer.
pub(super) const SINK_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
pub(super) const PEER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x03];

const TCP_HEADERS: u16 = 14 + 20 + 20;
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const IP_AT: u64 = 14;
const TRANSPORT_AT: u16 = 34;
const TCP_CSUM_AT: u16 = 16;
const UDP_CSUM_AT: u16 = 6;
const DONT_FRAGMENT: u16 = 0x4000;
const UDP: u8 = 17;
const TCP: u8 = 6;

/// Who sends to whom.
pub(super) struct Route {
    /// Source address.
    pub(super) from: [u8; 6],
    /// Destination address.
    pub(super) to: [u8; 6],
    /// Makes the flow a different one.
    pub(super) flow: u16,
}

/// Takes memory and writes header and frame there: a datagram, or a TCP super-frame if `mss` is not 0. Returns its
/// address.
pub(super) fn make(route: &Route, &Terms { size, mss, partial, .. }: &Terms) -> u64 {
    let at = arena::take(HEADER + u64::from(size), 64);
    let frame = at + HEADER;
    for (at, byte) in (frame..).zip(route.to.into_iter().chain(route.from).chain([0x08, 0x00])) {
        cpu::write8(at, byte);
    }
    let ip_len = u16::try_from(size - 14).unwrap_or(u16::MAX);
    let ip = frame + IP_AT;
    let protocol = if mss == 0 { UDP } else { TCP };
    for (at, word) in (ip..).step_by(2).zip([0x4500, ip_len, 0, DONT_FRAGMENT, 0x4000 | u16::from(protocol)]) {
        cpu::write16(at, word.to_be());
    }
    for (at, byte) in (ip + 12..).zip([10, 0, 0, 1, 10, 0, 0, 2]) {
        cpu::write8(at, byte);
    }
    cpu::write16(ip + 10, (!sum(ip, 10, 0)).to_be());
    let transport = frame + u64::from(TRANSPORT_AT);
    cpu::write16(transport, (1000 + route.flow).to_be());
    cpu::write16(transport + 2, 9_u16.to_be());
    if mss == 0 {
        let udp_len = ip_len - 20;
        cpu::write16(transport + 4, udp_len.to_be());
        if partial {
            cpu::write8(at, NEEDS_CSUM);
            cpu::write16(at + 6, TRANSPORT_AT);
            cpu::write16(at + 8, UDP_CSUM_AT);
            cpu::write16(transport + 6, sum(ip + 12, 4, u32::from(UDP) + u32::from(udp_len)).to_be());
        }
    } else {
        cpu::write16(transport + 12, 0x5010_u16.to_be());
        cpu::write8(at, NEEDS_CSUM);
        cpu::write8(at + 1, GSO_TCPV4);
        for (at, word) in (at + 2..).step_by(2).zip([TCP_HEADERS, mss, TRANSPORT_AT, TCP_CSUM_AT]) {
            cpu::write16(at, word);
        }
    }
    at
}

/// The ones' complement sum of `words` 16-bit words at `at` (RFC 1071), from `start` on.
fn sum(at: u64, words: u64, start: u32) -> u16 {
    let sum =
        (0..words).map(|word| u32::from(u16::from_be(cpu::read16(at + 2 * word)))).fold(start, |sum, word| sum + word);
    let folded = (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = folded.to_be_bytes();
    u16::from_be_bytes([high, low])
}
