//! Receive-side scaling and hash reports of receive queues on socket pairs, and what the control queue makes of them.

use super::*;
use crate::virtio::net::rss::tests::{KEY, Packet, rss_config};
use crate::virtio::net::rss::{HashSettings, Receiving, RssSettings};

/// The first IPv4 line of the verification suite: a TCP packet and its hash.
const HASH: u32 = 0x51cc_c178;

fn packet() -> Vec<u8> {
    Packet::new("66.9.149.187", "161.142.100.80", [2794, 1766]).frame()
}

/// `packet` as the port hands it out.
fn with_header(header_len: usize) -> Vec<u8> {
    [vec![0; header_len], packet()].concat()
}

/// A table that leads everything with a hash to queue 1.
fn to_second_queue() -> RssSettings {
    RssSettings::parse(&rss_config(0x3f, 127, 128, 2, &KEY)).unwrap()
}

fn hash_config(types: u8) -> Vec<u8> {
    [&[4, 2, types, 0, 0, 0][..], &[0; 8], &[40], &KEY].concat()
}

#[test]
fn hash_is_reported_in_front_of_the_frame_and_nothing_where_there_is_none() {
    let (driver, (port, wire)) = (Driver::new(), port());
    let mock = MockSplitQueue::new(&driver.mem, 16);
    mock.build_multiple_desc_chains(&chains(8, 24, VRING_DESC_F_WRITE)).unwrap();
    driver.mem.write_slice(&[0xee; 24], GuestAddress(BUFFERS)).unwrap();
    let shared = Arc::new(Shared::default());
    let frames = Frames { header_len: MAX_HEADER_LEN, ..frames(true) };
    let mut rx = Rx::new(driver.ring(&mock), port, driver.counters.clone(), gate(), frames)
        .with_hasher(Some(Hasher::reporting(shared.clone(), MAX_HEADER_LEN)));

    wire.send(&with_header(20)).unwrap();
    rx.receive().unwrap();
    let first = used(&mock).len();
    assert_eq!(driver.bytes(BUFFERS + 12, 8), [0; 8]);

    shared.change(|_| Receiving::reporting(HashSettings::parse(&hash_config(2)[2..]).unwrap()));
    wire.send(&with_header(20)).unwrap();
    rx.receive().unwrap();
    let second = BUFFERS + u64::try_from(first).unwrap() * 0x1000;
    assert_eq!(driver.bytes(second + 12, 8), [HASH.to_le_bytes(), [2, 0, 0, 0]].concat());
    assert_eq!(driver.bytes(second + 20, 4), packet()[..4]);
    assert_eq!(driver.bytes(second + 0x1000, 20), packet()[4..24]);
}

#[test]
fn buffers_without_room_for_a_hash_come_back_empty() {
    let (driver, (port, wire)) = (Driver::new(), port());
    let mock = MockSplitQueue::new(&driver.mem, 16);
    mock.build_multiple_desc_chains(&chains(1, 19, VRING_DESC_F_WRITE)).unwrap();
    let frames = Frames { header_len: MAX_HEADER_LEN, ..frames(true) };
    let mut rx = Rx::new(driver.ring(&mock), port, driver.counters.clone(), gate(), frames);
    wire.send(&with_header(20)).unwrap();
    rx.receive().unwrap();
    assert_eq!((used(&mock), driver.count("rx.0.bad_buffers")), (vec![0], 1));
}

