//! Runs cases, each in a thread and namespaces of its own.

use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;

/// Runs `cases`, each in a thread that calls `isolate` first; or skips them all by name for the reason `missing`.
pub(crate) fn run_cases(cases: &[(&'static str, fn())], missing: Option<&str>, isolate: fn()) -> ExitCode {
    if let Some(reason) = missing {
        cases.iter().for_each(|(name, _)| println!("skipped {name}: {reason}"));
    }
    let trial = |&(name, case): &(&'static str, fn())| {
        let run = move || {
            // A thread of its own: the harness uses its threads again.
            let thread = std::thread::spawn(move || {
                isolate();
                case();
            });
            thread.join().map_err(|_| "it panicked".into())
        };
        Trial::test(name, run).with_ignored_flag(missing.is_some())
    };
    libtest_mimic::run(&Arguments::from_args(), cases.iter().map(trial).collect()).exit_code()
}
