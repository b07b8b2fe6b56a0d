//! Counters in memory that two processes share: the services write them, the VMM reads them.
#![expect(unsafe_code, reason = "mmap gives a plain pointer")]

use net::services::Counters;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one card. All zeros are those of a card without services.
#[derive(Default)]
#[repr(C)]
pub(super) struct Card {
    pub(super) counters: Counters,
    /// 1 for a card that has services.
    served: AtomicU64,
    failures: AtomicU64,
}

impl Card {
    /// Marks it as one that has services.
    pub(super) fn serve(&self) {
        self.served.store(1, Ordering::Relaxed);
    }

    /// Its services have failed for good.
    pub(super) fn fail(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// How often they have.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// The counters of all cards. They stay mapped until the process ends.
#[derive(Clone, Copy, Default)]
pub(super) struct Shared(&'static [Card]);

impl Shared {
    /// For so many cards.
    ///
    /// # Errors
    /// If the host has no memory left.
    pub(super) fn new(cards: usize) -> io::Result<Self> {
        let Some(bytes) = NonZeroUsize::new(cards * size_of::<Card>()) else { return Ok(Self::default()) };
        // SAFETY: a new mapping, wherever the kernel finds room; it is never unmapped.
        let start =
            unsafe { mmap_anonymous(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED) }?;
        // SAFETY: the mapping has room for `cards` of them, is aligned to a page, and zeros are valid atomics. Whoever
        // shares it changes them only atomically, or else what it says itself.
        Ok(Self(unsafe { std::slice::from_raw_parts(start.cast().as_ptr(), cards) }))
    }

    /// That of a card.
    pub(super) fn card(&self, index: usize) -> Option<&'static Card> {
        self.0.get(index)
    }

    /// All of them; none for cards without services.
    pub(super) fn served(&self) -> impl Iterator<Item = Option<&'static Card>> {
        self.0.iter().map(|card| (card.served.load(Ordering::Relaxed) > 0).then_some(card))
    }
}
