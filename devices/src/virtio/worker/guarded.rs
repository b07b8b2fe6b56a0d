//! A bug of ours costs the device, and not the VM: a worker's panic is caught.
//!
//! The panic unwinds the worker's stack, which drops the service and lets go of every lock, and the device waits for a
//! reset as after a fault. What the service shares with others stays valid: each lock is taken whether or not its last
//! holder panicked, and each activation builds its services anew.
//!
//! Rejected: a build without unwinding, in which the panicking thread marks its device and sleeps for ever. It spares
//! 1.2 MB of tables and landing pads in a program of 5.6 (no memory, and no time at the start: nothing touches them).
//! But a thread that sleeps in the middle of something keeps its locks, such as those of a port that delays frames or
//! of an inbox, and whoever resets the device, or stops the VM, waits for them for ever. Every panic would leave a
//! thread, its memory and its descriptors behind, too.

use std::cell::Cell;
#[cfg(not(feature = "inline-workers"))]
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// True if the next panic of this thread is caught.
    static CATCHES: Cell<bool> = const { Cell::new(false) };
}

/// For the process's panic hook, which runs on the thread that panics: returns whether that is a worker which catches
/// the panic, so that the process goes on. Says so once: a second panic, while the first is being unwound, aborts.
pub fn catches_panic() -> bool {
    CATCHES.take()
}

/// Runs `work`. Returns its result, or `None` after a panic, of which the panic hook has told.
#[cfg(not(feature = "inline-workers"))]
pub(super) fn guarded<R>(work: impl FnOnce() -> R) -> Option<R> {
    CATCHES.set(true);
    // Unwind safe: `work` is gone afterwards with all that it owned; what it shares is the subject of this file.
    let result = catch_unwind(AssertUnwindSafe(work));
    CATCHES.set(false);
    result.ok()
}
