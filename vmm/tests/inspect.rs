//! The commands that inspect the host's networks, without a VM and around one, each case in a process and a network
//! namespace of its own.
//!
//! Needs root, `ip` and `/dev/kvm`; skipped by name otherwise.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "inspect/confinement.rs"]
mod confinement;
#[path = "inspect/doctor.rs"]
mod doctor;
#[expect(dead_code, reason = "guests of other tests")]
mod guest;
#[path = "inspect/host.rs"]
mod host;
#[path = "inspect/kills.rs"]
mod kills;
#[path = "inspect/list.rs"]
mod list;
#[path = "inspect/plan.rs"]
mod plan;
#[path = "inspect/policy.rs"]
mod policy;
#[path = "inspect/ready.rs"]
mod ready;
#[path = "inspect/vm.rs"]
mod vm;

use libtest_mimic::{Arguments, Failed, Trial};
use std::process::{Command, ExitCode};

/// A case: its name and what it does in its own namespace.
type Case = (&'static str, fn());

fn cases() -> Vec<Case> {
    [confinement::CASES, doctor::CASES, kills::CASES, list::CASES, plan::CASES, policy::CASES, ready::CASES].concat()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [role, name] = &args[..]
        && role == "case"
    {
        let (_, case) = cases().into_iter().find(|(case, _)| case == name).unwrap();
        host::quiet();
        host::own_names();
        case();
        return ExitCode::SUCCESS;
    }
    let missing = what_is_missing();
    if let Some(reason) = &missing {
        cases().iter().for_each(|(name, _)| println!("skipped {name}: {reason}"));
    }
    let trial = |(name, _): Case| Trial::test(name, move || run(name)).with_ignored_flag(missing.is_some());
    libtest_mimic::run(&Arguments::from_args(), cases().into_iter().map(trial).collect()).exit_code()
}

fn what_is_missing() -> Option<&'static str> {
    let works = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    if !works(Command::new("setpriv").args(["--reuid=65534", "--clear-groups", "unshare", "--version"])) {
        return Some("needs root, to make network namespaces and to be another user");
    }
    if !works(Command::new("unshare").args(["--net", "--mount", "ip", "-V"])) {
        return Some("needs network namespaces and the command ip");
    }
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Some("needs /dev/kvm");
    }
    None
}

fn run(name: &str) -> Result<(), Failed> {
    let mut command = Command::new("unshare");
    let output = command.args(["--net", "--mount"]).arg(std::env::current_exe()?).args(["case", name]).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&text)).into())
}
