//! A transmit queue: frames whole, in pieces, joined and without room.

use super::*;

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

#[test]
fn frame_that_found_no_room_is_sent_when_there_is_room() {
    let driver = Driver::new();
    let (socket, wire) = UnixDatagram::pair().unwrap();
    wire.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let port = FullOncePort {
        fd: EventFd::new(EFD_NONBLOCK).unwrap(),
        wire: SocketPort::new(socket),
        // The first time the port is full is after the descriptor has told that there is room.
        refused: AtomicBool::new(true),
    };
    let port = Arc::new(port);
    let mut net = Net::new(config(), vec![port.clone()]).unwrap();
    let [(rx, _), (tx, tx_doorbell)] = active_pair(&driver.mem, 0);
    let features = net.features() & !(bit(VIRTIO_NET_F_CTRL_VQ) | bit(VIRTIO_NET_F_HASH_REPORT));
    net.start(activation(&driver, features, vec![rx, tx])).unwrap();
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
fn datagrams_of_one_flow_leave_together_and_in_order_even_if_they_had_to_wait() {
    use gro::tests::{PLAIN, Shape, frame};
    let (driver, (socket, wire)) = (Driver::new(), port());
    let port = FullOncePort {
        fd: EventFd::new(EFD_NONBLOCK).unwrap(),
        wire: SocketPort::new(socket.socket.try_clone().unwrap()),
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
