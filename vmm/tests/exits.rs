//! Every way in which a run ends, with guests of a few instructions: what they do, what the process says and its exit code.
//!
//! Needs `/dev/kvm`, but no hardware virtualization: none of the guests does more than port accesses and `hlt`. Without
//! `/dev/kvm` every test is skipped by name.
#![allow(clippy::unwrap_used, missing_docs)]

mod guest;

use guest::Guest;
use libtest_mimic::{Arguments, Failed, Trial};
use std::io::{Read, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Longer than any of these takes on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let has_kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    let tests: [(&str, fn()); 19] = [
        ("power_off_gives_0", power_off_gives_0),
        ("reset_gives_0", reset_gives_0),
        ("panic_gives_99", panic_gives_99),
        ("debug_exit_gives_the_guests_code", debug_exit_gives_the_guests_code),
        ("triple_fault_gives_98", triple_fault_gives_98),
        ("guest_with_four_cpus_ends_with_three_unstarted", guest_with_four_cpus_ends_with_three_unstarted),
        ("sigterm_presses_the_button_then_stops_with_124", sigterm_presses_the_button_then_stops_with_124),
        ("second_signal_stops_at_once", second_signal_stops_at_once),
        ("sigquit_stops_at_once", sigquit_stops_at_once),
        ("spinning_guest_is_stopped", spinning_guest_is_stopped),
        ("guest_that_waits_for_its_reader_is_stopped", guest_that_waits_for_its_reader_is_stopped),
        ("reader_that_leaves_does_not_end_the_guest", reader_that_leaves_does_not_end_the_guest),
        ("input_reaches_the_guest_and_its_end_is_harmless", input_reaches_the_guest_and_its_end_is_harmless),
        ("more_input_than_the_fifo_arrives_whole", more_input_than_the_fifo_arrives_whole),
        ("reboot_restarts_ten_times", reboot_restarts_ten_times),
        ("console_goes_to_a_file", console_goes_to_a_file),
        ("two_vms_cannot_have_one_name", two_vms_cannot_have_one_name),
        ("wrong_wishes_give_64_and_a_hint", wrong_wishes_give_64_and_a_hint),
        ("disk_in_use_is_refused", disk_in_use_is_refused),
    ];
    let trials = tests
        .into_iter()
        .map(|(name, test)| {
            Trial::test(name, move || {
                test();
                Ok::<(), Failed>(())
            })
            .with_ignored_flag(!has_kvm)
        })
        .collect();
    if !has_kvm {
        eprintln!("all tests are skipped: /dev/kvm cannot be opened");
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A minivmm with this guest and more arguments.
fn minivmm(guest: &Guest, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    command.arg("--kernel").arg(guest.path()).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits for the process, not for ever.
fn code(child: &mut Child) -> i32 {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or(-1);
        }
        if start.elapsed() > DEADLINE {
            child.kill().unwrap();
            panic!("still running after {DEADLINE:?}");
        }
        std::thread::yield_now();
    }
}

fn runs_to(code_bytes: &[u8], args: &[&str], expected: i32) {
    let guest = Guest::new(code_bytes);
    let mut child = minivmm(&guest, args).spawn().unwrap();
    let code = code(&mut child);
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(code, expected, "{errors}");
}

/// A guest that has started: it says `!` on its serial port first.
fn started(guest: &Guest, args: &[&str]) -> Child {
    let mut child = minivmm(guest, args).stdin(Stdio::piped()).spawn().unwrap();
    expect(&mut child, b"!");
    child
}

fn expect(child: &mut Child, text: &[u8]) {
    let mut got = vec![0; text.len()];
    child.stdout.as_mut().unwrap().read_exact(&mut got).unwrap();
    assert!(got == text, "{}", String::from_utf8_lossy(&got));
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

fn power_off_gives_0() {
    runs_to(guest::POWER_OFF, &[], 0);
}

fn reset_gives_0() {
    runs_to(guest::RESET, &[], 0);
}

fn panic_gives_99() {
    runs_to(guest::PANIC, &[], 99);
}

fn debug_exit_gives_the_guests_code() {
    runs_to(guest::EXIT_7, &[], 7);
}

fn triple_fault_gives_98() {
    runs_to(guest::TRIPLE_FAULT, &[], 98);
}

fn guest_with_four_cpus_ends_with_three_unstarted() {
    runs_to(guest::EXIT_7, &["--cpus", "4"], 7);
}

fn sigterm_presses_the_button_then_stops_with_124() {
    let guest = Guest::new(guest::IDLE);
    let mut child = started(&guest, &["--stop-timeout", "1", "--cpus", "2"]);
    signal(&child, "TERM");
    assert_eq!(code(&mut child), 124);
}

fn second_signal_stops_at_once() {
    let guest = Guest::new(guest::IDLE);
    let mut child = started(&guest, &["--stop-timeout", "3600", "--log", "info"]);
    signal(&child, "INT");
    let mut line = [0; 16];
    // The first signal has been taken when there is a line about it; two at once would be one.
    child.stderr.as_mut().unwrap().read_exact(&mut line).unwrap();
    signal(&child, "INT");
    assert_eq!(code(&mut child), 130);
}

fn sigquit_stops_at_once() {
    let guest = Guest::new(guest::IDLE);
    let mut child = started(&guest, &["--cpus", "4"]);
    signal(&child, "QUIT");
    assert_eq!(code(&mut child), 131);
}

fn spinning_guest_is_stopped() {
    let guest = Guest::new(guest::SPIN);
    let mut child = started(&guest, &["--stop-timeout", "0"]);
    signal(&child, "TERM");
    assert_eq!(code(&mut child), 124);
}

fn guest_that_waits_for_its_reader_is_stopped() {
    let guest = Guest::new(guest::FLOOD);
    let mut child = started(&guest, &["--stop-timeout", "1"]);
    signal(&child, "TERM");
    assert_eq!(code(&mut child), 124);
}

fn reader_that_leaves_does_not_end_the_guest() {
    let guest = Guest::new(guest::COUNT_THEN_EXIT);
    let mut child = started(&guest, &[]);
    drop(child.stdout.take());
    assert_eq!(code(&mut child), 7);
}

fn input_reaches_the_guest_and_its_end_is_harmless() {
    let guest = Guest::new(guest::ECHO);
    let mut child = started(&guest, &[]);
    child.stdin.take().unwrap().write_all(b"hello").unwrap();
    expect(&mut child, b"hello");
    signal(&child, "QUIT");
    assert_eq!(code(&mut child), 131);
}

fn more_input_than_the_fifo_arrives_whole() {
    let guest = Guest::new(guest::ECHO);
    let mut child = started(&guest, &[]);
    let text: Vec<u8> = (0..5000u32).map(|i| b'a' + u8::try_from(i % 26).unwrap()).collect();
    let mut stdin = child.stdin.take().unwrap();
    let sent = text.clone();
    let sender = std::thread::spawn(move || {
        stdin.write_all(&sent).unwrap();
        stdin
    });
    expect(&mut child, &text);
    sender.join().unwrap().write_all(&[guest::ECHO_EXIT]).unwrap();
    assert_eq!(code(&mut child), 7);
}

fn reboot_restarts_ten_times() {
    let guest = Guest::new(guest::REBOOT_ON_INPUT);
    let mut child = started(&guest, &["--on-reboot", "restart", "--cpus", "2"]);
    for _ in 0..10 {
        child.stdin.as_mut().unwrap().write_all(b"r").unwrap();
        expect(&mut child, b"!");
    }
    signal(&child, "QUIT");
    assert_eq!(code(&mut child), 131);
}

fn console_goes_to_a_file() {
    let guest = Guest::new(guest::COUNT_THEN_EXIT);
    let file = tempfile::NamedTempFile::new().unwrap();
    let console = format!("file={}", file.path().display());
    let mut child = minivmm(&guest, &["--console", &console]).spawn().unwrap();
    assert_eq!(code(&mut child), 7);
    assert!(std::fs::read(file.path()).unwrap().starts_with(b"!"));
}

fn two_vms_cannot_have_one_name() {
    let name = format!("twin-{}", std::process::id());
    let guest = Guest::new(guest::IDLE);
    let mut first = started(&guest, &["--name", &name]);

    let second = minivmm(&guest, &["--name", &name]).output().unwrap();

    let errors = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(64), "{errors}");
    assert!(errors.contains(&format!("A VM with the name {name} is already running")), "{errors}");
    signal(&first, "QUIT");
    assert_eq!(code(&mut first), 131);
}

fn wrong_wishes_give_64_and_a_hint() {
    let guest = Guest::new(guest::EXIT_7);
    for (args, part) in [
        (&["--cpus", "0"][..], "--cpus"),
        (&["--cpus", "100000"], "100000 vCPUs are more than"),
        (&["--mem", "1000T"], "1024000 GiB"),
        (&["--initrd", "/nonexistent"], "/nonexistent"),
        (&["--disk", "path=/nonexistent"], "/nonexistent"),
        (&["--disk", "path=/"], "directory"),
        (&["--net", "bridge=x,quues=2"], "queues"),
    ] {
        let output = minivmm(&guest, args).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{args:?}: {errors}");
        assert!(errors.starts_with("minivmm: ") && errors.contains(part), "{args:?}: {errors}");
        assert!(errors.contains("\nhint: ") && errors.lines().count() == 2, "{args:?}: {errors}");
    }
}

fn disk_in_use_is_refused() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(1 << 20).unwrap();
    let spec = format!("path={}", disk.path().display());
    let guest = Guest::new(guest::IDLE);
    let mut first = started(&guest, &["--disk", &spec]);

    let second = minivmm(&guest, &["--disk", &spec]).output().unwrap();

    assert_eq!(second.status.code(), Some(64));
    assert!(String::from_utf8(second.stderr).unwrap().contains("in use by another VM"));
    signal(&first, "QUIT");
    assert_eq!(code(&mut first), 131);
}
