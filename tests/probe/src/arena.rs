//! Memory for rings and buffers: a fixed range of guest RAM, handed out from the front and reused by the next check.
//!
//! It lies outside the image so that the image stays small to load. Nothing in it is a Rust object: it is read and
//! written by address only, as a device would.

use core::sync::atomic::{AtomicU64, Ordering};
use crate::cpu;

/// First byte of the arena; the linker script keeps the image below.
pub(crate) const START: u64 = 16 << 20;
/// End of the arena. VMs have at least 64 MiB, and loaders put start-of-day data below 16 MiB or at the end of memory.
pub(crate) const END: u64 = 32 << 20;

static NEXT: AtomicU64 = AtomicU64::new(START);

/// Forgets everything handed out. Only call when no device may still write into it.
pub(crate) fn reset() {
    NEXT.store(START, Ordering::Relaxed);
}

/// Hands out `bytes` zeroed bytes at a multiple of `align` (a power of two).
///
/// # Panics
/// When the arena is used up: a bug of the check.
pub(crate) fn take(bytes: u64, align: u64) -> u64 {
    let start = NEXT.load(Ordering::Relaxed).next_multiple_of(align);
    let end = start + bytes;
    assert!(end <= END, "arena used up");
    NEXT.store(end, Ordering::Relaxed);
    fill(start, bytes, 0);
    start
}

/// Sets `bytes` bytes at `address` to `value`.
pub(crate) fn fill(address: u64, bytes: u64, value: u8) {
    for at in address..address + bytes {
        cpu::write8(at, value);
    }
}
