//! The command line of the tests: host VMs, for now.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tests::hostvm::qemu::{Accel, Machine};
use tests::hostvm::wire::{Command, Message};
use tests::hostvm::{self, Config, HostVm, agent, keep};

/// End-to-end tests of minivmm, the host VM they run in, and the demo.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    word: Word,
}

#[derive(Subcommand)]
enum Word {
    /// Boot a host VM: for a shell (no arguments), for one command, or to be kept for many (`--keep`)
    Hostvm(HostVmArgs),
    /// Run a command in a kept host VM, or end it (`--stop`)
    Exec(ExecArgs),
    /// Serve the control channel (runs inside the host VM)
    #[command(hide = true)]
    Agent,
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
        command.dir = std::env::current_dir()
            .ok()
            .and_then(|dir| dir.to_str().map(str::to_owned));
        command
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().word {
        Word::Hostvm(args) => host_vm(&args),
        Word::Exec(args) => exec(&args),
        Word::Agent => agent::serve()
            .map(|()| ExitCode::SUCCESS)
            .map_err(hostvm::Error::Channel),
    };
    result.unwrap_or_else(|error| {
        report(&error);
        ExitCode::from(125)
    })
}

fn host_vm(args: &HostVmArgs) -> Result<ExitCode, hostvm::Error> {
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
    let status = vm.stream(args.command.command(), args.command.timeout(), &mut print)?;
    vm.shutdown()?;
    Ok(ExitCode::from(status.shell_code()))
}

fn keep_host_vm(config: &Config, socket: &Path) -> Result<ExitCode, hostvm::Error> {
    let vm = HostVm::boot(config)?;
    println!(
        "Host VM is up; run commands with: tests exec --socket {} -- COMMAND",
        socket.display()
    );
    keep::serve(vm, socket)?;
    Ok(ExitCode::SUCCESS)
}

fn shell(config: &Config) -> Result<ExitCode, hostvm::Error> {
    if std::io::stdin().is_terminal() {
        println!("Booting the host VM; `exit` powers it off, Ctrl-A X ends it at once");
    }
    let machine = Machine::prepare(config)?;
    let mut qemu = machine.start_shell()?;
    // Only its end matters: the shell's exit code does not come through a serial port.
    let _status = qemu.wait();
    Ok(ExitCode::SUCCESS)
}

fn exec(args: &ExecArgs) -> Result<ExitCode, hostvm::Error> {
    if args.stop {
        keep::stop(&args.socket)?;
        return Ok(ExitCode::SUCCESS);
    }
    let status = keep::exec(
        &args.socket,
        args.command.command(),
        args.command.timeout(),
        &mut print,
    )?;
    Ok(ExitCode::from(status.shell_code()))
}

/// Passes a command's output on to the same stream outside.
fn print(message: Message) {
    // With our own output closed there is nobody left to tell.
    let _closed = match message {
        Message::Stdout(bytes) => std::io::stdout()
            .write_all(&bytes)
            .and_then(|()| std::io::stdout().flush()),
        Message::Stderr(bytes) => std::io::stderr().write_all(&bytes),
        _ => Ok(()),
    };
}

/// Prints an error and its sources on one line.
fn report(error: &dyn std::error::Error) {
    let mut text = format!("error: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    eprintln!("{text}");
}
