//! The command line of the tests.

use clap::{Args, Parser, Subcommand};
use images::error_chain;
use std::error::Error;
use std::io::IsTerminal;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tests::all::{self, Selection};
use tests::bench::files::{self, Files};
use tests::bench::readme::Section;
use tests::hostvm::qemu::{Accel, Machine};
use tests::hostvm::wire::Command;
use tests::hostvm::{Config, HostVm, agent, keep};
use tests::place::Place;
use tests::stage::{SKIPPED, Stage};
use tests::traffic::datagrams::{self, Cut, Plan};
use tests::traffic::flows;
use tests::workspace::Parts;
use tests::{bench, demo, kernels, namespace, probe, scenarios, vm, workspace};

/// The exit code of a scenario that fails, the one that Rust's own panics have.
const PANICKED: u8 = 101;

/// End-to-end tests of minivmm, the host VM they run in, and the demo.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Run all tests
    All(AllArgs),
    /// Give the demo
    Demo,
    /// Boot Debian's kernels, 6.1 and 6.12, cloud, generic and rt, each with its own initrd, and print a table
    Kernels(kernels::Arguments),
    /// Run one case of it right here, in namespaces of its own
    #[command(hide = true)]
    KernelCase(ScenarioArgs),
    /// Touch all memory that is available (runs in guests)
    #[command(hide = true)]
    TouchMemory,
    /// Run one scenario right here, in namespaces of its own
    #[command(hide = true)]
    Scenario(ScenarioArgs),
    /// Give the demo right here, in namespaces of its own
    #[command(hide = true)]
    Show(ShowArgs),
    /// Boot a host VM: for a shell (no arguments), for one command, or to be kept for many (`--keep`)
    Hostvm(HostVmArgs),
    /// Run a command in a kept host VM, or end it (`--stop`)
    Exec(ExecArgs),
    /// Measure minivmm against a peer, in turns
    #[command(subcommand)]
    Bench(Bench),
    /// Measure Linux guests right here, in namespaces of its own
    #[command(hide = true)]
    BenchGuest(BenchGuestHereArgs),
    /// Measure boots right here, in namespaces of its own
    #[command(hide = true)]
    BenchBoot(bench::boot::Here),
    /// Measure round trips right here, in namespaces of its own
    #[command(hide = true)]
    BenchLatency(bench::latency::Here),
    /// Measure Debian guests right here, in namespaces of its own
    #[command(hide = true)]
    BenchSsh(bench::ssh::Here),
    /// Say what this machine's KVM is good for
    Place,
    /// Send or receive what checks itself (runs in guests)
    #[command(subcommand, hide = true)]
    Traffic(Traffic),
    /// Serve the control channel (runs inside the host VM)
    #[command(hide = true)]
    Agent,
}

#[derive(Subcommand)]
enum Bench {
    /// From exec to the guest's first byte, against QEMU microvm
    Start(BenchStartArgs),
    /// From exec to a Linux guest's first program, its exits and the silences of its console, against QEMU
    Boot(bench::boot::Arguments),
    /// The card with a polling guest, against QEMU and a loop without a VM
    Card(BenchCardArgs),
    /// A Linux guest's TCP, UDP and requests, against QEMU without and with vhost-net
    Guest(BenchGuestArgs),
    /// Round trips to a sleeping Linux guest: their length, system calls, exits and a timeline, against QEMU
    Latency(bench::latency::Arguments),
    /// Instructions that the card's own code takes for a frame, against the recorded figures; more than 10 % above them
    /// is a failure
    Instructions(BenchInstructionsArgs),
    /// Many VMs at once: time until all run, and memory of each process
    Many(BenchManyArgs),
    /// NAT against a bridge, without a VM: what a round trip costs more, and 100,000 connections at a time
    Nat(BenchNatArgs),
    /// From exec to the first command by ssh, a Debian root disk, against QEMU; many minutes
    Ssh(bench::ssh::Arguments),
    /// Measure the figures of README.md and docs/benchmarks.md anew, and write them into these pages
    Readme(BenchReadmeArgs),
}

