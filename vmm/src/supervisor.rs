//! The process that the user started, once the VM has processes of its own: it waits for the VMM, and ends as that one
//! has ended.
//!
//! ```text
//! user, shell, systemd --signals--> supervisor --numbers of signals--> VMM (the first process of a PID namespace)
//!                                       '<-------- "taken", "suspend me" ----'
//! ```
//!
//! The supervisor makes the namespaces that the VMM joins, while that one sets up its machine. It becomes the VMM's
//! user, so that it may stop and continue it; the VMM has no number for it. It ends a VMM that does not take a signal
//! within [`TAKE_TIMEOUT`], for example because the host lets it wait for a file, and restores the terminal after one
//! that was killed. When the supervisor is killed, the kernel kills the VMM.
use crate::confine::seccomp::{Filters, Thread};
use crate::confine::{self, Confinement};
use crate::console::terminal;
use crate::error::Error;
use crate::signals::{self, FromVmm, Meaning, Signals, ToVmm};
use crate::{event, exit, logger, own_code, process, services};
use jail::{Outer, pidfd};
use net::Keeper;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::termios::Termios;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long the VMM may take to hear of a signal before it is ended without.
const TAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the network keeper may take to end after the VMM. After one that was killed it has everything to undo.
const KEEPER_TIMEOUT: Duration = Duration::from_secs(25);

/// When the pages of code that starts a VM can go.
const TRIM_DELAY: Duration = Duration::from_millis(500);

/// Name of the VMM's process in `ps` and `top` (prctl(2) PR_SET_NAME).
const VMM_NAME: &std::ffi::CStr = c"vmm";

/// Forks the VMM, which returns from this; the calling process becomes its supervisor and does not return. Signals are
/// blocked from here on.
///
/// # Errors
/// If the host has no room for a process or a descriptor.
pub(crate) fn split(
    keeper: &Keeper,
    services: Option<services::Child>,
    (confinement, filters): (Confinement, &Filters),
) -> Result<Signals, Error> {
    let own_signals = signals::take_over().map_err(Error::host("open a signalfd"))?;
    let (link, vmms_link) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(Error::host("create a socket"))?;
    let own = pidfd::open(Pid::this()).map_err(Error::host("open a descriptor of this process"))?;
    let terminal = terminal::settings();
    let outer = match confinement {
        Confinement::Full(_) => jail::begin().map_err(|errno| errno.desc().to_owned()),
        Confinement::None => Err(String::new()),
    };
    match process::fork().map_err(Error::host("start a process for the VMM"))? {
        ForkResult::Child => {
            drop((link, own_signals));
            die_with(own.as_fd());
            // Fails only for a name longer than 15 bytes.
            let _ = prctl::set_name(VMM_NAME);
            Signals::of(vmms_link, own, outer.ok()).map_err(Error::host("open a signalfd"))
        }
        ForkResult::Parent { child } => {
            drop((vmms_link, own));
            // It means a vCPU; here it means nothing.
            jail::process::ignore(Signal::SIGUSR1);
            let code = match Vm::new((keeper, services), link, own_signals, child, terminal) {
                Ok(vm) => vm.supervise((confinement, filters), outer),
                Err(err) => {
                    log::error!("The VMM cannot be supervised: {err}");
                    exit::HOST
                }
            };
            exit::at_once(code)
        }
    }
}

/// Has the kernel kill the calling process when its supervisor ends. To be called again after a change of user, which
/// undoes it.
pub(crate) fn die_with(supervisor: BorrowedFd<'_>) {
    // Fails for no signal that exists.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    if pidfd::has_ended(supervisor, PollTimeout::ZERO) == Ok(true) {
        exit::at_once(exit::HOST);
    }
}

/// A VM as its supervisor sees it.
struct Vm {
    link: OwnedFd,
    signals: File,
    pid: Pid,
    vmm: OwnedFd,
    keeper: Option<OwnedFd>,
    services: Option<services::Child>,
    /// The terminal on stdin as it was.
    terminal: Option<Termios>,
    /// A signal that is to end the VM and that it has not taken, and until when it may.
    untaken: Option<(u8, Instant)>,
    /// SIGCONT has come since the last SIGTSTP, of which the VMM may not have heard yet.
    is_continued: bool,
}

impl Vm {
    /// Tells the keeper whom to watch, and lets go of all that is the VMM's.
    fn new(
        (keeper, services): (&Keeper, Option<services::Child>),
        link: OwnedFd,
        signals: File,
        pid: Pid,
        terminal: Option<Termios>,
    ) -> io::Result<Self> {
        let vmm = pidfd::open(pid)?;
        keeper.entrust(vmm.as_fd())?;
        let keeper = keeper.pidfd()?;
        let vm = Self { link, signals, pid, vmm, keeper, services, terminal, untaken: None, is_continued: false };
        vm.close_all_else();
        Ok(vm)
    }

    /// Closes every descriptor that is not used here.
    fn close_all_else(&self) {
        let own = [Some(&self.link), Some(&self.vmm), self.keeper.as_ref(), self.services.as_ref().map(|own| &own.fd)];
        let own = own.into_iter().flatten().map(AsRawFd::as_raw_fd);
        jail::process::close_all_but(&own.chain([self.signals.as_raw_fd()]).collect::<Vec<_>>());
    }

