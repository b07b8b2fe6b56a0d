//! From exec to the first command that ssh runs: the Debian guest on minivmm and on QEMU (q35), in turns.
//!
//! Both get the same kernel, initrd, command line, memory and a fresh copy of the same disk, and lead a port of the
//! host to the guest's ssh: minivmm by `--net nat`, QEMU by its user-mode network. Firmware, PCI bus and network
//! set-up are part of it, and nearly all of the time is the guest's. A look at the port for ssh's greeting comes
//! before each attempt to log in, so that failing attempts take little of the one processor that an emulated host
//! has.
//!
//! Figures mean something only against each other, in the same run. Run it inside `namespace::isolate`.

use super::{Spread, end};
use crate::debian::{self, Debian, Seed};
use crate::{namespace, workspace};
use clap::Args;
use serde::Serialize;
use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const MEM_MIB: u32 = 1024;
/// A boot may take this long on an emulated and loaded machine.
const PATIENCE: Duration = Duration::from_secs(2400);
/// The kernel's command line, which minivmm begins in the same way.
const DEFAULT_WORDS: &str = "console=ttyS0 panic=-1 reboot=panic_warm,k";
const WORDS: &str = "root=/dev/vda ro quiet systemd.show_status=no mitigations=off";

/// How often, and of what.
#[derive(Debug, Clone, Args)]
pub struct Terms {
    /// Runs of each
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// Have cloud-init set up an account first, by a seed from the host
    #[arg(long)]
    pub cloud_init: bool,
}

/// The command line of the benchmark.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    #[command(flatten)]
    terms: Terms,
    /// Where the result goes [default: bench/ssh.json in cargo's target folder]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The measuring, where Linux boots.
