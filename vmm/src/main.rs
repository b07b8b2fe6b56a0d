//! minivmm: a minimal VMM with built-in bridged networking.
//!
//! The binary: command line, KVM, the machine built in named steps, the control loop, and the way out. What the guest
//! can see is the `devices` crate's, what it boots from is `boot`'s, how its cards reach the network is `net`'s.
//!
//! # Threats
//! | from | what it can do | what holds it |
//! |---|---|---|
//! | guest | any exit with any address, width and value, at any rate | exits are data; the bus answers a miss with all ones; log lines are limited |
//! | guest | end the machine in any way | one place keeps the first reason; the exit code is the only thing it chooses |
//! | guest that took over the process | use its privileges | capabilities, files, network, users and other processes are given up for good before the first vCPU runs, and each thread has only the system calls that it needs ([`confine`]); the keeper and the services are other processes |
//! | guest | never power off, or reset instead | `--stop-timeout`, a second signal, the quit key; no restart once it was asked |
//! | guest | reset at once, for ever | pauses between short runs, in which signals work |
//! | guest | write to the console for ever | `--console file=` grows with it: it needs a disk quota, or a reader that cuts it (`stdio` into a pipe) |
//! | whoever reads the console | not read it | the guest waits, the control loop does not: signals work |
//! | whoever reads stderr | not read it | lines are dropped and counted |
//! | guest | claim an address that is not its own | the ready line repeats what the guest says of itself |
//! | whoever reads the ready line | not read it | given up after a second |
//! | other users | ask the VM for its counters, or take its cables out | who connects is told by the kernel; only the VM's user and root are heard |
//! | other users | take a VM's name, or answer in its place | names are in a folder that only the VM's user writes to; who listens is told by the kernel |
//! | a VM that its guest took over | write to the terminal of whoever asks it | what could move a terminal is printed as an escape |
//! | whoever asks the VM | ask without end, say nothing, not read the answer | one caller at a time, with a deadline; nothing waits for them |
//! | the host's disks | not answer | a stop waits for 5 s, then the process ends without them |
//! | the user | a file or bridge that is not what it should be | refused with a sentence, a hint and a code before anything runs |
//!
//! # Not supported
//! Other processors than x86-64, hot-plug, snapshots, migration, nested virtualization, more than one package in the
//! guest's topology.
//!
//! More than 255 vCPUs need a guest that knows `KVM_FEATURE_MSI_EXT_DEST_ID`, for MSI-X. KVM's I/O APIC uses 8 bits of
//! a destination whatever the guest knows, so the lines of the serial port and the power button reach vCPUs 0 to 254
//! only, and a guest that moves them to a higher one loses them.
//!
//! A PID namespace for the services, which have a user of their own where root starts the VM.

#[cfg(feature = "attacks")]
mod attacks;
mod capture;
mod cli;
mod client;
mod confine;
mod console;
mod disk;
mod error;
mod event;
mod exit;
mod fault;
mod folder;
mod guest;
mod inspect;
mod kvm;
mod limits;
mod logger;
mod machine;
mod name;
mod own_code;
mod panics;
mod policy;
mod process;
mod ready_channel;
mod request;
mod services;
mod signals;
mod supervisor;

use cli::{Parsed, Settings};
use confine::seccomp::{Filters, Mode, Vhost};
use confine::{Confinement, Users, fences};
use devices::virtio::net::{Program, steering_program};
use error::Error;
use exit::Outcome;
use jail::{Identity, Role};
use limits::cgroup::Cgroups;
use machine::{ControlSocket, Files, Machine, ReadyOptions, Resources, Restarts};
use name::VmName;
use net::keeper::Callbacks;
use net::spec::Switch;
use net::{Keeper, error_chain};
use nix::unistd::geteuid;
use ready_channel::ReadyFd;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    // A static program is here a fraction of a millisecond after exec.
    let start = Instant::now();
    #[cfg(feature = "attacks")]
    attacks::list_if_asked();
    signals::ignore_file_size();
    fault::install_handlers();
    panics::install_hook();
    let result = match cli::parse() {
        Parsed::Run(cli) => run(&cli, start).map(ExitCode::from),
        Parsed::Request(name, request) => client::ask(&name, &request).map(|text| say(&text)),
        Parsed::Inspect(question) => inspect::answer(&question).map(|(text, code)| {
            say(&text);
            ExitCode::from(code)
        }),
        Parsed::Answer(text) => Ok(say(&text)),
        Parsed::Refused { sentence, hint } => Err(Error::Usage { sentence, hint }),
    };
    match result {
        Ok(code) => code,
        Err(err) => {
            logger::tell(&format!("minivmm: {}", error_chain(&err)));
            if let Some(hint) = err.hint() {
                logger::tell(&format!("hint: {}", cli::capitalised(&hint)));
            }
            ExitCode::from(err.code())
        }
    }
}

/// Prints an answer.
fn say(text: &str) -> ExitCode {
    // A reader that has left, such as `head`, has read what it wanted.
    let _ = std::io::stdout().write_all(logger::printable(text).as_bytes());
    ExitCode::SUCCESS
}

