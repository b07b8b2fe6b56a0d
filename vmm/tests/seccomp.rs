//! The lists of system calls are no longer than what threads do: each call of a list is made by a thread of its kind in
//! one of these runs, or the list says why it is there all the same.
//!
//! strace watches VMs from their start to their end: the probe guest, which drives and abuses each device, with a
//! captured card, one behind NAT, disks and the control queue, and guests of a few instructions. Needs `/dev/kvm`,
//! strace and a network namespace; without them every test is skipped by name.
#![allow(clippy::unwrap_used, missing_docs)]

#[expect(dead_code, reason = "these tests need two guests of many")]
mod guest;

use guest::Guest;
use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// A call of a kind of thread: its name, and an ioctl's number.
type Call = (String, String, String);

/// For `unshare`: a network of one's own, also for an ordinary user.
const NAMESPACE: &[&str] = &["--map-root-user", "--net"];

fn main() -> ExitCode {
    let has_kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    let works = |program: &str, args: &[&str]| {
        Command::new(program).args(args).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let can_run = has_kvm && works("strace", &["-V"]) && works("unshare", &[NAMESPACE, &["true"]].concat());
    if !can_run {
        eprintln!("all tests are skipped: there is no /dev/kvm, no strace or no network namespace");
    }
    let trial = Trial::test("every_listed_call_is_made_or_has_a_reason", || {
        every_call_is_made();
        Ok::<(), Failed>(())
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial.with_ignored_flag(!can_run)]).exit_code()
}

fn every_call_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let mut made = with_probe(folder.path());
    for (code_bytes, args) in [(guest::EXIT_7, &["--cpus", "2"][..]), (guest::RESET, &["--on-reboot", "exit"])] {
        let guest = Guest::new(code_bytes);
        let trace = folder.path().join("guest.strace");
        let args = [&["--kernel", guest.path().to_str().unwrap(), "--console", "none"][..], args].concat();
        traced(&trace, &[], &args);
        made.extend(calls(&fs::read_to_string(&trace).unwrap()));
    }
    let listed = listed();
    assert!(listed.len() > 100, "{} rules", listed.len());
    // No card of these runs is on vhost-net, which not every host has.
    let unused = |(call, reason): &(Call, String)| call.0 != "vhost" && reason.is_empty() && !made.contains(call);
    let unused: Vec<Call> = listed.iter().filter(|rule| unused(rule)).map(|(call, _)| call.clone()).collect();
    assert_eq!(unused, [], "these are in a list, are not made and have no reason");
    // A call that is not listed ends the VM, and these runs did not end so; what is compared is the right thing, then.
    let unlisted: Vec<&Call> = made.iter().filter(|call| listed.iter().all(|(rule, _)| rule != *call)).collect();
    assert_eq!(unlisted, Vec::<&Call>::new(), "these are made and in no list");
}

/// The calls in a VM with the probe, a card that is captured into small files, and two disks.
fn with_probe(folder: &Path) -> BTreeSet<Call> {
    let probe = build_probe();
    let path = |name: &str| folder.join(name).display().to_string();
    for disk in ["disk0", "disk1"] {
        fs::File::create(folder.join(disk)).unwrap().set_len(1 << 20).unwrap();
    }
    let trace = folder.join("probe.strace");
    let card = format!("bridge=br0,create=on,queues=2,capture={},capture-size=64K", path("card.pcapng"));
    let disks = [format!("path={},queues=3", path("disk0")), format!("path={},readonly=on", path("disk1"))];
    let args = ["--kernel", probe.to_str().unwrap(), "--cmdline-replace", "probe=all", "--mem", "128M"];
    let devices = ["--net", &card, "--net", "nat,ipv6=on", "--disk", &disks[0], "--disk", &disks[1]];
    traced(&trace, &[&["unshare"][..], NAMESPACE].concat(), &[&args[..], &devices[..]].concat());
    calls(&fs::read_to_string(&trace).unwrap())
}

