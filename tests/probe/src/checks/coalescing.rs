//! Held-back interrupts (virtio 1.3 5.1.6.5.7), and the control commands that set them or take locks of the host.

use super::net::{Card, RX, TX};
use super::{DeviceCheck, Subject, messages_for};
use crate::report::Check;
use crate::virtio::msix::Control;
use crate::virtio::ring::{Ring, flag};
use crate::virtio::{Device, LIVE, feature};
use crate::{arena, cpu, fail, require, skip};

const F_GUEST_CSUM: u64 = 1 << 1;
const F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
const F_CTRL_VQ: u64 = 1 << 17;
const F_VQ_NOTF_COAL: u64 = 1 << 52;
const F_NOTF_COAL: u64 = 1 << 53;
/// The control queue where MQ was not negotiated (5.1.2).
const CONTROL: u16 = 2;
const COMMAND_MAX: u64 = 16;
const OK: u8 = 0;
const ERR: u8 = 1;

const TX_SET: u8 = 0;
const RX_SET: u8 = 1;
const VQ_SET: u8 = 2;
const VQ_GET: u8 = 3;
/// The longest wait that minivmm grants, in microseconds.
const LONGEST: u32 = 1_000_000;
/// Commands that change something each time: more than a driver gives, and than the host is asked to do at once.
const CHANGES: u32 = 200;

/// The checks of this file.
pub(super) const CHECKS: &[(&str, DeviceCheck)] = &[
    ("coalescing parameters read back, by queue and for all", parameters),
    ("coalescing parameters of other queues and beyond reason are refused", refused),
    ("coalescing parameters after a reset of the queue and of the device", after_reset),
    ("frames are announced together", together),
    ("a frame is announced in time", in_time),
    ("what is suppressed is not announced, however long it waits", suppressed),
    ("commands that lock the host do not hold frames up", locks),
];

/// A card with a control queue.
struct Commanded {
    card: Card,
    control: Ring,
    buffer: u64,
}

impl Commanded {
    fn start(s: &Subject, wanted: u64) -> Check<Self> {
        if s.device.offered() & wanted != wanted {
            skip!("features {wanted:#x} are not offered");
        }
        let mut control = None;
        let card = Card::start_with(&s.device, wanted | F_CTRL_VQ, 2048, 16, |d| {
            control = Some(d.enable_queue(CONTROL, 16)?);
            if let Some(msix) = d.msix {
                msix.route(0, 0);
                msix.control(Control::On);
                require!(d.set_queue_vector(TX, 0) == 0, "entry 0 is refused");
            }
            Ok(())
        })?;
        let Some(control) = control else { fail!("no control queue") };
        Ok(Self { card, control, buffer: arena::take(64, 64) })
    }

    fn coalescing(s: &Subject) -> Check<Self> {
        Self::start(s, F_NOTF_COAL | F_VQ_NOTF_COAL | feature::RING_RESET)
    }

    /// Gives a command without waiting; its answer is `result` bytes and the acknowledgement.
    fn give(&mut self, command: &[u8], result: u32) {
        for (at, byte) in (self.buffer..).zip(command) {
            cpu::write8(at, *byte);
        }
        let answer = self.buffer + COMMAND_MAX;
        arena::fill(answer, COMMAND_MAX, 0xff);
        let len = u32::try_from(command.len()).unwrap_or(0);
        self.control.chain(&[(self.buffer, len, 0), (answer, result + 1, flag::WRITE)]);
        self.control.publish(0);
        self.control.kick();
    }

    /// Waits for the acknowledgement after `result` bytes.
    fn answer(&mut self, result: u32) -> Check<u8> {
        let Some(used) = self.control.wait_used(cpu::PATIENCE_TICKS) else { fail!("a command is not answered") };
        require!(used.len == result + 1, "used length {} for {result} bytes and an answer", used.len);
        Ok(cpu::read8(self.buffer + COMMAND_MAX + u64::from(result)))
    }

