//! A card whose port is a socket pair, driven by a driver on plain memory.

mod card;
mod carrier;
mod control;
mod draining;
mod impaired;
mod observed;
mod receive;
mod scaling;
mod transmit;

use super::*;
use crate::irq::fake::FakeVector;
use crate::virtio::device::Memory;
use crate::virtio::interrupt::Interrupts;
use crate::virtio::iovec::IoVecs;
use crate::virtio::threads::OwnThreads;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

/// Where buffers begin; queues lie below.
const BUFFERS: u64 = 0x4_0000;
const FRAME: &[u8] = b"\0\0\0\0\0\0\0\0\0\0\0\0ethernet header and some payload";

struct SocketPort {
    socket: UnixDatagram,
    attached: AtomicBool,
    header_len: AtomicUsize,
    /// Attempts to receive.
    reads: AtomicUsize,
}

impl SocketPort {
    fn new(socket: UnixDatagram) -> Self {
        let (attached, header_len, reads) = (AtomicBool::new(true), AtomicUsize::new(0), AtomicUsize::new(0));
        Self { socket, attached, header_len, reads }
    }
}

impl FramePort for SocketPort {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
    fn stays_readable(&self) -> bool {
        true
    }
    fn receive(&self, into: &mut IoVecs, spill: &mut [u8]) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        into.readv_spilling(self.socket.as_fd(), spill)
    }
    fn transmit(&self, frame: &IoVecs) -> io::Result<usize> {
        frame.write_whole(self.socket.as_fd())
    }
    fn probe_offloads(&self) -> Offloads {
        Offloads::CANDIDATES[0]
    }
    fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }
    fn set_attached(&self, attached: bool) -> io::Result<()> {
        self.attached.store(attached, Ordering::Relaxed);
        Ok(())
    }
    fn set_header_len(&self, bytes: usize) -> io::Result<()> {
        self.header_len.store(bytes, Ordering::Relaxed);
        Ok(())
    }
    fn set_steering(&self, _program: Option<BorrowedFd>) -> io::Result<()> {
        Ok(())
    }
}

/// A port and the wire at its other end, which gives up after 5 s.
fn port() -> (Arc<SocketPort>, UnixDatagram) {
    let (socket, wire) = UnixDatagram::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    wire.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (Arc::new(SocketPort::new(socket)), wire)
}

