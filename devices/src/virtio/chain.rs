//! Descriptor chains as workers want them: all of it, checked, or a refusal.
//!
//! The chain iterator of virtio-queue ends silently where a driver broke the chain. Serving half of a chain would be worse than
//! refusing it, so a chain is read whole first: it must have at least one descriptor, end with one that has no successor, put
//! what the device reads before what it writes (virtio 1.3 2.7.4.2), and lie in guest memory.

use crate::virtio::device::Memory;
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

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
    /// What the device may read, in order.
    pub readable: Vec<Buffer>,
    /// What the device may write, in order.
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
}

impl BadChain {
    /// The reason as a phrase for logs.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Broken => "a descriptor chain is broken",
            Self::ReadableAfterWritable => "a readable descriptor follows a writable one",
            Self::OutsideMemory => "a buffer is outside of guest memory",
        }
    }
}

impl Chain {
    /// Reads `chain` whole, replacing what was here. Empty buffers are dropped.
    ///
    /// # Errors
    /// If the chain breaks a rule; `self` is then of no use.
    pub fn read(&mut self, mem: &Memory, chain: DescriptorChain<&Memory>) -> Result<(), BadChain> {
        self.readable.clear();
        self.writable.clear();
        let mut last: Option<Descriptor> = None;
        for desc in chain {
            self.push(mem, desc)?;
            last = Some(desc);
        }
        match last {
            Some(desc) if !desc.has_next() => Ok(()),
            _ => Err(BadChain::Broken),
        }
    }

    fn push(&mut self, mem: &Memory, desc: Descriptor) -> Result<(), BadChain> {
        let buffer = Buffer { addr: desc.addr(), len: desc.len() };
        if !desc.is_write_only() && !self.writable.is_empty() {
            return Err(BadChain::ReadableAfterWritable);
        }
        if buffer.len == 0 {
            return Ok(());
        }
        let (len, access) = (buffer.len as usize, Permissions::ReadWrite);
        if !GuestMemory::check_range(mem, buffer.addr, len, access) {
            return Err(BadChain::OutsideMemory);
        }
        if desc.is_write_only() {
            self.writable.push(buffer)
        } else {
            self.readable.push(buffer)
        }
        Ok(())
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u64 {
        self.readable.iter().map(|b| u64::from(b.len)).sum()
    }

    /// Where byte `offset` of the writable part is; `None` past its end.
    pub fn writable_at(&self, offset: u32) -> Option<GuestAddress> {
        let mut skip = offset;
        for buffer in &self.writable {
            if skip < buffer.len {
                return Some(GuestAddress(buffer.addr.0 + u64::from(skip)));
            }
            skip -= buffer.len;
        }
        None
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        self.writable.iter().map(|b| u64::from(b.len)).sum()
    }
}
