//! A driver's program against the whole network device: descriptors, rings, indexes, features, commands, doorbells, resets and
//! status writes, with frames arriving from the port, the host failing and the cable coming out meanwhile.
//!
//! ```text
//!   action = kind u8, a u8, b u16, c u32, d u64   and for some kinds bytes that follow
//! ```
//! A program is *tame* as long as queues lie where [`Driver::enable_queue`] puts them, in memory that nothing else is told to write.
//! Then what the device may do is known and held: every used entry answers a chain that was made available, a broken chain ends in
//! NEEDS_RESET, and nothing but used rings changes below the buffers. A wild program is held to the rest.

use crate::driver::{
    self, BUFFERS, Desc, Driver, NEEDS_RESET, NEXT, QUEUE_SIZE, RUNNING, VERSION_1, WRITE, avail, table, used,
};
use crate::input::Input;
use crate::machine::{Machine, PAIRS, Rest};
use crate::port::Operation;
use devices::virtio::net::{Carrier, Duplex, LinkState};
use std::collections::BTreeMap;
use vm_memory::{Bytes, GuestAddress};

/// Actions of one program, at most.
const ACTIONS: usize = 200;
const QUEUES: u16 = 5;
const TX: u16 = 1;
const NET_F_CTRL_VQ: u64 = 1 << 17;
/// Those with which a card has more than one queue pair: MQ and RSS.
const NET_F_MULTI: u64 = 1 << 22 | 1 << 60;
const F_RING_RESET: u64 = 1 << 40;

/// Runs the program in `bytes`.
pub fn run(bytes: &[u8]) {
    let machine = Machine::new();
    let mut session = Session::new(&machine);
    let mut input = Input(bytes);
    for _ in 0..ACTIONS {
        if input.is_empty() {
            break;
        }
        session.act(Action::decode(&mut input));
    }
    session.work();
    // A wild card may have been told to write over the other driver's rings.
    if session.tame {
        driver::entropy_still_works(&machine);
    }
    driver::card_still_works(&machine);
    if !session.tame {
        driver::entropy_still_works(&machine);
    }
    let _ = machine.net.counters();
}

/// What an action does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Reset and start with the offered features in `d`, the queues in `a` and the size 2^`b`.
    Start,
    /// Write the descriptor `b` of queue `a`: address offset `d`, length `c`, flags and next in `d`'s upper half.
    Describe,
    /// Make the chain with head `b` available in queue `a`.
    Offer,
    /// Tell the device that queue `a` has something, and let it work.
    Kick,
    /// Ring the doorbell of queue `b` with a write of `a` bytes, before the device works.
    Ring,
    /// Let the device work.
    Work,
    /// A frame of `b` bytes arrives at port `a`; what follows is its beginning.
    Arrive,
    /// The network takes what the card has sent through port `a`.
    Take,
    /// Send a frame of `b` bytes through queue `a`, cut at `c`; `d` is its header.
    Send,
    /// Post `b` receive buffers of `c` bytes to queue `a`.
    Post,
    /// Give the command in the `b` bytes that follow; `a` says how it is cut.
    Command,
    /// Set the available index of queue `a` to `b`, its flags to `c`, and used_event to `d`.
    Jump,
    /// Operation `b` of port `a` fails `c` times, as `d` says.
    Fail,
    /// Write `d` to the common configuration at `a`, `b` bytes wide.
    Register,
    /// Write `d` anywhere in the BAR.
    Bar,
    /// Write what follows, `b` bytes, to guest memory at `d`.
    Poke,
    /// Write `d` to the configuration register `b`, `a` bytes wide.
    Config,
    /// Reset.
    Reset,
    /// Read `a` bytes at `c` of the BAR.
    Read,
    /// A driver that behaves takes the card over.
    Recover,
    /// Reset queue `a`.
    ResetQueue,
    /// Enable queue `a`, with the size 2^`b`.
    EnableQueue,
    /// The cable of the host, or of the user, goes in or out, as `a` says; the speed becomes `c`.
    Cable,
    /// Send datagrams of one UDP flow through queue `a`; see [`Flow`].
    Datagrams,
}

