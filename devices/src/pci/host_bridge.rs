//! The host bridge at 00:00.0: an identity for the root bus and nothing else.

use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::function::PciFunction;
use std::sync::{Mutex, PoisonError};

/// The generic PCIe host bridge which kernels know and need no driver for.
pub struct HostBridge(Mutex<ConfigSpace>);

impl HostBridge {
    /// A host bridge.
    pub fn new() -> Self {
        Self(Mutex::new(ConfigSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: [0x06, 0x00, 0x00],
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        })))
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
    }

    fn bar_size(&self) -> u64 {
        0
    }

    fn place_bar(&self, _address: u64) {}

    fn bar_address(&self) -> Option<u64> {
        None
    }

    fn remapped(&self, _address: Option<u64>) {}

    fn read_bar(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write_bar(&self, _offset: u64, _data: &[u8]) {}
}
