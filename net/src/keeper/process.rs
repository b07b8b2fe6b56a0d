//! Forks the keeper and detaches it from the VMM.
#![allow(unsafe_code)] // fork(2), and descriptors that are known by number only.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::unistd::{ForkResult, Pid, fork};

use crate::error::KeeperError;

/// Process name in `ps` and `top` (prctl(2) PR_SET_NAME).
const NAME: &std::ffi::CStr = c"keeper";

/// Runs `child` in a new process and returns its number.
///
/// # Errors
/// The process has more than one thread, or there is no room for another process.
pub(super) fn spawn(child: impl FnOnce() -> i32) -> Result<Pid, KeeperError> {
    let threads = thread_count().map_err(KeeperError::CountThreads)?;
    if threads != 1 {
        return Err(KeeperError::Threads { threads });
    }
    // SAFETY: the process has one thread, this one, so the child finds every lock free and may do what it likes.
    match unsafe { fork() }.map_err(|errno| KeeperError::Fork(errno.into()))? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            // A panic must not unwind into the VMM's frames, which exist here too.
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: _exit never returns and takes any value. It skips the VMM's exit handlers on purpose.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Leaves the terminal, the VMM's signals and all of its descriptors but stderr, `own` and those in `numbers`.
///
/// Returns those of `numbers` that are open. A part that fails is only untidy: the keeper works without it.
pub(super) fn detach(own: &[&OwnedFd], numbers: &[RawFd]) -> BTreeMap<RawFd, OwnedFd> {
    if let Err(error) = jail::process::detach(NAME) {
        log::warn!("The network keeper cannot release the VMM's stdin and stdout: {error}");
    }
    let mut inherited = BTreeMap::new();
    for &number in numbers {
        // SAFETY: F_GETFD takes no argument and only looks the number up.
        let open = unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
        if open && !own.iter().any(|own| own.as_raw_fd() == number) && !inherited.contains_key(&number) {
            // SAFETY: the number is open, and no value in this process owns it: the values of the VMM that did are in
            // frames that are never returned to.
            inherited.insert(number, unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
    let kept: Vec<RawFd> = inherited.keys().copied().chain(own.iter().map(|own| own.as_raw_fd())).collect();
    jail::process::close_all_but(&kept);
    inherited
}

/// Threads of this process: the directory of its tasks has one link for each, and two of its own (proc(5)).
fn thread_count() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/self/task")?.nlink().saturating_sub(2))
}
