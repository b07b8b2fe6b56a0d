//! From exec to the guest's first byte: minivmm and QEMU microvm with the same guest, in turns.
//!
//! The guest is the probe, whose first act is a byte on the serial port. Each VM has 128 MiB, one vCPU and one card on
//! a bridge. minivmm creates its tap and attaches it, and that counts; QEMU gets one that is already there, without a
//! script. QEMU's microvm runs as it is and with what its documentation names for a short start. A program that only
//! prints a byte shows how much of it all is the price of starting a process.
//!
//! Figures mean something only against each other, in the same run. Run it inside `namespace::isolate`.

use super::usage;
use super::{Spread, end};
use crate::lan::sh;
use crate::probe::QEMU_CPU;
use nix::poll::{PollFd, PollFlags, poll};
use serde::Serialize;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const MEM_MIB: u64 = 128;
const BRIDGE: &str = "br0";
const TAP: &str = "qemu0";
const QEMU: &str = "qemu-system-x86_64";
/// QEMU's documentation names these for the shortest start of a microvm.
const LEAN_MICROVM: &str = "microvm,x-option-roms=off,pit=off,pic=off,rtc=off";
/// How long a VM runs before its memory is looked at: start-up is over, and what it gives back it has given back.
const SETTLED: Duration = Duration::from_secs(1);
/// No contestant takes longer to print a byte.
const FIRST_BYTE_TIMEOUT_MS: u16 = 30_000;
/// The goals of the project: QEMU's time over ours, MiB of memory, MB of program.
const GOALS: Goals = Goals { times_faster: 18.0, pss_mib: 2.5, program_mb: 4.0 };

/// The VMs to start, and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program under test.
    pub minivmm: PathBuf,
    /// Another minivmm, to be measured beside.
    pub before: Option<PathBuf>,
    /// The guest.
    pub probe: PathBuf,
    /// Runs of each contestant. The first one of each warms the caches and is not counted.
    pub runs: u32,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A contestant could not be started.
    #[error("{name} could not be started")]
    Start {
        /// Its name.
        name: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A contestant ended, or hung, before the first byte.
    #[error("{name} ended without a byte: {log}")]
    Silent {
        /// Its name.
        name: &'static str,
        /// Its output.
        log: String,
    },
    /// The machine's own figures could not be read.
    #[error("What {name} uses could not be read")]
    Usage {
        /// Its name.
        name: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// The result, as it is written to JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Counted runs of each contestant.
    pub runs: u32,
    /// Guest memory in MiB.
    pub mem_mib: u64,
    /// One entry for each.
    pub contestants: Vec<Figures>,
    /// First byte of QEMU over that of minivmm, medians.
    pub times_faster: f64,
    /// The same for a QEMU that leaves out what its documentation names.
    pub times_faster_than_lean: f64,
    /// The goals.
    pub goals: Goals,
}

/// The project's goals.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Goals {
    /// QEMU's first byte over minivmm's.
    pub times_faster: f64,
    /// minivmm's memory beyond the guest's, in MiB.
    pub pss_mib: f64,
    /// minivmm's program, in MB.
    pub program_mb: f64,
}

/// The figures of one contestant.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Its name.
    pub name: &'static str,
    /// From before the spawn until the byte is read, in ms.
    pub first_byte_ms: Spread,
    /// Processor time of all its processes until then, in ms.
    pub cpu_ms: Spread,
    /// PSS of all its processes beyond guest memory a second after its first byte, in MiB.
    pub pss_mib: Spread,
    /// Threads of all its processes, the largest number seen.
    pub threads: u32,
    /// Processes, the largest number seen.
    pub processes: u32,
    /// The program file in MB (10^6 bytes).
    pub program_mb: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contestant {
    OneByte,
    Minivmm,
    Before,
    QemuMicrovm,
    QemuLeanMicrovm,
}

struct Sample {
    first_byte: Duration,
    cpu: Duration,
    footprint: usage::Usage,
}

/// Runs the benchmark.
///
/// # Errors
/// If a contestant does not start or says nothing.
pub fn run(plan: &Plan) -> Result<Report, Error> {
    sh(&format!(
        "ip link add {BRIDGE} type bridge stp_state 0 forward_delay 0 && ip link set {BRIDGE} up &&
        ip tuntap add {TAP} mode tap && ip link set {TAP} master {BRIDGE} up"
    ));
    let mut contestants =
        vec![Contestant::OneByte, Contestant::Minivmm, Contestant::QemuMicrovm, Contestant::QemuLeanMicrovm];
    contestants.extend(plan.before.as_ref().map(|_| Contestant::Before));
    let mut samples: Vec<Vec<Sample>> = contestants.iter().map(|_| Vec::new()).collect();
    for round in 0..=plan.runs {
        for (contestant, samples) in contestants.iter().zip(&mut samples) {
            let sample = contestant.start_once(plan)?;
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    let figures: Vec<Figures> = contestants.iter().zip(&samples).map(|(c, s)| c.figures(plan, s)).collect();
    let median = |contestant: Contestant| {
        let found = figures.iter().find(|figures| figures.name == contestant.name());
        found.map_or(f64::NAN, |figures| figures.first_byte_ms.median)
    };
    let over = |other: Contestant| median(other) / median(Contestant::Minivmm);
    let (times_faster, times_faster_than_lean) = (over(Contestant::QemuMicrovm), over(Contestant::QemuLeanMicrovm));
    Ok(Report {
        runs: plan.runs,
        mem_mib: MEM_MIB,
        contestants: figures,
        times_faster,
        times_faster_than_lean,
        goals: GOALS,
    })
}

impl Report {
    /// The figures as a table for people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "Start of a guest of {} MiB with 1 vCPU and 1 card on a bridge, medians of {} (min..max)\n\
             {:16} {:>24} {:>24} {:>10} {:>8} {:>10} {:>9}\n",
            self.mem_mib,
            self.runs,
            "",
            "first byte, ms",
            "CPU until then, ms",
            "PSS, MiB",
            "threads",
            "processes",
            "file, MB"
        );
        for f in &self.contestants {
            let spread = |s: &Spread| format!("{:.2} ({:.2}..{:.2})", s.median, s.min, s.max);
            text.push_str(&format!(
                "{:16} {:>24} {:>24} {:>10.2} {:>8} {:>10} {:>9.2}\n",
                f.name,
                spread(&f.first_byte_ms),
                spread(&f.cpu_ms),
                f.pss_mib.median,
                f.threads,
                f.processes,
                f.program_mb
            ));
        }
        text.push_str(&format!(
            "minivmm's first byte comes {:.1} times as fast as QEMU's, {:.1} times as fast as that of one without option ROMs, PIT, \
             PIC and RTC (-)\n(goals: {} times, {} MiB, {} MB)\n",
            self.times_faster, self.times_faster_than_lean, self.goals.times_faster, self.goals.pss_mib, self.goals.program_mb
        ));
        text
    }
}

