//! How often a driver may have the host take its network lock.
//!
//! Attaching a queue and setting offloads take the kernel's RTNL lock, which everybody shares who configures a network
//! on the host; a driver that did so in a loop would slow them all down. A bucket of tokens, one for each such system
//! call: it is full enough for all that a driver does at its start, and fills slowly.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Calls that are made at once: attaching or detaching all queues of the largest card, twice over. A fuzz target's
/// driver never has to wait, since what an input does must not depend on the time.
const BURST: u32 = if cfg!(feature = "inline-workers") { u32::MAX } else { 128 };

/// In the long run there is one call per this time.
const PERIOD: Duration = Duration::from_millis(10);

/// The bucket.
pub(super) struct Limiter {
    full_at: Instant,
}

impl Limiter {
    /// A full bucket.
    pub(super) fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes `calls` tokens. More than there are in a full bucket are had from a full one.
    ///
    /// # Errors
    /// When there will be enough of them; nothing is taken then.
    pub(super) fn take(&mut self, calls: u32, now: Instant) -> Result<(), Instant> {
        let missing = self.full_at.saturating_duration_since(now);
        let allowed = PERIOD * BURST.saturating_sub(calls);
        if missing > allowed {
            return Err(now + (missing - allowed));
        }
        self.full_at = now + missing + PERIOD * calls;
        Ok(())
    }
}

/// Slows a driver down that starts and resets the card in a loop: waits until `calls` may be made.
pub(super) fn wait_for(calls: u32, limiter: &Mutex<Limiter>) {
    let mut limiter = limiter.lock().unwrap_or_else(PoisonError::into_inner);
    while let Err(due) = limiter.take(calls, Instant::now()) {
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_is_admitted_and_then_one_call_per_period() {
        let now = Instant::now();
        let mut limiter = Limiter::new(now);
        for _ in 0..BURST {
            limiter.take(1, now).unwrap();
        }
        assert_eq!(limiter.take(1, now), Err(now + PERIOD));
        assert_eq!(limiter.take(3, now), Err(now + 3 * PERIOD));
        limiter.take(1, now + PERIOD).unwrap();
        assert_eq!(limiter.take(1, now + PERIOD), Err(now + 2 * PERIOD));
    }

    #[test]
    fn more_than_the_bucket_holds_is_had_from_a_full_one() {
        let now = Instant::now();
        let mut limiter = Limiter::new(now);
        limiter.take(2 * BURST, now).unwrap();
        assert_eq!(limiter.take(2 * BURST, now), Err(now + 2 * BURST * PERIOD));
        limiter.take(0, now + 2 * BURST * PERIOD).unwrap();
    }

    #[test]
    fn commands_that_cost_nothing_wait_only_for_debts_beyond_the_bucket() {
        let now = Instant::now();
        let mut limiter = Limiter::new(now);
        limiter.take(BURST, now).unwrap();
        limiter.take(0, now).unwrap();
    }
}
