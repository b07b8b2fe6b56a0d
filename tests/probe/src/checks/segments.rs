//! TCP segments larger than the MTU that are left to the device to cut (VIRTIO_NET_F_HOST_TSO4, GUEST_TSO4; virtio 1.3
//! 5.1.6.2).
//!
//! The peer sends them back as it does with the datagrams of [`super::fragments`].

use super::fragments::{ETHERNET, IP, Large, be16, payload, sum, write_heads};
use super::live::NET_HEADER;
use super::net::{Card, need_echo};
use super::{DeviceCheck, Subject};
use crate::report::Check;
use crate::virtio::feature;
use crate::{arena, cpu, require, skip};

const F_CSUM: u64 = 1;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_HOST_TSO4: u64 = 1 << 11;
const F_MRG_RXBUF: u64 = 1 << 15;

const GSO_TCPV4: u8 = 1;
const TCP: u16 = 20;
/// The payload of the segment.
const BYTES: u16 = 20000;
/// The payload of a piece: as much as fits into 1500 bytes with the headers.
const PIECE: u16 = 1460;
/// The packet's identification; pieces count up from there.
const IDENT: u16 = 0x4000;
/// The first byte's sequence number, in its lower half.
const SEQUENCE: u16 = 0x1000;
/// A received frame's buffer has room for all of it.
const BUFFER: u32 = 32 << 10;

/// The checks of this file.
pub(super) const CHECKS: &[(&str, DeviceCheck)] = &[("a segment of 20000 bytes is sent uncut", uncut)];

fn uncut(s: &Subject) -> Check {
    need_echo(s)?;
    let mut card = Card::start(
        &s.device,
        F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4 | F_HOST_TSO4 | F_MRG_RXBUF | feature::INDIRECT_DESC,
        BUFFER,
        16,
    )?;
    if card.features & F_HOST_TSO4 == 0 {
        skip!("HOST_TSO4 is not offered");
    }
    let at = arena::take(NET_HEADER + ETHERNET + IP + u64::from(TCP + BYTES), 64);
    write_segment(at, card.mac);
    let ours = |packet| be16(packet + 8) & 0xff == 6 && be16(packet + IP) == 1000;
    Large { bytes: BYTES, head: 54, buffer: BUFFER, gso: GSO_TCPV4, feature: F_GUEST_TSO4, ours, piece }
        .echo(s, &mut card, at)
}

/// Checks what a TCP packet carries, which may be a piece. Returns how many bytes that is.
fn piece(packet: u64) -> Check<u16> {
    let (len, offset) = (be16(packet + 2), be16(packet + IP + 6).wrapping_sub(SEQUENCE));
    require!((41..=40 + BYTES).contains(&len), "a packet of {len} bytes");
    let len = len - 40;
    require!(offset <= BYTES - len, "a piece of {len} bytes at {offset}");
    for at in offset..offset + len {
        let byte = cpu::read8(packet + IP + u64::from(TCP + at - offset));
        require!(byte == payload(at), "byte {at} is {byte:#x}");
    }
    Ok(len)
}

/// A virtio header and a frame to everybody, of which the device is to make pieces.
fn write_segment(at: u64, mac: [u8; 6]) {
    let words = [0x4500, 40 + BYTES, IDENT, 0x4000, 64 << 8 | 6, 0, 0x0a63, 1, 0x0a63, 2];
    write_heads(at, mac, GSO_TCPV4, [54, PIECE, 34, 16], words);
    let segment = at + NET_HEADER + ETHERNET + IP;
    // The checksum is begun with that of the pseudo-header; the rest is left to the device as well.
    let begun = sum(words.into_iter().skip(6).chain([6, TCP + BYTES]));
    // Ports, sequence number, acknowledgement, length of this header with ACK, window, checksum, urgent pointer.
    for (at, word) in (segment..).step_by(2).zip([1000, 1001, 0, SEQUENCE, 0, 1, 0x5010, 0xffff, begun, 0]) {
        cpu::write16(at, u16::to_be(word));
    }
    for at in 0..BYTES {
        cpu::write8(segment + u64::from(TCP + at), payload(at));
    }
}
