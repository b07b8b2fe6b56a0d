//! The device as a whole: its sizes, its cache mode, its queues.

use super::*;
use crate::virtio::device::ActiveQueue;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_SECURE_ERASE;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Offsets in the configuration space (virtio 1.3 5.2.4).
const PHYSICAL_BLOCK_EXP: u64 = 24;
const MIN_IO_SIZE: u64 = 26;
const WRITEBACK: u64 = 32;
const NUM_QUEUES: u64 = 34;

const WCE: u64 = 1 << VIRTIO_BLK_F_CONFIG_WCE;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
const MQ: u64 = 1 << VIRTIO_BLK_F_MQ;

/// The second queue's rings, its request and its data.
const TABLE: u64 = 0x4000;
const AVAILABLE: u64 = 0x5000;
const USED: u64 = 0x6000;
const SECOND_HEADER: u64 = 0xa000;
const SECOND_STATUS: u64 = 0xb000;
const SECOND_DATA: u64 = 0x2_0000;

fn field<const N: usize>(blk: &Blk, offset: u64) -> [u8; N] {
    let mut data = [0xee; N];
    blk.read_config(offset, &mut data);
    data
}

fn writeback(blk: &Blk) -> u8 {
    field::<1>(blk, WRITEBACK)[0]
}

fn queues(count: u16) -> QueueCount {
    count.try_into().unwrap()
}

#[test]
fn file_has_physical_blocks_of_a_page() {
    let blk = device(&image(), Access::ReadOnly);

    assert_ne!(blk.features() & bit(VIRTIO_BLK_F_TOPOLOGY), 0);
    assert_eq!((field(&blk, PHYSICAL_BLOCK_EXP), field(&blk, MIN_IO_SIZE)), ([3, 0], 8_u16.to_le_bytes()));
}

#[test]
fn cache_is_what_the_features_say_until_the_driver_switches_it() {
    for (features, mode) in [(0, 0), (FLUSH, 1), (WCE | FLUSH, 1), (WCE, 0)] {
        let mut blk = device(&image(), Access::ReadWrite);

        blk.accepted(features);

        assert_eq!(writeback(&blk), mode, "{features:#x}");
        assert_eq!(blk.features() & features, features);
    }
}

#[test]
fn cache_mode_is_switched_by_one_byte_of_0_or_1_and_forgotten_by_a_reset() {
    let mut blk = device(&image(), Access::ReadWrite);
    blk.accepted(WCE | FLUSH);

    for (value, mode) in [(&[0][..], 0), (&[2], 0), (&[1, 0], 0), (&[1], 1), (&[255], 1), (&[0], 0)] {
        blk.write_config(WRITEBACK, value);
        assert_eq!(writeback(&blk), mode, "{value:?}");
    }
    blk.accepted(0);
    blk.accepted(WCE | FLUSH);
    assert_eq!(writeback(&blk), 1);
}

#[test]
fn driver_without_the_feature_cannot_switch() {
    let mut blk = device(&image(), Access::ReadWrite);
    blk.accepted(FLUSH);

    blk.write_config(WRITEBACK, &[0]);

    assert_eq!(writeback(&blk), 1);
}

#[test]
fn driver_that_switches_to_write_through_has_every_write_made_durable() {
    let file = image();
    let mut blk = device(&file, Access::ReadWrite);
    let mut driver = TestDriver::new();
    driver.write(HEADER, &header(VIRTIO_BLK_T_OUT, 7));
    let write = [Desc::readable(HEADER, 16), Desc::readable(DATA, 512), Desc::writable(STATUS, 1)];
    let flushes = |blk: &Blk| blk.counters().into_iter().find(|count| count.name == "flushes").unwrap().value;
    blk.accepted(WCE | FLUSH);
    blk.start(driver.activation(WCE | FLUSH)).unwrap();
    let mut served = 0;
    let mut serve = || {
        driver.add(&write);
        driver.doorbell.write(1).unwrap();
        served += 1;
        driver.wait_until(|driver| driver.used().len() == served);
    };

    serve();
    assert_eq!(flushes(&blk), 0);
    blk.write_config(WRITEBACK, &[0]);
    serve();
    assert_eq!(flushes(&blk), 1);
    blk.write_config(WRITEBACK, &[1]);
    serve();
    assert_eq!(flushes(&blk), 1);
    blk.stop();
}

