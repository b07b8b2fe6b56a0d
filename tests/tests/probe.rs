//! A VMM as a guest sees it, register by register: the bare-metal probe guest on minivmm and on QEMU.
//!
//! Every line of the probe is one test here. The VMs run in namespaces of their own, on a bridge with a peer that sends
//! the probe's frames back. QEMU runs the same binary, which shows that the checks hold the specification and not
//! minivmm's habits.

use images::error_chain;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use tests::codes;
use tests::namespace;
use tests::place::Place;
use tests::probe::machine::{Config, Run, Vmm};
use tests::probe::peer::PeerLan;
use tests::probe::{self, Outcome};
use tests::workspace;

/// The register-level checks of one card have to be this fast on minivmm: they are meant to run after every change.
/// Processor time, so that a busy machine fails no run.
const REGISTERS_AT_MOST: Duration = Duration::from_secs(5);
/// minivmm's exit code after a triple fault.
const CRASHED: i32 = 98;
/// The length of the probe's TCP segment, and of its peer's answer.
const SEGMENT: usize = 20000;
/// Rounds of SIGKILL, unless `KILL_ROUNDS` says otherwise.
const KILL_ROUNDS: &str = "15";
const REGISTER_SUITES: &str = "probe=platform,pci,common,status,msix";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if arguments.list {
        return libtest_mimic::run(&arguments, Vec::new()).exit_code();
    }
    let target = probe::target_of(Path::new(env!("CARGO_TARGET_TMPDIR")));
    // Before the namespaces, where cargo may still need the network; inside, this finds everything up to date.
    let (probe, minivmm) = (probe::build(&target), probe::build_minivmm(&target));
    let programs = Programs { probe, minivmm, host_cases: workspace::build_host_cases() };
    let trials = match namespace::isolate() {
        Ok(()) => trials(programs),
        Err(error) => vec![skipped("probe", error_chain(&error))],
    };
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The programs to build.
struct Programs {
    probe: Result<PathBuf, probe::Error>,
    minivmm: Result<PathBuf, probe::Error>,
    host_cases: Result<PathBuf, workspace::Error>,
}

fn trials(programs: Programs) -> Vec<Trial> {
    let probe = match &programs.probe {
        Ok(probe) => probe.clone(),
        Err(error) => return vec![failed("probe builds", error_chain(error))],
    };
    let lan = match PeerLan::new() {
        Ok(lan) => lan,
        Err(error) => return vec![failed("peer on the bridge", error.to_string())],
    };
    let scratch = match tempfile::tempdir() {
        Ok(scratch) => scratch,
        Err(error) => return vec![failed("scratch folder", error.to_string())],
    };
    let disks = [(disk(scratch.path(), "writable"), false), (disk(scratch.path(), "readonly"), true)];
    let place = Place::ask();
    let mut trials = on_qemu(&place, &probe, &lan, &disks);
    trials.extend(on_minivmm(&place, programs, &probe, &lan, &disks));
    trials
}

fn on_minivmm(place: &Place, programs: Programs, probe: &Path, lan: &PeerLan, disks: &[(PathBuf, bool)]) -> Vec<Trial> {
    if let Place::NoKvm { .. } = place {
        return vec![skipped("minivmm", place.to_string())];
    }
    let program = match programs.minivmm {
        Ok(program) => program,
        Err(error) => return vec![failed("minivmm builds", error_chain(&error))],
    };
    let vmm = Vmm::Minivmm(program.clone());
    let on_bridge = lan.on_bridge();
    let base = Config { probe, cmdline: "", card: &on_bridge, keys: "", tap: "", disks: &[] };
    let devices = "probe=all strict echo";
    let mut trials = registers_in_time(&vmm, &base);
    for (end, code) in [("reset", codes::RESET), ("panic", codes::PANICKED), ("triple-fault", CRASHED)] {
        let ended = vmm.run(&Config { cmdline: &format!("probe=none end={end}"), ..base.clone() });
        let seen = ended.map(|run| run.code);
        let as_wished = matches!(seen, Ok(Some(seen)) if seen == code);
        trials.push(Trial::test(format!("minivmm: {end} ends it with code {code}"), move || {
            if as_wished { Ok(()) } else { Err(format!("ended with {seen:?}").into()) }
        }));
    }
    // A macvtap cuts uncut datagrams into fragments before the peer could see them: without UFO nothing is left to
    // check there.
    let keys = ",offload=csum:tso:ecn:uso";
    match vmm.run(&Config { cmdline: "probe=device strict echo", card: lan.on_interface(), keys, ..base.clone() }) {
        Ok(mut run) => {
            run.verdicts.retain(|verdict| !matches!(verdict.outcome, Outcome::Skipped(_)));
            trials.extend(reported("minivmm on a macvtap", run));
        }
        Err(error) => trials.push(failed("minivmm on a macvtap", error.to_string())),
    }
    trials.extend(captured(&vmm, &base));
    match vmm.run(&Config { cmdline: devices, disks, ..base }) {
        Ok(run) => trials.extend(reported("minivmm", run)),
        Err(error) => trials.push(failed("minivmm", error.to_string())),
    }
    trials.extend(on_disk_error(&program, probe, disks));
    trials.push(killed(programs.host_cases, program, probe.to_path_buf()));
    trials
}

