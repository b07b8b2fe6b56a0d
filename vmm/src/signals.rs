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
//! The kernel delivers them to the supervisor, which passes their numbers on to the VMM (see [`crate::supervisor`]).
//! The
//! VMM has them blocked. What it does not take within a few seconds, because the host lets it wait for a kernel, disk
//! or capture on a dead network file system, ends it all the same. SIGXCPU comes to the process whose time is used up.
#![expect(
    unsafe_code,
    reason = "sets with real-time signals, and actions, have no safe wrapper in the crates used here"
)]

use crate::{event, exit};
use jail::Outer;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{MsgFlags, recv, send};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use vmm_sys_util::signal::{SIGRTMAX, SIGRTMIN};

/// Ask the guest to power off.
const ASKING: [i32; 5] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPWR, libc::SIGXCPU];
/// Stop the guest at once; and so do real-time signals.
const STOPPING: [i32; 7] =
    [libc::SIGQUIT, libc::SIGUSR2, libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF, libc::SIGIO, libc::SIGSTKFLT];
/// About the terminal.
const JOB_CONTROL: [i32; 2] = [libc::SIGTSTP, libc::SIGCONT];

/// The number of SIGCONT.
pub(crate) const CONTINUE: u8 = 18;
const _: () = assert!(CONTINUE as i32 == libc::SIGCONT);

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
    pub(crate) fn is_end(self) -> bool {
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

/// A message of the supervisor to the VMM: one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToVmm {
    /// This signal has arrived.
    Signal(u8),
    /// The namespaces are there to be joined, or they are not, for this reason.
    Enclosed(Option<String>),
}

/// A message of the VMM to its supervisor: one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FromVmm {
    /// It does not need this process's namespaces any more: it is in them if it could be.
    Joined,
    /// It has heard of the signals.
    Taken,
    /// Both processes are to be suspended.
    Suspend,
}

/// Bytes of a message at most. The first is the number of a signal, or 0.
const MESSAGE_BYTES: usize = 256;

impl ToVmm {
    /// Sends this without waiting.
    ///
    /// # Errors
    /// If the VMM has ended, or has not heard of hundreds of signals.
    pub(crate) fn send(&self, link: BorrowedFd<'_>) -> nix::Result<()> {
        let bytes = match self {
            Self::Signal(signal) => vec![*signal],
            Self::Enclosed(failure) => {
                let text = failure.as_deref().unwrap_or_default().as_bytes();
                [&[0], &text[..text.len().min(MESSAGE_BYTES - 1)]].concat()
            }
        };
        send(link.as_raw_fd(), &bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL).map(drop)
    }

    fn receive(link: BorrowedFd<'_>, flags: MsgFlags) -> nix::Result<Self> {
        let mut bytes = [0; MESSAGE_BYTES];
        let read = recv(link.as_raw_fd(), &mut bytes, flags)?;
        match &bytes[..read] {
            // The other end is closed.
            [] => Err(Errno::EPIPE),
            [0] => Ok(Self::Enclosed(None)),
            [0, text @ ..] => Ok(Self::Enclosed(Some(String::from_utf8_lossy(text).into_owned()))),
            [signal, ..] => Ok(Self::Signal(*signal)),
        }
    }
}