#[test]
fn read_only_disk_has_no_cache_to_switch_and_no_disk_erases_securely() {
    let (read_only, writable) = (device(&image(), Access::ReadOnly), device(&image(), Access::ReadWrite));

    assert_eq!((read_only.features() & WCE, writable.features() & WCE), (0, WCE));
    assert_eq!((read_only.features() | writable.features()) & bit(VIRTIO_BLK_F_SECURE_ERASE), 0);
}

#[test]
fn queues_are_1_to_16_and_follow_the_vcpus_up_to_4() {
    assert!(["0", "17", "65536", "-1", "many"].iter().all(|text| text.parse::<QueueCount>().is_err()));
    let by_cpus = [1, 2, 4, 5, u32::MAX].map(|cpus| QueueCount::for_cpus(cpus).0);
    assert_eq!(by_cpus, [1, 2, 4, 4, 4]);
    let one = device(&image(), Access::ReadWrite);
    assert_eq!((one.features() & MQ, one.queue_max_sizes().len(), field(&one, NUM_QUEUES)), (0, 1, [1, 0]));
    let four = device(&image(), Access::ReadWrite).with_queues(queues(4));
    assert_eq!((four.features() & MQ, four.queue_max_sizes().len(), field(&four, NUM_QUEUES)), (MQ, 4, [4, 0]));
}

/// A driver's second queue, with one write of sector 9 in it.
fn second_queue(driver: &TestDriver) -> ActiveQueue {
    driver.write(SECOND_HEADER, &header(VIRTIO_BLK_T_OUT, 9));
    driver.write(SECOND_DATA, &[0x99; 512]);
    for (idx, addr, len, flags) in
        [(0_u16, SECOND_HEADER, 16_u32, 1_u16), (1, SECOND_DATA, 512, 1), (2, SECOND_STATUS, 1, 2)]
    {
        let at = TABLE + 16 * u64::from(idx);
        driver.write(at, &[&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes()].concat());
        driver.write(at + 14, &(idx + 1).to_le_bytes());
    }
    driver.write(AVAILABLE, &[0, 0, 1, 0, 0, 0]);
    let mut queue = Queue::new(QUEUE_SIZE).unwrap();
    queue.set_desc_table_address(Some(0x4000), None);
    queue.set_avail_ring_address(Some(0x5000), None);
    queue.set_used_ring_address(Some(0x6000), None);
    queue.set_ready(true);
    assert!(queue.is_valid(&driver.mem));
    ActiveQueue { idx: 1, queue, doorbell: EventFd::new(EFD_NONBLOCK).unwrap() }
}

#[test]
fn every_queue_that_the_driver_enabled_is_served() {
    let file = image();
    let mut blk = device(&file, Access::ReadWrite).with_queues(queues(3));
    let mut driver = TestDriver::new();
    driver.write(HEADER, &header(VIRTIO_BLK_T_OUT, 7));
    driver.write(DATA, &[0x77; 512]);
    driver.add(&[Desc::readable(HEADER, 16), Desc::readable(DATA, 512), Desc::writable(STATUS, 1)]);
    let mut activation = driver.activation(FLUSH | MQ);
    activation.queues.push(second_queue(&driver));

    blk.start(activation).unwrap();

    let second_used = |driver: &TestDriver| driver.mem.read_obj::<u16>(GuestAddress(USED + 2)).unwrap();
    driver.wait_until(|driver| driver.used().len() == 1 && second_used(driver) == 1);
    blk.stop();
    assert_eq!((sector_of(&file, 7), sector_of(&file, 9)), ([0x77; 512], [0x99; 512]));
}

#[test]
fn driver_without_multiqueue_has_its_first_queue_served_only() {
    let mut blk = device(&image(), Access::ReadWrite).with_queues(queues(3));
    let driver = TestDriver::new();
    let mut activation = driver.activation(FLUSH);
    activation.queues.push(second_queue(&driver));

    blk.start(activation).unwrap();

    assert_eq!(blk.workers.len(), 1);
    blk.stop();
}
