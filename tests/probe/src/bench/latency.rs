//! Ping-pong: one frame at a time to a peer that sends it back. The processor looks for the answer all the time, or
//! halts until its interrupt.
//!
//! The peer writes the time stamp counter of the host into the frame. Where guest and host share one counter, that
//! splits the way into out and back; elsewhere these two are of no use, which the host knows from the stamp of the
//! `ready` line.

use super::card::Card;
use super::frame::{HEADER, PAYLOAD, PEER_MAC};
use crate::report::Check;
use crate::virtio::Device;
use crate::virtio::msix::Control;
use crate::{arena, cpu, interrupts, line, require, skip};

/// Samples kept; a run that has more keeps the last ones.
const SAMPLES: u64 = 1 << 16;
/// After this a frame counts as lost.
const LOST_TICKS: u64 = cpu::SECOND_TICKS / 2;
const LOST_MAX: u64 = 10;
const STAMP: u64 = PAYLOAD + 8;

/// Has the card interrupt the processor that halts for a frame.
pub(super) fn prepare_to_halt(device: &Device) -> Check {
    let Some(msix) = device.msix else { skip!("no MSI-X") };
    msix.control(Control::On);
    msix.route(0, 0);
    require!(device.set_queue_vector(0, 0) == 0, "the receive queue gets no vector");
    interrupts::prepare_to_halt();
    Ok(())
}

/// Sends frames for `warm` and then for `ticks` ticks, and prints the times of the latter. With `halts`, a frame that
/// is lost is waited for for ever.
pub(super) fn run(card: &mut Card, halts: bool, warm: u64, ticks: u64) -> Check {
    let pair = card.first()?;
    let frame = pair.frame + HEADER;
    for (at, byte) in (frame..).zip(PEER_MAC) {
        cpu::write8(at, byte);
    }
    let samples = Samples { at: arena::take(3 * 4 * SAMPLES, 64) };
    let (begin, mut number, mut count, mut lost, mut warming) = (cpu::ticks(), 0, 0, 0, true);
    loop {
        let sent = cpu::ticks();
        if warming && sent.wrapping_sub(begin) > warm {
            line!("bench begin");
            warming = false;
            continue;
        }
        if sent.wrapping_sub(begin) > warm + ticks {
            break;
        }
        number += 1;
        cpu::write64(frame + PAYLOAD, number);
        pair.tx.offer(0);
        pair.tx.show();
        let mut stamp = None;
        cpu::wait(LOST_TICKS, || {
            if halts {
                pair.halt();
            }
            pair.receive(|buffer| {
                let answer = buffer + HEADER;
                if cpu::read64(answer + PAYLOAD) == number {
                    stamp = Some(cpu::read64(answer + STAMP));
                }
            });
            stamp.is_some()
        });
        let back = cpu::ticks();
        let mut returned = false;
        cpu::wait(LOST_TICKS, || {
            pair.tx.take(|_, _| returned = true);
            returned
        });
        require!(returned, "frame {number} is not returned");
        match stamp {
            None => lost += 1,
            Some(_) if warming => {}
            Some(stamp) => {
                samples.keep(count, [back.wrapping_sub(sent), stamp.wrapping_sub(sent), back.wrapping_sub(stamp)]);
                count += 1;
            }
        }
        require!(lost <= LOST_MAX, "{lost} frames do not come back");
    }
    let kept = count.min(SAMPLES);
    require!(kept > 0, "no frame has come back");
    let [trip, out, back] = [0, 1, 2].map(|column| samples.quantiles(column, kept));
    line!(
        "bench pong count={count} lost={lost} trip50={} trip99={} out50={} out99={} back50={} back99={}",
        trip[0],
        trip[1],
        out[0],
        out[1],
        back[0],
        back[1]
    );
    Ok(())
}

/// Three columns of times in ticks.
struct Samples {
    at: u64,
}

impl Samples {
    fn keep(&self, idx: u64, times: [u64; 3]) {
        for (column, time) in (0..).zip(times) {
            let slot = self.at + 4 * (column * SAMPLES + idx % SAMPLES);
            cpu::write32(slot, u32::try_from(time).unwrap_or(u32::MAX));
        }
    }

    /// Median and 99th percentile of the first `kept` times of a column.
    fn quantiles(&self, column: u64, kept: u64) -> [u32; 2] {
        let at = self.at + 4 * column * SAMPLES;
        [kept / 2, kept * 99 / 100].map(|rank| smallest(at, kept, rank))
    }
}

/// The value that `rank` of the `len` 32-bit values at `at` are smaller than, found bit by bit.
fn smallest(at: u64, len: u64, rank: u64) -> u32 {
    (0..32).rev().fold(0, |found, bit| {
        let next = found | 1 << bit;
        let below = (0..len).filter(|idx| cpu::read32(at + 4 * idx) < next).count() as u64;
        if below <= rank { next } else { found }
    })
}