/// From the command line to the last exit of the guest.
fn run(cli: &Settings, start: Instant) -> Result<Outcome, Error> {
    // Before anything is opened.
    let fd = cli.ready_fd.map(ReadyFd::inherit).transpose()?;
    logger::init(cli.log.into());
    log::debug!("Command line is parsed");
    let confinement = confinement(cli)?;
    fences::share_one_heap();
    if let Err(err) = fences::make_no_core() {
        log::warn!("A fault would leave a core dump: {err}");
    }
    if let Err(err) = limits::raise_descriptors() {
        log::warn!("The limit of open descriptors stays as it is: {err}");
    }
    let cgroups = Cgroups::of_this_process();
    machine::check_available(cli.mem, &cgroups)?;
    limits::remember(&cgroups);
    let name = cli.name.clone().unwrap_or_else(|| VmName::of_process(std::process::id()));
    let files = Files::open(cli, guest::open(cli, &name)?)?;
    let control_socket = ControlSocket::new(name.lock()?);
    let request = net::Request {
        vm_name: name.as_str().to_owned(),
        vcpus: cli.cpus,
        cards: cli.net.clone(),
        policy: cli.policy.as_ref().map(|file| file.0.clone()),
        steering: Some(steering()),
    };
    let mode = if confinement == Confinement::None { Mode::Off } else { cli.seccomp };
    let filters = Arc::new(Filters::new(mode, vhost(cli))?);
    let confine = || confine::keeper(confinement, &filters);
    let callbacks = Callbacks { release_memory: own_code::release, confine: &confine };
    let keeper = Keeper::start_holding(&request, control_socket.lock(), &callbacks)?;
    log::debug!("{name}: files are open, the network keeper is at work");
    let (services, child) = services::fork(cli.net.len(), confinement, &filters)?;
    let signals = supervisor::split(&keeper, child, (confinement, &filters))?;
    let timeout = cli.wait_net.map(|seconds| Duration::from_secs(seconds.into()));
    let options = ReadyOptions { name, start, fd, timeout };
    let mut resources =
        Resources::open(cli, (confinement, filters), files, (keeper, control_socket, services, signals), options)?;
    let outcome = run_machines(&mut resources);
    let closed = resources.close();
    let outcome = outcome?;
    closed?;
    Ok(outcome)
}

/// How far the VM's processes are to be confined.
///
/// # Errors
/// A VM that promises what it could not keep.
fn confinement(cli: &Settings) -> Result<Confinement, Error> {
    let flag = match (cli.no_confine, cli.seccomp) {
        (true, _) => "--no-confine",
        (_, Mode::Off) => "--seccomp off",
        _ => "",
    };
    if !flag.is_empty() && cli.policy.is_some() {
        return Err(Error::Usage {
            sentence: format!("{flag} cannot be had together with --policy"),
            hint: "Leave it out: a guest that took minivmm over could evade its policy".to_owned(),
        });
    }
    let is_root = geteuid().is_root();
    if cli.user.is_some() && (cli.no_confine || !is_root) {
        return Err(Error::Usage {
            sentence: "--user cannot be had: only root's VMM becomes another user, and none with --no-confine"
                .to_owned(),
            hint: "Leave --user out, or start minivmm as root".to_owned(),
        });
    }
    if cli.no_confine {
        log::warn!("A guest that takes minivmm over has all that its user has (--no-confine)");
        return Ok(Confinement::None);
    }
    match cli.seccomp {
        Mode::Kill => {}
        Mode::Log => log::warn!("System calls that minivmm does not need are logged and not refused (--seccomp log)"),
        Mode::Off => log::warn!("System calls that minivmm does not need are not refused (--seccomp off)"),
    }
    let own = |role| Identity::of_vm(std::process::id(), role);
    let vmm = cli.user.unwrap_or_else(|| own(Role::Vmm));
    let are_own = cli.user.is_none() && is_root;
    Ok(Confinement::Full(Users { vmm, services: own(Role::Services), are_own }))
}

/// The presence of a card on vhost-net in `cli`.
fn vhost(cli: &Settings) -> Vhost {
    if cli.net.iter().any(|spec| spec.card().vhost == Switch::On) { Vhost::Some } else { Vhost::None }
}

/// The card's program for the kernel, as the keeper loads it.
fn steering() -> net::SteeringProgram {
    let Program { instructions, map_fd_at, map_bytes } = steering_program();
    net::SteeringProgram { instructions, map_fd_at, map_bytes }
}

/// Runs the machine until it ends for good.
fn run_machines(resources: &mut Resources) -> Result<Outcome, Error> {
    let mut restarts = Restarts::new();
    loop {
        let start = Instant::now();
        let outcome = Machine::assemble(resources)?.run(resources)?;
        let Outcome::Reset(way) = outcome else { return Ok(outcome) };
        // A guest that was asked to power off and resets instead could escape its stop for ever.
        if !resources.restarts_after_reset() {
            logger::tell(&format!("minivmm: The guest reset itself (by {way})"));
            return Ok(outcome);
        }
        if let Some(outcome) = restarts.wait(resources, start.elapsed())? {
            return Ok(outcome);
        }
        log::info!("The guest reboots (by {way})");
    }
}
