//! How much memory the frames may take that a VM's cards hold back.
//!
//! Frames wait in the VMM where they are delayed, where one queue has received them for another, and before they are
//! written to a capture. Each of these places has a bound of its own, and every queue has such places: so many need a
//! bound for all of them together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that the frames of one VM take: four full lines of delayed frames, or as much as a small guest.
pub const HELD_BYTES_MAX: usize = 64 << 20;

/// Memory that a frame takes beside its bytes, so that many small ones count for what they are.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// The bytes that are left; clones share them.
#[derive(Debug, Clone)]
pub struct Budget(Arc<AtomicUsize>);

impl Budget {
    /// A budget of `bytes`.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// Takes what a frame of `len` bytes needs, if that much is left.
    pub fn take(&self, len: usize) -> Option<Share> {
        let bytes = len.saturating_add(FRAME_OVERHEAD_BYTES);
        // Relaxed, here and below: a number that no other memory depends on.
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        taken.ok().map(|_| Share { budget: self.clone(), bytes })
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(HELD_BYTES_MAX)
    }
}

/// Part of a budget, which gets it back when this is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// A frame that is held back.
#[derive(Debug)]
pub(super) struct Held {
    bytes: Vec<u8>,
    _share: Share,
}

impl Held {
    /// `bytes` on account of a share that was taken for them.
    pub(super) fn new(bytes: Vec<u8>, share: Share) -> Self {
        Self { bytes, _share: share }
    }

    /// The frame.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_what_there_is_and_get_back_what_was_taken() {
        let budget = Budget::new(1000);
        let (a, b) = (budget.clone(), budget);
        let share = a.take(900 - FRAME_OVERHEAD_BYTES).unwrap();
        assert!(b.take(100).is_none());
        drop(share);
        assert!(b.take(100).is_some());
        assert!(a.take(usize::MAX).is_none());
    }
}
