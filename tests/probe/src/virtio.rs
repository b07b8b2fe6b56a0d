//! A driver for virtio-pci devices that hides nothing: the structures' addresses are public, and every register is
//! reached by name or by plain address. Sections are of virtio 1.3.

pub(crate) mod msix;
pub(crate) mod ring;

use crate::pci::{self, Function, halves, reg};
use crate::report::Check;
use crate::{cpu, require};
use msix::Msix;
use ring::Ring;

const VENDOR: u16 = 0x1af4;
/// Device ids of the modern interface are this plus the device type (4.1.2.1).
const DEVICE_BASE: u16 = 0x1040;
const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;

/// Offsets in the common configuration structure (4.1.4.3).
pub(crate) mod common {
    pub(crate) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(crate) const DEVICE_FEATURE: u64 = 0x04;
    pub(crate) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(crate) const DRIVER_FEATURE: u64 = 0x0c;
    pub(crate) const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub(crate) const NUM_QUEUES: u64 = 0x12;
    pub(crate) const DEVICE_STATUS: u64 = 0x14;
    pub(crate) const CONFIG_GENERATION: u64 = 0x15;
    pub(crate) const QUEUE_SELECT: u64 = 0x16;
    pub(crate) const QUEUE_SIZE: u64 = 0x18;
    pub(crate) const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub(crate) const QUEUE_ENABLE: u64 = 0x1c;
    pub(crate) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub(crate) const QUEUE_DESC: u64 = 0x20;
    pub(crate) const QUEUE_DRIVER: u64 = 0x28;
    pub(crate) const QUEUE_DEVICE: u64 = 0x30;
    pub(crate) const QUEUE_RESET: u64 = 0x3a;
    /// Bytes up to the end of `queue_device`, the part every device has.
    pub(crate) const BYTES: u64 = 0x38;
}

/// Bits of `device_status` (2.1).
pub(crate) mod status {
    pub(crate) const ACKNOWLEDGE: u8 = 1;
    pub(crate) const DRIVER: u8 = 2;
    pub(crate) const DRIVER_OK: u8 = 4;
    pub(crate) const FEATURES_OK: u8 = 8;
    pub(crate) const NEEDS_RESET: u8 = 64;
    pub(crate) const FAILED: u8 = 128;
}

/// Feature bits that belong to no device type (6).
pub(crate) mod feature {
    pub(crate) const INDIRECT_DESC: u64 = 1 << 28;
    pub(crate) const VERSION_1: u64 = 1 << 32;
    pub(crate) const RING_RESET: u64 = 1 << 40;
}

/// `VIRTIO_MSI_NO_VECTOR`.
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// Device types (5).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// 1
    Net,
    /// 2
    Block,
    /// 4
    Entropy,
    /// A type without checks of its own.
    Other(u16),
}

impl Kind {
    /// The short name used in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Block => "blk",
            Self::Entropy => "rng",
            Self::Other(_) => "virtio",
        }
    }
}

/// One of the device's structures, located by a vendor capability (4.1.4).
#[derive(Clone, Copy, Default)]
pub(crate) struct Structure {
    /// Physical address now; changes when its BAR is moved.
    pub(crate) address: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// Index of its BAR.
    pub(crate) bar: u8,
    /// Offset in its BAR.
    pub(crate) offset: u32,
    /// Offset of the capability in configuration space, 0 if there is none.
    pub(crate) capability: u16,
}

/// A virtio device behind PCI.
#[derive(Clone, Copy)]
pub(crate) struct Device {
    /// Its PCI function.
    pub(crate) function: Function,
    /// Its type.
    pub(crate) kind: Kind,
    /// Common configuration.
    pub(crate) common: Structure,
    /// Notifications.
    pub(crate) notify: Structure,
    /// `notify_off_multiplier`.
    pub(crate) notify_multiplier: u32,
    /// Interrupt status.
    pub(crate) isr: Structure,
    /// Device-specific configuration.
    pub(crate) config: Structure,
    /// The window in configuration space: only `capability` means something.
    pub(crate) window: Structure,
    /// MSI-X table and pending bits.
    pub(crate) msix: Option<Msix>,
}

