//! A card with a driver on plain memory and a port that costs nothing, served on the caller's thread.
//!
//! Descriptors and available rings are written once and used round and round, so that a burst is two stores of the
//! driver and the card's own work. Every receive buffer and every frame to send is a chain of one descriptor, or, for a
//! super-frame to send, of one for each page as Linux has them.
#![allow(clippy::expect_used, reason = "as in a test, nothing that fails here has anybody to handle it")]

use devices::virtio::device::{Activation, ActiveQueue, Device, Memory};
use devices::virtio::interrupt::Interrupts;
use devices::virtio::iovec::IoVecs;
use devices::virtio::net::{FramePort, Link, Net, NetConfig, Offloads};
use devices::virtio::threads::OwnThreads;
use devices::virtio::worker::inline::turn;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Frames of a burst.
pub(crate) const BURST: u16 = 64;
const SIZE: u16 = 256;
const MEM_BYTES: usize = 8 << 20;
const BUFFERS: u64 = 0x10_0000;
const PAGE: u32 = 4096;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const VIRTIO_HEADER: usize = 12;
/// Virtio, Ethernet, IP and TCP header.
const HEAD_BYTES: usize = 66;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// VERSION_1, EVENT_IDX, MRG_RXBUF, GUEST_TSO4, GUEST_CSUM.
const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 15 | 1 << 7 | 1 << 1;

/// A measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    /// Its name.
    pub(crate) name: &'static str,
    direction: Direction,
    /// Bytes of a frame with its virtio header.
    frame_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Rx = 0,
    Tx = 1,
}

/// Both directions with the smallest and the largest frames.
pub(crate) const CASES: [Case; 4] = [
    Case { name: "tx-64", direction: Direction::Tx, frame_bytes: 72 },
    Case { name: "tx-64K", direction: Direction::Tx, frame_bytes: 65226 },
    Case { name: "rx-64", direction: Direction::Rx, frame_bytes: 72 },
    Case { name: "rx-64K", direction: Direction::Rx, frame_bytes: 65226 },
];

/// A port that takes every frame and has as many as it is told to.
struct Port {
    event: EventFd,
    head: [u8; HEAD_BYTES],
    frame_bytes: usize,
    waiting: AtomicUsize,
}

impl FramePort for Port {
    fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    fn receive(&self, into: &mut IoVecs, _spill: &mut [u8]) -> io::Result<usize> {
        let waiting = self.waiting.load(Ordering::Relaxed);
        if waiting == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.waiting.store(waiting - 1, Ordering::Relaxed);
        // Only what the card may look at: the copy is the kernel's work.
        into.copy_in(0, &self.head);
        Ok(self.frame_bytes)
    }

    fn transmit(&self, frame: &IoVecs) -> io::Result<usize> {
        usize::try_from(frame.len_bytes()).map_err(io::Error::other)
    }

    fn probe_offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_attached(&self, _attached: bool) -> io::Result<()> {
        Ok(())
    }

    fn set_header_len(&self, _bytes: usize) -> io::Result<()> {
        Ok(())
    }

    fn set_steering(&self, _program: Option<BorrowedFd<'_>>) -> io::Result<()> {
        Ok(())
    }
}

/// The card and its driver.
pub(crate) struct Rig {
    case: Case,
    net: Net,
    mem: Memory,
    port: Arc<Port>,
    doorbell: EventFd,
    /// Descriptors of a chain.
    chain: u16,
    available: u16,
}

