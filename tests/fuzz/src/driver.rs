//! A driver that behaves: what it takes to bring a device up again after whatever was done to it, and to see it work.

use crate::machine::{self, Machine, NET, RNG, Rest};
use crate::memory;
use devices::virtio::net::{Carrier, LinkState};
use vm_memory::{Bytes, GuestAddress};

/// Registers of the common configuration structure, virtio 1.3 4.1.4.3.
pub mod common {
    #![allow(missing_docs)]
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
    pub const QUEUE_RESET: u64 = 0x3a;
}

/// Where the other structures are in the BAR.
pub const DEVICE_CONFIG: u64 = 0x2000;
/// Notification addresses, 4 bytes apart.
pub const NOTIFY: u64 = 0x3000;

/// Bytes of a BAR.
pub const BAR_SIZE: u64 = 0x1_0000;

/// Everything up to DRIVER_OK.
pub const RUNNING: u8 = 0xf;
/// DEVICE_NEEDS_RESET.
pub const NEEDS_RESET: u8 = 0x40;
/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;

/// Descriptor flags, virtio 1.3 2.7.5.
pub const NEXT: u16 = 1;
/// The device may write.
pub const WRITE: u16 = 2;

/// Descriptors of a queue that [`Driver::start`] sets up, at most: the parts below have room for no more.
pub const QUEUE_SIZE: u16 = 64;
/// Bytes of memory of each queue: descriptors, available ring at [`AVAIL`], used ring at [`USED`].
const QUEUE_STRIDE: u64 = 0x1000;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x600;

/// Where a queue's descriptor table is.
pub fn table(queue: u16) -> u64 {
    QUEUE_STRIDE * (u64::from(queue) + 1)
}

/// Where a queue's available ring is.
pub fn avail(queue: u16) -> u64 {
    table(queue) + AVAIL
}

/// Where a queue's used ring is.
pub fn used(queue: u16) -> u64 {
    table(queue) + USED
}

/// Where buffers begin; the queues lie below.
pub const BUFFERS: u64 = 0x8000;

/// The driver of one device.
#[derive(Clone, Copy)]
pub struct Driver<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// The slot of the device.
    pub slot: u8,
    /// Where its queues' memory begins.
    pub base: u64,
}

impl<'a> Driver<'a> {
    /// The card's, with its queues at the bottom of memory.
    pub fn of_card(machine: &'a Machine) -> Self {
        Self { machine, slot: NET, base: 0 }
    }

    /// Where firmware put the BAR.
    pub fn home(&self) -> u64 {
        machine::MEM32.0 + u64::from(self.slot - 1) * BAR_SIZE
    }

    /// Reads from the BAR, if it is where firmware put it.
    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut data = [0; N];
        self.machine.mmio.read(self.home() + at, &mut data);
        data
    }

    /// Writes to the BAR, if it is where firmware put it.
    pub fn write(&self, at: u64, data: &[u8]) {
        self.machine.mmio.write(self.home() + at, data);
    }

    /// The device status.
    pub fn status(&self) -> u8 {
        let [status] = self.read(common::STATUS);
        status
    }

    /// The offered features.
    pub fn offered(&self) -> u64 {
        (0..2_u32).fold(0, |bits, select| {
            self.write(common::DEVICE_FEATURE_SELECT, &select.to_le_bytes());
            bits | u64::from(u32::from_le_bytes(self.read(common::DEVICE_FEATURE))) << (32 * select)
        })
    }

    /// Puts the BAR where firmware put it, and lets the function answer memory accesses and access memory.
    pub fn enable(&self) {
        self.disable();
        self.machine.set_config(self.slot, 0x10, &self.home().to_le_bytes());
        self.machine.set_config(self.slot, 4, &6_u16.to_le_bytes());
    }

    /// Forbids that.
    pub fn disable(&self) {
        self.machine.set_config(self.slot, 4, &[0; 2]);
    }

    /// Accepts `features` and goes on to FEATURES_OK.
    pub fn negotiate(&self, features: u64) {
        for status in [1, 3] {
            self.write(common::STATUS, &[status]);
        }
        for (select, half) in [(0_u32, features), (1, features >> 32)] {
            self.write(common::DRIVER_FEATURE_SELECT, &select.to_le_bytes());
            self.write(common::DRIVER_FEATURE, &half.to_le_bytes()[..4]);
        }
        self.write(common::STATUS, &[11]);
    }

    /// Enables `queue` with `size` descriptors, with its parts where they belong and its memory empty.
    pub fn enable_queue(&self, queue: u16, size: u16) {
        self.machine.mem.write_slice(&[0; 0x1000], GuestAddress(self.base + table(queue))).expect("guest memory");
        self.write(common::QUEUE_SELECT, &queue.to_le_bytes());
        self.write(common::QUEUE_SIZE, &size.to_le_bytes());
        let parts = [
            (common::QUEUE_DESC, table(queue)),
            (common::QUEUE_DRIVER, avail(queue)),
            (common::QUEUE_DEVICE, used(queue)),
        ];
        for (register, address) in parts {
            self.write(register, &(self.base + address).to_le_bytes());
        }
        self.write(common::QUEUE_ENABLE, &[1, 0]);
    }

    /// Rings the doorbell of `queue`, on the way that is open.
    pub fn kick(&self, queue: u16) {
        let at = NOTIFY + 4 * u64::from(queue);
        if !self.machine.doorbells.ring(self.home() + at) {
            self.write(at, &queue.to_le_bytes());
        }
    }

    /// Resets the device and brings it up with `features` and the queues `0..queues`.
    pub fn restart(&self, features: u64, queues: u16) {
        self.enable();
        self.write(common::STATUS, &[0]);
        assert_eq!(self.status(), 0, "a reset ends in status 0");
        self.negotiate(features);
        for queue in 0..queues {
            self.enable_queue(queue, 16);
        }
        self.write(common::STATUS, &[RUNNING]);
        assert_eq!(self.status(), RUNNING, "slot {} starts again after a reset", self.slot);
    }

    /// Makes `descs` (address, length, flags) available as one chain in an empty part of the queue, and tells the
    /// device.
    fn offer(&self, queue: u16, nth: u16, descs: &[(u64, u32, u16)]) {
        let first = nth * 4;
        for (idx, (address, len, flags)) in (first..).zip(descs) {
            let more = usize::from(idx - first) + 1 < descs.len();
            let flags = flags | if more { NEXT } else { 0 };
            let desc = Desc { address: *address, len: *len, flags, next: idx + 1 };
            let at = self.base + table(queue) + 16 * u64::from(idx);
            self.machine.mem.write_slice(&desc.bytes(), GuestAddress(at)).expect("guest memory");
        }
        let mem = &self.machine.mem;
        mem.write_obj(first, GuestAddress(self.base + avail(queue) + 4 + 2 * u64::from(nth))).expect("guest memory");
        mem.write_obj(nth + 1, GuestAddress(self.base + avail(queue) + 2)).expect("guest memory");
        self.kick(queue);
        assert_eq!(self.machine.settle(), Rest::Reached, "a device that has nothing to do rests");
    }

    /// The `nth` used entry: head and length; `None` if there is none yet.
    fn used(&self, queue: u16, nth: u16) -> Option<(u32, u32)> {
        let read = |at| self.machine.mem.read_obj(GuestAddress(at)).expect("guest memory");
        let idx: u16 = self.machine.mem.read_obj(GuestAddress(self.base + used(queue) + 2)).expect("guest memory");
        let at = self.base + used(queue) + 4 + 8 * u64::from(nth);
        (nth < idx).then(|| (read(at), read(at + 4)))
    }
}

