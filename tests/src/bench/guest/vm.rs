//! A machine of the benchmark: the same guest, memory and address on each VMM.

use super::traffic::{DATAGRAM_PORT, ECHO_PORT, IPERF_PORT, Peer, Ports};
use super::{BRIDGE, NETWORK, Plan, ROUTED};
use crate::guest::{READY, script_parameter};
use crate::lan::sh;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

const MEM_MIB: u32 = 512;
/// A guest may take this long to be ready: an emulated host is slow, and others are up already.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
/// Addresses of guests begin here.
const FIRST_ADDRESS: u8 = 11;

/// CUBIC's HyStart (`hystart_update` in net/ipv4/tcp_cubic.c) ends slow start when round trips get longer, and where
/// one processor is all that host and guest have it ends it anywhere: the same path then carries all of what it can or
/// half of it, for as long as a test lasts, and for all tests after it as the kernel remembers the threshold
/// (`tcp_no_metrics_save`).
const STEADY: &str = "tcp_cubic.hystart=0";

/// The guest's own ports.
const OWN: Ports = Ports { iperf: IPERF_PORT, echo: ECHO_PORT };

/// Those of the host that lead to the guest behind NAT with this number.
fn forwarded(number: u8) -> Ports {
    let number = u16::from(number);
    Ports { iperf: 15201 + number, echo: 10007 + number }
}

/// Whose machine, with which data path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bench) enum Contestant {
    Minivmm,
    /// The other one, on a bridge too.
    Before,
    /// Behind NAT, reached by forwarded ports of the host.
    MinivmmNat,
    MinivmmVhost,
    Qemu,
    QemuVhost,
}

impl Contestant {
    /// Those that there are here, in the order in which they start.
    pub(in crate::bench) fn all(plan: &Plan) -> Vec<Self> {
        if plan.only_nat {
            return vec![Self::Minivmm, Self::MinivmmNat, Self::MinivmmNat, Self::Minivmm];
        }
        let help = Command::new(&plan.minivmm).arg("--help").stdin(Stdio::null()).output();
        let knows_vhost = help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("vhost="));
        let has_vhost = std::path::Path::new("/dev/vhost-net").exists();
        [Self::Minivmm, Self::Before, Self::MinivmmNat, Self::Qemu, Self::QemuVhost, Self::MinivmmVhost]
            .into_iter()
            .filter(|contestant| match contestant {
                Self::Minivmm | Self::MinivmmNat | Self::Qemu => true,
                Self::Before => plan.before.is_some(),
                Self::QemuVhost => has_vhost,
                Self::MinivmmVhost => has_vhost && knows_vhost,
            })
            .collect()
    }

    /// Its name.
    pub(in crate::bench) const fn name(self) -> &'static str {
        match self {
            Self::Minivmm => "minivmm",
            Self::Before => "before",
            Self::MinivmmNat => "minivmm nat",
            Self::MinivmmVhost => "minivmm vhost",
            Self::Qemu => "QEMU",
            Self::QemuVhost => "QEMU vhost",
        }
    }

    fn command(self, plan: &Plan, number: u8, appended: &str) -> Command {
        let mac = format!("02:00:00:00:00:{:02x}", FIRST_ADDRESS + number);
        let (kernel, initramfs) = (plan.kernel.as_os_str(), plan.initramfs.as_os_str());
        match self {
            Self::Minivmm | Self::Before | Self::MinivmmNat | Self::MinivmmVhost => {
                let net = match self {
                    Self::MinivmmNat => {
                        let Ports { iperf, echo } = forwarded(number);
                        format!("nat,forward=tcp:{iperf}:{IPERF_PORT}+udp:{iperf}:{IPERF_PORT}+tcp:{echo}:{ECHO_PORT}")
                    }
                    Self::MinivmmVhost => format!("bridge={BRIDGE},mac={mac},vhost=on"),
                    _ => format!("bridge={BRIDGE},mac={mac}"),
                };
                let other = plan.before.as_ref().filter(|_| self == Self::Before);
                let mut command = Command::new(other.unwrap_or(&plan.minivmm));
                command.args(["--mem", &format!("{MEM_MIB}M"), "--cmdline", appended]);
                command.args(["--net", &net]);
                command.arg("--kernel").arg(kernel).arg("--initrd").arg(initramfs);
                command
            }
            Self::Qemu | Self::QemuVhost => {
                let vhost = if self == Self::QemuVhost { "on" } else { "off" };
                let tap = format!("qemu{number}");
                sh(&format!("ip tuntap add {tap} mode tap vnet_hdr && ip link set {tap} master {BRIDGE} up"));
                let mut command = Command::new("qemu-system-x86_64");
                command
                    .args(["-M", "q35", "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", &MEM_MIB.to_string()])
                    .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
                    .args(["-name", "bench,debug-threads=on"])
                    .args(["-netdev", &format!("tap,id=n,ifname={tap},script=no,downscript=no,vhost={vhost}")])
                    .args(["-device", &format!("virtio-net-pci,netdev=n,mac={mac},disable-legacy=on,romfile=")])
                    .args(["-append", &format!("console=ttyS0 panic=-1 {appended}")]);
                command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
                command
            }
        }
    }
}

/// A machine that is up; it is killed when this is dropped.
pub(in crate::bench) struct Vm {
    child: Child,
    peer: Peer,
    // Kept so that the guest's later lines have somewhere to go.
    _console: Receiver<String>,
}

impl Vm {
    /// Starts it and waits until its servers answer.
    ///
    /// # Errors
    /// If it does not come up.
    pub(in crate::bench) fn start(contestant: Contestant, plan: &Plan, number: u8) -> io::Result<Self> {
        let script = format!(
            "sysctl -q -w net.ipv4.tcp_no_metrics_save=1; nc -ll -p {ECHO_PORT} -e cat & tests traffic echo 0.0.0.0:{DATAGRAM_PORT} & iperf3 -s -p {IPERF_PORT} >/dev/null"
        );
        let address = format!("{NETWORK}.{}", FIRST_ADDRESS + number);
        // Behind NAT it asks for its address.
        let (given, peer) = match contestant {
            Contestant::MinivmmNat => {
                let (address, from_outside) = (format!("{NETWORK}.1"), format!("{ROUTED}.1"));
                (String::new(), Peer { address, from_outside, ports: forwarded(number) })
            }
            _ => {
                let given = format!("minivmm.ip=eth0:{address}/24");
                (given, Peer { from_outside: address.clone(), address, ports: OWN })
            }
        };
        let appended = format!("quiet {given} {STEADY} {}", script_parameter(&script));
        let mut command = contestant.command(plan, number, &appended);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| io::Error::other("no standard output"))?;
        let (sender, console) = mpsc::channel();
        thread::Builder::new().name("console".to_owned()).spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        })?;
        let mut said = String::new();
        loop {
            let Ok(line) = console.recv_timeout(BOOT_TIMEOUT) else {
                // It may have ended by itself.
                let _gone = child.kill();
                let _status = child.wait();
                return Err(io::Error::other(format!("the guest does not get ready: {said}")));
            };
            if line.contains(READY) {
                break;
            }
            said = said + &line + "\n";
        }
        let vm = Self { child, peer, _console: console };
        vm.peer.connect(vm.peer.ports.iperf)?;
        vm.peer.connect(vm.peer.ports.echo)?;
        Ok(vm)
    }

    /// Where the guest's servers are.
    pub(in crate::bench) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Process of the VMM.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}
