//! The kernel matrix: Debian's kernels of every flavour, with the initrds that Debian makes for them, in sizes and with
//! command lines that guests are started with. One line for each case, and JSON.
//!
//! It is a command of its own, `./run kernels`: the downloads are 500 MB and a run takes half an hour where the host VM
//! is emulated. Cases run one after the other, each as a process of its own in namespaces of its own, all in one host
//! VM, which is replaced when it stops answering.

mod attempt;
mod case;
mod debian;
pub mod touch;

use crate::guest::SERIES;
use crate::hostvm::wire::{Command, Status};
use crate::hostvm::{Config, HostVm, Output};
use crate::place::Place;
use crate::stage::Stage;
use crate::workspace::{Parts, target_folder};
use clap::Args;
use images::error_chain;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitCode};
use std::time::Duration;

/// No case takes longer, in an emulated processor and on a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(500);
/// A host VM's memory: the largest guest has 5 GiB, which are touched. The machine outside gives only what is touched.
const HOST_MEM_MIB: u32 = 9 << 10;

/// The command line of `./run kernels`.
#[derive(Args)]
pub struct Arguments {
    /// Only cases with one of these in their names, which look like 6.12-cloud/maxcpus=1
    filters: Vec<String>,
    /// Where the result goes [default: kernels.json in cargo's target folder]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The result of a case.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    /// `SERIES-FLAVOUR/CASE`.
    name: String,
    /// `uname -r` of the kernel that was booted.
    release: String,
    /// Seconds from the start of minivmm to the agent's ready line.
    seconds: Option<f64>,
    /// `MemTotal` that the guest sees.
    mem_kib: Option<u64>,
    /// CPUs that are online then.
    cpus: Option<u64>,
    /// minivmm's exit code.
    code: Option<i32>,
    /// All that is not as it should be; nothing in a case that passed.
    faults: Vec<String>,
    /// The guest's answers.
    answers: Vec<(String, String)>,
    /// The command line.
    command: String,
}

impl Row {
    fn print(&self) {
        let number = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        println!(
            "{:<34} {:<28} {:>6} {:>8} {:>5} {:>5}  {}",
            self.name,
            self.release,
            number(self.seconds.map(|seconds| format!("{seconds:.1}"))),
            number(self.mem_kib.map(|kib| (kib >> 10).to_string())),
            number(self.cpus.map(|cpus| cpus.to_string())),
            number(self.code.map(|code| code.to_string())),
            if self.faults.is_empty() { "passed".to_owned() } else { format!("FAILED: {}", self.faults.join("; ")) }
        );
        let answers: Vec<_> = self.answers.iter().map(|(name, value)| format!("{name}={value}")).collect();
        println!("    {}", answers.join(" "));
    }
}

/// Runs the selected cases, prints a line for each and writes all as JSON.
///
/// # Errors
/// If something does not build, a kernel or an initrd cannot be had, or the host VM does not boot.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let filters = &arguments.filters;
    let is_selected = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    let selected: Vec<_> = case::all().filter(|(name, ..)| is_selected(name)).collect();
    let parts = Parts::provide_usual(&SERIES)?;
    debian::provide(&parts, selected.iter().map(|(_, kernel, case)| (*kernel, case.initrd)))?;
    let mut teller = Teller::choose()?;
    println!("Kernels: {}", teller.place);
    println!("kernel/case                        release                      agent/s  memory  CPUs  code  verdict");
    let mut rows = Vec::new();
    for (name, ..) in &selected {
        let row = teller.tell(name, &parts);
        row.print();
        rows.push(row);
    }
    let json = arguments.json.clone().unwrap_or_else(|| target_folder().join("kernels.json"));
    crate::bench::write_json(&rows, &json)?;
    println!("{}", json.display());
    let failed = rows.iter().filter(|row| !row.faults.is_empty()).count();
    println!("{} passed, {failed} failed", rows.len() - failed);
    Ok(if failed == 0 && !rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one case right here and prints its row as JSON. Panics if there is no such case.
pub fn run_here(name: &str, stage: &Stage) {
    let (_, kernel, case) =
        case::all().find(|(known, ..)| known == name).unwrap_or_else(|| panic!("There is no case {name:?}"));
    println!("{}", serde_json::json!(attempt::run(stage, name, kernel, case)));
}

/// Runs cases where they can run.
struct Teller {
    place: Place,
    program: PathBuf,
    results: PathBuf,
    host_vm: Option<HostVm>,
}

impl Teller {
    fn choose() -> Result<Self, Box<dyn Error>> {
        let (place, program) = (Place::ask(), std::env::current_exe()?);
        Ok(Self { place, program, results: target_folder().join("hostvm"), host_vm: None })
    }

    fn tell(&mut self, name: &str, parts: &Parts) -> Row {
        let mut words = vec![text(&self.program), "kernel-case".to_owned(), name.to_owned()];
        words.extend(parts.flags());
        let output = if self.place.boots_linux() { here(&words) } else { self.in_host_vm(words) };
        let row = output.and_then(|output| {
            let stdout = String::from_utf8_lossy(&output.stdout);
            let row = stdout.lines().rev().find_map(|line| serde_json::from_str(line).ok());
            row.ok_or_else(|| format!("{stdout}{}{:?}", String::from_utf8_lossy(&output.stderr), output.status))
        });
        row.unwrap_or_else(|fault| Row {
            name: name.to_owned(),
            release: String::new(),
            seconds: None,
            mem_kib: None,
            cpus: None,
            code: None,
            faults: vec![fault],
            answers: Vec::new(),
            command: String::new(),
        })
    }

    fn in_host_vm(&mut self, words: Vec<String>) -> Result<Output, String> {
        let vm = match self.host_vm.take() {
            Some(vm) => vm,
            None => HostVm::boot(&Config { mem_mib: HOST_MEM_MIB, ..Config::new(&self.results) })
                .map_err(|error| error_chain(&error))?,
        };
        // One that stopped answering is dropped: its fault shall not meet the next case.
        let output = vm.run(Command::new(words), TIMEOUT).map_err(|error| error_chain(&error))?;
        self.host_vm = Some(vm);
        Ok(output)
    }
}

fn here(words: &[String]) -> Result<Output, String> {
    let seconds = TIMEOUT.as_secs().to_string();
    let output = Process::new("timeout").args(["--kill-after=10", &seconds]).args(words).output();
    let output = output.map_err(|error| error.to_string())?;
    let status = output.status.code().map_or(Status::TimedOut, Status::Code);
    Ok(Output { status, stdout: output.stdout, stderr: output.stderr })
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