/// The ends of `tests::traffic`. Each prints its report in a line of JSON.
#[derive(Subcommand)]
enum Traffic {
    /// Open flows and keep them busy until standard input ends
    Flows { address: SocketAddr, count: usize },
    /// Send numbered datagrams
    Send {
        address: SocketAddr,
        #[command(flatten)]
        plan: DatagramArgs,
        /// Have them cut by the kernel or the card
        #[arg(long)]
        uncut: bool,
    },
    /// Send every datagram back
    Echo { address: SocketAddr },
    /// Receive them
    Receive {
        address: SocketAddr,
        #[command(flatten)]
        plan: DatagramArgs,
    },
}

#[derive(Args)]
struct DatagramArgs {
    count: usize,
    /// Bytes of the first, the second, ..; then again
    #[arg(value_delimiter = ',', required = true)]
    sizes: Vec<u16>,
}

impl From<DatagramArgs> for Plan {
    fn from(DatagramArgs { count, sizes }: DatagramArgs) -> Self {
        Self { count, sizes }
    }
}

#[derive(Args)]
struct BenchStartArgs {
    /// Counted runs of each
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Another minivmm, to be measured beside
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
    /// Where the result goes [default: bench/start.json in cargo's target folder]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct BenchCardArgs {
    /// Runs of each
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Counted seconds of a run
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    seconds: f64,
    /// Another minivmm, to be measured beside
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
    /// Only cases with this in their names: tx-64-1, rx-1500-2, tx-64K-gso-4, .., pong, pong-halting, idle
    #[arg(default_value = "")]
    filter: String,
    /// Where the result goes [default: bench/card.json in cargo's target folder]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct BenchGuestArgs {
    #[command(flatten)]
    terms: BenchGuestTerms,
    /// Where the result goes [default: bench/guest.json in cargo's target folder]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct BenchManyArgs {
    /// Numbers of VMs
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    vms: Vec<usize>,
    /// Another minivmm than this repository's
    #[arg(long, value_name = "FILE")]
    minivmm: Option<PathBuf>,
    /// Where the result goes [default: bench/many.json in cargo's target folder]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct BenchNatArgs {
    /// Where the result goes [default: bench/nat.json in cargo's target folder]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct BenchReadmeArgs {
    /// Only these
    #[arg(long, value_delimiter = ',', default_value = "start,card,nat")]
    only: Vec<Section>,
    /// Counted runs of start and card [default: their own]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,
}

#[derive(Args)]
struct BenchInstructionsArgs {
    /// Record the figures instead of comparing them
    #[arg(long)]
    record: bool,
}

#[derive(Args)]
struct BenchGuestTerms {
    /// Counted rounds
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Seconds of each test
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Another minivmm, to be measured beside
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
    /// Only NAT beside a bridge, without QEMU and vhost-net
    #[arg(long)]
    only_nat: bool,
    /// Only tests with this in their names: tcp to guest, tcp to host x4, tcp to outside, udp to guest, .., requests
    #[arg(default_value = "")]
    filter: String,
}

#[derive(Args)]
struct BenchGuestHereArgs {
    #[command(flatten)]
    terms: BenchGuestTerms,
    #[command(flatten)]
    files: Files,
}

#[derive(Args)]
struct AllArgs {
    /// Only tests with this in their name
    filter: Option<String>,
    /// Leave the tests of `cargo test` out
    #[arg(long)]
    only_scenarios: bool,
}

#[derive(Args)]
struct StageArgs {
    /// The program under test
    #[arg(long)]
    minivmm: PathBuf,
    /// The folder with the guests
    #[arg(long)]
    guests: PathBuf,
}

#[derive(Args)]
struct ScenarioArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    stage: StageArgs,
}

#[derive(Args)]
struct ShowArgs {
    /// The amount that is moved each way, in MiB
    #[arg(long)]
    amount_mib: u32,
    /// Leave the guest's shell to the user
    #[arg(long)]
    interactive: bool,
    #[command(flatten)]
    stage: StageArgs,
}

