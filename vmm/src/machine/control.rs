//! The control loop, on the main thread: signals, the console, and the end of the machine.
//!
//! ```text
//!            SIGTERM, SIGINT, SIGHUP, SIGPWR, SIGXCPU: press the power button
//! [running] -------------------------------------------------> [asked]
//!    |  guest ends; quit key; SIGQUIT and others                  |  guest ends; another signal; --stop-timeout
//!    +-----------------------------> [ended] <--------------------+
//! ```

use super::devices::Devices;
use super::ending::{End, Ending};
use super::resources::Resources;
use super::serial::{Busy, Port};
use super::stop::Stop;
use crate::console::input::Read;
use crate::error::Error;
use crate::event;
use crate::exit::Outcome;
use crate::logger;
use crate::own_code;
use crate::signals::Meaning;
use devices::legacy::power::PowerButton;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

/// How long to leave a serial port alone that a vCPU is in.
const BUSY_PORT_DELAY: Duration = Duration::from_millis(5);
/// How often to look whether the job has come to the foreground.
const TERMINAL_DELAY: Duration = Duration::from_millis(500);
/// When the machine has surely started and the pages of start-up code, and the heap that it has freed, can go.
const TRIM_DELAY: Duration = Duration::from_millis(500);

/// An event source of the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signal,
    End,
    OutputFilled,
    OutputWritable,
    InputReadable,
    InputDrained,
    Keeper,
    ControlSocket,
    /// Guests have addresses.
    Services,
}

/// The loop and what it works on.
pub(super) struct Control<'a> {
    resources: &'a mut Resources,
    devices: &'a Devices,
    serial: &'a Port,
    drained: &'a EventFd,
    power_button: &'a PowerButton,
    ending: &'a Ending,
    port_was_busy: bool,
    trim: Trim,
}

/// The state of the pages of start-up code: mapped, or given back.
enum Trim {
    At(Instant),
    Done,
}

impl<'a> Control<'a> {
    pub(super) fn new(resources: &'a mut Resources, devices: &'a Devices, ending: &'a Ending) -> Self {
        Self {
            resources,
            devices,
            serial: devices.serial(),
            drained: devices.serial_drained(),
            power_button: devices.power_button(),
            ending,
            port_was_busy: false,
            trim: Trim::At(Instant::now() + TRIM_DELAY),
        }
    }

    /// Runs until the machine ends, and says why.
    ///
    /// # Errors
    /// If the host refuses to wait.
    pub(super) fn run(mut self) -> Result<End, Error> {
        loop {
            self.resources.ready.tell();
            let ready = self.wait()?;
            for source in ready {
                self.act(source);
            }
            self.offer_input();
            self.check_deadline();
            self.check_trim();
            if self.resources.console.waits_for_terminal() {
                self.resources.console.resume();
            }
            self.resources.announce(Instant::now());
            self.resources.control_socket.check_deadline(Instant::now());
            if let Some(end) = self.ending.take() {
                return Ok(end);
            }
        }
    }

