//! Rate limits of two things: looks at a host that changes all the time, and repairs that other programs undo again and
//! again.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, sleep_until};

/// Least pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// The pause after a look, as a multiple of the processor time that the look took: so looks take a hundredth of a
/// processor at most.
const PAUSE_FACTOR: u32 = 100;

/// Repairs that may follow each other without a pause.
const BURST: u32 = 16;

/// Time after which one more repair is allowed.
pub(super) const REFILL: Duration = Duration::from_secs(2);

/// Schedule of the looks at the host.
#[derive(Debug)]
pub(super) struct Pace {
    due: bool,
    next: Instant,
}

impl Pace {
    /// The first look is due after a pause, so that it delays no start.
    pub(super) fn later() -> Self {
        Self { due: true, next: Instant::now() + PAUSE }
    }

    /// Asks for a look: something has happened since the last one.
    pub(super) fn mark(&mut self) {
        self.due = true;
    }

    /// Asks for a look that is not before `at`.
    pub(super) fn mark_for(&mut self, at: Instant) {
        self.due = true;
        self.next = self.next.max(at);
    }

    /// True if a look has been asked for.
    pub(super) fn is_marked(&self) -> bool {
        self.due
    }

    /// Waits until another look is allowed.
    pub(super) async fn rest(&self) {
        sleep_until(self.next).await;
    }

    /// Waits until a look is both requested and allowed; for ever if none is requested.
    pub(super) async fn wait(&self) {
        if !self.due {
            std::future::pending::<()>().await;
        }
        self.rest().await;
    }

    /// Begins a look. Later requests take another one.
    pub(super) fn begin(&mut self) -> Look {
        self.due = false;
        Look::begin()
    }

    /// Ends a look.
    pub(super) fn end(&mut self, look: &Look) {
        self.next = self.next.max(look.next());
    }
}

/// A look, measured in processor time: on a busy host it lasts longer, and must not become rarer for that.
#[derive(Debug)]
pub(super) struct Look {
    start: Duration,
}

impl Look {
    /// Begins a look.
    pub(super) fn begin() -> Self {
        Self { start: processor_time() }
    }

    /// The time of the next look, if this one ends now.
    pub(super) fn next(&self) -> Instant {
        Instant::now() + PAUSE.max(processor_time().saturating_sub(self.start) * PAUSE_FACTOR)
    }
}

/// Processor time of this thread, including the kernel's.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// An allowance of repairs: [`BURST`] at once, one each [`REFILL`] afterwards, and as many as at first after a time
/// without any.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    left: u32,
    /// Time of the last refill.
    filled: Instant,
    /// True from its exhaustion until a quiet time.
    contested: bool,
}

/// The answer of an allowance to a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// Now, with a line in the log.
    Granted,
    /// Now, without one: similar repairs have been logged.
    Quietly,
    /// Not now.
    Later {
        /// The first such answer after a quiet time.
        first: bool,
    },
}

impl Allowance {
    /// A full allowance.
    pub(super) fn full() -> Self {
        Self { left: BURST, filled: Instant::now(), contested: false }
    }

    /// Refills it.
    pub(super) fn rearm(&mut self) {
        self.left = BURST;
    }

    /// The time from which a repair is left.
    pub(super) fn next(&self) -> Instant {
        if self.left > 0 { self.filled } else { self.filled + REFILL }
    }

    /// Asks for a repair.
    pub(super) fn take(&mut self) -> Grant {
        self.fill(Instant::now());
        if self.left == 0 {
            let first = !self.contested;
            self.contested = true;
            return Grant::Later { first };
        }
        self.left -= 1;
        if self.contested { Grant::Quietly } else { Grant::Granted }
    }

    /// Adds the repairs earned since the last refill.
    fn fill(&mut self, now: Instant) {
        let earned = now.saturating_duration_since(self.filled).as_secs() / REFILL.as_secs();
        let earned = u32::try_from(earned).unwrap_or(BURST).min(BURST);
        if earned > 0 {
            self.left = (self.left + earned).min(BURST);
            self.filled = now;
        }
        // A quiet time.
        self.contested &= earned < BURST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowance_is_used_up_and_comes_back_with_time() {
        let mut allowance = Allowance::full();
        for _ in 0..BURST {
            assert_eq!(allowance.take(), Grant::Granted);
        }
        assert_eq!(allowance.take(), Grant::Later { first: true });
        assert_eq!(allowance.take(), Grant::Later { first: false });
        assert!(allowance.next() > Instant::now());
        allowance.filled -= REFILL;
        assert_eq!(allowance.take(), Grant::Quietly);
        assert_eq!(allowance.take(), Grant::Later { first: false });
        allowance.filled -= REFILL * BURST;
        assert_eq!(allowance.take(), Grant::Granted);
    }

    #[test]
    fn allowance_that_is_given_back_is_not_told_of_again() {
        let mut allowance = Allowance::full();
        let grants: Vec<Grant> = (0..=BURST).map(|_| allowance.take()).collect();
        assert_eq!(grants.last(), Some(&Grant::Later { first: true }));
        allowance.rearm();
        assert_eq!(allowance.take(), Grant::Quietly);
    }
}