#[derive(Args)]
struct HostVmArgs {
    /// Memory in MiB
    #[arg(long, default_value_t = 4096)]
    mem: u32,
    /// The folder that is writable from inside and stays
    #[arg(long, value_name = "FOLDER", default_value = "target/hostvm")]
    results: PathBuf,
    /// Run it on hardware KVM instead of emulating it
    #[arg(long)]
    kvm: bool,
    /// Keep it, to be used through `tests exec`
    #[arg(long, requires = "socket")]
    keep: bool,
    /// Where a kept host VM listens
    #[arg(long)]
    socket: Option<PathBuf>,
    #[command(flatten)]
    command: CommandArgs,
}

#[derive(Args)]
struct ExecArgs {
    /// Where the kept host VM listens
    #[arg(long)]
    socket: PathBuf,
    /// Power the host VM off
    #[arg(long)]
    stop: bool,
    #[command(flatten)]
    command: CommandArgs,
}

#[derive(Args)]
struct CommandArgs {
    /// Seconds after which the command is killed
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
    /// An environment variable for the command, NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// The command
    #[arg(last = true, value_name = "COMMAND")]
    argv: Vec<String>,
}

impl CommandArgs {
    fn command(&self) -> Command {
        let mut command = Command::new(self.argv.clone());
        command.env = self
            .env
            .iter()
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        // The outer paths exist inside, so a relative path means the same there.
        command.dir = std::env::current_dir().ok().and_then(|dir| dir.to_str().map(str::to_owned));
        command
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

fn main() -> ExitCode {
    let result: Result<ExitCode, Box<dyn Error>> = match Cli::parse().action {
        Action::All(args) => {
            all::run(&Selection { filter: args.filter, only_scenarios: args.only_scenarios }).map_err(Into::into)
        }
        Action::Scenario(args) => scenario(&args).map_err(Into::into),
        Action::Kernels(args) => kernels::run(&args),
        Action::KernelCase(args) => {
            on_stage(&args.stage, |stage| kernels::run_here(&args.name, stage)).map_err(Into::into)
        }
        Action::TouchMemory => kernels::touch::all().map_err(Into::into).map(|report| {
            println!("{report}");
            ExitCode::SUCCESS
        }),
        Action::Demo => demo::run().map_err(Into::into),
        Action::Show(args) => {
            on_stage(&args.stage, |stage| demo::show(stage, args.amount_mib, args.interactive)).map_err(Into::into)
        }
        Action::Hostvm(args) => host_vm(&args).map_err(Into::into),
        Action::Exec(args) => exec(&args).map_err(Into::into),
        Action::Agent => agent::serve().map(|()| ExitCode::SUCCESS).map_err(Into::into),
        Action::Traffic(traffic) => self::traffic(traffic),
        Action::Bench(Bench::Start(args)) => bench_start(&args),
        Action::Bench(Bench::Card(args)) => bench_card(&args),
        Action::Bench(Bench::Guest(args)) => bench_guest(&args),
        Action::Bench(Bench::Instructions(args)) => bench_instructions(&args),
        Action::Bench(Bench::Many(args)) => bench_many(&args),
        Action::Bench(Bench::Nat(args)) => bench_nat(&args),
        Action::Bench(Bench::Readme(args)) => {
            bench::readme::run(&args.only, args.runs).map_err(Into::into).map(|text| {
                print!("{text}");
                ExitCode::SUCCESS
            })
        }
        Action::Bench(Bench::Ssh(args)) => bench::ssh::measure(&args),
        Action::BenchGuest(args) => bench_guest_here(&args),
        Action::Bench(Bench::Boot(args)) => bench::boot::run(&args),
        Action::BenchBoot(args) => args.run(),
        Action::Bench(Bench::Latency(args)) => bench::latency::run(&args),
        Action::BenchLatency(args) => bench::latency::run_here(&args),
        Action::BenchSsh(args) => args.run_alone(),
        Action::Place => {
            println!("{}", Place::ask());
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {}", error_chain(error.as_ref()));
        ExitCode::from(125)
    })
}

fn scenario(args: &ScenarioArgs) -> std::io::Result<ExitCode> {
    let Some(scenario) = scenarios::all().chain(scenarios::on_request()).find(|scenario| scenario.name == args.name)
    else {
        eprintln!("error: There is no scenario {:?}", args.name);
        return Ok(ExitCode::FAILURE);
    };
    on_stage(&args.stage, scenario.run)
}

/// Runs what panics when it fails; then the machines' last words follow the panic's message.
fn on_stage(args: &StageArgs, play: impl FnOnce(&Stage)) -> std::io::Result<ExitCode> {
    if let Err(error) = namespace::isolate() {
        println!("{}", error_chain(&error));
        return Ok(ExitCode::from(SKIPPED));
    }
    let scratch = tempfile::tempdir_in("/dev/shm")?;
    let parts = Parts { minivmm: args.minivmm.clone(), guests: args.guests.clone() };
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        default_hook(panic);
        eprintln!("{}", vm::last_words());
        // An abort of the first process of a namespace, which ignores SIGABRT, would end as a crash.
        std::process::exit(PANICKED.into());
    }));
    play(&Stage::new(parts, scratch.path()));
    Ok(ExitCode::SUCCESS)
}