    fn wait(&self) -> Result<Vec<Source>, Error> {
        // One for both: what is not due yet by the one is waited for by the other.
        let now = Instant::now();
        let sources = self.sources(now);
        let mut fds: Vec<_> = sources.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        match event::poll(&mut fds, self.timeout(now)) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(err) => return Err(Error::Host { operation: "wait for events", source: err.into() }),
        }
        let ready = fds.iter().zip(&sources).filter(|(fd, _)| event::is_ready(fd));
        Ok(ready.map(|(_, (source, ..))| *source).collect())
    }

    fn sources(&self, now: Instant) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let console = &self.resources.console;
        let mut sources = vec![
            (Source::End, event::fd(self.ending.event()), PollFlags::POLLIN),
            (Source::OutputFilled, event::fd(console.output.filled()), PollFlags::POLLIN),
            (Source::InputDrained, event::fd(self.drained), PollFlags::POLLIN),
        ];
        sources.extend(self.resources.signals.sources().map(|fd| (Source::Signal, fd, PollFlags::POLLIN)));
        sources.extend(console.output.wants_to_write(now).map(|fd| (Source::OutputWritable, fd, PollFlags::POLLOUT)));
        sources.extend(console.input.wants_to_read().map(|fd| (Source::InputReadable, fd, PollFlags::POLLIN)));
        sources.extend(self.resources.keeper_socket().map(|fd| (Source::Keeper, fd, PollFlags::POLLIN)));
        let (control_socket, flags) = self.resources.control_socket.source();
        sources.push((Source::ControlSocket, control_socket, flags));
        sources.extend(self.resources.services_socket().map(|fd| (Source::Services, fd, PollFlags::POLLIN)));
        sources
    }

    fn timeout(&self, now: Instant) -> Option<Duration> {
        let left = |until: Instant| until.saturating_duration_since(now);
        let output = self.resources.console.output.deadline(now).map(left);
        let busy = self.port_was_busy.then_some(BUSY_PORT_DELAY);
        let stop = self.resources.stop.next().map(left);
        let trim = match self.trim {
            Trim::At(at) => Some(left(at)),
            Trim::Done => None,
        };
        let announcement = self.resources.next_announcement().map(left);
        let caller = self.resources.control_socket.deadline().map(left);
        let addresses = self.resources.ready.deadline().map(left);
        let terminal = self.resources.console.waits_for_terminal().then_some(TERMINAL_DELAY);
        [output, busy, stop, trim, announcement, caller, addresses, terminal].into_iter().flatten().min()
    }

    fn act(&mut self, source: Source) {
        match source {
            Source::Signal => {
                while let Some(signal) = self.resources.signals.next() {
                    self.signal(signal);
                }
            }
            // Looked at after every wake-up.
            Source::End => {}
            Source::OutputFilled => drain(self.resources.console.output.filled()),
            Source::OutputWritable => self.resources.console.output.pass_on(),
            Source::InputReadable => {
                if self.resources.console.input.read() == Read::Quit {
                    self.kill(libc::SIGINT);
                }
            }
            Source::InputDrained => drain(self.drained),
            Source::Keeper => self.resources.hear_keeper(),
            Source::ControlSocket => self.resources.serve_control_socket(|| self.devices.counters()),
            Source::Services => self.resources.hear_services(),
        }
    }

    fn signal(&mut self, signal: u8) {
        match Meaning::of(signal) {
            Meaning::Suspend => {
                self.resources.console.pause();
                self.resources.signals.suspend();
                self.resources.console.resume();
                return;
            }
            Meaning::Continue => return self.resources.console.resume(),
            Meaning::OutOfTime if self.resources.stop.is_asked() => return,
            Meaning::OutOfTime => log::warn!("The process has used up its processor time (RLIMIT_CPU)"),
            Meaning::PowerOff if !self.resources.stop.is_asked() => {}
            Meaning::PowerOff | Meaning::Stop => return self.kill(signal.into()),
        }
        log::info!("Asking the guest to power off, for at most {} s", self.resources.stop_timeout.as_secs());
        self.resources.stop = Stop::ask(Instant::now(), self.resources.stop_timeout);
    }

    fn kill(&self, signal: i32) {
        self.ending.report(End::Outcome(Outcome::Killed(u8::try_from(signal).unwrap_or(0))));
    }

    fn check_deadline(&mut self) {
        let due = self.resources.stop.due(Instant::now());
        if due.press
            && let Err(err) = self.power_button.press()
        {
            log::error!("Cannot press the guest's power button: {err}");
        }
        if due.give_up {
            self.ending.report(End::Outcome(Outcome::StopTimeout));
            log::warn!("The guest did not power off in time and is stopped");
        }
        if let Some((sentence, hint)) = self.resources.ready.overdue(Instant::now())
            && !self.ending.is_stopping()
        {
            self.ending.report(End::Outcome(Outcome::NoAddress));
            logger::tell(&format!("minivmm: {sentence}"));
            logger::tell(&format!("hint: {hint}"));
        }
    }

    fn check_trim(&mut self) {
        if matches!(self.trim, Trim::At(at) if Instant::now() >= at) {
            own_code::release();
            self.trim = Trim::Done;
        }
    }

    fn offer_input(&mut self) {
        let (serial, mut busy) = (self.serial, false);
        self.resources.console.input.offer(|bytes| {
            serial.try_input(bytes).unwrap_or_else(|Busy| {
                busy = true;
                0
            })
        });
        self.port_was_busy = busy;
    }
}

fn drain(event: &EventFd) {
    // An empty counter answers EAGAIN: another thread was woken for the same signal.
    let _ = event.read();
}
