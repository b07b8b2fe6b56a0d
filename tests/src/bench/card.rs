//! The network card with a polling guest: frames per second, latency and processor time of minivmm and QEMU, in turns.
//!
//! The guest is the probe (`probe=bench`): ring 3 on one virtual processor, which runs natively also where KVM emulates
//! ring 0. It keeps its rings full, has interrupts off and rings a doorbell only where the device asks for it. Its card
//! is on a bridge. Round trips are also made by a guest that halts until the answer's interrupt.
//!
//! Frames that it sends go to a tap without a reader, whose full queue drops everything at once: counted, and the same
//! for all. What it receives is queued before its tap while it holds its buffers back, and timed from there to the last
//! frame: so nothing else works then, and two processors are enough for guest and worker. The same writes and reads
//! without a VM (`plain`) are what this kernel can do at all.
//!
//! Nothing is pinned, and the host may be busy, so figures mean something only against each other, in the same run;
//! processor time per frame suffers least. QEMU is a q35 with virtio-net-pci and vhost off. Run it inside
//! `namespace::isolate`.

mod case;

mod frame;
mod peer;
mod report;
mod tap;
mod vm;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

pub use report::{Goals, Idle, Report, Stream, Trip};

use crate::bench::clock;
use crate::lan::sh;
use case::{Case, Contestant, Direction, Guest, Moved, Sample, Times, cases};
use frame::{CARD_MAC, PEER_MAC, SINK_MAC, Shape};
use peer::{Echo, Writer, drain};
use tap::Tap;
use vm::{BRIDGE, Line, Vm, Vmm};

const GOALS: Goals =
    Goals { small_frames_over_qemu: 2.0, gso_over_plain: 0.9, four_pairs_over_one: 2.0, idle_wakeups_per_s: 0.0 };
/// Part of a run that is not counted.
const WARM: f64 = 0.25;
/// How long an idle VM is left alone before it is watched, and then watched.
const SETTLE: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(4);
/// Counted drains of a run that receives, after one that is not.
const DRAINS: usize = 5;
/// Writes between two looks at the clock.
const BATCH: u64 = 256;
/// Stamps of guest and host that differ by less than this many seconds come from one counter.
const SAME_CLOCK: f64 = 0.5;

/// The measurements to make.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program under test.
    pub minivmm: PathBuf,
    /// Another minivmm, to be measured beside.
    pub before: Option<PathBuf>,
    /// The guest.
    pub probe: PathBuf,
    /// Runs of each case and contestant.
    pub runs: u32,
    /// Counted seconds of a run.
    pub seconds: f64,
    /// Only cases with this in their names, for example `tx-64-1`, `rx-64K-gso-2`, `pong`, `idle`.
    pub filter: String,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
#[error("{case} on {contestant} could not be measured")]
pub struct Error {
    case: String,
    contestant: &'static str,
    source: io::Error,
}

/// Runs the benchmark.
///
/// # Errors
/// If a run fails.
pub fn run(plan: &Plan) -> Result<Report, Error> {
    let sink_mac = SINK_MAC.map(|byte| format!("{byte:02x}")).join(":");
    // The host's own neighbour discovery would wake idle cards.
    sh(&format!(
        "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do ! test -e $f || echo 1 >$f; done;
        ip link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0 && ip link set {BRIDGE} up"
    ));
    let bench = Bench { plan, ticks_per_s: clock::ticks_per_second(), sink_mac };
    let rows: Vec<(Case, Contestant)> = cases()
        .into_iter()
        .filter(|case| case.name().contains(&plan.filter))
        .flat_map(|case| case.contestants(plan.before.is_some()).into_iter().map(move |contestant| (case, contestant)))
        .collect();
    let mut samples: Vec<Vec<Sample>> = rows.iter().map(|_| Vec::new()).collect();
    for round in 0..plan.runs {
        eprintln!("round {} of {}", round + 1, plan.runs);
        for ((case, contestant), samples) in rows.iter().zip(&mut samples) {
            let sample = bench.once(*case, *contestant);
            samples.push(sample.map_err(|source| Error {
                case: case.name(),
                contestant: contestant.name(),
                source,
            })?);
        }
    }
    let mut report = Report {
        runs: plan.runs,
        seconds: plan.seconds,
        processors: thread::available_parallelism().map_or(1, usize::from),
        streams: Vec::new(),
        trips: Vec::new(),
        idle: Vec::new(),
        goals: GOALS,
    };
    for ((case, contestant), samples) in rows.iter().zip(&samples) {
        case.add_to(&mut report, contestant.name(), samples);
    }
    Ok(report)
}

