//! The user's wish that the guest powers off. It is the host's, not a run's: a guest that resets itself does not undo
//! it.

use std::time::{Duration, Instant};

/// How often the power button is pressed while the guest does not react: a guest that is still starting has missed the
/// first.
const PRESS_INTERVAL: Duration = Duration::from_secs(1);

/// The user's request that the guest powers off, and its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// It has not.
    NotAsked,
    /// It has.
    Asked {
        /// When it is stopped for good.
        deadline: Instant,
        /// When the power button is pressed next.
        next_press: Instant,
    },
}

/// The actions that are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    /// Press the power button.
    pub(super) press: bool,
    /// Stop the guest: it has had its time.
    pub(super) give_up: bool,
}

impl Stop {
    /// Asked at `now`, for at most `timeout`.
    pub(super) fn ask(now: Instant, timeout: Duration) -> Self {
        Self::Asked { deadline: now + timeout, next_press: now }
    }

    pub(super) fn is_asked(self) -> bool {
        matches!(self, Self::Asked { .. })
    }

    /// When there is something to do.
    pub(super) fn next(self) -> Option<Instant> {
        match self {
            Self::NotAsked => None,
            Self::Asked { deadline, next_press } => Some(deadline.min(next_press)),
        }
    }

    /// The actions that are due at `now`; a press is due once per interval.
    pub(super) fn due(&mut self, now: Instant) -> Due {
        let Self::Asked { deadline, next_press } = self else { return Due { press: false, give_up: false } };
        let press = now >= *next_press;
        if press {
            *next_press = now + PRESS_INTERVAL;
        }
        Due { press, give_up: now >= *deadline }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn button_is_pressed_at_once_and_every_second_until_the_deadline() {
        let start = Instant::now();
        let mut stop = Stop::ask(start, Duration::from_secs(3));
        let mut due = |ms| stop.due(start + Duration::from_millis(ms));

        assert_eq!(due(0), Due { press: true, give_up: false });
        assert_eq!(due(999), Due { press: false, give_up: false });
        assert_eq!(due(1001), Due { press: true, give_up: false });
        assert_eq!(due(3000), Due { press: true, give_up: true });
    }

    #[test]
    fn nothing_is_due_unasked() {
        let mut stop = Stop::NotAsked;

        assert_eq!(stop.due(Instant::now()), Due { press: false, give_up: false });
        assert_eq!(stop.next(), None);
    }
}
