//! The worth of another attempt at what pays only at times.

/// The expectation of success, by what came of the last chances. Where it fails to come, attempts become rare.
#[derive(Debug)]
pub(super) struct Payoff {
    /// Failures in a row, up to `failures_max`.
    failures: u8,
    /// The number of them from which on nothing is expected.
    failures_max: u8,
    /// Chances that were left out since the last attempt, and after how many one is taken all the same.
    left_out: u16,
    pause: u16,
}

impl Payoff {
    const PAUSE_MIN: u16 = 32;
    const PAUSE_MAX: u16 = 1024;

    /// Expects success until it has failed to come `failures_max` times in a row.
    pub(super) fn new(failures_max: u8) -> Self {
        Self { failures: 0, failures_max, left_out: 0, pause: Self::PAUSE_MIN }
    }

    /// Returns whether the next chance is to be taken.
    pub(super) fn is_expected(&self) -> bool {
        self.failures < self.failures_max || self.left_out >= self.pause
    }

    /// Learns from a chance that was `taken` or not, and succeeded or not. One that was left out may succeed, too.
    pub(super) fn learn(&mut self, taken: bool, succeeded: bool) {
        self.left_out = if taken { 0 } else { self.left_out.saturating_add(1) };
        if succeeded {
            (self.failures, self.pause) = (0, Self::PAUSE_MIN);
        } else if taken && self.failures < self.failures_max {
            self.failures += 1;
        } else if taken {
            self.pause = (self.pause * 2).min(Self::PAUSE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns which of the next `chances` are taken, all in vain.
    fn taken(payoff: &mut Payoff, chances: usize) -> Vec<usize> {
        let mut taken = Vec::new();
        for chance in 0..chances {
            if payoff.is_expected() {
                taken.push(chance);
            }
            payoff.learn(payoff.is_expected(), false);
        }
        taken
    }

    #[test]
    fn attempts_in_vain_become_rare() {
        assert_eq!(taken(&mut Payoff::new(3), 5000), [0, 1, 2, 35, 100, 229, 486, 999, 2024, 3049, 4074]);
    }

    #[test]
    fn success_makes_all_of_them_worth_it_again() {
        for taken_then in [true, false] {
            let mut payoff = Payoff::new(3);
            taken(&mut payoff, 300);
            assert!(!payoff.is_expected());
            payoff.learn(taken_then, true);
            assert_eq!(taken(&mut payoff, 40), [0, 1, 2, 35]);
        }
    }
}
