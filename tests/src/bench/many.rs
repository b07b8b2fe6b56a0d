//! Many VMs started at once: how long until all of them run, and what each of them costs the host.
//!
//! The guest is the probe, which prints a byte and halts. All VMs are on one bridge, or each behind a NAT of its own.
//! Memory is counted once nothing has happened for a while, without the guests' own: pages that processes share count
//! in parts (PSS), so the more VMs there are, the less of the program each of them has to bear.
//!
//! Run it inside `namespace::isolate`.

use super::Spread;
use super::usage::{self, Memory};
use crate::lan::sh;
use serde::Serialize;
use std::fmt::Write;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const MEM_MIB: u64 = 64;
const BRIDGE: &str = "br0";
/// Every process has looked at the last change of the host, and given back what that took.
const SETTLED: Duration = Duration::from_secs(12);
/// The name of the process that keeps a VM's network.
const KEEPER: &str = "keeper";
/// The goals of the project, in MiB.
const GOALS: Goals = Goals { keeper_mib: 0.6, vm_mib: 1.0 };

/// The VMs to start, and how many.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program under test.
    pub minivmm: PathBuf,
    /// The guest.
    pub probe: PathBuf,
    /// How many VMs at a time, one row for each number and network.
    pub vms: Vec<usize>,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A VM could not be started.
    #[error("Cannot start {program}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A VM ended before its guest said anything.
    #[error("VM {idx} of {vms} on {network} ended without a byte: {log}")]
    Silent {
        /// Which one.
        idx: usize,
        /// Of how many.
        vms: usize,
        /// On what network.
        network: &'static str,
        /// Its output.
        log: String,
    },
    /// The machine's own figures could not be read.
    #[error("Cannot read the memory of the VMs")]
    Usage(#[source] io::Error),
}

/// The result, as it is written to JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Guest memory in MiB, which does not count.
    pub mem_mib: u64,
    /// Processors of the machine.
    pub processors: usize,
    /// One for each network and number of VMs.
    pub rows: Vec<Row>,
    /// The goals, for 64 VMs.
    pub goals: Goals,
}

/// The project's goals, in MiB of PSS.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Goals {
    /// Of a keeper.
    pub keeper_mib: f64,
    /// Of a VM with its keeper.
    pub vm_mib: f64,
}

/// The figures of one number of VMs.
#[derive(Debug, Serialize)]
pub struct Row {
    /// `bridge` or `nat`.
    pub network: &'static str,
    /// How many VMs.
    pub vms: usize,
    /// From before the first is spawned until all guests have printed a byte, in ms.
    pub up_ms: f64,
    /// The VMM processes.
    pub vmm: Process,
    /// The keepers.
    pub keeper: Process,
    /// PSS of both together, for a VM on average, in KiB.
    pub vm_pss_kib: f64,
}

/// The memory of one kind of process.
#[derive(Debug, Serialize)]
pub struct Process {
    /// Proportional set size in KiB.
    pub pss_kib: Spread,
    /// Memory that no other process has, in KiB.
    pub private_kib: Spread,
}

#[derive(Debug, Clone, Copy)]
enum Network {
    Bridge,
    Nat,
}

/// Runs the benchmark.
///
/// # Errors
/// If a VM does not start or says nothing.
pub fn run(plan: &Plan) -> Result<Report, Error> {
    sh(&format!("ip link add {BRIDGE} type bridge stp_state 0 forward_delay 0 && ip link set {BRIDGE} up"));
    let mut rows = Vec::new();
    for network in [Network::Bridge, Network::Nat] {
        for &vms in &plan.vms {
            eprintln!("{vms} on {}", network.name());
            rows.push(row(plan, network, vms)?);
        }
    }
    let processors = thread::available_parallelism().map_or(1, usize::from);
    Ok(Report { mem_mib: MEM_MIB, processors, rows, goals: GOALS })
}

