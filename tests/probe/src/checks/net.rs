//! virtio-net (virtio 1.3 5.1): configuration, sending, and, with a peer that sends frames back, receiving.
//!
//! The peer: whoever sits on the card's network and sends every frame of EtherType 0x88b5 back to its sender. The word
//! `echo` on the command line says that there is one. Every frame carries a number of its own behind the Ethernet
//! header, so that a late answer to an earlier check is not taken for the one awaited.

use core::sync::atomic::{AtomicU64, Ordering};
use super::live::{ETHERTYPE, NET_HEADER};
use super::{DeviceCheck, Subject, Terms, messages_for};
use crate::report::Check;
use crate::virtio::msix::Control;
use crate::virtio::ring::{Ring, flag};
use crate::virtio::{Device, common};
use crate::{arena, cpu, fail, line, require, skip};

const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_MQ: u64 = 1 << 22;

pub(super) const RX: u16 = 0;
pub(super) const TX: u16 = 1;
const ETHERNET: u64 = 14;
const RING_SIZE: u16 = 64;
const TX_BUFFER: u64 = 2048;
/// Other frames that may arrive before the one awaited: late answers to full rings, multicast of the host's own stack.
pub(super) const STRANGERS_MAX: usize = 512;
/// Bytes of a frame's number.
const NUMBER: u64 = 8;

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

/// The checks of this file.
pub(super) const CHECKS: &[(&str, DeviceCheck)] = &[
    ("features and configuration make sense", configuration),
    ("a frame is sent and its buffer returned", frame_is_sent),
    ("a frame from several buffers is sent", several_buffers),
    ("a full ring of frames is sent in order", full_ring),
    ("a second start sends again", second_start),
    ("frames of every size come back", sizes_come_back),
    ("a frame spans small buffers", frame_spans_buffers),
    ("receiving sends a message", receiving_sends_message),
];

/// A started card with its first queue pair.
pub(super) struct Card {
    pub(super) rx: Ring,
    pub(super) tx: Ring,
    pub(super) features: u64,
    pub(super) mac: [u8; 6],
    pub(super) tx_buffer: u64,
    pub(super) rx_buffers: u64,
    rx_bytes: u32,
    number: u64,
}

impl Card {
    /// Starts with `buffers` receive buffers of `rx_bytes` bytes posted.
    pub(super) fn start(device: &Device, wanted: u64, rx_bytes: u32, buffers: u16) -> Check<Self> {
        Self::start_with(device, wanted, rx_bytes, buffers, |_| Ok(()))
    }

    /// As `start`, with a step before DRIVER_OK.
    pub(super) fn start_with(
        device: &Device,
        wanted: u64,
        rx_bytes: u32,
        buffers: u16,
        before_live: impl FnOnce(&Device) -> Check,
    ) -> Check<Self> {
        let features = device.negotiate(wanted | F_MAC)?;
        let rx = device.enable_queue(RX, RING_SIZE)?;
        let tx = device.enable_queue(TX, RING_SIZE)?;
        before_live(device)?;
        device.go_live()?;
        Ok(Self::on(device, [rx, tx], features, rx_bytes, buffers))
    }

    /// On a device that runs, with these queues and `buffers` receive buffers of `rx_bytes` bytes posted.
    pub(super) fn on(device: &Device, [rx, tx]: [Ring; 2], features: u64, rx_bytes: u32, buffers: u16) -> Self {
        let rx_buffers = arena::take(u64::from(rx_bytes) * u64::from(buffers), 64);
        let tx_buffer = arena::take(TX_BUFFER, 64);
        let mut card = Self { rx, tx, features, mac: mac(device), tx_buffer, rx_buffers, rx_bytes, number: 0 };
        for idx in 0..buffers.min(card.rx.size) {
            card.post(idx);
        }
        card.rx.kick();
        card
    }

    fn rx_buffer(&self, idx: u16) -> u64 {
        self.rx_buffers + u64::from(idx) * u64::from(self.rx_bytes)
    }

    /// Posts receive buffer `idx`.
    pub(super) fn post(&mut self, idx: u16) {
        let desc =
            crate::virtio::ring::Desc { address: self.rx_buffer(idx), len: self.rx_bytes, flags: flag::WRITE, next: 0 };
        self.rx.describe(idx, desc);
        self.rx.publish(idx);
    }

