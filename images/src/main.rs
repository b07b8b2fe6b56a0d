//! The command `images`: the guest and disks of the crate, by flag. Prints paths on success (one line, or JSON), one
//! sentence on failure, and exits with 0, 1 (failed) or 2 (usage).

use clap::{Parser, Subcommand, ValueEnum};
use images::disk::{Contents, DiskSize};
use images::guest::GuestOptions;
use images::kernel::{Freshness, Series};
use images::{Error, disk, error_chain, guest, place, root, tools, vmlinux};
use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

/// Make images to boot with minivmm.
#[derive(Parser)]
#[command(name = "images", version)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Provide a stock kernel and an initramfs for it
    Guest(GuestArguments),
    /// Make an ext4 root disk
    Disk(DiskArguments),
    /// Extract the ELF kernel from a bzImage
    Vmlinux {
        /// The bzImage
        bzimage: PathBuf,
        /// The file to write
        out: PathBuf,
    },
    /// List the Debian packages whose commands are needed
    Packages,
}

#[derive(clap::Args)]
struct GuestArguments {
    /// The kernel's series
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: KernelName,
    /// Directory that gets `guest/` [default: $XDG_DATA_HOME/minivmm]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Copy a program of this machine into the guest, with its libraries
    #[arg(long = "with", value_name = "PROGRAM")]
    programs: Vec<String>,
    /// Load another kernel module
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// Ask apt for a newer kernel than the cached one
    #[arg(long)]
    refresh: bool,
    /// The guest's init [default: minivmm-agent beside this program]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Print the paths as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct DiskArguments {
    /// Its size, as bytes or with K, M, G, T
    #[arg(long, default_value = "1G")]
    size: DiskSize,
    /// The file to write
    #[arg(long)]
    out: PathBuf,
    /// Fill it from this directory instead of the guest's default root
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// The init of the default root [default: minivmm-agent beside this program]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum KernelName {
    #[value(name = "6.12")]
    V6_12,
    #[value(name = "6.1")]
    V6_1,
}

impl From<KernelName> for Series {
    fn from(name: KernelName) -> Self {
        match name {
            KernelName::V6_12 => Self::V6_12,
            KernelName::V6_1 => Self::V6_1,
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().action) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("images: {}", error_chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(action: Action) -> Result<(), Error> {
    match action {
        Action::Guest(arguments) => provide_guest(arguments),
        Action::Disk(arguments) => make_disk(arguments),
        Action::Vmlinux { bzimage, out } => vmlinux::extract(&bzimage, &out),
        Action::Packages => {
            tools::packages().for_each(|package| println!("{package}"));
            Ok(())
        }
    }
}

fn provide_guest(arguments: GuestArguments) -> Result<(), Error> {
    let out = arguments.out.map_or_else(place::data_dir, Ok)?;
    let options = GuestOptions {
        series: arguments.kernel.into(),
        freshness: if arguments.refresh { Freshness::Newest } else { Freshness::Cached },
        cache: place::cache_dir(&out),
        out,
        agent: arguments.agent.unwrap_or_else(own_agent),
        programs: arguments.programs,
        modules: arguments.modules,
    };
    let guest = guest::provide(&options)?;
    if arguments.json {
        println!("{}", serde_json::json!(guest));
    } else {
        println!("kernel {}", guest.kernel.display());
        println!("initramfs {}", guest.initramfs.display());
        println!("release {}", guest.release);
    }
    Ok(())
}

fn make_disk(arguments: DiskArguments) -> Result<(), Error> {
    let contents = match arguments.root {
        Some(dir) => Contents::Dir(dir),
        None => Contents::Tree(root::tree(&arguments.agent.unwrap_or_else(own_agent))?),
    };
    disk::make(arguments.size, &contents, &arguments.out)?;
    println!("disk {}", arguments.out.display());
    Ok(())
}

/// Cargo builds both programs of this package into one directory, and an installation keeps them together.
fn own_agent() -> PathBuf {
    let name = "minivmm-agent";
    env::current_exe().map_or_else(|_| PathBuf::from(name), |own| own.with_file_name(name))
}
