//! Command lines that start the probe on a VMM, and a run from start to end.

use super::Verdict;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Memory of every probe VM, in MiB.
pub const MEM_MIB: u32 = 128;
/// No run takes longer, in an emulated processor and on a loaded machine.
const RUN_TIMEOUT_SECONDS: u32 = 300;

/// A VMM that can boot the probe.
#[derive(Debug, Clone)]
pub enum Vmm {
    /// The program under test, by path.
    Minivmm(PathBuf),
    /// QEMU's q35 machine, on KVM or, without one, emulated.
    Qemu {
        /// True if it may use KVM.
        kvm: bool,
    },
}

/// Devices and command line of one VM.
#[derive(Debug, Clone)]
pub struct Config<'a> {
    /// The probe.
    pub probe: &'a Path,
    /// Its command line.
    pub cmdline: &'a str,
    /// The start of `--net` for minivmm's card.
    pub card: &'a str,
    /// More keys of that card, each with a comma before it.
    pub keys: &'a str,
    /// A tap on the peer's bridge, for QEMU.
    pub tap: &'a str,
    /// Raw images: path and whether the guest may only read it.
    pub disks: &'a [(PathBuf, bool)],
}

/// The output of a VM until it ended.
#[derive(Debug)]
pub struct Run {
    /// The verdicts, in order.
    pub verdicts: Vec<Verdict>,
    /// Everything on the console.
    pub console: String,
    /// Everything the VMM said.
    pub log: String,
    /// True if the probe ended the VM by itself and found nothing wrong.
    pub clean: bool,
    /// The VMM's exit code; `None` after a signal.
    pub code: Option<i32>,
    /// From the start of the process to its end.
    pub took: Duration,
    /// Processor time of the VMM and its children. While the probe runs it never sleeps, so this is what a run takes on
    /// a machine that does nothing else.
    pub cpu: Duration,
}

impl Vmm {
    /// Starts the VM and waits for its end.
    ///
    /// # Errors
    /// If the VMM cannot be started.
    pub fn run(&self, config: &Config<'_>) -> io::Result<Run> {
        let words = self.words(config);
        let (start, cpu_before) = (Instant::now(), children_cpu()?);
        let output = Command::new("timeout")
            .args(["--kill-after=5", &RUN_TIMEOUT_SECONDS.to_string()])
            .args(words)
            .stdin(Stdio::null())
            .output()?;
        let took = start.elapsed();
        let console = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(Run {
            verdicts: console.lines().filter_map(Verdict::parse).collect(),
            console,
            log: String::from_utf8_lossy(&output.stderr).into_owned(),
            clean: output.status.code() == Some(self.clean_code()),
            code: output.status.code(),
            took,
            cpu: children_cpu()?.saturating_sub(cpu_before),
        })
    }

    /// The exit code after the probe wrote 0 to the debug-exit port.
    fn clean_code(&self) -> i32 {
        match self {
            Self::Minivmm(_) => 0,
            // isa-debug-exit: value << 1 | 1.
            Self::Qemu { .. } => 1,
        }
    }

    fn words(&self, config: &Config<'_>) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let mut push = |more: &[&str]| words.extend(more.iter().map(OsString::from));
        let probe = config.probe.display().to_string();
        match self {
            Self::Minivmm(program) => {
                push(&[&program.display().to_string(), "--kernel", &probe, "--cmdline-replace", config.cmdline]);
                push(&["--mem", &format!("{MEM_MIB}M"), "--cpus", "1", "--console", "stdio"]);
                push(&["--net", &format!("{},queues=2{}", config.card, config.keys)]);
                for (idx, (path, readonly)) in config.disks.iter().enumerate() {
                    let mode = if *readonly { "on" } else { "off" };
                    let queues = if idx == 0 { 3 } else { 1 };
                    let disk = format!("path={},readonly={mode},serial=probe{idx},queues={queues}", path.display());
                    push(&["--disk", &disk]);
                }
            }
            Self::Qemu { kvm } => {
                push(&["qemu-system-x86_64", "-M", "q35", "-nodefaults", "-no-user-config", "-no-reboot"]);
                push(if *kvm {
                    &["-accel", "kvm", "-cpu", super::QEMU_CPU]
                } else {
                    &["-accel", "tcg", "-cpu", "max"]
                });
                push(&["-display", "none", "-serial", "stdio", "-m", &MEM_MIB.to_string(), "-smp", "1"]);
                push(&["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-device", "pvpanic"]);
                push(&["-kernel", &probe, "-append", config.cmdline]);
                push(&["-netdev", &format!("tap,id=n,ifname={},script=no,downscript=no", config.tap)]);
                push(&["-device", "virtio-net-pci,netdev=n,disable-legacy=on"]);
                push(&["-device", "virtio-rng-pci,disable-legacy=on"]);
                for (idx, (path, readonly)) in config.disks.iter().enumerate() {
                    let mode = if *readonly { "on" } else { "off" };
                    push(&["-drive", &format!("if=none,id=d{idx},format=raw,file={},readonly={mode}", path.display())]);
                    push(&["-device", &format!("virtio-blk-pci,drive=d{idx},serial=probe{idx},disable-legacy=on")]);
                }
            }
        }
        words
    }
}

/// Processor time of all children that this process has waited for, and theirs: `cutime` and `cstime` of
/// proc_pid_stat(5).
fn children_cpu() -> io::Result<Duration> {
    const TICK: Duration = Duration::from_millis(10);
    let text = std::fs::read_to_string("/proc/self/stat")?;
    // The program's name, in parentheses, may contain anything; field 3 is the first one behind it.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u32 = fields.skip(16 - 3).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    Ok(TICK * ticks)
}
