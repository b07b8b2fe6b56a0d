//! From exec to the guest's first program: a stock Linux kernel with its messages on the serial port, on minivmm and on
//! QEMU (q35), in turns, with the same kernel, initramfs, memory and kind of card.
//!
//! After the counted runs, the kernel's tracepoints count the guest's exits in one more boot of each, which is not
//! timed, and the longest silences of its console are listed: there the time goes.
//!
//! Figures mean something only against each other, in the same run. Run it inside `namespace::isolate`.

use super::files::{self, Files};
use super::trace::{self, Counted};
use super::{Spread, end, listed};
use crate::lan::sh;
use crate::namespace;
use clap::Args;
use serde::Serialize;
use std::error::Error;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

const MEM_MIB: u32 = 512;
const BRIDGE: &str = "br0";
const TAP: &str = "qemu0";
/// The kernel's last line before its first program.
const AT_INIT: &str = "Run /init as init process";
/// The words with which minivmm begins a command line, for QEMU.
const DEFAULT_WORDS: &str = "console=ttyS0 panic=-1 reboot=panic_warm,k";
/// Silences of the console that are listed.
const SILENCES: usize = 8;
/// The goal of the project, as a part of QEMU's time.
const GOAL: f64 = 0.43;

/// How often, and beside what.
#[derive(Debug, Clone, Args)]
pub struct Terms {
    /// Counted runs of each
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Another minivmm, to be measured beside
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
}

/// The command line of the benchmark.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    #[command(flatten)]
    terms: Terms,
    /// Where the result goes [default: bench/boot.json in cargo's target folder]
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
    /// Counted runs of each.
    runs: u32,
    rows: Vec<Row>,
}

/// The boots of one machine.
#[derive(Debug, Serialize)]
struct Row {
    contestant: &'static str,
    /// From before the spawn to the kernel's last line, in ms.
    to_init_ms: Spread,
    /// Exits of the guest by reason.
    exits: Vec<(String, f64)>,
    /// The longest silences of the console in ms, each with the line that ended it.
    silences: Vec<(f64, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contestant {
    Minivmm,
    Before,
    Qemu,
}

/// The lines of a console and when they came, in ms after the spawn.
type Console = Vec<(f64, String)>;

/// Builds everything and measures where Linux guests run.
///
/// # Errors
/// If something does not build, or the host VM does not come up.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let Terms { runs, before } = &arguments.terms;
    let mut words = files::flag("--before", before.as_ref());
    words.extend(["--runs".into(), runs.to_string().into()]);
    files::measure("boot", words, arguments.json.as_ref())
}

impl Here {
    /// Measures right here.
    ///
    /// # Errors
    /// If a guest does not come to its first program.
    pub fn run(&self) -> Result<ExitCode, Box<dyn Error>> {
        namespace::isolate()?;
        sh(&format!(
            "ip link add {BRIDGE} type bridge stp_state 0 forward_delay 0 && ip link set {BRIDGE} up &&
             ip tuntap add {TAP} mode tap vnet_hdr && ip link set {TAP} master {BRIDGE} up"
        ));
        let mut contestants = vec![Contestant::Minivmm, Contestant::Qemu];
        contestants.extend(self.terms.before.as_ref().map(|_| Contestant::Before));
        let mut boots: Vec<Vec<Console>> = contestants.iter().map(|_| Vec::new()).collect();
        // The first one of each warms the caches.
        for round in 0..=self.terms.runs {
            eprintln!("round {round} of {}", self.terms.runs);
            for (contestant, boots) in contestants.iter().zip(&mut boots) {
                let boot = self.boot(*contestant)?;
                if round > 0 {
                    boots.push(boot);
                }
            }
        }
        let rows = contestants.iter().zip(boots).map(|(contestant, boots)| {
            let Counted { exits, .. } = trace::count(1, || self.boot(*contestant))?;
            let to_init_ms = Spread::of(boots.iter().filter_map(|boot| boot.last()).map(|(ms, _)| *ms));
            let silences = boots.last().map(silences).unwrap_or_default();
            Ok(Row { contestant: contestant.name(), to_init_ms, exits, silences })
        });
        let report = Report { runs: self.terms.runs, rows: rows.collect::<io::Result<_>>()? };
        print!("{}", report.table());
        super::write_json(&report, &self.files.json)?;
        Ok(ExitCode::SUCCESS)
    }

