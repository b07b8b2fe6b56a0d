//! Traffic that checks itself: many TCP flows at once, and numbered UDP datagrams. One end runs in a scenario, the
//! other in its guest, which has this very program: `tests traffic ...`. Both ends know what has to come, so nothing
//! but the report is to be looked at.

pub mod datagrams;
pub mod flows;

use std::time::Duration;

/// Nothing at all for this long is the end of a test: guests in an emulated processor are slow, but not that slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes after which the pattern repeats: a prime number, so that no two blocks of a usual size are the same.
const PERIOD: usize = 8191;

/// The bytes that are sent: without a system, repeated.
#[derive(Debug)]
struct Pattern(Vec<u8>);

impl Pattern {
    /// A pattern that pieces of up to `longest` bytes can be taken from.
    fn new(longest: usize) -> Self {
        let mut state = 1_u32;
        let random = std::iter::repeat_with(|| {
            // Numerical Recipes' linear congruential generator; its upper bits are the good ones.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        });
        let period: Vec<u8> = random.take(PERIOD).collect();
        Self(period.into_iter().cycle().take(PERIOD + longest).collect())
    }

    /// `len` bytes from an offset on.
    fn at(&self, offset: u64, len: usize) -> &[u8] {
        let start = usize::try_from(offset).unwrap_or_default() % PERIOD;
        self.0.get(start..start + len).unwrap_or_default()
    }
}
