//! The life of the process: signals, job control, limits of the host and files in shared folders.

use crate::guest::{self, Guest};
use crate::{DEADLINE, Running, minivmm, modes, started, started_on, terminal, through};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::ttyname;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::time::Instant;

pub(crate) const CASES: &[(&str, fn())] = &[
    ("console_on_a_fifo_without_a_reader_can_be_stopped", fifo_without_reader),
    ("console_on_a_fifo_begins_with_its_reader", fifo_with_reader),
    ("console_in_a_shared_folder_follows_no_link_and_is_private", shared_folder),
    ("console_on_a_terminal_that_is_stuck_keeps_no_signal", console_that_is_stuck),
    ("signals_ignored_at_exec_stay_ignored", ignored_signals),
    ("terminal_is_raw_again_after_a_pause", continued),
    ("terminal_is_given_back_for_a_pause", suspended),
    ("terminal_is_restored_after_every_signal_that_ends", signals_that_end),
    ("faults_of_the_host_give_71_and_restore_the_terminal", faults),
    ("stray_sigusr1_is_harmless", stray_kick),
    ("limit_of_file_size_closes_the_console_only", file_size),
    ("limit_of_processor_time_asks_the_guest_to_power_off", processor_time),
    ("limit_of_processes_gives_71_and_is_named", processes),
    ("limit_of_open_files_gives_71_and_is_named", open_files),
    ("limit_of_address_space_gives_71_and_is_named", address_space),
    ("limit_of_queued_signals_does_not_keep_a_vcpu", queued_signals),
    ("limit_of_memory_in_the_cgroup_is_told_before_the_start", cgroup_memory),
];

/// Waits for a condition.
fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "{what} did not happen in time");
        std::thread::yield_now();
    }
}

/// A FIFO in a folder of its own.
fn fifo() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo").to_str().unwrap().to_owned();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    (folder, path)
}

/// Its code, as the shell has it for a process that a signal has ended.
fn shell_code(output: &Output) -> i32 {
    output.status.code().or(output.status.signal().map(|signal| 128 + signal)).unwrap()
}

fn said(mut command: Command) -> (i32, String) {
    let output = command.output().unwrap();
    (shell_code(&output), String::from_utf8(output.stderr).unwrap())
}

fn fifo_without_reader() {
    let (_folder, path) = fifo();
    let guest = Guest::new(guest::EXIT_7);
    let mut vm = Running::start(&mut minivmm(&guest, &["--console", &format!("file={path}")]));
    // openat(2) is what it waits in.
    let waits =
        || fs::read_to_string(format!("/proc/{}/syscall", vm.0.id())).is_ok_and(|text| text.starts_with("257 "));
    until("the wait", waits);
    vm.signal("TERM");
    vm.code();
}

fn fifo_with_reader() {
    let (_folder, path) = fifo();
    let guest = Guest::new(guest::COUNT_THEN_EXIT);
    let mut vm = Running::start(&mut minivmm(&guest, &["--console", &format!("file={path}")]));
    assert_eq!(fs::read(&path).unwrap(), [b'!'; 4096]);
    assert_eq!(vm.code(), 7);
}

fn shared_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (target, link, log) = (folder.path().join("target"), folder.path().join("link"), folder.path().join("log"));
    fs::write(&target, "precious").unwrap();
    symlink(&target, &link).unwrap();
    let guest = Guest::new(guest::COUNT_THEN_EXIT);
    let run = |path: &std::path::Path| said(minivmm(&guest, &["--console", &format!("file={}", path.display())]));

    let (code, errors) = run(&link);
    assert_eq!((code, fs::read_to_string(&target).unwrap().as_str()), (64, "precious"), "{errors}");
    assert!(errors.contains("It is a symbolic link"), "{errors}");
    assert_eq!(run(&log).0, 7);
    assert_eq!(fs::metadata(&log).unwrap().mode() & 0o777, 0o600);
}

/// Bytes that wait to be read.
#[expect(unsafe_code, reason = "FIONREAD has no safe wrapper in the crates used here")]
fn queued(file: &fs::File) -> i32 {
    let mut bytes = 0;
    // SAFETY: the kernel writes an int, which outlives the call.
    assert_eq!(unsafe { libc::ioctl(file.as_raw_fd(), libc::FIONREAD, &raw mut bytes) }, 0);
    bytes
}