#[test]
fn frame_of_another_queue_is_passed_on_until_its_inbox_is_full() {
    let (driver, (here, wire), (there, _wire)) = (Driver::new(), port(), port());
    let [first, second] = [0, 0x8000].map(|at| MockSplitQueue::create(&driver.mem, GuestAddress(at), 16));
    first.build_multiple_desc_chains(&chains(1, 200, VRING_DESC_F_WRITE)).unwrap();
    let shared = Arc::new(Shared::default());
    shared.change(|_| Receiving::steering(to_second_queue()));
    let mut hashers = Hasher::steering(&shared, HEADER_LEN, 2, &Budget::default()).unwrap().into_iter();
    let mut rx = |mock, port| {
        Rx::new(driver.ring(mock), port, driver.counters.clone(), gate(), frames(true)).with_hasher(hashers.next())
    };
    let (mut from, mut to) = (rx(&first, here), rx(&second, there));

    for _ in 0..1006 {
        wire.send(&with_header(12)).unwrap();
        from.receive().unwrap();
    }
    assert_eq!((driver.count("rx.0.steered"), driver.count("rx.0.steered_lost")), (1000, 6));

    // The first waits for a buffer, as one from the port would.
    to.receive().unwrap();
    assert!(used(&second).is_empty());
    let mut late = chains(1, 200, VRING_DESC_F_WRITE);
    late[0] =
        RawDescriptor::from(Descriptor::new(BUFFERS + 0x1000, 200, u16::try_from(VRING_DESC_F_WRITE).unwrap(), 0));
    second.build_multiple_desc_chains(&late).unwrap();
    to.receive().unwrap();
    assert_eq!(used(&second), [u32::try_from(with_header(12).len()).unwrap()]);
    assert_eq!(driver.bytes(BUFFERS + 0x1000 + 12, packet().len()), packet());
    assert!(used(&first).is_empty());
}

#[test]
fn table_brings_its_queues_into_use_and_the_last_command_counts() {
    let (first, second) = (port().0, port().0);
    second.set_attached(false).unwrap();
    let ports: [(Arc<dyn FramePort>, bool); 2] = [(first, true), (second.clone(), false)];
    let switch =
        |(port, attached)| PairSwitch { port, attached, drain: None, changed: EventFd::new(EFD_NONBLOCK).unwrap() };
    let features = [VIRTIO_NET_F_MQ, VIRTIO_NET_F_RSS, VIRTIO_NET_F_HASH_REPORT].iter().fold(0, |all, f| all | bit(*f));
    let mut control = control(ports.map(switch).into(), features);

    // One transmit queue, but the table leads to the second pair.
    let settings = rss_config(0x3f, 127, 128, 1, &KEY);
    assert!(control.execute(ctrl::Command::Rss(RssSettings::parse(&settings).unwrap())));
    assert_eq!(control.active, 2);
    assert!(second.attached.load(Ordering::Relaxed));
    let three_pairs = rss_config(0x3f, 127, 128, 3, &KEY);
    assert!(!control.execute(ctrl::Command::Rss(RssSettings::parse(&three_pairs).unwrap())));

    assert!(control.execute(ctrl::Command::Pairs(1)));
    assert!(!second.attached.load(Ordering::Relaxed));
    control.features = bit(VIRTIO_NET_F_MQ);
    assert!(!control.execute(ctrl::Command::Rss(to_second_queue())));
    assert!(!control.execute(ctrl::Command::parse(&hash_config(2)).unwrap()));
}

#[test]
fn header_is_long_while_hashes_are_negotiated_and_short_after_reset() {
    let (driver, (port, _wire)) = (Driver::new(), port());
    let mut net = Net::new(config(), vec![port.clone()]).unwrap();
    for (features, header_len) in [(bit(VIRTIO_NET_F_HASH_REPORT), 20), (0, 12)] {
        let queues = active_pair(&driver.mem, 0).map(|(queue, _)| queue).into();
        net.start(activation(&driver, features, queues)).unwrap();
        assert_eq!(port.header_len.load(Ordering::Relaxed), header_len);
        net.stop();
        assert_eq!(port.header_len.load(Ordering::Relaxed), 12);
    }
}

#[test]
fn what_can_be_hashed_is_in_the_configuration() {
    let mac = Arc::new(MacRegister::new([2, 0, 0, 0, 0, 1]));
    let mut bytes = [0; 7];
    Config::new(mac, Link::default(), 4, 1500).read(17, &mut bytes);
    assert_eq!(bytes, [40, 128, 0, 0xff, 1, 0, 0]);
}
