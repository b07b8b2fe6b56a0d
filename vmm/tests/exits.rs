//! Every way in which a run ends, with guests of a few instructions: what they do, what the process says and its exit
//! code.
//!
//! Needs `/dev/kvm`, but no hardware virtualization: none of the guests does more than port accesses and `hlt`. Without
//! `/dev/kvm` every test is skipped by name.
#![allow(clippy::unwrap_used, missing_docs)]

mod guest;
#[path = "exits/process.rs"]
mod process;

use guest::Guest;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::tcgetattr;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than any of these takes on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// For `unshare`: a network of one's own, also for an ordinary user.
const NAMESPACE: &[&str] = &["--map-root-user", "--net"];

fn main() -> ExitCode {
    let has_kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    let has_namespaces =
        Command::new("unshare").args(NAMESPACE).arg("true").status().is_ok_and(|status| status.success());
    let tests: [(&str, fn()); 34] = [
        ("power_off_gives_0", power_off_gives_0),
        ("every_reset_gives_96_and_is_told_from_the_others", every_reset_gives_96_and_is_told_from_the_others),
        ("reset_that_counts_as_power_off_gives_0", reset_that_counts_as_power_off_gives_0),
        ("panic_gives_99", panic_gives_99),
        ("panic_without_a_driver_gives_99", panic_without_a_driver_gives_99),
        ("reboot_by_triple_fault_restarts", reboot_by_triple_fault_restarts),
        ("warm_reset_is_no_panic", warm_reset_is_no_panic),
        ("timer_tells_the_time_without_a_paravirtual_clock", timer_tells_the_time_without_a_paravirtual_clock),
        ("debug_exit_gives_the_guests_code", debug_exit_gives_the_guests_code),
        ("triple_fault_gives_98", triple_fault_gives_98),
        ("interrupt_without_an_io_apic_is_no_exception", interrupt_without_an_io_apic_is_no_exception),
        ("guest_with_four_cpus_ends_with_three_unstarted", guest_with_four_cpus_ends_with_three_unstarted),
        ("sigterm_presses_the_button_then_stops_with_124", sigterm_presses_the_button_then_stops_with_124),
        ("second_signal_stops_at_once", second_signal_stops_at_once),
        ("sigquit_stops_at_once", sigquit_stops_at_once),
        ("halted_guest_is_stopped_with_every_signal_blocked", halted_guest_is_stopped_with_every_signal_blocked),
        ("guest_is_stopped_while_nobody_reads_the_log", guest_is_stopped_while_nobody_reads_the_log),
        ("signal_during_the_start_ends_it", signal_during_the_start_ends_it),
        ("low_soft_limit_of_descriptors_is_raised", low_soft_limit_of_descriptors_is_raised),
        ("spinning_guest_is_stopped", spinning_guest_is_stopped),
        ("guest_that_waits_for_its_reader_is_stopped", guest_that_waits_for_its_reader_is_stopped),
        ("reader_that_leaves_does_not_end_the_guest", reader_that_leaves_does_not_end_the_guest),
        ("input_reaches_the_guest_and_its_end_is_harmless", input_reaches_the_guest_and_its_end_is_harmless),
        ("more_input_than_the_fifo_arrives_whole", more_input_than_the_fifo_arrives_whole),
        ("reboot_restarts_ten_times", reboot_restarts_ten_times),
        ("guest_that_resets_when_asked_to_power_off_ends", guest_that_resets_when_asked_to_power_off_ends),
        ("guest_that_always_resets_leaves_the_host_in_peace", guest_that_always_resets_leaves_the_host_in_peace),
        ("console_goes_to_a_file", console_goes_to_a_file),
        ("console_goes_to_a_pty", console_goes_to_a_pty),
        ("terminal_is_raw_until_the_quit_key", terminal_is_raw_until_the_quit_key),
        ("terminal_is_restored_after_a_signal", terminal_is_restored_after_a_signal),
        ("two_vms_cannot_have_one_name", two_vms_cannot_have_one_name),
        ("wrong_wishes_give_64_and_a_hint", wrong_wishes_give_64_and_a_hint),
        ("disk_in_use_is_refused", disk_in_use_is_refused),
    ];
    let trials = tests
        .into_iter()
        .chain(process::CASES.iter().copied())
        .map(|(name, test)| {
            Trial::test(name, move || {
                test();
                Ok::<(), Failed>(())
            })
            .with_ignored_flag(!has_kvm || (name == "signal_during_the_start_ends_it" && !has_namespaces))
        })
        .collect();
    if !has_kvm {
        eprintln!("all tests are skipped: /dev/kvm cannot be opened");
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A running minivmm, killed if its test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing to do for one that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    /// Waits for its exit code, not for ever.
    fn code(&mut self) -> i32 {
        let pid = Pid::from_raw(self.0.id().try_into().unwrap());
        let (tell, ended) = mpsc::channel();
        // Leaves its code to be asked for.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        thread::spawn(move || tell.send(waitid(Id::Pid(pid), flags).is_ok()));
        assert_eq!(ended.recv_timeout(DEADLINE), Ok(true), "still running after {DEADLINE:?}");
        self.0.wait().unwrap().code().unwrap_or(-1)
    }

    /// Waits until it says `text`.
    fn expect(&mut self, text: &[u8]) {
        let mut got = vec![0; text.len()];
        self.0.stdout.as_mut().unwrap().read_exact(&mut got).unwrap();
        assert!(got == text, "{}", String::from_utf8_lossy(&got));
    }

    /// Waits until it says a line on stderr that starts with `text`.
    fn expect_error(&mut self, text: &str) {
        let line = self.error_line();
        assert!(line.starts_with(text), "{line}");
    }

    /// Waits until it says a line on stderr with `text` in it, among others.
    fn expect_error_with(&mut self, text: &str) {
        while !self.error_line().contains(text) {}
    }

    fn error_line(&mut self) -> String {
        let stderr = self.0.stderr.as_mut().unwrap();
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let mut byte = [0; 1];
            stderr.read_exact(&mut byte).unwrap();
            line.extend(byte);
        }
        String::from_utf8(line).unwrap()
    }

    /// The rest of what it says on stderr.
    fn errors(&mut self) -> String {
        let mut errors = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        errors
    }

    fn type_in(&mut self, text: &[u8]) {
        self.0.stdin.as_mut().unwrap().write_all(text).unwrap();
    }

    fn signal(&self, name: &str) {
        send(name, self.0.id());
    }

    /// Sends a signal to the VMM itself.
    fn signal_vmm(&self, name: &str) {
        send(name, vmm_of(self.0.id()));
    }
}

