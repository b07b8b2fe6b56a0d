//! Waits for descriptors. That of an eventfd is borrowed as the type that poll takes; vmm-sys-util's has only the raw
//! number.
#![expect(unsafe_code, reason = "a borrowed descriptor can only be made from a number with unsafe code")]

use nix::poll::{PollFd, ppoll};
use nix::sys::time::TimeSpec;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;

/// Borrows the descriptor of `event`.
pub(crate) fn fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as `event` lives, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Waits for at most `timeout`, to the nanosecond, or for ever without one. Returns how many descriptors are ready.
///
/// # Errors
/// EINTR if a signal handler ran, or the host refuses to wait.
pub(crate) fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> nix::Result<i32> {
    // A timeout beyond the kernel's numbers is for ever.
    let seconds = |timeout: Duration| i64::try_from(timeout.as_secs()).ok();
    let timeout = timeout.and_then(|timeout| Some(TimeSpec::new(seconds(timeout)?, timeout.subsec_nanos().into())));
    ppoll(fds, timeout, None)
}

/// Returns whether `fd` was ready when poll returned.
pub(crate) fn is_ready(fd: &PollFd<'_>) -> bool {
    // Events without a name are events.
    fd.any().unwrap_or(true)
}
