//! The card's configuration space: `struct virtio_net_config` (virtio 1.3 5.1.4).

use crate::virtio::net::link::Link;
use crate::virtio::net::rss::{MAX_KEY_LEN, MAX_TABLE_LEN, supported_hash_types};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes of the structure up to and with `supported_hash_types`; what is behind them reads as zero. Drivers look only
/// at fields whose feature is offered.
const LEN: usize = 24;

/// The card's address, which the driver can change through the control queue unless it is fixed.
pub(super) struct MacRegister {
    mac: AtomicU64,
    fixed: AtomicBool,
}

impl MacRegister {
    /// A register that holds `mac`.
    pub(super) fn new(mac: [u8; 6]) -> Self {
        Self { mac: AtomicU64::new(pack(mac)), fixed: AtomicBool::new(false) }
    }

    /// Has the driver keep the address that it has. Relaxed, as below: called before there is a driver.
    pub(super) fn fix(&self) {
        self.fixed.store(true, Ordering::Relaxed);
    }

    /// Returns whether the driver may choose this address.
    pub(super) fn may_become(&self, mac: [u8; 6]) -> bool {
        mac == self.get() || !self.fixed.load(Ordering::Relaxed)
    }

    /// Changes the address. Relaxed: nothing else depends on it.
    pub(super) fn set(&self, mac: [u8; 6]) {
        self.mac.store(pack(mac), Ordering::Relaxed);
    }

    fn get(&self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.mac.load(Ordering::Relaxed).to_le_bytes();
        [a, b, c, d, e, f]
    }
}

fn pack([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// The card's configuration. A modern driver can write none of it.
pub(super) struct Config {
    mac: Arc<MacRegister>,
    link: Link,
    pairs: u16,
    mtu: u16,
}

impl Config {
    /// For a card with this address, link, number of queue pairs and MTU in bytes.
    pub(super) fn new(mac: Arc<MacRegister>, link: Link, pairs: u16, mtu: u16) -> Self {
        Self { mac, link, pairs, mtu }
    }

    /// Reads at any offset with any width.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let mut bytes = [0; LEN];
        bytes[..6].copy_from_slice(&self.mac.get());
        bytes[6..8].copy_from_slice(&self.link.status().to_le_bytes());
        bytes[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.mtu.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.link.speed().to_le_bytes());
        bytes[16] = self.link.duplex();
        bytes[17] = MAX_KEY_LEN;
        bytes[18..20].copy_from_slice(&MAX_TABLE_LEN.to_le_bytes());
        bytes[20..].copy_from_slice(&supported_hash_types().to_le_bytes());
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = start.checked_add(i).and_then(|at| bytes.get(at)).copied().unwrap_or(0);
        }
    }
}