fn send(signal: &str, pid: u32) {
    let status = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// The VMM that the process `pid` supervises.
fn vmm_of(pid: u32) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let is_vmm = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "vmm\n");
    children.split_whitespace().map(|child| child.parse().unwrap()).find(is_vmm).unwrap()
}

/// A minivmm with this guest and more arguments.
fn minivmm(guest: &Guest, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    command.arg("--kernel").arg(guest.path()).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// `command`, started by a program that changes something for it first.
fn through(program: &str, args: &[&str], command: &Command) -> Command {
    let mut outer = Command::new(program);
    outer.args(args).arg(command.get_program()).args(command.get_args());
    outer.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    outer
}

fn runs_to(code_bytes: &[u8], args: &[&str], expected: i32) {
    let guest = Guest::new(code_bytes);
    let mut vm = Running::start(&mut minivmm(&guest, args));
    let code = vm.code();
    assert_eq!(code, expected, "{}", vm.errors());
}

/// A guest that has started: it says `!` on its serial port first.
fn started(guest: &Guest, args: &[&str]) -> Running {
    let mut vm = Running::start(minivmm(guest, args).stdin(Stdio::piped()));
    vm.expect(b"!");
    vm
}

fn power_off_gives_0() {
    runs_to(guest::POWER_OFF, &[], 0);
}

fn every_reset_gives_96_and_is_told_from_the_others() {
    for (code_bytes, way) in [
        (guest::RESET, "the keyboard controller"),
        (guest::RESET_BY_CHIPSET, "the chipset's reset register, port 0xcf9"),
        (guest::RESET_BY_ACPI, "the reset register of ACPI"),
        (guest::RESET_BY_VECTOR, "a jump to the reset vector"),
        (guest::RESET_BY_TRIPLE_FAULT, "a triple fault"),
        (guest::RESET_BY_INIT, "an INIT to its boot processor"),
    ] {
        let guest = Guest::new(code_bytes);
        let mut vm = Running::start(&mut minivmm(&guest, &["--on-reboot", "exit"]));
        let code = vm.code();
        assert_eq!((code, vm.errors()), (96, format!("minivmm: The guest reset itself (by {way})\n")));
    }
}

fn reset_that_counts_as_power_off_gives_0() {
    let guest = Guest::new(guest::RESET);
    let mut vm = Running::start(&mut minivmm(&guest, &["--on-reboot", "power-off"]));
    let code = vm.code();
    assert_eq!((code, vm.errors()), (0, String::new()));
}

fn panic_without_a_driver_gives_99() {
    runs_to(guest::PANIC_WITHOUT_A_DRIVER, &[], 99);
    runs_to(guest::PANIC_WITHOUT_A_DRIVER, &["--cmdline-replace", "quiet"], 99);
}

fn warm_reset_is_no_panic() {
    runs_to(guest::WARM_RESET, &[], 96);
}

fn timer_tells_the_time_without_a_paravirtual_clock() {
    let start = Instant::now();
    runs_to(guest::WAIT_50_MS, &[], 7);
    assert!(start.elapsed() >= Duration::from_millis(50), "{:?}", start.elapsed());
}

fn reboot_by_triple_fault_restarts() {
    let guest = Guest::new(guest::RESET_BY_TRIPLE_FAULT);
    let mut vm = Running::start(&mut minivmm(&guest, &["--on-reboot", "restart", "--log", "info"]));
    vm.expect_error("minivmm: info: The guest reboots");
    vm.signal("TERM");
    assert_eq!(vm.code(), 0);
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

fn interrupt_without_an_io_apic_is_no_exception() {
    runs_to(guest::INTERRUPTED_WITHOUT_IO_APIC, &[], 7);
}

fn guest_with_four_cpus_ends_with_three_unstarted() {
    runs_to(guest::EXIT_7, &["--cpus", "4"], 7);
}

fn sigterm_presses_the_button_then_stops_with_124() {
    let guest = Guest::new(guest::IDLE);
    let mut vm = started(&guest, &["--stop-timeout", "1", "--cpus", "2"]);
    vm.signal("TERM");
    assert_eq!(vm.code(), 124);
}

fn second_signal_stops_at_once() {
    let guest = Guest::new(guest::IDLE);
    let mut vm = started(&guest, &["--stop-timeout", "3600", "--log", "info"]);
    vm.signal("INT");
    // The first signal has been taken when there is a line about it; two at once would be one.
    vm.expect_error("minivmm: info: Asking the guest to power off");
    vm.signal("INT");
    assert_eq!(vm.code(), 130);
}

fn sigquit_stops_at_once() {
    let guest = Guest::new(guest::IDLE);
    let mut vm = started(&guest, &["--cpus", "4"]);
    vm.signal("QUIT");
    assert_eq!(vm.code(), 131);
}

fn spinning_guest_is_stopped() {
    let guest = Guest::new(guest::SPIN);
    let mut vm = started(&guest, &["--stop-timeout", "0"]);
    vm.signal("TERM");
    assert_eq!(vm.code(), 124);
}

fn halted_guest_is_stopped_with_every_signal_blocked() {
    let guest = Guest::new(guest::IDLE);
    let mut vm = Running::start(&mut through("env", &["--block-signal"], &minivmm(&guest, &[])));
    vm.expect(b"!");
    vm.signal("QUIT");
    assert_eq!(vm.code(), 131);
    // The watchdog would have ended it as well, but says so.
    assert_eq!(vm.errors(), "");
}

fn guest_is_stopped_while_nobody_reads_the_log() {
    let (_reader, writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while (&writer).write(&[b'x'; 4096]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    let guest = Guest::new(guest::IDLE);
    let mut vm = Running::start(minivmm(&guest, &["--stop-timeout", "0", "--log", "debug"]).stderr(writer));
    vm.expect(b"!");
    vm.signal("TERM");
    assert_eq!(vm.code(), 124);
}

/// The keeper waits for 2 s for a lock that this minivmm's own parent holds, in a network namespace of their own.
fn signal_during_the_start_ends_it() {
    let guest = Guest::new(guest::IDLE);
    let command = minivmm(&guest, &["--net", "bridge=lan,create=on", "--stop-timeout", "0", "--log", "debug"]);
    let locked = through("flock", &["--no-fork", "/proc/self/ns/net"], &command);
    let mut vm = Running::start(&mut through("unshare", NAMESPACE, &locked));
    vm.expect_error_with("The kernel is loaded");
    vm.signal("TERM");
    assert_eq!(vm.code(), 143);
    assert!(vm.errors().contains("minivmm: Stopped by signal 15 before the guest was started"));
}

fn low_soft_limit_of_descriptors_is_raised() {
    let guest = Guest::new(guest::EXIT_7);
    let command = minivmm(&guest, &["--cpus", "32"]);
    let mut vm = Running::start(&mut through("prlimit", &["--nofile=24:1024"], &command));
    assert_eq!(vm.code(), 7);
}

fn guest_that_waits_for_its_reader_is_stopped() {
    let guest = Guest::new(guest::FLOOD);
    let mut vm = started(&guest, &["--stop-timeout", "1"]);
    vm.signal("TERM");
    assert_eq!(vm.code(), 124);
}

fn reader_that_leaves_does_not_end_the_guest() {
    let guest = Guest::new(guest::COUNT_THEN_EXIT);
    let mut vm = started(&guest, &[]);
    drop(vm.0.stdout.take());
    assert_eq!(vm.code(), 7);
}

fn input_reaches_the_guest_and_its_end_is_harmless() {
    let guest = Guest::new(guest::ECHO);
    let mut vm = started(&guest, &[]);
    vm.type_in(b"hello");
    drop(vm.0.stdin.take());
    vm.expect(b"hello");
    vm.signal("QUIT");
    assert_eq!(vm.code(), 131);
}

fn more_input_than_the_fifo_arrives_whole() {
    let guest = Guest::new(guest::ECHO);
    let mut vm = started(&guest, &[]);
    let text: Vec<u8> = (0..5000u32).map(|i| b'a' + u8::try_from(i % 26).unwrap()).collect();
    let mut stdin = vm.0.stdin.take().unwrap();
    let sent = text.clone();
    let sender = std::thread::spawn(move || {
        stdin.write_all(&sent).unwrap();
        stdin
    });
    vm.expect(&text);
    sender.join().unwrap().write_all(&[guest::ECHO_EXIT]).unwrap();
    assert_eq!(vm.code(), 7);
}

fn reboot_restarts_ten_times() {
    let guest = Guest::new(guest::REBOOT_ON_INPUT);
    let mut vm = started(&guest, &["--on-reboot", "restart", "--cpus", "2"]);
    for _ in 0..10 {
        vm.type_in(b"r");
        vm.expect(b"!");
    }
    vm.signal("QUIT");
    assert_eq!(vm.code(), 131);
}

fn guest_that_resets_when_asked_to_power_off_ends() {
    let guest = Guest::new(guest::REBOOT_ON_INPUT);
    let mut vm = started(&guest, &["--on-reboot", "restart", "--stop-timeout", "3600", "--log", "info"]);
    vm.signal("TERM");
    vm.expect_error("minivmm: info: Asking the guest to power off");
    vm.type_in(b"r");
    assert_eq!(vm.code(), 0);
}

fn guest_that_always_resets_leaves_the_host_in_peace() {
    let guest = Guest::new(guest::RESET);
    let mut vm = Running::start(&mut minivmm(&guest, &["--on-reboot", "restart", "--log", "info"]));
    for _ in 0..3 {
        vm.expect_error("minivmm: info: The guest reboots");
    }
    vm.signal("TERM");
    assert_eq!(vm.code(), 0);
}

fn console_goes_to_a_file() {
    let guest = Guest::new(guest::COUNT_THEN_EXIT);
    let file = tempfile::NamedTempFile::new().unwrap();
    let console = format!("file={}", file.path().display());
    let mut vm = Running::start(&mut minivmm(&guest, &["--console", &console]));
    assert_eq!(vm.code(), 7);
    assert!(std::fs::read(file.path()).unwrap().starts_with(b"!"));
}

fn console_goes_to_a_pty() {
    let guest = Guest::new(guest::ECHO);
    let mut vm = Running::start(&mut minivmm(&guest, &["--console", "pty"]));
    let mut errors = BufReader::new(vm.0.stderr.take().unwrap());
    let mut line = String::new();
    errors.read_line(&mut line).unwrap();
    let path = line.trim().strip_prefix("minivmm: console on ").unwrap();
    let mut pty = OpenOptions::new().read(true).write(true).open(path).unwrap();

    pty.write_all(b"hello").unwrap();

    let mut said = [0; 6];
    pty.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"!hello");
    pty.write_all(&[guest::ECHO_EXIT]).unwrap();
    assert_eq!(vm.code(), 7);
}

/// A terminal: our end, and the one for a process.
fn terminal() -> (File, File) {
    let ours = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let path = ptsname_r(&ours).unwrap();
    let theirs = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap();
    (File::from(OwnedFd::from(ours)), theirs)
}

/// A guest that echoes on `theirs`, seen through `ours`.
fn started_on(guest: &Guest, theirs: &File, ours: &mut File) -> Running {
    let (stdin, stdout) = (theirs.try_clone().unwrap(), theirs.try_clone().unwrap());
    let vm = Running::start(minivmm(guest, &[]).stdin(stdin).stdout(stdout));
    let mut said = [0; 1];
    ours.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"!");
    vm
}

fn modes(terminal: &File) -> String {
    format!("{:?}", tcgetattr(terminal).unwrap())
}

fn terminal_is_raw_until_the_quit_key() {
    let (mut ours, theirs) = terminal();
    let before = modes(&theirs);
    let guest = Guest::new(guest::ECHO);
    let mut vm = started_on(&guest, &theirs, &mut ours);
    assert_ne!(modes(&theirs), before);

    ours.write_all(b"\x03\x01\x01").unwrap();
    let mut said = [0; 2];
    ours.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"\x03\x01");
    ours.write_all(b"\x01x").unwrap();

    assert_eq!(vm.code(), 130);
    assert_eq!(modes(&theirs), before);
}

fn terminal_is_restored_after_a_signal() {
    let (mut ours, theirs) = terminal();
    let before = modes(&theirs);
    let guest = Guest::new(guest::ECHO);
    let mut vm = started_on(&guest, &theirs, &mut ours);

    vm.signal("QUIT");

    assert_eq!(vm.code(), 131);
    assert_eq!(modes(&theirs), before);
}

fn two_vms_cannot_have_one_name() {
    let name = format!("twin-{}", std::process::id());
    let guest = Guest::new(guest::IDLE);
    let mut first = started(&guest, &["--name", &name]);

    let second = minivmm(&guest, &["--name", &name]).output().unwrap();

    let errors = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(64), "{errors}");
    assert!(errors.contains(&format!("A VM with the name {name} is already running")), "{errors}");
    first.signal("QUIT");
    assert_eq!(first.code(), 131);
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
        (&["--smbios", "colour=red"], "KEY=TEXT"),
        (&["--smbios", "oem=a\nb"], "control character"),
        (&["--smbios", &format!("oem={}", "x".repeat(40_000))], "SMBIOS strings need"),
        (&["--net", "bridge=x,quues=2"], "queues"),
        (&["--memory", "1G"], "--mem SIZE"),
        (&["--cmdline", "root=/dev/vda", "ro"], "--cmdline 'root=/dev/vda ro'"),
        (&["--disk", "path=/dev/null"].repeat(31), "31 --disk do not fit into one machine"),
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
    first.signal("QUIT");
    assert_eq!(first.code(), 131);
    let twice = minivmm(&guest, &["--disk", &spec, "--disk", &spec]).output().unwrap();
    let errors = String::from_utf8(twice.stderr).unwrap();
    assert!(twice.status.code() == Some(64) && errors.contains("is given twice"), "{errors}");
}
