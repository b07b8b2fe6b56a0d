//! Reset of single queues of a running card (virtio 1.3 2.6.1), with what a driver may and may not do around it.

use super::net::{Card, RX, TX, need_echo};
use super::{DeviceCheck, Subject};
use crate::report::Check;
use crate::virtio::ring::{Desc, flag};
use crate::virtio::{Device, LIVE, common, feature};
use crate::{arena, cpu, require, skip};

const F_CTRL_VQ: u64 = 1 << 17;
const F_CTRL_RX: u64 = 1 << 18;
const F_MQ: u64 = 1 << 22;
/// The control queue where MQ was not negotiated (5.1.2).
const CONTROL: u16 = 2;
/// VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, on.
const PROMISCUOUS: [u8; 3] = [0, 0, 1];

/// How long nothing has to happen.
const QUIET_TICKS: u64 = cpu::SECOND_TICKS / 20;
/// Resets in the middle of a burst.
const BURSTS: u32 = 200;

/// The checks of this file.
pub(super) const CHECKS: &[(&str, DeviceCheck)] = &[
    ("a transmit queue is reset and sends again from another ring", transmit_again),
    ("a receive queue is reset and receives again into another ring", receive_again),
    ("a frame that arrives during the reset of its queue is received afterwards", frame_waits),
    ("a queue that is reset is left alone", left_alone),
    ("a control queue is reset and obeys again", control_again),
    ("a queue is reset in the middle of a burst", mid_burst),
    ("resets of queues that are not enabled are harmless", not_enabled),
    ("a queue cannot be enabled again without rings", no_rings),
    ("queue_reset means nothing without the feature", unnegotiated),
];

fn start(s: &Subject) -> Check<Card> {
    if s.device.offered() & feature::RING_RESET == 0 {
        skip!("RING_RESET is not offered");
    }
    Card::start(&s.device, feature::RING_RESET, 2048, 16)
}

/// Resets the receive queue and gives it another ring, without buffers.
fn renew_receive(d: &Device, card: &mut Card, size: u16) -> Check {
    d.reset_queue(RX)?;
    card.rx = d.enable_queue(RX, size)?;
    Ok(())
}

fn post_all(card: &mut Card) {
    for idx in 0..card.rx.size.min(16) {
        card.post(idx);
    }
    card.rx.kick();
}

fn transmit_again(s: &Subject) -> Check {
    let (d, mut card) = (&s.device, start(s)?);
    for (seed, size) in (0..).zip([16, 64, 2, 128, 256]) {
        card.send_frame(60, seed)?;
        d.reset_queue(TX)?;
        card.tx = d.enable_queue(TX, size)?;
        card.send_frame(60, seed)?;
        if s.terms.echo {
            card.receive(s.terms, 60, seed)?;
        }
    }
    require!(d.status() == LIVE, "status {:#x}", d.status());
    Ok(())
}

fn receive_again(s: &Subject) -> Check {
    need_echo(s)?;
    let (d, mut card) = (&s.device, start(s)?);
    for (seed, size) in (0..).zip([16, 64, 2, 128, 256]) {
        card.send_frame(200, seed)?;
        card.receive(s.terms, 200, seed)?;
        renew_receive(d, &mut card, size)?;
        post_all(&mut card);
        card.send_frame(1514, seed)?;
        card.receive(s.terms, 1514, seed)?;
    }
    Ok(())
}

fn frame_waits(s: &Subject) -> Check {
    need_echo(s)?;
    let (d, mut card) = (&s.device, start(s)?);
    if !s.terms.strict {
        skip!("a device may drop it (5.1.6.5.5)");
    }
    for seed in 0..8 {
        d.reset_queue(RX)?;
        card.send_frame(300, seed)?;
        cpu::wait(QUIET_TICKS, || false);
        card.rx = d.enable_queue(RX, 16)?;
        post_all(&mut card);
        card.receive(s.terms, 300, seed)?;
    }
    Ok(())
}

fn left_alone(s: &Subject) -> Check {
    let (d, mut card) = (&s.device, start(s)?);
    d.reset_queue(RX)?;
    let (rx, tx) = (cpu::read16(card.rx.used + 2), cpu::read16(card.tx.used + 2));
    card.send_frame(60, 1)?;
    d.reset_queue(TX)?;
    card.tx.publish(0);
    card.tx.kick();
    card.rx.kick();
    cpu::wait(QUIET_TICKS, || false);
    require!(cpu::read16(card.rx.used + 2) == rx, "the receive queue was used");
    require!(cpu::read16(card.tx.used + 2) == tx.wrapping_add(1), "the transmit queue was used");
    require!(d.status() == LIVE, "status {:#x}", d.status());
    Ok(())
}

