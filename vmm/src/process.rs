//! Processes of a VM: forked while there is one thread, and with no descriptor that they do not need.
#![expect(unsafe_code, reason = "fork, close_range and signal have no safe wrapper in the crates used here")]

use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::ForkResult;
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::RawFd;

/// First descriptor after the standard streams.
const FIRST_FD: RawFd = 3;

/// Signals that a terminal or a user sends to all of minivmm and that mean the VM.
const OTHERS: [Signal; 8] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGPIPE,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// Forks this process, which has one thread.
///
/// # Errors
/// If there is no room for another process.
pub(crate) fn fork() -> nix::Result<ForkResult> {
    // SAFETY: the process has one thread, so the child finds every lock free and may do what it likes.
    unsafe { nix::unistd::fork() }
}

/// Leaves the terminal, the signals and all descriptors but stderr and `kept` to the others. A part that fails is only
/// untidy.
pub(crate) fn detach(name: &CStr, kept: &[RawFd]) {
    // Fails only for a name longer than 15 bytes.
    let _ = prctl::set_name(name);
    for other in OTHERS {
        ignore(other);
    }
    // A reader of the VM's output must see its end when the VMM ends.
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
    }
    close_all_but(kept);
}

/// Ignores a signal.
pub(crate) fn ignore(name: Signal) {
    // SAFETY: SIG_IGN runs no code. It fails for no signal of these.
    let _ = unsafe { signal(name, SigHandler::SigIgn) };
}

/// Closes every descriptor above the standard streams that is not in `kept`. The values that own them must be in frames
/// that are never returned to.
pub(crate) fn close_all_but(kept: &[RawFd]) {
    let mut kept = kept.to_vec();
    kept.push(RawFd::MAX);
    kept.sort_unstable();
    let mut first = FIRST_FD;
    for fd in kept {
        if let (Ok(from), Ok(to)) = (u32::try_from(first), u32::try_from(fd - 1))
            && from <= to
        {
            // SAFETY: as the caller promises.
            unsafe { libc::close_range(from, to, 0) };
        }
        first = fd.saturating_add(1);
    }
}
