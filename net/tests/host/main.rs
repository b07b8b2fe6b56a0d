//! The crate against a real kernel: taps, bridges and keepers in network namespaces of their own.
//!
//! A keeper is forked, which a process with threads must not do, and a test harness has threads. So this binary runs
//! itself again for every case, alone in a new namespace, and once more for every VMM that a case needs.
//!
//! ```text
//! host            the harness: lists the cases, runs each as a process
//! host case NAME  one case: new namespace, the links it needs, assertions
//! host nft-owner  owns a table until it is killed
//! host measure WHAT   measurements of a NAT beside a bridge (see `measure`)
//! host vlans?     whether this kernel's bridges have VLANs
//! host ask-policy VM  asks for the policy of a VM
//! host lend-policy VM connects to its keeper, and hands the connection over on stdin
//! host vmm SPEC.. a VMM without a VM: starts a keeper, holds the ports, obeys stdin (see `vmm`)
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

mod addresses;
mod bridges;
mod client;
mod coexist;
mod conflicts;
mod descriptors;
mod endings;
mod foreign;
mod forwarding;
mod frames;
mod guard;
mod guest;
mod host_limits;
mod kept;
mod kills;
mod lan;
mod limits;
mod links;
mod machine;
mod macvtap;
mod measure;
mod mirror;
mod modes;
mod names;
mod nat;
mod neighbours;
mod nft;
mod ovs;
mod policy;
mod rates;
mod reach;
mod refusals;
mod search;
mod services;
mod steps;
mod taken_over;
mod uplink;
mod vlans;
mod vmm;

use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};

/// A case: its name, and a function that runs in its own namespace.
type Case = (&'static str, fn());

fn cases() -> Vec<Case> {
    let nft = nft::cases();
    let cases = [
        addresses::CASES,
        bridges::CASES,
        coexist::CASES,
        foreign::CASES,
        host_limits::CASES,
        conflicts::CASES,
        descriptors::CASES,
        endings::CASES,
        forwarding::CASES,
        frames::CASES,
        guard::CASES,
        kept::CASES,
        kills::CASES,
        limits::CASES,
        links::CASES,
        macvtap::CASES,
        modes::CASES,
        mirror::CASES,
        names::CASES,
        nat::CASES,
        neighbours::CASES,
        &nft,
        ovs::CASES,
        policy::CASES,
        rates::CASES,
        reach::CASES,
        refusals::CASES,
        search::CASES,
        services::CASES,
        taken_over::CASES,
        steps::CASES,
        uplink::CASES,
    ];
    cases.concat()
}

/// Cases for kernels whose bridges have VLANs.
fn vlan_cases() -> Vec<Case> {
    [frames::VLAN_CASES, guard::VLAN_CASES, modes::VLAN_CASES, steps::VLAN_CASES, vlans::CASES].concat()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("case") => {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            lan::own_names();
            // Solicitations and reports of the host itself would teach bridges addresses at any moment.
            for scope in ["all", "default"] {
                let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
            }
            let (_, case) = cases()
                .into_iter()
                .chain(vlan_cases())
                .find(|(name, _)| *name == args[1])
                .expect("a case of that name");
            case();
            ExitCode::SUCCESS
        }
        Some("nft-owner") => {
            nft::ownership::own();
            ExitCode::SUCCESS
        }
        Some("lend-policy") => {
            taken_over::lend(&args[1]);
            ExitCode::SUCCESS
        }
        Some("ask-policy") => {
            policy::call(&args[1]);
            ExitCode::SUCCESS
        }
        Some("measure") => measure::run(&args[1..]),
        Some("vmm") => vmm::run(&args[1..]),
        Some("vlans?") => ExitCode::from(u8::from(!vlans::probe())),
        _ => harness(),
    }
}

fn harness() -> ExitCode {
    let missing = what_is_missing();
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert_with(side_by_side);
    let say = arguments.nocapture;
    let trial = |(name, _): Case| {
        let reason = missing.clone().or_else(|| program_is_missing(name));
        if let Some(reason) = &reason {
            println!("skipped {name}: {reason}");
        }
        Trial::test(name, move || run(name, say)).with_ignored_flag(reason.is_some())
    };
    let mut cases = cases();
    // On other kernels, the scenario `vlans::cards_in_vlans_have_all_that_cards_have` runs these in the host VM.
    if missing.is_none() && vmm::itself(&["vlans?"]).status().is_ok_and(|status| status.success()) {
        cases.extend(vlan_cases());
    }
    libtest_mimic::run(&arguments, cases.into_iter().map(trial).collect()).exit_code()
}

/// The number of cases that run at a time. They spend most of their time waiting.
fn side_by_side() -> usize {
    std::thread::available_parallelism().map_or(2, |processors| 2 * processors.get())
}

/// The reason why the cases cannot run here.
fn what_is_missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root, to make network namespaces".to_owned());
    }
    if let Err(error) = std::fs::File::open("/dev/net/tun") {
        return Some(format!("needs /dev/net/tun: {error}"));
    }
    ["ip", "nft"].into_iter().find_map(|command| {
        Command::new(command).arg("-V").output().err().map(|error| format!("needs the command {command}: {error}"))
    })
}

/// The same for one of them.
fn program_is_missing(name: &str) -> Option<String> {
    let (_, program) = coexist::PROGRAMS.iter().find(|(case, _)| name.starts_with(case))?;
    let found = Command::new(program).arg("--version").output().is_ok();
    (!found).then(|| format!("needs the command {program}"))
}

/// Runs a case. With `--nocapture` its output is shown even if it succeeds.
fn run(name: &str, say: bool) -> Result<(), Failed> {
    let output = vmm::itself(&["case", name]).output()?;
    if output.status.success() {
        if say {
            print!("{}", String::from_utf8_lossy(&output.stdout));
        }
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&text)).into())
}