/// A disk whose host takes no write behind its first page (RLIMIT_FSIZE): the machine ends, or waits until it is ended.
fn on_disk_error(program: &Path, probe: &Path, disks: &[(PathBuf, bool)]) -> Vec<Trial> {
    let Some((disk, _)) = disks.iter().find(|(_, readonly)| !readonly) else { return Vec::new() };
    let run = |wish: &str, seconds: &str| {
        let mut command = Command::new("timeout");
        // Without --foreground it sends a second signal, to the process group, which stops a guest at once.
        command
            .args(["--foreground", "--preserve-status", "--kill-after=10", seconds, "prlimit", "--fsize=4096"])
            .arg(program)
            .arg("--kernel")
            .arg(probe);
        command.args(["--cmdline-replace", "probe=device", "--stop-timeout", "0", "--on-disk-error", wish]);
        command.arg("--disk").arg(format!("path={}", disk.display())).stdin(Stdio::null()).output()
    };
    let path = disk.display();
    let expected = [
        ("stop", "120", 71, format!("minivmm: Disk {path} failed: File too large (os error 27)\n")),
        // By SIGTERM, and at once.
        ("pause", "5", 124, "The disk failed: File too large (os error 27); the guest waits".to_owned()),
    ];
    let trial = |(wish, seconds, code, words): (&'static str, &str, i32, String)| {
        let output = run(wish, seconds);
        Trial::test(format!("minivmm: a disk that fails, with --on-disk-error {wish}"), move || {
            let output = output?;
            let log = String::from_utf8_lossy(&output.stderr);
            let as_wished = output.status.code() == Some(code) && log.contains(&words);
            if as_wished { Ok(()) } else { Err(format!("{}: {log}", output.status).into()) }
        })
    };
    expected.into_iter().map(trial).collect()
}

/// The register suites on a machine with one card, and whether they are quick.
fn registers_in_time(vmm: &Vmm, base: &Config<'_>) -> Vec<Trial> {
    let cmdline = format!("{REGISTER_SUITES} strict");
    let run = match vmm.run(&Config { cmdline: &cmdline, ..base.clone() }) {
        Ok(run) => run,
        Err(error) => return vec![failed("minivmm registers", error.to_string())],
    };
    let (cpu, took) = (run.cpu, run.took);
    let mut trials: Vec<Trial> = reported("minivmm registers", run).collect();
    trials.push(Trial::test("minivmm registers: under 5 s of processor time", move || {
        if cpu < REGISTERS_AT_MOST { Ok(()) } else { Err(format!("{cpu:?}, in {took:?}").into()) }
    }));
    trials
}

/// The check of tshark's reading of a run's capture: every frame, also those that are larger than the wire takes.
fn captured(vmm: &Vmm, base: &Config<'_>) -> Vec<Trial> {
    const NAME: &str = "minivmm: capture is read back by tshark, large frames included";
    if Command::new("tshark").arg("--version").stdin(Stdio::null()).output().is_err() {
        return vec![skipped(NAME, "tshark is not installed".to_owned())];
    }
    let folder = match tempfile::tempdir() {
        Ok(folder) => folder,
        Err(error) => return vec![failed(NAME, error.to_string())],
    };
    let file = folder.path().join("net0.pcapng");
    let keys = format!(",capture={}", file.display());
    let run = match vmm.run(&Config { cmdline: "probe=net strict echo", keys: &keys, ..base.clone() }) {
        Ok(run) => run,
        Err(error) => return vec![failed(NAME, error.to_string())],
    };
    let frames = tshark(&file);
    let mut trials: Vec<Trial> = reported("minivmm captured", run).collect();
    trials.push(Trial::test(NAME, move || Ok(check_frames(&frames?)?)));
    trials
}

/// A frame as tshark sees it.
struct Frame {
    interface: String,
    len: usize,
    captured: usize,
    source: String,
    /// Bytes that TCP carries, if it is TCP.
    tcp: Option<usize>,
}

fn tshark(file: &Path) -> Result<Vec<Frame>, String> {
    let fields = ["frame.interface_name", "frame.len", "frame.cap_len", "eth.src", "tcp.len"];
    let mut command = Command::new("tshark");
    command.arg("-n").arg("-r").arg(file).args(["-T", "fields"]).args(fields.iter().flat_map(|field| ["-e", field]));
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let frame = |line: &str| {
        let words: Vec<&str> = line.split('\t').collect();
        let &[interface, len, captured, source, tcp] = words.as_slice() else { return Err(line.to_owned()) };
        let number = |text: &str| text.parse().map_err(|_| line.to_owned());
        let (len, captured) = (number(len)?, number(captured)?);
        let tcp = if tcp.is_empty() { None } else { Some(number(tcp)?) };
        Ok(Frame { interface: interface.to_owned(), len, captured, source: source.to_owned(), tcp })
    };
    String::from_utf8_lossy(&output.stdout).lines().map(frame).collect()
}