impl FromVmm {
    fn send(self, link: BorrowedFd<'_>) {
        let byte = match self {
            Self::Joined => b'j',
            Self::Taken => b't',
            Self::Suspend => b's',
        };
        // A supervisor that has ended takes the VMM with it.
        let _ = send(link.as_raw_fd(), &[byte], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }

    /// The next message, if there is one.
    pub(crate) fn receive(link: BorrowedFd<'_>) -> Option<Self> {
        let mut byte = [0];
        match recv(link.as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT) {
            Ok(1) => match byte {
                [b'j'] => Some(Self::Joined),
                [b't'] => Some(Self::Taken),
                [b's'] => Some(Self::Suspend),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The VMM's end of the channel to its supervisor: signals, and the namespaces to join.
pub(crate) struct Signals {
    link: OwnedFd,
    /// The supervisor's process, until its namespaces are joined.
    supervisor: RefCell<Option<OwnedFd>>,
    /// The user namespace that both are in, if the host allows new namespaces.
    outer: Option<Outer>,
    /// The one signal that the kernel sends to the VMM itself.
    cpu_time: File,
    /// Messages that came while others were waited for.
    early: RefCell<Early>,
}

/// Messages that have not been asked for yet.
#[derive(Default)]
struct Early {
    signals: VecDeque<u8>,
    /// The state of the namespaces, once it is known.
    enclosed: Option<Result<(), String>>,
}

impl Early {
    fn keep(&mut self, message: ToVmm) {
        match message {
            ToVmm::Signal(signal) => self.signals.push_back(signal),
            ToVmm::Enclosed(failure) => self.enclosed = Some(failure.map_or(Ok(()), Err)),
        }
    }
}

impl Signals {
    /// The end of `link`, in the VMM.
    ///
    /// # Errors
    /// If the host has no descriptor left.
    pub(crate) fn of(link: OwnedFd, supervisor: OwnedFd, outer: Option<Outer>) -> io::Result<Self> {
        let cpu_time = signalfd(&SigSet::from(Signal::SIGXCPU))?;
        Ok(Self { link, supervisor: RefCell::new(Some(supervisor)), outer, cpu_time, early: RefCell::default() })
    }

    /// The supervisor's process, once: what is to be done with it is done before the guest runs.
    pub(crate) fn take_supervisor(&self) -> Option<OwnedFd> {
        self.supervisor.take()
    }

    /// The user namespace around the supervisor's new ones; none if it has none.
    pub(crate) fn outer(&self) -> Option<Outer> {
        self.outer
    }

    /// Waits until the supervisor's namespaces can be joined.
    ///
    /// # Errors
    /// The reason why they cannot.
    pub(crate) fn await_enclosure(&self) -> Result<(), String> {
        loop {
            if let Some(enclosed) = self.early.borrow_mut().enclosed.take() {
                return enclosed;
            }
            match ToVmm::receive(self.link.as_fd(), MsgFlags::empty()) {
                Ok(message) => self.early.borrow_mut().keep(message),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.desc().to_owned()),
            }
        }
    }

    /// Tells the supervisor that its namespaces are not needed any more.
    pub(crate) fn joined(&self) {
        FromVmm::Joined.send(self.link.as_fd());
    }

    /// Waits until a signal arrives that is to end the process or `other` is readable, for at most `timeout`.
    ///
    /// # Errors
    /// If the host refuses to wait.
    pub(crate) fn wait(&self, other: Option<BorrowedFd<'_>>, timeout: Duration) -> io::Result<Woken> {
        let sources = self.sources().into_iter().chain(other);
        let mut fds: Vec<PollFd<'_>> = sources.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        loop {
            while let Some(signal) = self.next() {
                match Meaning::of(signal) {
                    Meaning::Suspend => self.suspend(),
                    Meaning::Continue => {}
                    Meaning::PowerOff | Meaning::OutOfTime | Meaning::Stop => return Ok(Woken::Signal(signal)),
                }
            }
            match event::poll(&mut fds, Some(timeout)) {
                Ok(0) => return Ok(Woken::Timeout),
                Ok(_) => {}
                // The process was suspended for a while, or a signal arrived that is not among these.
                Err(Errno::EINTR) => continue,
                Err(err) => return Err(err.into()),
            }
            if fds.get(2).is_some_and(event::is_ready) && !fds.iter().take(2).any(event::is_ready) {
                return Ok(Woken::Other);
            }
        }
    }

    /// The next signal that has arrived, if one has.
    pub(crate) fn next(&self) -> Option<u8> {
        if let Some(signal) = read(&self.cpu_time) {
            return Some(signal);
        }
        loop {
            if let Some(signal) = self.early.borrow_mut().signals.pop_front() {
                FromVmm::Taken.send(self.link.as_fd());
                return Some(signal);
            }
            match ToVmm::receive(self.link.as_fd(), MsgFlags::MSG_DONTWAIT) {
                Ok(message) => self.early.borrow_mut().keep(message),
                // Without a supervisor nothing can end the guest in good order.
                Err(Errno::EPIPE) => exit::at_once(exit::HOST),
                Err(_) => return None,
            }
        }
    }

    /// The descriptors that are readable when [`next`](Self::next) has something.
    pub(crate) fn sources(&self) -> [BorrowedFd<'_>; 2] {
        [self.link.as_fd(), self.cpu_time.as_fd()]
    }

    /// Pauses the VMM and its supervisor as SIGTSTP does by default. Returns at once; the next thing that arrives is
    /// SIGCONT.
    pub(crate) fn suspend(&self) {
        FromVmm::Suspend.send(self.link.as_fd());
        loop {
            match ToVmm::receive(self.link.as_fd(), MsgFlags::empty()) {
                Ok(message) => {
                    let is_end = message == ToVmm::Signal(CONTINUE);
                    self.early.borrow_mut().keep(message);
                    if is_end {
                        return;
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
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

/// The number of the next signal of a signalfd, if there is one.
pub(crate) fn read(mut fd: &File) -> Option<u8> {
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

/// Blocks the signals that mean something, and opens a descriptor from which they are read. Other threads and processes
/// that are made later have them blocked as well.
///
/// # Errors
/// If the host has no descriptor left.
pub(crate) fn take_over() -> io::Result<File> {
    Ok(signalfd(&heeded())?)
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
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use nix::unistd::Pid;

    fn pair() -> (OwnedFd, Signals) {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (link, vmms) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let own = jail::pidfd::open(Pid::this()).unwrap();
        (link, Signals::of(vmms, own, None).unwrap())
    }

    #[test]
    fn signal_is_taken_once_and_the_supervisor_hears_of_it() {
        let (link, signals) = pair();
        for signal in [15, 1] {
            ToVmm::Signal(signal).send(link.as_fd()).unwrap();
            let woken = signals.wait(None, Duration::from_secs(30)).unwrap();
            assert_eq!(woken, Woken::Signal(signal));
            assert_eq!(FromVmm::receive(link.as_fd()), Some(FromVmm::Taken));
        }
        assert_eq!(signals.next(), None);
        assert_eq!(signals.wait(None, Duration::from_millis(1)).unwrap(), Woken::Timeout);
    }

    #[test]
    fn signals_that_come_while_the_jail_is_built_are_heard_afterwards() {
        let (link, signals) = pair();
        for message in [ToVmm::Signal(15), ToVmm::Enclosed(Some("EPERM".to_owned())), ToVmm::Signal(2)] {
            message.send(link.as_fd()).unwrap();
        }
        assert_eq!(signals.await_enclosure(), Err("EPERM".to_owned()));
        assert_eq!((signals.next(), signals.next(), signals.next()), (Some(15), Some(2), None));
    }

    #[test]
    fn suspension_lasts_until_the_supervisor_continues() {
        let (link, signals) = pair();
        for signal in [15, 18] {
            ToVmm::Signal(signal).send(link.as_fd()).unwrap();
        }
        signals.suspend();
        assert_eq!(FromVmm::receive(link.as_fd()), Some(FromVmm::Suspend));
        assert_eq!((signals.next(), signals.next()), (Some(15), Some(18)));
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
