//! Instructions that the card's own code takes for a frame, counted by valgrind's callgrind: the same on a busy machine
//! as on an idle one.
//!
//! The example `burst` of `devices` moves bursts of frames through a card whose port costs nothing. Two runs of
//! different length give the slope, so start-up does not count; neither does the kernel. The figures of the repository
//! are in `devices/benches/instructions.json`. A compiler other than theirs gives others.

use crate::workspace::root;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const CASES: [&str; 4] = ["tx-64", "tx-64K", "rx-64", "rx-64K"];
/// Rounds of the two runs, and what they differ by.
const SHORT: u32 = 10;
const LONG: u32 = 60;
/// A frame may take this part more than the recorded figure says.
const TOLERANCE: f64 = 0.10;

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// cargo or valgrind could not be run.
    #[error("{program} could not be run (./run installs it)")]
    Start {
        /// Which.
        program: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A program said something unexpected.
    #[error("{program} failed: {log}")]
    Failed {
        /// Which.
        program: &'static str,
        /// Its output.
        log: String,
    },
    /// The recorded figures cannot be read or written.
    #[error("{path:?} cannot be used")]
    Baseline {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Instructions for a frame, by case.
pub type Counts = BTreeMap<String, f64>;

/// The file with the recorded figures.
pub fn baseline() -> PathBuf {
    root().join("devices/benches/instructions.json")
}

/// Builds the example into a cargo target folder and counts.
///
/// # Errors
/// If something does not build or cannot be run.
pub fn count(target: &Path) -> Result<Counts, Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--quiet", "--package", "devices", "--features", "inline-workers"]);
    build.args(["--example", "burst", "--target-dir"]).arg(target).current_dir(root());
    let status = build.status().map_err(|source| Error::Start { program: "cargo", source })?;
    if !status.success() {
        return Err(Error::Failed { program: "cargo", log: "the example does not build".to_owned() });
    }
    let program = target.join("x86_64-unknown-linux-gnu/release/examples/burst");
    CASES.iter().map(|case| Ok(((*case).to_owned(), per_frame(&program, case)?))).collect()
}

/// The recorded figures.
///
/// # Errors
/// If there are none.
pub fn recorded() -> Result<Counts, Error> {
    let path = baseline();
    let text = fs::read_to_string(&path);
    let counts = text.and_then(|text| serde_json::from_str(&text).map_err(io::Error::other));
    counts.map_err(|source| Error::Baseline { path, source })
}

/// Records figures.
///
/// # Errors
/// If the file cannot be written.
pub fn record(counts: &Counts) -> Result<(), Error> {
    let path = baseline();
    super::write_json(counts, &path).map_err(|source| Error::Baseline { path, source })
}

/// A table, and whether nothing takes more than it may.
pub fn compare(counts: &Counts, recorded: &Counts) -> (String, bool) {
    let mut text = format!("{:8} {:>12} {:>12} {:>8}\n", "frame", "instructions", "recorded", "change");
    let mut good = true;
    for (case, count) in counts {
        let before = recorded.get(case).copied().unwrap_or(f64::NAN);
        let change = count / before - 1.0;
        // Not a number where nothing was recorded, which is not good either.
        let as_it_should = change <= TOLERANCE;
        good &= as_it_should;
        let mark = if as_it_should { "" } else { "  too many" };
        text.push_str(&format!("{case:8} {count:>12.1} {before:>12.1} {:>7.1}%{mark}\n", change * 100.0));
    }
    (text, good)
}

fn per_frame(program: &Path, case: &str) -> Result<f64, Error> {
    let (short, long) = (collected(program, case, SHORT)?, collected(program, case, LONG)?);
    // Counts are far below 2^52.
    Ok((long.instructions - short.instructions) as f64 / (long.frames - short.frames) as f64)
}

struct Run {
    instructions: u64,
    frames: u64,
}

fn collected(program: &Path, case: &str, rounds: u32) -> Result<Run, Error> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([case, &rounds.to_string()])
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Start { program: "valgrind", source })?;
    let (frames, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let instructions = log.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    match (instructions, frames.trim().parse()) {
        (Some(instructions), Ok(frames)) => Ok(Run { instructions, frames }),
        _ => Err(Error::Failed { program: "valgrind", log: log.trim().to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pairs: &[(&str, f64)]) -> Counts {
        pairs.iter().map(|(case, count)| ((*case).to_owned(), *count)).collect()
    }

    #[test]
    fn a_tenth_more_is_good_and_more_or_unrecorded_is_not() {
        let recorded = counts(&[("a", 100.0), ("b", 100.0)]);
        assert!(compare(&counts(&[("a", 109.0), ("b", 50.0)]), &recorded).1);
        assert!(!compare(&counts(&[("a", 111.0)]), &recorded).1);
        assert!(!compare(&counts(&[("c", 1.0)]), &recorded).1);
    }
}
