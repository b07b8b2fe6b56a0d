//! SIGKILL of any process of a VM, at any moment. Afterwards the host is as it was.

use crate::host::{bridge, minivmm, said, snapshot};
use crate::vm::Vm;
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const CASES: &[(&str, fn())] = &[("sigkill_of_any_processes_at_any_moment_leaves_nothing", at_random)];

/// Rounds of the case, unless `KILL_ROUNDS` says otherwise.
const ROUNDS: u64 = 30;

/// The cards of a VM, in turn.
const NETS: [&str; 6] = [
    "bridge=br0,antispoof=on",
    "nat,ipv6=on,forward=tcp:8080:80",
    "host",
    "bridge=lan,create=on",
    "nat=six,ipv6=on",
    "bridge=br0,vhost=off,queues=1",
];

/// The processes of a VM.
const NAMES: [&str; 4] = ["minivmm", "vmm", "keeper", "services"];

/// Longer than anything takes on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

fn at_random() {
    let rounds = std::env::var("KILL_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    bridge("br0");
    // A bridge is not what it was before its first port, and what is loaded on demand stays.
    for net in NETS {
        let mut vm = Vm::start(&["--name", "web", "--net", net, "--log", "debug"]);
        while !vm.error_line().contains("vCPUs are running") {}
        vm.quit();
    }
    // A carrier that is lost is told a moment later.
    thread::sleep(Duration::from_secs(1));
    let before = host();
    let (mut random, mut killed) = (Random(rounds), BTreeMap::new());
    for round in 0..rounds {
        let net = NETS[usize::try_from(round).unwrap() % NETS.len()];
        let mut vm = Vm::start(&["--name", "web", "--net", net]);
        thread::sleep(Duration::from_micros(random.below(60_000)));
        let victims = round % 15 + 1;
        let processes = processes(vm.pid());
        let doomed = processes.iter().filter(|(name, _)| {
            let bit = NAMES.iter().position(|own| own == name).unwrap();
            victims & 1 << bit != 0
        });
        let doomed: Vec<_> = doomed.cloned().collect();
        for (name, pid) in &doomed {
            *killed.entry(name.clone()).or_insert(0) += 1;
            // It may have ended with another.
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).output();
        }
        let text = format!("round {round}: {net}, killed {doomed:?}");
        let _ = Command::new("kill").args(["-QUIT", &vm.pid().to_string()]).output();
        vm.end();
        let left = || processes.iter().filter(|(_, pid)| is_alive(*pid)).cloned().collect::<Vec<_>>();
        until(&format!("{text}: processes are left"), || left().is_empty());
        // Without a keeper, or before there is one, files of the name are left, and maybe a bridge. One that has just
        // been forked has its parent's name.
        let is_keeper = |(name, pid): &&(String, u32)| name == "keeper" || name == "minivmm" && *pid != vm.pid();
        if doomed.iter().any(|process| is_keeper(&process)) || !processes.iter().any(|process| is_keeper(&process)) {
            assert_eq!(said(&mut minivmm(&["net", "gc"])).0, 0, "{text}");
        }
        let start = Instant::now();
        while host() != before {
            let after = host();
            let news: Vec<_> = after.lines().filter(|line| !before.contains(line)).collect();
            let lost: Vec<_> = before.lines().filter(|line| !after.contains(line)).collect();
            assert!(start.elapsed() < DEADLINE, "{text}: {news:?} is new, {lost:?} is lost");
            thread::sleep(Duration::from_millis(5));
        }
    }
    println!("{rounds} rounds, killed {killed:?}, failures 0");
}

/// The things that a VM could leave behind.
fn host() -> String {
    let names = fs::read_dir("/run/minivmm")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    // A lock whose holder was killed is harmless, and goes with the next.
    let names: Vec<String> = names.filter(|name| name.starts_with("web.") && !name.ends_with(".lock")).collect();
    format!("{}{}", snapshot(), names.len())
}

/// The supervisor with this number, and its children, by name.
fn processes(pid: u32) -> Vec<(String, u32)> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().map(|child| child.parse().unwrap());
    let name =
        |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|name| (name.trim().to_owned(), pid));
    let all = [pid].into_iter().chain(children).filter_map(name);
    // The shell that starts the VM has its own name.
    all.filter(|(name, _)| NAMES.contains(&name.as_str())).collect()
}

/// Returns whether a process is there and has not ended.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A generator of numbers (xorshift, Marsaglia 2003) that gives the same ones in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
