//! The driver's side of a split virtqueue (virtio 1.3 2.7), by address only.
//!
//! It checks nothing it is asked to publish: the hostile checks use it to build every wrong ring there is.

use crate::{arena, cpu};

/// Descriptor flags (2.7.5).
pub(crate) mod flag {
    pub(crate) const NEXT: u16 = 1;
    pub(crate) const WRITE: u16 = 2;
    pub(crate) const INDIRECT: u16 = 4;
}

/// A used element.
#[derive(Clone, Copy)]
pub(crate) struct Used {
    /// Head of the returned chain.
    pub(crate) id: u32,
    /// Bytes the device wrote.
    pub(crate) len: u32,
}

/// One descriptor.
#[derive(Clone, Copy)]
pub(crate) struct Desc {
    /// Guest-physical address.
    pub(crate) address: u64,
    /// Bytes.
    pub(crate) len: u32,
    /// `flag`s.
    pub(crate) flags: u16,
    /// Next descriptor, with `flag::NEXT`.
    pub(crate) next: u16,
}

/// A ring in the arena.
pub(crate) struct Ring {
    /// Entries, a power of two.
    pub(crate) size: u16,
    /// Index of the queue it belongs to.
    pub(crate) queue: u16,
    /// Address of the descriptor table.
    pub(crate) desc: u64,
    /// Address of the available ring.
    pub(crate) avail: u64,
    /// Address of the used ring.
    pub(crate) used: u64,
    doorbell: u64,
    published: u16,
    seen: u16,
}

impl Ring {
    /// Takes zeroed memory for `size` entries.
    pub(crate) fn new(queue: u16, size: u16, doorbell: u64) -> Self {
        let entries = u64::from(size);
        let desc = arena::take(16 * entries, 4096);
        let avail = arena::take(6 + 2 * entries, 4096);
        let used = arena::take(6 + 8 * entries, 4096);
        Self { size, queue, desc, avail, used, doorbell, published: 0, seen: 0 }
    }

    /// The same queue in the memory of another.
    pub(crate) fn on(self, other: &Self) -> Self {
        Self { desc: other.desc, avail: other.avail, used: other.used, ..self }
    }

    /// Writes a descriptor of the table.
    pub(crate) fn describe(&self, idx: u16, desc: Desc) {
        write_desc(self.desc + 16 * u64::from(idx), desc);
    }

    /// Writes a chain of buffers (address, bytes, flags) into descriptors 0, 1, ..
    pub(crate) fn chain(&self, buffers: &[(u64, u32, u16)]) {
        for (idx, &(address, len, flags)) in (0u16..).zip(buffers) {
            let last = usize::from(idx) + 1 == buffers.len();
            let flags = if last { flags } else { flags | flag::NEXT };
            self.describe(idx, Desc { address, len, flags, next: if last { 0 } else { idx + 1 } });
        }
    }

    /// Makes a head available, without a notification.
    pub(crate) fn publish(&mut self, head: u16) {
        cpu::write16(self.avail + 4 + 2 * u64::from(self.published % self.size), head);
        cpu::fence();
        self.published = self.published.wrapping_add(1);
        cpu::write16(self.avail + 2, self.published);
        cpu::fence();
    }

    /// Moves the available index by any distance, without a notification.
    pub(crate) fn jump(&mut self, distance: u16) {
        self.published = self.published.wrapping_add(distance);
        cpu::write16(self.avail + 2, self.published);
        cpu::fence();
    }

    /// Begins anew in the same memory, whose indices are zero again.
    pub(crate) fn rewind(&mut self) {
        (self.published, self.seen) = (0, 0);
    }

    /// Notifies the device.
    pub(crate) fn kick(&self) {
        cpu::write16(self.doorbell, self.queue);
    }

    /// Takes the next used element, if there is one.
    pub(crate) fn take_used(&mut self) -> Option<Used> {
        cpu::fence();
        if cpu::read16(self.used + 2) == self.seen {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        Some(Used { id: cpu::read32(at), len: cpu::read32(at + 4) })
    }

    /// Waits for a used element.
    pub(crate) fn wait_used(&mut self, limit: u64) -> Option<Used> {
        let mut used = None;
        cpu::wait(limit, || {
            used = self.take_used();
            used.is_some()
        });
        used
    }
}

/// Writes a descriptor anywhere, as for an indirect table.
pub(crate) fn write_desc(at: u64, desc: Desc) {
    cpu::write64(at, desc.address);
    cpu::write32(at + 8, desc.len);
    cpu::write16(at + 12, desc.flags);
    cpu::write16(at + 14, desc.next);
}
