//! All tests, at one command: those of cargo, then the stories.
//!
//! Cargo's tests run where this process runs. Stories need a KVM that boots Linux: on hardware KVM they run right here,
//! elsewhere in host VMs of one CPU each, as many side by side as there are CPUs for, each booted once.

mod cargo;
mod pool;

use crate::guest;
use crate::hostvm::Output;
use crate::hostvm::wire::Status;
use crate::place::Place;
use crate::stage::SKIPPED;
use crate::stories::{self, Story};
use crate::workspace::{self, Parts};
use images::error_chain;
use libtest_mimic::{Arguments, Completion, Conclusion, Failed, Trial};
use pool::Pool;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// No story takes longer, in an emulated processor and on a loaded machine.
const STORY_TIMEOUT: Duration = Duration::from_secs(900);
/// The stories whose times are shown.
const TIMES_SHOWN: usize = 20;
/// More host VMs side by side than this are more memory than gain.
const HOST_VMS_MAX: usize = 2;

/// The tests to run.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Only what has this in its name.
    pub filter: Option<String>,
    /// Leave cargo's tests out.
    pub only_stories: bool,
}

/// Why not even an attempt could be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The project does not build, or its guests cannot be made.
    #[error(transparent)]
    Workspace(#[from] workspace::Error),
    /// cargo could not be run.
    #[error("cargo could not be run")]
    Cargo(#[source] std::io::Error),
}

/// The results of the tests, by number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Those that did what they should.
    pub passed: u64,
    /// Those that did not.
    pub failed: u64,
    /// Those that could not be run.
    pub skipped: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl From<&Conclusion> for Tally {
    fn from(conclusion: &Conclusion) -> Self {
        Self { passed: conclusion.num_passed, failed: conclusion.num_failed, skipped: conclusion.num_ignored }
    }
}

/// Runs the selected tests and prints what became of them. With `CI=true` a skipped test is a failure.
///
/// # Errors
/// If something does not build.
pub fn run(selection: &Selection) -> Result<ExitCode, Error> {
    let mut tally = Tally::default();
    let filter = selection.filter.as_deref();
    let stories: Vec<&Story> =
        stories::all().filter(|story| filter.is_none_or(|filter| story.name.contains(filter))).collect();
    // The release is linked by one thread, which leaves the other processors to the tests.
    let parts = (!stories.is_empty()).then(|| thread::spawn(|| Parts::provide(&guest::SERIES)));
    if !selection.only_stories {
        tally.add(cargo::test(filter)?);
    }
    if let Some(parts) = parts {
        let parts = parts.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        tally.add(tell(&stories, parts));
    }
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped);
    let skips_fail = std::env::var_os("CI").is_some_and(|value| value == "true");
    let good = tally.failed == 0 && (tally.skipped == 0 || !skips_fail) && tally.passed > 0;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(stories: &[&'static Story], parts: Parts) -> Tally {
    let teller = Arc::new(Teller::choose(parts));
    println!("\nStories: {}", teller.describe());
    let trials = stories.iter().map(|&story| {
        let teller = Arc::clone(&teller);
        Trial::ignorable_test(story.name, move || teller.tell(story))
    });
    let arguments = Arguments { test_threads: Some(teller.side_by_side()), ..Arguments::default() };
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    for (name, report) in teller.reports.taken() {
        println!("--- {name}\n{}", report.trim_end());
    }
    // Last, where it is easy to find.
    for (name, report) in teller.failures.taken() {
        println!("--- failed: {name}\n{}", report.trim_end());
    }
    for (name, took) in teller.times.longest() {
        println!("{:7.1} s {name}", took.as_secs_f64());
    }
    Tally::from(&conclusion)
}

/// Runs stories where they can run, and collects their reports.
struct Teller {
    parts: Parts,
    program: Result<PathBuf, std::io::Error>,
    place: Place,
    host_vms: Option<Pool>,
    reports: Reports,
    failures: Reports,
    times: Times,
}

/// How long stories took, by name.
#[derive(Default)]
struct Times(Mutex<Vec<(&'static str, Duration)>>);

impl Times {
    fn add(&self, name: &'static str, took: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((name, took));
    }

    /// The longest first, as many as are worth a look.
    fn longest(&self) -> Vec<(&'static str, Duration)> {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        times.sort_by_key(|&(_, took)| std::cmp::Reverse(took));
        times.truncate(TIMES_SHOWN);
        times
    }
}

/// The output of stories, by name, in the order of their ends.
#[derive(Default)]
struct Reports(Mutex<Vec<(&'static str, String)>>);

impl Reports {
    fn add(&self, name: &'static str, report: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((name, report));
    }

    fn taken(&self) -> Vec<(&'static str, String)> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Teller {
    fn choose(parts: Parts) -> Self {
        let place = Place::ask();
        let host_vms = (!place.boots_linux()).then(|| Pool::new(processors().min(HOST_VMS_MAX)));
        Self {
            parts,
            program: std::env::current_exe(),
            place,
            host_vms,
            reports: Reports::default(),
            failures: Reports::default(),
            times: Times::default(),
        }
    }

    fn describe(&self) -> String {
        match &self.host_vms {
            None => format!("{}; they run right here, each in its own namespaces", self.place),
            Some(pool) => format!(
                "{}; they run in the host VM (a Linux host emulated by QEMU), {} side by side",
                self.place,
                pool.size()
            ),
        }
    }

    fn side_by_side(&self) -> usize {
        // Natively, one at a time: a story's machine has up to four vCPUs of its own.
        self.host_vms.as_ref().map_or(1, Pool::size)
    }

    fn tell(&self, story: &'static Story) -> Result<Completion, Failed> {
        let program = self.program.as_ref().map_err(|error| Failed::from(error.to_string()))?;
        let mut words = vec![program.to_string_lossy().into_owned(), "story".to_owned(), story.name.to_owned()];
        words.extend(self.parts.flags());
        let start = Instant::now();
        let output = match &self.host_vms {
            None => here(&words)?,
            Some(pool) => pool.run(words, STORY_TIMEOUT).map_err(|error| {
                self.failures.add(story.name, error_chain(&error));
                error_chain(&error)
            })?,
        };
        self.times.add(story.name, start.elapsed());
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status {
            Status::Code(0) => {
                if !report.is_empty() {
                    self.reports.add(story.name, report);
                }
                Ok(Completion::Completed)
            }
            Status::Code(code) if code == i32::from(SKIPPED) => Ok(Completion::ignored_with(report.trim())),
            status => {
                let whole = format!("{report}{}{status:?}", String::from_utf8_lossy(&output.stderr));
                self.failures.add(story.name, whole.clone());
                Err(Failed::from(whole))
            }
        }
    }
}

fn here(words: &[String]) -> Result<Output, Failed> {
    let seconds = STORY_TIMEOUT.as_secs().to_string();
    let output = Command::new("timeout").args(["--kill-after=10", &seconds]).args(words).output()?;
    let status = output.status.code().map_or(Status::TimedOut, Status::Code);
    Ok(Output { status, stdout: output.stdout, stderr: output.stderr })
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}