    fn set(&mut self, command: u8, queue: Option<u16>, packets: u32, usecs: u32) -> Check<u8> {
        let mut bytes = [6, command, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut len = 2;
        if let Some(queue) = queue {
            bytes[2..4].copy_from_slice(&queue.to_le_bytes());
            len = 6;
        }
        bytes[len..len + 4].copy_from_slice(&packets.to_le_bytes());
        bytes[len + 4..len + 8].copy_from_slice(&usecs.to_le_bytes());
        self.give(&bytes[..len + 8], 0);
        self.answer(0)
    }

    /// Packets and microseconds of a queue; `None` if the device refuses to tell.
    fn get(&mut self, queue: u16) -> Check<Option<(u32, u32)>> {
        let [low, high] = queue.to_le_bytes();
        self.give(&[6, VQ_GET, low, high, 0, 0], 8);
        let at = self.buffer + COMMAND_MAX;
        Ok((self.answer(8)? == OK).then(|| (cpu::read32(at), cpu::read32(at + 4))))
    }

    fn expect(&mut self, queue: u16, wanted: Option<(u32, u32)>) -> Check {
        let seen = self.get(queue)?;
        require!(seen == wanted, "queue {queue} has {seen:?} instead of {wanted:?}");
        Ok(())
    }

    fn send(&mut self, frames: u32) -> Check {
        for _ in 0..frames {
            self.card.send_frame(60, 1)?;
        }
        Ok(())
    }
}

fn parameters(s: &Subject) -> Check {
    let mut c = Commanded::coalescing(s)?;
    c.expect(RX, Some((0, 0)))?;
    require!(c.set(RX_SET, None, 64, 500)? == OK, "RX_SET is refused");
    require!(c.set(VQ_SET, Some(TX), 8, 70)? == OK, "VQ_SET is refused");
    c.expect(RX, Some((64, 500)))?;
    c.expect(TX, Some((8, 70)))?;
    require!(c.set(TX_SET, None, u32::MAX, 0)? == OK, "TX_SET is refused");
    c.expect(TX, Some((u32::MAX, 0)))?;
    c.expect(RX, Some((64, 500)))
}

fn refused(s: &Subject) -> Check {
    let mut c = Commanded::coalescing(s)?;
    for queue in [CONTROL, CONTROL + 1, CONTROL + 2, 0x7fff, 0xffff] {
        require!(c.set(VQ_SET, Some(queue), 2, 20)? == ERR, "VQ_SET of queue {queue}");
        c.expect(queue, None)?;
    }
    if s.terms.strict {
        for usecs in [LONGEST + 1, u32::MAX] {
            require!(c.set(VQ_SET, Some(RX), 2, usecs)? == ERR, "VQ_SET of {usecs} us");
            require!(c.set(RX_SET, None, 2, usecs)? == ERR, "RX_SET of {usecs} us");
        }
        c.expect(RX, Some((0, 0)))?;
    }
    for len in [2, 3, 9, 10, 11, 13] {
        for command in 0..=4 {
            if (command < 2 && len == 10) || (command == VQ_GET && len == 6) {
                continue;
            }
            let mut bytes = [0; 16];
            bytes[..2].copy_from_slice(&[6, command]);
            c.give(&bytes[..len], 0);
            require!(c.answer(0)? == ERR, "command {command} of {len} bytes");
        }
    }
    Ok(())
}

fn after_reset(s: &Subject) -> Check {
    let mut c = Commanded::coalescing(s)?;
    require!(c.set(TX_SET, None, 9, 90)? == OK, "TX_SET is refused");
    require!(c.set(VQ_SET, Some(TX), 7, 70)? == OK, "VQ_SET is refused");
    require!(c.set(VQ_SET, Some(RX), 7, 70)? == OK, "VQ_SET is refused");
    for queue in [RX, TX] {
        s.device.reset_queue(queue)?;
        c.expect(queue, None)?;
    }
    c.card.rx = s.device.enable_queue(RX, 16)?;
    c.card.tx = s.device.enable_queue(TX, 16)?;
    c.expect(TX, Some((9, 90)))?;
    c.expect(RX, Some((0, 0)))?;
    let mut c = Commanded::coalescing(s)?;
    c.expect(TX, Some((0, 0)))
}

fn need_messages(d: &Device, s: &Subject) -> Check {
    if d.msix.is_none() || !s.terms.strict {
        skip!("a device may interrupt more or less often");
    }
    Ok(())
}

fn together(s: &Subject) -> Check {
    need_messages(&s.device, s)?;
    let mut c = Commanded::coalescing(s)?;
    for frame in 1..=4 {
        let before = messages_for(0);
        c.send(1)?;
        // A message is on its way when the frame has been returned, and two on their way at once become one.
        require!(cpu::wait(cpu::PATIENCE_TICKS, || messages_for(0) == before + 1), "no message for frame {frame}");
    }
    require!(c.set(TX_SET, None, 8, LONGEST)? == OK, "TX_SET is refused");
    let before = messages_for(0);
    c.send(7)?;
    require!(messages_for(0) == before, "{} messages for 7 frames of 8", messages_for(0) - before);
    c.send(1)?;
    require!(cpu::wait(cpu::PATIENCE_TICKS, || messages_for(0) != before), "no message for 8 frames");
    c.send(24)?;
    require!(
        cpu::wait(cpu::PATIENCE_TICKS, || messages_for(0) == before + 4),
        "{} messages for 32 frames",
        messages_for(0) - before
    );
    // What is held back is announced when nothing is to be held back any more.
    c.send(1)?;
    require!(c.set(TX_SET, None, 0, 0)? == OK, "TX_SET is refused");
    require!(cpu::wait(cpu::PATIENCE_TICKS, || messages_for(0) == before + 5), "no message after the end of it");
    Ok(())
}

fn in_time(s: &Subject) -> Check {
    need_messages(&s.device, s)?;
    let mut c = Commanded::coalescing(s)?;
    for usecs in [10, 1000, 50_000] {
        require!(c.set(VQ_SET, Some(TX), u32::MAX, usecs)? == OK, "VQ_SET is refused");
        let before = messages_for(0);
        c.send(2)?;
        require!(cpu::wait(cpu::PATIENCE_TICKS, || messages_for(0) != before), "no message within {usecs} us");
    }
    Ok(())
}

fn suppressed(s: &Subject) -> Check {
    need_messages(&s.device, s)?;
    let mut c = Commanded::coalescing(s)?;
    require!(c.set(VQ_SET, Some(TX), 4, 1000)? == OK, "VQ_SET is refused");
    // VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.6).
    cpu::write16(c.card.tx.avail, 1);
    let before = messages_for(0);
    c.send(10)?;
    cpu::wait(cpu::SECOND_TICKS / 50, || false);
    require!(messages_for(0) == before, "{} messages", messages_for(0) - before);
    Ok(())
}

fn locks(s: &Subject) -> Check {
    let mut c = Commanded::start(s, F_CTRL_GUEST_OFFLOADS | F_GUEST_CSUM)?;
    for round in 0..CHANGES {
        let on = if round % 2 == 0 { 0 } else { 2 };
        c.give(&[5, 0, on, 0, 0, 0, 0, 0, 0, 0], 0);
        c.send(1)?;
        require!(c.answer(0)? == OK, "command {round} is refused");
    }
    require!(s.device.status() == LIVE, "status {:#x}", s.device.status());
    Ok(())
}
