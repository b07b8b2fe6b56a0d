//! Mistakes that only a card's driver can make: receive, transmit and control queues (virtio 1.3 5.1.6), each broken in
//! every way.
//!
//! Whatever is done, the machine's other devices answer while the card is broken, and a reset brings the card back: it
//! sends a frame and receives the answer. A ring that is broken ends in NEEDS_RESET; a buffer that cannot be used comes
//! back empty.

use super::live::{Live, NET_HEADER};
use super::net::{Card, RX, TX, need_echo};
use super::{DeviceCheck, Subject};
use crate::pci::Function;
use crate::report::Check;
use crate::virtio::ring::{Desc, Ring, flag, write_desc};
use crate::virtio::{Device, FEATURES_SET, Kind, LIVE, common, feature, status};
use crate::{arena, cpu, fail, require, skip};

pub(super) const F_MRG_RXBUF: u64 = 1 << 15;
pub(super) const F_CTRL_VQ: u64 = 1 << 17;
pub(super) const F_MQ: u64 = 1 << 22;

const SIZE: u16 = 16;
/// No machine of a test has RAM here.
const NOWHERE: u64 = 0xf_0000_0000_0000;
/// In the hole below 4 GiB, and the local APIC in it.
const HOLES: [u64; 2] = [0xf800_0000, 0xfee0_0000];
/// Resets in the middle of a burst.
const BURSTS: u32 = 100;

/// The checks of this file.
pub(super) const CHECKS: &[(&str, DeviceCheck)] = &[
    ("card: broken chains in the receive queue", broken_receive),
    ("card: broken chains in the transmit queue", broken_transmit),
    ("card: broken chains in the control queue", broken_control),
    ("card: receive buffers that cannot take a frame come back empty", useless_receive_buffers),
    ("card: chains that are no frame come back", useless_frames),
    ("card: available indexes jump in every queue", indexes_jump),
    ("card: chains longer than the ring", longer_than_the_ring),
    ("card: rings in holes and outside of memory", rings_in_holes),
    ("card: queues enabled without addresses", no_addresses),
    ("card: receive and transmit queue share their memory", shared_rings),
    ("card: receive buffers on top of each other", overlapping_buffers),
    ("card: frames arrive in the rings themselves", frames_over_rings),
    ("card: reset in the middle of sending", reset_while_sending),
    ("card: reset in the middle of receiving", reset_while_receiving),
    ("card: doorbells of every width and value", doorbells),
    ("card: doorbells before DRIVER_OK", early_doorbells),
];

/// The device's reaction to an attack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reaction {
    /// The chain came back, with so many bytes written.
    Returned(u32),
    /// DEVICE_NEEDS_RESET.
    NeedsReset,
}

/// A card with all its first queues and no buffers.
pub(super) struct Victim {
    pub(super) rx: Ring,
    pub(super) tx: Ring,
    pub(super) ctrl: Ring,
    pub(super) features: u64,
}

impl Victim {
    /// Starts the card with a control queue and whatever of `wanted` is offered.
    pub(super) fn start(d: &Device, wanted: u64) -> Check<Self> {
        let features = d.negotiate(wanted | F_CTRL_VQ)?;
        if features & F_CTRL_VQ == 0 {
            skip!("CTRL_VQ is not offered");
        }
        let (rx, tx) = (d.enable_queue(RX, SIZE)?, d.enable_queue(TX, SIZE)?);
        let ctrl = d.enable_queue(control_queue(d, features), SIZE)?;
        d.go_live()?;
        Ok(Self { rx, tx, ctrl, features })
    }

    fn ring(&mut self, which: Which) -> &mut Ring {
        match which {
            Which::Receive => &mut self.rx,
            Which::Transmit => &mut self.tx,
            Which::Control => &mut self.ctrl,
        }
    }
}

/// The control queue comes last, or third where MQ was not negotiated (5.1.2).
fn control_queue(d: &Device, features: u64) -> u16 {
    if features & F_MQ != 0 { d.get16(common::NUM_QUEUES) - 1 } else { 2 }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Receive,
    Transmit,
    Control,
}