/// The state that all runs share.
struct Bench<'a> {
    plan: &'a Plan,
    ticks_per_s: f64,
    sink_mac: String,
}

impl Bench<'_> {
    fn once(&self, case: Case, contestant: Contestant) -> io::Result<Sample> {
        match (case, contestant) {
            (Case::Stream(Direction::Tx, shape, _), Contestant::Plain) => self.plain_writes(shape),
            (Case::Stream(Direction::Rx, shape, _), Contestant::Plain) => self.plain_reads(shape),
            (Case::Stream(Direction::Tx, shape, pairs), Contestant::Vm(vmm)) => self.send(shape, pairs, vmm),
            (Case::Stream(Direction::Rx, shape, pairs), Contestant::Vm(vmm)) => self.receive(shape, pairs, vmm),
            (Case::Pong(guest), Contestant::Vm(vmm)) => self.pong(guest, vmm),
            (Case::Idle, Contestant::Vm(vmm)) => self.idle(vmm),
            (Case::Pong(_) | Case::Idle, Contestant::Plain) => Err(io::Error::other("needs a VM")),
        }
    }

    fn sink(&self) -> io::Result<Tap> {
        let tap = Tap::new("sink0", BRIDGE)?;
        tap.set_depth(1);
        sh(&format!("bridge fdb replace {} dev sink0 master static", self.sink_mac));
        Ok(tap)
    }

    fn ticks(&self, seconds: f64) -> String {
        format!("{:.0}", seconds * self.ticks_per_s)
    }

    fn start(&self, vmm: Vmm, pairs: u16, words: &str) -> io::Result<Vm> {
        let (warm, ticks) = (self.ticks(WARM), self.ticks(self.plan.seconds));
        let words = format!("{words} warm={warm} ticks={ticks}");
        let Plan { minivmm, before, probe, .. } = self.plan;
        let program = before.as_ref().filter(|_| vmm == Vmm::Before).unwrap_or(minivmm);
        Vm::start(vmm, program, probe, pairs, &words)
    }

    fn send(&self, shape: Shape, pairs: u16, vmm: Vmm) -> io::Result<Sample> {
        let sink = self.sink()?;
        let mut vm = self.start(vmm, pairs, &format!("dir=tx {}", words(shape)))?;
        vm.line("begin")?;
        let before = clock::thread_times(vm.pid())?;
        let counts = vm.line("tx")?;
        let after = clock::thread_times(vm.pid())?;
        Ok(Sample::Stream(Moved {
            frames: number(&counts, "frames")?,
            seconds: number(&counts, "ticks")? / self.ticks_per_s,
            cpu: after.other.saturating_sub(before.other).as_secs_f64(),
            doorbells: Some(number(&counts, "doorbells")?),
            arrived: (sink.arrived() as f64 / number(&counts, "total")?).min(1.0),
        }))
    }

    fn receive(&self, shape: Shape, pairs: u16, vmm: Vmm) -> io::Result<Sample> {
        let _sink = self.sink()?;
        let mut writer = Writer::new(Tap::new("peer0", BRIDGE)?, shape, PEER_MAC, CARD_MAC);
        let drains = DRAINS + 1;
        let mut vm =
            self.start(vmm, pairs, &format!("dir=rx {} depth={} drains={drains}", words(shape), shape.depth))?;
        vm.line("ready")?;
        let tap = other_port(&["sink0", "peer0"])?;
        tap::set_depth(&tap, 2 * shape.depth);
        let mut moved = Vec::new();
        for _ in 0..drains {
            vm.line("fill")?;
            writer.write(shape.depth)?;
            let before = clock::thread_times(vm.pid())?;
            vm.go()?;
            let counts = vm.line("rx")?;
            let after = clock::thread_times(vm.pid())?;
            let frames = number(&counts, "frames")?;
            moved.push(Moved {
                frames,
                seconds: number(&counts, "ticks")? / self.ticks_per_s,
                cpu: after.other.saturating_sub(before.other).as_secs_f64(),
                doorbells: Some(number(&counts, "doorbells")?),
                arrived: (frames + number(&counts, "early")?) / shape.depth as f64,
            });
        }
        middle(moved)
    }

    fn plain_writes(&self, shape: Shape) -> io::Result<Sample> {
        let sink = self.sink()?;
        let mut writer = Writer::new(Tap::new("peer0", BRIDGE)?, shape, CARD_MAC, SINK_MAC);
        writer.write(BATCH)?;
        let (time, cpu, mut frames) = (Instant::now(), clock::own_time(), 0);
        while time.elapsed().as_secs_f64() < self.plan.seconds {
            writer.write(BATCH)?;
            frames += BATCH;
        }
        Ok(Sample::Stream(Moved {
            frames: frames as f64,
            seconds: time.elapsed().as_secs_f64(),
            cpu: clock::own_time().saturating_sub(cpu).as_secs_f64(),
            doorbells: None,
            arrived: (sink.arrived() as f64 / (frames + BATCH) as f64).min(1.0),
        }))
    }

    fn plain_reads(&self, shape: Shape) -> io::Result<Sample> {
        let mut tap = Tap::new("plain0", BRIDGE)?;
        let card = CARD_MAC.map(|byte| format!("{byte:02x}")).join(":");
        sh(&format!("bridge fdb replace {card} dev plain0 master static"));
        tap.set_depth(2 * shape.depth);
        let mut writer = Writer::new(Tap::new("peer0", BRIDGE)?, shape, PEER_MAC, CARD_MAC);
        let mut moved = Vec::new();
        for _ in 0..=DRAINS {
            writer.write(shape.depth)?;
            let (time, cpu) = (Instant::now(), clock::own_time());
            let frames = drain(&mut tap, CARD_MAC)? as f64;
            moved.push(Moved {
                frames,
                seconds: time.elapsed().as_secs_f64(),
                cpu: clock::own_time().saturating_sub(cpu).as_secs_f64(),
                doorbells: None,
                arrived: frames / shape.depth as f64,
            });
        }
        middle(moved)
    }

    fn pong(&self, guest: Guest, vmm: Vmm) -> io::Result<Sample> {
        let _sink = self.sink()?;
        let _echo = Echo::start(Tap::new("peer0", BRIDGE)?)?;
        let mut vm = self.start(vmm, 1, &format!("dir=pong size=60 halt={}", u8::from(guest == Guest::Halts)))?;
        let ready = vm.line("ready")?;
        let counts = vm.line("pong")?;
        let seconds = |key| Ok::<_, io::Error>(number(&counts, key)? / self.ticks_per_s);
        let apart = ready.ticks.abs_diff(ready.number("tsc")?) as f64 / self.ticks_per_s;
        let one_way = [seconds("out50")?, seconds("back50")?];
        Ok(Sample::Pong(Times {
            there_and_back: seconds("trip50")?,
            p99: seconds("trip99")?,
            one_way: (apart < SAME_CLOCK).then_some(one_way),
        }))
    }

    fn idle(&self, vmm: Vmm) -> io::Result<Sample> {
        let _sink = self.sink()?;
        let mut vm = self.start(vmm, 1, "dir=idle")?;
        vm.line("ready")?;
        thread::sleep(SETTLE);
        let before = clock::sleeps(vm.pid())?;
        thread::sleep(IDLE);
        let wakeups = clock::sleeps(vm.pid())? - before;
        Ok(Sample::Idle { wakeups_per_s: wakeups as f64 / IDLE.as_secs_f64() })
    }
}

