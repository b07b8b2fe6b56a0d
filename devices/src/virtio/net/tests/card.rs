//! The card as a device: what it offers, starts, resets of it and of single queues, interrupts and doorbells.

use super::*;

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
fn card_sends_what_was_there_before_driver_ok_and_survives_resets() {
    let driver = Driver::new();
    let (port, wire) = port();
    let mut net = Net::new(config(), vec![port]).unwrap();

    for _ in 0..3 {
        let queues = active_pair(&driver.mem, 0).map(|(queue, _)| queue).into();
        let features = net.features() & !(bit(VIRTIO_NET_F_CTRL_VQ) | bit(VIRTIO_NET_F_HASH_REPORT));
        net.start(activation(&driver, features, queues)).unwrap();
        let mut frame = [0; 100];
        let len = wire.recv(&mut frame).unwrap();
        net.stop();
        assert_eq!(&frame[..len], FRAME);
    }
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
        wire: SocketPort::new(socket.socket.try_clone().unwrap()),
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
fn doorbells_that_wake_are_counted_without_our_own_rings() {
    let driver = Driver::new();
    let (port, wire) = port();
    let mut net = Net::new(config(), vec![port]).unwrap();
    let [(rx, rx_doorbell), (tx, tx_doorbell)] = active_pair(&driver.mem, 0);
    let features = net.features() & !bit(VIRTIO_NET_F_CTRL_VQ);
    rx_doorbell.write(1).unwrap();
    tx_doorbell.write(1).unwrap();
    net.start(activation(&driver, features, vec![rx, tx])).unwrap();
    wire.recv(&mut [0; 100]).unwrap();

    wait_until(|| count(&net, "tx.0.doorbells") == 1);
    wait_until(|| count(&net, "rx.0.doorbells") == 1);
    // Held back for a moment, in vain.
    wait_until(|| count(&net, "tx.0.interrupts") == 1);
    net.stop();
    assert_eq!(count(&net, "tx.0.frames"), 1);
}

#[test]
fn frames_that_come_alone_take_one_read_each_and_bursts_come_whole() {
    let (driver, (port, wire)) = (Driver::new(), port());
    let mut net = Net::new(config(), vec![port.clone()]).unwrap();
    let mock = MockSplitQueue::create(&driver.mem, GuestAddress(0), 128);
    mock.add_desc_chains(&chains(80, 64, VRING_DESC_F_WRITE), 0).unwrap();
    let [(mut rx, rx_doorbell), (tx, _tx_doorbell)] = active_pair(&driver.mem, 1);
    (rx.idx, rx.queue) = (0, mock.create_queue().unwrap());
    let features = net.features() & !(bit(VIRTIO_NET_F_CTRL_VQ) | bit(VIRTIO_NET_F_HASH_REPORT));
    net.start(activation(&driver, features, vec![rx, ActiveQueue { idx: 1, ..tx }])).unwrap();
    let reads = || port.reads.load(Ordering::Relaxed);
    let alone = |expected| {
        wire.send(FRAME).unwrap();
        wait_until(|| count(&net, "rx.0.frames") == expected);
    };
    // Enough to find out that they come alone.
    (1..=10).for_each(alone);
    let before = reads();
    (11..=20).for_each(alone);
    // One in five looks for more.
    assert!((12..=13).contains(&(reads() - before)), "{} reads of 10 frames", reads() - before);

    // More than there are buffers: 60 of them are received, and the others once there are more.
    (0..70).for_each(|_| assert_eq!(wire.send(FRAME).unwrap(), FRAME.len()));
    wait_until(|| count(&net, "rx.0.frames") == 80);
    (0..1000).for_each(|_| std::thread::yield_now());
    mock.add_desc_chains(&chains(100, 64, VRING_DESC_F_WRITE)[80..], 80).unwrap();
    rx_doorbell.write(1).unwrap();
    wait_until(|| count(&net, "rx.0.frames") == 90);
    (91..=95).for_each(alone);
    net.stop();
    assert!(reads() < 150, "{} reads of 95 frames", reads());
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
