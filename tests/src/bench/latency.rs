//! Round trips to a sleeping Linux guest, one at a time: their length, and what each costs in system calls of the VMM
//! and exits of the guest. minivmm and QEMU, each without and with vhost-net, in turns, on the machines of
//! [`super::guest`].
//!
//! A trip is timed by the host, from its system call to the answer. After the counted rounds, the kernel's tracepoints
//! count what happens during more trips, and write one of them down as a timeline; those are not timed, as tracing
//! takes time. Run it inside `namespace::isolate`.

mod trip;

use super::files::{self, Files};
use super::guest::{self, Contestant, Vm};
use super::trace::{self, Counted};
use super::{Spread, listed};
use crate::namespace;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use trip::Trip;

/// The kinds of trips of which calls and exits are counted, and how many of each.
const COUNTED: [Trip; 2] = [Trip::Ping, Trip::Udp];
const COUNTED_TRIPS: u32 = 100;
/// The goals of the project, as parts of QEMU's figures.
const GOAL_PING: f64 = 0.70;
const GOAL_UDP: f64 = 1.75;

/// How often, and beside what.
#[derive(Debug, Clone, Args)]
pub struct Terms {
    /// Counted rounds
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Trips of each kind in a round
    #[arg(long, value_name = "N", default_value_t = 150, value_parser = clap::value_parser!(u32).range(1..))]
    trips: u32,
    /// Another minivmm, to be measured beside
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
}

/// The command line of the benchmark.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    #[command(flatten)]
    terms: Terms,
    /// Where the result goes [default: bench/latency.json in cargo's target folder]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The measuring, where Linux boots.
#[derive(Debug, Clone, Args)]
pub struct Here {
    #[command(flatten)]
    terms: Terms,
    #[command(flatten)]
    files: Files,
}

/// The result, as it is written to JSON.
#[derive(Debug, Serialize)]
struct Report {
    /// Counted rounds.
    runs: u32,
    /// Trips of each kind in a round.
    trips: u32,
    /// One for each kind of trip and machine.
    rows: Vec<Row>,
    /// One for each machine and counted kind of trip.
    costs: Vec<Costs>,
}

/// One kind of trip on one machine.
#[derive(Debug, Serialize)]
struct Row {
    trip: Trip,
    contestant: &'static str,
    /// The rounds' medians, in us.
    median_us: Spread,
    /// The rounds' 99th percentiles, in us.
    p99_us: Spread,
    /// Trips per second, one after the other.
    per_second: Spread,
}

/// The costs of one kind of trip on one machine.
#[derive(Debug, Serialize)]
struct Costs {
    trip: Trip,
    contestant: &'static str,
    /// System calls by the VMM's threads in a trip, by name.
    calls: Vec<(String, f64)>,
    /// Exits of the guest in a trip, by reason.
    exits: Vec<(String, f64)>,
    /// One trip.
    timeline: Vec<String>,
}

/// Builds everything and measures where Linux guests run.
///
/// # Errors
/// If something does not build, or the host VM does not come up.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let Terms { runs, trips, before } = &arguments.terms;
    let mut words = files::flag("--before", before.as_ref());
    words.extend(["--runs".into(), runs.to_string().into(), "--trips".into(), trips.to_string().into()]);
    files::measure("latency", words, arguments.json.as_ref())
}

/// Measures right here.
///
/// # Errors
/// If a machine does not come up or does not answer.
pub fn run_here(here: &Here) -> Result<ExitCode, Box<dyn Error>> {
    namespace::isolate()?;
    let plan = guest::Plan {
        minivmm: here.files.minivmm.clone(),
        before: here.terms.before.clone(),
        kernel: here.files.kernel.clone(),
        initramfs: here.files.initramfs.clone(),
        runs: here.terms.runs,
        seconds: 0,
        only_nat: false,
        filter: String::new(),
    };
    guest::make_networks();
    let mut vms = Vec::new();
    for contestant in Contestant::all(&plan).into_iter().filter(|contestant| *contestant != Contestant::MinivmmNat) {
        eprintln!("starting {}", contestant.name());
        vms.push((contestant, Vm::start(contestant, &plan, u8::try_from(vms.len())?)?));
    }
    let report = measure(&here.terms, &vms)?;
    print!("{}", report.table());
    super::write_json(&report, &here.files.json)?;
    Ok(ExitCode::SUCCESS)
}