/// Counters of a run are far below 2^52.
fn number(line: &Line, key: &str) -> io::Result<f64> {
    line.number(key).map(|number| number as f64)
}

/// The guest's parameters for a shape.
fn words(shape: Shape) -> String {
    let buffer = if shape.mss == 0 { 2048 } else { 4096 };
    format!("size={} mss={} partial={} buffer={buffer}", shape.bytes, shape.mss, u8::from(shape.partial))
}

/// The port of the bridge that is none of `ours`: the VM's.
fn other_port(ours: &[&str]) -> io::Result<String> {
    let ports = fs::read_dir(format!("/sys/class/net/{BRIDGE}/brif"))?;
    let mut names = ports.filter_map(|port| port.ok()?.file_name().into_string().ok());
    names.find(|name| !ours.contains(&name.as_str())).ok_or_else(|| io::Error::other("the VM has no tap on the bridge"))
}

/// Of several drains without the first, the one with the middle rate.
fn middle(drains: Vec<Moved>) -> io::Result<Sample> {
    let mut drains: Vec<Moved> = drains.into_iter().skip(1).collect();
    drains.sort_by(|a, b| (a.frames / a.seconds).total_cmp(&(b.frames / b.seconds)));
    drains.get(drains.len() / 2).map(|moved| Sample::Stream(*moved)).ok_or_else(|| io::Error::other("no drains"))
}
