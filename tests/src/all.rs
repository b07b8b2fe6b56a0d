//! All tests, at one command: those of cargo, then the scenarios.
//!
//! Cargo's tests run where this process runs. Scenarios need a KVM that boots Linux: on hardware KVM they run right
//! here, elsewhere in host VMs of one CPU each, as many side by side as there are CPUs for, each booted once.

mod cargo;
mod pool;

use crate::guest;
use crate::hostvm::Output;
use crate::hostvm::wire::Status;
use crate::place::Place;
use crate::scenarios::{self, Scenario};
use crate::stage::SKIPPED;
use crate::workspace::{self, Parts};
use images::error_chain;
use libtest_mimic::{Arguments, Completion, Conclusion, Failed, Trial};
use pool::Pool;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// No scenario takes longer, in an emulated processor and on a loaded machine.
const SCENARIO_TIMEOUT: Duration = Duration::from_secs(900);
/// One of those on request has several boots of minutes each.
const LONG_SCENARIO_TIMEOUT: Duration = Duration::from_secs(5400);
/// The last words of a guest's kernel that dies before it has a first program. An emulated processor has been seen to
/// cause that: rarely, it goes on with instructions that the kernel has replaced.
const DIED_AT_BOOT: &str = "Kernel panic - not syncing: Attempted to kill the idle task!";
/// The scenarios whose times are shown.
const TIMES_SHOWN: usize = 20;
/// More host VMs side by side than this are more memory than gain.
const HOST_VMS_MAX: usize = 2;

/// The tests to run.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Only what has this in its name.
    pub filter: Option<String>,
    /// Leave cargo's tests out.
    pub only_scenarios: bool,
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
    let usual = scenarios::all().filter(|scenario| filter.is_none_or(|filter| scenario.name.contains(filter)));
    let on_request = on_request(filter);
    let scenarios: Vec<&Scenario> = usual.chain(on_request.iter().copied()).collect();
    // The release is linked by one thread, which leaves the other processors to the tests.
    let parts = (!scenarios.is_empty()).then(|| thread::spawn(|| Parts::provide(&guest::SERIES)));
    if !selection.only_scenarios {
        tally.add(cargo::test(filter)?);
    }
    if let Some(parts) = parts {
        let parts = parts.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        if on_request.iter().any(|scenario| scenarios::takes_debian(scenario)) {
            parts.provide_debian()?;
        }
        if on_request.iter().any(|scenario| !scenarios::takes_debian(scenario)) {
            parts.provide_selftests()?;
        }
        tally.add(run_scenarios(&scenarios, parts));
    }
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped);
    let skips_fail = std::env::var_os("CI").is_some_and(|value| value == "true");
    let good = tally.failed == 0 && (tally.skipped == 0 || !skips_fail) && tally.passed > 0;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_scenarios(scenarios: &[&'static Scenario], parts: Parts) -> Tally {
    let runner = Arc::new(Runner::choose(parts));
    println!("\nScenarios: {}", runner.describe());
    let trials = scenarios.iter().map(|&scenario| {
        let runner = Arc::clone(&runner);
        Trial::ignorable_test(scenario.name, move || runner.run(scenario))
    });
    let arguments = Arguments { test_threads: Some(runner.side_by_side()), ..Arguments::default() };
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    for (name, report) in runner.reports.taken() {
        println!("--- {name}\n{}", report.trim_end());
    }
    // Last, where it is easy to find.
    for (name, report) in runner.failures.taken() {
        println!("--- failed: {name}\n{}", report.trim_end());
    }
    for (name, took) in runner.times.longest() {
        println!("{:7.1} s {name}", took.as_secs_f64());
    }
    Tally::from(&conclusion)
}

/// The scenarios that run only when they are named: for a filter that begins with their subject, such as `debian` or
/// `debian::kexec`.
fn on_request(filter: Option<&str>) -> Vec<&'static Scenario> {
    let named = |scenario: &&Scenario, filter: &str| {
        let subject = scenario.name.split("::").next().unwrap_or_default();
        filter.starts_with(subject) && scenario.name.contains(filter)
    };
    let of = |filter| scenarios::on_request().filter(|scenario| named(scenario, filter)).collect();
    filter.map_or_else(Vec::new, of)
}