impl Which {
    const ALL: [Self; 3] = [Self::Receive, Self::Transmit, Self::Control];

    /// The direction of the first buffer of a sound chain.
    fn first(self) -> u16 {
        if self == Self::Receive { flag::WRITE } else { 0 }
    }
}

/// Waits for what the device makes of a kick of `ring`.
pub(super) fn reaction(d: &Device, ring: &mut Ring) -> Check<Reaction> {
    let mut reaction = None;
    cpu::wait(cpu::PATIENCE_TICKS, || {
        reaction = match ring.take_used() {
            Some(used) => Some(Reaction::Returned(used.len)),
            None => (d.status() & status::NEEDS_RESET != 0).then_some(Reaction::NeedsReset),
        };
        reaction.is_some()
    });
    let Some(reaction) = reaction else { fail!("neither returned nor NEEDS_RESET") };
    Ok(reaction)
}

/// The other devices work, whatever state the card is in.
pub(super) fn others_work(s: &Subject) -> Check {
    let via = s.device.function.via;
    let others = (0..=u8::MAX).step_by(8).map(|devfn| Function { devfn, via }).filter(|f| f.present());
    for other in others.filter_map(Device::probe).filter(|d| matches!(d.kind, Kind::Block | Kind::Entropy)) {
        Live::start(&other)?.round_trip()?;
        other.reset()?;
    }
    Ok(())
}

/// After a reset the card sends and receives.
pub(super) fn comes_back(s: &Subject) -> Check {
    others_work(s)?;
    s.device.reset()?;
    arena::reset();
    sends_and_receives(s, &mut Card::start(&s.device, F_MRG_RXBUF, 2048, 16)?)?;
    s.device.reset()?;
    arena::reset();
    Ok(())
}

pub(super) fn sends_and_receives(s: &Subject, card: &mut Card) -> Check {
    card.send_frame(60, 1)?;
    if s.terms.echo { card.receive(s.terms, 60, 1) } else { Ok(()) }
}

/// Only minivmm promises an answer to what no driver may do.
pub(super) fn need_strict(s: &Subject) -> Check {
    if !s.terms.strict {
        skip!("the specification binds only the driver");
    }
    Ok(())
}

/// Has a frame arrive if the device does not look at receive buffers without one.
fn have_it_seen(s: &Subject, victim: &mut Victim, which: Which) {
    if !s.terms.vhost || which != Which::Receive {
        return;
    }
    let frame = arena::take(NET_HEADER + 60, 64);
    broadcast(frame);
    victim.tx.chain(&[(frame, 72, 0)]);
    victim.tx.publish(0);
    victim.tx.kick();
}

/// Publishes the chain at 0 that `build` wrote in each of the queues, and expects NEEDS_RESET.
fn breaks(s: &Subject, which: Which, name: &str, build: impl Fn(&Ring)) -> Check {
    let mut victim = Victim::start(&s.device, F_MRG_RXBUF | feature::INDIRECT_DESC)?;
    let ring = victim.ring(which);
    build(ring);
    ring.publish(0);
    ring.kick();
    have_it_seen(s, &mut victim, which);
    let reaction = reaction(&s.device, victim.ring(which))?;
    require!(reaction == Reaction::NeedsReset, "{name}: {reaction:?}");
    comes_back(s)
}

