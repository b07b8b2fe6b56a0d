//! Forks the keeper and detaches it from the VMM.
#![allow(unsafe_code)] // fork(2), close_range(2), and descriptors that are known by number only.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, Pid, fork, setpgid};

use crate::error::KeeperError;

/// Process name in `ps` and `top` (prctl(2) PR_SET_NAME).
const NAME: &std::ffi::CStr = c"keeper";

/// First descriptor after the standard streams.
const FIRST_FD: RawFd = 3;

/// Signals that a terminal or a user sends to all of minivmm and that mean the VMM: the keeper ends with the VMM.
const IGNORED: [Signal; 8] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGPIPE,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

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
    // A process group keeps the terminal's signals away. A session of its own would as well, but moves the process to
    // another scheduling group (autogroup), and on a busy machine that costs a tick of 4 ms in the middle of a start.
    // It fails only for a session leader, which a child is not.
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    // Fails only for a name longer than 15 bytes.
    let _ = nix::sys::prctl::set_name(NAME);
    for name in IGNORED {
        // SAFETY: SIG_IGN runs no code.
        if let Err(errno) = unsafe { signal(name, SigHandler::SigIgn) } {
            log::warn!("The network keeper cannot ignore {name}: {errno}");
        }
    }
    if let Err(error) = release_standard_streams() {
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
    let mut kept: Vec<RawFd> = inherited.keys().copied().chain(own.iter().map(|own| own.as_raw_fd())).collect();
    kept.sort_unstable();
    close_all_but(&kept);
    inherited
}

/// stdin and stdout become /dev/null: a reader of the VMM's output must see its end when the VMM ends.
fn release_standard_streams() -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}

/// Closes every descriptor above the standard streams that is not in `kept`, which is sorted.
fn close_all_but(kept: &[RawFd]) {
    let mut first = FIRST_FD;
    for &fd in kept {
        close_range(first, fd - 1);
        first = fd + 1;
    }
    close_range(first, RawFd::MAX);
}

fn close_range(first: RawFd, last: RawFd) {
    let (Ok(first), Ok(last)) = (libc::c_uint::try_from(first), libc::c_uint::try_from(last)) else { return };
    if first > last {
        return;
    }
    // SAFETY: no flag is set, and no value in this process owns a descriptor in the range: see `detach`. The kernel
    // refuses only an empty range; a kernel without close_range(2) (before 5.9) leaves them open.
    unsafe { libc::close_range(first, last, 0) };
}

/// Threads of this process: the directory of its tasks has one link for each, and two of its own (proc(5)).
fn thread_count() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/self/task")?.nlink().saturating_sub(2))
}
