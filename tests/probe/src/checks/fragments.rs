//! UDP datagrams larger than the MTU that are left to the device to cut into IP fragments (VIRTIO_NET_F_HOST_UFO,
//! GUEST_UFO; virtio 1.3 5.1.6.2).
//!
//! The peer sends every IPv4 packet back that reaches it in one frame of more than 8000 bytes, and leaves it to be cut
//! in turn. Linux takes such a frame from a tap, and has not given one to a tap since 4.14: it cuts it before.

use super::live::NET_HEADER;
use super::net::{Card, STRANGERS_MAX, need_echo};
use super::{DeviceCheck, Subject};
use crate::report::Check;
use crate::virtio::feature;
use crate::{arena, cpu, fail, line, require, skip};

const F_CSUM: u64 = 1;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_GUEST_UFO: u64 = 1 << 10;
const F_HOST_UFO: u64 = 1 << 14;
const F_MRG_RXBUF: u64 = 1 << 15;

const GSO_UDP: u8 = 3;
const NEEDS_CSUM: u8 = 1;
pub(super) const ETHERNET: u64 = 14;
pub(super) const IP: u64 = 20;
const UDP: u16 = 8;
/// The payload of the IP packet: UDP header and payload.
const BYTES: u16 = UDP + 8000;
/// The payload of a fragment: as much as fits into 1500 bytes with the IP header.
const FRAGMENT: u16 = 1480;
/// The packet's identification.
const IDENT: u16 = 0xbeef;
/// A received frame's buffer has room for all of it.
const BUFFER: u32 = 16 << 10;

/// The checks of this file.
pub(super) const CHECKS: &[(&str, DeviceCheck)] = &[("a datagram of 8000 bytes is sent uncut", uncut)];

fn uncut(s: &Subject) -> Check {
    need_echo(s)?;
    let mut card = Card::start(
        &s.device,
        F_CSUM | F_GUEST_CSUM | F_GUEST_UFO | F_HOST_UFO | F_MRG_RXBUF | feature::INDIRECT_DESC,
        BUFFER,
        32,
    )?;
    if card.features & F_HOST_UFO == 0 {
        skip!("HOST_UFO is not offered");
    }
    let at = arena::take(NET_HEADER + ETHERNET + IP + u64::from(BYTES), 64);
    write_datagram(at, card.mac);
    let ours = |packet| be16(packet + 4) == IDENT;
    Large { bytes: BYTES, head: 34, buffer: BUFFER, gso: GSO_UDP, feature: F_GUEST_UFO, ours, piece }
        .echo(s, &mut card, at)
}

/// A packet that the device is to cut and the peer sends back.
pub(super) struct Large {
    /// Its payload, as far as pieces of it carry that.
    pub(super) bytes: u16,
    /// The bytes before that in the frame.
    pub(super) head: u16,
    /// Of a receive buffer.
    pub(super) buffer: u32,
    /// The segmentation type in the virtio header of a whole one.
    pub(super) gso: u8,
    /// The feature without which there may be no whole one.
    pub(super) feature: u64,
    /// Returns whether an IPv4 packet at this address is a piece of it.
    pub(super) ours: fn(u64) -> bool,
    /// Checks a piece, and says what of the bytes is in it.
    pub(super) piece: fn(u64) -> Check<u16>,
}

