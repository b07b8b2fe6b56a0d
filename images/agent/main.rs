//! The init of minivmm's guests: `/init` of the initramfs and `/sbin/init` of a root disk. Mounts, loads modules,
//! brings up the cards, says that it is ready, runs a script or a shell, and stops the machine. The words that it
//! understands and says are in the documentation of the crate `images`.
//!
//! Promises never to end and never to panic: the kernel would. What fails is said in one line on the console, and the
//! agent goes on, or powers off where there is nothing left to go on with.
//!
//! Does not supervise services, log, or authenticate anybody.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod base64;
mod cards;
mod cmdline;
mod console;
mod job;
mod modules;
mod mounts;
mod network;
mod port;
mod power;
mod ready;
mod root;
mod spawn;
mod supervisor;

use cmdline::{Job, Parameters};
use console::say;
use power::Stop;
use std::fs;
use std::process::ExitCode;
use supervisor::Supervisor;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        say!("This is the init of a guest, for the kernel to start");
        return ExitCode::FAILURE;
    }
    let problems = mounts::kernel_interfaces();
    console::attach();
    console::catch_panics();
    for problem in problems {
        say!("{problem}");
    }
    // A command line that cannot be read is an empty one: a shell on the console.
    let parameters = Parameters::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default());
    for refusal in &parameters.refusals {
        say!("{refusal}");
    }
    modules::load_all();
    if let Some(root) = parameters.root.as_ref().filter(|_| mounts::on_initramfs()) {
        root::switch(root);
        power::stop(Stop::PowerOff);
    }
    for problem in mounts::scratch() {
        say!("{problem}");
    }
    let stop = Supervisor::new().map_or_else(
        |error| {
            say!("Cannot wait for signals: {error}");
            Stop::PowerOff
        },
        |mut supervisor| live(&parameters, &mut supervisor),
    );
    power::stop(stop)
}

/// From the start of the network to the request to stop.
fn live(parameters: &Parameters, supervisor: &mut Supervisor) -> Stop {
    // The name of the guest is a convenience of its prompt and its DHCP requests.
    let _ = nix::unistd::sethostname("minivmm");
    if let Err(stop) = network::bring_up(&parameters.network, supervisor) {
        return stop;
    }
    ready::announce();
    match &parameters.job {
        Job::Script(script) => job::run_script(script, parameters.exit_report, supervisor),
        Job::Shell => job::run_shell(supervisor),
    }
}
