//! virtio-rng (virtio 1.3 5.4).

use super::{DeviceCheck, Subject};
use crate::report::Check;
use crate::virtio::ring::flag;
use crate::{arena, cpu, fail, require};

const BYTES: u32 = 256;

/// The checks of this file.
pub(super) const CHECKS: &[(&str, DeviceCheck)] = &[
    ("it has one queue", one_queue),
    ("a buffer is filled with bytes that vary", buffer_is_filled),
    ("a chain of buffers is filled from the front", chain_is_filled),
];

fn one_queue(s: &Subject) -> Check {
    let queues = s.device.get16(crate::virtio::common::NUM_QUEUES);
    require!(queues == 1, "{queues} queues");
    Ok(())
}

fn buffer_is_filled(s: &Subject) -> Check {
    let mut ring = s.device.start(0, 0, 8)?;
    let mut sums = [0u64; 2];
    for sum in &mut sums {
        let buffer = arena::take(BYTES.into(), 16);
        ring.chain(&[(buffer, BYTES, flag::WRITE)]);
        ring.publish(0);
        ring.kick();
        let Some(used) = ring.wait_used(cpu::PATIENCE_TICKS) else { fail!("the buffer is not returned") };
        require!((1..=BYTES).contains(&used.len), "used length {}", used.len);
        let end = buffer + u64::from(used.len);
        let distinct = (buffer + 1..end).filter(|&at| cpu::read8(at) != cpu::read8(buffer)).count();
        require!(used.len < 16 || distinct > 0, "{} equal bytes", used.len);
        require!(
            (end..buffer + u64::from(BYTES)).all(|at| cpu::read8(at) == 0),
            "bytes behind the used length were written"
        );
        *sum = (buffer..end).fold(0, |sum, at| sum.rotate_left(7) ^ u64::from(cpu::read8(at)));
    }
    require!(sums[0] != sums[1], "two buffers are alike");
    Ok(())
}

fn chain_is_filled(s: &Subject) -> Check {
    let mut ring = s.device.start(0, 0, 8)?;
    let buffers = [arena::take(16, 16), arena::take(16, 16), arena::take(16, 16)];
    ring.chain(&buffers.map(|b| (b, 16, flag::WRITE)));
    ring.publish(0);
    ring.kick();
    let Some(used) = ring.wait_used(cpu::PATIENCE_TICKS) else { fail!("the chain is not returned") };
    require!((1..=48).contains(&used.len), "used length {}", used.len);
    let first = (0..16).any(|i| cpu::read8(buffers[0] + i) != 0);
    require!(used.len < 16 || first, "the first buffer is empty with used length {}", used.len);
    Ok(())
}
