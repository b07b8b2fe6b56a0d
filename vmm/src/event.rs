//! The descriptor of an eventfd as the type that poll takes; vmm-sys-util's has only the raw number.
#![expect(unsafe_code, reason = "a borrowed descriptor can only be made from a number with unsafe code")]

use std::os::fd::{AsRawFd, BorrowedFd};
use vmm_sys_util::eventfd::EventFd;

/// Borrows the descriptor of `event`.
pub(crate) fn fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `event` lives, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
