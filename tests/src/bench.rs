//! Benchmarks: interleaved runs of minivmm and a peer, medians, a JSON result and a table.

pub mod boot;
pub mod card;
mod clock;
pub mod files;
pub mod guest;
pub mod instructions;
pub mod latency;
pub mod many;
pub mod nat;
pub mod readme;
pub mod ssh;
pub mod start;
mod trace;
pub mod usage;

use crate::demo;
use crate::hostvm::wire::Command;
use crate::hostvm::{Config, HostVm};
use crate::place::Place;
use crate::workspace::target_folder;
use serde::Serialize;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, ExitCode};
use std::time::Duration;

/// No benchmark takes longer in the host VM.
const HOST_VM_TIMEOUT: Duration = Duration::from_secs(7200);

/// Middle and spread of one measured figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The smallest value.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// The largest value.
    pub max: f64,
}

impl Spread {
    /// Of any number of values; all zero if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |idx: usize| values.get(idx).copied().unwrap_or(0.0);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { at(middle) } else { (at(middle.saturating_sub(1)) + at(middle)) / 2.0 };
        Self { min: at(0), median, max: values.last().copied().unwrap_or(0.0) }
    }
}

/// Runs this program's `words` where Linux guests run, and copies the result, which they write to `fresh`, to `json`.
///
/// # Errors
/// If the host VM does not come up, or the result cannot be copied.
pub fn run_where_linux_boots(words: &[OsString], fresh: &Path, json: &Path) -> Result<ExitCode, Box<dyn Error>> {
    let program = std::env::current_exe()?;
    let place = Place::ask();
    let code = if place.boots_linux() {
        std::process::Command::new(program).args(words).status()?.code().unwrap_or(125)
    } else {
        println!("This machine has {place}: measured in the host VM, a Linux host emulated by QEMU");
        let vm = HostVm::boot(&Config::new(&target_folder().join("hostvm")))?;
        let all = std::iter::once(program.to_string_lossy()).chain(words.iter().map(|word| word.to_string_lossy()));
        let status = vm.stream(Command::new(all), HOST_VM_TIMEOUT, &mut demo::print)?;
        vm.shutdown()?;
        status.shell_code().into()
    };
    if code != 0 {
        return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
    }
    if let Some(folder) = json.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(fresh, json)?;
    println!("{}", json.display());
    Ok(ExitCode::SUCCESS)
}

/// Kills a contestant and waits until none of its processes is left, so that none tidies up in the next one's time.
fn end(child: &mut Child) {
    // It may have ended by itself.
    let _gone = child.kill();
    let _status = child.wait();
    // This is process 1 of its namespace: children of the killed one are ours now.
    while nix::sys::wait::wait().is_ok() {}
}

/// Counts by name, with their sum first.
fn listed(what: &str, figures: &[(String, f64)]) -> String {
    let sum: f64 = figures.iter().map(|(_, count)| count).sum();
    let each: Vec<_> = figures.iter().map(|(name, count)| format!("{name} {count:.2}")).collect();
    format!("{sum:5.2} {what}: {}", each.join(", "))
}

/// Writes a report as JSON.
///
/// # Errors
/// If the file cannot be written.
pub fn write_json(report: &impl Serialize, path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let text = serde_json::to_string_pretty(report).map_err(io::Error::other)?;
    fs::write(path, text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_or_the_mean_of_both_middles() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { min: 1.0, median: 2.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of([]).median, 0.0);
    }
}
