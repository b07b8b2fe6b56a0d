//! Signals as data: what they ask for, and a descriptor to wait on.
//!
//! | signals | meaning |
//! |---|---|
//! | SIGTERM, SIGINT, SIGHUP, SIGPWR, SIGXCPU | ask the guest to power off; the second one, SIGXCPU apart, stops it |
//! | SIGQUIT, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGSTKFLT, real-time signals | stop the guest at once |
//! | SIGTSTP, SIGCONT | give the terminal back, and take it again |
//! | SIGXFSZ, SIGPIPE | ignored: a write says EFBIG or EPIPE |
//! | SIGUSR1 | brings a vCPU back from the guest (see [`crate::kvm::kick`]); harmless from elsewhere |
//! | SIGSEGV, SIGBUS and the like | see [`crate::fault`] |
//!
//! A signal that was ignored when the process began stays ignored, as `nohup` and scripts that start background jobs
//! want it.
//!
//! A thread of its own takes signals from the kernel. The main thread hears of them from it, so that a main thread that
//! the host lets wait (a kernel, disk or capture on a dead network file system) cannot keep the process from ending:
//! what it does not take within [`TAKE_TIMEOUT`] ends the process without it.
#![expect(
    unsafe_code,
    reason = "sets with real-time signals, and actions, have no safe wrapper in the crates used here"
)]

use crate::confine::seccomp::{Filters, Thread};
use crate::console::terminal;
use crate::{confine, event, exit};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{SIGRTMAX, SIGRTMIN};

/// Ask the guest to power off.
const ASKING: [i32; 5] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPWR, libc::SIGXCPU];
/// Stop the guest at once; and so do real-time signals.
const STOPPING: [i32; 7] =
    [libc::SIGQUIT, libc::SIGUSR2, libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF, libc::SIGIO, libc::SIGSTKFLT];
/// About the terminal.
const JOB_CONTROL: [i32; 2] = [libc::SIGTSTP, libc::SIGCONT];

/// How long the main thread may take to hear of a signal before the process ends without it.
const TAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Stack of the thread in bytes: it formats a log line.
const STACK_BYTES: usize = 128 << 10;

/// Bytes of `struct signalfd_siginfo`; the number of the signal is its first field.
const SIGINFO_BYTES: usize = 128;

/// The request that a signal makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// That the guest powers off.
    PowerOff,
    /// The same, because the process has used up its processor time; the kernel repeats it every second.
    OutOfTime,
    /// That the guest is stopped at once.
    Stop,
    /// That the process pauses.
    Suspend,
    /// That it goes on.
    Continue,
}

impl Meaning {
    /// The meaning of `signal`, which is one of those that arrive here.
    pub(crate) fn of(signal: u8) -> Self {
        match i32::from(signal) {
            libc::SIGXCPU => Self::OutOfTime,
            libc::SIGTSTP => Self::Suspend,
            libc::SIGCONT => Self::Continue,
            signal if ASKING.contains(&signal) => Self::PowerOff,
            _ => Self::Stop,
        }
    }

    /// Returns whether the process is to end because of it.
    fn is_end(self) -> bool {
        matches!(self, Self::PowerOff | Self::Stop)
    }
}

/// Why a wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// This signal has arrived, which is to end the process.
    Signal(u8),
    /// The other descriptor is readable.
    Other,
    /// Nothing has happened.
    Timeout,
}

