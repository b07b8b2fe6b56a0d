//! Whoever has taken over a thread of the VMM: every kind of thread makes each of the calls of `src/attacks/table.rs`,
//! and is killed for it.
//!
//! The guests are those of a few instructions. Needs `/dev/kvm`; without it every test is skipped by name.
#![allow(clippy::unwrap_used, missing_docs)]

#[expect(dead_code, reason = "these tests need one guest of many")]
mod guest;
#[expect(dead_code, reason = "the calls themselves are made by the VMM")]
#[path = "../src/attacks/table.rs"]
mod table;

use guest::Guest;
use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, Output, Stdio};
use table::{ATTACKS, Attack};

/// Every kind of thread.
const THREADS: [&str; 10] =
    ["control", "supervisor", "watchdog", "spawner", "capture", "vcpu", "queue-pair", "vhost", "disk", "entropy"];
/// The exit code of a process that lived to tell.
const SURVIVED: i32 = 42;

/// The calls that the jail and Landlock refuse without a filter, and the kernel's answers: with the empty root and the
/// PID namespace, with Landlock alone.
const WITHOUT_FILTER: [(&str, [i32; 2]); 4] = [
    ("openat", [libc::ENOENT, libc::EACCES]),
    ("open", [libc::ENOENT, libc::EACCES]),
    ("execve", [libc::ENOENT, libc::EACCES]),
    ("kill", [libc::ESRCH, libc::EPERM]),
];

fn main() -> ExitCode {
    let has_kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    if !has_kvm {
        eprintln!("all tests are skipped: /dev/kvm cannot be opened");
    }
    let killed = THREADS.map(|thread| (format!("{thread}_is_killed_for_every_attack"), thread, every as fn(&str)));
    let also = THREADS.map(|thread| (format!("{thread}_without_filter_is_refused"), thread, refused as fn(&str)));
    let trials = killed.into_iter().chain(also).map(|(name, thread, test)| {
        Trial::test(name, move || {
            test(thread);
            Ok::<(), Failed>(())
        })
    });
    let lists = Trial::test("every_kind_of_thread_is_attacked", || {
        every_kind_is_attacked();
        Ok(())
    });
    let has_root = nix::unistd::geteuid().is_root();
    let of_services = Trial::test("services_are_killed_for_every_attack", || {
        services();
        Ok(())
    });
    let trials = trials
        .chain([lists, of_services.with_ignored_flag(!has_root)])
        .map(|trial| if has_kvm { trial } else { trial.with_ignored_flag(true) })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Runs a guest that ends at once, in a VMM one of whose threads carries out `attack`.
fn attacked(guest: &Guest, thread: &str, attack: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    command.arg("--kernel").arg(guest.path()).args(["--mem", "64M", "--console", "none"]).args(args);
    command.env("MINIVMM_ATTACK", format!("{thread}:{attack}")).stdin(Stdio::null()).output().unwrap()
}

/// Returns whether a filter has killed the VMM: also as a process in front of it would say it.
fn was_killed(output: &Output) -> bool {
    output.status.signal() == Some(libc::SIGSYS) || output.status.code() == Some(128 + libc::SIGSYS)
}

fn every(thread: &str) {
    let guest = Guest::new(guest::EXIT_7);
    for attack in ATTACKS {
        let output = attacked(&guest, thread, attack.name, &[]);
        let errors = String::from_utf8_lossy(&output.stderr);
        match survivor(attack, thread) {
            None => assert!(was_killed(&output), "{}: {:?} {errors}", attack.name, output.status),
            Some(errno) => {
                let answer = format!("attack {} in {thread}: errno {errno}\n", attack.name);
                assert_eq!((output.status.code(), &*errors), (Some(SURVIVED), &*answer), "{}", attack.name);
            }
        }
    }
}

/// The answer that `thread` gets if the attack does not kill it.
fn survivor(attack: &Attack, thread: &str) -> Option<i32> {
    attack.survivors.iter().find(|(kind, _)| *kind == thread).map(|(_, errno)| *errno)
}

fn refused(thread: &str) {
    let guest = Guest::new(guest::EXIT_7);
    for (attack, errnos) in WITHOUT_FILTER {
        let output = attacked(&guest, thread, attack, &["--seccomp", "off"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        let answers = errnos.map(|errno| format!("attack {attack} in {thread}: errno {errno}\n"));
        let is_refused = answers.iter().any(|answer| errors.ends_with(answer));
        assert!(output.status.code() == Some(SURVIVED) && is_refused, "{:?} {errors}", output.status);
    }
}

/// The services, in a network of their own: the VM outlives them, and its end says what has become of them.
fn services() {
    let guest = Guest::new(guest::EXIT_7);
    let mut others = Vec::new();
    let unshare = ["--net", env!("CARGO_BIN_EXE_minivmm"), "--net", "host", "--kernel"];
    for attack in ATTACKS {
        let mut command = Command::new("unshare");
        command.args(unshare).arg(guest.path()).args(["--mem", "64M", "--console", "none"]);
        command.env("MINIVMM_ATTACK", format!("services:{}", attack.name)).stdin(Stdio::null());
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        let answer = match survivor(attack, "services") {
            None => "The process of DHCP and DNS was ended by SIGSYS".to_owned(),
            Some(errno) => format!("attack {} in services: errno {errno}\n", attack.name),
        };
        if output.status.code() != Some(7) || !errors.contains(&answer) {
            others.push(format!("{}: {:?} {errors}", attack.name, output.status));
        }
    }
    assert!(others.is_empty(), "{}", others.join("\n"));
}

fn every_kind_is_attacked() {
    let lists = Command::new(env!("CARGO_BIN_EXE_minivmm")).env("MINIVMM_ATTACK", "lists").output().unwrap();
    let lists = String::from_utf8(lists.stdout).unwrap();
    let kinds: BTreeSet<&str> = lists.lines().filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(kinds, THREADS.into_iter().chain(["services"]).collect());
}
