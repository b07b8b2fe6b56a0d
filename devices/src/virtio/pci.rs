//! virtio over PCI (virtio 1.3 4.1): the registers of the transport as data, in one memory BAR.
//!
//! ```text
//!   BAR 0   0x0000  common configuration      0x3000  notifications, 4 bytes per queue
//!           0x1000  ISR status                0x8000  MSI-X table
//!           0x2000  device configuration      0x9000  MSI-X pending bits
//! ```
//!
//! Interrupts are messages (MSI-X), or the pin INTA# for a driver that leaves MSI-X off. Doorbells are attached to the
//! notification addresses once the device has run, as long as its BAR answers there; a notification that arrives
//! otherwise has the same effect.

mod common_cfg;

use crate::doorbell::Doorbells;
use crate::irq::{IntxPin, MsiVector};
use crate::pci::config::{COMMAND, ConfigSpace, Identity, STATUS, STATUS_INTERRUPT};
use crate::pci::function::PciFunction;
use crate::pci::msix::{self, Msix};
use crate::virtio::device::{Counter, Device, Kind, Memory};
use crate::virtio::interrupt::Interrupts;
use crate::virtio::threads::Threads;
use crate::virtio::transport::Transport;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait for a device's counters, and between two looks. A vCPU holds the lock for microseconds, unless the
/// device is reset.
const COUNTERS_PATIENCE: Duration = Duration::from_millis(20);
const COUNTERS_PAUSE: Duration = Duration::from_millis(1);

const BAR_SIZE: u64 = 0x1_0000;
const COMMON: Region = Region { start: 0x0000, len: common_cfg::LEN };
const ISR: Region = Region { start: 0x1000, len: 1 };
const DEVICE: Region = Region { start: 0x2000, len: 0x1000 };
const NOTIFY: Region = Region { start: 0x3000, len: 0x1000 };
const TABLE: Region = Region { start: 0x8000, len: 0x1000 };
const PENDING: Region = Region { start: 0x9000, len: 0x1000 };

/// Bytes between the notification addresses of two queues.
const NOTIFY_MULTIPLIER: u32 = 4;

/// The structure of a virtio capability: its `cfg_type` (virtio 1.3 4.1.4).
#[derive(Clone, Copy)]
#[repr(u8)]
enum Structure {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
    Window = 5,
}

/// The vendor-specific capability ID, which all virtio structures use.
const VENDOR_CAPABILITY: u8 = 0x09;

/// A part of the BAR.
#[derive(Clone, Copy)]
struct Region {
    start: u64,
    len: u64,
}

impl Region {
    fn offset(self, at: u64) -> Option<u64> {
        at.checked_sub(self.start).filter(|offset| *offset < self.len)
    }
}

/// The table has room for 256 vectors and the notification area for 1024 queues.
const MAX_QUEUES: usize = 255;

struct State {
    config: ConfigSpace,
    /// Offset of the MSI-X capability.
    msix_at: u16,
    /// Offset of the PCI configuration access capability, virtio 1.3 4.1.4.9.
    window_at: u16,
    msix: Msix,
    transport: Transport,
    /// Where the BAR answers now.
    mapped_at: Option<u64>,
    /// The BAR address for which doorbells are attached.
    doorbells_at: Option<u64>,
}

/// The ways from a device to the guest's processors and back.
pub struct Wiring {
    /// Its MSI-X vectors: one per queue and one for configuration changes.
    pub vectors: Vec<Arc<dyn MsiVector>>,
    /// Its interrupt pin.
    pub pin: Arc<dyn IntxPin>,
    /// How the driver wakes it.
    pub doorbells: Arc<dyn Doorbells>,
    /// Where its workers run.
    pub threads: Arc<dyn Threads>,
}

/// A virtio device in a PCI slot.
pub struct VirtioPci {
    state: Mutex<State>,
    interrupts: Arc<Interrupts>,
    doorbells: Arc<dyn Doorbells>,
}

impl VirtioPci {
    /// Puts `device` behind PCI registers.
    ///
    /// # Errors
    /// If the host has no eventfd left, or the device has more than 255 queues.
    pub fn new(device: Box<dyn Device>, mem: Memory, wiring: Wiring) -> io::Result<Arc<Self>> {
        let Wiring { vectors, pin, doorbells, threads } = wiring;
        let queues = device.queue_max_sizes().len();
        if queues > MAX_QUEUES || vectors.len() > MAX_QUEUES + 1 {
            return Err(io::Error::other(format!("a virtio device has at most {MAX_QUEUES} queues")));
        }
        let mut config = ConfigSpace::new(identity(device.kind()));
        config.add_bar(BAR_SIZE);
        config.add_pin(pin.line());
        let msix_at = add_msix(&mut config, vectors.len());
        add_structure(&mut config, Structure::Common, COMMON, &[]);
        add_structure(&mut config, Structure::Isr, ISR, &[]);
        add_structure(&mut config, Structure::Device, DEVICE, &[]);
        add_structure(&mut config, Structure::Notify, NOTIFY, &NOTIFY_MULTIPLIER.to_le_bytes());
        let window_at = add_window(&mut config);
        let msix = Msix::new(&vectors);
        let interrupts = Arc::new(Interrupts::new(vectors, queues).with_pin(pin));
        let transport = Transport::new(device, mem, interrupts.clone(), threads)?;
        let state = State { config, msix_at, window_at, msix, transport, mapped_at: None, doorbells_at: None };
        Ok(Arc::new(Self { state: Mutex::new(state), interrupts, doorbells }))
    }

