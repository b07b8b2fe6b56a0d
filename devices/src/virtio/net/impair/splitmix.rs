//! Chance that repeats itself.

use std::time::Duration;

/// How many of these are a whole.
const MILLION: u64 = 1_000_000;

/// A sequence of numbers that follows from its seed (SplitMix64, Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub(super) struct SplitMix64(u64);

impl SplitMix64 {
    /// The sequence of `seed` for one of many uses.
    pub(super) fn new(seed: u64, part: u64) -> Self {
        let mut random = Self(seed);
        // Neighbouring parts shall have nothing in common.
        random.0 ^= Self(part).next();
        random
    }

    /// The delay of the next frame, or `None` if it is lost. Every frame takes two numbers, so
    /// that what befalls one does not depend on the others.
    pub(super) fn next_delay(&mut self, loss_ppm: u32, delay: Duration, jitter: Duration) -> Option<Duration> {
        let (loss, lateness) = (self.next() % MILLION, self.next());
        if loss < loss_ppm.into() {
            return None;
        }
        let span = u64::try_from(jitter.as_nanos().saturating_mul(2)).unwrap_or(u64::MAX);
        let later = Duration::from_nanos(lateness.checked_rem(span.saturating_add(1)).unwrap_or(0));
        Some((delay + later).saturating_sub(jitter))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_published_ones() {
        let mut random = SplitMix64(1_234_567);
        let numbers = [random.next(), random.next(), random.next()];
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn same_seed_is_the_same_fate_and_parts_differ() {
        let ms = Duration::from_millis;
        let delays = |seed, part| {
            let mut random = SplitMix64::new(seed, part);
            (0..1000).map(|_| random.next_delay(100_000, ms(20), ms(5))).collect::<Vec<_>>()
        };
        assert_eq!(delays(42, 0), delays(42, 0));
        assert_ne!(delays(42, 0), delays(42, 1));
        assert_ne!(delays(42, 0), delays(43, 0));
        assert!(delays(42, 0).into_iter().flatten().all(|delay| (ms(15)..=ms(25)).contains(&delay)));
    }

    #[test]
    fn share_of_losses_is_that_asked_for() {
        let mut random = SplitMix64::new(7, 0);
        let lost = (0..100_000).filter(|_| random.next_delay(15_000, Duration::ZERO, Duration::ZERO).is_none()).count();
        assert!((1_350..1_650).contains(&lost), "{lost} of 100000 where 1500 are due");
    }
}
