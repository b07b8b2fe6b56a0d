//! The end of the machine: everybody is asked to end, then made to, file systems are written and let go, power off.

use crate::console::say;
use crate::port;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sync};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// How long processes have between being asked and being killed.
const GRACE: Duration = Duration::from_secs(3);
/// Between two looks at whether they are gone. Signals are no help: not every process is a child of init.
const INTERVAL: Duration = Duration::from_millis(5);

/// The ways in which the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Off.
    PowerOff,
    /// Off, through the debug-exit port with this code if there is one.
    Exit(u8),
    /// Again from the start.
    Reboot,
    /// Stopped with the power on.
    Halt,
}

/// Ends the machine.
pub(crate) fn stop(way: Stop) -> ! {
    end_processes();
    sync();
    let_go_of_file_systems();
    if let Stop::Exit(code) = way {
        match port::exit(code) {
            Ok(()) => say!("There is no debug-exit port, powering off"),
            Err(error) => say!("Cannot write the debug-exit port, powering off: {error}"),
        }
    }
    let mode = match way {
        Stop::PowerOff | Stop::Exit(_) => RebootMode::RB_POWER_OFF,
        Stop::Reboot => RebootMode::RB_AUTOBOOT,
        Stop::Halt => RebootMode::RB_HALT_SYSTEM,
    };
    let Err(error) = reboot(mode);
    say!("The kernel does not stop: {error}");
    loop {
        thread::park();
    }
}

fn end_processes() {
    let everyone = Pid::from_raw(-1);
    // Interactive shells ignore SIGTERM and end at a hang-up; stopped processes must be woken to end at all.
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCONT] {
        // It fails only without a reader, which is what it is for.
        let _ = kill(everyone, signal);
    }
    if !all_gone_within(GRACE) {
        let _ = kill(everyone, Signal::SIGKILL);
        all_gone_within(GRACE);
    }
}

/// Reaps until no process is left beside init. All are its descendants: orphans become its children.
fn all_gone_within(time: Duration) -> bool {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return true,
            Ok(WaitStatus::StillAlive) => thread::sleep(INTERVAL),
            _ => {}
        }
    }
    false
}

/// Unmounts what can be and makes the rest read-only, last mounted first.
fn let_go_of_file_systems() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let on_disk = mounts.lines().rev().filter(|line| line.starts_with("/dev/"));
    for target in on_disk.filter_map(|line| line.split(' ').nth(1)) {
        if umount2(target, MntFlags::empty()).is_ok() {
            continue;
        }
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        if let Err(error) = mount(None::<&str>, target, None::<&str>, flags, None::<&str>) {
            say!("Cannot make {target} read-only: {error}");
        }
    }
    sync();
}
