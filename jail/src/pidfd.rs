//! Descriptors of processes (pidfd_open(2)): they name the same process for ever, whatever becomes of its number.
#![allow(unsafe_code)] // No safe wrapper in the crates used here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// The process with this number. It becomes readable when the process has ended. Needs Linux 5.3.
///
/// # Errors
/// ESRCH if there is none, EMFILE without room.
pub fn open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers; no flag is set. The descriptor is closed on exec.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it, and no other code knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to a process.
///
/// # Errors
/// ESRCH if it has ended, EPERM if it is another user's.
pub fn signal(process: BorrowedFd<'_>, signal: Signal) -> nix::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open; without an info the kernel makes one.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal as i32, info, 0) };
    Errno::result(result).map(drop)
}

/// Returns true if a process has ended within `timeout`.
///
/// # Errors
/// If the host refuses to wait.
pub fn has_ended(process: BorrowedFd<'_>, timeout: PollTimeout) -> nix::Result<bool> {
    loop {
        match poll(&mut [PollFd::new(process, PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => {}
            result => return result.map(|count| count > 0),
        }
    }
}