const KINDS: [Kind; 24] = [
    Kind::Start,
    Kind::Describe,
    Kind::Offer,
    Kind::Kick,
    Kind::Ring,
    Kind::Work,
    Kind::Arrive,
    Kind::Take,
    Kind::Send,
    Kind::Post,
    Kind::Command,
    Kind::Jump,
    Kind::Fail,
    Kind::Register,
    Kind::Bar,
    Kind::Poke,
    Kind::Config,
    Kind::Reset,
    Kind::Read,
    Kind::Recover,
    Kind::ResetQueue,
    Kind::EnableQueue,
    Kind::Cable,
    Kind::Datagrams,
];

/// One step of a program.
#[derive(Debug, Clone, Copy)]
struct Action<'a> {
    kind: Kind,
    a: u8,
    b: u16,
    c: u32,
    d: u64,
    bytes: &'a [u8],
}

impl<'a> Action<'a> {
    fn decode(input: &mut Input<'a>) -> Self {
        let kind = KINDS[usize::from(input.u8()) % KINDS.len()];
        let (a, b, c, d) = (input.u8(), input.u16(), input.u32(), input.u64());
        let bytes = match kind {
            Kind::Arrive => input.bytes(32),
            Kind::Command | Kind::Poke => input.bytes(usize::from(b % 512)),
            _ => &[],
        };
        Self { kind, a, b, c, d, bytes }
    }

    fn encode(&self, program: &mut Vec<u8>) {
        let kind = KINDS.iter().position(|kind| *kind == self.kind).and_then(|idx| u8::try_from(idx).ok());
        program.extend([kind.expect("the kind is in the table"), self.a]);
        program.extend(self.b.to_le_bytes());
        program.extend(self.c.to_le_bytes());
        program.extend(self.d.to_le_bytes());
        program.extend(self.bytes);
        if self.kind == Kind::Arrive {
            program.resize(program.len() + 32 - self.bytes.len(), 0);
        }
    }
}

/// What is known about a queue of a tame program.
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

struct Session<'a> {
    machine: &'a Machine,
    net: Driver<'a>,
    offered: u64,
    features: u64,
    tame: bool,
    queues: [Queue; QUEUES as usize],
    /// What lies below the buffers, as the driver wrote it.
    low: Vec<u8>,
}

impl<'a> Session<'a> {
    fn new(machine: &'a Machine) -> Self {
        let net = Driver::of_card(machine);
        net.enable();
        let low = vec![0; usize::try_from(BUFFERS).expect("small")];
        Self { machine, net, offered: net.offered(), features: 0, tame: true, queues: Default::default(), low }
    }

