//! Control commands: any bytes, cut in any way, under any negotiated features. Each is answered, and what it changed is
//! what it said.
//!
//! ```text
//!   features u64, queue pairs u8, then for each command: length u16, cut u8, failures u8, bytes
//! ```

use crate::driver::{Desc, NEXT, VERSION_1, WRITE};
use crate::input::Input;
use crate::machine::{MAC, card};
use crate::memory;
use crate::port::{Operation, Port};
use devices::irq::MsiVector;
use devices::virtio::device::{Activation, ActiveQueue, Device, Memory};
use devices::virtio::interrupt::Interrupts;
use devices::virtio::net::Link;
use devices::virtio::threads::OwnThreads;
use devices::virtio::worker::inline;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Commands of one input, at most.
const COMMANDS: u16 = 64;
const PAIRS: usize = 4;
const CTRL_VQ: u64 = 1 << 17;
const MQ: u64 = 1 << 22;
const RSS: u64 = 1 << 60;
const GUEST_CSUM: u64 = 1 << 1;
/// Where the command and its answer are. The longest command passes what the device understands.
const COMMAND: u64 = 0x8000;
const COMMAND_MAX: usize = 0x2000;
const ANSWER: u64 = 0x1_8000;
const OK: u8 = 0;
const ERR: u8 = 1;

struct Ctrl {
    mem: Memory,
    base: u64,
    interrupts: Arc<Interrupts>,
    doorbell: EventFd,
    given: u16,
}

/// Runs the commands in `bytes`.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mem = memory::fresh();
    let (ports, _wires): (Vec<_>, Vec<_>) = (0..PAIRS).map(|_| Port::new()).unzip();
    let mut net = card(&ports, Link::default());
    let features = input.u64() & net.features() | VERSION_1 | CTRL_VQ;
    let multi_queue = features & (MQ | RSS) != 0;
    let pairs = if multi_queue { usize::from(input.u8()) % PAIRS + 1 } else { 1 };
    let mut ctrl = start(&mut net, mem, features, pairs);
    for _ in 0..COMMANDS {
        if input.is_empty() {
            break;
        }
        let (len, cut, failures) = (usize::from(input.u16()) % COMMAND_MAX, input.u8(), input.u8());
        let command = input.bytes(len);
        ports.iter().for_each(|port| port.heal());
        if failures & 0x80 != 0 {
            let operation = if failures & 0x40 == 0 { Operation::Attach } else { Operation::Offloads };
            ports[usize::from(failures) % PAIRS].fail(operation, failures >> 2, 1);
        }
        let before: Vec<_> = ports.iter().map(|port| port.attached()).collect();
        let done = ctrl.give(command, cut);
        if let (true, Some(&[low, high])) = (done, command.strip_prefix(&[4, 0]).and_then(|rest| rest.first_chunk())) {
            let attached = usize::from(u16::from_le_bytes([low, high]));
            assert!(features & MQ != 0 && (1..=pairs).contains(&attached));
            assert!(ports.iter().zip(0..).all(|(port, idx)| port.attached() == (idx < attached)), "not as commanded");
        } else if done && command.starts_with(&[4, 1]) {
            let attached = ports.iter().take_while(|port| port.attached()).count();
            assert!(features & RSS != 0 && (1..=pairs).contains(&attached));
        } else if failures & 0x80 == 0 {
            assert_eq!(
                before,
                ports.iter().map(|port| port.attached()).collect::<Vec<_>>(),
                "attached by another command"
            );
        }
        if let (true, Some(mac)) = (done, command.strip_prefix(&[1, 1])) {
            let mut now = [0; 6];
            net.read_config(0, &mut now);
            assert_eq!(now, mac, "the address as commanded");
        }
        if features & GUEST_CSUM == 0 {
            assert_eq!(ports[0].offloads().bits(), 0, "offloads that were not negotiated");
        }
    }
    net.stop();
    assert!(ports[0].attached());
    assert_eq!(ports[0].header_len(), 12, "the header is back after a reset");
    let mut mac = [0; 6];
    net.read_config(0, &mut mac);
    assert_eq!(mac, MAC, "the address is back after a reset");
}

fn start(net: &mut impl Device, mem: Memory, features: u64, pairs: usize) -> Ctrl {
    let interrupts = Arc::new(Interrupts::new(Vec::<Arc<dyn MsiVector>>::new(), PAIRS * 2 + 1));
    let all = u16::try_from(pairs * 2).expect("a few");
    let ctrl_idx = if features & (MQ | RSS) != 0 { u16::try_from(PAIRS * 2).expect("a few") } else { 2 };
    let doorbell = EventFd::new(EFD_NONBLOCK).expect("there are descriptors left");
    let active = |idx: u16| ActiveQueue {
        idx,
        queue: queue(&mem, base(idx)),
        doorbell: doorbell_of(idx == ctrl_idx, &doorbell),
    };
    let queues = (0..all).chain([ctrl_idx]).map(active).collect();
    let threads = Arc::new(OwnThreads);
    let activation = Activation { mem: mem.clone(), features, queues, interrupts: interrupts.clone(), threads };
    net.start(activation).expect("it starts");
    Ctrl { mem, base: base(ctrl_idx), interrupts, doorbell, given: 0 }
}

