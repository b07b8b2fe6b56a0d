//! Filters for system calls: what a thread may ask of the kernel, by the kind of the thread.
//!
//! ```text
//!   supervisor, services         (processes of their own)
//!   main, before it has a filter --> spawner, capture
//!   main, with its own           --> vCPUs, watchdog
//!   spawner, with its own        --> workers of the devices
//! ```
//!
//! A thread installs its filter first thing. Filters are inherited, and a call has to pass all of them: so the list of
//! a thread that starts others has what theirs have ([`Thread::lists`] sees to it), and the threads that may do what
//! main may not, such as to begin a new file of a capture, start before main has its own.
//!
//! The keeper alone has a list of what it may not do. What is in no list of the others kills the process with SIGSYS,
//! whichever thread asked. There is no handler for it: a process that
//! asks for what it never needs has been taken over, or has a bug. The kernel's log names the call.
//!
//! # What it costs
//! The kernel keeps a bitmap of the calls that a filter allows whatever their arguments (Linux 5.11), and does not run
//! the filter for these. All calls of the data path are among them. `ioctl` is not, as each number is a rule: a vCPU's
//! first one is `KVM_RUN`, some ten instructions from the start of the program. An exit to this process costs a
//! thousand times as much.
//!
//! # What it does not do
//! A filter sees numbers, not what pointers lead to: no path, no address, no name. Paths are up to
//! [`landlock`](super::landlock).

mod ioctls;
mod lists;
mod program;
mod rule;

use crate::exit;
use clap::ValueEnum;
use devices::virtio::threads::Job;
use nix::errno::Errno;
#[cfg(any(test, feature = "attacks"))]
pub(crate) use rule::Args;
use rule::Rule;
use seccompiler::BpfProgram;
use serde::Deserialize;
use std::fmt;
use std::io;
use std::sync::OnceLock;

/// The effect of a call that is in no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// It kills the process.
    Kill,
    /// It is executed, and the kernel logs it: for development.
    Log,
    /// It is executed: there are no filters.
    Off,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Log => "log",
            Self::Off => "off",
        })
    }
}

/// A kind of thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Thread {
    /// Main: the control loop, and the next machine after a reboot.
    Control,
    /// The process that waits for the VMM.
    Supervisor,
    /// The process that answers DHCP and DNS, all of its threads.
    Services,
    /// Ends a process that does not stop.
    Watchdog,
    /// Starts workers.
    Spawner,
    /// Writes a capture.
    Capture,
    /// Runs a vCPU.
    Vcpu,
    /// Serves queues of a device.
    Worker(Job),
}

impl Thread {
    /// All kinds.
    pub(crate) const ALL: [Self; 11] = [
        Self::Control,
        Self::Supervisor,
        Self::Services,
        Self::Watchdog,
        Self::Spawner,
        Self::Capture,
        Self::Vcpu,
        Self::Worker(Job::QueuePair),
        Self::Worker(Job::Vhost),
        Self::Worker(Job::Disk),
        Self::Worker(Job::Entropy),
    ];

    /// Its name in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Supervisor => "supervisor",
            Self::Services => "services",
            Self::Watchdog => "watchdog",
            Self::Spawner => "spawner",
            Self::Capture => "capture",
            Self::Vcpu => "vcpu",
            Self::Worker(Job::QueuePair) => "queue-pair",
            Self::Worker(Job::Vhost) => "vhost",
            Self::Worker(Job::Disk) => "disk",
            Self::Worker(Job::Entropy) => "entropy",
        }
    }

    /// Its place in [`ALL`](Self::ALL).
    fn index(self) -> usize {
        match self {
            Self::Control => 0,
            Self::Supervisor => 1,
            Self::Services => 2,
            Self::Watchdog => 3,
            Self::Spawner => 4,
            Self::Capture => 5,
            Self::Vcpu => 6,
            Self::Worker(Job::QueuePair) => 7,
            Self::Worker(Job::Vhost) => 8,
            Self::Worker(Job::Disk) => 9,
            Self::Worker(Job::Entropy) => 10,
        }
    }

    /// The threads that it starts after it has installed its filter.
    fn children(self) -> &'static [Self] {
        match self {
            Self::Control => &[Self::Vcpu, Self::Watchdog],
            Self::Spawner => &[
                Self::Worker(Job::QueuePair),
                Self::Worker(Job::Vhost),
                Self::Worker(Job::Disk),
                Self::Worker(Job::Entropy),
            ],
            _ => &[],
        }
    }

    /// The calls that it makes itself, in a VM with these devices.
    pub(crate) fn own_lists(self, vhost: Vhost) -> Vec<&'static [Rule]> {
        let own: &[&[Rule]] = match self {
            Self::Control => &[lists::CONTROL, lists::STARTS_THREADS, lists::INSTALLS_FILTERS],
            Self::Supervisor => &[lists::SUPERVISOR],
            Self::Services => &[lists::SERVICES, lists::STARTS_THREADS],
            Self::Watchdog => &[],
            Self::Spawner => &[lists::STARTS_THREADS, lists::INSTALLS_FILTERS],
            Self::Capture => &[lists::CAPTURE],
            Self::Vcpu => &[lists::VCPU],
            Self::Worker(Job::QueuePair) => &[lists::WORKER, lists::QUEUE_PAIR],
            Self::Worker(Job::Vhost) => &[lists::WORKER, lists::VHOST_WORKER],
            Self::Worker(Job::Disk) => &[lists::WORKER, lists::DISK],
            Self::Worker(Job::Entropy) => &[lists::WORKER, lists::ENTROPY],
        };
        let vhost: &[&[Rule]] = match (self, vhost) {
            (Self::Control, Vhost::Some) => &[lists::VHOST_CONTROL],
            (Self::Vcpu, Vhost::Some) => &[lists::VHOST_VCPU],
            _ => &[],
        };
        [own, vhost, &[lists::EVERY_THREAD]].concat()
    }

    /// The calls that its filter has to allow: its own, and those of the threads that it starts.
    fn lists(self, vhost: Vhost) -> Vec<&'static [Rule]> {
        let children = self.children().iter().flat_map(|child| child.own_lists(vhost));
        // Theirs first: `KVM_RUN` has to pass this filter, too.
        children.chain(self.own_lists(vhost)).collect()
    }
}