/// A terminal whose other end is not read takes less than it says.
fn console_that_is_stuck() {
    let (ours, theirs) = terminal();
    let path = ttyname(&theirs).unwrap();
    let guest = Guest::new(guest::FLOOD);
    let console = format!("file={}", path.display());
    let mut vm = Running::start(&mut minivmm(&guest, &["--console", &console, "--stop-timeout", "0"]));
    until("a full terminal", || queued(&ours) > 2000);
    vm.signal("TERM");
    assert_eq!(vm.code(), 124);
}

fn ignored_signals() {
    let guest = Guest::new(guest::IDLE);
    let command = minivmm(&guest, &["--stop-timeout", "3600"]);
    let mut vm = Running::start(&mut through("env", &["--ignore-signal=HUP,INT"], &command));
    vm.expect(b"!");
    for signal in ["HUP", "INT", "HUP", "INT"] {
        vm.signal(signal);
    }
    vm.signal("QUIT");
    assert_eq!(vm.code(), 131);
}

/// Has `theirs` set up as a shell does for itself.
fn make_cooked(theirs: &fs::File, before: &Termios) {
    tcsetattr(theirs, SetArg::TCSANOW, before).unwrap();
}

fn is_stopped(vm: &Running) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", vm.0.id())).unwrap();
    stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
}

fn continued() {
    let (mut ours, theirs) = terminal();
    let before = tcgetattr(&theirs).unwrap();
    let cooked = modes(&theirs);
    let guest = Guest::new(guest::ECHO);
    let mut vm = started_on(&guest, &theirs, &mut ours);
    vm.signal("STOP");
    until("the pause", || is_stopped(&vm));
    make_cooked(&theirs, &before);

    vm.signal("CONT");

    until("raw mode", || modes(&theirs) != cooked);
    ours.write_all(b"\x03").unwrap();
    let mut echo = [0; 1];
    ours.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"\x03");
    ours.write_all(b"\x01x").unwrap();
    assert_eq!(vm.code(), 130);
    assert_eq!(modes(&theirs), cooked);
}

/// In a session of its own: whether a process of a group without a shell stops is the kernel's choice.
fn suspended() {
    let (mut ours, theirs) = terminal();
    let cooked = modes(&theirs);
    let guest = Guest::new(guest::ECHO);
    let mut vm = started_on(&guest, &theirs, &mut ours);
    assert_ne!(modes(&theirs), cooked);

    vm.signal("TSTP");

    // Raw again as soon as it goes on, which it does at once if no shell could continue it.
    until("the pause", || modes(&theirs) == cooked || !is_stopped(&vm));
    if is_stopped(&vm) {
        assert_eq!(modes(&theirs), cooked);
    }
    vm.signal("CONT");
    until("raw mode", || modes(&theirs) != cooked);
    ours.write_all(b"\x01x").unwrap();
    assert_eq!(vm.code(), 130);
}

fn signals_that_end() {
    let guest = Guest::new(guest::ECHO);
    for (signal, code) in [("ALRM", 142), ("USR2", 140), ("VTALRM", 154), ("PROF", 155), ("IO", 157), ("64", 192)] {
        let (mut ours, theirs) = terminal();
        let before = modes(&theirs);
        let mut vm = started_on(&guest, &theirs, &mut ours);
        vm.signal(signal);
        assert_eq!((vm.code(), modes(&theirs)), (code, before), "{signal}");
    }
}

fn faults() {
    let guest = Guest::new(guest::ECHO);
    for (signal, code, words) in [("BUS", 71, "no memory behind"), ("SYS", 71, "system call"), ("SEGV", 139, "")] {
        let (mut ours, theirs) = terminal();
        let before = modes(&theirs);
        let mut vm = started_on(&guest, &theirs, &mut ours);
        vm.signal_vmm(signal);
        assert_eq!((vm.code(), modes(&theirs)), (code, before), "{signal}");
        assert!(vm.errors().contains(words), "{signal}");
    }
}

fn stray_kick() {
    let guest = Guest::new(guest::ECHO);
    let mut vm = started(&guest, &["--cpus", "2"]);
    (0..100).for_each(|_| vm.signal("USR1"));
    (0..100).for_each(|_| vm.signal_vmm("USR1"));
    vm.type_in(b"x");
    vm.expect(b"x");
    vm.signal("QUIT");
    assert_eq!(vm.code(), 131);
}

fn file_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let guest = Guest::new(guest::COUNT_THEN_EXIT);
    let command = minivmm(&guest, &["--console", &format!("file={}", path.display())]);
    let (code, errors) = said(through("prlimit", &["--fsize=1000"], &command));
    assert_eq!((code, fs::metadata(&path).unwrap().len()), (7, 1000), "{errors}");
    assert!(errors.contains("The console's output cannot be written any more: File too large"), "{errors}");
}