fn doorbell_of(ctrl: bool, doorbell: &EventFd) -> EventFd {
    if ctrl { doorbell.try_clone() } else { EventFd::new(EFD_NONBLOCK) }.expect("there are descriptors left")
}

fn base(idx: u16) -> u64 {
    0x800 * (u64::from(idx) + 1)
}

const SIZE: u16 = 8;
const AVAIL: u64 = 0x200;
const USED: u64 = 0x400;

fn queue(mem: &Memory, base: u64) -> virtio_queue::Queue {
    use virtio_queue::{Queue, QueueT};
    let mut queue = Queue::new(SIZE).expect("a power of two");
    queue.set_desc_table_address(u32::try_from(base).ok(), None);
    queue.set_avail_ring_address(u32::try_from(base + AVAIL).ok(), None);
    queue.set_used_ring_address(u32::try_from(base + USED).ok(), None);
    queue.set_ready(true);
    assert!(queue.is_valid(mem));
    queue
}

impl Ctrl {
    /// Gives one command, cut after `cut` bytes, and returns whether it was obeyed.
    fn give(&mut self, command: &[u8], cut: u8) -> bool {
        let len = u32::try_from(command.len()).expect("short");
        let cut = u32::from(cut).min(len);
        self.write(COMMAND, command);
        self.write(ANSWER, &[0xaa]);
        let parts = [(COMMAND, cut, NEXT), (COMMAND + u64::from(cut), len - cut, NEXT), (ANSWER, 1, WRITE)];
        for (idx, (address, len, flags)) in (0_u16..).zip(parts) {
            let desc = Desc { address, len, flags, next: idx + 1 };
            self.write(self.base + 16 * u64::from(idx), &desc.bytes());
        }
        self.write(self.base + AVAIL + 4 + 2 * u64::from(self.given % SIZE), &[0, 0]);
        self.given += 1;
        self.write(self.base + AVAIL + 2, &self.given.to_le_bytes());
        self.doorbell.write(1).expect("a doorbell can be rung");
        let turns = (0..100).take_while(|_| inline::turn() > 0).count();
        assert!(turns < 100, "a device that has nothing to do rests");
        assert!(!self.interrupts.needs_reset(), "no command breaks the queue");
        let used: u16 = self.mem.read_obj(GuestAddress(self.base + USED + 2)).expect("guest memory");
        assert_eq!(used, self.given, "every command is answered");
        let answer: u8 = self.mem.read_obj(GuestAddress(ANSWER)).expect("guest memory");
        assert!(matches!(answer, OK | ERR), "with OK or ERR");
        answer == OK
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.mem.write_slice(bytes, GuestAddress(at)).expect("guest memory");
    }
}

/// Every command once, and those that lie.
pub fn seeds() -> Vec<Vec<u8>> {
    let key = [0x5a; 40];
    let rss = [&[4, 1, 0x3f, 0, 0, 0, 1, 0, 0, 0, 1, 0, 2, 0, 3, 0, 40][..], &key].concat();
    let hash = [&[4, 2, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 40][..], &key].concat();
    let commands: [&[u8]; 20] = [
        &[0, 0, 1],
        &[0, 1, 1],
        &[0, 2, 1],
        &[0, 3, 1],
        &[0, 4, 1],
        &[0, 5, 1],
        &[1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 9, 1, 0, 0, 0, 0x33, 0x33, 0, 0, 0, 1],
        &[1, 0, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9],
        &[1, 1, 2, 0, 0, 0, 0, 9],
        &[2, 0, 100, 0],
        &[2, 1, 100, 0],
        &[4, 0, 2, 0],
        &[4, 0, 4, 0],
        &rss,
        &hash,
        &[5, 0, 0x82, 0x5, 0, 0, 0, 0, 0, 0],
        &[6, 0, 64, 0, 0, 0, 0xf4, 1, 0, 0],
        &[6, 1, 64, 0, 0, 0, 0xf4, 1, 0, 0],
        &[6, 2, 0, 0, 0, 0, 2, 0, 0, 0, 100, 0, 0, 0],
        &[6, 3, 0, 0, 0, 0],
    ];
    let one = |command: &[u8], cut: u8, failures: u8| {
        let len = u16::try_from(command.len()).expect("short").to_le_bytes();
        [&len[..], &[cut, failures], command].concat()
    };
    let head = |features: u64| [&features.to_le_bytes()[..], if features & (MQ | RSS) != 0 { &[3] } else { &[] }].concat();
    let mut seeds: Vec<_> = commands.iter().map(|command| [head(u64::MAX), one(command, 2, 0)].concat()).collect();
    let all: Vec<u8> = commands.iter().flat_map(|command| one(command, 255, 0)).collect();
    seeds.extend([u64::MAX, CTRL_VQ, !MQ, !(MQ | RSS)].map(|features| [head(features), all.clone()].concat()));
    seeds.push(
        [head(u64::MAX), one(&[4, 0, 4, 0], 1, 0x82), one(&[4, 0, 1, 0], 1, 0), one(&[5, 0, 2], 0, 0xc0)].concat(),
    );
    seeds
}
