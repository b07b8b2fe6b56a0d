//! Mounts without a path (fsopen(2), fsmount(2); Linux 5.2).
#![expect(unsafe_code, reason = "the calls that mount have no safe wrapper in the crates used here")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null;

/// Mounts a file system of a kind at no path, which goes with its descriptor.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn detached(kind: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads the text up to its end.
    let context = opened(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC) })?;
    let (number, create, none) = (context.as_raw_fd(), libc::FSCONFIG_CMD_CREATE, null::<u8>());
    // SAFETY: this command has neither key nor value.
    if unsafe { libc::syscall(libc::SYS_fsconfig, number, create, none, none, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it takes numbers only.
    opened(unsafe { libc::syscall(libc::SYS_fsmount, number, libc::FSMOUNT_CLOEXEC, 0) })
}

/// The descriptor that a call has returned.
fn opened(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: just opened, and not known elsewhere.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