/// Runs scenarios where they can run, and collects their reports.
struct Runner {
    parts: Parts,
    program: Result<PathBuf, std::io::Error>,
    place: Place,
    host_vms: Option<Pool>,
    reports: Reports,
    failures: Reports,
    times: Times,
}

/// How long scenarios took, by name.
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

/// The output of scenarios, by name, in the order of their ends.
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

impl Runner {
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
        // Natively, one at a time: a scenario's machine has up to four vCPUs of its own.
        self.host_vms.as_ref().map_or(1, Pool::size)
    }

    fn run(&self, scenario: &'static Scenario) -> Result<Completion, Failed> {
        let program = self.program.as_ref().map_err(|error| Failed::from(error.to_string()))?;
        let mut words = vec![program.to_string_lossy().into_owned(), "scenario".to_owned(), scenario.name.to_owned()];
        words.extend(self.parts.flags());
        let long = scenarios::on_request().any(|other| other.name == scenario.name);
        let timeout = if long { LONG_SCENARIO_TIMEOUT } else { SCENARIO_TIMEOUT };
        let start = Instant::now();
        let output = match &self.host_vms {
            None => here(&words, timeout)?,
            Some(pool) => self.emulated(pool, scenario, words, timeout)?,
        };
        self.times.add(scenario.name, start.elapsed());
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status {
            Status::Code(0) => {
                if !report.is_empty() {
                    self.reports.add(scenario.name, report);
                }
                Ok(Completion::Completed)
            }
            Status::Code(code) if code == i32::from(SKIPPED) => Ok(Completion::ignored_with(report.trim())),
            status => {
                let whole = format!("{report}{}{status:?}", String::from_utf8_lossy(&output.stderr));
                self.failures.add(scenario.name, whole.clone());
                Err(Failed::from(whole))
            }
        }
    }

    /// Runs a scenario in a host VM, twice at most: the second time only if a guest's kernel died as [`DIED_AT_BOOT`]
    /// describes, which the report then tells.
    fn emulated(
        &self,
        pool: &Pool,
        scenario: &Scenario,
        words: Vec<String>,
        timeout: Duration,
    ) -> Result<Output, Failed> {
        let once = || {
            pool.run(words.clone(), timeout).map_err(|error| {
                self.failures.add(scenario.name, error_chain(&error));
                Failed::from(error_chain(&error))
            })
        };
        let first = once()?;
        if !died_at_boot(&first) {
            return Ok(first);
        }
        let why = String::from_utf8_lossy(&first.stderr);
        self.reports.add(scenario.name, format!("Tried twice: a guest's kernel died at boot.\n{why}"));
        once()
    }
}

fn died_at_boot(output: &Output) -> bool {
    output.status != Status::Code(0) && String::from_utf8_lossy(&output.stderr).contains(DIED_AT_BOOT)
}

fn here(words: &[String], timeout: Duration) -> Result<Output, Failed> {
    let seconds = timeout.as_secs().to_string();
    let output = Command::new("timeout").args(["--kill-after=10", &seconds]).args(words).output()?;
    let status = output.status.code().map_or(Status::TimedOut, Status::Code);
    Ok(Output { status, stdout: output.stdout, stderr: output.stderr })
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kernel_that_died_at_boot_gives_a_second_try() {
        let output = |code, stderr: &str| Output {
            status: Status::Code(code),
            stdout: Vec::new(),
            stderr: stderr.as_bytes().to_vec(),
        };
        let idle = "[    3.440960] Kernel panic - not syncing: Attempted to kill the idle task!\r\n";
        assert!(died_at_boot(&output(101, idle)));
        assert!(!died_at_boot(&output(0, idle)));
        assert!(!died_at_boot(&output(101, "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009")));
        assert!(!died_at_boot(&output(101, "minivmm ended first")));
    }

    #[test]
    fn scenarios_on_request_need_their_subject_at_the_start_of_the_filter() {
        let names = |filter| on_request(filter).iter().map(|scenario| scenario.name).collect::<Vec<_>>();
        assert_eq!(names(None), [""; 0]);
        assert_eq!(names(Some("reboot")), [""; 0]);
        assert_eq!(names(Some("debian::kexec")), ["debian::kexec_by_either_system_call_gets_back_to_ssh"]);
        let debian = scenarios::on_request().filter(|scenario| scenarios::takes_debian(scenario)).count();
        assert!(debian > 1 && debian < scenarios::on_request().count());
        assert_eq!(names(Some("debian")).len(), debian);
    }
}
