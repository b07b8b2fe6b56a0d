//! How soon a guest that has reset itself is started again.
//!
//! One that resets as soon as it runs is started less and less often, so that it cannot keep the host busy building
//! machines.

use super::resources::Resources;
use crate::error::Error;
use crate::exit::Outcome;
use crate::signals::Woken;
use std::time::Duration;

/// A run that is shorter counts as one that came to nothing.
const SHORT_RUN: Duration = Duration::from_secs(1);
/// The pause after a first short run; it doubles with each that follows.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The pauses between a machine's runs.
pub(crate) struct Restarts {
    next_pause: Duration,
}

impl Restarts {
    pub(crate) fn new() -> Self {
        Self { next_pause: FIRST_PAUSE }
    }

    /// Waits until the guest may run again after a run of `run_time`. Returns how the machine ends if a signal arrives
    /// first.
    ///
    /// # Errors
    /// If the host refuses to wait.
    pub(crate) fn wait(&mut self, resources: &Resources, run_time: Duration) -> Result<Option<Outcome>, Error> {
        let woken =
            resources.signals.wait(None, self.pause_after(run_time)).map_err(Error::host("wait for signals"))?;
        Ok(match woken {
            Woken::Signal(signal) if i32::from(signal) == libc::SIGQUIT => Some(Outcome::Killed(signal)),
            // No guest runs that could be asked: it has ended as far as it can.
            Woken::Signal(_) => Some(Outcome::PoweredOff),
            Woken::Other | Woken::Timeout => None,
        })
    }

    fn pause_after(&mut self, run_time: Duration) -> Duration {
        if run_time >= SHORT_RUN {
            self.next_pause = FIRST_PAUSE;
            return Duration::ZERO;
        }
        let pause = self.next_pause;
        self.next_pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_runs_are_followed_by_longer_and_longer_pauses() {
        let mut restarts = Restarts::new();
        let pauses: Vec<_> = (0..10).map(|_| restarts.pause_after(Duration::from_millis(3))).collect();

        assert_eq!(pauses[0], FIRST_PAUSE);
        assert!(pauses.is_sorted());
        assert_eq!(pauses[9], LONGEST_PAUSE);
    }

    #[test]
    fn long_run_is_followed_by_none_and_forgives_the_short_ones() {
        let mut restarts = Restarts::new();
        for _ in 0..5 {
            restarts.pause_after(Duration::ZERO);
        }

        assert_eq!(restarts.pause_after(SHORT_RUN), Duration::ZERO);
        assert_eq!(restarts.pause_after(Duration::ZERO), FIRST_PAUSE);
    }
}
