//! A receive queue: its frames, and its buffers.

use super::*;

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
