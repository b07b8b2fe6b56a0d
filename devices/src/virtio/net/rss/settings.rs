//! The driver's settings: `struct virtio_net_rss_config` and `struct virtio_net_hash_config` (virtio 1.3 5.1.6.5.6.4,
//! 5.1.6.5.7.1).

use super::dissect::{Input, Types};
use super::{MAX_KEY_LEN, MAX_TABLE_LEN, Toeplitz};

/// Which frames are hashed, and with what key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::virtio::net) struct HashSettings {
    pub(super) types: Types,
    pub(super) toeplitz: Toeplitz,
}

impl HashSettings {
    /// Reads `struct virtio_net_hash_config`. Its reserved bytes are not looked at: drivers up to Linux 6.1 leave a
    /// number of queues there. `None` if it is cut or asks for what was not offered.
    pub(in crate::virtio::net) fn parse(bytes: &[u8]) -> Option<Self> {
        let (types, rest) = bytes.split_first_chunk()?;
        let (_reserved, key) = rest.split_first_chunk::<8>()?;
        Self::new(*types, key)
    }

    /// From the hash types and a key with its length in front. Types without a key are refused. Bytes behind the key
    /// are not looked at: Linux pads the structure to an even size.
    fn new(types: [u8; 4], key: &[u8]) -> Option<Self> {
        let types = Types::from_bits(u32::from_le_bytes(types))?;
        let (&len, key) = key.split_first()?;
        let key = key.get(..len.into()).filter(|_| len <= MAX_KEY_LEN && (len > 0 || types == Types::NONE))?;
        Some(Self { types, toeplitz: Toeplitz::new(key) })
    }

    /// The hash of `frame`, from its Ethernet header on, and what it is reported as; `None` if it is of no type that is
    /// enabled.
    pub(super) fn hash(&self, frame: &[u8]) -> Option<(u32, u16)> {
        let input = Input::of(frame, self.types)?;
        Some((self.toeplitz.hash(input.bytes()), input.report))
    }
}

/// Which receive queue a hash leads to. Queues are numbered by pair: 3 is receiveq4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::virtio::net) struct Indirection {
    /// The queue of frames without a hash.
    unclassified: u16,
    /// A power of two of queues.
    table: Vec<u16>,
}

impl Indirection {
    /// The queue for a frame with this hash.
    pub(super) fn queue(&self, hash: Option<u32>) -> u16 {
        let idx = hash.and_then(|hash| usize::try_from(hash & self.mask()).ok());
        idx.and_then(|idx| self.table.get(idx)).copied().unwrap_or(self.unclassified)
    }

    /// The bits of a hash that are the index.
    pub(super) fn mask(&self) -> u32 {
        u32::try_from(self.table.len()).map_or(0, |len| len.wrapping_sub(1))
    }

    /// The queue of frames without a hash.
    pub(super) fn unclassified(&self) -> u16 {
        self.unclassified
    }

    /// The table.
    pub(super) fn table(&self) -> &[u16] {
        &self.table
    }
}

/// All of `struct virtio_net_rss_config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::virtio::net) struct RssSettings {
    /// Which frames are hashed.
    pub(in crate::virtio::net) hash: HashSettings,
    /// Where the hash leads.
    pub(super) indirection: Indirection,
    max_tx_vq: u16,
}

impl RssSettings {
    /// Reads `struct virtio_net_rss_config`. `None` if it is cut or breaks a rule that does not depend on the queues in
    /// use. A queue number whose reserved bit is set is a large number, which [`pairs`](Self::pairs) shows.
    pub(in crate::virtio::net) fn parse(bytes: &[u8]) -> Option<Self> {
        let (types, rest) = bytes.split_first_chunk()?;
        let (mask, rest) = rest.split_first_chunk()?;
        let (unclassified, rest) = rest.split_first_chunk()?;
        let len =
            u16::from_le_bytes(*mask).checked_add(1).filter(|len| len.is_power_of_two() && *len <= MAX_TABLE_LEN)?;
        let (table, rest) = rest.split_at_checked(usize::from(len) * 2)?;
        let (max_tx_vq, key) = rest.split_first_chunk()?;
        let max_tx_vq = Some(u16::from_le_bytes(*max_tx_vq)).filter(|count| *count > 0)?;
        let table = table.as_chunks().0.iter().map(|queue| u16::from_le_bytes(*queue)).collect();
        let indirection = Indirection { unclassified: u16::from_le_bytes(*unclassified), table };
        Some(Self { hash: HashSettings::new(*types, key)?, indirection, max_tx_vq })
    }

    /// The number of queue pairs that have to be in use.
    pub(in crate::virtio::net) fn pairs(&self) -> u16 {
        let queues = self.indirection.table.iter().chain([&self.indirection.unclassified]);
        queues.map(|queue| queue.saturating_add(1)).fold(self.max_tx_vq, u16::max)
    }
}
