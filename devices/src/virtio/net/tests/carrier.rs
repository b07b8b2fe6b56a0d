//! Frames and configuration when the link goes and comes back.

use super::*;

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
    net.start(activation(&driver, features, queues)).unwrap();
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
