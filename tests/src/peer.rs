//! The same machine on minivmm and on QEMU, for scenarios that look for differences between the two.
//!
//! Both get the same kernel, initramfs, script, vCPUs and memory, taps that exist, and image files as disks.
//! Cards have the
//! same slots of the bus, from [`FIRST_SLOT`].

use crate::guest::{Guest, script_parameter};
use crate::lan::sh;
use crate::vm::{Builder, PATIENCE, Vm};
use std::fmt;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The first card's slot; minivmm counts from here as well.
pub const FIRST_SLOT: u8 = 1;

/// The switches of QEMU's card for [`Offload::Nothing`].
const QEMU_NO_OFFLOAD: &str = ",csum=off,gso=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off,guest_csum=off,\
                               guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off";

/// A program that runs machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vmm {
    /// The program under test.
    Minivmm,
    /// Its peer, with all of what it can do switched on.
    Qemu,
}

impl Vmm {
    /// Both, the program under test first.
    pub const BOTH: [Self; 2] = [Self::Minivmm, Self::Qemu];
}

impl fmt::Display for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minivmm => "minivmm",
            Self::Qemu => "QEMU",
        })
    }
}

/// A card of a [`Machine`].
#[derive(Debug, Clone)]
pub struct Card {
    /// Its tap, made with [`tap`].
    pub tap: String,
    /// Queue pairs.
    pub queues: u32,
    /// Offloads of the card.
    pub offload: Offload,
}

/// Checksums and segments that are left to the next on a frame's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// All that the tap can do.
    All,
    /// None: frames are finished when they enter or leave the guest.
    Nothing,
}

/// A disk of a [`Machine`].
#[derive(Debug, Clone)]
pub struct Disk {
    /// The image, raw.
    pub path: PathBuf,
    /// Request queues.
    pub queues: u32,
    /// The operations open to the guest.
    pub access: Access,
}

/// The operations on a disk that are open to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read, write and discard.
    ReadWrite,
}

/// A machine to start.
#[derive(Debug, Clone)]
pub struct Machine {
    /// `--name`, for minivmm's own words.
    pub name: String,
    /// The guest that boots.
    pub guest: Guest,
    /// vCPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// Cards, in the order of their slots.
    pub cards: Vec<Card>,
    /// Disks, in their order.
    pub disks: Vec<Disk>,
    /// More words for the kernel's command line.
    pub parameters: String,
    /// The guest's script.
    pub script: String,
}

impl Machine {
    /// Starts it. `minivmm` is the program under test, `folder` takes the socket of QEMU's monitor.
    pub fn start(&self, vmm: Vmm, minivmm: &Path, folder: &Path) -> Vm {
        match vmm {
            Vmm::Minivmm => self.minivmm(minivmm).start(),
            Vmm::Qemu => Vm::start(&mut self.qemu(folder), PATIENCE),
        }
    }

    fn minivmm(&self, program: &Path) -> Builder {
        let mut builder = Builder::new(program)
            .kernel(&self.guest.bzimage)
            .initrd(&self.guest.initramfs)
            .cpus(self.cpus)
            .mem(&format!("{}M", self.mem_mib))
            .name(&self.name)
            .parameter(&self.parameters)
            .script(&self.script);
        for Card { tap, queues, offload } in &self.cards {
            let offload = if *offload == Offload::Nothing { ",offload=off" } else { "" };
            builder = builder.net(format_args!("tap={tap},queues={queues}{offload}"));
        }
        for Disk { path, queues, access } in &self.disks {
            let access = if *access == Access::ReadOnly { ",readonly=on" } else { "" };
            builder = builder.disk(format_args!("path={},queues={queues}{access}", path.display()));
        }
        builder
    }

    fn qemu(&self, folder: &Path) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-M", "q35", "-accel", "kvm", "-cpu", "host", "-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-serial", "stdio", "-monitor"])
            .arg(format!("unix:{},server=on,wait=off", monitor(folder).display()))
            .args(["-smp", &self.cpus.to_string(), "-m", &self.mem_mib.to_string()]);
        command.arg("-kernel").arg(&self.guest.bzimage).arg("-initrd").arg(&self.guest.initramfs);
        let cmdline = format!("console=ttyS0 panic=-1 {} {}", self.parameters, script_parameter(&self.script));
        command.args(["-append", &cmdline]);
        for (number, Card { tap, queues, offload }) in self.cards.iter().enumerate() {
            let vectors = 2 * queues + 2;
            let slot = usize::from(FIRST_SLOT) + number;
            let netdev = format!("tap,id=net{number},ifname={tap},script=no,downscript=no,vhost=off,queues={queues}");
            let offload = if *offload == Offload::Nothing { QEMU_NO_OFFLOAD } else { "" };
            let device = format!(
                "virtio-net-pci,netdev=net{number},id=card{number},addr={slot},mac=02:00:00:00:01:{number:02x},mq=on,\
                 vectors={vectors},rss=on,hash=on,disable-legacy=on,romfile={offload}"
            );
            command.args(["-netdev", &netdev, "-device", &device]);
        }
        for (number, Disk { path, queues, access }) in self.disks.iter().enumerate() {
            let access = if *access == Access::ReadOnly { "readonly=on" } else { "discard=unmap" };
            let drive = format!("file={},format=raw,if=none,id=disk{number},{access}", path.display());
            let device = format!("virtio-blk-pci,drive=disk{number},num-queues={queues},disable-legacy=on");
            command.args(["-drive", &drive, "-device", &device]);
        }
        command
    }
}

/// Takes the cable of QEMU's first card out or puts it back in.
pub fn set_qemu_link(folder: &Path, state: &str) {
    let path = monitor(folder);
    // QEMU reads to the end of what is said, unless the other end has gone by then.
    let said = UnixStream::connect(&path).and_then(|mut socket| {
        writeln!(socket, "set_link card0 {state}")?;
        socket.shutdown(Shutdown::Write)?;
        socket.read_to_end(&mut Vec::new())
    });
    said.unwrap_or_else(|error| panic!("QEMU's monitor {} takes no command: {error}", path.display()));
}

fn monitor(folder: &Path) -> PathBuf {
    folder.join("monitor")
}

/// Makes a tap for both; IPv6 is off on it, so that nothing but the guest speaks there.
pub fn tap(name: &str) {
    sh(&format!(
        "ip tuntap add {name} mode tap multi_queue vnet_hdr && sysctl -qw net.ipv6.conf.{name}.disable_ipv6=1 &&
         ip link set {name} up"
    ));
}

/// Connects two taps back to back: what comes out of one goes into the other.
pub fn connect(one: &str, other: &str) {
    for (from, to) in [(one, other), (other, one)] {
        sh(&format!(
            "tc qdisc add dev {from} clsact &&
             tc filter add dev {from} ingress protocol all pref 1 matchall action mirred egress redirect dev {to}"
        ));
    }
}