fn every_broken_chain(s: &Subject, which: Which) -> Check {
    need_strict(s)?;
    let (first, at) = (which.first(), arena::START + (4 << 20));
    let desc = |address, len, flags, next| Desc { address, len, flags, next };
    let next = first | flag::NEXT;
    breaks(s, which, "a descriptor that follows itself", |r| r.describe(0, desc(at, 16, next, 0)))?;
    breaks(s, which, "a loop at the end of a chain", |r| {
        r.describe(0, desc(at, 16, next, 1));
        r.describe(1, desc(at, 16, next, 2));
        r.describe(2, desc(at, 16, next, 1));
    })?;
    breaks(s, which, "a next past the end", |r| r.describe(0, desc(at, 16, next, SIZE)))?;
    for address in [NOWHERE, HOLES[0], HOLES[1], u64::MAX, u64::MAX - 15, 1 << 63] {
        breaks(s, which, "a buffer outside of memory", |r| r.describe(0, desc(address, 64, first, 0)))?;
    }
    breaks(s, which, "a buffer that leaves memory", |r| r.describe(0, desc(at, u32::MAX, first, 0)))?;
    breaks(s, which, "a second buffer outside of memory", |r| {
        r.chain(&[(at, 64, first), (NOWHERE, 64, first)]);
    })?;
    breaks(s, which, "readable after writable", |r| r.chain(&[(at, 64, flag::WRITE), (at, 64, 0)]))?;
    breaks(s, which, "a table that is not whole", |r| {
        write_desc(at, desc(at, 64, first, 0));
        r.describe(0, desc(at, 17, flag::INDIRECT, 0));
    })?;
    breaks(s, which, "a table in a table", |r| {
        write_desc(at, desc(at + 64, 16, flag::INDIRECT, 0));
        write_desc(at + 64, desc(at + 4096, 64, first, 0));
        r.describe(0, desc(at, 16, flag::INDIRECT, 0));
    })?;
    breaks(s, which, "a table outside of memory", |r| r.describe(0, desc(NOWHERE, 32, flag::INDIRECT, 0)))
}

fn broken_receive(s: &Subject) -> Check {
    every_broken_chain(s, Which::Receive)
}

fn broken_transmit(s: &Subject) -> Check {
    every_broken_chain(s, Which::Transmit)
}

fn broken_control(s: &Subject) -> Check {
    every_broken_chain(s, Which::Control)?;
    let at = arena::START + (4 << 20);
    breaks(s, Which::Control, "no room for the answer", |r| r.chain(&[(at, 2, 0), (at, 1, 0)]))
}

/// Publishes chains that are sound but of no use: each comes back empty, and what follows is served.
fn comes_back_empty(s: &Subject, which: Which, chains: &[&[(u64, u32, u16)]]) -> Check {
    need_strict(s)?;
    if s.terms.vhost {
        return chains.iter().try_for_each(|chain| does_no_harm(s, which, |r| r.chain(chain)));
    }
    let mut victim = Victim::start(&s.device, F_MRG_RXBUF)?;
    for chain in chains {
        let ring = victim.ring(which);
        ring.chain(chain);
        ring.publish(0);
        ring.kick();
        let reaction = reaction(&s.device, ring)?;
        require!(reaction == Reaction::Returned(0), "{chain:x?}: {reaction:?}");
    }
    require!(s.device.status() == LIVE, "status {:#x}", s.device.status());
    comes_back(s)
}

/// Publishes the chain at 0 that `build` wrote, of which the specification does not say what becomes. A reset brings
/// the card back.
fn does_no_harm(s: &Subject, which: Which, build: impl Fn(&Ring)) -> Check {
    let mut victim = Victim::start(&s.device, F_MRG_RXBUF | feature::INDIRECT_DESC)?;
    let ring = victim.ring(which);
    build(ring);
    ring.publish(0);
    ring.kick();
    have_it_seen(s, &mut victim, which);
    let ring = victim.ring(which);
    cpu::wait(cpu::SECOND_TICKS / 20, || ring.take_used().is_some() || s.device.status() & status::NEEDS_RESET != 0);
    comes_back(s)
}

fn useless_receive_buffers(s: &Subject) -> Check {
    let at = arena::START + (4 << 20);
    comes_back_empty(
        s,
        Which::Receive,
        &[
            &[(at, 0, flag::WRITE)],
            &[(at, 1, flag::WRITE)],
            &[(at, 11, flag::WRITE)],
            &[(at, 5, flag::WRITE), (at, 0, flag::WRITE), (at, 6, flag::WRITE)],
            &[(at, 2048, 0)],
            &[(at, 12, 0), (at, 2048, flag::WRITE)],
            &[(0, 0, 0)],
        ],
    )
}