impl Contestant {
    fn name(self) -> &'static str {
        match self {
            Self::OneByte => "print a byte",
            Self::Minivmm => "minivmm",
            Self::Before => "minivmm, before",
            Self::QemuMicrovm => "QEMU microvm",
            Self::QemuLeanMicrovm => "QEMU microvm -",
        }
    }

    fn program(self, plan: &Plan) -> PathBuf {
        match self {
            Self::OneByte => in_path("printf"),
            Self::Minivmm => plan.minivmm.clone(),
            Self::Before => plan.before.clone().unwrap_or_default(),
            Self::QemuMicrovm | Self::QemuLeanMicrovm => in_path(QEMU),
        }
    }

    fn command(self, plan: &Plan) -> Command {
        let mut command = Command::new(self.program(plan));
        match self {
            Self::OneByte => command.arg("x"),
            Self::Minivmm | Self::Before => command
                .arg("--kernel")
                .arg(&plan.probe)
                .args(["--cmdline-replace", "probe=idle", "--console", "stdio", "--cpus", "1"])
                .args(["--mem", &format!("{MEM_MIB}M"), "--net", &format!("bridge={BRIDGE}")]),
            Self::QemuMicrovm | Self::QemuLeanMicrovm => command
                .args([
                    "-M",
                    if self == Self::QemuMicrovm { "microvm" } else { LEAN_MICROVM },
                    "-accel",
                    "kvm",
                    "-cpu",
                    QEMU_CPU,
                    "-smp",
                    "1",
                    "-m",
                    &MEM_MIB.to_string(),
                ])
                .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
                .args(["-netdev", &format!("tap,id=n,ifname={TAP},script=no,downscript=no")])
                .args(["-device", "virtio-net-device,netdev=n", "-append", "probe=idle", "-kernel"])
                .arg(&plan.probe),
        };
        command
    }

    fn start_once(self, plan: &Plan) -> Result<Sample, Error> {
        let name = self.name();
        let mut command = self.command(plan);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = Instant::now();
        let mut child = command.spawn().map_err(|source| Error::Start { name, source })?;
        let heard = first_byte(&mut child);
        let first_byte = start.elapsed();
        let sample = usage::cpu_time().and_then(|cpu| {
            thread::sleep(SETTLED);
            let footprint = usage::footprint(MEM_MIB * 1024)?;
            Ok(Sample { first_byte, cpu, footprint })
        });
        end(&mut child);
        if !heard {
            let mut log = String::new();
            // Whatever can be read explains more than nothing.
            let _partial = child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut log));
            return Err(Error::Silent { name, log: log.trim().to_owned() });
        }
        sample.map_err(|source| Error::Usage { name, source })
    }

    fn figures(self, plan: &Plan, samples: &[Sample]) -> Figures {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let most = |count: fn(&usage::Usage) -> u32| samples.iter().map(|s| count(&s.footprint)).max().unwrap_or(0);
        // Sizes are far below 2^52.
        let bytes = fs::metadata(self.program(plan)).map_or(0, |file| file.len()) as f64;
        Figures {
            name: self.name(),
            first_byte_ms: Spread::of(samples.iter().map(|s| ms(s.first_byte))),
            cpu_ms: Spread::of(samples.iter().map(|s| ms(s.cpu))),
            pss_mib: Spread::of(samples.iter().map(|s| s.footprint.pss_kib as f64 / 1024.0)),
            threads: most(|usage| usage.threads),
            processes: most(|usage| usage.processes),
            program_mb: bytes / 1e6,
        }
    }
}

/// Waits for one byte on the child's standard output.
fn first_byte(child: &mut Child) -> bool {
    let Some(stdout) = child.stdout.as_mut() else { return false };
    let ready = poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)], FIRST_BYTE_TIMEOUT_MS);
    ready.is_ok_and(|ready| ready > 0) && stdout.read(&mut [0]).is_ok_and(|len| len == 1)
}

/// The file that a program name means.
fn in_path(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| name.into())
}