impl Device {
    /// Enables the function and locates its structures. `None`: not a modern virtio device.
    pub(crate) fn probe(function: Function) -> Option<Self> {
        let kind = match function.read16(reg::DEVICE).checked_sub(DEVICE_BASE)? {
            _ if function.read16(reg::VENDOR) != VENDOR => return None,
            1 => Kind::Net,
            2 => Kind::Block,
            4 => Kind::Entropy,
            other => Kind::Other(other),
        };
        pci::enable(function);
        let none = Structure::default();
        let mut device = Self {
            function,
            kind,
            common: none,
            notify: none,
            notify_multiplier: 0,
            isr: none,
            config: none,
            window: none,
            msix: None,
        };
        for (id, at) in function.capabilities() {
            if id == CAPABILITY_MSIX {
                device.msix = Some(Msix::locate(function, at));
            }
            if id != CAPABILITY_VENDOR {
                continue;
            }
            let structure = Structure::locate(function, at);
            // The first of each type is the preferred one (4.1.4.1).
            let slot = match function.read8(at + 3) {
                1 => &mut device.common,
                2 => &mut device.notify,
                3 => &mut device.isr,
                4 => &mut device.config,
                5 => &mut device.window,
                _ => continue,
            };
            if slot.capability == 0 {
                *slot = structure;
            }
        }
        if device.notify.capability != 0 {
            device.notify_multiplier = function.read32(device.notify.capability + 16);
        }
        (device.common.capability != 0).then_some(device)
    }

    /// The device where it is now: itself, unless its BAR has moved since it was located.
    pub(crate) fn located(self) -> Self {
        let base = self.function.bar_address(self.common.bar);
        if self.common.address == base + u64::from(self.common.offset) {
            return self;
        }
        Self::probe(self.function).unwrap_or(self)
    }

    /// Reads an 8-bit field of the common structure.
    pub(crate) fn get8(&self, field: u64) -> u8 {
        cpu::read8(self.common.address + field)
    }

    /// Writes an 8-bit field of the common structure.
    pub(crate) fn set8(&self, field: u64, value: u8) {
        cpu::write8(self.common.address + field, value);
    }

    /// Reads a 16-bit field of the common structure.
    pub(crate) fn get16(&self, field: u64) -> u16 {
        cpu::read16(self.common.address + field)
    }

    /// Writes a 16-bit field of the common structure.
    pub(crate) fn set16(&self, field: u64, value: u16) {
        cpu::write16(self.common.address + field, value);
    }

    /// Reads a 32-bit field of the common structure.
    pub(crate) fn get32(&self, field: u64) -> u32 {
        cpu::read32(self.common.address + field)
    }

    /// Writes a 32-bit field of the common structure.
    pub(crate) fn set32(&self, field: u64, value: u32) {
        cpu::write32(self.common.address + field, value);
    }

    /// Reads a 64-bit field by halves.
    pub(crate) fn get64(&self, field: u64) -> u64 {
        u64::from(self.get32(field)) | u64::from(self.get32(field + 4)) << 32
    }

    /// Writes a 64-bit field by halves (4.1.3.1).
    pub(crate) fn set64(&self, field: u64, value: u64) {
        let [low, high] = halves(value);
        self.set32(field, low);
        self.set32(field + 4, high);
    }

    /// `device_status`.
    pub(crate) fn status(&self) -> u8 {
        self.get8(common::DEVICE_STATUS)
    }

    /// Writes `device_status`.
    pub(crate) fn set_status(&self, value: u8) {
        self.set8(common::DEVICE_STATUS, value);
    }

    /// Resets the device and waits until it says so (4.1.4.3.2).
    pub(crate) fn reset(&self) -> Check {
        self.set_status(0);
        require!(
            cpu::wait(cpu::PATIENCE_TICKS, || self.status() == 0),
            "reset does not end, status {:#x}",
            self.status()
        );
        Ok(())
    }

    /// All offered features.
    pub(crate) fn offered(&self) -> u64 {
        [0, 1].into_iter().fold(0, |features, select| {
            self.set32(common::DEVICE_FEATURE_SELECT, select);
            features | u64::from(self.get32(common::DEVICE_FEATURE)) << (32 * select)
        })
    }

    /// Writes the accepted features.
    pub(crate) fn accept(&self, features: u64) {
        for (select, half) in (0..).zip(halves(features)) {
            self.set32(common::DRIVER_FEATURE_SELECT, select);
            self.set32(common::DRIVER_FEATURE, half);
        }
    }