fn useless_frames(s: &Subject) -> Check {
    let at = arena::START + (4 << 20);
    comes_back_empty(
        s,
        Which::Transmit,
        &[
            &[(at, 0, 0)],
            &[(at, 1, 0)],
            &[(at, 12, 0)],
            &[(at, 25, 0)],
            &[(at, 72, flag::WRITE)],
            &[(at, 72, 0), (at, 72, flag::WRITE)],
            &[(at, 66_000, 0)],
            &[(at, 1 << 20, 0), (at, 1 << 20, 0), (at, 1 << 20, 0)],
        ],
    )
}

fn indexes_jump(s: &Subject) -> Check {
    need_strict(s)?;
    for which in Which::ALL {
        for distance in [SIZE + 1, 0x7fff, 0x8000, u16::MAX] {
            let mut victim = Victim::start(&s.device, 0)?;
            let ring = victim.ring(which);
            ring.jump(distance);
            ring.kick();
            have_it_seen(s, &mut victim, which);
            let reaction = reaction(&s.device, victim.ring(which))?;
            require!(reaction == Reaction::NeedsReset, "an index {distance} ahead: {reaction:?}");
            comes_back(s)?;
        }
    }
    Ok(())
}

fn longer_than_the_ring(s: &Subject) -> Check {
    if s.device.offered() & feature::INDIRECT_DESC == 0 {
        skip!("indirect descriptors are not offered");
    }
    for which in Which::ALL {
        for count in [SIZE + 1, 4096] {
            let at = arena::START + (4 << 20);
            let build = |r: &Ring| {
                for idx in 0..count {
                    let last = idx + 1 == count;
                    let flags = which.first() | if last { 0 } else { flag::NEXT };
                    let next = if last { 0 } else { idx + 1 };
                    write_desc(at + 16 * u64::from(idx), Desc { address: at + (1 << 20), len: 16, flags, next });
                }
                r.describe(0, Desc { address: at, len: 16 * u32::from(count), flags: flag::INDIRECT, next: 0 });
            };
            if s.terms.vhost && which != Which::Control {
                does_no_harm(s, which, build)?;
            } else {
                breaks(s, which, "a table longer than the ring", build)?;
            }
        }
    }
    Ok(())
}

/// Sets up queue `which` with these addresses, the others soundly, and goes as far as that lets it.
fn with_ring_at(s: &Subject, which: Which, [desc, avail, used]: [u64; 3]) -> Check {
    let d = &s.device;
    let features = d.negotiate(F_CTRL_VQ)?;
    for other in Which::ALL {
        let queue = match other {
            Which::Receive => RX,
            Which::Transmit => TX,
            Which::Control => control_queue(d, features),
        };
        if other != which {
            d.enable_queue(queue, SIZE)?;
            continue;
        }
        d.set16(common::QUEUE_SELECT, queue);
        d.set16(common::QUEUE_SIZE, SIZE);
        d.set64(common::QUEUE_DESC, desc);
        d.set64(common::QUEUE_DRIVER, avail);
        d.set64(common::QUEUE_DEVICE, used);
        d.set16(common::QUEUE_ENABLE, 1);
        require!(!s.terms.strict || d.get16(common::QUEUE_ENABLE) == 0, "enabled at {desc:#x} {avail:#x} {used:#x}");
    }
    d.set_status(LIVE);
    // Without one of the first pair's queues there is no card; it can do without the control queue.
    let expected = if which == Which::Control { LIVE } else { LIVE | status::NEEDS_RESET };
    require!(!s.terms.strict || d.status() == expected, "status {:#x}", d.status());
    for queue in 0..4 {
        cpu::write16(d.doorbell(queue), queue);
    }
    comes_back(s)
}

fn rings_in_holes(s: &Subject) -> Check {
    need_strict(s)?;
    for which in Which::ALL {
        for bad in [NOWHERE, HOLES[0], HOLES[1], !0xfff] {
            let good = arena::take(8192, 4096);
            with_ring_at(s, which, [bad, good, good + 4096])?;
            with_ring_at(s, which, [good, bad, good + 4096])?;
            with_ring_at(s, which, [good, good + 4096, bad])?;
        }
    }
    Ok(())
}

