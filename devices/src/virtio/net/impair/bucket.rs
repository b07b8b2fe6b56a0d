//! How much may pass.

use std::time::{Duration, Instant};

/// Bytes per second, and how many may pass at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// In the long run; at least 1.
    pub bytes_per_second: u64,
    /// After a pause.
    pub burst_bytes: u64,
}

/// Tokens, one for each byte. A frame passes while there are any, and may leave a debt: so its size need not be known
/// before, and in the long run the rate is exact.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: Rate,
    /// When the bucket will be full again; earlier if it is.
    full_at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, full_at: Instant::now() }
    }

    /// Returns whether something may pass.
    ///
    /// # Errors
    /// When it will.
    pub(super) fn open(&self, now: Instant) -> Result<(), Instant> {
        let open_at = self.full_at.checked_sub(self.time(self.rate.burst_bytes)).unwrap_or(now);
        if open_at <= now { Ok(()) } else { Err(open_at) }
    }

    /// Something of `bytes` has passed.
    pub(super) fn spend(&mut self, bytes: usize, now: Instant) {
        self.full_at = self.full_at.max(now) + self.time(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// How long `bytes` take.
    fn time(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.bytes_per_second.max(1));
        // The longest is a frame at a byte per second: 65 KiB of seconds.
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX).min(1 << 56))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of frames of `len` that pass within `seconds`, tried every `step`.
    fn passed(bucket: &mut Bucket, len: usize, seconds: u64, step: Duration) -> usize {
        let begin = Instant::now();
        bucket.full_at = begin;
        let (mut now, mut bytes) = (begin, 0);
        while now < begin + Duration::from_secs(seconds) {
            while bucket.open(now).is_ok() {
                bucket.spend(len, now);
                bytes += len;
            }
            now += step;
        }
        bytes
    }

    #[test]
    fn rate_is_held_whatever_the_frames_and_however_late_one_looks() {
        for (len, step_us) in [(60, 100), (1514, 100), (65_000, 100), (1514, 900)] {
            let mut bucket = Bucket::new(Rate { bytes_per_second: 12_500_000, burst_bytes: 65_536 });
            let bytes = passed(&mut bucket, len, 10, Duration::from_micros(step_us));
            assert!((124_000_000..126_500_000).contains(&bytes), "{bytes} bytes with frames of {len}");
        }
    }

    #[test]
    fn after_a_pause_a_burst_passes_and_then_what_the_rate_allows() {
        let mut bucket = Bucket::new(Rate { bytes_per_second: 1000, burst_bytes: 500 });
        let now = bucket.full_at;
        bucket.spend(400, now);
        assert_eq!(bucket.open(now), Ok(()));
        bucket.spend(300, now);
        assert_eq!(bucket.open(now), Err(now + Duration::from_millis(200)));
        let later = now + Duration::from_secs(100);
        assert_eq!(bucket.open(later), Ok(()));
        bucket.spend(501, later);
        assert_eq!(bucket.open(later), Err(later + Duration::from_millis(1)));
    }

    #[test]
    fn odd_rates_do_not_overflow() {
        let mut bucket = Bucket::new(Rate { bytes_per_second: 0, burst_bytes: u64::MAX });
        bucket.spend(usize::MAX, Instant::now());
        assert_eq!(bucket.open(Instant::now()), Ok(()));
    }
}