    /// Stops the device for good: its workers are joined when this returns.
    pub fn shutdown(&self) {
        self.lock().transport.reset();
    }

    /// The device's counters. `None` if it stays busy for 20 ms: a driver that resets it waits for its workers,
    /// and the caller need not.
    pub fn counters(&self) -> Option<Vec<Counter>> {
        let end = Instant::now() + COUNTERS_PATIENCE;
        loop {
            match self.state.try_lock() {
                Ok(state) => return Some(state.transport.device().counters()),
                Err(TryLockError::Poisoned(state)) => return Some(state.into_inner().transport.device().counters()),
                Err(TryLockError::WouldBlock) if Instant::now() >= end => return None,
                Err(TryLockError::WouldBlock) => thread::sleep(COUNTERS_PAUSE),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_region(&self, state: &mut State, at: u64, data: &mut [u8]) {
        if let Some(offset) = COMMON.offset(at) {
            common_cfg::read(&state.transport, &self.interrupts, offset, data);
        } else if ISR.offset(at).is_some() {
            data.fill(0);
            data[0] = self.interrupts.take_isr();
        } else if let Some(offset) = DEVICE.offset(at) {
            state.transport.device().read_config(offset, data);
        } else if let Some(offset) = TABLE.offset(at) {
            state.msix.read_table(offset, data);
        } else if let Some(offset) = PENDING.offset(at) {
            state.msix.read_pba(offset, data);
        } else {
            data.fill(0);
        }
    }

    fn write_region(&self, state: &mut State, at: u64, data: &[u8]) {
        if let Some(offset) = COMMON.offset(at) {
            common_cfg::write(&mut state.transport, &self.interrupts, offset, data);
            if state.transport.status() == 0 {
                state.msix.clear_pending();
            }
            self.attach_doorbells(state);
        } else if let Some(offset) = DEVICE.offset(at) {
            state.transport.device_mut().write_config(offset, data);
        } else if let Some(offset) = NOTIFY.offset(at) {
            // The address names the queue; what is written repeats it (virtio 1.3 4.1.5.2).
            if let Ok(queue) = u16::try_from(offset / u64::from(NOTIFY_MULTIPLIER)) {
                state.transport.notify(queue);
            }
        } else if let Some(offset) = TABLE.offset(at) {
            state.msix.write_table(offset, data);
        }
    }

    /// Attaches doorbells where the running device's notifications are. A reset leaves them: detaching costs
    /// milliseconds, and a doorbell of a device that does not run is only forgotten.
    fn attach_doorbells(&self, state: &mut State) {
        let keep = state.transport.running() || state.doorbells_at.is_some();
        let wanted = state.mapped_at.filter(|_| keep);
        if wanted == state.doorbells_at {
            return;
        }
        if let Some(bar) = state.doorbells_at {
            for (address, event) in notify_addresses(bar).zip(state.transport.doorbells()) {
                if let Err(err) = self.doorbells.deassign(address, event) {
                    log::warn!("Cannot detach a doorbell: {err}");
                }
            }
        }
        if let Some(bar) = wanted {
            for (address, event) in notify_addresses(bar).zip(state.transport.doorbells()) {
                if let Err(err) = self.doorbells.assign(address, event) {
                    log::warn!("Cannot attach a doorbell, notifications go the slow way: {err}");
                }
            }
        }
        state.doorbells_at = wanted;
    }

    /// The BAR access that the configuration window describes, if it is a legal one: 1, 2 or 4 bytes, aligned, in BAR
    /// 0.
    fn window_access(state: &State) -> Option<(u64, usize)> {
        let mut bar = [0; 1];
        state.config.read(state.window_at + 4, &mut bar);
        let offset = u64::from(state.config.u32_at(state.window_at + 8));
        let len = u64::from(state.config.u32_at(state.window_at + 12));
        let legal = bar[0] == 0 && matches!(len, 1 | 2 | 4) && offset % len == 0 && offset < BAR_SIZE;
        legal.then_some((offset, usize::try_from(len).ok()?))
    }
}

fn notify_addresses(bar: u64) -> impl Iterator<Item = u64> {
    (0..).map(move |queue| bar + NOTIFY.start + queue * u64::from(NOTIFY_MULTIPLIER))
}

fn identity(kind: Kind) -> Identity {
    let device = 0x1040 + kind as u16;
    let class = match kind {
        Kind::Net => [0x02, 0x00, 0x00],
        Kind::Block => [0x01, 0x80, 0x00],
        Kind::Entropy => [0xff, 0x00, 0x00],
    };
    // Revision 1 and up: not transitional (virtio 1.3 4.1.2.1).
    Identity { vendor: 0x1af4, device, revision: 1, class, subsystem_vendor: 0x1af4, subsystem: device }
}

fn add_msix(config: &mut ConfigSpace, vectors: usize) -> u16 {
    let last = u16::try_from(vectors.saturating_sub(1)).unwrap_or(u16::MAX);
    let mut body = [0; 10];
    body[..2].copy_from_slice(&last.to_le_bytes());
    body[2..6].copy_from_slice(&bar0_offset(TABLE).to_le_bytes());
    body[6..].copy_from_slice(&bar0_offset(PENDING).to_le_bytes());
    config.add_capability(msix::CAPABILITY, &body, &msix::CONTROL_WRITABLE)
}

/// A virtio structure in BAR 0 (virtio 1.3 4.1.4).
fn add_structure(config: &mut ConfigSpace, kind: Structure, region: Region, extra: &[u8]) {
    let len = u32::try_from(region.len).unwrap_or(u32::MAX);
    let mut body = vec![structure_len(extra), kind as u8, 0, 0, 0, 0];
    body.extend(bar0_offset(region).to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(extra);
    config.add_capability(VENDOR_CAPABILITY, &body, &[]);
}

/// The window through which BAR 0 can be reached without mapping it: bar, offset, length and data are the guest's to
/// write.
fn add_window(config: &mut ConfigSpace) -> u16 {
    let mut body = vec![structure_len(&[0; 4]), Structure::Window as u8];
    body.resize(18, 0);
    let mut writable = [0xff; 18];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    config.add_capability(VENDOR_CAPABILITY, &body, &writable)
}

/// Length of a virtio capability: 16 bytes and what follows.
fn structure_len(extra: &[u8]) -> u8 {
    16 + u8::try_from(extra.len()).unwrap_or(0)
}

/// A BAR 0 offset as capabilities carry it; the lower three bits of MSI-X offsets name the BAR.
fn bar0_offset(region: Region) -> u32 {
    u32::try_from(region.start).unwrap_or(u32::MAX)
}

impl PciFunction for VirtioPci {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let mut state = self.lock();
        if offset == state.window_at + 16
            && let Some((at, len)) = Self::window_access(&state)
        {
            let mut value = [0; 4];
            self.read_region(&mut state, at, &mut value[..len]);
            state.config.write(offset, &value);
        }
        state.config.read(offset, data);
        let status = STATUS.checked_sub(offset).and_then(|at| data.get_mut(usize::from(at)));
        if let Some(status) = status
            && self.interrupts.wants_pin()
        {
            *status |= STATUS_INTERRUPT;
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut state = self.lock();
        let was_master = state.config.bus_master();
        state.config.write(offset, data);
        if was_master && !state.config.bus_master() {
            // A kernel that hands over to another (kexec) does this to be sure of its memory (PCI 3.0 6.2.2).
            state.transport.halt();
        }
        if offset == state.window_at + 16
            && let Some((at, len)) = Self::window_access(&state)
        {
            let value = state.config.u32_at(offset).to_le_bytes();
            self.write_region(&mut state, at, &value[..len]);
        }
        let control = state.config.u16_at(state.msix_at + 2);
        state.msix.set_control(control);
        if state.msix.enabled() != self.interrupts.is_enabled() {
            self.interrupts.set_enabled(state.msix.enabled());
            state.transport.interrupts_moved();
        }
        self.interrupts.follow_command(state.config.u16_at(COMMAND));
    }

    fn bar_size(&self) -> u64 {
        BAR_SIZE
    }

    fn place_bar(&self, address: u64) {
        self.lock().config.place_bar(address);
    }

    fn bar_address(&self) -> Option<u64> {
        let state = self.lock();
        state.config.memory_enabled().then(|| state.config.bar_address())
    }

    fn remapped(&self, address: Option<u64>) {
        let mut state = self.lock();
        state.mapped_at = address;
        self.attach_doorbells(&mut state);
    }

    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        self.read_region(&mut self.lock(), offset, data);
    }

    fn write_bar(&self, offset: u64, data: &[u8]) {
        self.write_region(&mut self.lock(), offset, data);
    }
}

#[cfg(test)]
mod tests;
