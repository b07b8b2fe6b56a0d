//! A program under way: what it does to the card, and what is known of it.

mod hold;

use super::action::{Action, Kind};
use super::flow::Flow;
use crate::driver::{
    self, BUFFERS, Desc, Driver, NEEDS_RESET, NEXT, QUEUE_SIZE, RUNNING, VERSION_1, WRITE, avail, table,
};
use crate::machine::{Machine, PAIRS};
use crate::port::Operation;
use devices::virtio::net::{Carrier, Duplex, LinkState};
use std::collections::BTreeMap;
use vm_memory::{Bytes, GuestAddress};

const QUEUES: u16 = 5;
const TX: u16 = 1;
const NET_F_CTRL_VQ: u64 = 1 << 17;
/// Those with which a card has more than one queue pair: MQ and RSS.
const NET_F_MULTI: u64 = 1 << 22 | 1 << 60;
const F_RING_RESET: u64 = 1 << 40;

/// The known state of a queue of a tame program.
#[derive(Default)]
struct Queue {
    size: u16,
    /// The driver's available index.
    available: u16,
    /// How far the used ring has been read.
    used_seen: u16,
    /// How often each head was made available without being used.
    outstanding: BTreeMap<u16, u32>,
    /// The available index jumped: which chains are available is for the device to say.
    jumped: bool,
    /// Buffers handed out by [`Kind::Send`], [`Kind::Post`] and [`Kind::Command`].
    next_desc: u16,
}

pub(super) struct Session<'a> {
    machine: &'a Machine,
    net: Driver<'a>,
    offered: u64,
    features: u64,
    /// True for a tame program.
    pub(super) tame: bool,
    queues: [Queue; QUEUES as usize],
    /// The memory below the buffers, as the driver wrote it.
    low: Vec<u8>,
}

impl<'a> Session<'a> {
    pub(super) fn new(machine: &'a Machine) -> Self {
        let net = Driver::of_card(machine);
        net.enable();
        let low = vec![0; usize::try_from(BUFFERS).expect("small")];
        Self { machine, net, offered: net.offered(), features: 0, tame: true, queues: Default::default(), low }
    }

    pub(super) fn act(&mut self, action: Action<'_>) {
        let Action { kind, a, b, c, d, bytes } = action;
        let queue = u16::from(a) % QUEUES;
        let port = usize::from(a) % PAIRS;
        match kind {
            Kind::Start => self.start(d, a, b),
            Kind::Describe => self.describe(queue, b, c, d),
            Kind::Offer => self.offer(queue, b),
            Kind::Kick => {
                self.work();
                let overrun = self.overruns(queue);
                self.net.kick(queue);
                self.work();
                self.all_was_served(queue);
                let told = self.net.status() & NEEDS_RESET != 0;
                assert!(
                    told || !overrun,
                    "queue {queue} has more available than it is long, and the driver is not told"
                );
            }
            Kind::Ring => self.net.write(driver::NOTIFY + 4 * u64::from(b % 300), &d.to_le_bytes()[..width(a)]),
            Kind::Work => self.work(),
            Kind::Arrive => {
                let mut frame = vec![0; usize::from(b).max(bytes.len())];
                frame[..bytes.len()].copy_from_slice(bytes);
                // No room: lost, as on any wire.
                let _ = self.machine.wires[port].send(&frame[..usize::from(b)]);
            }
            Kind::Take => while self.machine.wires[port].recv(&mut [0; 1]).is_ok() {},
            Kind::Send => self.send(queue, b, c, d),
            Kind::Post => (0..b % 32).for_each(|_| self.chain(queue, &[(d % 0x2_0000, c % 0x3_0000, WRITE)])),
            Kind::Command => self.command(a, bytes),
            Kind::Jump => self.jump(queue, b, c, d),
            Kind::Fail => {
                let operation = Operation::ALL[usize::from(b) % Operation::ALL.len()];
                self.machine.net_ports[port].fail(operation, d.to_le_bytes()[0], c.to_le_bytes()[0]);
            }
            Kind::Register => {
                // Another place or size for a queue, or other features: no longer what the model knows.
                self.tame &= a == 0x14;
                self.net.write(u64::from(a % 64), &d.to_le_bytes()[..width(b.to_le_bytes()[0])]);
            }
            Kind::Bar => {
                self.tame = false;
                self.net.write(u64::from(c % 0x1_0000), &d.to_le_bytes()[..width(a)]);
            }
            Kind::Poke => {
                self.tame = false;
                self.write(d % 0x5_0000, bytes);
            }
            Kind::Config => {
                self.tame = false;
                self.machine.set_config(self.net.slot, u64::from(b % 0x1000), &d.to_le_bytes()[..width(a)]);
            }
            Kind::Reset => {
                self.net.write(driver::common::STATUS, &[0]);
                self.forget();
            }
            Kind::Read => {
                let mut data = [0; 8];
                self.machine.mmio.read(self.net.home() + u64::from(c % 0x1_0000), &mut data[..width(a)]);
            }
            Kind::Datagrams => {
                let flow = Flow::decode(b, c, d);
                for nth in 0..flow.count {
                    let at = 0x1_0000 + u64::from(nth) * 0x1000;
                    let frame = flow.frame(nth);
                    self.write(BUFFERS + at, &frame);
                    let (len, cut) = (u32::try_from(frame.len()).expect("short"), u32::from(flow.cut));
                    let cut = cut.min(len);
                    let parts = [(at, cut, 0), (at + u64::from(cut), len - cut, 0)];
                    self.chain(queue, if cut == len { &parts[..1] } else { &parts });
                }
            }
            Kind::Cable => {
                let carrier = if a & 1 == 0 { Carrier::Up } else { Carrier::Down };
                match a & 2 {
                    0 => self.machine.link.switch(carrier),
                    _ => self.machine.link.follow(LinkState { carrier, speed: Some(c), duplex: Some(Duplex::Full) }),
                }
                if let Some(next) = self.machine.link.next_announcement() {
                    self.machine.link.announce(next);
                }
            }
            Kind::ResetQueue => self.reset_queue(queue),
            Kind::EnableQueue => self.enable_queue(queue, b),
            Kind::Recover => {
                self.forget();
                driver::card_still_works(self.machine);
                self.net.write(driver::common::STATUS, &[0]);
                self.low = self.lowest();
                self.tame = true;
            }
        }
    }

