//! The `log` backend: lines on stderr, with a [budget] for those that a guest can cause.
//!
//! Levels: error = the user's wish failed; warn = odd but served; info = rare change; debug = for developers, with the
//! time since the start.
//!
//! A line never waits for whoever reads stderr: guests cause lines, and a reader that has stopped reading would stop
//! vCPUs, workers and the control loop. What does not fit is dropped and counted. The check and the write are two
//! steps, so another process that fills the same pipe in between can still make one line wait.

mod budget;

use crate::console::terminal;
use crate::event;
use budget::{Budget, Place};
use log::{LevelFilter, Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags};
use std::borrow::Cow;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A crate whose lines any guest can cause at any rate; what matters of them is counted by the devices.
const GUEST_DRIVEN: &str = "virtio_queue";

/// Bytes of a line at most: a pipe that polls as writable takes this many without blocking (POSIX: PIPE_BUF).
const LINE_BYTES: usize = 4096;

/// How long what the user must know waits for the reader of stderr.
const READER_TIMEOUT: Duration = Duration::from_secs(1);

/// Characters that change the direction of a text (Unicode Standard Annex 9), and separators of lines and paragraphs.
const DIRECTIONS: [char; 13] = [
    '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}', '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}',
    '\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}',
];

struct Stderr {
    start: Instant,
    /// Held for a moment, and never while a line is written.
    budget: Mutex<Budget>,
}

/// Starts logging at `level`. Called once, first thing.
pub(crate) fn init(level: LevelFilter) {
    let logger = Stderr { start: Instant::now(), budget: Mutex::default() };
    // Fails only if there is a logger already, and then that one goes on.
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
    }
}

/// `text` with everything that a terminal could obey, or that changes the order of what it shows, as JSON writes it: a
/// text of other processes may be in it. Ends of lines and tabs stay.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let is_harmless = |c: char| matches!(c, '\n' | '\t') || !(c.is_control() || DIRECTIONS.contains(&c));
    if text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmless(c) {
            printable.push(c);
        } else {
            printable.push_str(&format!("\\u{:04x}", u32::from(c)));
        }
    }
    Cow::Owned(printable)
}

/// Writes one line for the user to stderr, whatever the log level.
pub(crate) fn tell(text: &str) {
    // There is no other place to report that stderr does not work.
    let _ =
        write(&mut std::io::stderr().lock(), &format!("{}{}", printable(text), terminal::line_end()), READER_TIMEOUT);
}

/// Writes `line` if its reader makes room within `timeout`.
fn write(to: &mut (impl Write + AsFd), line: &str, timeout: Duration) -> io::Result<()> {
    if event::poll(&mut [PollFd::new(to.as_fd(), PollFlags::POLLOUT)], Some(timeout))? == 0 {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let bytes = line.as_bytes();
    to.write_all(&bytes[..bytes.len().min(LINE_BYTES)])
}

impl Stderr {
    fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where `record` was logged. A macro names both; what does not has a place with others.
fn place(record: &Record<'_>) -> Place {
    (record.file_static().unwrap_or_default(), record.line().unwrap_or_default())
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        !metadata.target().starts_with(GUEST_DRIVEN)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let since = self.start.elapsed();
        let Some(dropped) = self.budget().admit(place(record), since) else { return };
        let end = terminal::line_end();
        let level = record.level().as_str().to_ascii_lowercase();
        let mut line = format!("minivmm: {level}: ");
        if log::max_level() >= LevelFilter::Debug {
            line = format!("minivmm: {:>6} us {level}: ", since.as_micros());
        }
        line.push_str(&printable(&record.args().to_string().replace('\n', " ")));
        line.push_str(end);
        if dropped > 0 {
            line.push_str(&format!("minivmm: warn: {dropped} more lines were dropped{end}"));
        }
        // The lock keeps two threads from both finding room for one line.
        if write(&mut std::io::stderr().lock(), &line, Duration::ZERO).is_err() {
            self.budget().lost(dropped.saturating_add(1));
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logger() -> Stderr {
        Stderr { start: Instant::now(), budget: Mutex::default() }
    }

    #[test]
    fn line_that_nobody_reads_is_not_waited_for() {
        let (_reader, mut stuck) = io::pipe().unwrap();
        let before = Instant::now();
        while write(&mut stuck, &"x".repeat(2 * LINE_BYTES), Duration::ZERO).is_ok() {
            assert!(before.elapsed() < Duration::from_secs(30), "the pipe does not fill");
        }

        assert_eq!(write(&mut stuck, "x", Duration::ZERO).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn lines_of_the_ring_parser_are_never_shown() {
        let metadata = |target| Metadata::builder().target(target).build();
        assert!(!logger().enabled(&metadata("virtio_queue::chain")));
        assert!(logger().enabled(&metadata("minivmm::machine")));
    }

    #[test]
    fn text_of_others_moves_no_terminal() {
        assert_eq!(printable("plain text: \u{fc}\n\ttoo"), "plain text: \u{fc}\n\ttoo");
        let text = "\u{1b}[2J\r\u{7f}\u{9b}31m\u{202e}";
        assert_eq!(printable(text), "\\u001b[2J\\u000d\\u007f\\u009b31m\\u202e");
    }
}
