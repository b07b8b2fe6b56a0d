//! The line that tells whoever started the guest that it is up, and what it has.

use crate::cards::{self, Card};
use crate::console::{machine_line, say};
use nix::sys::utsname::uname;
use serde::Serialize;
use std::fs;
use std::thread;

/// The JSON of the line. Zero stands for a figure that could not be read.
#[derive(Debug, Serialize)]
struct Ready {
    kernel: String,
    cpus: usize,
    mem_kib: u64,
    uptime_ms: u64,
    cards: Vec<Card>,
}

/// Prints it.
pub(crate) fn announce() {
    let ready = Ready {
        kernel: uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default(),
        cpus: thread::available_parallelism().map_or(0, usize::from),
        mem_kib: mem_kib(&fs::read_to_string("/proc/meminfo").unwrap_or_default()).unwrap_or(0),
        cards: cards::list(),
        uptime_ms: uptime_ms(&fs::read_to_string("/proc/uptime").unwrap_or_default()).unwrap_or(0),
    };
    match serde_json::to_string(&ready) {
        Ok(text) => machine_line(format_args!("minivmm-ready {text}")),
        Err(error) => say!("Cannot write the ready line: {error}"),
    }
}

/// `MemTotal` of a `/proc/meminfo`.
fn mem_kib(meminfo: &str) -> Option<u64> {
    meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
}

/// The first number of a `/proc/uptime`, which has two decimals of a second.
fn uptime_ms(uptime: &str) -> Option<u64> {
    let (seconds, hundredths) = uptime.split_ascii_whitespace().next()?.split_once('.')?;
    seconds.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(hundredths.parse::<u64>().ok()?.checked_mul(10)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        assert_eq!(mem_kib("MemTotal:         498340 kB\nMemFree: 1 kB\n"), Some(498_340));
        assert_eq!(uptime_ms("12.34 20.00\n"), Some(12_340));
    }

    #[test]
    fn odd_proc_files_give_nothing() {
        assert_eq!(mem_kib("MemTotal: many\n"), None);
        assert_eq!(uptime_ms("soon"), None);
    }
}
