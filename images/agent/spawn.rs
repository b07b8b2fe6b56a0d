//! Starting programs from an init that waits for signals by descriptor. The only reason for `unsafe`: a child must
//! unblock the signals that its parent blocks, between fork and exec, or scripts would never see SIGTERM or SIGCHLD.

#![expect(unsafe_code, reason = "a child unblocks signals between fork and exec")]

use nix::sys::signal::SigSet;
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Where programs are looked for; busybox fills the last four.
const PATH: &str = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin";

/// A busybox applet in a session of its own, so that it can be stopped with all of its children.
pub(crate) fn applet<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new("/bin/busybox");
    command.arg("setsid").args(arguments).env_clear().env("PATH", PATH).env("HOME", "/root").env("TERM", "vt102");
    command
}

/// Starts it. Its end is reported by the [`Supervisor`](crate::supervisor::Supervisor).
pub(crate) fn start(command: &mut Command) -> io::Result<Pid> {
    // SAFETY: the closure runs between fork and exec of a process that may have threads, so it must be
    // async-signal-safe: it makes one pthread_sigmask call on a set built on its stack, allocates nothing and takes no
    // lock.
    unsafe {
        command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?));
    }
    let child = command.spawn()?;
    // A PID of Linux is at most 2^22 (PID_MAX_LIMIT).
    i32::try_from(child.id()).map(Pid::from_raw).map_err(io::Error::other)
}
