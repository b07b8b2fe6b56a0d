//! Frames that are under way.

use super::dice::Dice;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What a line holds at most: as many frames as a tap's queue (its `txqueuelen`), and no more memory than a small guest.
const FRAMES_MAX: usize = 1000;
const BYTES_MAX: usize = 16 << 20;

/// One direction of one queue, in order.
#[derive(Debug)]
pub(super) struct Line {
    dice: Dice,
    delay: Duration,
    jitter: Duration,
    loss_ppm: u32,
    waiting: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
}

impl Line {
    /// An empty line.
    pub(super) fn new(dice: Dice, delay: Duration, jitter: Duration, loss_ppm: u32) -> Self {
        Self { dice, delay, jitter, loss_ppm, waiting: VecDeque::new(), bytes: 0 }
    }

    /// Whether frames pass at once or not at all.
    pub(super) fn is_straight(&self) -> bool {
        self.delay.is_zero() && self.jitter.is_zero()
    }

    /// Whether there is no room for another frame.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= FRAMES_MAX || self.bytes >= BYTES_MAX
    }

    /// What befalls the next frame: how late it is, or `None` if it is lost.
    pub(super) fn fate(&mut self) -> Option<Duration> {
        self.dice.fate(self.loss_ppm, self.delay, self.jitter)
    }

    /// The same, but the next frame is still to come.
    pub(super) fn fate_ahead(&self) -> Option<Duration> {
        self.dice.clone().fate(self.loss_ppm, self.delay, self.jitter)
    }

    /// Lets a frame in that is late by `delay`. It leaves after those before it.
    pub(super) fn push(&mut self, frame: Vec<u8>, delay: Duration, now: Instant) {
        let last = self.waiting.back().map(|(due, _)| *due);
        let due = (now + delay).max(last.unwrap_or(now));
        self.bytes += frame.len();
        self.waiting.push_back((due, frame));
    }

    /// When the next frame leaves.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.front().map(|(due, _)| *due)
    }

    /// The next frame, if it is due.
    pub(super) fn due(&self, now: Instant) -> Option<&[u8]> {
        self.waiting.front().filter(|(due, _)| *due <= now).map(|(_, frame)| frame.as_slice())
    }

    /// The next frame has left.
    pub(super) fn pop(&mut self) {
        if let Some((_, frame)) = self.waiting.pop_front() {
            self.bytes -= frame.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_leave_in_order_when_they_are_due() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        let mut line = Line::new(Dice::new(1, 0), ms(10), ms(9), 0);
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
            let mut line = Line::new(Dice::new(1, 0), Duration::from_secs(1), Duration::ZERO, 0);
            for _ in 0..most {
                assert!(!line.is_full());
                line.push(vec![0; len], Duration::ZERO, now);
            }
            assert!(line.is_full());
        }
    }
}
