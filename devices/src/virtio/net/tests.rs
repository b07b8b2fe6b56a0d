//! A card whose port is a socket pair, driven by a driver on plain memory.

mod departing;
mod scaling;

use super::*;
use crate::irq::fake::FakeVector;
use crate::virtio::device::Memory;
use crate::virtio::interrupt::Interrupts;
use crate::virtio::iovec::IoVecs;
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
}

impl FramePort for SocketPort {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
    fn receive(&self, into: &mut IoVecs, spill: &mut [u8]) -> io::Result<usize> {
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
    (Arc::new(SocketPort { socket, attached: AtomicBool::new(true), header_len: AtomicUsize::new(0) }), wire)
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

#[test]
fn frame_spans_as_many_buffers_as_it_needs() {
    let (driver, (port, wire)) = (Driver::new(), port());
    let mock = MockSplitQueue::new(&driver.mem, 16);
    mock.build_multiple_desc_chains(&chains(4, 20, VRING_DESC_F_WRITE)).unwrap();
    let mut rx = Rx::new(driver.ring(&mock), port, driver.counters.clone(), gate(), frames(true));

    wire.send(FRAME).unwrap();
    wire.send(&FRAME[..18]).unwrap();
    assert_eq!(rx.receive().unwrap(), Turn::Done);

    assert_eq!(used(&mock), [20, 20, 4, 18]);
    assert_eq!(driver.bytes(BUFFERS + 10, 2), [3, 0]);
    assert_eq!(driver.bytes(BUFFERS + 12, 8), FRAME[12..20]);
    assert_eq!(driver.bytes(BUFFERS + 0x2000, 4), FRAME[40..]);
    assert_eq!(driver.bytes(BUFFERS + 0x3000 + 10, 2), [1, 0]);
    assert_eq!(driver.count("rx.0.bytes"), 32 + 6);
}

#[test]
fn frame_waits_for_buffers_and_nothing_is_lost() {
    let (driver, (port, wire)) = (Driver::new(), port());
    let mock = MockSplitQueue::new(&driver.mem, 16);
    mock.add_desc_chains(&chains(1, 20, VRING_DESC_F_WRITE), 0).unwrap();
    let mut rx = Rx::new(driver.ring(&mock), port, driver.counters.clone(), gate(), frames(true));

    wire.send(FRAME).unwrap();
    rx.receive().unwrap();
    assert!(used(&mock).is_empty());

    let more: Vec<_> = chains(3, 20, VRING_DESC_F_WRITE).split_off(1);
    mock.add_desc_chains(&more, 1).unwrap();
    rx.receive().unwrap();
    assert_eq!(used(&mock), [20, 20, 4]);
    assert_eq!(driver.bytes(BUFFERS + 0x1000, 20), FRAME[20..40]);
    assert_eq!(driver.bytes(BUFFERS + 0x2000, 4), FRAME[40..]);
}

#[test]
fn frame_that_the_whole_ring_cannot_take_is_dropped() {
    for (mergeable, half) in [(false, 4), (true, 2)] {
        let (driver, (port, wire)) = (Driver::new(), port());
        let mock = MockSplitQueue::new(&driver.mem, 2 * half);
        mock.build_multiple_desc_chains(&chains(2 * half, 20, VRING_DESC_F_WRITE)).unwrap();
        let mut rx = Rx::new(driver.ring(&mock), port, driver.counters.clone(), gate(), frames(mergeable));

        wire.send(&[0; 200]).unwrap();
        wire.send(&FRAME[..18]).unwrap();
        rx.receive().unwrap();

        assert_eq!(used(&mock), [18], "mergeable {mergeable}");
        assert_eq!(driver.count("rx.0.too_long"), 1);
    }
}

#[test]
fn frame_that_two_buffer_chains_cannot_take_does_not_block_the_next() {
    let (driver, (port, wire)) = (Driver::new(), port());
    let mock = MockSplitQueue::new(&driver.mem, 4);
    let linked = u16::try_from(VRING_DESC_F_NEXT | VRING_DESC_F_WRITE).unwrap();
    let last = u16::try_from(VRING_DESC_F_WRITE).unwrap();
    let descriptor = |i: u16, flags| Descriptor::new(BUFFERS + u64::from(i) * 0x1000, 20, flags, i + 1);
    let descriptors = [descriptor(0, linked), descriptor(1, last), descriptor(2, linked), descriptor(3, last)];
    mock.build_multiple_desc_chains(&descriptors.map(RawDescriptor::from)).unwrap();
    let mut rx = Rx::new(driver.ring(&mock), port, driver.counters.clone(), gate(), frames(true));

    wire.send(&[0; 200]).unwrap();
    wire.send(&FRAME[..18]).unwrap();
    rx.receive().unwrap();

    assert_eq!(used(&mock), [18]);
    assert_eq!(driver.count("rx.0.too_long"), 1);
}

/// The used ring of a [`large_ring`].
const LARGE_USED: GuestAddress = GuestAddress(0x2_0000);

/// A ring of 4096 with these one-buffer chains available; the mock's rings overlap at that size.
fn large_ring(driver: &Driver, descriptors: &[RawDescriptor]) -> Ring {
    let (table, avail) = (GuestAddress(0), GuestAddress(0x1_8000));
    let mut queue = Queue::new(4096).unwrap();
    queue.try_set_desc_table_address(table).unwrap();
    queue.try_set_avail_ring_address(avail).unwrap();
    queue.try_set_used_ring_address(LARGE_USED).unwrap();
    queue.set_ready(true);
    let count = u16::try_from(descriptors.len()).unwrap();
    for (i, descriptor) in (0..count).zip(descriptors) {
        driver.mem.write_obj(*descriptor, table.unchecked_add(u64::from(i) * 16)).unwrap();
        driver.mem.write_obj(i, avail.unchecked_add(4 + u64::from(i) * 2)).unwrap();
    }
    driver.mem.write_obj(count, avail.unchecked_add(2)).unwrap();
    let active = ActiveQueue { idx: 0, queue, doorbell: EventFd::new(0).unwrap() };
    Ring::new(active, driver.mem.clone(), driver.interrupts.clone()).unwrap().0
}

/// One-buffer chains of `len` bytes, one behind the other.
fn shreds(count: u16, len: u32) -> Vec<RawDescriptor> {
    let flags = u16::try_from(VRING_DESC_F_WRITE).unwrap();
    let shred = |i| Descriptor::new(BUFFERS + i * u64::from(len), len, flags, 0);
    (0..u64::from(count)).map(|i| RawDescriptor::from(shred(i))).collect()
}

#[test]
fn long_frame_spans_more_buffers_than_one_read_takes() {
    let (driver, (port, wire)) = (Driver::new(), port());
    let ring = large_ring(&driver, &shreds(4096, 20));
    let mut rx = Rx::new(ring, port, driver.counters.clone(), gate(), frames(true));
    let long: Vec<u8> = (0..60_000_u32).map(|i| i.to_le_bytes()[0]).collect();

    wire.send(&long).unwrap();
    wire.send(&FRAME[..18]).unwrap();
    assert_eq!(rx.receive().unwrap(), Turn::Done);

    let used: u16 = driver.mem.read_obj(LARGE_USED.unchecked_add(2)).unwrap();
    assert_eq!(used, 3001);
    assert_eq!(driver.bytes(BUFFERS + 10, 2), 3000_u16.to_le_bytes());
    assert!(driver.bytes(BUFFERS + 12, 60_000 - 12) == long[12..]);
    assert_eq!(driver.bytes(BUFFERS + 60_000 + 10, 2), [1, 0]);
}

#[test]
fn frame_that_a_large_ring_of_small_buffers_cannot_take_does_not_block_the_next() {
    let (driver, (port, wire)) = (Driver::new(), port());
    let ring = large_ring(&driver, &shreds(4096, 12));
    let mut rx = Rx::new(ring, port, driver.counters.clone(), gate(), frames(true));

    wire.send(&[0; 65_000]).unwrap();
    wire.send(&FRAME[..24]).unwrap();
    rx.receive().unwrap();

    let used: u16 = driver.mem.read_obj(LARGE_USED.unchecked_add(2)).unwrap();
    assert_eq!(used, 2);
    assert_eq!(driver.count("rx.0.too_long"), 1);
}

#[test]
fn buffers_that_cannot_take_a_header_or_be_written_come_back_empty() {
    for descriptors in [chains(1, 11, VRING_DESC_F_WRITE), chains(1, 100, 0)] {
        let (driver, (port, wire)) = (Driver::new(), port());
        let mock = MockSplitQueue::new(&driver.mem, 16);
        mock.build_multiple_desc_chains(&descriptors).unwrap();
        let mut rx = Rx::new(driver.ring(&mock), port, driver.counters.clone(), gate(), frames(true));

        wire.send(FRAME).unwrap();
        rx.receive().unwrap();

        assert_eq!(used(&mock), [0]);
        assert_eq!(driver.count("rx.0.bad_buffers"), 1);
    }
}

#[test]
fn flood_ends_with_the_budget() {
    let (driver, (port, wire)) = (Driver::new(), port());
    let mock = MockSplitQueue::new(&driver.mem, 16);
    mock.build_multiple_desc_chains(&chains(1, 8, VRING_DESC_F_WRITE)).unwrap();
    drop(mock);
    let queue = {
        let mut queue = Queue::new(512).unwrap();
        queue.try_set_desc_table_address(GuestAddress(0)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(0x2000)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(0x3000)).unwrap();
        queue.set_ready(true);
        queue
    };
    for i in 0..512_u64 {
        let descriptor = Descriptor::new(BUFFERS + i * 0x100, 0x100, 0, 0);
        driver.mem.write_obj(RawDescriptor::from(descriptor), GuestAddress(i * 16)).unwrap();
        driver.mem.write_obj(u16::try_from(i).unwrap(), GuestAddress(0x2004 + i * 2)).unwrap();
    }
    driver.mem.write_obj(512_u16, GuestAddress(0x2002)).unwrap();
    let active = ActiveQueue { idx: 1, queue, doorbell: EventFd::new(0).unwrap() };
    let ring = Ring::new(active, driver.mem.clone(), driver.interrupts.clone()).unwrap().0;
    let mut tx = Tx::new(ring, port, driver.counters.clone(), Link::default());

    let mut rounds = 0;
    let mut received = 0;
    wire.set_nonblocking(true).unwrap();
    while received < 512 {
        let turn = tx.transmit().unwrap();
        rounds += u32::from(turn == Turn::More);
        while wire.recv(&mut [0; 0x100]).is_ok() {
            received += 1;
        }
    }
    assert_eq!(driver.count("tx.0.frames"), 512);
    assert!(driver.count("tx.0.waits") > 0 || rounds > 0);
}

#[test]
fn sent_frame_arrives_with_its_header() {
    let (driver, (port, wire)) = (Driver::new(), port());
    let mock = MockSplitQueue::new(&driver.mem, 16);
    let len = u32::try_from(FRAME.len()).unwrap();
    mock.build_multiple_desc_chains(&chains(1, len, 0)).unwrap();
    driver.mem.write_slice(FRAME, GuestAddress(BUFFERS)).unwrap();
    let mut tx = Tx::new(driver.ring(&mock), port, driver.counters.clone(), Link::default());

    assert_eq!(tx.transmit().unwrap(), Turn::Done);

    let mut frame = [0; 100];
    let len = wire.recv(&mut frame).unwrap();
    assert_eq!(&frame[..len], FRAME);
    assert_eq!(used(&mock), [0]);
    assert_eq!(driver.count("tx.0.bytes"), 32);
}

#[test]
fn frame_in_more_pieces_than_one_write_takes_is_sent_whole() {
    let (driver, (port, wire)) = (Driver::new(), port());
    let mock = MockSplitQueue::new(&driver.mem, 2048);
    let piece = |i: u16| {
        let flags = if i < 1999 { u16::try_from(VRING_DESC_F_NEXT).unwrap() } else { 0 };
        RawDescriptor::from(Descriptor::new(BUFFERS + u64::from(i) * 3, 3, flags, i + 1))
    };
    mock.build_desc_chain(&(0..2000).map(piece).collect::<Vec<_>>()).unwrap();
    let sent: Vec<u8> = (0..6000_u32).map(|i| i.to_le_bytes()[0]).collect();
    driver.mem.write_slice(&sent, GuestAddress(BUFFERS)).unwrap();
    let mut tx = Tx::new(driver.ring(&mock), port, driver.counters.clone(), Link::default());

    tx.transmit().unwrap();

    let mut frame = vec![0; 7000];
    assert_eq!(wire.recv(&mut frame).unwrap(), 6000);
    assert!(frame[..6000] == sent);
    assert_eq!(driver.count("tx.0.bytes"), 6000 - 12);
}

#[test]
fn card_offers_no_more_than_it_was_configured_to() {
    let tso = Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6;
    for (offloads, offered) in [(Offloads::NONE, Offloads::NONE), (tso, tso), (Offloads::ALL, Offloads::CANDIDATES[0])]
    {
        let net = Net::new(NetConfig { offloads, ..config() }, vec![port().0]).unwrap();
        assert_eq!(net.features() & Offloads::ALL.features(), offered.features());
    }
}

#[test]
fn queues_have_the_configured_size_if_it_is_possible() {
    let sizes =
        |ring| Net::new(NetConfig { ring, ..config() }, vec![port().0]).map(|net| net.queue_max_sizes().to_vec());
    assert_eq!(sizes(4096).unwrap(), [4096, 4096, CTRL_QUEUE_SIZE]);
    for ring in [0, 32, 100, 8192] {
        assert!(sizes(ring).is_err(), "{ring}");
    }
}

#[test]
fn chains_that_are_no_frame_are_counted_and_given_back() {
    for descriptors in [chains(1, 25, 0), chains(1, 0x1_0100, 0), chains(1, 64, VRING_DESC_F_WRITE), chains(1, 0, 0)] {
        let (driver, (port, wire)) = (Driver::new(), port());
        let mock = MockSplitQueue::new(&driver.mem, 16);
        mock.build_multiple_desc_chains(&descriptors).unwrap();
        let mut tx = Tx::new(driver.ring(&mock), port, driver.counters.clone(), Link::default());

        tx.transmit().unwrap();

        wire.set_nonblocking(true).unwrap();
        assert!(wire.recv(&mut [0; 1]).is_err());
        assert_eq!(used(&mock), [0]);
        assert_eq!(driver.count("tx.0.malformed"), 1);
    }
}

/// A link that is down.
fn unplugged() -> Link {
    let link = Link::default();
    link.switch(Carrier::Down);
    link
}

#[test]
fn frame_that_comes_while_the_link_is_down_is_dropped_and_not_kept() {
    let (driver, (port, wire)) = (Driver::new(), port());
    let mock = MockSplitQueue::new(&driver.mem, 16);
    mock.build_multiple_desc_chains(&chains(4, 100, VRING_DESC_F_WRITE)).unwrap();
    let link = unplugged();
    let gate = Gate { link: link.clone(), ..gate() };
    let mut rx = Rx::new(driver.ring(&mock), port, driver.counters.clone(), gate, frames(true));

    wire.send(FRAME).unwrap();
    rx.receive().unwrap();
    assert!(used(&mock).is_empty());

    link.switch(Carrier::Up);
    wire.send(&FRAME[..18]).unwrap();
    rx.receive().unwrap();
    assert_eq!(used(&mock), [18]);
    assert_eq!((driver.count("rx.0.link_down"), driver.count("rx.0.frames")), (1, 1));
}

#[test]
fn frame_that_is_sent_while_the_link_is_down_is_completed_and_counted() {
    let (driver, (port, wire)) = (Driver::new(), port());
    let mock = MockSplitQueue::new(&driver.mem, 16);
    mock.build_multiple_desc_chains(&chains(2, 64, 0)).unwrap();
    let mut tx = Tx::new(driver.ring(&mock), port, driver.counters.clone(), unplugged());

    tx.transmit().unwrap();

    wire.set_nonblocking(true).unwrap();
    assert!(wire.recv(&mut [0; 1]).is_err());
    assert_eq!(used(&mock), [0, 0]);
    assert_eq!((driver.count("tx.0.link_down"), driver.count("tx.0.frames")), (2, 0));
}

#[test]
fn running_driver_reads_link_speed_and_the_wish_for_an_announcement() {
    let (driver, (port, _wire)) = (Driver::new(), port());
    let link = Link::default();
    let mut net = Net::new(NetConfig { link: link.clone(), ..config() }, vec![port]).unwrap();
    let queues = active_pair(&driver.mem, 0).map(|(queue, _)| queue).into();
    let features = net.features();
    net.start(Activation { mem: driver.mem.clone(), features, queues, interrupts: driver.interrupts.clone() }).unwrap();
    let read = |net: &Net| {
        let mut fields = [0; 17];
        net.read_config(0, &mut fields);
        (fields[6], u32::from_le_bytes([fields[12], fields[13], fields[14], fields[15]]), fields[16])
    };

    assert_eq!(read(&net), (1, u32::MAX, 0xff));
    let state = LinkState { carrier: Carrier::Down, speed: Some(10_000), duplex: Some(Duplex::Full) };
    link.follow(state);
    assert_eq!(read(&net), (0, 10_000, 1));
    link.follow(LinkState { carrier: Carrier::Up, ..state });
    assert_eq!(read(&net), (1, 10_000, 1));
    link.announce(link.next_announcement().unwrap());
    assert_eq!(read(&net), (3, 10_000, 1));
    net.stop();
    assert_eq!(read(&net), (1, 10_000, 1));
    assert_eq!(driver.interrupts.config_generation(), 3);
}

#[test]
fn acknowledged_announcement_is_over() {
    let (link, features) = (Link::default(), bit(VIRTIO_NET_F_STATUS) | bit(VIRTIO_NET_F_GUEST_ANNOUNCE));
    let interrupts = Driver::new().interrupts;
    link.start(link::Driver { interrupts, features, workers: Vec::new() });
    link.switch(Carrier::Down);
    link.switch(Carrier::Up);
    link.announce(link.next_announcement().unwrap());
    let mut control = Control { link: link.clone(), ..control(Vec::new(), features) };

    assert_eq!(link.status(), 3);
    assert!(control.execute(ctrl::Command::Announced));
    assert_eq!(link.status(), 1);
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

#[test]
fn card_sends_what_was_there_before_driver_ok_and_survives_resets() {
    let driver = Driver::new();
    let (port, wire) = port();
    let mut net = Net::new(config(), vec![port]).unwrap();

    for _ in 0..3 {
        let queues = active_pair(&driver.mem, 0).map(|(queue, _)| queue).into();
        let interrupts = driver.interrupts.clone();
        let features = net.features() & !(bit(VIRTIO_NET_F_CTRL_VQ) | bit(VIRTIO_NET_F_HASH_REPORT));
        net.start(Activation { mem: driver.mem.clone(), features, queues, interrupts }).unwrap();
        let mut frame = [0; 100];
        let len = wire.recv(&mut frame).unwrap();
        net.stop();
        assert_eq!(&frame[..len], FRAME);
    }
}

/// A port that has no room for the first frame. It has room again at once, but its descriptor tells that only to who asks anew.
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

#[test]
fn frame_that_found_no_room_is_sent_when_there_is_room() {
    let driver = Driver::new();
    let (socket, wire) = UnixDatagram::pair().unwrap();
    wire.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let port = FullOncePort {
        fd: EventFd::new(EFD_NONBLOCK).unwrap(),
        wire: SocketPort { socket, attached: AtomicBool::new(true), header_len: AtomicUsize::new(0) },
        // The first time the port is full is after the descriptor has told that there is room.
        refused: AtomicBool::new(true),
    };
    let port = Arc::new(port);
    let mut net = Net::new(config(), vec![port.clone()]).unwrap();
    let [(rx, _), (tx, tx_doorbell)] = active_pair(&driver.mem, 0);
    let interrupts = driver.interrupts.clone();
    let features = net.features() & !(bit(VIRTIO_NET_F_CTRL_VQ) | bit(VIRTIO_NET_F_HASH_REPORT));
    net.start(Activation { mem: driver.mem.clone(), features, queues: vec![rx, tx], interrupts }).unwrap();
    let mut frame = [0; 100];
    assert_eq!(wire.recv(&mut frame).unwrap(), FRAME.len());

    port.refused.store(false, Ordering::Relaxed);
    let mock_avail = GuestAddress(0x8000 + 16 * 16);
    driver.mem.write_obj(0_u16, mock_avail.unchecked_add(4 + 2)).unwrap();
    driver.mem.write_obj(2_u16, mock_avail.unchecked_add(2)).unwrap();
    tx_doorbell.write(1).unwrap();

    assert_eq!(wire.recv(&mut frame).unwrap(), FRAME.len());
    net.stop();
}

#[test]
fn control_queue_asks_for_the_doorbell_after_a_ring_full_of_commands() {
    let (driver, (port, _wire)) = (Driver::new(), port());
    let mock = MockSplitQueue::new(&driver.mem, 4);
    mock.build_multiple_desc_chains(&chains(4, 1, VRING_DESC_F_WRITE)).unwrap();
    let pairs =
        vec![PairSwitch { port, changed: EventFd::new(EFD_NONBLOCK).unwrap(), departure: None, attached: true }];
    let mut queue = CtrlQueue::new(driver.ring(&mock), control(pairs, 0), driver.counters.clone());

    assert_eq!(queue.serve().unwrap(), Turn::More);
    assert_eq!(queue.serve().unwrap(), Turn::Done);

    assert_eq!(used(&mock), [1; 4]);
    assert_eq!(driver.count("ctrl.refused"), 4);
}

#[test]
fn only_the_first_pair_is_attached_after_reset() {
    let ((first, _a), (second, _b)) = (port(), port());
    let net = Net::new(config(), vec![first.clone(), second.clone()]).unwrap();
    assert!(first.attached.load(Ordering::Relaxed));
    assert!(!second.attached.load(Ordering::Relaxed));
    assert_ne!(net.features() & bit(VIRTIO_NET_F_MQ), 0);
}

#[test]
fn set_pairs_attaches_and_detaches_and_refuses_what_it_has_not() {
    let ((first, _a), (second, _b)) = (port(), port());
    let switch = |port: &Arc<SocketPort>| PairSwitch {
        attached: port.attached.load(Ordering::Relaxed),
        port: port.clone() as Arc<dyn FramePort>,
        changed: EventFd::new(EFD_NONBLOCK).unwrap(),
        departure: None,
    };
    second.set_attached(false).unwrap();
    let pairs = vec![switch(&first), switch(&second)];
    let mut control = control(pairs, bit(VIRTIO_NET_F_MQ));

    assert!(control.execute(ctrl::Command::Pairs(2)));
    assert!(second.attached.load(Ordering::Relaxed));
    assert!(!control.execute(ctrl::Command::Pairs(0)));
    assert!(!control.execute(ctrl::Command::Pairs(3)));
    assert!(control.execute(ctrl::Command::Pairs(1)));
    assert!(!second.attached.load(Ordering::Relaxed));
    assert!(first.attached.load(Ordering::Relaxed));
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

#[test]
fn set_pairs_that_the_host_refuses_half_way_changes_nothing() {
    let ((first, _a), (second, _b), (third, _c)) = (port(), port(), port());
    second.set_attached(false).unwrap();
    let third = Arc::try_unwrap(third).unwrap_or_else(|_| unreachable!());
    let ports: [(Arc<dyn FramePort>, bool); 3] =
        [(first, true), (second.clone(), false), (Arc::new(DetachedPort(third)), false)];
    let switch =
        |(port, attached)| PairSwitch { port, attached, departure: None, changed: EventFd::new(EFD_NONBLOCK).unwrap() };
    let mut control = control(ports.map(switch).into(), bit(VIRTIO_NET_F_MQ));

    assert!(!control.execute(ctrl::Command::Pairs(3)));
    assert!(!second.attached.load(Ordering::Relaxed));
    assert!(control.execute(ctrl::Command::Pairs(2)));
    assert!(second.attached.load(Ordering::Relaxed));
}

#[test]
fn guest_offloads_that_were_not_negotiated_are_refused() {
    use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4};
    let (port, _wire) = port();
    let pairs =
        vec![PairSwitch { port, changed: EventFd::new(EFD_NONBLOCK).unwrap(), departure: None, attached: true }];
    let features = bit(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) | bit(VIRTIO_NET_F_GUEST_CSUM);
    let mut control = control(pairs, features);

    assert!(control.execute(ctrl::Command::GuestOffloads(bit(VIRTIO_NET_F_GUEST_CSUM))));
    assert!(control.execute(ctrl::Command::GuestOffloads(0)));
    assert!(!control.execute(ctrl::Command::GuestOffloads(bit(VIRTIO_NET_F_GUEST_TSO4))));
    assert!(!control.execute(ctrl::Command::GuestOffloads(bit(VIRTIO_NET_F_MQ))));
}

#[test]
fn frame_to_another_address_is_filtered_and_its_buffers_take_the_next() {
    let (driver, (port, wire)) = (Driver::new(), port());
    let mock = MockSplitQueue::new(&driver.mem, 16);
    mock.build_multiple_desc_chains(&chains(4, 20, VRING_DESC_F_WRITE)).unwrap();
    let filter = open();
    let gate = Gate { filter: filter.clone(), ..gate() };
    let mut rx = Rx::new(driver.ring(&mock), port, driver.counters.clone(), gate, frames(true));
    filter.change(|filter| filter.set_mode(filter::Mode::Promiscuous, filter::Switch::Off));

    let to = |mac: [u8; 6]| [&[0; 12], &mac[..], &[7; 12]].concat();
    wire.send(&to([2, 0, 0, 0, 0, 2])).unwrap();
    wire.send(&to([2, 0, 0, 0, 0, 1])).unwrap();
    rx.receive().unwrap();

    assert_eq!(used(&mock), [20, 10]);
    assert_eq!(driver.bytes(BUFFERS + 12, 6), [2, 0, 0, 0, 0, 1]);
    assert_eq!((driver.count("rx.0.filtered"), driver.count("rx.0.frames")), (1, 1));
}

#[test]
fn new_address_is_seen_in_the_configuration_and_gone_after_reset() {
    let (port, _wire) = port();
    let mut net = Net::new(config(), vec![port]).unwrap();
    let read = |net: &Net| {
        let mut mac = [0; 6];
        net.read_config(0, &mut mac);
        mac
    };
    let mut control = control(Vec::new(), bit(VIRTIO_NET_F_CTRL_MAC_ADDR));
    control.mac = net.mac.clone();

    assert!(control.execute(ctrl::Command::Mac([2, 0, 0, 0, 0, 9])));
    assert_eq!(read(&net), [2, 0, 0, 0, 0, 9]);
    assert!(!control.execute(ctrl::Command::Mac([3, 0, 0, 0, 0, 9])));
    net.stop();
    assert_eq!(read(&net), [2, 0, 0, 0, 0, 1]);
}

#[test]
fn commands_whose_feature_was_not_negotiated_are_refused() {
    use filter::{Mode, Switch};
    let mut control = control(Vec::new(), 0);
    for command in [
        ctrl::Command::Mode(Mode::Promiscuous, Switch::Off),
        ctrl::Command::Mode(Mode::NoBroadcast, Switch::On),
        ctrl::Command::Tables(Vec::new(), Vec::new()),
        ctrl::Command::Mac([2, 0, 0, 0, 0, 9]),
        ctrl::Command::Vlan(1, Switch::On),
    ] {
        assert!(!control.execute(command.clone()), "{command:?}");
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
    Activation { mem: driver.mem.clone(), features, queues, interrupts: driver.interrupts.clone() }
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

#[test]
fn receive_queue_that_is_reset_takes_nothing_and_the_next_one_gets_what_waited() {
    let (driver, (port, wire)) = (Driver::new(), port());
    let (mut net, _doorbells) = running(&driver, port);
    let mut frame = [0; 100];
    assert_eq!(wire.recv(&mut frame).unwrap(), FRAME.len());

    net.stop_queue(0);
    wire.send(FRAME).unwrap();
    // The other direction goes on.
    net.stop_queue(1);
    let [_, (tx, _)] = active_pair(&driver.mem, 0);
    net.restart_queue(activation(&driver, 0, vec![tx]));
    assert_eq!(wire.recv(&mut frame).unwrap(), FRAME.len());
    assert_eq!(count(&net, "rx.0.frames"), 0);

    let [(rx, _), _] = active_pair(&driver.mem, 2);
    net.restart_queue(activation(&driver, 0, vec![ActiveQueue { idx: 0, ..rx }]));
    wait_until(|| count(&net, "rx.0.frames") == 1);
    assert_eq!(driver.bytes(BUFFERS + 2 * 0x1_0000 + 12, FRAME.len() - 12), FRAME[12..]);
    net.stop();
}

#[test]
fn frame_that_waits_for_buffers_survives_the_reset_of_its_queue() {
    let (driver, (port, wire)) = (Driver::new(), port());
    let mock = MockSplitQueue::new(&driver.mem, 16);
    mock.build_multiple_desc_chains(&chains(1, 20, VRING_DESC_F_WRITE)).unwrap();
    let mut rx = Rx::new(driver.ring(&mock), port, driver.counters.clone(), gate(), frames(true));
    wire.send(FRAME).unwrap();
    rx.receive().unwrap();

    lane::Side::stop(&mut rx);
    driver.mem.write_slice(&[0; 20], GuestAddress(BUFFERS)).unwrap();
    let mock = MockSplitQueue::create(&driver.mem, GuestAddress(0x2_0000), 16);
    mock.build_multiple_desc_chains(&chains(4, 20, VRING_DESC_F_WRITE)[1..]).unwrap();
    lane::Side::restart(&mut rx, driver.ring(&mock));
    rx.receive().unwrap();

    assert_eq!(used(&mock), [20, 20, 4]);
    assert_eq!(driver.bytes(BUFFERS + 0x1000 + 12, 8), FRAME[12..20]);
    assert_eq!(driver.bytes(BUFFERS + 0x2000, 20), FRAME[20..40]);
}

#[test]
fn frame_that_waits_for_room_is_not_sent_after_the_reset_of_its_queue() {
    let (driver, (socket, wire)) = (Driver::new(), port());
    let port = FullOncePort {
        fd: EventFd::new(EFD_NONBLOCK).unwrap(),
        wire: SocketPort {
            socket: socket.socket.try_clone().unwrap(),
            attached: AtomicBool::new(true),
            header_len: AtomicUsize::new(0),
        },
        refused: AtomicBool::new(false),
    };
    let mock = MockSplitQueue::new(&driver.mem, 16);
    mock.build_multiple_desc_chains(&chains(1, 60, 0)).unwrap();
    let mut tx = Tx::new(driver.ring(&mock), Arc::new(port), driver.counters.clone(), Link::default());
    tx.transmit().unwrap();
    assert!(tx.waits());

    lane::Side::stop(&mut tx);
    let mock = MockSplitQueue::create(&driver.mem, GuestAddress(0x2_0000), 16);
    lane::Side::restart(&mut tx, driver.ring(&mock));
    tx.transmit().unwrap();

    wire.set_nonblocking(true).unwrap();
    assert!(wire.recv(&mut [0; 1]).is_err());
    assert_eq!(driver.count("tx.0.frames"), 0);
}

#[test]
fn queues_of_a_card_that_met_a_fault_rest() {
    let (driver, (port, _wire)) = (Driver::new(), port());
    let (mut net, [_, tx_doorbell]) = running(&driver, port);
    let tx_available = GuestAddress(0x8000 + 16 * 16 + 2);
    driver.mem.write_obj(0x7000_u16, tx_available).unwrap();
    tx_doorbell.write(1).unwrap();
    wait_until(|| driver.interrupts.needs_reset());

    net.stop_queue(0);
    net.stop_queue(2);
    net.stop_queue(0xffff);
    let [(rx, _), _] = active_pair(&driver.mem, 0);
    net.restart_queue(activation(&driver, 0, vec![rx]));
    net.stop();
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn queues_come_and_go_in_any_order(steps in proptest::collection::vec((0..4_u16, proptest::bool::ANY), 0..40)) {
        let (driver, (port, wire)) = (Driver::new(), port());
        wire.set_nonblocking(true).unwrap();
        let (mut net, doorbells) = running(&driver, port);
        for (queue, again) in steps {
            let _ = wire.send(FRAME);
            doorbells[usize::from(queue % 2)].write(1).unwrap();
            if again {
                let [(rx, _), (tx, _)] = active_pair(&driver.mem, 0);
                let active = if queue % 2 == 0 { rx } else { tx };
                net.restart_queue(activation(&driver, 0, vec![ActiveQueue { idx: queue, ..active }]));
            } else {
                net.stop_queue(queue);
            }
        }
        net.stop();
    }
}

/// Sets up a control queue at 0xa_0000 with one chain for each of `commands`, whose answers of `room` bytes lie 0x100 apart at
/// [`ANSWERS`].
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

fn ctrl_queue(driver: &Driver, queue: Queue, control: Control) -> CtrlQueue {
    let active = ActiveQueue { idx: 2, queue, doorbell: EventFd::new(0).unwrap() };
    let ring = Ring::new(active, driver.mem.clone(), driver.interrupts.clone()).unwrap().0;
    CtrlQueue::new(ring, control, driver.counters.clone())
}

#[test]
fn parameters_of_a_queue_are_read_back_before_the_acknowledgement() {
    let driver = Driver::new();
    let set: &[u8] = &[6, 2, 0, 0, 0, 0, 64, 0, 0, 0, 0xf4, 1, 0, 0];
    let (get, get_disabled) = ([6_u8, 3, 0, 0, 0xff, 0xff], [6_u8, 3, 1, 0, 0, 0]);
    let queue = commands(&driver.mem, &[set, &get, &get_disabled], 9);
    let mut control = control(Vec::new(), bit(VIRTIO_NET_F_VQ_NOTF_COAL));
    control.coalescing = Arc::new(Settings::new(2));
    let _rx = Coalescer::new(control.coalescing.clone(), 0);
    let mut ctrl = ctrl_queue(&driver, queue, control);

    assert_eq!(ctrl.serve().unwrap(), Turn::Done);

    assert_eq!(driver.bytes(ANSWERS, 1), [0]);
    assert_eq!(driver.bytes(ANSWERS + 0x100, 9), [64, 0, 0, 0, 0xf4, 1, 0, 0, 0]);
    assert_eq!(driver.bytes(ANSWERS + 0x200 + 8, 1), [1]);
    assert_eq!((driver.count("ctrl.ok"), driver.count("ctrl.refused")), (2, 1));
}

#[test]
fn command_without_room_for_its_result_is_refused() {
    let driver = Driver::new();
    let queue = commands(&driver.mem, &[&[6, 3, 0, 0, 0, 0]], 8);
    let mut ctrl = ctrl_queue(&driver, queue, control(Vec::new(), bit(VIRTIO_NET_F_VQ_NOTF_COAL)));
    ctrl.serve().unwrap();
    assert_eq!(driver.bytes(ANSWERS + 7, 1), [1]);
}

#[test]
fn changes_that_take_locks_of_the_host_wait_and_are_then_made() {
    let (driver, (port, _wire)) = (Driver::new(), port());
    let pairs =
        vec![PairSwitch { port, changed: EventFd::new(EFD_NONBLOCK).unwrap(), departure: None, attached: true }];
    let features = bit(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) | bit(1);
    let control = control(pairs, features);
    let limiter = control.limiter.clone();
    let (none, same) = ([5_u8, 0, 0, 0, 0, 0, 0, 0, 0, 0], [5_u8, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let queue = commands(&driver.mem, &[&same, &none, &none], 2);
    let mut ctrl = ctrl_queue(&driver, queue, control);
    // Nothing is left; the next call may be made in 10 ms.
    limiter.lock().unwrap().take(128, Instant::now()).unwrap();

    assert_eq!(ctrl.serve().unwrap(), Turn::Done);
    assert_eq!(driver.count("ctrl.ok"), 1, "the one that changes nothing");
    let due = ctrl.deadline().unwrap();
    while Instant::now() < due {
        std::thread::yield_now();
    }
    ctrl.serve().unwrap();
    assert_eq!((driver.count("ctrl.ok"), ctrl.deadline()), (3, None));
}

#[test]
fn interrupt_that_is_held_back_comes_in_time() {
    use crate::irq::{MsiMessage, MsiVector};
    const HELD: Duration = Duration::from_millis(30);
    let (mut driver, (port, wire)) = (Driver::new(), port());
    let vector = Arc::new(FakeVector::default());
    vector.route(Some(MsiMessage { address: 0, data: 0 })).unwrap();
    driver.interrupts = Arc::new(Interrupts::new(vec![vector.clone()], 3));
    driver.interrupts.set_enabled(true);
    driver.interrupts.set_queue_vector(0, 0);
    let usecs = u32::try_from(HELD.as_micros()).unwrap().to_le_bytes();
    let set = [&[6, 1, 64, 0, 0, 0], &usecs[..]].concat();
    let queue = commands(&driver.mem, &[&set], 2);
    let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
    let [(rx, _), (tx, _)] = active_pair(&driver.mem, 0);
    // A driver that has run out of buffers is told at once.
    let mock = MockSplitQueue::create(&driver.mem, GuestAddress(0x9_0000), 16);
    mock.build_multiple_desc_chains(&chains(4, 64, VRING_DESC_F_WRITE)).unwrap();
    let rx = ActiveQueue { queue: mock.create_queue().unwrap(), ..rx };
    let mut net = Net::new(config(), vec![port]).unwrap();
    let queues = vec![rx, tx, ActiveQueue { idx: 2, queue, doorbell }];
    net.start(activation(&driver, net.features(), queues)).unwrap();
    wait_until(|| count(&net, "ctrl.ok") == 1);

    let sent = Instant::now();
    wire.send(FRAME).unwrap();
    wait_until(|| vector.delivered() == 1);
    assert!(sent.elapsed() >= HELD, "after {:?}", sent.elapsed());
    net.stop();
}

#[test]
fn doorbells_are_counted_without_our_own_rings() {
    let driver = Driver::new();
    let (port, wire) = port();
    let mut net = Net::new(config(), vec![port]).unwrap();
    let [(rx, rx_doorbell), (tx, tx_doorbell)] = active_pair(&driver.mem, 0);
    let interrupts = driver.interrupts.clone();
    let features = net.features() & !bit(VIRTIO_NET_F_CTRL_VQ);
    rx_doorbell.write(1).unwrap();
    tx_doorbell.write(3).unwrap();
    net.start(Activation { mem: driver.mem.clone(), features, queues: vec![rx, tx], interrupts }).unwrap();
    wire.recv(&mut [0; 100]).unwrap();

    wait_until(|| count(&net, "tx.0.doorbells") == 3);
    wait_until(|| count(&net, "rx.0.doorbells") == 1);
    net.stop();
    assert_eq!((count(&net, "tx.0.frames"), count(&net, "tx.0.interrupts")), (1, 1));
}

#[test]
fn driver_that_resets_in_a_loop_waits_for_the_offloads() {
    let driver = Driver::new();
    let mut net = Net::new(config(), vec![port().0]).unwrap();
    let start = |net: &mut Net, features| {
        let begun = Instant::now();
        let queues = active_pair(&driver.mem, 0).map(|(queue, _)| queue).into();
        net.start(activation(&driver, features, queues)).unwrap();
        net.stop();
        begun.elapsed()
    };
    // Nothing is left: two calls may be made in 20 ms.
    let now = Instant::now();
    net.limiter.lock().unwrap().take(128, now).unwrap();
    start(&mut net, 0);
    assert!(net.limiter.lock().unwrap().take(1, now).is_err());
    start(&mut net, bit(1));
    assert!(now.elapsed() >= Duration::from_millis(20), "after {:?}", now.elapsed());
}

#[test]
fn datagrams_of_one_flow_leave_together_and_in_order_even_if_they_had_to_wait() {
    use gro::tests::{PLAIN, Shape, frame};
    let (driver, (socket, wire)) = (Driver::new(), port());
    let port = FullOncePort {
        fd: EventFd::new(EFD_NONBLOCK).unwrap(),
        wire: SocketPort {
            socket: socket.socket.try_clone().unwrap(),
            attached: AtomicBool::new(true),
            header_len: AtomicUsize::new(0),
        },
        refused: AtomicBool::new(false),
    };
    let datagram = |port, payload| frame(Shape { port, payload, ..PLAIN });
    let frames = [datagram(1, 30), datagram(1, 30), datagram(1, 10), FRAME.to_vec(), datagram(2, 5), datagram(2, 5)];
    let mock = MockSplitQueue::new(&driver.mem, 16);
    let descriptors = (0..).zip(&frames).map(|(i, frame)| {
        driver.mem.write_slice(frame, GuestAddress(BUFFERS + i * 0x1000)).unwrap();
        RawDescriptor::from(Descriptor::new(BUFFERS + i * 0x1000, u32::try_from(frame.len()).unwrap(), 0, 0))
    });
    mock.build_multiple_desc_chains(&descriptors.collect::<Vec<_>>()).unwrap();
    let tx = Tx::new(driver.ring(&mock), Arc::new(port), driver.counters.clone(), Link::default());
    let mut tx = tx.joining(true);

    tx.transmit().unwrap();
    assert!(tx.waits() && used(&mock).is_empty());
    tx.transmit().unwrap();

    let mut seen = Vec::new();
    for _ in 0..3 {
        let mut frame = [0; 500];
        let len = wire.recv(&mut frame).unwrap();
        // GSO type, segment size, payload behind Ethernet, IPv4 and UDP headers.
        seen.push((frame[1], frame[4], len.saturating_sub(54), frame[54], frame[84]));
    }
    assert_eq!(seen, [(5, 30, 70, 0, 0), (0, 0, 0, 0, 0), (5, 5, 10, 0, 0)]);
    assert_eq!(used(&mock), [0; 6]);
    assert_eq!((driver.count("tx.0.frames"), driver.count("tx.0.joined"), driver.count("tx.0.waits")), (6, 5, 1));
    assert_eq!(driver.count("tx.0.bytes"), 42 * 5 + 80 + 32);
}

#[test]
fn frame_of_a_queue_that_was_detached_meanwhile_leaves_by_the_first() {
    let (driver, (first, wire)) = (Driver::new(), port());
    let mock = MockSplitQueue::new(&driver.mem, 16);
    mock.build_multiple_desc_chains(&chains(1, u32::try_from(FRAME.len()).unwrap(), 0)).unwrap();
    driver.mem.write_slice(FRAME, GuestAddress(BUFFERS)).unwrap();
    let detached = Arc::new(DetachedPort(Arc::try_unwrap(port().0).unwrap_or_else(|_| unreachable!())));
    let first: Arc<dyn FramePort> = first;
    let tx = Tx::new(driver.ring(&mock), detached, driver.counters.clone(), Link::default());

    tx.with_first_port(&first).transmit().unwrap();

    let mut frame = [0; 100];
    let len = wire.recv(&mut frame).unwrap();
    assert_eq!((&frame[..len], used(&mock)), (FRAME, vec![0]));
    assert_eq!((driver.count("tx.0.frames"), driver.count("tx.0.port_gone")), (1, 0));
}