/// Builds the probe guest, which is a workspace of its own.
fn build_probe() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probe");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/probe");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--quiet", "--target-dir"]).arg(&target).current_dir(source);
    assert!(build.status().unwrap().success());
    target.join("x86_64-unknown-linux-gnu/release/probe")
}

/// Runs minivmm to its end, with every call of every thread in the file `trace`.
fn traced(trace: &Path, through: &[&str], args: &[&str]) {
    let strace = ["strace", "-f", "--decode-pids=comm", "--raw=ioctl", "-o", trace.to_str().unwrap()];
    let words = [through, &strace[..], &[env!("CARGO_BIN_EXE_minivmm")], args].concat();
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.code().is_some_and(|code| code < 100), "{:?} {output:?}", output.status);
}

/// The calls that threads have made with a filter: their own, or before they had one that of the thread that has
/// started them.
fn calls(trace: &str) -> BTreeSet<Call> {
    let lines: Vec<(&str, &str, &str)> = trace.lines().filter_map(parse).collect();
    // The last one counts: whoever starts threads has two.
    let mut confined = BTreeMap::new();
    for (index, (pid, thread, call)) in lines.iter().enumerate() {
        if call.starts_with("seccomp(SECCOMP_SET_MODE_FILTER") {
            confined.insert(*pid, (index, kind(thread)));
        }
    }
    let call = |(index, (pid, thread, call)): (usize, &(&str, &str, &str))| {
        // The threads of the services have the filter of the first.
        let (since, kind) = match confined.get(pid) {
            None if kind(thread) == Some("services") => (0, kind(thread)),
            confined => *confined?,
        };
        let (name, args) = call.split_once('(')?;
        let request = if name == "ioctl" { args.split([',', ')', ' ']).nth(2)? } else { "-" };
        let filtered_as = if index > since { kind? } else { parent(kind?)? };
        Some((filtered_as.to_owned(), name.to_owned(), request.to_owned()))
    };
    lines.iter().enumerate().filter_map(call).collect()
}

/// The kind of the thread whose filter a thread of this kind inherits.
fn parent(kind: &str) -> Option<&'static str> {
    match kind {
        "vcpu" | "watchdog" => Some("control"),
        "queue-pair" | "disk" | "entropy" => Some("spawner"),
        _ => None,
    }
}

/// Process, name of the thread and call of a line `123<vcpu0> ioctl(3, 0xae80, 0) = 0`.
fn parse(line: &str) -> Option<(&str, &str, &str)> {
    let (pid, rest) = line.split_once('<')?;
    let (thread, call) = rest.split_once("> ")?;
    call.starts_with(|c: char| c.is_ascii_lowercase()).then_some((pid, thread, call))
}

/// The kind of a thread by its name; none for one that has no list of its own.
fn kind(thread: &str) -> Option<&str> {
    let is_numbered = |prefix: &str| thread.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(char::is_numeric));
    match thread {
        "vmm" => Some("control"),
        "minivmm" => Some("supervisor"),
        "services" | "spawner" | "watchdog" | "capture" => Some(thread),
        _ if thread.ends_with("-services") => Some("services"),
        _ if is_numbered("vcpu") => Some("vcpu"),
        _ if is_numbered("net") && !thread.contains("services") => Some("queue-pair"),
        _ if is_numbered("blk") => Some("disk"),
        _ if is_numbered("rng") => Some("entropy"),
        _ => None,
    }
}

/// The rules of every kind of thread, with their reasons.
fn listed() -> Vec<(Call, String)> {
    let lists = Command::new(env!("CARGO_BIN_EXE_minivmm")).env("MINIVMM_ATTACK", "lists").output().unwrap();
    let rule = |line: &str| {
        let mut fields = line.split('\t').map(str::to_owned);
        let mut next = || fields.next().unwrap();
        ((next(), ioctl_or_call(next()), next()), next())
    };
    fn ioctl_or_call(name: String) -> String {
        if name.chars().next().is_some_and(char::is_uppercase) { "ioctl".to_owned() } else { name }
    }
    String::from_utf8(lists.stdout).unwrap().lines().map(rule).collect()
}