/// A descriptor, virtio 1.3 2.7.5.
#[derive(Debug, Clone, Copy)]
pub struct Desc {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], indirect.
    pub flags: u16,
    /// The next one.
    pub next: u16,
}

impl Desc {
    /// As it lies in memory.
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

const FRAME_LEN: usize = 12 + 60;

/// An untagged broadcast frame with an empty virtio header.
pub fn frame() -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[12..18].fill(0xff);
    frame[24..26].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// After anything: the entropy source fills a buffer.
pub fn entropy_still_works(machine: &Machine) {
    let rng = Driver { machine, slot: RNG, base: memory::REGIONS[2].0 };
    let buffer = rng.base + BUFFERS;
    rng.restart(VERSION_1, 1);
    rng.offer(0, 0, &[(buffer, 16, WRITE)]);
    assert_eq!(rng.used(0, 0), Some((0, 16)), "the entropy source answers");
}

/// After anything: a reset brings the card back, with all it offers; it sends, receives and obeys.
pub fn card_still_works(machine: &Machine) {
    machine.net_ports.iter().for_each(|port| port.heal());
    machine.link.switch(Carrier::Up);
    machine.link.follow(LinkState { carrier: Carrier::Up, speed: None, duplex: None });
    let net = Driver::of_card(machine);
    net.enable();
    net.write(common::STATUS, &[0]);
    let offered = net.offered();
    let ctrl = u16::from_le_bytes(net.read(common::NUM_QUEUES)) - 1;
    // Stale frames belong to whoever was there before.
    let mut bytes = [0; 128];
    for end in machine.wires.iter() {
        while end.recv(&mut bytes).is_ok() {}
    }
    machine.net_ports.iter().for_each(|port| port.forget_frames());
    net.restart(offered, ctrl + 1);
    machine.settle();

    machine.mem.write_slice(&frame(), GuestAddress(BUFFERS)).expect("guest memory");
    net.offer(1, 0, &[(BUFFERS, 12, 0), (BUFFERS + 12, 60, 0)]);
    assert_eq!(machine.wires[0].recv(&mut bytes).ok(), Some(FRAME_LEN), "the card sends");
    assert_eq!(net.used(1, 0), Some((0, 0)));

    machine.wires[0].send(&frame()).expect("the wire is free");
    net.offer(0, 0, &[(BUFFERS + 0x1000, 1 << 17, WRITE)]);
    assert_eq!(net.used(0, 0), Some((0, 72)), "the card receives");

    machine.mem.write_slice(&[4, 0, 2, 0, 0xaa], GuestAddress(BUFFERS)).expect("guest memory");
    net.offer(ctrl, 0, &[(BUFFERS, 4, 0), (BUFFERS + 4, 1, WRITE)]);
    assert_eq!(net.used(ctrl, 0), Some((0, 1)), "the card answers commands");
    assert_eq!(machine.mem.read_obj::<u8>(GuestAddress(BUFFERS + 4)).ok(), Some(0), "and obeys");
    assert!(machine.net_ports.iter().all(|port| port.attached()));
    assert_eq!(net.status(), RUNNING, "a driver that behaves is never told to reset");
}
