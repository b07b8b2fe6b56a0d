//! Whether something that pays only at times is worth another attempt.

/// The expectation of success, by what came of the last chances.
#[derive(Debug)]
pub(super) struct Payoff {
    /// Failures in a row, up to `failures_max`.
    failures: u8,
    /// From here on, nothing is expected.
    failures_max: u8,
    /// Chances that were left out since the last attempt.
    left_out: u8,
}

impl Payoff {
    /// Chances left out after which one is taken all the same.
    const TRY_EVERY: u8 = 32;

    /// Expects success until it has failed to come `failures_max` times in a row.
    pub(super) fn new(failures_max: u8) -> Self {
        Self { failures: 0, failures_max, left_out: 0 }
    }

    /// Returns whether the next chance is to be taken.
    pub(super) fn is_expected(&self) -> bool {
        self.failures < self.failures_max || self.left_out >= Self::TRY_EVERY
    }

    /// Learns from a chance that was `taken` or not, and succeeded or not. One that was left out may succeed, too.
    pub(super) fn learn(&mut self, taken: bool, succeeded: bool) {
        self.left_out = if taken { 0 } else { self.left_out.saturating_add(1) };
        if succeeded {
            self.failures = 0;
        } else if taken {
            self.failures = (self.failures + 1).min(self.failures_max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_are_taken_while_they_succeed_and_now_and_then_to_see_whether_they_do() {
        let mut payoff = Payoff::new(3);
        let mut taken = 0;
        for _ in 0..2 * usize::from(Payoff::TRY_EVERY) {
            taken += usize::from(payoff.is_expected());
            payoff.learn(payoff.is_expected(), false);
        }
        assert_eq!(taken, 3 + 1);
        assert!(!payoff.is_expected());
        payoff.learn(false, true);
        assert!(payoff.is_expected());
    }
}
