//! The card under full load, with the probe as a polling driver: `probe=bench`.
//!
//! Words of the command line: `dir=tx|rx|pong|idle`; `size=BYTES` of a frame without its check sequence; `mss=BYTES`,
//! which makes every sent frame a TCP super-frame of such segments; `partial=1`, which leaves the checksum of datagrams
//! to the device; `pairs=N`; `buffer=BYTES` of a receive buffer; `warm=TICKS` before and `ticks=TICKS` during which is
//! counted; `depth=FRAMES` and `drains=N` for receiving; `halt=1`, with which `pong` halts until the answer.
//!
//! Otherwise interrupts are off, and the one processor serves all pairs in turns. Every ring is kept full; a doorbell
//! is rung only where the device asks for it. Sending is counted by time, between the lines `bench begin` and
//! `bench tx`.
//!
//! Receiving is counted by drains, so that whoever sends takes no processor meanwhile: after `bench fill` the card gets
//! no buffer back, and the host queues `depth` frames before it and then sends a byte through the serial port. From
//! there to the last frame the time runs; what had found buffers before is not counted. The line is `bench rx`.
//!
//! With `idle` the card is started and has all its receive buffers. The VM does not end by itself: after its last line,
//! and with `idle` at once, the processor sleeps.

mod card;
mod frame;
mod latency;
mod queue;

use crate::pci;
use crate::report::{self, Check, Exit, Serial};
use crate::start_info::StartInfo;
use crate::virtio::{Device, Kind};
use crate::{acpi, cpu, fail, interrupts, line};
use card::Card;

/// The measurement, from the command line.
#[derive(Clone, Copy)]
pub(crate) struct Terms {
    /// Bytes of a frame.
    pub(crate) size: u32,
    /// Bytes of a TCP segment, 0 for single frames.
    pub(crate) mss: u16,
    /// True if the checksum of datagrams is left to the device.
    pub(crate) partial: bool,
    /// Queue pairs.
    pub(crate) pairs: u16,
    /// Bytes of a receive buffer.
    pub(crate) buffer: u32,
    warm: u64,
    ticks: u64,
    depth: u64,
    drains: u64,
}

/// A drain during which nothing arrives for this long is over: the rest was lost.
const QUIET_TICKS: u64 = cpu::SECOND_TICKS / 4;
/// The host is asked this often whether it is done, because asking makes the VMM work.
const ASK_TICKS: u64 = cpu::SECOND_TICKS / 500;

/// Runs the benchmark and sleeps.
pub(crate) fn run(start: &StartInfo) -> ! {
    match measure(start) {
        Ok(()) => interrupts::sleep(),
        Err(outcome) => {
            line!("not ok bench: {}", outcome.reason());
            report::exit(Exit::Failed)
        }
    }
}

fn measure(start: &StartInfo) -> Check {
    let number = |key, default| start.value(key).and_then(|text| text.parse::<u64>().ok()).unwrap_or(default);
    let terms = Terms {
        size: u32::try_from(number("size", 60)).unwrap_or(u32::MAX),
        mss: u16::try_from(number("mss", 0)).unwrap_or(u16::MAX),
        partial: number("partial", 0) == 1,
        pairs: u16::try_from(number("pairs", 1)).unwrap_or(u16::MAX),
        buffer: u32::try_from(number("buffer", 2048)).unwrap_or(u32::MAX),
        warm: number("warm", cpu::SECOND_TICKS / 4),
        ticks: number("ticks", cpu::SECOND_TICKS),
        depth: number("depth", 1024),
        drains: number("drains", 1),
    };
    let ecam = acpi::ecam(start.rsdp);
    let Some(device) = pci::enumerate(ecam).filter_map(Device::probe).find(|device| device.kind == Kind::Net) else {
        fail!("there is no card")
    };
    let mut card = Card::start(&device, &terms)?;
    line!("bench ready tsc={}", cpu::ticks());
    match start.value("dir") {
        Some("tx") => send(&mut card, &terms),
        Some("rx") => (0..terms.drains).for_each(|_| drain(&mut card, &terms)),
        Some("pong") => {
            let halts = number("halt", 0) == 1;
            if halts {
                latency::prepare_to_halt(&device)?;
            }
            latency::run(&mut card, halts, terms.warm, terms.ticks)?
        }
        Some("idle") => {}
        other => fail!("dir={other:?}"),
    }
    Ok(())
}

/// Sends until the time is over and prints how much.
fn send(card: &mut Card, terms: &Terms) {
    card.fill_transmit_rings();
    let until = |card: &mut Card, ticks: u64| {
        let (begin, mut frames) = (cpu::ticks(), 0);
        loop {
            let more = card.send_more();
            frames += more;
            let elapsed = cpu::ticks().wrapping_sub(begin);
            if elapsed >= ticks {
                return (frames, elapsed);
            }
            if more == 0 {
                core::hint::spin_loop();
            }
        }
    };
    let (warm, _) = until(card, terms.warm);
    line!("bench begin");
    let doorbells = card.doorbells();
    let (frames, ticks) = until(card, terms.ticks);
    let (doorbells, total) = (card.doorbells() - doorbells, warm + frames);
    line!("bench tx frames={frames} ticks={ticks} doorbells={doorbells} total={total}");
}

/// Lets the host queue frames, takes them, and prints how many and how long that took.
fn drain(card: &mut Card, terms: &Terms) {
    card.receive_more();
    line!("bench fill");
    while Serial.read().is_none() {
        cpu::wait(ASK_TICKS, || false);
    }
    let doorbells = card.doorbells();
    let (begin, early) = (cpu::ticks(), card.receive_more());
    let (mut last, mut frames) = (begin, 0);
    while early + frames < terms.depth {
        let more = card.receive_more();
        frames += more;
        let now = cpu::ticks();
        if more > 0 {
            last = now;
        } else if now.wrapping_sub(last) > QUIET_TICKS {
            break;
        } else {
            core::hint::spin_loop();
        }
    }
    let (ticks, doorbells) = (last.wrapping_sub(begin), card.doorbells() - doorbells);
    line!("bench rx frames={frames} ticks={ticks} doorbells={doorbells} early={early}");
}
