//! The demo: a guest on a bridge, in front of the user's eyes.
//!
//! It runs where Linux guests run: on hardware KVM in namespaces of this machine, elsewhere in the host VM. With a
//! terminal it ends in the guest's shell, whose keys go the same way as everything else: into minivmm's standard input.

mod show;
mod terminal;

use crate::hostvm::wire::{self, Message};
use crate::hostvm::{self, Config, HostVm};
use crate::place::Place;
use crate::workspace::{self, Parts, target_folder};
use std::io::{IsTerminal, Read, Write};
use std::process::{Command, ExitCode};
use std::time::Duration;

pub use show::show;

/// Longer than anybody looks at a demo.
const TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// The amount that is moved each way, by the kind of place.
const HARDWARE_MIB: u32 = 1024;
const EMULATED_MIB: u32 = 32;
/// The line after which the user's keys belong to the guest.
const SHELL: &str = "This is the guest's shell; `poweroff` ends it.";

/// Why there was no demo.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The project does not build, or its guest cannot be made.
    #[error(transparent)]
    Workspace(#[from] workspace::Error),
    /// The host VM failed.
    #[error(transparent)]
    HostVm(#[from] hostvm::Error),
    /// A program or this one's own path is missing.
    #[error("The demo could not be started")]
    Start(#[source] std::io::Error),
}

/// Builds everything and gives the demo.
///
/// # Errors
/// If something does not build or the host VM fails; what fails inside the demo is in the exit code.
pub fn run() -> Result<ExitCode, Error> {
    println!("Building minivmm and its guest");
    let parts = Parts::provide_demo()?;
    let place = Place::ask();
    let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let amount_mib = if place.boots_linux() { HARDWARE_MIB } else { EMULATED_MIB };
    let program = std::env::current_exe().map_err(Error::Start)?;
    let mut words = vec![program.to_string_lossy().into_owned(), "show".to_owned()];
    words.extend(parts.flags());
    words.extend(["--amount-mib".to_owned(), amount_mib.to_string()]);
    if interactive {
        words.push("--interactive".to_owned());
    }
    if place.boots_linux() {
        println!("This machine has {place}: the demo runs right here, in namespaces of its own");
        here(&words)
    } else {
        println!(
            "This machine has {place}: the demo runs in the host VM, a Linux host emulated by QEMU, so it is slow"
        );
        in_host_vm(words, interactive)
    }
}

fn here(words: &[String]) -> Result<ExitCode, Error> {
    let (program, arguments) = words.split_first().ok_or_else(|| Error::Start(std::io::ErrorKind::NotFound.into()))?;
    let status = Command::new(program).args(arguments).status().map_err(Error::Start)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn in_host_vm(words: Vec<String>, interactive: bool) -> Result<ExitCode, Error> {
    let vm = HostVm::boot(&Config::new(&target_folder().join("hostvm")))?;
    let mut raw = None;
    let mut seen = Vec::new();
    let input = interactive.then(|| Box::new(std::io::stdin()) as Box<dyn Read + Send>);
    let status = vm.stream_with_input(wire::Command::new(words), TIMEOUT, input, &mut |message| {
        if raw.is_none() && interactive {
            if let Message::Stdout(bytes) = &message {
                seen.extend_from_slice(bytes);
            }
            if String::from_utf8_lossy(&seen).contains(SHELL) {
                raw = terminal::Raw::set();
            }
        }
        print(message);
    })?;
    drop(raw);
    vm.shutdown()?;
    Ok(ExitCode::from(status.shell_code()))
}

/// Passes a command's output on to the same stream here.
pub fn print(message: Message) {
    // With our own output closed there is no other place to report it.
    let _closed = match message {
        Message::Stdout(bytes) => std::io::stdout().write_all(&bytes).and_then(|()| std::io::stdout().flush()),
        Message::Stderr(bytes) => std::io::stderr().write_all(&bytes),
        _ => Ok(()),
    };
}
