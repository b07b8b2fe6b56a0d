//! The card's configuration space: `struct virtio_net_config` (virtio 1.3 5.1.4).

/// Bytes of the structure up to and with `mtu`; the fields behind it belong to features that are not offered and read as zero.
const LEN: usize = 12;

/// What the driver can read about the card. Nothing in it can be written by a modern driver.
pub(super) struct Config([u8; LEN]);

impl Config {
    /// For a card with this address, number of queue pairs and MTU in bytes.
    pub(super) fn new(mac: [u8; 6], pairs: u16, mtu: u16) -> Self {
        let mut bytes = [0; LEN];
        bytes[..6].copy_from_slice(&mac);
        bytes[8..10].copy_from_slice(&pairs.to_le_bytes());
        bytes[10..].copy_from_slice(&mtu.to_le_bytes());
        Self(bytes)
    }

    /// Reads at any offset with any width.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = start.checked_add(i).and_then(|at| self.0.get(at)).copied().unwrap_or(0);
        }
    }
}