fn control_again(s: &Subject) -> Check {
    let d = &s.device;
    start(s)?;
    let features = d.negotiate(feature::RING_RESET | F_CTRL_VQ | F_CTRL_RX)?;
    if features & F_CTRL_RX == 0 || features & F_MQ != 0 {
        skip!("CTRL_RX is not offered");
    }
    d.enable_queue(RX, 16)?;
    d.enable_queue(TX, 16)?;
    let mut ring = d.enable_queue(CONTROL, 16)?;
    d.go_live()?;
    let buffer = arena::take(16, 16);
    for round in 0..4 {
        for (at, byte) in (buffer..).zip(PROMISCUOUS) {
            cpu::write8(at, byte);
        }
        cpu::write8(buffer + 8, 0xff);
        ring.chain(&[(buffer, 2, 0), (buffer + 2, 1, 0), (buffer + 8, 1, flag::WRITE)]);
        ring.publish(0);
        ring.kick();
        require!(ring.wait_used(cpu::PATIENCE_TICKS).is_some(), "command {round} is not answered");
        require!(cpu::read8(buffer + 8) == 0, "command {round} is refused: {}", cpu::read8(buffer + 8));
        d.reset_queue(CONTROL)?;
        ring = d.enable_queue(CONTROL, 16)?;
    }
    Ok(())
}

fn mid_burst(s: &Subject) -> Check {
    let (d, mut card) = (&s.device, start(s)?);
    card.write_frame(60, 9);
    for round in 0..BURSTS {
        for idx in 0..card.tx.size {
            card.tx.describe(idx, Desc { address: card.tx_buffer, len: 72, flags: 0, next: 0 });
            card.tx.publish(idx);
        }
        card.tx.kick();
        if round % 2 == 0 {
            card.tx.wait_used(cpu::PATIENCE_TICKS);
        }
        d.reset_queue(TX)?;
        let sent = cpu::read16(card.tx.used + 2);
        // The same memory again, as from the beginning.
        for at in [card.tx.avail + 2, card.tx.used + 2] {
            cpu::write16(at, 0);
        }
        require!(sent <= card.tx.size, "round {round}: {sent} of {} frames returned", card.tx.size);
        card.tx.rewind();
        d.enable_ring(&card.tx);
    }
    card.send_frame(60, 1)?;
    require!(d.status() == LIVE, "status {:#x}", d.status());
    Ok(())
}

fn not_enabled(s: &Subject) -> Check {
    let (d, mut card) = (&s.device, start(s)?);
    for queue in [CONTROL, CONTROL + 1, 0x7fff, 0xffff] {
        d.reset_queue(queue)?;
    }
    for _ in 0..3 {
        d.reset_queue(RX)?;
    }
    for value in [0, 2, 0xffff] {
        d.set16(common::QUEUE_SELECT, TX);
        d.set16(common::QUEUE_RESET, value);
        require!(!s.terms.strict || d.get16(common::QUEUE_ENABLE) == 1, "{value:#x} in queue_reset resets the queue");
    }
    if s.terms.strict {
        card.send_frame(60, 1)?;
    }
    // Before DRIVER_OK.
    d.negotiate(feature::RING_RESET)?;
    d.enable_queue(RX, 16)?;
    d.enable_queue(TX, 16)?;
    d.reset_queue(TX)?;
    card.tx = d.enable_queue(TX, 16)?;
    d.go_live()?;
    card.send_frame(60, 2)
}

fn no_rings(s: &Subject) -> Check {
    let (d, mut card) = (&s.device, start(s)?);
    if !s.terms.strict {
        skip!("the specification binds only the driver");
    }
    d.reset_queue(TX)?;
    d.set16(common::QUEUE_ENABLE, 1);
    require!(d.get16(common::QUEUE_ENABLE) == 0, "enabled without addresses");
    for field in [common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE] {
        d.set64(field, 0xf_0000_0000_0000);
    }
    d.set16(common::QUEUE_ENABLE, 1);
    require!(d.get16(common::QUEUE_ENABLE) == 0, "enabled outside memory");
    require!(d.status() == LIVE, "status {:#x}", d.status());
    card.tx = d.enable_queue(TX, 16)?;
    card.send_frame(60, 1)
}

fn unnegotiated(s: &Subject) -> Check {
    if !s.terms.strict {
        skip!("the specification binds only the driver");
    }
    let mut card = Card::start(&s.device, 0, 2048, 4)?;
    require!(card.features & feature::RING_RESET == 0, "accepted all the same");
    s.device.set16(common::QUEUE_SELECT, TX);
    s.device.set16(common::QUEUE_RESET, 1);
    require!(s.device.get16(common::QUEUE_ENABLE) == 1, "the queue is reset");
    card.send_frame(60, 1)
}
