//! Results as plain lines on the first serial port, and the end of the VM.
//!
//! Lines are `ok SUBJECT NAME`, `not ok SUBJECT NAME: reason`, `skip SUBJECT NAME: reason`, `# note`, and at the end
//! `N passed, N failed, N skipped`. Anything else on the port comes from firmware.

use core::fmt::{self, Write};
use crate::{cpu, interrupts};

const COM1: u16 = 0x3f8;
const FIFO_CONTROL: u16 = COM1 + 2;
const LINE_STATUS: u16 = COM1 + 5;
const DATA_READY: u8 = 0x01;
const TRANSMITTER_EMPTY: u8 = 0x20;
const EXIT_PORT: u16 = 0xf4;
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
const PVPANIC: u16 = 0x505;
const PANICKED: u8 = 1;
/// Longer lines are cut.
const LINE_BYTES: usize = 240;

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

/// How the VM ends after a clean report.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Through the debug-exit port.
    Exit,
    /// By the keyboard controller's reset line.
    Reset,
    /// With a report to pvpanic.
    Panic,
    /// By a triple fault.
    TripleFault,
}

/// The first serial port, polled once per filling of its FIFO: on a machine where an exit takes 50 us and more, asking
/// before every byte would make printing the most expensive thing the probe does.
pub(crate) struct Serial;

/// Bytes that a 16550A takes at once.
const FIFO_BYTES: usize = 16;

impl Serial {
    /// Turns the FIFOs on.
    pub(crate) fn prepare() {
        cpu::out8(FIFO_CONTROL, 1);
    }

    /// The next byte that has come in, if there is one.
    pub(crate) fn read(&self) -> Option<u8> {
        (cpu::in8(LINE_STATUS) & DATA_READY != 0).then(|| cpu::in8(COM1))
    }
}

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for bytes in text.as_bytes().chunks(FIFO_BYTES) {
            // A port that never gets ready is written to all the same: losing bytes beats hanging.
            cpu::wait(cpu::SECOND_TICKS / 16, || cpu::in8(LINE_STATUS) & TRANSMITTER_EMPTY != 0);
            bytes.iter().for_each(|&byte| cpu::out8(COM1, byte));
        }
        Ok(())
    }
}

/// A line under construction, so that it goes out in as few pieces as possible.
pub(crate) struct Line {
    text: [u8; LINE_BYTES],
    len: usize,
}

impl Line {
    /// An empty line.
    pub(crate) fn new() -> Self {
        Self { text: [0; LINE_BYTES], len: 0 }
    }

    /// The text so far.
    pub(crate) fn as_str(&self) -> &str {
        core::str::from_utf8(self.text.get(..self.len).unwrap_or_default()).unwrap_or("text was cut inside a character")
    }
}

impl Write for Line {
    /// Cuts what does not fit.
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

/// Prints one line.
#[macro_export]
macro_rules! line {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        let mut line = $crate::report::Line::new();
        // Neither a line nor the serial port ever fails.
        let _ = writeln!(line, $($arg)*);
        let _ = $crate::report::Serial.write_str(line.as_str());
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
    reason: Line,
}

/// The result of a check.
pub(crate) type Check<T = ()> = Result<T, Outcome>;

impl Outcome {
    /// A failure with its reason.
    pub(crate) fn failure(reason: fmt::Arguments<'_>) -> Self {
        Self::new(reason, false)
    }

    /// Something that this VM does not have, so that nothing could be checked.
    pub(crate) fn skip(reason: fmt::Arguments<'_>) -> Self {
        Self::new(reason, true)
    }

    /// Why.
    pub(crate) fn reason(&self) -> &str {
        self.reason.as_str()
    }

    fn new(reason: fmt::Arguments<'_>, skipped: bool) -> Self {
        let mut line = Line::new();
        // A line never fails.
        let _ = line.write_fmt(reason);
        Self { skipped, reason: line }
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
                line!("skip {subject} {name}: {}", outcome.reason.as_str());
            }
            Err(outcome) => {
                self.failed += 1;
                line!("not ok {subject} {name}: {}", outcome.reason.as_str());
            }
        }
    }

    /// Prints the totals and ends the VM, in the wished way if nothing failed.
    pub(crate) fn finish(self, end: End) -> ! {
        line!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        if self.failed != 0 {
            exit(Exit::Failed);
        }
        match end {
            End::Exit => {}
            End::Reset => cpu::out8(KEYBOARD_COMMAND, KEYBOARD_RESET),
            End::Panic => cpu::out8(PVPANIC, PANICKED),
            End::TripleFault => interrupts::shut_down(),
        }
        if end != End::Exit {
            // Some VMMs take a moment to act; one that never does gets the code of a failure.
            cpu::wait(cpu::SECOND_TICKS, || false);
            exit(Exit::Failed);
        }
        exit(Exit::Passed)
    }
}

/// Ends the VM: through the debug-exit port, or, where there is none, by a reset.
pub(crate) fn exit(code: Exit) -> ! {
    cpu::out8(EXIT_PORT, code as u8);
    cpu::out8(KEYBOARD_COMMAND, KEYBOARD_RESET);
    interrupts::sleep()
}
