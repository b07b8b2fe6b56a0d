//! Everything that happens to init: children end, a stop is asked for, the power button is pressed. Promises that
//! no zombie stays and that nothing is missed: signals are blocked and read from a descriptor.
//!
//! The requests are those of busybox's init, so its `poweroff`, `reboot` and `halt` work: SIGUSR2, SIGTERM, SIGUSR1.

use crate::console::say;
use crate::power::Stop;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

/// `struct input_event` of a 64-bit kernel (linux/input.h): a time of 16 bytes, then type, code and value.
const INPUT_EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A child ended, with its exit code, or 128 and the signal that killed it.
    Ended {
        /// The child.
        pid: Pid,
        /// Its code.
        code: i32,
    },
    /// The machine shall stop.
    Stop(Stop),
    /// The deadline passed first.
    Deadline,
}

/// The ears of init.
pub(crate) struct Supervisor {
    signals: SignalFd,
    inputs: Vec<File>,
    pending: VecDeque<Event>,
}

impl Supervisor {
    /// Blocks the signals and opens the input devices, so the driver of the power button must be loaded.
    pub(crate) fn new() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGTERM] {
            set.add(signal);
        }
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { signals, inputs: open_inputs(), pending: VecDeque::new() })
    }

    /// Waits for the next event.
    pub(crate) fn next(&mut self, deadline: Option<Instant>) -> Event {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return event;
            }
            let Some(timeout) = timeout(deadline) else { return Event::Deadline };
            let mut fds: Vec<_> = self.inputs.iter().map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN)).collect();
            fds.push(PollFd::new(self.signals.as_fd(), PollFlags::POLLIN));
            // An interrupted or failed wait is the same as a wake-up: look at everything and wait again.
            let _ = poll(&mut fds, timeout);
            self.read_signals();
            self.reap();
            self.read_inputs();
        }
    }

    fn read_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            let stop = match signal {
                Some(Signal::SIGUSR1) => Stop::Halt,
                Some(Signal::SIGUSR2) => Stop::PowerOff,
                Some(Signal::SIGTERM) => Stop::Reboot,
                _ => continue,
            };
            self.pending.push_back(Event::Stop(stop));
        }
    }

    fn reap(&mut self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => self.pending.push_back(Event::Ended { pid, code }),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    let code = 128 + signal as i32; // a Signal is its number
                    self.pending.push_back(Event::Ended { pid, code });
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    fn read_inputs(&mut self) {
        let mut pressed = false;
        self.inputs.retain_mut(|file| match read_presses(file) {
            Ok(power) => {
                pressed |= power;
                true
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        });
        if pressed {
            say!("The power button was pressed");
            self.pending.push_back(Event::Stop(Stop::PowerOff));
        }
    }
}

/// The time until the deadline, for poll; `None` when it has passed.
fn timeout(deadline: Option<Instant>) -> Option<PollTimeout> {
    let Some(deadline) = deadline else { return Some(PollTimeout::NONE) };
    let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
    // Rounded up, or the last part of a millisecond would be spent spinning. A wait too long for poll ends early and
    // begins again.
    Some(PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX))
}

/// Opens the input devices there are. Which of them is the power button shows when it is pressed.
fn open_inputs() -> Vec<File> {
    let Ok(entries) = fs::read_dir("/dev/input") else { return Vec::new() };
    let events =
        entries.filter_map(Result::ok).filter(|entry| entry.file_name().to_string_lossy().starts_with("event"));
    events
        .filter_map(|entry| {
            let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(entry.path());
            opened.inspect_err(|error| say!("Cannot listen to {}: {error}", entry.path().display())).ok()
        })
        .collect()
}

/// Reads one batch of events and tells whether the power key went down in it.
fn read_presses(file: &mut File) -> io::Result<bool> {
    let mut buffer = [0_u8; 32 * INPUT_EVENT_BYTES];
    let len = file.read(&mut buffer)?;
    let events = buffer.get(..len).unwrap_or_default().chunks_exact(INPUT_EVENT_BYTES);
    Ok(events.into_iter().any(is_power_press))
}

fn is_power_press(event: &[u8]) -> bool {
    let [.., t0, t1, c0, c1, v0, v1, v2, v3] = event else { return false };
    let (kind, code) = (u16::from_ne_bytes([*t0, *t1]), u16::from_ne_bytes([*c0, *c1]));
    kind == EV_KEY && code == KEY_POWER && i32::from_ne_bytes([*v0, *v1, *v2, *v3]) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut bytes = vec![0_u8; 16];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(code.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
        bytes
    }

    #[test]
    fn only_the_power_key_going_down_counts() {
        assert!(is_power_press(&event(EV_KEY, KEY_POWER, 1)));
        assert!(!is_power_press(&event(EV_KEY, KEY_POWER, 0)));
        assert!(!is_power_press(&event(EV_KEY, 30, 1)));
        assert!(!is_power_press(&event(0, KEY_POWER, 1)));
        assert!(!is_power_press(&[1, 2, 3]));
    }

    #[test]
    fn passed_deadline_leaves_no_time() {
        assert_eq!(timeout(Some(Instant::now())), None);
        assert_eq!(timeout(None), Some(PollTimeout::NONE));
    }
}
