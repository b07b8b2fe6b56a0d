//! Rings that no driver would build (virtio 1.3 2.7): the device has to refuse them, and a reset has to bring it back.
//!
//! On any VMM the VM has to survive and a reset has to help. On strict terms the device also has to answer, by
//! NEEDS_RESET or by returning the chain: doing neither leaves a driver waiting for ever.

use super::live::{Live, queue};
use super::{DeviceCheck, Subject};
use crate::report::Check;
use crate::virtio::ring::{Desc, flag, write_desc};
use crate::virtio::{Device, Kind, common, feature, status};
use crate::{arena, cpu, require, skip};

/// How long an answer is waited for that was not promised.
const COURTESY_TICKS: u64 = cpu::SECOND_TICKS / 4;
/// No machine of a test has RAM here.
const NOWHERE: u64 = 0xf_0000_0000_0000;
/// In the hole below 4 GiB.
const HOLE: u64 = 0xf800_0000;
/// The local APIC, behind which no memory is.
const APIC: u64 = 0xfee0_0000;

/// The checks of this file.
pub(super) const CHECKS: &[(&str, DeviceCheck)] = &[
    ("a descriptor that follows itself", self_loop),
    ("a loop of two descriptors", loop_of_two),
    ("a head past the end of the table", head_past_the_end),
    ("a next past the end of the table", next_past_the_end),
    ("a buffer outside memory", buffer_outside_memory),
    ("a buffer that wraps around the address space", buffer_wraps),
    ("a buffer of 4 GiB", buffer_of_4_gib),
    ("a chain of empty buffers", empty_buffers),
    ("buffers of the wrong direction", wrong_direction),
    ("writable before readable", writable_first),
    ("an available index far ahead", index_jumps),
    ("an available index one ring and one ahead", index_overruns),
    ("rings outside memory", rings_outside_memory),
    ("rings at addresses that are not aligned", rings_unaligned),
    ("an indirect descriptor without the feature", indirect_unnegotiated),
    ("indirect tables of every wrong shape", indirect_shapes),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reaction {
    Returned,
    NeedsReset,
    Nothing,
}

/// Waits for the device to refuse what was just published.
fn reaction(s: &Subject, live: &mut Live) -> Reaction {
    let d = &s.device;
    let limit = if s.terms.strict { cpu::PATIENCE_TICKS } else { COURTESY_TICKS };
    let mut reaction = Reaction::Nothing;
    cpu::wait(limit, || {
        if live.ring.take_used().is_some() {
            reaction = Reaction::Returned;
        } else if d.status() & status::NEEDS_RESET != 0 {
            reaction = Reaction::NeedsReset;
        }
        reaction != Reaction::Nothing
    });
    reaction
}

/// The device answers registers, resets and works.
fn comes_back(d: &Device) -> Check {
    require!(d.offered() & feature::VERSION_1 != 0, "registers are gone");
    d.reset()?;
    arena::reset();
    Live::start(d)?.round_trip()
}

/// Publishes the chain at `head` that `build` wrote and expects a refusal.
fn refused(s: &Subject, head: u16, build: impl FnOnce(&Live)) -> Check {
    let d = &s.device;
    let mut live = Live::start(d)?;
    build(&live);
    live.ring.publish(head);
    live.ring.kick();
    let reaction = reaction(s, &mut live);
    comes_back(d)?;
    require!(reaction != Reaction::Nothing || !s.terms.strict, "neither returned nor NEEDS_RESET");
    Ok(())
}

fn buffer() -> u64 {
    arena::take(4096, 4096)
}

/// The direction of a valid first buffer of a request.
fn first_flags(s: &Subject) -> u16 {
    if s.device.kind == Kind::Entropy { flag::WRITE } else { 0 }
}

fn self_loop(s: &Subject) -> Check {
    let flags = first_flags(s) | flag::NEXT;
    refused(s, 3, |l| l.ring.describe(3, Desc { address: buffer(), len: 16, flags, next: 3 }))
}

fn loop_of_two(s: &Subject) -> Check {
    let flags = first_flags(s) | flag::NEXT;
    refused(s, 0, |l| {
        l.ring.describe(0, Desc { address: buffer(), len: 16, flags, next: 1 });
        l.ring.describe(1, Desc { address: buffer(), len: 16, flags, next: 0 });
    })
}

fn head_past_the_end(s: &Subject) -> Check {
    for head in [16, 17, 0x8000, 0xffff] {
        refused(s, head, |_| {})?;
    }
    Ok(())
}

fn next_past_the_end(s: &Subject) -> Check {
    let flags = first_flags(s) | flag::NEXT;
    for next in [16, 0xffff] {
        refused(s, 0, |l| l.ring.describe(0, Desc { address: buffer(), len: 16, flags, next }))?;
    }
    Ok(())
}

/// One request whose first and last buffer are both at `address`, in the order the device kind expects.
fn at(s: &Subject, address: u64, len: u32) -> Check {
    refused(s, 0, |l| match s.device.kind {
        Kind::Block => l.ring.chain(&[(address, 16, 0), (address, len, flag::WRITE), (address, 1, flag::WRITE)]),
        _ => l.ring.chain(&[(address, len, first_flags(s))]),
    })
}

fn buffer_outside_memory(s: &Subject) -> Check {
    for address in [NOWHERE, HOLE, u64::MAX - 4095] {
        at(s, address, 512)?;
    }
    // Where devices may write to any address, this one is a burst of interrupts.
    if s.terms.strict { at(s, APIC, 512) } else { Ok(()) }
}

fn buffer_wraps(s: &Subject) -> Check {
    for address in [u64::MAX, u64::MAX - 511] {
        at(s, address, 1024)?;
    }
    Ok(())
}

fn buffer_of_4_gib(s: &Subject) -> Check {
    if s.device.kind == Kind::Entropy && !s.terms.strict {
        skip!("a device may fill all the memory that is there, which takes it a while");
    }
    // Starts in memory and ends outside of it.
    at(s, arena::END - 4096, u32::MAX)
}

fn empty_buffers(s: &Subject) -> Check {
    let flags = first_flags(s);
    refused(s, 0, |l| l.ring.chain(&[(arena::START, 0, flags), (arena::START, 0, flags)]))
}

fn wrong_direction(s: &Subject) -> Check {
    let at = arena::START + (4 << 20);
    refused(s, 0, |l| match s.device.kind {
        Kind::Entropy => l.ring.chain(&[(at, 16, 0)]),
        Kind::Block => l.ring.chain(&[(at, 16, flag::WRITE), (at, 512, flag::WRITE), (at, 1, flag::WRITE)]),
        _ => l.ring.chain(&[(at, 72, flag::WRITE)]),
    })?;
    refused(s, 0, |l| l.ring.chain(&[(at, 16, 0), (at, 16, 0), (at, 1, 0)]))
}

fn writable_first(s: &Subject) -> Check {
    let at = arena::START + (4 << 20);
    refused(s, 0, |l| l.ring.chain(&[(at, 16, flag::WRITE), (at, 72, 0), (at, 1, flag::WRITE)]))
}

fn index_jumps(s: &Subject) -> Check {
    for distance in [0x7fff, 0xfff0] {
        jump(s, distance)?;
    }
    Ok(())
}

fn index_overruns(s: &Subject) -> Check {
    jump(s, 17)
}

fn jump(s: &Subject, distance: u16) -> Check {
    let d = &s.device;
    let mut live = Live::start(d)?;
    live.ring.jump(distance);
    live.ring.kick();
    let reaction = reaction(s, &mut live);
    comes_back(d)?;
    // Returning chain 0 for each of the entries would be an answer as well, but an index that far cannot be served.
    require!(
        reaction == Reaction::NeedsReset || !s.terms.strict,
        "no NEEDS_RESET for an index {distance} ahead of a ring of 16"
    );
    Ok(())
}

fn rings_at(s: &Subject, desc: u64, avail: u64, used: u64) -> Check {
    let d = &s.device;
    d.negotiate(0)?;
    d.set16(common::QUEUE_SELECT, queue(d.kind));
    let doorbell = d.doorbell(queue(d.kind));
    d.set16(common::QUEUE_SIZE, 16);
    d.set64(common::QUEUE_DESC, desc);
    d.set64(common::QUEUE_DRIVER, avail);
    d.set64(common::QUEUE_DEVICE, used);
    d.set16(common::QUEUE_ENABLE, 1);
    d.set_status(crate::virtio::LIVE);
    cpu::write16(doorbell, queue(d.kind));
    cpu::wait(COURTESY_TICKS / 25, || d.status() & status::NEEDS_RESET != 0);
    comes_back(d)
}

fn rings_outside_memory(s: &Subject) -> Check {
    let last = if s.terms.strict { APIC } else { HOLE };
    for bad in [NOWHERE, HOLE, !0xfff, last] {
        let good = arena::take(4096, 4096);
        rings_at(s, bad, good, good + 2048)?;
        rings_at(s, good, bad, good + 2048)?;
        rings_at(s, good, good + 2048, bad)?;
        rings_at(s, bad, bad, bad)?;
    }
    Ok(())
}

fn rings_unaligned(s: &Subject) -> Check {
    let good = arena::take(8192, 4096);
    for odd in [1, 2, 3, 7] {
        rings_at(s, good + odd, good + 2048, good + 4096)?;
        rings_at(s, good, good + 2048 + (odd | 1), good + 4096)?;
        rings_at(s, good, good + 2048, good + 4096 + odd)?;
    }
    Ok(())
}

fn indirect_unnegotiated(s: &Subject) -> Check {
    if !s.terms.strict {
        skip!("the specification binds only the driver");
    }
    refused(s, 0, |l| {
        let table = buffer();
        write_desc(table, Desc { address: buffer(), len: 16, flags: first_flags(s), next: 0 });
        l.ring.describe(0, Desc { address: table, len: 16, flags: flag::INDIRECT, next: 0 });
    })
}

fn indirect_shapes(s: &Subject) -> Check {
    let d = &s.device;
    if d.offered() & feature::INDIRECT_DESC == 0 {
        skip!("indirect descriptors are not offered");
    }
    let inner = Desc { address: arena::START + (4 << 20), len: 16, flags: first_flags(s), next: 0 };
    let nested = Desc { flags: flag::INDIRECT, ..inner };
    let looped = Desc { flags: inner.flags | flag::NEXT, ..inner };
    let past = Desc { flags: inner.flags | flag::NEXT, next: 9, ..inner };
    for (table, len, flags, first) in [
        (None, 0, flag::INDIRECT, inner),
        (None, 15, flag::INDIRECT, inner),
        (None, 17, flag::INDIRECT, inner),
        (None, 0xffff_fff0, flag::INDIRECT, looped),
        (None, 16, flag::INDIRECT | flag::NEXT, looped),
        (None, 16, flag::INDIRECT, nested),
        (None, 16, flag::INDIRECT, looped),
        (None, 32, flag::INDIRECT, past),
        (Some(NOWHERE), 32, flag::INDIRECT, inner),
        (Some(HOLE), 32, flag::INDIRECT, inner),
        (Some(u64::MAX - 7), 32, flag::INDIRECT, inner),
    ] {
        let mut live = Live::start_with(d, feature::INDIRECT_DESC, |_| Ok(()))?;
        let good = buffer();
        write_desc(good, first);
        let address = table.unwrap_or(good);
        live.ring.describe(0, Desc { address, len, flags, next: 0 });
        live.ring.publish(0);
        live.ring.kick();
        let reaction = reaction(s, &mut live);
        comes_back(d)?;
        require!(
            reaction != Reaction::Nothing || !s.terms.strict,
            "table of {len} bytes at {address:#x}, flags {flags}: no answer"
        );
    }
    Ok(())
}