fn check_frames(frames: &[Frame]) -> Result<(), String> {
    let senders: BTreeSet<&str> = frames.iter().map(|frame| frame.source.as_str()).collect();
    let largest = |wanted: fn(&Frame) -> bool| frames.iter().filter(|frame| wanted(frame)).map(|frame| frame.len).max();
    let (datagram, segment) = (largest(|frame| frame.tcp.is_none()), largest(|frame| frame.tcp == Some(SEGMENT)));
    println!("{} frames of {} senders: {datagram:?} bytes of UDP, {segment:?} of TCP", frames.len(), senders.len());
    if frames.iter().any(|frame| frame.interface != "net0" || frame.captured != frame.len) {
        return Err("a frame is of another card, or not whole".to_owned());
    }
    let whole: BTreeSet<&str> =
        frames.iter().filter(|frame| frame.tcp == Some(SEGMENT)).map(|frame| frame.source.as_str()).collect();
    match (senders.len(), datagram, whole.len()) {
        (..2, _, _) => Err(format!("only {senders:?} is seen to send")),
        (_, None | Some(..=1514), _) => Err(format!("no datagram is larger than {datagram:?} bytes")),
        (_, _, ..2) => Err(format!("a segment of {SEGMENT} bytes is seen from {whole:?} only")),
        _ => Ok(()),
    }
}

fn on_qemu(place: &Place, probe: &Path, lan: &PeerLan, disks: &[(PathBuf, bool)]) -> Vec<Trial> {
    let version = Command::new("qemu-system-x86_64").arg("--version").stdin(Stdio::null()).output();
    if version.is_err() {
        return vec![skipped("qemu", "qemu-system-x86_64 is not installed".to_owned())];
    }
    lan.tap("qemu0");
    let vmm = Vmm::Qemu { kvm: !matches!(place, Place::NoKvm { .. }) };
    let cmdline = format!("{REGISTER_SUITES},device echo");
    match vmm.run(&Config { probe, cmdline: &cmdline, card: "", keys: "", tap: "qemu0", disks }) {
        Ok(run) => reported("qemu", run).collect(),
        Err(error) => vec![failed("qemu", error.to_string())],
    }
}

/// The rounds of `net/tests/host/kills`, with minivmm and the probe in the place of what stands for them there.
fn killed(cases: Result<PathBuf, workspace::Error>, minivmm: PathBuf, probe: PathBuf) -> Trial {
    const NAME: &str = "minivmm: SIGKILL of it and its keeper at random moments leaves nothing";
    let cases = match cases {
        Ok(cases) => cases,
        Err(error) => return failed(NAME, error_chain(&error)),
    };
    Trial::ignorable_test(NAME, move || {
        let mut command = Command::new(cases);
        command.args(["end_by_sigkill_at_random", "--nocapture"]).stdin(Stdio::null());
        command.env("KILL_BINARY", minivmm).env("KILL_PROBE", probe);
        if std::env::var_os("KILL_ROUNDS").is_none() {
            command.env("KILL_ROUNDS", KILL_ROUNDS);
        }
        let output = command.output()?;
        let report = String::from_utf8_lossy(&output.stdout);
        // Not the lines by which tests are counted.
        report
            .lines()
            .filter(|line| line.contains("round") || line.starts_with("seed"))
            .for_each(|line| println!("{line}"));
        if report.contains("skipped end_by_sigkill") {
            return Ok(Completion::ignored_with("the case says why"));
        }
        if !output.status.success() || !report.contains("test result: ok. 1 passed;") {
            return Err(format!("{report}{}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(Completion::Completed)
    })
}

/// One trial for each line of a run, and one for its end.
fn reported(vmm: &'static str, run: Run) -> impl Iterator<Item = Trial> {
    let end = if run.clean && !run.verdicts.is_empty() {
        Ok(())
    } else {
        let console: Vec<&str> = run.console.lines().rev().take(5).collect();
        Err(format!("last lines, newest first: {console:#?}\nlog: {}", run.log))
    };
    let lines = run.verdicts.into_iter().map(move |verdict| {
        let name = format!("{vmm}: {}", verdict.name);
        match verdict.outcome {
            Outcome::Passed => Trial::test(name, || Ok(())),
            Outcome::Failed(reason) => failed(&name, reason),
            // The probe skips what this VMM does not have or promise. That is no gap of this machine, so it counts as
            // seen.
            Outcome::Skipped(reason) => Trial::test(format!("{name} (not applicable: {reason})"), || Ok(())),
        }
    });
    let end = Trial::test(format!("{vmm}: ends by itself with nothing wrong"), move || end.map_err(Failed::from));
    lines.chain(std::iter::once(end))
}

fn failed(name: &str, reason: String) -> Trial {
    Trial::test(name, move || Err(reason.into()))
}

fn skipped(name: &str, reason: String) -> Trial {
    Trial::ignorable_test(name, move || Ok(Completion::ignored_with(reason)))
}

/// An empty image of 1 MiB.
fn disk(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    let made = std::fs::File::create(&path).and_then(|file| file.set_len(1 << 20));
    assert!(made.is_ok(), "{}: {made:?}", path.display());
    path
}
