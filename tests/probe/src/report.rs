//! Results as plain lines on the first serial port, and the end of the VM.
//!
//! Lines are `ok SUBJECT NAME`, `not ok SUBJECT NAME: reason`, `skip SUBJECT NAME: reason`, `# note`, and at the end
//! `N passed, N failed, N skipped`. Anything else on the port comes from firmware.

use core::fmt::{self, Write};

use crate::cpu;

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 0x20;
const EXIT_PORT: u16 = 0xf4;
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
const FAILURE_BYTES: usize = 192;

/// Values for the debug-exit port. QEMU exits with `value << 1 | 1`, minivmm with the value.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Every check passed or was skipped.
    Passed = 0,
    /// At least one check failed.
    Failed = 1,
    /// The probe itself met an exception or a broken assumption.
    Broken = 2,
}

/// The first serial port, polled.
pub(crate) struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // A port that never gets ready is written to all the same: losing a byte beats hanging.
            cpu::wait(cpu::SECOND_TICKS / 16, || cpu::in8(LINE_STATUS) & TRANSMITTER_EMPTY != 0);
            cpu::out8(COM1, byte);
        }
        Ok(())
    }
}

/// Prints one line.
#[macro_export]
macro_rules! line {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        // Serial never fails.
        let _ = writeln!($crate::report::Serial, $($arg)*);
    }};
}

/// Leaves the check with a failure unless the condition holds.
#[macro_export]
macro_rules! require {
    ($condition:expr, $($arg:tt)*) => {
        if !$condition {
            return Err($crate::report::Outcome::failure(format_args!($($arg)*)));
        }
    };
}

/// Leaves the check with a failure.
#[macro_export]
macro_rules! fail {
    ($($arg:tt)*) => {
        return Err($crate::report::Outcome::failure(format_args!($($arg)*)))
    };
}

/// Leaves the check as skipped.
#[macro_export]
macro_rules! skip {
    ($($arg:tt)*) => {
        return Err($crate::report::Outcome::skip(format_args!($($arg)*)))
    };
}

/// Why a check did not pass.
pub(crate) struct Outcome {
    skipped: bool,
    text: [u8; FAILURE_BYTES],
    len: usize,
}

/// What a check returns.
pub(crate) type Check<T = ()> = Result<T, Outcome>;

impl Outcome {
    /// A failure with its reason; text past the buffer is cut.
    pub(crate) fn failure(reason: fmt::Arguments<'_>) -> Self {
        Self::new(reason, false)
    }

    /// Something that this VM does not have, so that nothing could be checked.
    pub(crate) fn skip(reason: fmt::Arguments<'_>) -> Self {
        Self::new(reason, true)
    }

    fn new(reason: fmt::Arguments<'_>, skipped: bool) -> Self {
        let mut outcome = Self { skipped, text: [0; FAILURE_BYTES], len: 0 };
        // write_str below cuts instead of failing.
        let _ = outcome.write_fmt(reason);
        outcome
    }

    fn reason(&self) -> &str {
        core::str::from_utf8(self.text.get(..self.len).unwrap_or_default()).unwrap_or("reason was cut inside a character")
    }
}

impl Write for Outcome {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if let Some(slot) = self.text.get_mut(self.len) {
                *slot = byte;
                self.len += 1;
            }
        }
        Ok(())
    }
}

/// Counts of everything reported so far.
#[derive(Default)]
pub(crate) struct Report {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Report {
    /// Runs one check and prints its line.
    pub(crate) fn check(&mut self, subject: impl fmt::Display, name: &str, check: impl FnOnce() -> Check) {
        match check() {
            Ok(()) => {
                self.passed += 1;
                line!("ok {subject} {name}");
            }
            Err(outcome) if outcome.skipped => {
                self.skipped += 1;
                line!("skip {subject} {name}: {}", outcome.reason());
            }
            Err(outcome) => {
                self.failed += 1;
                line!("not ok {subject} {name}: {}", outcome.reason());
            }
        }
    }

    /// Prints the totals and ends the VM.
    pub(crate) fn finish(self) -> ! {
        line!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        exit(if self.failed == 0 { Exit::Passed } else { Exit::Failed })
    }
}

/// Ends the VM: through the debug-exit port, or, where there is none, by a reset.
pub(crate) fn exit(code: Exit) -> ! {
    cpu::out8(EXIT_PORT, code as u8);
    cpu::out8(KEYBOARD_COMMAND, KEYBOARD_RESET);
    loop {
        cpu::halt();
    }
}
