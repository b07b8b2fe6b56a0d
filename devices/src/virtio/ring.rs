//! A split virtqueue as a worker uses it: chains come out, used buffers go back in batches, notifications in both directions are
//! sent only when the other side wants them (virtio 1.3 2.7).
//!
//! The ring's addresses and indices live in virtio-queue's [`Queue`]. The used side is written here, because one frame that spans
//! several buffers must become visible at once: a driver that sees the first buffer expects the others.

use crate::virtio::chain::Chain;
use crate::virtio::device::{ActiveQueue, Memory};
use crate::virtio::interrupt::Interrupts;
use crate::virtio::worker::Fault;
use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// Offsets in the available and the used ring, and the size of a used element (virtio 1.3 2.7.6, 2.7.8).
const RING_HEADER: u64 = 4;
const IDX_OFFSET: u64 = 2;
const AVAIL_ELEMENT: u64 = 2;
const USED_ELEMENT: u64 = 8;

/// A virtqueue and the memory it lives in.
pub struct Ring {
    idx: u16,
    queue: Queue,
    mem: Memory,
    interrupts: Arc<Interrupts>,
    /// Used entries written since the last publication; the driver does not see them yet.
    staged: Wrapping<u16>,
    /// The used index when the driver was last considered for a notification.
    notified: Wrapping<u16>,
}

impl Ring {
    /// Takes over an activated queue.
    pub fn new(
        active: ActiveQueue,
        mem: Memory,
        interrupts: Arc<Interrupts>,
    ) -> (Self, vmm_sys_util::eventfd::EventFd) {
        let ring =
            Self { idx: active.idx, queue: active.queue, mem, interrupts, staged: Wrapping(0), notified: Wrapping(0) };
        (ring, active.doorbell)
    }

    /// The device's index of the queue.
    pub fn idx(&self) -> u16 {
        self.idx
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Guest memory.
    pub fn mem(&self) -> &Memory {
        &self.mem
    }

    /// Takes the next available chain: reads it into `chain` and returns the index of its head, or `None` if there is none.
    ///
    /// # Errors
    /// If the ring or the chain is broken. There is nothing to answer then: only a reset helps.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<Option<u16>, Fault> {
        let mut available = self
            .queue
            .iter(&self.mem)
            .map_err(|_| Fault::Guest { queue: self.idx, reason: "the available index is out of range" })?;
        let Some(descriptors) = available.next() else { return Ok(None) };
        let head = descriptors.head_index();
        match chain.read(&self.mem, descriptors) {
            // virtio 1.3 2.7.5.3.1: an indirect table is no way around the longest chain.
            Ok(()) if chain.readable.len() + chain.writable.len() > usize::from(self.queue.size()) => {
                Err(Fault::Guest { queue: self.idx, reason: "a descriptor chain is longer than the ring" })
            }
            Ok(()) => Ok(Some(head)),
            Err(bad) => Err(Fault::Guest { queue: self.idx, reason: bad.reason() }),
        }
    }

    /// Puts the chain with `head` into the used ring, with `len` bytes written to it. The driver sees it after
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    /// If the used ring is not in guest memory any more.
    pub fn push_used(&mut self, head: u16, len: u32) -> Result<(), Fault> {
        let slot = (Wrapping(self.queue.next_used()) + self.staged).0 % self.queue.size();
        let element = u64::from(head) | u64::from(len) << 32;
        let addr = self.used_addr(RING_HEADER + u64::from(slot) * USED_ELEMENT);
        self.mem.write_obj(element.to_le(), addr).map_err(|_| self.lost())?;
        self.staged += 1;
        Ok(())
    }

    /// Lets the driver see all entries pushed so far.
    ///
    /// # Errors
    /// If the used ring is not in guest memory any more.
    pub fn publish(&mut self) -> Result<(), Fault> {
        if self.staged.0 == 0 {
            return Ok(());
        }
        let next = Wrapping(self.queue.next_used()) + self.staged;
        self.queue.set_next_used(next.0);
        self.staged = Wrapping(0);
        // Release: the entries before the index. Pairs with the driver's read barrier.
        self.mem.store(next.0.to_le(), self.used_addr(IDX_OFFSET), Ordering::Release).map_err(|_| self.lost())
    }

    /// Publishes, and interrupts the driver if it asked for that (virtio 1.3 2.7.7).
    ///
    /// # Errors
    /// If the ring is not in guest memory any more.
    pub fn notify(&mut self) -> Result<(), Fault> {
        self.publish()?;
        let (old, new) = (self.notified, Wrapping(self.queue.next_used()));
        if old == new {
            return Ok(());
        }
        // The used index must be visible before the driver's wish is read, or both sides could go to sleep.
        fence(Ordering::SeqCst);
        self.notified = new;
        let wanted = if self.queue.event_idx_enabled() {
            let offset = RING_HEADER + u64::from(self.queue.size()) * AVAIL_ELEMENT;
            let event = Wrapping(self.load(self.avail_addr(offset))?);
            new - event - Wrapping(1) < new - old
        } else {
            u32::from(self.load(self.avail_addr(0))?) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            self.interrupts.signal_queue(self.idx);
        }
        Ok(())
    }

