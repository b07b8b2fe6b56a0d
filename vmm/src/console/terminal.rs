//! The terminal on stdin: raw while the console has it, and as it was on every way out.
//!
//! The ways out: the guard's drop (all ordinary ends, and signals, which arrive as data), the panic hook, the handlers
//! of faults and the logger, which only needs to know. A process that pauses gives it back meanwhile. SIGKILL leaves no
//! way; `reset` or `stty sane` helps then.

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The terminal that is raw now, and how it was before.
static SAVED: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

fn saved() -> MutexGuard<'static, Option<(OwnedFd, Termios)>> {
    SAVED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Restores the terminal when dropped.
pub(crate) struct RawMode(());

impl RawMode {
    /// Makes the terminal `fd` raw: no echo, no lines, no signals from keys.
    ///
    /// # Errors
    /// If it is no terminal, or is gone.
    pub(super) fn enter(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let before = tcgetattr(fd)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        let copy = fd.try_clone_to_owned()?;
        // Before it is raw, so that a panic in between restores it.
        *saved() = Some((copy, before));
        // Restores it, which forgets it, if the next line fails.
        let guard = Self(());
        tcsetattr(fd, SetArg::TCSANOW, &raw)?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes the terminal what it was. Harmless if it never was anything else.
pub(crate) fn restore() {
    if let Some((fd, before)) = saved().take() {
        // A terminal that is gone needs no restoring. Not `Drain` or `Flush`: those can wait for a stopped terminal.
        let _ = tcsetattr(&fd, SetArg::TCSANOW, &before);
    }
}

/// Leaves the terminal as it is from now on.
pub(super) fn forget() {
    *saved() = None;
}

/// The settings of the terminal on stdin, if there is one.
pub(crate) fn settings() -> Option<Termios> {
    tcgetattr(io::stdin()).ok()
}

/// Gives the terminal on stdin these settings, unless another job has it.
pub(crate) fn set(settings: &Termios) {
    let stdin = io::stdin();
    if is_foreground(stdin.as_fd()) {
        // One that is gone needs none.
        let _ = tcsetattr(stdin, SetArg::TCSANOW, settings);
    }
}

/// [`restore`] for a signal handler: without waiting, and without forgetting what it was.
pub(crate) fn restore_in_handler() {
    if let Ok(saved) = SAVED.try_lock()
        && let Some((fd, before)) = &*saved
    {
        let _ = tcsetattr(fd, SetArg::TCSANOW, before);
    }
}

/// How a line on stderr ends: a raw terminal does not return the carriage by itself.
pub(crate) fn line_end() -> &'static str {
    // Not waiting: a thread that panics with the lock held still wants to say why.
    match SAVED.try_lock() {
        Ok(saved) if saved.is_some() => "\r\n",
        _ => "\n",
    }
}

/// Returns whether this process may read from and configure the terminal: a background job may not. A terminal that is
/// not the process's own has no job control and refuses the question, and one of another PID namespace answers 0.
pub(super) fn is_foreground(fd: BorrowedFd<'_>) -> bool {
    tcgetpgrp(fd).map_or(true, |group| group.as_raw() == 0 || group == getpgrp())
}
