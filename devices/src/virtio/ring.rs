//! A split virtqueue as a worker uses it: chains come out, used buffers go back in batches, notifications in both
//! directions are sent only when the other side wants them (virtio 1.3 2.7).
//!
//! Used buffers become visible together when they are published, because one frame may span several of them: a driver
//! that sees the first buffer expects the others.

use crate::virtio::chain::Chain;
use crate::virtio::device::{ActiveQueue, Memory, StartError};
use crate::virtio::host_map::HostMap;
use crate::virtio::interrupt::Interrupts;
use crate::virtio::split::SplitQueue;
use crate::virtio::worker::Fault;
use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

/// A virtqueue and the memory it lives in.
pub struct Ring {
    idx: u16,
    queue: SplitQueue,
    event_idx: bool,
    interrupts: Arc<Interrupts>,
    /// The next element of the available ring to take, and the driver's index as it was last seen.
    next_avail: Wrapping<u16>,
    seen_avail: Wrapping<u16>,
    /// The next element of the used ring to write, and the index that the driver has been shown.
    next_used: Wrapping<u16>,
    published: Wrapping<u16>,
    /// The used index when the driver was last considered for a notification.
    notified: Wrapping<u16>,
}

impl Ring {
    /// Takes over an activated queue.
    ///
    /// # Errors
    /// If its rings are not in guest memory, which the transport has checked.
    pub fn new(active: ActiveQueue, mem: Memory, interrupts: Arc<Interrupts>) -> Result<(Self, EventFd), StartError> {
        let ActiveQueue { idx, queue, doorbell } = active;
        let ring = Self {
            idx,
            event_idx: queue.event_idx_enabled(),
            next_avail: Wrapping(queue.next_avail()),
            seen_avail: Wrapping(queue.next_avail()),
            next_used: Wrapping(queue.next_used()),
            published: Wrapping(queue.next_used()),
            notified: Wrapping(queue.next_used()),
            queue: SplitQueue::new(&queue, HostMap::new(mem)).ok_or(StartError::MissingQueue(idx))?,
            interrupts,
        };
        Ok((ring, doorbell))
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
        self.queue.map().mem()
    }

    /// Returns whether something is available.
    ///
    /// # Errors
    /// If the driver's index is further ahead than the ring is long.
    pub fn has_available(&mut self) -> Result<bool, Fault> {
        if self.next_avail == self.seen_avail {
            let idx = Wrapping(self.queue.avail_idx());
            if (idx - self.next_avail).0 > self.queue.size() {
                return Err(Fault::Guest { queue: self.idx, reason: "the available index is out of range" });
            }
            self.seen_avail = idx;
        }
        Ok(self.next_avail != self.seen_avail)
    }

    /// Takes the next available chain: reads it into `chain` and returns the index of its head, or `None` if there is
    /// none.
    ///
    /// # Errors
    /// If the ring or the chain is broken. There is nothing to answer then: only a reset helps.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<Option<u16>, Fault> {
        if !self.has_available()? {
            return Ok(None);
        }
        let head = self.queue.avail_head(self.next_avail.0);
        self.next_avail += 1;
        match self.queue.read_chain(head, chain) {
            Ok(()) => Ok(Some(head)),
            Err(bad) => Err(Fault::Guest { queue: self.idx, reason: bad.reason() }),
        }
    }

    /// Puts the chain that was popped last back, to be popped again.
    pub fn put_back(&mut self) {
        self.next_avail -= 1;
    }

    /// Puts the chain with `head` into the used ring, with `len` bytes written to it. The driver sees it after
    /// [`publish`](Self::publish).
    pub fn push_used(&mut self, head: u16, len: u32) {
        self.queue.set_used(self.next_used.0, head, len);
        self.next_used += 1;
    }

    /// Lets the driver see all entries pushed so far.
    pub fn publish(&mut self) {
        if self.published != self.next_used {
            self.queue.set_used_idx(self.next_used.0);
            self.published = self.next_used;
        }
    }

    /// Publishes, and interrupts the driver if it asked for that (virtio 1.3 2.7.7).
    pub fn notify(&mut self) {
        self.publish();
        if self.interrupt_is_wanted() {
            self.interrupt();
        }
    }

    /// Returns whether the driver wants to be interrupted for what was published since it was last considered. If not,
    /// this counts as considered.
    pub fn interrupt_is_wanted(&mut self) -> bool {
        let (old, new) = (self.notified, self.published);
        if old == new {
            return false;
        }
        // The used index must be visible before the driver's wish is read, or both sides could go to sleep.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            new - Wrapping(self.queue.used_event()) - Wrapping(1) < new - old
        } else {
            u32::from(self.queue.avail_flags()) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if !wanted {
            self.notified = new;
            self.interrupts.spare_queue(self.idx);
        }
        wanted
    }

    /// Interrupts the driver.
    pub fn interrupt(&mut self) {
        self.notified = self.published;
        self.interrupts.signal_queue(self.idx);
    }

    /// Used buffers that are published and for which the driver has not been considered yet.
    pub fn unannounced(&self) -> u16 {
        (self.published - self.notified).0
    }

    /// Asks the driver not to notify. Only a hint: it may still do so. With EVENT_IDX nothing has to be done: the
    /// driver notifies at one index only, which it passes.
    pub fn disable_doorbell(&mut self) {
        if !self.event_idx {
            self.queue.set_used_flags(NO_NOTIFY);
        }
    }

    /// Asks the driver not to notify, for a while in which the ring is looked at: with EVENT_IDX by an index that the
    /// driver has passed.
    pub fn silence_doorbell(&mut self) {
        if self.event_idx {
            self.queue.set_avail_event((self.next_avail - Wrapping(1)).0);
        } else {
            self.disable_doorbell();
        }
    }

    /// Asks the driver to notify from now on. Returns whether something became available before it could see that.
    ///
    /// # Errors
    /// If the driver's index is further ahead than the ring is long.
    pub fn enable_doorbell(&mut self) -> Result<bool, Fault> {
        if self.event_idx {
            self.queue.set_avail_event(self.next_avail.0);
        } else {
            self.queue.set_used_flags(0);
        }
        // The wish must be visible before the driver's index is read, or both sides could go to sleep.
        fence(Ordering::SeqCst);
        self.has_available()
    }
}

/// The flag as the field it is in.
#[expect(clippy::cast_possible_truncation, reason = "the constant is 1")]
const NO_NOTIFY: u16 = VRING_USED_F_NO_NOTIFY as u16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::fake::FakeVector;
    use crate::irq::{MsiMessage, MsiVector};
    use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
    use virtio_queue::Queue;
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Address, Bytes, GuestAddress};

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
            (Ring::new(active, self.mem.clone(), self.interrupts.clone()).unwrap().0, mock)
        }
    }

    #[test]
    fn used_entries_become_visible_together() {
        let driver = Driver::new();
        let (mut ring, mock) = driver.ring(2, false);
        let mut chain = Chain::default();
        for len in [10, 20] {
            let head = ring.pop(&mut chain).unwrap().unwrap();
            ring.push_used(head, len);
        }
        assert_eq!(mock.used().idx().load(), 0);
        ring.publish();
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
            ring.push_used(head, 0);
            // The mock lets the used ring begin where used_event is, so it is written after the entry.
            driver.mem.write_obj(1_u16, mock.avail_addr().unchecked_add(4 + 2 * 16)).unwrap();
            ring.notify();
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
        ring.push_used(head, 0);
        ring.notify();
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
