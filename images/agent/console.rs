//! The agent's messages. Promises that writing never fails the agent, and that lines meant for machines start a line
//! and are not cut by the kernel's own messages, which go to the same serial port: those are held back for that moment.

use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::panic;

/// `console_loglevel` and three more numbers; a message below the first is printed.
const PRINTK: &str = "/proc/sys/kernel/printk";

/// Says one line in words, for people.
macro_rules! say {
    ($($argument:tt)*) => { $crate::console::line(format_args!("minivmm-agent: {}", format_args!($($argument)*))) };
}
pub(crate) use say;

/// Makes `/dev/console` the standard input and output. The ones the kernel gave may predate the devtmpfs.
pub(crate) fn attach() {
    let console = OpenOptions::new().read(true).write(true).open("/dev/console");
    let attached = console.and_then(|console| {
        dup2_stdin(&console)?;
        dup2_stdout(&console)?;
        dup2_stderr(&console)?;
        Ok(())
    });
    if let Err(error) = attached {
        say!("Cannot open the console: {error}");
    }
}

/// Turns a bug of the agent into a line and a power-off, where the end of init would be a kernel panic.
pub(crate) fn catch_panics() {
    panic::set_hook(Box::new(|info| {
        say!("Bug in the agent, powering off: {info}");
        nix::unistd::sync();
        // There is no other place to report that this failed, too.
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }));
}

/// Writes a line.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let text = format!("{text}\n");
    let mut out = io::stdout().lock();
    // There is no other place to say that the console does not work.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Has the kernel print nothing but emergencies. Returns the level that it printed up to before.
pub(crate) fn hold_kernel_back() -> Option<String> {
    // Where the level cannot be had, lines are merely less well protected.
    let levels = fs::read_to_string(PRINTK).ok()?;
    let _ = fs::write(PRINTK, "1");
    levels.split_ascii_whitespace().next().map(str::to_owned)
}

/// Writes a line for machines, at the start of a line whatever was written before, while the kernel holds back all but
/// emergencies.
pub(crate) fn machine_line(text: fmt::Arguments<'_>) {
    let before = hold_kernel_back();
    line(format_args!("\n{text}"));
    if let Some(level) = before {
        let _ = fs::write(PRINTK, level);
    }
}

/// The terminal behind `/dev/console`, the only name under which it can be a controlling terminal.
pub(crate) fn terminal() -> Option<String> {
    let active = fs::read_to_string("/sys/class/tty/console/active").ok()?;
    // The last one listed is what /dev/console writes to.
    active.split_ascii_whitespace().last().map(|name| format!("/dev/{name}"))
}