    fn start(&mut self, features: u64, queues: u8, size: u16) {
        self.net.enable();
        self.net.write(driver::common::STATUS, &[0]);
        self.forget();
        self.features = features & self.offered | VERSION_1;
        let size = 1 << (size % 7);
        assert!(size <= QUEUE_SIZE);
        self.net.negotiate(self.features);
        for queue in (0..QUEUES).filter(|queue| queues & 1 << queue == 0) {
            self.net.enable_queue(queue, size);
            self.queues[usize::from(queue)].size = size;
        }
        self.low = self.lowest();
        self.net.write(driver::common::STATUS, &[RUNNING]);
    }

    fn reset_queue(&mut self, queue: u16) {
        self.net.write(driver::common::QUEUE_SELECT, &queue.to_le_bytes());
        self.net.write(driver::common::QUEUE_RESET, &[1, 0]);
        if self.features & F_RING_RESET != 0 {
            let [enabled, _] = self.net.read(driver::common::QUEUE_ENABLE);
            assert!(!self.tame || enabled == 0, "queue {queue} is enabled after its reset");
            self.queues[usize::from(queue)] = Queue::default();
        }
    }

    fn enable_queue(&mut self, queue: u16, size: u16) {
        self.net.write(driver::common::QUEUE_SELECT, &queue.to_le_bytes());
        let [enabled, _] = self.net.read(driver::common::QUEUE_ENABLE);
        let known = &self.queues[usize::from(queue)];
        // Its memory would be cleared under the device.
        if known.size != 0 || enabled != 0 {
            return;
        }
        let size = 1 << (size % 7);
        self.net.enable_queue(queue, size);
        let [enabled, _] = self.net.read(driver::common::QUEUE_ENABLE);
        if enabled != 0 {
            self.queues[usize::from(queue)].size = size;
        }
        self.low = self.lowest();
    }

    fn forget(&mut self) {
        self.queues = Default::default();
        self.features = 0;
    }

    /// Memory below the buffers, as it is.
    fn lowest(&self) -> Vec<u8> {
        let mut low = vec![0; usize::try_from(BUFFERS).expect("small")];
        self.machine.mem.read_slice(&mut low, GuestAddress(0)).expect("guest memory");
        low
    }