/// The presence of cards on the kernel's vhost-net in a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vhost {
    /// It has none, and no thread calls it.
    None,
    /// It has.
    Some,
}

/// Why a thread has no filter.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The kernel has no filters that kill a process.
    #[error("This host's kernel cannot filter system calls")]
    Unavailable(#[source] io::Error),
    /// The kernel refuses it.
    #[error("Cannot filter the system calls of the thread {thread}")]
    Install {
        /// The kind of the thread.
        thread: &'static str,
        /// Why.
        source: seccompiler::Error,
    },
}

/// The filters of a VM, by kind of thread. Each is compiled when its first thread wants it.
pub(crate) struct Filters {
    mode: Mode,
    vhost: Vhost,
    programs: [OnceLock<BpfProgram>; Thread::ALL.len()],
}

impl Filters {
    /// Filters for a VM with these devices.
    ///
    /// # Errors
    /// If the kernel has no such filters, and there are to be some.
    pub(crate) fn new(mode: Mode, vhost: Vhost) -> Result<Self, Error> {
        if mode != Mode::Off {
            check_available(if mode == Mode::Log { libc::SECCOMP_RET_LOG } else { libc::SECCOMP_RET_KILL_PROCESS })
                .map_err(|errno| Error::Unavailable(errno.into()))?;
        }
        Ok(Self { mode, vhost, programs: [const { OnceLock::new() }; Thread::ALL.len()] })
    }

    /// The effect of a call that is in no list.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Compiles the filter of `thread`, so that installing it takes less time.
    pub(crate) fn prepare(&self, thread: Thread) {
        if let Some(action) = self.action() {
            self.program(thread, action);
        }
    }

    /// Installs the filter of the calling thread, for good. Whether it can start threads that may do more is said
    /// above.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn install(&self, thread: Thread) -> Result<(), Error> {
        if let Some(action) = self.action() {
            let failed = |source| Error::Install { thread: thread.name(), source };
            seccompiler::apply_filter(self.program(thread, action)).map_err(failed)?;
        }
        #[cfg(feature = "attacks")]
        crate::attacks::carry_out(thread);
        Ok(())
    }

    /// The kernel's answer to a call that is in no list (`SECCOMP_RET_*`); nothing without filters.
    fn action(&self) -> Option<u32> {
        match self.mode {
            Mode::Kill => Some(libc::SECCOMP_RET_KILL_PROCESS),
            Mode::Log => Some(libc::SECCOMP_RET_LOG),
            Mode::Off => None,
        }
    }

    fn program(&self, thread: Thread, action: u32) -> &BpfProgram {
        self.programs[thread.index()].get_or_init(|| program::allowing(&thread.lists(self.vhost), action))
    }

    /// Installs the filter of the keeper, which kills it for what it has no use for and allows the rest: what it makes,
    /// and the programs that it starts, differ by the network.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn install_for_keeper(&self) -> Result<(), Error> {
        let Some(action) = self.action() else { return Ok(()) };
        let program = program::refusing(lists::NOT_FOR_THE_KEEPER, action);
        seccompiler::apply_filter(&program).map_err(|source| Error::Install { thread: "keeper", source })
    }

    /// The same for a thread that cannot run without: the process ends if it fails.
    pub(crate) fn enter(&self, thread: Thread) {
        if let Err(err) = self.install(thread) {
            log::error!("{}", net::error_chain(&err));
            exit::at_once(exit::HOST);
        }
    }
}

/// Asks whether the kernel has filters with `action`.
#[expect(unsafe_code, reason = "seccomp has no safe wrapper for this question in the crates used here")]
fn check_available(action: u32) -> nix::Result<()> {
    // SAFETY: SECCOMP_GET_ACTION_AVAIL reads one u32, which outlives the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, std::ptr::from_ref(&action)) };
    Errno::result(answer).map(drop)
}

#[cfg(test)]
mod tests;