impl Large {
    /// Sends what has been written to `at`, and waits for all of it.
    pub(super) fn echo(&self, s: &Subject, card: &mut Card, at: u64) -> Check {
        card.tx.chain(&[(at, 12 + u32::from(self.head) + u32::from(self.bytes), 0)]);
        card.tx.publish(0);
        card.tx.kick();
        require!(card.tx.wait_used(cpu::PATIENCE_TICKS).is_some(), "the frame is not returned");
        let (mut bytes, mut frames, mut whole) = (0, 0, false);
        for _ in 0..STRANGERS_MAX {
            if bytes == self.bytes {
                let how = if whole { "uncut" } else { "in pieces" };
                line!("# {s} got {bytes} bytes back {how}, in {frames} frames");
                require!(!whole || card.features & self.feature != 0, "the feature for that was not negotiated");
                return Ok(());
            }
            let Some(used) = card.rx.wait_used(cpu::PATIENCE_TICKS) else {
                fail!("{bytes} bytes of {} come back, in {frames} frames", self.bytes)
            };
            let Ok(idx) = u16::try_from(used.id) else { fail!("used id {:#x}", used.id) };
            let buffer = card.rx_buffers + u64::from(idx) * u64::from(self.buffer);
            let packet = buffer + NET_HEADER + ETHERNET;
            if be16(packet - 2) == 0x0800 && (self.ours)(packet) {
                whole |= cpu::read8(buffer + 1) == self.gso;
                bytes += (self.piece)(packet)?;
                frames += 1;
            }
            card.post(idx);
            card.rx.kick();
        }
        fail!("only frames of others arrive")
    }
}

/// Checks what an IP packet carries, which may be a fragment. Returns how many bytes that is.
fn piece(packet: u64) -> Check<u16> {
    let (len, offset) = (be16(packet + 2), (be16(packet + 6) & 0x1fff) * 8);
    require!((20..=20 + BYTES).contains(&len), "a packet of {len} bytes");
    let len = len - 20;
    for at in offset.max(UDP)..offset + len {
        let byte = cpu::read8(packet + IP + u64::from(at - offset));
        require!(byte == payload(at), "byte {at} is {byte:#x}");
    }
    Ok(len)
}

/// The byte at this place of what is carried.
pub(super) fn payload(at: u16) -> u8 {
    let [low, high] = at.to_le_bytes();
    low.wrapping_mul(3) ^ high
}

pub(super) fn be16(at: u64) -> u16 {
    u16::from_be_bytes([cpu::read8(at), cpu::read8(at + 1)])
}

/// A virtio header and a frame to everybody, of which the device is to make fragments.
fn write_datagram(at: u64, mac: [u8; 6]) {
    let words = [0x4500, 20 + BYTES, IDENT, 0, 64 << 8 | 17, 0, 0x0a63, 1, 0x0a63, 2];
    write_heads(at, mac, GSO_UDP, [42, FRAGMENT, 34, 6], words);
    let datagram = at + NET_HEADER + ETHERNET + IP;
    // The checksum is begun with that of the pseudo-header; the rest is left to the device as well.
    let begun = sum(words.into_iter().skip(6).chain([17, BYTES]));
    for (at, word) in (datagram..).step_by(2).zip([1000, 1001, BYTES, begun]) {
        cpu::write16(at, u16::to_be(word));
    }
    for at in UDP..BYTES {
        cpu::write8(datagram + u64::from(at), payload(at));
    }
}

/// A virtio header whose numbers are hdr_len, gso_size, csum_start and csum_offset, Ethernet's header to everybody, and
/// that of IPv4, whose checksum is filled in.
pub(super) fn write_heads(at: u64, mac: [u8; 6], gso: u8, numbers: [u16; 4], words: [u16; 10]) {
    let frame = at + NET_HEADER;
    arena::fill(at, NET_HEADER, 0);
    cpu::write8(at, NEEDS_CSUM);
    cpu::write8(at + 1, gso);
    for (at, value) in (at + 2..).step_by(2).zip(numbers) {
        cpu::write16(at, value);
    }
    arena::fill(frame, 6, 0xff);
    for (at, byte) in (frame + 6..).zip(mac) {
        cpu::write8(at, byte);
    }
    cpu::write16(frame + 12, 0x0800_u16.to_be());
    let packet = frame + ETHERNET;
    for (at, word) in (packet..).step_by(2).zip(words) {
        cpu::write16(at, u16::to_be(word));
    }
    cpu::write16(packet + 10, (!sum(words.into_iter())).to_be());
}

/// The ones' complement sum (RFC 1071).
pub(super) fn sum(words: impl Iterator<Item = u16>) -> u16 {
    words.fold(0, |sum: u16, word| {
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}
