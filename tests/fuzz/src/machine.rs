//! A machine without vCPUs: an MMIO and a port bus, a PCI root with a card and an entropy source, and workers that run
//! when told.

use crate::memory;
use crate::port::Port;
use devices::bus::Bus;
use devices::doorbell::Doorbells;
use devices::irq::{IntxPin, Level, MsiMessage, MsiVector};
use devices::pci::bdf::Bdf;
use devices::pci::function::PciFunction;
use devices::pci::root::{PciRoot, Windows};
use devices::virtio::device::{Device, Memory};
use devices::virtio::net::{FramePort, Link, Net, NetConfig, Offloads};
use devices::virtio::pci::{VirtioPci, Wiring};
use devices::virtio::rng::Rng;
use devices::virtio::threads::OwnThreads;
use devices::virtio::worker::inline;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// Where configuration space lies.
pub const ECAM: u64 = 0xb000_0000;
const ECAM_LEN: u64 = 0x10_0000;
/// Where BARs can answer.
pub const MEM32: (u64, u64) = (0xc000_0000, 0xc0ff_ffff);
/// Where BARs can answer, above 4 GiB.
pub const MEM64: (u64, u64) = (0x10_0000_0000, 0x10_0fff_ffff);
/// The configuration ports.
pub const CONFIG_PORTS: u64 = 0xcf8;

/// The slots, and the devices in them.
pub const NET: u8 = 1;
/// The entropy source's slot.
pub const RNG: u8 = 2;
/// Queue pairs of the card.
pub const PAIRS: usize = 2;
/// The card's address.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Turns of all workers after which an idle device has to be at rest. A ring full of commands
/// or frames takes a handful.
const RESTLESS: u32 = 200;

/// How [`Machine::settle`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Nothing happens any more until the caller acts.
    Reached,
    /// Something is always left to do.
    Never,
}

/// The machine.
pub struct Machine {
    /// Guest-physical addresses.
    pub mmio: Bus,
    /// I/O ports.
    pub ports: Bus,
    /// Guest memory.
    pub mem: Memory,
    /// The card's ports.
    pub net_ports: Vec<Arc<Port>>,
    /// Their other ends.
    pub wires: Vec<UnixDatagram>,
    /// The card.
    pub net: Arc<VirtioPci>,
    /// Its link.
    pub link: Link,
    /// The doorbells that are attached.
    pub doorbells: Arc<Bells>,
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// A machine after power-on.
    pub fn new() -> Self {
        let mem = memory::fresh();
        let doorbells = Arc::new(Bells::default());
        let mut root = PciRoot::new(Windows { mem32: MEM32.0..=MEM32.1, mem64: MEM64.0..=MEM64.1 }).expect("windows");
        let (net_ports, wires): (Vec<_>, Vec<_>) = (0..PAIRS).map(|_| Port::new()).unzip();
        let link = Link::default();
        let net = slot(Box::new(card(&net_ports, link.clone())), &mem, &doorbells);
        let zeros = File::open("/dev/zero").expect("/dev/zero");
        let rng = slot(Box::new(Rng::new("rng0", zeros)), &mem, &doorbells);
        for (function, device) in [(net.clone(), NET), (rng, RNG)] {
            let bdf = root.add(function as Arc<dyn PciFunction>).expect("there are slots");
            assert_eq!(Bdf::on_root_bus(device), Some(bdf));
        }
        let root = Arc::new(root);
        let (mut mmio, mut ports) = (Bus::new(), Bus::new());
        mmio.insert(ECAM, ECAM_LEN, PciRoot::ecam(&root)).expect("free");
        for (start, last) in [MEM32, MEM64] {
            mmio.insert(start, last - start + 1, PciRoot::window(&root, start)).expect("free");
        }
        ports.insert(CONFIG_PORTS, 8, PciRoot::config_ports(&root)).expect("free");
        Self { mmio, ports, mem, net_ports, wires, net, link, doorbells }
    }

    /// Lets the workers work until there is nothing left to do.
    pub fn settle(&self) -> Rest {
        for _ in 0..RESTLESS {
            if inline::turn() == 0 {
                return Rest::Reached;
            }
        }
        Rest::Never
    }