    /// Builds the jail and waits for the end of the VMM. Returns the exit code.
    fn supervise(mut self, (confinement, filters): (Confinement, &Filters), outer: Result<Outer, String>) -> u8 {
        if matches!(confinement, Confinement::Full(_)) {
            let enclosed = outer.clone().and_then(|_| jail::enclose().map_err(|errno| errno.desc().to_owned()));
            self.tell(ToVmm::Enclosed(enclosed.err()));
        }
        // The VMM has to look at this process, which it may not once that is another user's.
        let follow = || {
            if let Err(err) = confine::follow(confinement, outer.as_ref().ok().copied()) {
                log::warn!("The supervisor of the VMM cannot give up its privileges: {err}");
            }
            // Without confinement there are none.
            filters.enter(Thread::Supervisor);
        };
        let mut trim = Some(Instant::now() + TRIM_DELAY);
        loop {
            if self.turn(trim, &follow) {
                break;
            }
            if trim.is_some_and(|at| Instant::now() >= at) {
                own_code::release();
                trim = None;
            }
            if let Some((signal, until)) = self.untaken
                && Instant::now() >= until
            {
                return self.give_up(signal);
            }
        }
        self.end()
    }

    /// Waits for one event and acts on it: calls `follow` once the VMM is in its jail. Returns true when it has ended.
    fn turn(&mut self, trim: Option<Instant>, follow: &dyn Fn()) -> bool {
        let deadline = [trim, self.untaken.map(|(_, until)| until)].into_iter().flatten().min();
        let timeout = deadline.map(|until| until.saturating_duration_since(Instant::now()));
        let fds = [self.vmm.as_fd(), self.signals.as_fd(), self.link.as_fd()];
        let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        // An error is a wake-up for nothing.
        let _ = event::poll(&mut fds, timeout);
        let [ended, signalled, told] = fds.map(|fd| event::is_ready(&fd));
        if ended {
            return true;
        }
        if signalled {
            while let Some(signal) = signals::read(&self.signals) {
                self.pass_on(signal);
            }
        }
        if told {
            while let Some(message) = FromVmm::receive(self.link.as_fd()) {
                match message {
                    FromVmm::Joined => follow(),
                    FromVmm::Taken => self.untaken = None,
                    FromVmm::Suspend => self.suspend(),
                }
            }
        }
        false
    }

    fn pass_on(&mut self, signal: u8) {
        match Meaning::of(signal) {
            Meaning::Continue => {
                self.is_continued = true;
                // One that was sent to this process alone.
                let _ = pidfd::signal(self.vmm.as_fd(), Signal::SIGCONT);
            }
            Meaning::Suspend => self.is_continued = false,
            _ => {}
        }
        self.tell(ToVmm::Signal(signal));
        if Meaning::of(signal).is_end() && self.untaken.is_none() {
            self.untaken = Some((signal, Instant::now() + TAKE_TIMEOUT));
        }
    }

    fn tell(&self, message: ToVmm) {
        if let Err(err) = message.send(self.link.as_fd()) {
            // One that has ended is noticed by its descriptor.
            log::debug!("The VMM is not told: {err}");
        }
    }

    /// Stops the VMM and this process until it is continued: unless there is no shell that could do that, or it has been
    /// continued before the VMM was ready for it.
    fn suspend(&mut self) {
        while let Some(signal) = signals::read(&self.signals) {
            self.pass_on(signal);
        }
        if self.is_continued {
            return;
        }
        let _ = pidfd::signal(self.vmm.as_fd(), Signal::SIGSTOP);
        signals::suspend();
        let _ = pidfd::signal(self.vmm.as_fd(), Signal::SIGCONT);
        self.tell(ToVmm::Signal(signals::CONTINUE));
    }

    /// Ends a VMM that does not hear.
    fn give_up(&self, signal: u8) -> u8 {
        log::error!("The host lets minivmm wait for a file: it ends without, by signal {signal}");
        let _ = pidfd::signal(self.vmm.as_fd(), Signal::SIGKILL);
        self.restore_terminal();
        exit::Outcome::Killed(signal).code()
    }

    /// Ends as the VMM has ended, once the network is undone.
    fn end(&self) -> u8 {
        let status = loop {
            match waitpid(self.pid, None) {
                Err(Errno::EINTR) => {}
                status => break status,
            }
        };
        let code = match status {
            Ok(WaitStatus::Exited(_, code)) => u8::try_from(code).unwrap_or(exit::INTERNAL),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                self.restore_terminal();
                self.explain(signal)
            }
            _ => exit::INTERNAL,
        };
        let services = self.services.as_ref().map(|own| &own.fd);
        for (process, name) in [(self.keeper.as_ref(), "network keeper"), (services, "process of DHCP and DNS")] {
            let Some(process) = process else { continue };
            let timeout = PollTimeout::try_from(KEEPER_TIMEOUT).unwrap_or(PollTimeout::MAX);
            if pidfd::has_ended(process.as_fd(), timeout) == Ok(false) {
                log::warn!("The {name} does not end and is left behind: it is stuck in the kernel");
            }
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Signaled(pid, signal, _))
                    if self.services.as_ref().is_some_and(|own| own.pid == pid) =>
                {
                    logger::tell(&format!("minivmm: The process of DHCP and DNS was ended by {signal}"));
                }
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => {}
                _ => break,
            }
        }
        code
    }

    /// Says why the kernel has ended the VMM. Returns the exit code.
    fn explain(&self, signal: Signal) -> u8 {
        if signal == Signal::SIGSYS {
            logger::tell("minivmm: The VMM was ended: it made a system call that it has no use for (SIGSYS)");
            logger::tell(
                "hint: This is a bug in minivmm, or a guest that took it over; the host's kernel log names the call \
                 (journalctl -k --grep type=1326)",
            );
        } else {
            logger::tell(&format!("minivmm: The VMM was ended by {signal}"));
        }
        exit::Outcome::Killed(u8::try_from(signal as i32).unwrap_or_default()).code()
    }

    fn restore_terminal(&self) {
        if let Some(settings) = &self.terminal {
            terminal::set(settings);
        }
    }
}
