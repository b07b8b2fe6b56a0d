//! Descriptor chains as workers want them: all of it, checked, or a refusal.
//!
//! Serving half of a chain would be worse than refusing it, so a chain is read whole first: it must have at least one
//! descriptor, end with one that has no successor, put what the device reads before what it writes (virtio 1.3
//! 2.7.4.2), and lie in guest memory.
//!
//! Every chain is bounded: by the size of its queue in descriptors, those of an indirect table included, and by
//! [`MAX_BYTES`]. What a device takes of it is bounded by the device:
//!
//! | | |
//! |---|---|
//! | disk, data | 256 MiB, else an I/O error; segments of a discard 32, of write-zeroes 1 |
//! | entropy | 64 KiB, the rest is left as it is |
//! | card, sent | one frame of 64 KiB with its headers, else dropped and counted |
//! | card, received | what the longest frame needs |
//! | card, command | the longest command, 6 KiB, else refused |

use vm_memory::GuestAddress;

/// Bytes of a chain's buffers, at most (virtio 1.3 2.7.5.2). The same memory may be in it many times.
pub const MAX_BYTES: u64 = 1 << 32;

/// One buffer of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address; all of the buffer is in guest memory.
    pub addr: GuestAddress,
    /// Length in bytes.
    pub len: u32,
}

/// The buffers of one chain, kept between calls so that the data path allocates nothing.
#[derive(Debug, Default)]
pub struct Chain {
    /// The buffers that the device may read, in order.
    pub readable: Vec<Buffer>,
    /// The buffers that the device may write, in order.
    pub writable: Vec<Buffer>,
}

/// Why a chain is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadChain {
    /// It loops, is longer than the ring, names a descriptor that does not exist, or nests indirect tables.
    Broken,
    /// A descriptor the device may read follows one that it may write.
    ReadableAfterWritable,
    /// A buffer is not, or not wholly, in guest memory.
    OutsideMemory,
    /// Its buffers are more than [`MAX_BYTES`].
    TooLong,
}

impl BadChain {
    /// The reason as a phrase for logs.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Broken => "a descriptor chain is broken",
            Self::ReadableAfterWritable => "a readable descriptor follows a writable one",
            Self::OutsideMemory => "a buffer is outside of guest memory",
            Self::TooLong => "a descriptor chain is longer than 4 GiB",
        }
    }
}

impl Chain {
    /// Empties both parts; keeps their allocations.
    pub(super) fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u64 {
        self.readable.iter().map(|b| u64::from(b.len)).sum()
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        self.writable.iter().map(|b| u64::from(b.len)).sum()
    }
}
