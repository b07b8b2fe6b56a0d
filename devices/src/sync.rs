//! Atomics, locks and conditions of the state that several threads share: those of `std`, or those of `loom`, which
//! tries every interleaving of them (see `virtio::net::interleavings`).

#[cfg(loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard, atomic};
#[cfg(not(loom))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, atomic};
