//! Frames that are under way.

use super::Impairment;
use super::splitmix::SplitMix64;
use crate::virtio::net::budget::{Budget, Held};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The capacity of a line: as many frames as a tap's queue (its `txqueuelen`), and no more memory than a small guest.
const FRAMES_MAX: usize = 1000;
const BYTES_MAX: usize = 16 << 20;

/// One direction of one queue, in order.
#[derive(Debug)]
pub(super) struct Line {
    random: SplitMix64,
    delay: Duration,
    jitter: Duration,
    loss_ppm: u32,
    waiting: VecDeque<(Instant, Held)>,
    bytes: usize,
    budget: Budget,
}

impl Line {
    /// An empty line, on account of `budget`.
    pub(super) fn new(random: SplitMix64, impairment: &Impairment, budget: Budget) -> Self {
        let Impairment { delay, jitter, loss_ppm, .. } = *impairment;
        Self { random, delay, jitter, loss_ppm, waiting: VecDeque::new(), bytes: 0, budget }
    }

    /// Returns whether frames pass at once or not at all.
    pub(super) fn is_straight(&self) -> bool {
        self.delay.is_zero() && self.jitter.is_zero()
    }

    /// Returns whether there is no room for another frame.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= FRAMES_MAX || self.bytes >= BYTES_MAX
    }

    /// The delay of the next frame, or `None` if it is lost.
    pub(super) fn next_delay(&mut self) -> Option<Duration> {
        self.random.next_delay(self.loss_ppm, self.delay, self.jitter)
    }

    /// The same, but the next frame is still to come.
    pub(super) fn fate_ahead(&self) -> Option<Duration> {
        self.random.clone().next_delay(self.loss_ppm, self.delay, self.jitter)
    }

    /// Lets a frame in that is late by `delay`. It leaves after those before it. Returns whether the budget has room
    /// for it.
    pub(super) fn push(&mut self, frame: Vec<u8>, delay: Duration, now: Instant) -> bool {
        let Some(share) = self.budget.take(frame.len()) else { return false };
        let last = self.waiting.back().map(|(due, _)| *due);
        let due = (now + delay).max(last.unwrap_or(now));
        self.bytes += frame.len();
        self.waiting.push_back((due, Held::new(frame, share)));
        true
    }

    /// When the next frame leaves.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.front().map(|(due, _)| *due)
    }

    /// The next frame, if it is due.
    pub(super) fn due(&self, now: Instant) -> Option<&[u8]> {
        self.waiting.front().filter(|(due, _)| *due <= now).map(|(_, frame)| frame.bytes())
    }

    /// The next frame has left.
    pub(super) fn pop(&mut self) {
        if let Some((_, frame)) = self.waiting.pop_front() {
            self.bytes -= frame.bytes().len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(delay: Duration, jitter: Duration, budget: &Budget) -> Line {
        let impairment = Impairment { delay, jitter, ..Impairment::default() };
        Line::new(SplitMix64::new(1, 0), &impairment, budget.clone())
    }

    #[test]
    fn frames_leave_in_order_when_they_are_due() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        let mut line = line(ms(10), ms(9), &Budget::default());
        line.push(vec![1; 60], ms(19), now);
        line.push(vec![2; 60], ms(1), now);
        assert_eq!(line.next_due(), Some(now + ms(19)));
        assert_eq!(line.due(now + ms(18)), None);
        assert_eq!(line.due(now + ms(19)), Some(&[1; 60][..]));
        line.pop();
        assert_eq!(line.due(now + ms(19)), Some(&[2; 60][..]));
        line.pop();
        assert_eq!((line.next_due(), line.bytes), (None, 0));
    }

    #[test]
    fn line_is_full_of_frames_or_of_bytes() {
        let now = Instant::now();
        for (len, most) in [(60, FRAMES_MAX), (65_536, BYTES_MAX / 65_536)] {
            let mut line = line(Duration::from_secs(1), Duration::ZERO, &Budget::default());
            for _ in 0..most {
                assert!(!line.is_full());
                line.push(vec![0; len], Duration::ZERO, now);
            }
            assert!(line.is_full());
        }
    }

    #[test]
    fn lines_of_a_vm_hold_no_more_than_its_budget() {
        let (now, budget) = (Instant::now(), Budget::new(10 * 2000));
        let mut lines: Vec<_> = (0..64).map(|_| line(Duration::from_secs(1), Duration::ZERO, &budget)).collect();
        let mut push =
            || lines.iter_mut().filter_map(|line| line.push(vec![0; 1900], Duration::ZERO, now).then_some(())).count();
        assert_eq!(push(), 10);
        assert_eq!(push(), 0);
        lines[0].pop();
        assert!(lines[63].push(vec![0; 1900], Duration::ZERO, now));
    }
}
