//! The driver's side of one virtqueue on plain memory, for tests of devices.
//!
//! ```text
//! 0x1000 descriptor table   0x2000 available ring   0x3000 used ring   0x8000 up to MEM_BYTES: buffers
//! ```

use crate::irq::fake::FakeVector;
use crate::irq::{MsiMessage, MsiVector};
use crate::virtio::device::{Activation, ActiveQueue, Memory};
use crate::virtio::interrupt::Interrupts;
use crate::virtio::threads::OwnThreads;
use std::sync::Arc;
use std::time::{Duration, Instant};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) const QUEUE_SIZE: u16 = 256;
pub(crate) const MEM_BYTES: usize = 4 << 20;

const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// How long a test waits for a worker.
const DEADLINE: Duration = Duration::from_secs(10);

/// One descriptor as the driver writes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Desc {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Desc {
    pub(crate) fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: 0, next: 0 }
    }

    pub(crate) fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: WRITE, next: 0 }
    }
}

/// A driver with one queue.
pub(crate) struct TestDriver {
    pub(crate) mem: Memory,
    pub(crate) interrupts: Arc<Interrupts>,
    pub(crate) doorbell: EventFd,
    vector: Arc<FakeVector>,
    next_desc: u16,
    available: u16,
}

impl TestDriver {
    pub(crate) fn new() -> Self {
        let vector = Arc::new(FakeVector::default());
        vector.route(Some(MsiMessage { address: 0, data: 0 })).unwrap();
        let interrupts = Arc::new(Interrupts::new(vec![vector.clone()], 1));
        interrupts.set_enabled(true);
        interrupts.set_queue_vector(0, 0);
        Self {
            mem: Memory::from_ranges(&[(GuestAddress(0), MEM_BYTES)]).unwrap(),
            interrupts,
            doorbell: EventFd::new(EFD_NONBLOCK).unwrap(),
            vector,
            next_desc: 0,
            available: 0,
        }
    }

    /// Makes a chain of `descs` available, linked in order. Returns its head.
    pub(crate) fn add(&mut self, descs: &[Desc]) -> u32 {
        let head = self.next_desc;
        for (i, desc) in descs.iter().enumerate() {
            let is_last = i + 1 == descs.len();
            let next = (self.next_desc + 1) % QUEUE_SIZE;
            let flags = if is_last { desc.flags } else { desc.flags | NEXT };
            self.write_desc(self.next_desc, Desc { flags, next, ..*desc });
            self.next_desc = next;
        }
        self.offer(head);
        u32::from(head)
    }

    /// Writes one descriptor as it is.
    pub(crate) fn write_desc(&self, idx: u16, desc: Desc) {
        let at = TABLE + u64::from(idx) * 16;
        self.mem.write_obj(desc.addr, GuestAddress(at)).unwrap();
        self.mem.write_obj(desc.len, GuestAddress(at + 8)).unwrap();
        self.mem.write_obj(desc.flags, GuestAddress(at + 12)).unwrap();
        self.mem.write_obj(desc.next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes the chain with this head available.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = AVAILABLE + 4 + u64::from(self.available % QUEUE_SIZE) * 2;
        self.mem.write_obj(head, GuestAddress(slot)).unwrap();
        self.available += 1;
        self.mem.write_obj(self.available, GuestAddress(AVAILABLE + 2)).unwrap();
    }

    /// The used entries so far: head and length. Only for fewer than [`QUEUE_SIZE`] of them.
    pub(crate) fn used(&self) -> Vec<(u32, u32)> {
        let count: u16 = self.mem.read_obj(GuestAddress(USED + 2)).unwrap();
        (0..u64::from(count))
            .map(|i| GuestAddress(USED + 4 + i * 8))
            .map(|at| (self.mem.read_obj(at).unwrap(), self.mem.read_obj(GuestAddress(at.0 + 4)).unwrap()))
            .collect()
    }

    pub(crate) fn interrupts_seen(&self) -> u32 {
        self.vector.delivered()
    }

    /// The queue from its beginning, as the transport hands it over.
    pub(crate) fn activate(&self) -> (ActiveQueue, Memory, Arc<Interrupts>) {
        let mut queue = Queue::new(QUEUE_SIZE).unwrap();
        queue.set_desc_table_address(Some(0x1000), None);
        queue.set_avail_ring_address(Some(0x2000), None);
        queue.set_used_ring_address(Some(0x3000), None);
        queue.set_ready(true);
        assert!(queue.is_valid(&self.mem));
        let active = ActiveQueue { idx: 0, queue, doorbell: self.doorbell.try_clone().unwrap() };
        (active, self.mem.clone(), self.interrupts.clone())
    }

    /// The same as a whole activation.
    pub(crate) fn activation(&self, features: u64) -> Activation {
        let (active, mem, interrupts) = self.activate();
        Activation { mem, features, queues: vec![active], interrupts, threads: Arc::new(OwnThreads) }
    }

    /// Forgets what was in the rings, as a driver does after a reset.
    pub(crate) fn reset(&mut self) {
        self.mem.write_slice(&[0; 0x3000], GuestAddress(TABLE)).unwrap();
        (self.next_desc, self.available) = (0, 0);
    }

    /// Waits until a worker has reached `condition`.
    pub(crate) fn wait_until(&self, condition: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < DEADLINE, "The worker did not get there in time");
            std::thread::yield_now();
        }
    }

    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) {
        self.mem.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub(crate) fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }
}