/// Makes a write beyond RLIMIT_FSIZE an error instead of a signal. To be called first thing.
pub(crate) fn ignore_file_size() {
    // SAFETY: SIG_IGN runs no code.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// The signals that have arrived and have not been taken, and when they did.
struct Arrived {
    signals: Mutex<VecDeque<(u8, Instant)>>,
    event: EventFd,
}

impl Arrived {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(u8, Instant)>> {
        self.signals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The signals that mean something to the VMM, blocked and readable.
///
/// Made before any other thread, which inherits the mask.
pub(crate) struct Signals(Arc<Arrived>);

impl Signals {
    /// Blocks the signals and begins to take them, in a thread with a filter of `filters`.
    ///
    /// # Errors
    /// If the host has no descriptor or thread left.
    pub(crate) fn new(filters: Arc<Filters>) -> io::Result<Self> {
        let fd = signalfd(&heeded())?;
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let arrived = Arc::new(Arrived { signals: Mutex::default(), event });
        let signals = arrived.clone();
        // Not joined: it ends with the process.
        let thread = thread::Builder::new().name("signals".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(move || {
            confine::enter(&filters, Thread::Signals, &[]);
            take(&fd, &signals);
        })?;
        Ok(Self(arrived))
    }

    /// Waits until a signal arrives that is to end the process or `other` is readable, for at most `timeout`.
    ///
    /// # Errors
    /// If the host refuses to wait.
    pub(crate) fn wait(&self, other: Option<BorrowedFd<'_>>, timeout: Duration) -> io::Result<Woken> {
        let mut fds = vec![PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        fds.extend(other.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        loop {
            match event::poll(&mut fds, Some(timeout)) {
                Ok(0) => return Ok(Woken::Timeout),
                Ok(_) => {}
                // The process was suspended for a while, or a signal arrived that is not among these.
                Err(Errno::EINTR) => continue,
                Err(err) => return Err(err.into()),
            }
            while let Some(signal) = self.next() {
                match Meaning::of(signal) {
                    Meaning::Suspend => suspend(),
                    Meaning::Continue => {}
                    Meaning::PowerOff | Meaning::OutOfTime | Meaning::Stop => return Ok(Woken::Signal(signal)),
                }
            }
            if fds.get(1).is_some_and(event::is_ready) {
                return Ok(Woken::Other);
            }
        }
    }

    /// The next signal that has arrived, if one has.
    pub(crate) fn next(&self) -> Option<u8> {
        let mut signals = self.0.lock();
        let next = signals.pop_front().map(|(signal, _)| signal);
        if signals.is_empty() {
            // An empty counter answers EAGAIN.
            let _ = self.0.event.read();
        }
        next
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        event::fd(&self.0.event)
    }
}

/// Pauses the process as SIGTSTP does by default: unless there is no shell that could continue it.
pub(crate) fn suspend() {
    let set = SigSet::from(Signal::SIGTSTP);
    // None of the three fails for such a signal. This thread has it blocked, and its action is the default one: so the
    // process stops where it is unblocked.
    let _ = raise(Signal::SIGTSTP);
    let _ = set.thread_unblock();
    let _ = set.thread_block();
}

/// The thread: passes signals on, and ends the process if one that is to end it is not taken.
fn take(fd: &File, arrived: &Arrived) {
    let signal = pass_on(fd, arrived, TAKE_TIMEOUT);
    log::error!("The host lets minivmm wait for a file: it ends without, by signal {signal}");
    terminal::restore();
    exit::at_once(exit::Outcome::Killed(signal).code());
}

/// Passes signals on. Returns one that is to end the process and has not been taken within `take_timeout`.
fn pass_on(fd: &File, arrived: &Arrived, take_timeout: Duration) -> u8 {
    loop {
        let first = arrived.lock().iter().copied().find(|(signal, _)| Meaning::of(*signal).is_end());
        let left = first.map(|(_, at)| (at + take_timeout).saturating_duration_since(Instant::now()));
        if let (Some((signal, _)), Some(Duration::ZERO)) = (first, left) {
            return signal;
        }
        // An error is a wake-up for nothing.
        let _ = event::poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], left);
        while let Some(signal) = read(fd) {
            arrived.lock().push_back((signal, Instant::now()));
            // A counter that is full is signalled all the same.
            let _ = arrived.event.write(1);
        }
    }
}

fn read(mut fd: &File) -> Option<u8> {
    let mut info = [0; SIGINFO_BYTES];
    // An empty queue answers EAGAIN.
    let len = fd.read(&mut info).ok()?;
    (len == SIGINFO_BYTES).then_some(info[0])
}

/// The signals that are heeded: those that mean something and that were not ignored when the process began.
fn heeded() -> SigSet {
    let real_time = SIGRTMIN()..=SIGRTMAX();
    let mut set = *SigSet::empty().as_ref();
    for signal in ASKING.into_iter().chain(STOPPING).chain(JOB_CONTROL).chain(real_time) {
        if !is_ignored(signal) {
            // SAFETY: the set is initialized and the number is a signal's.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
    }
    // SAFETY: the set began as an empty one.
    unsafe { SigSet::from_sigset_t_unchecked(set) }
}

fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: no new action is given, and there is room for the one that is asked for.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: the call has filled it if it succeeded.
    result == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Blocks the signals of `set` and opens a descriptor from which they are read.
fn signalfd(set: &SigSet) -> nix::Result<File> {
    set.thread_block()?;
    let fd = SignalFd::with_flags(set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    Ok(File::from(OwnedFd::from(fd)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use std::io::Write;

    /// The end that `pass_on` reads from, and the end that signals come from.
    fn pipe() -> (File, File) {
        let (reader, writer) = io::pipe().unwrap();
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)))
    }

    fn arrive(mut kernel: &File, signal: i32) {
        let mut info = [0; SIGINFO_BYTES];
        info[0] = u8::try_from(signal).unwrap();
        kernel.write_all(&info).unwrap();
    }

    fn arrived() -> Arc<Arrived> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        Arc::new(Arrived { signals: Mutex::default(), event })
    }

    #[test]
    fn signal_that_the_main_thread_does_not_take_ends_the_process() {
        let ((fd, kernel), arrived) = (pipe(), arrived());
        for signal in [libc::SIGCONT, libc::SIGXCPU, libc::SIGTERM, libc::SIGQUIT] {
            arrive(&kernel, signal);
        }
        let last = pass_on(&fd, &arrived, Duration::from_millis(20));
        assert_eq!(i32::from(last), libc::SIGTERM);
    }

    #[test]
    fn signal_that_is_taken_ends_nothing_by_itself() {
        let ((fd, kernel), arrived) = (pipe(), arrived());
        let thread = thread::spawn({
            let arrived = arrived.clone();
            move || pass_on(&fd, &arrived, Duration::from_millis(200))
        });
        let signals = Signals(arrived);
        for signal in [libc::SIGTERM, libc::SIGTERM] {
            arrive(&kernel, signal);
            let woken = signals.wait(None, Duration::from_secs(30)).unwrap();
            assert_eq!(woken, Woken::Signal(u8::try_from(signal).unwrap()));
        }
        arrive(&kernel, libc::SIGHUP);
        assert_eq!(i32::from(thread.join().unwrap()), libc::SIGHUP);
    }

    #[test]
    fn meanings_are_those_of_the_table() {
        for (signal, meaning) in [
            (libc::SIGTERM, Meaning::PowerOff),
            (libc::SIGPWR, Meaning::PowerOff),
            (libc::SIGXCPU, Meaning::OutOfTime),
            (libc::SIGQUIT, Meaning::Stop),
            (64, Meaning::Stop),
            (libc::SIGTSTP, Meaning::Suspend),
            (libc::SIGCONT, Meaning::Continue),
        ] {
            assert_eq!(Meaning::of(u8::try_from(signal).unwrap()), meaning, "{signal}");
        }
    }
}