    /// Asks the driver not to notify. Only a hint: it may still do so.
    ///
    /// # Errors
    /// If the ring is not in guest memory any more.
    pub fn disable_doorbell(&mut self) -> Result<(), Fault> {
        self.queue.disable_notification(&self.mem).map_err(|_| self.lost())
    }

    /// Asks the driver to notify from now on. Returns whether something became available before it could see that.
    ///
    /// # Errors
    /// If the ring is not in guest memory any more.
    pub fn enable_doorbell(&mut self) -> Result<bool, Fault> {
        self.queue.enable_notification(&self.mem).map_err(|_| self.lost())
    }

    fn load(&self, addr: GuestAddress) -> Result<u16, Fault> {
        self.mem.load(addr, Ordering::Relaxed).map(u16::from_le).map_err(|_| self.lost())
    }

    fn lost(&self) -> Fault {
        Fault::Guest { queue: self.idx, reason: "the ring is not in guest memory" }
    }

    /// The transport checked that the rings lie in guest memory, so adding an offset within them does not wrap.
    fn used_addr(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.queue.used_ring().wrapping_add(offset))
    }

    fn avail_addr(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.queue.avail_ring().wrapping_add(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::fake::FakeVector;
    use crate::irq::{MsiMessage, MsiVector};
    use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::Address;
    use vmm_sys_util::eventfd::EventFd;

    struct Driver {
        mem: Memory,
        vector: Arc<FakeVector>,
        interrupts: Arc<Interrupts>,
    }

    impl Driver {
        fn new() -> Self {
            let mem = Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
            let vector = Arc::new(FakeVector::default());
            vector.route(Some(MsiMessage { address: 0, data: 0 })).unwrap();
            let interrupts = Arc::new(Interrupts::new(vec![vector.clone()], 1));
            interrupts.set_enabled(true);
            interrupts.set_queue_vector(0, 0);
            Self { mem, vector, interrupts }
        }

        /// A ring of 16 with `chains` one-buffer chains available.
        fn ring(&self, chains: u16, event_idx: bool) -> (Ring, MockSplitQueue<'_, Memory>) {
            let mock = MockSplitQueue::new(&self.mem, 16);
            let flags = u16::try_from(VRING_DESC_F_WRITE).unwrap();
            let descs: Vec<_> = (0..chains)
                .map(|i| RawDescriptor::from(Descriptor::new(0x8000 + u64::from(i) * 0x100, 0x100, flags, 0)))
                .collect();
            mock.build_multiple_desc_chains(&descs).unwrap();
            let mut queue: Queue = mock.create_queue().unwrap();
            queue.set_event_idx(event_idx);
            let active = ActiveQueue { idx: 0, queue, doorbell: EventFd::new(0).unwrap() };
            (Ring::new(active, self.mem.clone(), self.interrupts.clone()).0, mock)
        }
    }

    #[test]
    fn used_entries_become_visible_together() {
        let driver = Driver::new();
        let (mut ring, mock) = driver.ring(2, false);
        let mut chain = Chain::default();
        for len in [10, 20] {
            let head = ring.pop(&mut chain).unwrap().unwrap();
            ring.push_used(head, len).unwrap();
        }
        assert_eq!(mock.used().idx().load(), 0);
        ring.publish().unwrap();
        assert_eq!(mock.used().idx().load(), 2);
        let second = mock.used().ring().ref_at(1).unwrap().load();
        assert_eq!((second.id(), second.len()), (1, 20));
    }

    #[test]
    fn driver_is_interrupted_only_past_its_event_index() {
        let driver = Driver::new();
        let (mut ring, mock) = driver.ring(3, true);
        let mut chain = Chain::default();
        for interrupts in [0, 1, 1] {
            let head = ring.pop(&mut chain).unwrap().unwrap();
            ring.push_used(head, 0).unwrap();
            // The mock lets the used ring begin where used_event is, so it is written after the entry.
            driver.mem.write_obj(1_u16, mock.avail_addr().unchecked_add(4 + 2 * 16)).unwrap();
            ring.notify().unwrap();
            assert_eq!(driver.vector.delivered(), interrupts);
        }
        assert_eq!(ring.pop(&mut chain).unwrap(), None);
    }

    #[test]
    fn driver_that_wants_no_interrupts_gets_none() {
        let driver = Driver::new();
        let (mut ring, mock) = driver.ring(1, false);
        driver.mem.write_obj(1_u16, mock.avail_addr()).unwrap();
        let head = ring.pop(&mut Chain::default()).unwrap().unwrap();
        ring.push_used(head, 0).unwrap();
        ring.notify().unwrap();
        assert_eq!(driver.vector.delivered(), 0);
    }

    #[test]
    fn available_index_that_jumps_is_a_fault() {
        let driver = Driver::new();
        let (mut ring, mock) = driver.ring(1, false);
        mock.avail().idx().store(18);
        assert!(matches!(ring.pop(&mut Chain::default()), Err(Fault::Guest { queue: 0, .. })));
    }

    #[test]
    fn looping_chain_is_a_fault() {
        let driver = Driver::new();
        let (mut ring, mock) = driver.ring(1, false);
        let looping = RawDescriptor::from(Descriptor::new(0x8000, 0x10, 1, 0));
        mock.desc_table().store(0, looping).unwrap();
        assert!(matches!(ring.pop(&mut Chain::default()), Err(Fault::Guest { queue: 0, .. })));
    }
}