fn measure(terms: &Terms, vms: &[(Contestant, Vm)]) -> io::Result<Report> {
    let Terms { runs, trips, .. } = *terms;
    let mut rounds: BTreeMap<(Trip, &str), Vec<Vec<f64>>> = BTreeMap::new();
    for round in 0..=runs {
        eprintln!("round {round} of {runs}");
        for trip in Trip::ALL {
            for (contestant, vm) in vms {
                let mut times = trip.run(vm.peer(), trips)?;
                times.sort_by(f64::total_cmp);
                // The first round warms up.
                if round > 0 {
                    rounds.entry((trip, contestant.name())).or_default().push(times);
                }
            }
        }
    }
    let rows = rounds.into_iter().map(|((trip, contestant), rounds)| {
        let at = |share: usize| Spread::of(rounds.iter().map(|times| times[(times.len() - 1) * share / 100]));
        let per_second = Spread::of(rounds.iter().map(|times| 1e6 * times.len() as f64 / times.iter().sum::<f64>()));
        Row { trip, contestant, median_us: at(50), p99_us: at(99), per_second }
    });
    let rows = rows.collect();
    let mut costs = Vec::new();
    for trip in COUNTED {
        for (contestant, vm) in vms {
            let Counted { calls, exits } = trace::count(COUNTED_TRIPS, || trip.run(vm.peer(), COUNTED_TRIPS))?;
            let timeline = trace::timeline(|| trip.run(vm.peer(), 1))?;
            costs.push(Costs { trip, contestant: contestant.name(), calls, exits, timeline });
        }
    }
    Ok(Report { runs, trips, rows, costs })
}

impl Report {
    fn table(&self) -> String {
        let mut text = format!(
            "Round trips to a sleeping Linux guest with one CPU, medians of {} rounds of {} trips\n\
             {:6} {:14} {:>10} {:>6} {:>10} {:>10} {:>6}\n",
            self.runs, self.trips, "", "", "median us", "x", "p99 us", "trips/s", "x"
        );
        for row in &self.rows {
            let qemu = self.rows.iter().find(|other| other.trip == row.trip && other.contestant == QEMU);
            let of_qemu = |figure: fn(&Row) -> f64| qemu.map_or(f64::NAN, |qemu| figure(row) / figure(qemu));
            text.push_str(&format!(
                "{:6} {:14} {:>10.0} {:>6.2} {:>10.0} {:>10.0} {:>6.2}\n",
                row.trip.name(),
                row.contestant,
                row.median_us.median,
                of_qemu(|row| row.median_us.median),
                row.p99_us.median,
                row.per_second.median,
                of_qemu(|row| row.per_second.median)
            ));
        }
        text.push_str("\nOf one trip:\n");
        for Costs { trip, contestant, calls, exits, .. } in &self.costs {
            text.push_str(&format!("{:6} {contestant:14} {}\n", trip.name(), listed("system calls", calls)));
            text.push_str(&format!("{:21} {}\n", "", listed("exits", exits)));
        }
        for Costs { trip, contestant, timeline, .. } in &self.costs {
            let name = trip.name();
            text.push_str(&format!("\nOne {name} trip to {contestant}, us and threads:\n{}\n", timeline.join("\n")));
        }
        text.push_str(&format!("(goals: ping <= {GOAL_PING} and UDP trips/s >= {GOAL_UDP} of QEMU's)\n"));
        text
    }
}

const QEMU: &str = Contestant::Qemu.name();