fn config() -> NetConfig {
    NetConfig {
        name: "net0".into(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        ring: 256,
        offloads: Offloads::ALL,
        link: Link::default(),
    }
}

/// A filter that lets everything in.
fn open() -> Arc<filter::Shared> {
    Arc::new(filter::Shared::new(Filter::new([2, 0, 0, 0, 0, 1], false)))
}

/// A gate that lets everything in.
fn gate() -> Gate {
    Gate { link: Link::default(), filter: open() }
}

fn frames(mergeable: bool) -> Frames {
    Frames { mergeable, longest: HEADER_LEN + MAX_FRAME, header_len: HEADER_LEN }
}

fn control(pairs: Vec<PairSwitch>, features: u64) -> Control {
    let mac = Arc::new(MacRegister::new([2, 0, 0, 0, 0, 1]));
    let limiter = Arc::new(Mutex::new(Limiter::new(Instant::now())));
    let (offloads, coalescing) = (Offloads::for_guest(features), Arc::default());
    let (receiving, steering, program) = (Arc::default(), None, filter::Switch::Off);
    Control {
        pairs,
        active: 1,
        features,
        filter: open(),
        mac,
        link: Link::default(),
        offloads,
        coalescing,
        limiter,
        receiving,
        steering,
        program,
    }
}

struct Driver {
    mem: Memory,
    interrupts: Arc<Interrupts>,
    counters: Arc<Counters>,
}

impl Driver {
    fn new() -> Self {
        let mem = Memory::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
        let interrupts = Arc::new(Interrupts::new(vec![Arc::new(FakeVector::default())], 3));
        Self { mem, interrupts, counters: Arc::default() }
    }

    fn ring(&self, mock: &MockSplitQueue<'_, Memory>) -> Ring {
        let active = ActiveQueue { idx: 0, queue: mock.create_queue().unwrap(), doorbell: EventFd::new(0).unwrap() };
        Ring::new(active, self.mem.clone(), self.interrupts.clone()).unwrap().0
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn count(&self, name: &str) -> u64 {
        self.counters.report(0, None).into_iter().find(|c| c.name == name).unwrap().value
    }
}

/// One-buffer chains of `len` bytes at [`BUFFERS`], 0x1000 apart.
fn chains(count: u16, len: u32, flags: u32) -> Vec<RawDescriptor> {
    let flags = u16::try_from(flags).unwrap();
    (0..u64::from(count)).map(|i| RawDescriptor::from(Descriptor::new(BUFFERS + i * 0x1000, len, flags, 0))).collect()
}

fn used(mock: &MockSplitQueue<'_, Memory>) -> Vec<u32> {
    (0..mock.used().idx().load()).map(|i| mock.used().ring().ref_at(i.into()).unwrap().load().len()).collect()
}

/// Sets up queue pair `idx` with one receive and one transmit buffer and returns its two queues.
fn active_pair(mem: &Memory, idx: u16) -> [(ActiveQueue, EventFd); 2] {
    let base = u64::from(idx) * 0x1_0000;
    [(2 * idx, 0, VRING_DESC_F_WRITE), (2 * idx + 1, 0x8000, 0)].map(|(queue_idx, offset, flags)| {
        let mock = MockSplitQueue::create(mem, GuestAddress(base + offset), 16);
        let addr = GuestAddress(BUFFERS + base + offset);
        let len = u32::try_from(FRAME.len()).unwrap();
        mem.write_slice(FRAME, addr).unwrap();
        let descriptor = Descriptor::new(addr.raw_value(), len, u16::try_from(flags).unwrap(), 0);
        mock.build_multiple_desc_chains(&[RawDescriptor::from(descriptor)]).unwrap();
        let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
        let queue = mock.create_queue().unwrap();
        (ActiveQueue { idx: queue_idx, queue, doorbell: doorbell.try_clone().unwrap() }, doorbell)
    })
}

/// A port that has no room for the first frame. It has room again at once, but its descriptor tells that only to who
/// asks anew.
struct FullOncePort {
    fd: EventFd,
    wire: SocketPort,
    refused: AtomicBool,
}

impl FramePort for FullOncePort {
    fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
    fn receive(&self, _into: &mut IoVecs, _spill: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
    fn transmit(&self, frame: &IoVecs) -> io::Result<usize> {
        if self.refused.swap(true, Ordering::Relaxed) {
            self.wire.transmit(frame)
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }
    fn probe_offloads(&self) -> Offloads {
        Offloads::NONE
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
    fn set_steering(&self, _program: Option<BorrowedFd>) -> io::Result<()> {
        Ok(())
    }
}

/// A detached port of an interface that takes no more queues.
struct DetachedPort(SocketPort);

impl FramePort for DetachedPort {
    fn fd(&self) -> RawFd {
        self.0.fd()
    }
    fn receive(&self, _into: &mut IoVecs, _spill: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(libc::EBADFD))
    }
    fn transmit(&self, _frame: &IoVecs) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(libc::EBADFD))
    }
    fn probe_offloads(&self) -> Offloads {
        Offloads::NONE
    }
    fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }
    fn set_attached(&self, attached: bool) -> io::Result<()> {
        if attached { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    }
    fn set_header_len(&self, bytes: usize) -> io::Result<()> {
        self.0.set_header_len(bytes)
    }
    fn set_steering(&self, program: Option<BorrowedFd>) -> io::Result<()> {
        self.0.set_steering(program)
    }
}

/// A running card of one pair on [`active_pair`]'s queues and the doorbell of each.
fn running(driver: &Driver, port: Arc<SocketPort>) -> (Net, [EventFd; 2]) {
    let mut net = Net::new(config(), vec![port]).unwrap();
    let [(rx, rx_doorbell), (tx, tx_doorbell)] = active_pair(&driver.mem, 0);
    let features = net.features() & !(bit(VIRTIO_NET_F_CTRL_VQ) | bit(VIRTIO_NET_F_HASH_REPORT));
    net.start(activation(driver, features, vec![rx, tx])).unwrap();
    (net, [rx_doorbell, tx_doorbell])
}

fn activation(driver: &Driver, features: u64, queues: Vec<ActiveQueue>) -> Activation {
    let (mem, interrupts) = (driver.mem.clone(), driver.interrupts.clone());
    Activation { mem, features, queues, interrupts, threads: Arc::new(OwnThreads) }
}

fn wait_until(condition: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(5), "The worker did not get there in time");
        std::thread::yield_now();
    }
}

fn count(net: &Net, name: &str) -> u64 {
    net.counters().into_iter().find(|c| c.name == name).unwrap().value
}

/// Sets up a control queue at 0xa_0000 with one chain for each of `commands`, whose answers of `room` bytes lie 0x100
/// apart at [`ANSWERS`].
fn commands(mem: &Memory, commands: &[&[u8]], room: u32) -> Queue {
    let mock = MockSplitQueue::create(mem, GuestAddress(0xa_0000), 16);
    let mut descriptors = Vec::new();
    for (i, command) in (0_u16..).zip(commands) {
        let (addr, len) = (ANSWERS + 0x1_0000 + u64::from(i) * 0x100, u32::try_from(command.len()).unwrap());
        mem.write_slice(command, GuestAddress(addr)).unwrap();
        let (next, write) = (u16::try_from(VRING_DESC_F_NEXT).unwrap(), u16::try_from(VRING_DESC_F_WRITE).unwrap());
        descriptors.push(Descriptor::new(addr, len, next, 3 * i + 1));
        let answer = ANSWERS + u64::from(i) * 0x100;
        mem.write_obj(0xff_u8, GuestAddress(answer + u64::from(room) - 1)).unwrap();
        // In two buffers, to be cut somewhere.
        let first = room / 2;
        descriptors.push(Descriptor::new(answer, first, next | write, 3 * i + 2));
        descriptors.push(Descriptor::new(answer + u64::from(first), room - first, write, 0));
    }
    let raw: Vec<_> = descriptors.into_iter().map(RawDescriptor::from).collect();
    mock.build_multiple_desc_chains(&raw).unwrap();
    mock.create_queue().unwrap()
}

const ANSWERS: u64 = 0xc_0000;
