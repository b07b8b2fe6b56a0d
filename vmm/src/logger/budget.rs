//! How many lines may be logged: for each place of the code a burst, and then ever fewer.
//!
//! A guest can repeat what it is warned of for ever. A rate would let it: 50 lines a second fill a disk in days, and
//! hide all else at once. So each line past the burst of its place costs a pause before the next one of that place, and
//! the pause doubles. Quiet pays back, slowly. Places do not share: a flood of one warning leaves room for the others.
//!
//! ```text
//!   lines of a place   1 .. 50   51     52     53    ..   59 and on
//!   pause after it     none      1 s    2 s    4 s   ..   256 s
//! ```
//! Time is passed in, and nothing here panics: the report of a panic goes through it.

use std::collections::HashMap;
use std::time::Duration;

/// Lines of one place without a pause. A start or a stop logs fewer.
const BURST: u32 = 50;

/// The first pause, and how often it doubles: up to 256 s, so that a flood leaves a line or so in five minutes.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const DOUBLINGS: u32 = 8;

/// Quiet that pays for one line. After a flood, a place has its burst again after half an hour of quiet.
const PAYBACK: Duration = Duration::from_secs(30);

/// Lines of all places together in one second: more are not read, and each costs the host a write.
const LINES_PER_SECOND: u32 = 50;

/// Places that have a budget of their own; more than there are in the code. Others share one.
const PLACES: usize = 512;

/// Where a line is logged: file and line.
pub(super) type Place = (&'static str, u32);

/// The place of the lines that share a budget.
const ELSEWHERE: Place = ("", 0);

/// The lines of one place. Times are since the start of the log.
#[derive(Debug, Default)]
struct Account {
    /// Lines that are not paid back.
    spent: u32,
    /// The last time that a line was wanted.
    wanted: Duration,
    /// The end of the pause.
    next: Duration,
    dropped: u64,
}

impl Account {
    /// Returns how many lines were dropped before this one; `None` if it is dropped, too.
    fn admit(&mut self, now: Duration) -> Option<u64> {
        let quiet = now.saturating_sub(self.wanted).as_secs() / PAYBACK.as_secs();
        self.spent = self.spent.saturating_sub(u32::try_from(quiet).unwrap_or(u32::MAX));
        self.wanted = now;
        if self.spent >= BURST && now < self.next {
            self.dropped = self.dropped.saturating_add(1);
            return None;
        }
        if let Some(doublings) = self.spent.checked_sub(BURST) {
            self.next = now.saturating_add(FIRST_PAUSE.saturating_mul(1 << doublings.min(DOUBLINGS)));
        }
        self.spent = self.spent.saturating_add(1).min(BURST + DOUBLINGS);
        Some(std::mem::take(&mut self.dropped))
    }
}

/// The budgets of all places.
#[derive(Debug, Default)]
pub(super) struct Budget {
    accounts: HashMap<Place, Account>,
    /// The second that `lines` counts.
    second: u64,
    lines: u32,
    /// Lines that were dropped for want of room in a second, or of a reader.
    dropped: u64,
}

impl Budget {
    /// Returns how many lines were dropped before this one of `place`; `None` if it is dropped, too.
    pub(super) fn admit(&mut self, place: Place, now: Duration) -> Option<u64> {
        let place = if self.accounts.len() < PLACES || self.accounts.contains_key(&place) { place } else { ELSEWHERE };
        let dropped = self.accounts.entry(place).or_default().admit(now)?;
        if std::mem::replace(&mut self.second, now.as_secs()) != now.as_secs() {
            self.lines = 0;
        }
        self.lines = self.lines.saturating_add(1);
        if self.lines > LINES_PER_SECOND {
            self.lost(dropped.saturating_add(1));
            return None;
        }
        Some(dropped.saturating_add(std::mem::take(&mut self.dropped)))
    }

    /// Counts lines that were admitted and could not be written.
    pub(super) fn lost(&mut self, lines: u64) {
        self.dropped = self.dropped.saturating_add(lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Place = ("here.rs", 1);
    const THERE: Place = ("there.rs", 2);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Wants so many lines at a time.
    fn want(budget: &mut Budget, lines: u32, now: Duration) {
        for _ in 0..lines {
            budget.admit(HERE, now);
        }
    }

    /// The seconds in which a place that wants a line every second from 0 to `end` gets one after its burst.
    fn admitted_after_burst(budget: &mut Budget, end: u64) -> Vec<u64> {
        (0..BURST).for_each(|_| assert_eq!(budget.admit(HERE, seconds(0)), Some(0)));
        (1..end).filter(|second| budget.admit(HERE, seconds(*second)).is_some()).collect()
    }

    #[test]
    fn each_line_past_the_burst_doubles_the_pause_up_to_minutes() {
        let admitted = admitted_after_burst(&mut Budget::default(), 1100);

        let pauses: Vec<u64> = admitted.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(admitted[0], 1);
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 256, 256]);
    }

    #[test]
    fn lines_that_are_dropped_are_told_with_the_next() {
        let mut budget = Budget::default();
        want(&mut budget, BURST + 1, seconds(1));
        (0..7).for_each(|_| assert_eq!(budget.admit(HERE, seconds(1)), None));

        // One more had no room in the second.
        assert_eq!((budget.admit(HERE, seconds(2)), budget.admit(HERE, seconds(4))), (Some(8), Some(0)));
    }

    #[test]
    fn flood_of_one_place_leaves_room_for_others() {
        let mut budget = Budget::default();
        admitted_after_burst(&mut budget, 1100);
        want(&mut budget, 1000, seconds(1100));

        assert_eq!(budget.admit(THERE, seconds(1100)), Some(0));
    }

    #[test]
    fn quiet_pays_back_slowly() {
        let mut budget = Budget::default();
        let last = admitted_after_burst(&mut budget, 300).len();
        let burst = |budget: &mut Budget, at| (0..100).filter(|_| budget.admit(HERE, seconds(at)).is_some()).count();
        assert_eq!(last, 9);

        // 300 s are worth ten lines, of which eight were past the burst; the third costs a pause again.
        assert_eq!(burst(&mut budget, 600), 3);
        // An hour is worth all of it.
        assert_eq!(burst(&mut budget, 600 + 3600), usize::try_from(BURST).unwrap());
    }

    #[test]
    fn steady_lines_that_are_rare_are_never_dropped() {
        let mut budget = Budget::default();

        assert!((0..1000).all(|line| budget.admit(HERE, PAYBACK * line) == Some(0)));
    }

    #[test]
    fn all_places_together_have_a_limit_for_a_second() {
        let mut budget = Budget::default();
        let place = |line| ("many.rs", line);

        let admitted = (0..2 * LINES_PER_SECOND).filter(|line| budget.admit(place(*line), seconds(9)).is_some());

        assert_eq!(admitted.count(), usize::try_from(LINES_PER_SECOND).unwrap());
        assert_eq!(budget.admit(HERE, seconds(10)), Some(LINES_PER_SECOND.into()));
    }

    #[test]
    fn places_beyond_the_limit_share_a_budget() {
        let mut budget = Budget::default();
        let line = |line: usize| ("many.rs", u32::try_from(line).unwrap());
        for at in 0..2 * PLACES {
            budget.admit(line(at), seconds(0));
        }

        assert!(budget.accounts.len() <= PLACES + 1);
    }
}