fn traffic(word: Traffic) -> Result<ExitCode, Box<dyn Error>> {
    let report = match word {
        Traffic::Flows { address, count } => serde_json::to_string(&flows::connect(address, count, std::io::stdin())?)?,
        Traffic::Send { address, plan, uncut } => {
            let cut = if uncut { Cut::Kernel } else { Cut::Sender };
            datagrams::send(address, &plan.into(), cut)?.to_string()
        }
        Traffic::Echo { address } => match datagrams::echo(address)? {},
        Traffic::Receive { address, plan } => {
            serde_json::to_string(&datagrams::receive(&UdpSocket::bind(address)?, &plan.into())?)?
        }
    };
    println!("{report}");
    Ok(ExitCode::SUCCESS)
}

fn bench_start(args: &BenchStartArgs) -> Result<ExitCode, Box<dyn Error>> {
    let target = workspace::target_folder();
    // Before the namespaces, where cargo may still need the network; inside, everything is up to date.
    let plan = bench::start::Plan {
        minivmm: probe::build_minivmm(&target)?,
        before: args.before.clone(),
        probe: probe::build(&target)?,
        runs: args.runs,
    };
    namespace::isolate()?;
    let report = bench::start::run(&plan)?;
    print!("{}", report.table());
    let json = args.json.clone().unwrap_or_else(|| target.join("bench/start.json"));
    bench::write_json(&report, &json)?;
    println!("{}", json.display());
    Ok(ExitCode::SUCCESS)
}

fn bench_card(args: &BenchCardArgs) -> Result<ExitCode, Box<dyn Error>> {
    let target = workspace::target_folder();
    // Before the namespaces, where cargo may still need the network; inside, everything is up to date.
    let plan = bench::card::Plan {
        minivmm: probe::build_minivmm(&target)?,
        before: args.before.clone(),
        probe: probe::build(&target)?,
        runs: args.runs,
        seconds: args.seconds,
        filter: args.filter.clone(),
    };
    namespace::isolate()?;
    let report = bench::card::run(&plan)?;
    print!("{}", report.table());
    let json = args.json.clone().unwrap_or_else(|| target.join("bench/card.json"));
    bench::write_json(&report, &json)?;
    println!("{}", json.display());
    Ok(ExitCode::SUCCESS)
}

fn bench_many(args: &BenchManyArgs) -> Result<ExitCode, Box<dyn Error>> {
    let target = workspace::target_folder();
    // Before the namespaces, where cargo may still need the network; inside, everything is up to date.
    let minivmm = args.minivmm.clone().map_or_else(|| probe::build_minivmm(&target), Ok)?;
    let plan = bench::many::Plan { minivmm, probe: probe::build(&target)?, vms: args.vms.clone() };
    namespace::isolate()?;
    let report = bench::many::run(&plan)?;
    print!("{}", report.table());
    let json = args.json.clone().unwrap_or_else(|| target.join("bench/many.json"));
    bench::write_json(&report, &json)?;
    println!("{}", json.display());
    Ok(ExitCode::SUCCESS)
}