    fn act(&mut self, action: Action<'_>) {
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

    /// Lets the device work, and looks at what it did.
    fn work(&mut self) {
        let rest = self.machine.settle();
        if !self.tame {
            // It may have been told to feed itself.
            return;
        }
        assert_eq!(rest, Rest::Reached, "a device that has nothing to do rests");
        for queue in 0..QUEUES {
            self.read_used(queue);
        }
        let now = self.lowest();
        // All but the used rings, which end with the page.
        let mut kept = 0;
        for queue in 0..=QUEUES {
            let end = if queue < QUEUES { used(queue) } else { BUFFERS };
            let range = kept..usize::try_from(end).expect("small");
            kept = usize::try_from(table(queue + 1)).expect("small");
            assert!(
                now[range.clone()] == self.low[range.clone()],
                "the device wrote in {range:x?}, which was not given to it"
            );
        }
    }

    fn read_used(&mut self, queue: u16) {
        let idx = self.read_u16(used(queue) + 2);
        let known = &mut self.queues[usize::from(queue)];
        if known.size == 0 {
            return;
        }
        let new = idx.wrapping_sub(known.used_seen);
        assert!(new <= known.size || known.jumped, "{new} used entries at once in queue {queue}");
        while known.used_seen != idx {
            let at = used(queue) + 4 + 8 * u64::from(known.used_seen % known.size);
            let head: u32 = self.machine.mem.read_obj(GuestAddress(at)).expect("guest memory");
            let count =
                u16::try_from(head).ok().and_then(|head| known.outstanding.get_mut(&head)).filter(|count| **count > 0);
            match count {
                Some(count) => *count -= 1,
                None => assert!(known.jumped, "queue {queue} used head {head}, which was not available"),
            }
            known.used_seen = known.used_seen.wrapping_add(1);
        }
    }

    /// Whether the available index of a transmit queue that has nothing left to do is further ahead than the ring is long.
    fn overruns(&self, queue: u16) -> bool {
        let known = &self.queues[usize::from(queue)];
        let at_rest = self.tame && queue == TX && self.net.status() == RUNNING && !self.machine.net_ports[0].full();
        let ahead = self.read_u16(avail(queue) + 2).wrapping_sub(self.read_u16(used(queue) + 2));
        at_rest && known.size != 0 && ahead > known.size
    }

    /// After a kick of a transmit or control queue: either everything is used, or the driver has been told that it broke something,
    /// or a frame waits for room.
    fn all_was_served(&self, queue: u16) {
        let known = &self.queues[usize::from(queue)];
        let ctrl = if self.features & NET_F_MULTI == 0 { 2 } else { QUEUES - 1 };
        let served = queue == TX || queue == ctrl && self.features & NET_F_CTRL_VQ != 0;
        if !self.tame || !served || known.size == 0 || self.net.status() != RUNNING {
            return;
        }
        if queue == TX && self.machine.net_ports[0].full() {
            return;
        }
        let (available, served) = (self.read_u16(avail(queue) + 2), self.read_u16(used(queue) + 2));
        assert_eq!(available, served, "queue {queue} is broken or has something left, and the driver is not told");
        assert_eq!(self.net.status() & NEEDS_RESET, 0);
    }
}

fn width(a: u8) -> usize {
    usize::from(a % 8) + 1
}

/// Datagrams of one flow, which a card may join; one byte of the last is changed.
struct Flow {
    ipv6: bool,
    fragment: u16,
    count: u8,
    payload: usize,
    last: usize,
    port: u16,
    id: u16,
    cut: u16,
    wrong_at: usize,
    wrong: u8,
}

impl Flow {
    fn decode(b: u16, c: u32, d: u64) -> Self {
        let [flags, count, wrong_at, wrong, cut_low, cut_high, last_low, last_high] = d.to_le_bytes();
        let [p0, p1, i0, i1] = c.to_le_bytes();
        let payload = usize::from(b % 2000);
        Self {
            ipv6: flags & 1 != 0,
            fragment: if flags & 2 == 0 { 0x4000 } else { 0 },
            count: count % 12 + 1,
            payload,
            last: payload.saturating_sub(usize::from(u16::from_le_bytes([last_low, last_high]) % 64)),
            port: u16::from_le_bytes([p0, p1]),
            id: u16::from_le_bytes([i0, i1]),
            cut: u16::from_le_bytes([cut_low, cut_high]),
            wrong_at: wrong_at.into(),
            wrong,
        }
    }

