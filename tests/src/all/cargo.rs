//! Cargo's own tests, counted.

use super::{Error, Tally};
use crate::workspace::root;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Runs the workspace's tests, shows their output as it comes and adds up their results. Output without any result
/// line, because something does not compile, counts as one failure.
pub(super) fn test(filter: Option<&str>) -> Result<Tally, Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut child = Command::new(cargo)
        .args(["test", "--workspace", "--no-fail-fast", "--features", "minivmm/attacks", "--"])
        .args(filter)
        .current_dir(root())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(Error::Cargo)?;
    let mut tally = Tally::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line.map_err(Error::Cargo)?;
            println!("{line}");
            tally.add(parse(&line).unwrap_or_default());
        }
    }
    let status = child.wait().map_err(Error::Cargo)?;
    if !status.success() && tally.failed == 0 {
        tally.failed = 1;
    }
    Ok(tally)
}

/// The numbers of a `test result: ok. 1 passed; 2 failed; 3 ignored; ...` line.
fn parse(line: &str) -> Option<Tally> {
    let numbers = line.strip_prefix("test result: ")?;
    let number = |what: &str| -> Option<u64> { numbers.split(what).next()?.split_whitespace().last()?.parse().ok() };
    Some(Tally { passed: number(" passed;")?, failed: number(" failed;")?, skipped: number(" ignored;")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_added_up_and_others_are_not() {
        let line = "test result: FAILED. 12 passed; 3 failed; 4 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(parse(line), Some(Tally { passed: 12, failed: 3, skipped: 4 }));
        assert_eq!(parse("test something ... ok"), None);
    }
}
