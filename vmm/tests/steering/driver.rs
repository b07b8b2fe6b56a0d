//! The driver's side of a card on plain memory: receive queues with one buffer for each frame, and the control queue.
//!
//! ```text
//! queue i at i * 0x4000: descriptors, +0x2000 available ring, +0x3000 used ring   buffers of queue i at 16 MiB + i MiB
//! ```

use devices::virtio::device::{Activation, ActiveQueue, Counter, Device, Memory};
use devices::virtio::interrupt::Interrupts;
use devices::virtio::net::Net;
use devices::virtio::threads::OwnThreads;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const SIZE: u16 = 256;
const BUFFER: u64 = 2048;
const DEADLINE: Duration = Duration::from_secs(20);

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A frame as the driver gets it.
pub(crate) struct Arrived {
    /// Receive queue, by pair.
    pub(crate) queue: u16,
    /// The frame without its header.
    pub(crate) frame: Vec<u8>,
    /// Value and report, if hashes were negotiated.
    pub(crate) hash: Option<(u32, u16)>,
}

/// A driver of a card that runs.
pub(crate) struct Driver {
    mem: Memory,
    doorbells: Vec<EventFd>,
    /// Used entries seen, by queue.
    seen: Vec<u16>,
    pairs: u16,
    header: usize,
    commands: u16,
}

fn queue_at(idx: u16) -> u64 {
    u64::from(idx) * 0x4000 + 0x4000
}

fn buffer_at(idx: u16, head: u16) -> u64 {
    (16 << 20) + (u64::from(idx) << 20) + u64::from(head) * BUFFER
}

impl Driver {
    /// Starts `net` with these features and number of pairs.
    pub(crate) fn start(net: &mut Net, features: u64, pairs: u16) -> Self {
        assert_eq!(net.features() & features, features);
        let queues = pairs * 2 + 1;
        let mem = Memory::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
        let doorbells: Vec<_> = (0..queues).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        let header = if features & 1 << 57 == 0 { 12 } else { 20 };
        let driver = Self { mem, doorbells, seen: vec![0; queues.into()], pairs, header, commands: 0 };
        for idx in (0..pairs).map(|pair| pair * 2) {
            for head in 0..SIZE {
                driver.describe(idx, head, (buffer_at(idx, head), 2048, WRITE, 0));
                driver.offer(idx, head, head);
            }
        }
        let active = |idx: u16| ActiveQueue {
            idx,
            queue: driver.queue(idx),
            doorbell: driver.doorbells[usize::from(idx)].try_clone().unwrap(),
        };
        let interrupts = Arc::new(Interrupts::new(Vec::new(), queues.into()));
        let queues = (0..queues).map(active).collect();
        let (mem, threads) = (driver.mem.clone(), Arc::new(OwnThreads));
        net.start(Activation { mem, features, queues, interrupts, threads }).unwrap();
        driver
    }

    pub(crate) fn stop(self, net: &mut Net) {
        net.stop();
    }

