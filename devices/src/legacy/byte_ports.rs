//! How an 8-bit device on the ISA bus meets a wider access: the bus splits it into accesses to consecutive ports,
//! lowest first.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Reads `data.len()` consecutive ports from `offset` on.
pub(super) fn read(offset: u64, data: &mut [u8], mut port: impl FnMut(u64) -> u8) {
    for (offset, byte) in (offset..).zip(data) {
        *byte = port(offset);
    }
}

/// Writes `data` to consecutive ports from `offset` on.
pub(super) fn write(offset: u64, data: &[u8], mut port: impl FnMut(u64, u8)) {
    for (offset, byte) in (offset..).zip(data) {
        port(offset, *byte);
    }
}

/// Takes the lock of a device. One that a panicking thread left behind is still a valid register file, so the guest is
/// served.
pub(super) fn lock<T>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
