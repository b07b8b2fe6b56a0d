//! A VM that runs the probe's benchmark, on minivmm or on QEMU, and the lines it prints.

use super::frame::CARD_MAC;
use crate::bench::clock;
use crate::lan::sh;
use crate::probe::QEMU_CPU;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

/// The bridge of all runs.
pub(super) const BRIDGE: &str = "br0";
/// QEMU's tap, which is made for it; minivmm makes its own.
const QEMU_TAP: &str = "qemu0";
const MEM_MIB: u32 = 128;
/// No line takes longer, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whose card it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vmm {
    Minivmm,
    /// Another minivmm, to be measured beside.
    Before,
    Qemu,
}

impl Vmm {
    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Minivmm => "minivmm",
            Self::Before => "before",
            Self::Qemu => "QEMU",
        }
    }
}

/// A running VM; it is killed when this is dropped.
pub(super) struct Vm {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<Line>,
    vmm: Vmm,
}

/// One line of the guest and when it came.
#[derive(Debug)]
pub(super) struct Line {
    text: String,
    /// The host's time stamp counter when the line was read.
    pub(super) ticks: u64,
}

impl Line {
    /// The number behind `key=`.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn number(&self, key: &str) -> io::Result<u64> {
        let words = self.text.split_whitespace().filter_map(|word| word.split_once('='));
        let value = words.filter(|(name, _)| *name == key).find_map(|(_, value)| value.parse().ok());
        value.ok_or_else(|| io::Error::other(format!("no {key}= in {:?}", self.text)))
    }
}

impl Vm {
    /// Starts the guest with a card of `pairs` queue pairs; `words` follow on its command line. `program` is that
    /// of a minivmm.
    ///
    /// # Errors
    /// If the VMM cannot be started.
    pub(super) fn start(vmm: Vmm, program: &Path, probe: &Path, pairs: u16, words: &str) -> io::Result<Self> {
        let cmdline = format!("probe=bench pairs={pairs} {words}");
        let mac = CARD_MAC.map(|byte| format!("{byte:02x}")).join(":");
        let mut command = match vmm {
            Vmm::Minivmm | Vmm::Before => {
                minivmm_command(program, &format!("bridge={BRIDGE},mac={mac},queues={pairs}"))
            }
            Vmm::Qemu => {
                make_qemu_tap(pairs);
                qemu_command(pairs, &mac)
            }
        };
        let (append, kernel) =
            if vmm == Vmm::Qemu { ("-append", "-kernel") } else { ("--cmdline-replace", "--kernel") };
        command.args([append, &cmdline]).arg(kernel).arg(probe);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("no pipes"));
        };
        Ok(Self { child, stdin, lines: follow(stdout)?, vmm })
    }

    /// The next line that begins with `bench` and then `word`.
    ///
    /// # Errors
    /// If the VM says something else, ends, or stays silent.
    pub(super) fn line(&mut self, word: &str) -> io::Result<Line> {
        loop {
            let Ok(line) = self.lines.recv_timeout(PATIENCE) else { return Err(self.silent(word)) };
            let mut words = line.text.split_whitespace();
            match (words.next(), words.next()) {
                (Some("bench"), Some(second)) if second == word => return Ok(line),
                (Some("not"), _) => return Err(io::Error::other(format!("{}: {}", self.vmm.name(), line.text))),
                _ => {}
            }
        }
    }

    /// Sends the guest a byte through its serial port.
    ///
    /// # Errors
    /// If the VMM does not take it.
    pub(super) fn go(&mut self) -> io::Result<()> {
        self.stdin.write_all(b"g")
    }

    /// Process of the VMM.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn silent(&mut self, word: &str) -> io::Error {
        // It may have ended by itself.
        let _gone = self.child.kill();
        let mut log = String::new();
        // Whatever can be read explains more than nothing.
        let _partial = self.child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut log));
        io::Error::other(format!("{} did not say {word:?}: {}", self.vmm.name(), log.trim()))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _gone = self.child.kill();
        let _status = self.child.wait();
        // This is process 1 of its namespace: what the VMM has forked is ours now, and undoes its part before it ends.
        while nix::sys::wait::wait().is_ok() {}
        if self.vmm == Vmm::Qemu {
            sh(&format!("ip link del {QEMU_TAP}"));
        }
    }
}

/// Reads lines in a thread that ends with the VM.
fn follow(stdout: ChildStdout) -> io::Result<Receiver<Line>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name("lines".to_owned()).spawn(move || {
        for text in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(Line { text, ticks: clock::ticks() }).is_err() {
                break;
            }
        }
    })?;
    Ok(receiver)
}

fn minivmm_command(program: &Path, net: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["--cpus", "1", "--console", "stdio", "--mem", &format!("{MEM_MIB}M"), "--net", net]);
    command
}

fn qemu_command(pairs: u16, mac: &str) -> Command {
    let mut command = Command::new(PathBuf::from("qemu-system-x86_64"));
    let (queues, vectors) = match pairs {
        1 => (String::new(), String::new()),
        _ => (format!(",queues={pairs}"), format!(",mq=on,vectors={}", 2 * pairs + 2)),
    };
    command
        .args(["-M", "q35", "-accel", "kvm", "-cpu", QEMU_CPU, "-smp", "1", "-m", &MEM_MIB.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
        .args(["-name", "bench,debug-threads=on", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .args(["-netdev", &format!("tap,id=n,ifname={QEMU_TAP},script=no,downscript=no,vhost=off{queues}")])
        .args(["-device", &format!("virtio-net-pci,netdev=n,mac={mac},disable-legacy=on{vectors}")]);
    command
}

fn make_qemu_tap(pairs: u16) {
    let mode = if pairs > 1 { " multi_queue" } else { "" };
    sh(&format!("ip tuntap add {QEMU_TAP} mode tap vnet_hdr{mode} && ip link set {QEMU_TAP} master {BRIDGE} up"));
}