    /// Writes header and frame of `len` bytes (Ethernet header included) to the transmit buffer.
    pub(super) fn write_frame(&mut self, len: u64, seed: u8) {
        let frame = self.tx_buffer + NET_HEADER;
        arena::fill(self.tx_buffer, NET_HEADER, 0);
        arena::fill(frame, 6, 0xff);
        for (at, byte) in (frame + 6..).zip(self.mac.into_iter().chain(ETHERTYPE)) {
            cpu::write8(at, byte);
        }
        self.number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        cpu::write64(frame + ETHERNET, self.number);
        for i in ETHERNET + NUMBER..len {
            cpu::write8(frame + i, payload_byte(i, seed));
        }
    }

    fn send(&mut self, buffers: &[(u64, u32, u16)]) -> Check {
        self.tx.chain(buffers);
        self.tx.publish(0);
        self.tx.kick();
        let Some(used) = self.tx.wait_used(cpu::PATIENCE_TICKS) else { fail!("transmit buffer is not returned") };
        require!(used.id == 0, "used id {}", used.id);
        Ok(())
    }

    /// Sends a frame and waits for its buffer.
    pub(super) fn send_frame(&mut self, len: u32, seed: u8) -> Check {
        self.write_frame(len.into(), seed);
        self.send(&[(self.tx_buffer, 12 + len, 0)])
    }

    /// Returns whether a received frame is the answer to the one sent last.
    fn is_awaited(&self, frame: u64) -> bool {
        cpu::read16(frame + 12) == u16::from_le_bytes(ETHERTYPE) && cpu::read64(frame + ETHERNET) == self.number
    }

    /// Waits for the frame sent last to come back in one buffer.
    pub(super) fn receive(&mut self, s: Terms, len: u32, seed: u8) -> Check {
        for _ in 0..STRANGERS_MAX {
            let Some(used) = self.rx.wait_used(cpu::PATIENCE_TICKS) else {
                fail!("frame of {len} bytes does not come back")
            };
            let Ok(idx) = u16::try_from(used.id) else { fail!("used id {:#x}", used.id) };
            require!(idx < self.rx.size, "used id {idx}");
            let buffer = self.rx_buffer(idx);
            let frame = buffer + NET_HEADER;
            if !self.is_awaited(frame) {
                self.post(idx);
                self.rx.kick();
                continue;
            }
            require!(used.len == 12 + len, "used length {} for a frame of {len} bytes", used.len);
            let count = cpu::read16(buffer + 10);
            require!(count == 1 || count == 0 && !s.strict, "num_buffers is {count}");
            require!(cpu::read8(buffer + 1) == 0, "gso_type is {}", cpu::read8(buffer + 1));
            let wrong = (ETHERNET + NUMBER..len.into()).find(|&i| cpu::read8(frame + i) != payload_byte(i, seed));
            require!(wrong.is_none(), "byte {wrong:?} of {len} differs");
            self.post(idx);
            self.rx.kick();
            return Ok(());
        }
        fail!("only frames of others arrive")
    }
}

fn payload_byte(i: u64, seed: u8) -> u8 {
    seed.wrapping_mul(31).wrapping_add(i.to_le_bytes()[0])
}

fn mac(device: &Device) -> [u8; 6] {
    [0, 1, 2, 3, 4, 5].map(|i| cpu::read8(device.config.address + i))
}

pub(super) fn need_echo(s: &Subject) -> Check {
    if !s.terms.echo {
        skip!("no peer (`echo` is not on the command line)");
    }
    Ok(())
}

fn configuration(s: &Subject) -> Check {
    let d = &s.device;
    let offered = d.offered();
    let config = d.config.address;
    line!("# {s} offers {offered:#018x}, mac {:02x?}", mac(d));
    let queues = d.get16(common::NUM_QUEUES);
    if offered & F_MAC != 0 {
        let mac = mac(d);
        require!(mac[0] & 1 == 0 && mac != [0; 6], "mac {mac:02x?}");
    }
    if offered & F_STATUS != 0 {
        require!(d.config.len >= 8, "no room for status in {} bytes", d.config.len);
        require!(cpu::read16(config + 6) & 1 == 1, "link is down");
    }
    if offered & F_MQ != 0 {
        let pairs = cpu::read16(config + 8);
        require!((1..=0x8000).contains(&pairs), "max_virtqueue_pairs {pairs}");
        require!(queues >= 2 * pairs, "{queues} queues for {pairs} pairs");
    }
    if offered & F_MTU != 0 {
        let mtu = cpu::read16(config + 10);
        require!(mtu >= 68, "mtu {mtu}");
    }
    cpu::write32(config, 0);
    if s.terms.strict {
        require!(mac(d) != [0; 6], "the mac can be overwritten");
    }
    Ok(())
}

