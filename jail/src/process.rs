//! A process that has just been forked leaves the terminal, the signals and the descriptors of its parent to others.
#![allow(unsafe_code)] // close_range(2) and signal(2) have no safe wrapper in the crates used here.

use std::ffi::CStr;
use std::io;
use std::os::fd::RawFd;

use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{Pid, dup2_stdin, dup2_stdout, setpgid};

/// First descriptor after the standard streams.
const FIRST_FD: RawFd = 3;

/// Signals that a terminal or a user sends to all of minivmm and that mean the VM.
const OF_THE_VM: [Signal; 8] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGPIPE,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// Takes a name (at most 15 bytes) in `ps` and `top` (prctl(2) PR_SET_NAME), a process group, and /dev/null for stdin
/// and stdout; ignores the signals that mean the VM. A part that fails is only untidy. Returns why the standard streams
/// are still the parent's, if they are.
pub fn detach(name: &CStr) -> io::Result<()> {
    // A process group keeps the terminal's signals away. A session of its own would as well, but moves the process to
    // another scheduling group (autogroup), and on a busy machine that costs a tick of 4 ms in the middle of a start.
    // It fails only for a session leader, which a child is not.
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    let _ = prctl::set_name(name);
    OF_THE_VM.into_iter().for_each(ignore);
    // A reader of the VMM's output must see its end when the VMM ends.
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok(())
}

/// Ignores a signal.
pub fn ignore(name: Signal) {
    // SAFETY: SIG_IGN runs no code. It fails for SIGKILL and SIGSTOP alone.
    let _ = unsafe { signal(name, SigHandler::SigIgn) };
}

/// Closes every descriptor above the standard streams that is not in `kept`. The values that own them must be in frames
/// that are never returned to. A kernel without close_range(2) (before 5.9) leaves them open.
pub fn close_all_but(kept: &[RawFd]) {
    let mut kept = kept.to_vec();
    kept.push(RawFd::MAX);
    kept.sort_unstable();
    let mut first = FIRST_FD;
    for fd in kept {
        if let (Ok(from), Ok(to)) = (u32::try_from(first), u32::try_from(fd - 1))
            && from <= to
        {
            // SAFETY: no flag is set; as the caller promises.
            unsafe { libc::close_range(from, to, 0) };
        }
        first = fd.saturating_add(1);
    }
}