    /// Resets and negotiates `VERSION_1` and whatever of `wanted` is offered. Ends in FEATURES_OK. Returns what was
    /// accepted.
    pub(crate) fn negotiate(&self, wanted: u64) -> Check<u64> {
        self.reset()?;
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        let features = self.offered() & wanted | feature::VERSION_1;
        self.accept(features);
        self.set_status(FEATURES_SET);
        require!(self.status() == FEATURES_SET, "FEATURES_OK refused for {features:#x}, status {:#x}", self.status());
        Ok(features)
    }

    /// Negotiates, sets up queue `queue` with a ring of at most `size` entries, and goes live.
    pub(crate) fn start(&self, wanted: u64, queue: u16, size: u16) -> Check<Ring> {
        self.negotiate(wanted)?;
        let ring = self.enable_queue(queue, size)?;
        self.go_live()?;
        Ok(ring)
    }

    /// Sets DRIVER_OK.
    pub(crate) fn go_live(&self) -> Check {
        self.set_status(LIVE);
        require!(self.status() == LIVE, "DRIVER_OK refused, status {:#x}", self.status());
        Ok(())
    }

    /// Gives queue `queue` a fresh ring of at most `size` entries.
    pub(crate) fn enable_queue(&self, queue: u16, size: u16) -> Check<Ring> {
        self.set16(common::QUEUE_SELECT, queue);
        let max = self.get16(common::QUEUE_SIZE);
        require!(max != 0, "queue {queue} does not exist");
        let ring = Ring::new(queue, size.min(max), self.doorbell(queue));
        self.enable_ring(&ring);
        require!(self.get16(common::QUEUE_ENABLE) == 1, "queue {queue} does not enable");
        Ok(ring)
    }

    /// Gives a queue an existing ring, without asking whether it took it.
    pub(crate) fn enable_ring(&self, ring: &Ring) {
        self.set16(common::QUEUE_SELECT, ring.queue);
        self.set16(common::QUEUE_SIZE, ring.size);
        self.set64(common::QUEUE_DESC, ring.desc);
        self.set64(common::QUEUE_DRIVER, ring.avail);
        self.set64(common::QUEUE_DEVICE, ring.used);
        self.set16(common::QUEUE_ENABLE, 1);
    }

    /// Resets a queue by itself and waits until the device says that it is done (4.1.4.3.2).
    pub(crate) fn reset_queue(&self, queue: u16) -> Check {
        self.set16(common::QUEUE_SELECT, queue);
        self.set16(common::QUEUE_RESET, 1);
        let done = || self.get16(common::QUEUE_RESET) == 0 && self.get16(common::QUEUE_ENABLE) == 0;
        require!(cpu::wait(cpu::PATIENCE_TICKS, done), "the reset of queue {queue} does not end");
        Ok(())
    }

    /// The notification address of a queue (4.1.4.4).
    pub(crate) fn doorbell(&self, queue: u16) -> u64 {
        self.set16(common::QUEUE_SELECT, queue);
        let offset = self.get16(common::QUEUE_NOTIFY_OFF);
        self.notify.address + u64::from(offset) * u64::from(self.notify_multiplier)
    }

    /// The largest ring of a queue after reset, 0 if the queue does not exist.
    pub(crate) fn queue_max(&self, queue: u16) -> u16 {
        self.set16(common::QUEUE_SELECT, queue);
        self.get16(common::QUEUE_SIZE)
    }

    /// Assigns a queue's messages to an MSI-X entry; returns what the device accepted.
    pub(crate) fn set_queue_vector(&self, queue: u16, entry: u16) -> u16 {
        self.set16(common::QUEUE_SELECT, queue);
        self.set16(common::QUEUE_MSIX_VECTOR, entry);
        self.get16(common::QUEUE_MSIX_VECTOR)
    }
}

/// Status with features negotiated.
pub(crate) const FEATURES_SET: u8 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
/// Status of a working device.
pub(crate) const LIVE: u8 = FEATURES_SET | status::DRIVER_OK;

impl Structure {
    fn locate(function: Function, capability: u16) -> Self {
        let bar = function.read8(capability + 4);
        let offset = function.read32(capability + 8);
        Self {
            address: function.bar_address(bar) + u64::from(offset),
            len: u64::from(function.read32(capability + 12)),
            bar,
            offset,
            capability,
        }
    }
}