fn frame_is_sent(s: &Subject) -> Check {
    let mut card = Card::start(&s.device, 0, 2048, 4)?;
    card.send_frame(60, 1)
}

fn several_buffers(s: &Subject) -> Check {
    let mut card = Card::start(&s.device, 0, 2048, 4)?;
    card.write_frame(200, 2);
    let at = card.tx_buffer;
    card.send(&[(at, 12, 0), (at + 12, 14, 0), (at + 26, 1, 0), (at + 27, 185, 0)])?;
    if s.terms.echo { card.receive(s.terms, 200, 2) } else { Ok(()) }
}

fn full_ring(s: &Subject) -> Check {
    let mut card = Card::start(&s.device, 0, 2048, 4)?;
    card.write_frame(60, 3);
    for idx in 0..card.tx.size {
        card.tx.describe(idx, crate::virtio::ring::Desc { address: card.tx_buffer, len: 72, flags: 0, next: 0 });
    }
    for round in 0..4 {
        for idx in 0..card.tx.size {
            card.tx.publish(idx);
        }
        card.tx.kick();
        for idx in 0..card.tx.size {
            let Some(used) = card.tx.wait_used(cpu::PATIENCE_TICKS) else {
                fail!("round {round}: frame {idx} is not returned")
            };
            require!(used.id == u32::from(idx), "round {round}: frame {} is returned in place of {idx}", used.id);
        }
    }
    Ok(())
}

fn second_start(s: &Subject) -> Check {
    for seed in 0..3 {
        arena::reset();
        Card::start(&s.device, 0, 2048, 4)?.send_frame(60, seed)?;
        s.device.reset()?;
    }
    Ok(())
}

fn sizes_come_back(s: &Subject) -> Check {
    need_echo(s)?;
    let mut card = Card::start(&s.device, 0, 2048, 16)?;
    for (seed, len) in (0..).zip([60, 61, 64, 127, 128, 590, 1024, 1499, 1500, 1513, 1514]) {
        card.send_frame(len, seed)?;
        card.receive(s.terms, len, seed)?;
    }
    Ok(())
}

fn frame_spans_buffers(s: &Subject) -> Check {
    need_echo(s)?;
    let mut card = Card::start(&s.device, F_MRG_RXBUF, 512, 32)?;
    if card.features & F_MRG_RXBUF == 0 {
        skip!("MRG_RXBUF is not offered");
    }
    card.send_frame(1514, 7)?;
    for _ in 0..STRANGERS_MAX {
        let Some(first) = card.rx.wait_used(cpu::PATIENCE_TICKS) else { fail!("the frame does not come back") };
        let buffer = card.rx_buffers + u64::from(first.id) * 512;
        let count = cpu::read16(buffer + 10);
        if !card.is_awaited(buffer + NET_HEADER) {
            for _ in 1..count {
                card.rx.wait_used(cpu::PATIENCE_TICKS);
            }
            continue;
        }
        require!(count == 3, "num_buffers is {count} for 1526 bytes in buffers of 512");
        let mut total = first.len;
        for _ in 1..count {
            let Some(next) = card.rx.wait_used(cpu::PATIENCE_TICKS) else {
                fail!("buffers are missing after {total} bytes")
            };
            total += next.len;
        }
        require!(total == 1526, "{total} bytes in {count} buffers");
        return Ok(());
    }
    fail!("only frames of others arrive")
}

fn receiving_sends_message(s: &Subject) -> Check {
    need_echo(s)?;
    let Some(msix) = s.device.msix else { skip!("no MSI-X") };
    msix.route(0, 0);
    msix.control(Control::On);
    let mut card = Card::start_with(&s.device, 0, 2048, 16, |d| {
        require!(d.set_queue_vector(RX, 0) == 0, "entry 0 is refused");
        Ok(())
    })?;
    for seed in 0..4 {
        let before = messages_for(0);
        card.send_frame(60, seed)?;
        require!(cpu::wait(cpu::PATIENCE_TICKS, || messages_for(0) != before), "no message for frame {seed}");
        card.receive(s.terms, 60, seed)?;
    }
    Ok(())
}