fn processor_time() {
    let guest = Guest::new(guest::SPIN);
    let command = minivmm(&guest, &["--stop-timeout", "1"]);
    let (code, errors) = said(through("prlimit", &["--cpu=1:60"], &command));
    assert_eq!(code, 124, "{errors}");
    assert!(errors.contains("used up its processor time (RLIMIT_CPU)"), "{errors}");
}

/// Root has no such limit. A user who may not open `/dev/kvm` gets that said, which the case accepts.
fn processes() {
    let guest = Guest::new(guest::EXIT_7);
    let group = fs::metadata("/dev/kvm").unwrap().gid().to_string();
    fs::set_permissions(guest.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let mut codes = Vec::new();
    for limit in 1..=6 {
        let command = through("prlimit", &[&format!("--nproc={limit}")], &minivmm(&guest, &[]));
        let user = ["--reuid=64321", "--regid=64321", "--groups", &group];
        let (code, errors) = said(through("setpriv", &user, &command));
        if errors.contains("Operation not permitted") && errors.starts_with("setpriv") {
            return;
        }
        assert!(code == 7 || code == 71 && errors.contains("this user's processes to"), "{limit}: {code} {errors}");
        codes.push(code);
    }
    assert_eq!((codes[0], codes[5]), (71, 7), "{codes:?}");
}

fn open_files() {
    let guest = Guest::new(guest::EXIT_7);
    for limit in [4, 8, 12, 16, 24] {
        let command = through("prlimit", &[&format!("--nofile={limit}:{limit}")], &minivmm(&guest, &["--cpus", "16"]));
        let (code, errors) = said(command);
        assert_eq!(code, 71, "{limit}: {errors}");
        assert!(
            errors.contains(&format!("ulimit -Hn, LimitNOFILE= of a unit), which is {limit}")),
            "{limit}: {errors}"
        );
    }
}

fn address_space() {
    let guest = Guest::new(guest::EXIT_7);
    let (code, errors) = said(through("prlimit", &["--as=300000000"], &minivmm(&guest, &["--mem", "512M"])));
    assert_eq!(code, 71, "{errors}");
    assert!(errors.contains("ulimit -v"), "{errors}");
}

fn queued_signals() {
    let guest = Guest::new(guest::IDLE);
    let mut vm = Running::start(&mut through("prlimit", &["--sigpending=0"], &minivmm(&guest, &["--cpus", "2"])));
    vm.expect(b"!");
    vm.signal("QUIT");
    assert_eq!((vm.code(), vm.errors()), (131, String::new()));
}

/// In a cgroup below that of this process, where one can be made.
fn cgroup_memory() {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = |prefix: &str| own.lines().find_map(|line| Some(line.split_once(prefix)?.1.to_owned()));
    let (folder, file) = match path(":memory:") {
        Some(path) => (format!("/sys/fs/cgroup/memory{path}"), "memory.limit_in_bytes"),
        None => (format!("/sys/fs/cgroup{}", path("0::").unwrap_or_default()), "memory.max"),
    };
    let folder = format!("{}/minivmm-test-{}", folder.trim_end_matches('/'), std::process::id());
    if fs::create_dir(&folder).is_err() || fs::write(format!("{folder}/{file}"), "104857600").is_err() {
        let _ = fs::remove_dir(&folder);
        println!("skipped: no memory cgroup can be made here");
        return;
    }
    let guest = Guest::new(guest::EXIT_7);
    let run = |mem: &str| {
        let enter = format!("echo $$ > {folder}/cgroup.procs && exec \"$@\"");
        said(through("sh", &["-c", &enter, "sh"], &minivmm(&guest, &["--mem", mem])))
    };
    // The swap of the host counts, too.
    let (beyond, within) = (run("1T"), run("64M"));
    let swap = fs::read_to_string("/proc/meminfo")
        .unwrap()
        .lines()
        .any(|line| line.starts_with("SwapTotal:") && !line.contains(" 0 kB"));
    let close = if swap { None } else { Some(run("96M")) };
    let _ = fs::remove_dir(&folder);
    assert_eq!((beyond.0, within), (64, (7, String::new())), "{}", beyond.1);
    if let Some((code, errors)) = close {
        assert!(code == 7 && errors.contains("allows 100 MiB of memory"), "{code}: {errors}");
    }
}