impl Rig {
    /// A started card for a case.
    pub(crate) fn new(case: Case) -> Self {
        let mem = Memory::from_ranges(&[(GuestAddress(0), MEM_BYTES)]).expect("memory");
        let mut head = [0; HEAD_BYTES];
        head[VIRTIO_HEADER..VIRTIO_HEADER + 6].copy_from_slice(&MAC);
        let port = Arc::new(Port {
            event: EventFd::new(EFD_NONBLOCK).expect("an event"),
            head,
            frame_bytes: case.frame_bytes,
            waiting: AtomicUsize::new(0),
        });
        let config = NetConfig {
            name: "bench0".to_owned(),
            mac: MAC,
            mtu: 1500,
            ring: SIZE,
            offloads: Offloads::ALL,
            link: Link::default(),
        };
        let net = Net::new(config, vec![port.clone()]).expect("a card");
        let doorbell = EventFd::new(EFD_NONBLOCK).expect("an event");
        let mut rig = Self { case, net, mem, port, doorbell, chain: 1, available: 0 };
        rig.chain = rig.describe();
        let other = EventFd::new(EFD_NONBLOCK).expect("an event");
        let queues = [Direction::Rx, Direction::Tx].map(|direction| {
            let doorbell = if direction == case.direction { &rig.doorbell } else { &other };
            ActiveQueue {
                idx: direction as u16,
                queue: queue(direction),
                doorbell: doorbell.try_clone().expect("an event"),
            }
        });
        let interrupts = Arc::new(Interrupts::new(Vec::new(), 2));
        let (mem, queues, threads) = (rig.mem.clone(), queues.into(), Arc::new(OwnThreads));
        let activation = Activation { mem, features: FEATURES, queues, interrupts, threads };
        rig.net.start(activation).expect("a start");
        while turn() > 0 {}
        rig
    }

    /// Hands the card a burst of frames and lets it work until there is nothing left to do.
    pub(crate) fn burst(&mut self) {
        let chains = match self.case.direction {
            Direction::Tx => BURST,
            Direction::Rx => {
                self.port.waiting.store(usize::from(BURST), Ordering::Relaxed);
                let buffers = u16::try_from(self.case.frame_bytes.div_ceil(PAGE as usize)).expect("a frame fits");
                let mut left = BURST * buffers;
                while left > SIZE {
                    self.offer(SIZE / buffers * buffers);
                    left -= SIZE / buffers * buffers;
                }
                left
            }
        };
        self.offer(chains);
        assert_eq!(self.port.waiting.load(Ordering::Relaxed), 0, "frames are left");
    }

    fn offer(&mut self, chains: u16) {
        let mut left = chains;
        while left > 0 {
            let some = left.min(SIZE / self.chain);
            self.available = self.available.wrapping_add(some);
            let area = area(self.case.direction);
            self.mem.write_obj(self.available, GuestAddress(area + 0x4002)).expect("memory");
            self.doorbell.write(1).expect("an event");
            while turn() > 0 {}
            let used: u16 = self.mem.read_obj(GuestAddress(area + 0x8002)).expect("memory");
            assert_eq!(used, self.available, "chains are left");
            left -= some;
        }
    }

    /// Writes all descriptors and the available ring. Returns how many descriptors a chain has.
    fn describe(&self) -> u16 {
        let area = area(self.case.direction);
        let (chain, len) = match (self.case.direction, self.case.frame_bytes) {
            (Direction::Rx, _) => (1, PAGE),
            (Direction::Tx, bytes) if bytes > PAGE as usize => (16, PAGE),
            (Direction::Tx, bytes) => (1, u32::try_from(bytes).expect("small")),
        };
        for idx in 0..SIZE {
            let last = (idx + 1) % chain == 0;
            let flags = match self.case.direction {
                Direction::Rx => WRITE,
                Direction::Tx if last => 0,
                Direction::Tx => NEXT,
            };
            let at = area + 16 * u64::from(idx);
            let write = |offset, bytes: &[u8]| self.mem.write_slice(bytes, GuestAddress(at + offset)).expect("memory");
            write(0, &(BUFFERS + u64::from(idx) * u64::from(PAGE)).to_le_bytes());
            write(8, &len.to_le_bytes());
            write(12, &flags.to_le_bytes());
            write(14, &(if last { 0 } else { idx + 1 }).to_le_bytes());
            let head = (idx * chain) % SIZE;
            self.mem.write_obj(head, GuestAddress(area + 0x4004 + 2 * u64::from(idx))).expect("memory");
        }
        chain
    }
}

/// Where a queue's rings are: descriptors, 0x4000 on the available ring, 0x8000 on the used ring.
fn area(direction: Direction) -> u64 {
    0x1_0000 * (1 + direction as u64)
}

fn queue(direction: Direction) -> Queue {
    let mut queue = Queue::new(SIZE).expect("a size");
    let low = |offset: u64| u32::try_from(area(direction) + offset).ok();
    queue.set_desc_table_address(low(0), Some(0));
    queue.set_avail_ring_address(low(0x4000), Some(0));
    queue.set_used_ring_address(low(0x8000), Some(0));
    queue.set_event_idx(true);
    queue.set_ready(true);
    queue
}