    /// Reads a configuration register of a slot.
    pub fn config<const N: usize>(&self, slot: u8, register: u64) -> [u8; N] {
        let mut data = [0; N];
        self.mmio.read(ECAM + (u64::from(slot) << 15) + register, &mut data);
        data
    }

    /// Writes a configuration register of a slot.
    pub fn set_config(&self, slot: u8, register: u64, data: &[u8]) {
        self.mmio.write(ECAM + (u64::from(slot) << 15) + register, data);
    }

    /// Where the BAR of a slot is, whether or not it answers.
    pub fn bar(&self, slot: u8) -> u64 {
        u64::from_le_bytes(self.config(slot, 0x10)) & !0xf
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.net.shutdown();
    }
}

/// A card on `ports` with this link.
pub fn card(ports: &[Arc<Port>], link: Link) -> Net {
    let config =
        NetConfig { name: "net0".to_owned(), mac: MAC, mtu: 1500, ring: 256, offloads: Offloads::CANDIDATES[0], link };
    let ports = ports.iter().map(|port| port.clone() as Arc<dyn FramePort>).collect();
    Net::new(config, ports).expect("the ports can be detached")
}

fn slot(device: Box<dyn Device>, mem: &Memory, doorbells: &Arc<Bells>) -> Arc<VirtioPci> {
    let vectors = (0..=device.queue_max_sizes().len()).map(|_| Arc::new(Vector::default()) as _).collect();
    let (pin, threads) = (Arc::new(Pin::default()), Arc::new(OwnThreads));
    let wiring = Wiring { vectors, pin, doorbells: doorbells.clone(), threads };
    VirtioPci::new(device, mem.clone(), wiring).expect("there are descriptors left")
}

/// An interrupt pin as KVM keeps it.
#[derive(Default)]
pub struct Pin(AtomicBool);

impl IntxPin for Pin {
    fn drive(&self, level: Level) -> io::Result<()> {
        let asserted = level == Level::Asserted;
        let before = self.0.swap(asserted, Ordering::Relaxed);
        assert_ne!(before, asserted, "a pin is driven to what it is already");
        Ok(())
    }

    fn line(&self) -> u8 {
        16
    }
}

/// An interrupt vector that remembers.
#[derive(Default)]
pub struct Vector {
    routed: AtomicBool,
    held: AtomicU32,
}

impl MsiVector for Vector {
    fn signal(&self) -> io::Result<()> {
        if !self.routed.load(Ordering::Relaxed) {
            self.held.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        self.routed.store(message.is_some(), Ordering::Relaxed);
        if message.is_some() {
            self.clear();
        }
        Ok(())
    }

    fn pending(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0
    }

    fn clear(&self) {
        self.held.store(0, Ordering::Relaxed);
    }
}

/// Doorbells as KVM keeps them: an address can be taken once, and given back by who has it.
#[derive(Default)]
pub struct Bells(Mutex<BTreeMap<u64, EventFd>>);

impl Bells {
    /// Where doorbells are.
    pub fn addresses(&self) -> Vec<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Rings the doorbell at `addr`, as KVM does for any write that covers it. Returns whether there is one.
    pub fn ring(&self, addr: u64) -> bool {
        let bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bell = bells.get(&addr);
        bell.map(|event| event.write(1).expect("a doorbell can be rung")).is_some()
    }
}

impl Doorbells for Bells {
    fn assign(&self, addr: u64, event: &EventFd) -> io::Result<()> {
        let inside = [MEM32, MEM64].iter().any(|(start, last)| (start..=last).contains(&&addr));
        assert!(inside, "a doorbell at {addr:#x}, outside of the windows");
        let old = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(addr, event.try_clone()?);
        assert!(old.is_none(), "two doorbells at {addr:#x}");
        Ok(())
    }

    fn deassign(&self, addr: u64, _event: &EventFd) -> io::Result<()> {
        let old = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&addr);
        assert!(old.is_some(), "no doorbell at {addr:#x} to take away");
        Ok(())
    }
}