    /// Boots once, to the first program.
    fn boot(&self, contestant: Contestant) -> io::Result<Console> {
        let mut command = self.command(contestant);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let start = Instant::now();
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| io::Error::other("no standard output"))?;
        let mut console = Console::new();
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            let is_last = line.contains(AT_INIT);
            console.push((start.elapsed().as_secs_f64() * 1e3, line));
            if is_last {
                end(&mut child);
                return Ok(console);
            }
        }
        end(&mut child);
        let said: Vec<_> = console.into_iter().map(|(_, line)| line).collect();
        Err(io::Error::other(format!("{} did not run /init: {}", contestant.name(), said.join("\n"))))
    }

    fn command(&self, contestant: Contestant) -> Command {
        let mem = MEM_MIB.to_string();
        match contestant {
            Contestant::Minivmm | Contestant::Before => {
                let other = self.terms.before.as_ref().filter(|_| contestant == Contestant::Before);
                let mut command = Command::new(other.unwrap_or(&self.files.minivmm));
                command.args(["--mem", &format!("{mem}M"), "--net", &format!("bridge={BRIDGE}"), "--console", "stdio"]);
                self.boots(command, "--kernel", "--initrd")
            }
            Contestant::Qemu => {
                let mut command = Command::new("qemu-system-x86_64");
                command
                    .args(["-M", "q35", "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", &mem])
                    .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
                    .args(["-netdev", &format!("tap,id=n,ifname={TAP},script=no,downscript=no")])
                    .args(["-device", "virtio-net-pci,netdev=n,disable-legacy=on,romfile=", "-name"])
                    .args(["bench,debug-threads=on", "-append", DEFAULT_WORDS]);
                self.boots(command, "-kernel", "-initrd")
            }
        }
    }

    fn boots(&self, mut command: Command, kernel: &str, initrd: &str) -> Command {
        let files: [(&str, &Path); 2] = [(kernel, &self.files.kernel), (initrd, &self.files.initramfs)];
        files.iter().for_each(|(flag, path)| {
            command.arg(flag).arg(path);
        });
        command
    }
}

impl Contestant {
    fn name(self) -> &'static str {
        match self {
            Self::Minivmm => "minivmm",
            Self::Before => "before",
            Self::Qemu => "QEMU",
        }
    }
}

impl Report {
    fn table(&self) -> String {
        let mut text = format!("From exec to a Linux guest's first program, medians of {} (min..max)\n", self.runs);
        let of = |name: &str| self.rows.iter().find(|row| row.contestant == name).map(|row| row.to_init_ms.median);
        for Row { contestant, to_init_ms: Spread { min, median, max }, exits, .. } in &self.rows {
            let share = of("QEMU").map_or(f64::NAN, |qemu| median / qemu);
            text.push_str(&format!("{contestant:8} {median:>8.0} ms ({min:.0}..{max:.0}), {share:.2} of QEMU's\n"));
            text.push_str(&format!("{:8} {}\n", "", listed("exits", exits)));
        }
        for Row { contestant, silences, .. } in &self.rows {
            text.push_str(&format!("\nThe longest silences of {contestant}, in ms, and the lines that end them:\n"));
            for (ms, line) in silences {
                text.push_str(&format!("{ms:>8.0}  {line}\n"));
            }
        }
        text.push_str(&format!("(goal: {GOAL} of QEMU's)\n"));
        text
    }
}

fn silences(console: &Console) -> Vec<(f64, String)> {
    let begins = std::iter::once(0.0).chain(console.iter().map(|(ms, _)| *ms));
    let mut silences: Vec<_> = begins.zip(console).map(|(begin, (ms, line))| (ms - begin, line.clone())).collect();
    silences.sort_by(|a, b| b.0.total_cmp(&a.0));
    silences.truncate(SILENCES);
    silences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_silences_come_first() {
        let console = [(5.0, "a"), (6.0, "b"), (16.0, "c")].map(|(ms, line)| (ms, line.to_owned())).to_vec();
        let ms = silences(&console);
        assert_eq!(ms, [(10.0, "c".to_owned()), (5.0, "a".to_owned()), (1.0, "b".to_owned())]);
    }
}