    /// Writes guest memory as the driver.
    fn write(&mut self, at: u64, bytes: &[u8]) {
        // Holes take nothing.
        let _ = self.machine.mem.write_slice(bytes, GuestAddress(at));
        if let Some(low) = usize::try_from(at).ok().and_then(|at| self.low.get_mut(at..at + bytes.len())) {
            low.copy_from_slice(bytes);
        }
    }

    fn read_u16(&self, at: u64) -> u16 {
        self.machine.mem.read_obj(GuestAddress(at)).expect("guest memory")
    }

    fn describe(&mut self, queue: u16, idx: u16, len: u32, rest: u64) {
        let [a, b, c, d, flags_low, flags_high, next_low, next_high] = rest.to_le_bytes();
        let address = u64::from(u32::from_le_bytes([a, b, c, d]));
        let flags = u16::from_le_bytes([flags_low, flags_high]);
        let next = u16::from_le_bytes([next_low, next_high]);
        let address = if address >> 31 == 0 { BUFFERS + address } else { address << 32 | address };
        // Indirect tables lie among the buffers.
        self.tame &= flags & !(NEXT | WRITE) == 0;
        let desc = Desc { address, len, flags, next };
        self.write(table(queue) + 16 * u64::from(idx % QUEUE_SIZE), &desc.bytes());
    }

    fn offer(&mut self, queue: u16, head: u16) {
        let known = &mut self.queues[usize::from(queue)];
        let slot = known.available % known.size.max(1);
        known.available = known.available.wrapping_add(1);
        *known.outstanding.entry(head).or_default() += 1;
        let (idx, under_way) = (known.available, known.available.wrapping_sub(known.used_seen));
        if under_way > known.size {
            known.jumped = true;
        }
        self.write(avail(queue) + 4 + 2 * u64::from(slot), &head.to_le_bytes());
        self.write(avail(queue) + 2, &idx.to_le_bytes());
    }

    /// A chain in descriptors that follow those of the chain before.
    fn chain(&mut self, queue: u16, parts: &[(u64, u32, u16)]) {
        let known = &mut self.queues[usize::from(queue)];
        let size = known.size.max(1);
        let head = known.next_desc % size;
        known.next_desc = (head + u16::try_from(parts.len()).expect("a few")) % size;
        for (nth, (offset, len, flags)) in (0..).zip(parts) {
            let last = usize::from(nth) + 1 == parts.len();
            let (idx, next) = ((head + nth) % size, (head + nth + 1) % size);
            let flags = if last { *flags } else { flags | NEXT };
            let desc = Desc { address: BUFFERS + offset, len: *len, flags, next };
            self.write(table(queue) + 16 * u64::from(idx), &desc.bytes());
        }
        self.offer(queue, head);
    }

    fn send(&mut self, queue: u16, len: u16, cut: u32, header: u64) {
        let at = 0x1_0000;
        let mut head = [0; 12];
        head[..8].copy_from_slice(&header.to_le_bytes());
        self.write(BUFFERS + at, &head);
        let (len, cut) = (u32::from(len), cut % 0x1_0000);
        let cut = cut.min(len);
        let parts = [(at, cut, 0), (at + u64::from(cut), len - cut, 0)];
        self.chain(queue, if cut == len { &parts[..1] } else { &parts });
    }

    fn command(&mut self, cut: u8, command: &[u8]) {
        let queue = if self.features & NET_F_MULTI == 0 { 2 } else { QUEUES - 1 };
        let at = 0x1_8000;
        self.write(BUFFERS + at, command);
        let len = u32::try_from(command.len()).expect("short");
        let cut = u32::from(cut).min(len);
        let ack = (at + 0x400, 1, WRITE);
        self.chain(queue, &[(at, cut, 0), (at + u64::from(cut), len - cut, 0), ack]);
        self.net.kick(queue);
        self.work();
        self.all_was_served(queue);
    }

    fn jump(&mut self, queue: u16, idx: u16, flags: u32, used_event: u64) {
        self.queues[usize::from(queue)].jumped = true;
        let [f0, f1, ..] = flags.to_le_bytes();
        let [i0, i1] = idx.to_le_bytes();
        self.write(avail(queue), &[f0, f1, i0, i1]);
        let size = self.queues[usize::from(queue)].size;
        self.write(avail(queue) + 4 + 2 * u64::from(size), &used_event.to_le_bytes()[..2]);
    }
}

fn width(a: u8) -> usize {
    usize::from(a % 8) + 1
}
