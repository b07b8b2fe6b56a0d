//! The bare-metal probe guest (`tests/probe`): built, run on a VMM, and its lines read.

pub mod machine;
pub mod peer;

use crate::workspace::root;
use std::path::{Path, PathBuf};
use std::process::Command;

/// QEMU's processor for the probe, on KVM. A KVM without hardware support may list an MSR of speculation controls that
/// it does not let QEMU set; the probe has no use for it.
pub const QEMU_CPU: &str = "host,arch-capabilities=off";

/// Why there is no probe, or no VMM to run it on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// cargo could not be started.
    #[error("cargo could not be started")]
    Cargo(#[source] std::io::Error),
    /// cargo failed; it has said why.
    #[error("{what} does not build")]
    Build {
        /// The object that was to be built.
        what: &'static str,
    },
}

/// Builds the probe below the given cargo target folder. It is a workspace of its own, with flags of its own.
///
/// # Errors
/// If it does not build.
pub fn build(target: &Path) -> Result<PathBuf, Error> {
    let folder = target.join("probe");
    cargo("The probe guest", &root().join("tests/probe"), &[], &folder)?;
    Ok(folder.join(TRIPLE).join("release/probe"))
}

/// Builds minivmm into the given cargo target folder, as it is released.
///
/// # Errors
/// If it does not build.
pub fn build_minivmm(target: &Path) -> Result<PathBuf, Error> {
    cargo("minivmm", root(), &["--package", "minivmm"], target)?;
    Ok(target.join(TRIPLE).join("release/minivmm"))
}

/// The cargo target folder that a path inside it belongs to: the one that holds the folder of our triple.
pub fn target_of(path: &Path) -> PathBuf {
    let folder = path.ancestors().find(|folder| folder.ends_with(TRIPLE)).and_then(Path::parent);
    folder.map_or_else(|| root().join("target"), Path::to_path_buf)
}

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

fn cargo(what: &'static str, dir: &Path, words: &[&str], target: &Path) -> Result<(), Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--quiet"])
        .args(words)
        .arg("--target-dir")
        .arg(target)
        .current_dir(dir)
        .status()
        .map_err(Error::Cargo)?;
    if status.success() { Ok(()) } else { Err(Error::Build { what }) }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It held.
    Passed,
    /// It did not, and why.
    Failed(String),
    /// The VMM does not have what it checks, or does not promise it.
    Skipped(String),
}

/// One line of the probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Subject and name of the check.
    pub name: String,
    /// Its result.
    pub outcome: Outcome,
}

impl Verdict {
    /// Reads a line; `None` if it is none of the probe's verdicts.
    pub fn parse(line: &str) -> Option<Self> {
        let line = line.trim_end();
        if let Some(name) = line.strip_prefix("ok ") {
            return Some(Self { name: name.to_owned(), outcome: Outcome::Passed });
        }
        let (rest, outcome): (_, fn(String) -> Outcome) = match line.strip_prefix("not ok ") {
            Some(rest) => (rest, Outcome::Failed),
            None => (line.strip_prefix("skip ")?, Outcome::Skipped),
        };
        let (name, reason) = rest.split_once(": ").unwrap_or((rest, ""));
        Some(Self { name: name.to_owned(), outcome: outcome(reason.to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_verdicts_and_others_do_not() {
        let verdict = |name: &str, outcome| Some(Verdict { name: name.to_owned(), outcome });
        assert_eq!(Verdict::parse("ok net0 isr\r\n"), verdict("net0 isr", Outcome::Passed));
        assert_eq!(Verdict::parse("not ok a b: c: d"), verdict("a b", Outcome::Failed("c: d".to_owned())));
        assert_eq!(Verdict::parse("skip a b: none"), verdict("a b", Outcome::Skipped("none".to_owned())));
        assert_eq!(Verdict::parse("# okay"), None);
        assert_eq!(Verdict::parse("3 passed, 0 failed, 0 skipped"), None);
    }
}