fn row(plan: &Plan, network: Network, vms: usize) -> Result<Row, Error> {
    let start = Instant::now();
    let mut running = Vec::with_capacity(vms);
    let up = start_all(plan, network, vms, &mut running).map(|()| start.elapsed());
    let memory = up.and_then(|up| {
        thread::sleep(SETTLED);
        usage::memory_of_each(MEM_MIB * 1024).map(|memory| (up, memory)).map_err(Error::Usage)
    });
    end(&mut running);
    let (up, memory) = memory?;
    let (keepers, vmms): (Vec<_>, Vec<_>) = memory.into_iter().partition(|(name, _)| name == KEEPER);
    // Sizes are far below 2^52.
    let sum: u64 = keepers.iter().chain(&vmms).map(|(_, memory)| memory.pss_kib).sum();
    Ok(Row {
        network: network.name(),
        vms,
        up_ms: up.as_secs_f64() * 1e3,
        vmm: Process::of(&vmms),
        keeper: Process::of(&keepers),
        vm_pss_kib: sum as f64 / vms as f64,
    })
}

/// Starts the VMs into `running`, and waits until each guest has said something.
fn start_all(plan: &Plan, network: Network, vms: usize, running: &mut Vec<Child>) -> Result<(), Error> {
    for _ in 0..vms {
        let child = network.command(plan).spawn();
        running.push(child.map_err(|source| Error::Start { program: plan.minivmm.clone(), source })?);
    }
    for (idx, child) in running.iter_mut().enumerate() {
        let heard = child.stdout.as_mut().is_some_and(|stdout| stdout.read_exact(&mut [0]).is_ok());
        if !heard {
            let mut log = String::new();
            // Whatever can be read explains more than nothing.
            let _partial = child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut log));
            let log = log.trim().to_owned();
            return Err(Error::Silent { idx, vms, network: network.name(), log });
        }
    }
    Ok(())
}

/// Kills the VMs and waits until none of their processes is left.
fn end(running: &mut [Child]) {
    for child in running.iter_mut() {
        // It may have ended by itself.
        let _gone = child.kill();
    }
    for child in running {
        let _status = child.wait();
    }
    // This is process 1 of its namespace: children of the killed ones are ours now.
    while nix::sys::wait::wait().is_ok() {}
}

impl Network {
    fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Nat => "nat",
        }
    }

    fn command(self, plan: &Plan) -> Command {
        let mut command = Command::new(&plan.minivmm);
        command.arg("--kernel").arg(&plan.probe).args(["--cmdline-replace", "probe=idle", "--console", "stdio"]);
        command.args(["--cpus", "1", "--mem", &format!("{MEM_MIB}M"), "--net"]);
        match self {
            Self::Bridge => command.arg(format!("bridge={BRIDGE}")),
            Self::Nat => command.arg("nat"),
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

impl Process {
    fn of(processes: &[(String, Memory)]) -> Self {
        let spread = |of: fn(&Memory) -> u64| Spread::of(processes.iter().map(|(_, memory)| of(memory) as f64));
        Self { pss_kib: spread(|memory| memory.pss_kib), private_kib: spread(|memory| memory.private_kib) }
    }
}

impl Report {
    /// The figures as a table for people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "VMs of {} MiB with 1 vCPU and 1 card, started at once on {} processors; memory without the guests', medians\n\
             {:8} {:>5} {:>10} {:>22} {:>22} {:>12}\n",
            self.mem_mib,
            self.processors,
            "",
            "VMs",
            "all up, ms",
            "VMM PSS (own), KiB",
            "keeper PSS (own), KiB",
            "VM PSS, KiB"
        );
        for row in &self.rows {
            let memory = |p: &Process| format!("{:.0} ({:.0})", p.pss_kib.median, p.private_kib.median);
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "{:8} {:>5} {:>10.0} {:>22} {:>22} {:>12.0}",
                row.network,
                row.vms,
                row.up_ms,
                memory(&row.vmm),
                memory(&row.keeper),
                row.vm_pss_kib
            );
        }
        let _ = writeln!(
            text,
            "(goals: {} MiB for a keeper, {} MiB for a VM with it)",
            self.goals.keeper_mib, self.goals.vm_mib
        );
        text
    }
}
