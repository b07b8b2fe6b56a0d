//! Signals that end the machine, as a descriptor to wait on.
#![expect(unsafe_code, reason = "signal masks and signalfd have no safe wrapper in the crates used here")]

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// What arrives here instead of killing the process.
const SIGNALS: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// Bytes of `struct signalfd_siginfo`; the number of the signal is its first field.
const SIGINFO_BYTES: usize = 128;

/// Why a wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// This signal has arrived.
    Signal(u8),
    /// The other descriptor is readable.
    Other,
    /// Nothing has happened.
    Timeout,
}

/// The signals that ask the process to end, blocked and readable.
///
/// Made before any other thread, which inherits the mask.
pub(crate) struct Signals(File);

impl Signals {
    /// Blocks the signals and opens the descriptor.
    ///
    /// # Errors
    /// If the host has no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initializes the set it is given.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: initialized by the line above.
        let mut set: libc::sigset_t = unsafe { set.assume_init() };
        for signal in SIGNALS {
            // SAFETY: the set is initialized and the number is a signal's.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: the set is initialized; the old mask is not asked for.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: the set is initialized; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, and nobody else knows of it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self(File::from(fd)))
    }

    /// Waits until a signal arrives or `other` is readable, for at most `patience`.
    ///
    /// # Errors
    /// If the host refuses to wait.
    pub(crate) fn wait(&self, other: Option<BorrowedFd<'_>>, patience: Duration) -> io::Result<Woken> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.as_fd(), PollFlags::IN)];
        fds.extend(other.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        // A patience beyond the kernel's numbers is for ever.
        let patience = Timespec::try_from(patience).ok();
        loop {
            match rustix::event::poll(&mut fds, patience.as_ref()) {
                Ok(0) => return Ok(Woken::Timeout),
                Ok(_) => return Ok(self.next().map_or(Woken::Other, Woken::Signal)),
                // The process was suspended for a while, or a signal arrived that is not among these.
                Err(Errno::INTR) => {}
                Err(err) => return Err(err.into()),
            }
        }
    }

    /// The next signal that has arrived, if one has.
    pub(crate) fn next(&self) -> Option<u8> {
        let mut info = [0; SIGINFO_BYTES];
        // An empty queue answers EAGAIN.
        let len = (&self.0).read(&mut info).ok()?;
        (len == SIGINFO_BYTES).then_some(info[0])
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