fn bench_instructions(args: &BenchInstructionsArgs) -> Result<ExitCode, Box<dyn Error>> {
    let counts = bench::instructions::count(&workspace::target_folder())?;
    if args.record {
        bench::instructions::record(&counts)?;
    }
    let (table, good) = bench::instructions::compare(&counts, &bench::instructions::recorded()?);
    print!("{table}");
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn bench_nat(args: &BenchNatArgs) -> Result<ExitCode, Box<dyn Error>> {
    let report = bench::nat::run(&workspace::build_host_cases()?)?;
    println!("{report:#}");
    let json = args.json.clone().unwrap_or_else(|| workspace::target_folder().join("bench/nat.json"));
    bench::write_json(&report, &json)?;
    println!("{}", json.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds everything and measures where Linux guests run.
fn bench_guest(args: &BenchGuestArgs) -> Result<ExitCode, Box<dyn Error>> {
    let BenchGuestTerms { runs, seconds, before, only_nat, filter } = &args.terms;
    let mut words = files::flag("--before", before.as_ref());
    words.extend(["--runs".into(), runs.to_string().into(), "--seconds".into(), seconds.to_string().into()]);
    words.extend(only_nat.then(|| "--only-nat".into()));
    words.push(filter.into());
    files::measure("guest", words, args.json.as_ref())
}

fn bench_guest_here(args: &BenchGuestHereArgs) -> Result<ExitCode, Box<dyn Error>> {
    namespace::isolate()?;
    let BenchGuestTerms { runs, seconds, before, only_nat, filter } = &args.terms;
    let plan = bench::guest::Plan {
        minivmm: args.files.minivmm.clone(),
        before: before.clone(),
        kernel: args.files.kernel.clone(),
        initramfs: args.files.initramfs.clone(),
        runs: *runs,
        seconds: *seconds,
        only_nat: *only_nat,
        filter: filter.clone(),
    };
    let report = bench::guest::run(&plan)?;
    print!("{}", report.table());
    bench::write_json(&report, &args.files.json)?;
    Ok(ExitCode::SUCCESS)
}

fn host_vm(args: &HostVmArgs) -> Result<ExitCode, tests::hostvm::Error> {
    let config = Config {
        mem_mib: args.mem,
        results: args.results.clone(),
        accel: if args.kvm { Accel::Kvm } else { Accel::Tcg },
    };
    if let (true, Some(socket)) = (args.keep, &args.socket) {
        return keep_host_vm(&config, socket);
    }
    if args.command.argv.is_empty() {
        return shell(&config);
    }
    let vm = HostVm::boot(&config)?;
    let status = vm.stream(args.command.command(), args.command.timeout(), &mut demo::print)?;
    vm.shutdown()?;
    Ok(ExitCode::from(status.shell_code()))
}

fn keep_host_vm(config: &Config, socket: &Path) -> Result<ExitCode, tests::hostvm::Error> {
    let vm = HostVm::boot(config)?;
    println!("Host VM is up; run commands with: tests exec --socket {} -- COMMAND", socket.display());
    keep::serve(vm, socket)?;
    Ok(ExitCode::SUCCESS)
}

fn shell(config: &Config) -> Result<ExitCode, tests::hostvm::Error> {
    if std::io::stdin().is_terminal() {
        println!("Booting the host VM; `exit` powers it off, Ctrl-A X ends it at once");
    }
    let machine = Machine::prepare(config)?;
    let mut qemu = machine.start_shell()?;
    // Only its end matters: the shell's exit code does not come through a serial port.
    let _status = qemu.wait();
    Ok(ExitCode::SUCCESS)
}

fn exec(args: &ExecArgs) -> Result<ExitCode, tests::hostvm::Error> {
    if args.stop {
        keep::stop(&args.socket)?;
        return Ok(ExitCode::SUCCESS);
    }
    let status = keep::exec(&args.socket, args.command.command(), args.command.timeout(), &mut demo::print)?;
    Ok(ExitCode::from(status.shell_code()))
}
