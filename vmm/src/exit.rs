//! How the process ends: the one table of exit codes, read by `--help` and the tests; docs/operations.md has it too.
//!
//! The guest owns the small numbers. minivmm's own are those of `sysexits.h`, `timeout(1)` and the shell, and start at
//! 64, so a guest that keeps to 0 to 63 is never mistaken for anything else.

use devices::legacy::event::ResetLine;
use std::fmt;
use std::process::ExitCode;

/// Why a run of the machine, and with it the process, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest reset itself, in this way.
    Reset(ResetWay),
    /// The guest asked for this code through the debug-exit port.
    Requested(u8),
    /// The guest's kernel panicked.
    Panicked,
    /// The guest's processor shut down: a triple fault.
    Crashed,
    /// The guest did not power off in time after it was asked to.
    StopTimeout,
    /// A card had no address in time.
    NoAddress,
    /// Stopped at once by a signal, or by the console's quit key as if by SIGINT.
    Killed(u8),
}

/// How a guest reset itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResetWay {
    /// Through a register.
    Line(ResetLine),
    /// By a triple fault that its kernel had announced.
    TripleFault,
    /// Its boot processor got an INIT and began at the reset vector of the hardware, where nothing is.
    Init,
    /// Through KVM.
    Kvm,
}

impl fmt::Display for ResetWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Line(ResetLine::Keyboard) => "the keyboard controller",
            Self::Line(ResetLine::Chipset) => "the chipset's reset register, port 0xcf9",
            Self::Line(ResetLine::Acpi) => "the reset register of ACPI",
            Self::Line(ResetLine::Vector) => "a jump to the reset vector",
            Self::TripleFault => "a triple fault",
            Self::Init => "an INIT to its boot processor",
            Self::Kvm => "KVM",
        })
    }
}

/// Usage error: the command line asks for something that cannot be had.
pub(crate) const USAGE: u8 = 64;
/// A bug in minivmm.
pub(crate) const INTERNAL: u8 = 70;
/// The host failed.
pub(crate) const HOST: u8 = 71;
/// The guest reset itself where that ends the run and was not asked for.
pub(crate) const RESET: u8 = 96;
/// No address within `--wait-net`.
pub(crate) const NO_ADDRESS: u8 = 97;
/// The guest crashed.
pub(crate) const CRASHED: u8 = 98;
/// The guest panicked.
pub(crate) const PANICKED: u8 = 99;
/// As `timeout(1)`.
pub(crate) const STOP_TIMEOUT: u8 = 124;
/// As the shell: plus the number of the signal.
pub(crate) const SIGNAL_BASE: u8 = 128;

/// The table, for `--help`.
pub(crate) const TABLE: &str = "\
Exit codes:
  0      The guest powered off, or reset itself when it was asked to power off or
         with --on-reboot power-off
  N      The guest wrote N to the debug-exit port 0xf4 (its low 8 bits; no other
         ending uses 1 to 63)
  64     Usage error: a flag that is wrong, or that names what does not exist or
         cannot be used
  70     Internal error: a bug in minivmm
  71     The host failed: no KVM, no permission for a device, out of resources,
         a vCPU that cannot go on, a disk with --on-disk-error stop; of minivmm
         doctor: a start would not work
  96     The guest reset itself, with --on-reboot exit: a reboot, a watchdog, an
         initramfs that found no root
  97     A card had no address within --wait-net
  98     The guest crashed (triple fault)
  99     The guest's kernel panicked (told by pvpanic, or by how it resets)
  124    The guest did not power off within --stop-timeout after SIGTERM, SIGINT,
         SIGHUP, SIGPWR or SIGXCPU
  128+S  Stopped at once: by a second signal S, by one that comes before the guest
         runs, by SIGQUIT and others, or by the console's quit key (130)";

impl Outcome {
    /// Its code in the table.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::PoweredOff => 0,
            Self::Requested(code) => code,
            Self::Reset(_) => RESET,
            Self::Panicked => PANICKED,
            Self::Crashed => CRASHED,
            Self::NoAddress => NO_ADDRESS,
            Self::StopTimeout => STOP_TIMEOUT,
            Self::Killed(signal) => SIGNAL_BASE.saturating_add(signal),
        }
    }
}

/// Ends the process with `code`, now: without waiting for any thread, and without `atexit` functions, which would run
/// beside threads that still use what they take down.
#[expect(unsafe_code, reason = "_exit has no safe wrapper in the crates used here")]
pub(crate) fn at_once(code: u8) -> ! {
    // SAFETY: _exit never returns and takes any value.
    unsafe { libc::_exit(code.into()) }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(outcome.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_ours_is_in_the_table() {
        for code in [0, USAGE, INTERNAL, HOST, RESET, NO_ADDRESS, CRASHED, PANICKED, STOP_TIMEOUT] {
            assert!(TABLE.lines().any(|l| l.trim().starts_with(&format!("{code} "))), "{code}");
        }
    }

    #[test]
    fn every_code_of_the_table_is_in_the_documentation() {
        let page = include_str!("../../docs/operations.md");
        let codes = TABLE.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        for code in codes.filter_map(|line| line.split_whitespace().next()) {
            assert!(page.contains(&format!("\n| {code} |")), "{code}");
        }
    }

    #[test]
    fn quit_key_and_signals_follow_the_shell() {
        assert_eq!(Outcome::Killed(2).code(), 130);
        assert_eq!(Outcome::Killed(15).code(), 143);
    }

    #[test]
    fn guest_chooses_its_code() {
        assert_eq!(Outcome::Requested(7).code(), 7);
        assert_eq!(Outcome::PoweredOff.code(), 0);
        assert_eq!(Outcome::Reset(ResetWay::TripleFault).code(), 96);
    }
}