    fn queue(&self, idx: u16) -> Queue {
        let base = queue_at(idx);
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(base)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(base + 0x2000)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(base + 0x3000)).unwrap();
        queue.set_ready(true);
        assert!(queue.is_valid(&self.mem));
        queue
    }

    fn describe(&self, idx: u16, head: u16, (addr, len, flags, next): (u64, u32, u16, u16)) {
        let at = queue_at(idx) + u64::from(head) * 16;
        self.mem.write_obj(addr, GuestAddress(at)).unwrap();
        self.mem.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.mem.write_obj(u32::from(flags) | u32::from(next) << 16, GuestAddress(at + 12)).unwrap();
    }

    /// Makes `head` the `count`th available chain.
    fn offer(&self, idx: u16, count: u16, head: u16) {
        let available = queue_at(idx) + 0x2000;
        self.mem.write_obj(head, GuestAddress(available + 4 + u64::from(count % SIZE) * 2)).unwrap();
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.mem.write_obj(count.wrapping_add(1), GuestAddress(available + 2)).unwrap();
    }

    /// The next used entry of a queue: head and length.
    fn used(&mut self, idx: u16) -> Option<(u16, usize)> {
        let used = queue_at(idx) + 0x3000;
        let seen = &mut self.seen[usize::from(idx)];
        let count: u16 = self.mem.load(GuestAddress(used + 2), std::sync::atomic::Ordering::Acquire).unwrap();
        if count == *seen {
            return None;
        }
        let at = used + 4 + u64::from(*seen % SIZE) * 8;
        *seen = seen.wrapping_add(1);
        let head: u32 = self.mem.read_obj(GuestAddress(at)).unwrap();
        let len: u32 = self.mem.read_obj(GuestAddress(at + 4)).unwrap();
        Some((head.try_into().unwrap(), len.try_into().unwrap()))
    }

    /// Waits for `count` frames on any queues, and makes sure that no more come with them.
    pub(crate) fn receive(&mut self, count: usize) -> Vec<Arrived> {
        let (mut arrived, start) = (Vec::new(), Instant::now());
        while arrived.len() < count {
            assert!(start.elapsed() < DEADLINE, "{} of {count} frames arrived", arrived.len());
            for pair in 0..self.pairs {
                while let Some((head, len)) = self.used(pair * 2) {
                    arrived.push(self.take(pair, head, len));
                }
            }
            std::thread::yield_now();
        }
        assert_eq!(arrived.len(), count);
        arrived
    }

    /// The frame in a used buffer, which goes back to the card.
    fn take(&mut self, pair: u16, head: u16, len: usize) -> Arrived {
        let idx = pair * 2;
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(buffer_at(idx, head))).unwrap();
        // What the card does not write must not look like a hash.
        self.mem.write_slice(&[0xa5; 64], GuestAddress(buffer_at(idx, head))).unwrap();
        self.offer(idx, self.seen[usize::from(idx)].wrapping_add(SIZE - 1), head);
        self.doorbells[usize::from(idx)].write(1).unwrap();
        assert_eq!(bytes[10..12], [1, 0], "num_buffers");
        let word = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().unwrap());
        let hash = (self.header == 20).then(|| (word(12), u16::try_from(word(16)).unwrap()));
        Arrived { queue: pair, frame: bytes[self.header..].to_vec(), hash }
    }

    /// Gives a command and returns the acknowledgement.
    pub(crate) fn command(&mut self, command: [u8; 2], data: &[u8]) -> u8 {
        let idx = self.pairs * 2;
        let (bytes, answer) = ([&command[..], data].concat(), buffer_at(idx, 1));
        self.mem.write_slice(&bytes, GuestAddress(buffer_at(idx, 0))).unwrap();
        self.mem.write_obj(0xff_u8, GuestAddress(answer)).unwrap();
        self.describe(idx, 0, (buffer_at(idx, 0), bytes.len().try_into().unwrap(), NEXT, 1));
        self.describe(idx, 1, (answer, 1, WRITE, 0));
        self.offer(idx, self.commands, 0);
        self.commands += 1;
        self.doorbells[usize::from(idx)].write(1).unwrap();
        let start = Instant::now();
        while self.used(idx).is_none() {
            assert!(start.elapsed() < DEADLINE, "The command is not answered");
            std::thread::yield_now();
        }
        self.mem.read_obj(GuestAddress(answer)).unwrap()
    }
}

/// The sum of a counter over all receive queues of the card.
pub(crate) fn count(net: &Net, name: &str) -> u64 {
    let of_queues = |counter: &&Counter| counter.name.starts_with("rx.") && counter.name.ends_with(name);
    net.counters().iter().filter(of_queues).map(|counter| counter.value).sum()
}

/// Waits until there is a frame to read.
pub(crate) fn wait_readable(fd: &OwnedFd) {
    let timeout = PollTimeout::try_from(DEADLINE).unwrap();
    assert_eq!(poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout).unwrap(), 1, "No frame arrives");
}