fn no_addresses(s: &Subject) -> Check {
    need_strict(s)?;
    for which in Which::ALL {
        with_ring_at(s, which, [0; 3])?;
    }
    Ok(())
}

fn shared_rings(s: &Subject) -> Check {
    let d = &s.device;
    d.negotiate(F_MRG_RXBUF)?;
    let mut rx = d.enable_queue(RX, SIZE)?;
    d.enable_ring(&Ring::new(TX, SIZE, 0).on(&rx));
    d.set_status(LIVE);
    let buffer = arena::take(4096, 4096);
    for round in 0..64_u16 {
        let flags = if round % 2 == 0 { flag::WRITE } else { 0 };
        rx.describe(round % SIZE, Desc { address: buffer, len: 2048, flags, next: 0 });
        rx.publish(round % SIZE);
        rx.kick();
        cpu::write16(d.doorbell(TX), TX);
    }
    comes_back(s)
}

fn overlapping_buffers(s: &Subject) -> Check {
    need_echo(s)?;
    let mut victim = Victim::start(&s.device, F_MRG_RXBUF)?;
    let buffer = arena::take(4096, 4096);
    for idx in 0..SIZE {
        victim.rx.describe(idx, Desc { address: buffer + u64::from(idx), len: 512, flags: flag::WRITE, next: 0 });
        victim.rx.publish(idx);
    }
    victim.rx.kick();
    let frame = arena::take(NET_HEADER + 1514, 64);
    broadcast(frame);
    victim.tx.chain(&[(frame, 12 + 1514, 0)]);
    victim.tx.publish(0);
    victim.tx.kick();
    require!(matches!(reaction(&s.device, &mut victim.rx)?, Reaction::Returned(_)), "a frame over itself");
    require!(s.device.status() == LIVE, "status {:#x}", s.device.status());
    comes_back(s)
}

/// Writes the beginning of a frame that the peer sends back.
fn broadcast(frame: u64) {
    arena::fill(frame + NET_HEADER, 6, 0xff);
    cpu::write8(frame + NET_HEADER + 6, 2);
    cpu::write16(frame + NET_HEADER + 12, u16::from_le_bytes(super::live::ETHERTYPE));
}

fn frames_over_rings(s: &Subject) -> Check {
    for over in 0..6_u8 {
        let mut victim = Victim::start(&s.device, F_MRG_RXBUF)?;
        let rings = [&victim.rx, &victim.tx].map(|r| [r.desc, r.avail, r.used]);
        let address = rings.as_flattened()[usize::from(over)];
        for idx in 0..SIZE {
            victim.rx.describe(idx, Desc { address, len: 2048, flags: flag::WRITE, next: 0 });
            victim.rx.publish(idx);
        }
        victim.rx.kick();
        let frame = arena::take(NET_HEADER + 1514, 64);
        broadcast(frame);
        arena::fill(frame + NET_HEADER + 14, 1500, over.wrapping_mul(37).wrapping_add(1));
        victim.tx.chain(&[(frame, 12 + 1514, 0)]);
        for _ in 0..SIZE {
            victim.tx.publish(0);
            victim.tx.kick();
        }
        cpu::wait(cpu::SECOND_TICKS / 50, || s.device.status() & status::NEEDS_RESET != 0);
        comes_back(s)?;
    }
    Ok(())
}

fn reset_while_sending(s: &Subject) -> Check {
    for round in 0..BURSTS {
        arena::reset();
        let mut card = Card::start(&s.device, 0, 2048, 4)?;
        card.write_frame(60, 3);
        // Local experimental EtherType 2: no host answers.
        cpu::write16(card.tx_buffer + NET_HEADER + 12, 0x88b6_u16.to_be());
        for idx in 0..card.tx.size {
            card.tx.describe(idx, Desc { address: card.tx_buffer, len: 72, flags: 0, next: 0 });
            card.tx.publish(idx);
        }
        card.tx.kick();
        cpu::wait(u64::from(round) * 1000, || false);
        s.device.reset()?;
        let sent = cpu::read16(card.tx.used + 2);
        require!(sent <= card.tx.size, "round {round}: {sent} frames returned");
        // What is reset touches memory no more.
        cpu::write16(card.tx.used + 2, 0x5aa5);
        cpu::wait(10_000, || false);
        require!(cpu::read16(card.tx.used + 2) == 0x5aa5, "round {round}: used ring written after the reset");
    }
    comes_back(s)
}