#[derive(Debug, Clone, Args)]
pub struct Here {
    #[command(flatten)]
    terms: Terms,
    /// The program under test
    #[arg(long)]
    minivmm: PathBuf,
    /// The folder with the Debian guest
    #[arg(long)]
    debian: PathBuf,
    /// Where the result goes
    #[arg(long)]
    json: PathBuf,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest's files.
    #[error(transparent)]
    Debian(#[from] debian::Error),
    /// A machine.
    #[error("Cannot log in to the guest on {name}")]
    Machine {
        /// Its name.
        name: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Files or the seed's port.
    #[error("Cannot prepare or write what the benchmark needs")]
    Io(#[from] io::Error),
}

/// The result, as it is written to JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Runs of each.
    pub runs: u32,
    /// True if cloud-init made the account.
    pub cloud_init: bool,
    /// Guest memory in MiB.
    pub mem_mib: u32,
    /// One for each.
    pub contestants: Vec<Row>,
    /// QEMU's median over minivmm's.
    pub times_faster: f64,
}

/// One machine's figures.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// From before the spawn to the end of the first command by ssh, in seconds.
    pub to_ssh_s: Spread,
    /// Every run's.
    pub each_s: Vec<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contestant {
    Minivmm,
    Qemu,
}

/// Builds everything and measures where Linux guests run.
///
/// # Errors
/// If something does not build or the host VM does not come up.
pub fn measure(arguments: &Arguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let target = workspace::target_folder();
    let (minivmm, debian) = workspace::provide_bench_debian()?;
    let fresh = target.join("hostvm/ssh.json");
    let mut words: Vec<OsString> = vec!["bench-ssh".into()];
    for (flag, path) in [("--minivmm", &minivmm), ("--debian", &debian), ("--json", &fresh)] {
        words.extend([flag.into(), path.into()]);
    }
    words.extend(["--runs".into(), arguments.terms.runs.to_string().into()]);
    words.extend(arguments.terms.cloud_init.then(|| "--cloud-init".into()));
    let json = arguments.json.clone().unwrap_or_else(|| target.join("bench/ssh.json"));
    super::run_where_linux_boots(&words, &fresh, &json)
}

impl Here {
    /// Measures in namespaces of its own, and prints the table.
    ///
    /// # Errors
    /// As for [`Here::run`], and if there are no namespaces.
    pub fn run_alone(&self) -> Result<ExitCode, Box<dyn std::error::Error>> {
        namespace::isolate()?;
        print!("{}", self.run()?.table());
        Ok(ExitCode::SUCCESS)
    }

    /// Measures and writes the result.
    ///
    /// # Errors
    /// If a guest does not answer.
    pub fn run(&self) -> Result<Report, Error> {
        let debian = Debian::at(&self.debian);
        let listener = TcpListener::bind(("0.0.0.0", 0))?;
        let seed_port = listener.local_addr()?.port();
        let key = debian.public_key()?;
        let user_data =
            format!("#cloud-config\nlocale: false\nssh_genkeytypes: [ed25519]\nssh_authorized_keys: ['{key}']\n");
        Seed { user_data, meta_data: "instance-id: bench\n".to_owned() }.serve(listener);
        let scratch = tempfile::tempdir_in("/dev/shm")?;
        let mut seconds = [Vec::new(), Vec::new()];
        for round in 1..=self.terms.runs {
            for (contestant, seconds) in [Contestant::Minivmm, Contestant::Qemu].into_iter().zip(&mut seconds) {
                let name = contestant.name();
                let took = self.once(contestant, &debian, seed_port, scratch.path())?;
                eprintln!("round {round}: {name} {took:.1} s");
                seconds.push(took);
            }
        }
        let [ours, theirs] = seconds.clone().map(Spread::of);
        let rows = [Contestant::Minivmm, Contestant::Qemu].into_iter().zip(seconds);
        let report = Report {
            runs: self.terms.runs,
            cloud_init: self.terms.cloud_init,
            mem_mib: MEM_MIB,
            contestants: rows
                .map(|(contestant, each_s)| Row {
                    name: contestant.name(),
                    to_ssh_s: Spread::of(each_s.iter().copied()),
                    each_s,
                })
                .collect(),
            times_faster: theirs.median / ours.median,
        };
        super::write_json(&report, &self.json)?;
        Ok(report)
    }

    fn once(&self, contestant: Contestant, debian: &Debian, seed_port: u16, scratch: &Path) -> Result<f64, Error> {
        let disk = scratch.join("root.ext4");
        debian.copy_disk(&disk)?;
        let user = if self.terms.cloud_init { "debian" } else { "root" };
        let ssh = debian.ssh(user, contestant.port(), scratch)?;
        let mut command = self.command(contestant, debian, seed_port, &disk);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let failed = |source| Error::Machine { name: contestant.name(), source };
        let start = Instant::now();
        let mut child = command.spawn().map_err(failed)?;
        let answer = ssh.wait("true", PATIENCE, |_| true);
        let took = start.elapsed().as_secs_f64();
        end(&mut child);
        answer.map(|_| took).map_err(failed)
    }

    fn command(&self, contestant: Contestant, debian: &Debian, seed_port: u16, disk: &Path) -> Command {
        let off = if self.terms.cloud_init { "" } else { " cloud-init=disabled" };
        let words = format!("{WORDS}{off}");
        let serial = |host: &str| format!("serial=ds=nocloud-net;s=http://{host}:{seed_port}/");
        let (port, disk) = (contestant.port(), disk.display());
        let mut command;
        match contestant {
            Contestant::Minivmm => {
                command = Command::new(&self.minivmm);
                command
                    .args(["--mem", &format!("{MEM_MIB}M"), "--name", "bench", "--cmdline", &words])
                    .args(["--disk", &format!("path={disk}"), "--smbios", &serial("10.99.0.1")])
                    .args(["--net", &format!("nat,subnet=10.99.0.0/24,reach=host+world,forward=tcp:{port}:22")]);
            }
            Contestant::Qemu => {
                command = Command::new("qemu-system-x86_64");
                command
                    .args(["-M", "q35", "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", &MEM_MIB.to_string()])
                    .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
                    .args(["-drive", &format!("file={disk},format=raw,if=none,id=d"), "-smbios"])
                    .args([&format!("type=1,{}", serial("10.0.2.2")), "-device", "virtio-blk-pci,drive=d"])
                    .args(["-netdev", &format!("user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22")])
                    .args(["-device", "virtio-net-pci,netdev=n,romfile="])
                    .args(["-append", &format!("{DEFAULT_WORDS} {words}")]);
            }
        }
        command.arg(if contestant == Contestant::Qemu { "-kernel" } else { "--kernel" }).arg(debian.kernel());
        command.arg(if contestant == Contestant::Qemu { "-initrd" } else { "--initrd" }).arg(debian.initrd());
        command
    }
}

impl Contestant {
    fn name(self) -> &'static str {
        match self {
            Self::Minivmm => "minivmm",
            Self::Qemu => "QEMU q35",
        }
    }

    /// The port of the host that leads to the guest's ssh.
    fn port(self) -> u16 {
        match self {
            Self::Minivmm => 2222,
            Self::Qemu => 2223,
        }
    }
}

impl Report {
    /// The figures as a table for people.
    pub fn table(&self) -> String {
        let seed = if self.cloud_init { "with cloud-init's seed" } else { "without cloud-init" };
        let mut text = format!("From exec to a command by ssh, Debian, {seed}, medians of {} (min..max)\n", self.runs);
        for Row { name, to_ssh_s: Spread { min, median, max }, .. } in &self.contestants {
            text.push_str(&format!("{name:10} {median:>8.1} s ({min:.1}..{max:.1})\n"));
        }
        text.push_str(&format!("minivmm is {:.2} times as fast\n", self.times_faster));
        text
    }
}
