//! Queues that go out of use: what waits for them is not lost.

use super::*;
use crate::virtio::net::rss::Shared;

/// A frame whose last byte tells it from others.
fn frame(number: u8) -> Vec<u8> {
    [&[0; HEADER_LEN][..], &[0xff; 6], &[2; 8], &[number; 46]].concat()
}

#[test]
fn frames_of_a_queue_that_leaves_go_to_its_ring_first_and_then_to_the_first_queue() {
    let (driver, (stays, _wire), (leaves, wire)) = (Driver::new(), port(), port());
    let [first, second] = [0, 0x8000].map(|at| MockSplitQueue::create(&driver.mem, GuestAddress(at), 16));
    first.build_multiple_desc_chains(&chains(4, 200, VRING_DESC_F_WRITE)).unwrap();
    let mut few = chains(2, 200, VRING_DESC_F_WRITE);
    for (idx, descriptor) in (8..).zip(&mut few) {
        let flags = u16::try_from(VRING_DESC_F_WRITE).unwrap();
        *descriptor = RawDescriptor::from(Descriptor::new(BUFFERS + idx * 0x1000, 200, flags, 0));
    }
    second.build_multiple_desc_chains(&few).unwrap();
    let mut hashers =
        Hasher::steering(&Arc::new(Shared::default()), HEADER_LEN, 2, &Budget::default()).unwrap().into_iter();
    let mut rx = |mock, port| {
        Rx::new(driver.ring(mock), port, driver.counters.clone(), gate(), frames(true)).with_hasher(hashers.next())
    };
    let (mut to, mut from) = (rx(&first, stays), rx(&second, leaves));

    for number in 0..5 {
        wire.send(&frame(number)).unwrap();
    }
    from.vacate().unwrap();
    to.receive().unwrap();

    let len = u32::try_from(frame(0).len()).unwrap();
    assert_eq!((used(&second), used(&first)), (vec![len; 2], vec![len; 3]));
    let numbers = [8, 9, 0, 1, 2].map(|buffer| driver.bytes(BUFFERS + buffer * 0x1000 + u64::from(len) - 1, 1)[0]);
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
    assert_eq!((driver.count("rx.0.steered"), driver.count("rx.0.steered_lost")), (3, 0));
}

#[test]
fn frame_that_was_half_in_buffers_is_handed_on_whole() {
    let (driver, (stays, _wire), (leaves, wire)) = (Driver::new(), port(), port());
    let [first, second] = [0, 0x8000].map(|at| MockSplitQueue::create(&driver.mem, GuestAddress(at), 16));
    first.build_multiple_desc_chains(&chains(4, 200, VRING_DESC_F_WRITE)).unwrap();
    let flags = u16::try_from(VRING_DESC_F_WRITE).unwrap();
    let short = RawDescriptor::from(Descriptor::new(BUFFERS + 0x8000, 20, flags, 0));
    second.build_multiple_desc_chains(&[short]).unwrap();
    let mut hashers =
        Hasher::steering(&Arc::new(Shared::default()), HEADER_LEN, 2, &Budget::default()).unwrap().into_iter();
    let mut rx = |mock, port| {
        Rx::new(driver.ring(mock), port, driver.counters.clone(), gate(), frames(true)).with_hasher(hashers.next())
    };
    let (mut to, mut from) = (rx(&first, stays), rx(&second, leaves));

    wire.send(&frame(7)).unwrap();
    from.receive().unwrap();
    from.vacate().unwrap();
    to.receive().unwrap();

    assert_eq!((used(&second), used(&first)), (vec![], vec![u32::try_from(frame(7).len()).unwrap()]));
    assert_eq!(driver.bytes(BUFFERS + 12, frame(7).len() - 12), frame(7)[12..]);
}