fn reset_while_receiving(s: &Subject) -> Check {
    need_echo(s)?;
    for round in 0..BURSTS {
        arena::reset();
        let mut card = Card::start(&s.device, F_MRG_RXBUF, 256, 32)?;
        card.write_frame(1000, 3);
        for idx in 0..card.tx.size {
            card.tx.describe(idx, Desc { address: card.tx_buffer, len: 1012, flags: 0, next: 0 });
            card.tx.publish(idx);
        }
        card.tx.kick();
        if round % 2 == 0 {
            cpu::wait(cpu::SECOND_TICKS / 100, || cpu::read16(card.rx.used + 2) != 0);
        }
        s.device.reset()?;
        cpu::write16(card.rx.used + 2, 0x5aa5);
        cpu::wait(10_000, || false);
        require!(cpu::read16(card.rx.used + 2) == 0x5aa5, "round {round}: used ring written after the reset");
    }
    drain(s)?;
    comes_back(s)
}

/// Receives late answers until there are no more.
fn drain(s: &Subject) -> Check {
    arena::reset();
    let mut card = Card::start(&s.device, F_MRG_RXBUF, 2048, 32)?;
    while let Some(used) = card.rx.wait_used(cpu::SECOND_TICKS / 4) {
        let Ok(idx) = u16::try_from(used.id) else { fail!("used id {:#x}", used.id) };
        card.post(idx);
        card.rx.kick();
    }
    Ok(())
}

/// Writes of every width in and around all notification addresses.
fn ring_everything(d: &Device) {
    let notify = d.notify.address;
    for queue in 0..8_u64 {
        let at = notify + queue * u64::from(d.notify_multiplier);
        for value in [0, 1, 0xff, 0x5555_5555_5555_5555, u64::MAX] {
            let [b0, b1, b2, b3, ..] = value.to_le_bytes();
            cpu::write8(at, b0);
            cpu::write16(at, u16::from_le_bytes([b0, b1]));
            cpu::write32(at, u32::from_le_bytes([b0, b1, b2, b3]));
            cpu::write64(at, value);
            for offset in 1..4 {
                cpu::write8(at + offset, b0);
            }
        }
    }
    for at in [notify + d.notify.len - 4, notify + d.notify.len - 1] {
        cpu::write8(at, 0xff);
    }
}

fn doorbells(s: &Subject) -> Check {
    let d = &s.device;
    let mut card = Card::start(d, F_MRG_RXBUF, 2048, 16)?;
    for _ in 0..8 {
        ring_everything(d);
        sends_and_receives(s, &mut card)?;
    }
    require!(d.status() == LIVE, "status {:#x}", d.status());
    comes_back(s)
}

fn early_doorbells(s: &Subject) -> Check {
    let d = &s.device;
    ring_everything(d);
    d.negotiate(F_MRG_RXBUF)?;
    ring_everything(d);
    let (mut rx, mut tx) = (d.enable_queue(RX, SIZE)?, d.enable_queue(TX, SIZE)?);
    let buffer = arena::take(4096, 4096);
    rx.chain(&[(buffer, 2048, flag::WRITE)]);
    tx.chain(&[(buffer, 72, 0)]);
    for ring in [&mut rx, &mut tx] {
        ring.publish(0);
        ring.kick();
    }
    ring_everything(d);
    cpu::wait(cpu::SECOND_TICKS / 100, || false);
    require!(d.status() == FEATURES_SET, "status {:#x}", d.status());
    require!([&rx, &tx].iter().all(|ring| cpu::read16(ring.used + 2) == 0), "served before DRIVER_OK");
    d.go_live()?;
    require!(tx.wait_used(cpu::PATIENCE_TICKS).is_some(), "what was there before DRIVER_OK is not served");
    comes_back(s)
}