    /// The `nth` of them, with a virtio header that leaves the checksum to the device.
    fn frame(&self, nth: u8) -> Vec<u8> {
        let is_last = nth + 1 == self.count;
        let payload = if is_last { self.last } else { self.payload };
        let network = if self.ipv6 { 40 } else { 20 };
        let udp_len = u16::try_from(8 + payload).expect("short").to_be_bytes();
        let mut packet = vec![0; network + 8 + payload];
        if self.ipv6 {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&udp_len);
            packet[6..8].copy_from_slice(&[17, 64]);
        } else {
            packet[0] = 0x45;
            let len = u16::try_from(packet.len()).expect("short");
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            packet[4..6].copy_from_slice(&self.id.wrapping_add(nth.into()).to_be_bytes());
            packet[6..8].copy_from_slice(&self.fragment.to_be_bytes());
            packet[8..10].copy_from_slice(&[64, 17]);
        }
        packet[network - 8..network].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        if !self.ipv6 {
            let checksum = !sum(&packet[..network], 0);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        packet[network..network + 2].copy_from_slice(&self.port.to_be_bytes());
        packet[network + 4..network + 6].copy_from_slice(&udp_len);
        let addresses = if self.ipv6 { 8..40 } else { 12..20 };
        let pseudo = sum(&packet[addresses], 17 + u32::from(u16::from_be_bytes(udp_len)));
        packet[network + 6..network + 8].copy_from_slice(&pseudo.to_be_bytes());
        let start = u8::try_from(14 + network).expect("short");
        let mut frame = vec![1, 0, 0, 0, 0, 0, start, 0, 6, 0, 0, 0];
        frame.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        frame.extend(if self.ipv6 { [0x86, 0xdd] } else { [8, 0] });
        frame.extend(packet);
        if is_last && let Some(byte) = frame.get_mut(self.wrong_at) {
            *byte ^= self.wrong;
        }
        frame
    }
}

/// The ones' complement sum of 16-bit words (RFC 1071), from `start` on.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = bytes.chunks(2).fold(start, |sum, word| sum + u32::from(word[0]) * 256 + u32::from(word[1]));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}

/// Programs that get everywhere a fuzzer would take long to find.
pub fn seeds() -> Vec<Vec<u8>> {
    const ALL: u64 = u64::MAX;
    let act = |kind, a, b, c, d| Action { kind, a, b, c, d, bytes: &[] };
    let command = |bytes: &'static [u8]| {
        let b = u16::try_from(bytes.len()).expect("short");
        Action { kind: Kind::Command, a: 2, b, c: 0, d: 0, bytes }
    };
    let arrive = |a, b| Action { kind: Kind::Arrive, a, b, c: 0, d: 0, bytes: &[0; 32] };
    let start = act(Kind::Start, 0, 6, 0, ALL);
    let plain = act(Kind::Start, 0b1_1100, 4, 0, 0);
    let desc =
        |address: u32, flags: u16, next: u16| u64::from(address) | u64::from(flags) << 32 | u64::from(next) << 48;
    let programs: Vec<Vec<Action<'_>>> = vec![
        vec![start, act(Kind::Send, 1, 100, 12, 0), act(Kind::Kick, 1, 0, 0, 0), act(Kind::Take, 0, 0, 0, 0)],
        vec![
            start,
            act(Kind::Post, 0, 4, 2000, 0),
            act(Kind::Kick, 0, 0, 0, 0),
            arrive(0, 72),
            arrive(0, 5000),
            act(Kind::Work, 0, 0, 0, 0),
        ],
        vec![
            start,
            command(&[4, 0, 2, 0]),
            act(Kind::Post, 2, 3, 70000, 0),
            arrive(1, 65000),
            act(Kind::Kick, 2, 0, 0, 0),
        ],
        vec![start, command(&[0, 0, 1]), command(&[1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 9, 0, 0, 0, 0]), arrive(0, 90)],
        vec![start, command(&[1, 1, 2, 0, 0, 0, 0, 9]), command(&[2, 0, 5, 0]), command(&[2, 1, 5, 0])],
        vec![start, command(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), command(&[4, 0, 0, 0]), command(&[4, 0, 3, 0])],
        vec![plain, act(Kind::Send, 1, 100, 12, 0x0102_0304_0506_0101), act(Kind::Kick, 1, 0, 0, 0)],
        vec![
            start,
            act(Kind::Describe, 1, 0, 64, desc(0, NEXT, 0)),
            act(Kind::Offer, 1, 0, 0, 0),
            act(Kind::Kick, 1, 0, 0, 0),
        ],
        vec![
            start,
            act(Kind::Describe, 1, 0, 64, desc(0x2_7ff0, 0, 0)),
            act(Kind::Offer, 1, 0, 0, 0),
            act(Kind::Kick, 1, 0, 0, 0),
        ],
        vec![start, act(Kind::Jump, 1, 500, 0, 0), act(Kind::Kick, 1, 0, 0, 0), act(Kind::Recover, 0, 0, 0, 0)],
        vec![start, act(Kind::Fail, 0, 1, 3, 0), act(Kind::Send, 1, 100, 12, 0), act(Kind::Kick, 1, 0, 0, 0)],
        vec![
            start,
            act(Kind::Fail, 0, 1, 2, 7),
            act(Kind::Send, 1, 100, 12, 0),
            act(Kind::Kick, 1, 0, 0, 0),
            act(Kind::Reset, 0, 0, 0, 0),
        ],
        vec![
            act(Kind::Register, 0x16, 1, 0, 3),
            act(Kind::Register, 0x20, 7, 0, 0x3_fff0),
            act(Kind::Register, 0x1c, 1, 0, 1),
        ],
        vec![
            start,
            Action {
                kind: Kind::Poke,
                a: 0,
                b: 16,
                c: 0,
                d: 0x2000,
                bytes: &[0, 0x90, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 4, 0, 0, 0],
            },
            act(Kind::Offer, 1, 0, 0, 0),
            act(Kind::Kick, 1, 0, 0, 0),
        ],
        vec![
            start,
            act(Kind::Config, 1, 4, 0, 2),
            act(Kind::Ring, 1, 1, 0, 1),
            act(Kind::Bar, 7, 0, 0x3000, 1),
            act(Kind::Read, 3, 0, 0x14, 0),
        ],
        vec![
            start,
            act(Kind::ResetQueue, 1, 0, 0, 0),
            act(Kind::EnableQueue, 1, 3, 0, 0),
            act(Kind::Send, 1, 100, 12, 0),
            act(Kind::Kick, 1, 0, 0, 0),
        ],
        vec![
            start,
            act(Kind::Post, 0, 4, 20, 0),
            act(Kind::Kick, 0, 0, 0, 0),
            arrive(0, 500),
            act(Kind::Work, 0, 0, 0, 0),
            act(Kind::ResetQueue, 0, 0, 0, 0),
            act(Kind::EnableQueue, 0, 4, 0, 0),
            act(Kind::Post, 0, 4, 2000, 0),
            act(Kind::Kick, 0, 0, 0, 0),
        ],
        vec![start, act(Kind::ResetQueue, 4, 0, 0, 0), act(Kind::EnableQueue, 4, 3, 0, 0), command(&[0, 0, 1])],
        vec![
            start,
            act(Kind::Cable, 3, 0, 10_000, 0),
            act(Kind::Send, 1, 100, 12, 0),
            act(Kind::Kick, 1, 0, 0, 0),
            act(Kind::Cable, 2, 0, 10_000, 0),
            command(&[3, 0]),
        ],
        vec![
            start,
            command(&[6, 0, 64, 0, 0, 0, 0xf4, 1, 0, 0]),
            act(Kind::Send, 1, 100, 12, 0),
            act(Kind::Kick, 1, 0, 0, 0),
        ],
        vec![start, act(Kind::Datagrams, 1, 18, 0x7_0035, 0x0400), act(Kind::Kick, 1, 0, 0, 0)],
        vec![start, act(Kind::Datagrams, 1, 1200, 0x7_0035, 0x0007_0036_0000_0702), act(Kind::Kick, 1, 0, 0, 0)],
        vec![
            start,
            act(Kind::Fail, 0, 1, 1, 7),
            act(Kind::Datagrams, 1, 100, 0x35, 0x0501),
            act(Kind::Kick, 1, 0, 0, 0),
            act(Kind::Work, 0, 0, 0, 0),
        ],
    ];
    let encode = |program: &Vec<Action<'_>>| {
        let mut bytes = Vec::new();
        program.iter().for_each(|action| action.encode(&mut bytes));
        bytes
    };
    programs.iter().map(encode).collect()
}
