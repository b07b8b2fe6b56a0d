//! Forwarding that other programs switch off: put right once, and left off if they insist.
//!
//! ```text
//! [on] --off--> [off] --within REPEAT_WINDOW of the time before--> [left off], a warning
//!   ^             '---else: switched on--> [on]                  |
//!   '--------------------------------others switch it on--------'
//! ```
//!
//! Every keeper hears of every change, and each counts by itself: it does not matter which of them puts it right.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::kernel::rtnl::notices::{Forwarding, Scope};
use crate::kernel::sysctl::Conf;

/// A program that switches something off for the second time within this time means it. Network managers do it once,
/// when they set up an interface or start.
const REPEAT_WINDOW: Duration = Duration::from_secs(600);

/// A switch: a protocol, and for whom.
pub(super) type Switch = (Conf, Scope);

/// The switches that a VM needs, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Switches {
    /// Those that have been on.
    on: BTreeSet<Switch>,
    /// When each was switched off last.
    off: BTreeMap<Switch, Instant>,
    /// Those that others want to be off.
    left: BTreeSet<Switch>,
}

impl Switches {
    /// Takes note of something that has been set. Returns it if it is to be warned of.
    pub(super) fn note(&mut self, set: &Forwarding, now: Instant) -> Option<Switch> {
        let switch = (set.conf, set.scope);
        if !set.on {
            return self.goes_off(switch, now);
        }
        self.left.remove(&switch);
        self.on.insert(switch);
        None
    }

    /// Takes note of those that are off now, whether or not that has been heard of. Returns those that are to be warned
    /// of.
    pub(super) fn found_off(&mut self, off: &[Switch], now: Instant) -> Vec<Switch> {
        off.iter().filter_map(|switch| self.goes_off(*switch, now)).collect()
    }

    /// Returns whether a switch that is off is to stay so.
    pub(super) fn is_left(&self, switch: Switch) -> bool {
        self.left.contains(&switch)
    }

    /// A switch has been put right.
    pub(super) fn is_on(&mut self, switch: Switch) {
        self.on.insert(switch);
    }

    fn goes_off(&mut self, switch: Switch, now: Instant) -> Option<Switch> {
        if !self.on.remove(&switch) {
            return None;
        }
        let before = self.off.insert(switch, now);
        let insists = before.is_some_and(|before| now - before < REPEAT_WINDOW);
        (insists && self.left.insert(switch)).then_some(switch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWITCH: Switch = (Conf::Ipv4, Scope::Link(2));

    fn set(on: bool) -> Forwarding {
        Forwarding { conf: SWITCH.0, scope: SWITCH.1, on }
    }

    #[test]
    fn who_switches_off_twice_means_it() {
        let (mut switches, start) = (Switches::default(), Instant::now());
        switches.is_on(SWITCH);
        assert_eq!(switches.note(&set(false), start), None);
        assert!(!switches.is_left(SWITCH));
        switches.note(&set(true), start);
        assert_eq!(switches.note(&set(false), start), Some(SWITCH));
        assert!(switches.is_left(SWITCH));
        assert_eq!(switches.found_off(&[SWITCH], start), []);
    }

    #[test]
    fn who_switches_off_once_in_a_while_does_not() {
        let (mut switches, start) = (Switches::default(), Instant::now());
        for round in 0..5 {
            switches.is_on(SWITCH);
            assert_eq!(switches.found_off(&[SWITCH], start + REPEAT_WINDOW * round), []);
        }
    }

    #[test]
    fn what_somebody_switches_on_again_is_kept_again() {
        let (mut switches, start) = (Switches::default(), Instant::now());
        for on in [true, false, true, false, true] {
            switches.note(&set(on), start);
        }
        assert!(!switches.is_left(SWITCH));
        switches.note(&set(false), start + REPEAT_WINDOW);
        assert!(!switches.is_left(SWITCH));
    }

    #[test]
    fn what_was_never_on_is_not_switched_off() {
        let mut switches = Switches::default();
        assert_eq!(switches.found_off(&[SWITCH], Instant::now()), []);
        assert_eq!(switches.note(&set(false), Instant::now()), None);
    }
}
