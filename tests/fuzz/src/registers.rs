//! Registers: reads and writes of any width, anywhere in configuration space, in BARs wherever they were moved, and in
//! the windows.
//!
//! ```text
//!   access = space u8, width u8, offset u32, value u64
//! ```

use crate::driver::{self, Driver};
use crate::input::Input;
use crate::machine::{CONFIG_PORTS, ECAM, MEM32, MEM64, Machine, NET, RNG};
use vm_memory::Bytes;
use vm_memory::GuestAddress;

/// Accesses of one input, at most.
const ACCESSES: usize = 400;

/// Runs the accesses in `bytes`.
pub fn run(bytes: &[u8]) {
    let machine = Machine::new();
    let fixed = [NET, RNG].map(|slot| identity(&machine, slot));
    [NET, RNG].iter().for_each(|slot| Driver { machine: &machine, slot: *slot, base: 0 }.enable());
    let mut input = Input(bytes);
    for _ in 0..ACCESSES {
        if input.is_empty() {
            break;
        }
        access(&machine, &mut input);
        let bells = machine.doorbells.addresses();
        assert!(bells.len() <= 6, "more doorbells than queues: {bells:x?}");
    }
    machine.settle();
    assert_eq!(fixed, [NET, RNG].map(|slot| identity(&machine, slot)), "read-only registers changed");
    for slot in [NET, RNG] {
        Driver { machine: &machine, slot, base: 0 }.disable();
    }
    assert!(machine.doorbells.addresses().is_empty(), "doorbells where nothing answers");
    driver::card_still_works(&machine);
    driver::entropy_still_works(&machine);
}

fn access(machine: &Machine, input: &mut Input<'_>) {
    let (space, width, offset, value) = (input.u8(), usize::from(input.u8()), input.u32(), input.u64());
    let (is_write, width) = (width & 0x80 == 0, width % 8 + 1);
    let mut data = value.to_le_bytes();
    let data = &mut data[..width];
    let slot = if offset & 1 << 31 == 0 { NET } else { RNG };
    let offset = u64::from(offset & 0x7fff_ffff);
    let mmio = match space % 8 {
        // One slot's configuration space.
        0 => Some(ECAM + (u64::from(slot) << 15) + offset % 0x1000),
        // All of it.
        1 => Some(ECAM + offset % 0x10_0000),
        2 => {
            let port = CONFIG_PORTS + offset % 8;
            if is_write {
                machine.ports.write(port, data)
            } else {
                machine.ports.read(port, data)
            }
            None
        }
        // A structure of a device, wherever its BAR was moved.
        3 => Some(machine.bar(slot).wrapping_add(offset % 0x40)),
        4 => Some(machine.bar(slot).wrapping_add(offset % 0x1_0010)),
        5 => Some(MEM32.0 + offset % (MEM32.1 - MEM32.0 + 8)),
        6 => Some(MEM64.0 + offset % (MEM64.1 - MEM64.0 + 8)),
        // What a driver would put into its rings.
        _ => {
            // Holes take nothing.
            let _ = machine.mem.write_slice(data, GuestAddress(offset % 0x5_0000));
            machine.settle();
            None
        }
    };
    if let Some(at) = mmio {
        if is_write { machine.mmio.write(at, data) } else { machine.mmio.read(at, data) }
    }
}

/// The registers that a guest cannot change: identity, and the list of capabilities.
fn identity(machine: &Machine, slot: u8) -> ([u8; 4], [u8; 4], Vec<(u8, u8)>) {
    let [mut at] = machine.config(slot, 0x34);
    let mut capabilities = Vec::new();
    while at != 0 {
        let [id, next] = machine.config(slot, u64::from(at));
        capabilities.push((at, id));
        assert!(capabilities.len() < 48, "the list of capabilities loops");
        at = next;
    }
    (machine.config(slot, 0), machine.config(slot, 8), capabilities)
}

/// A driver that finds the device and starts it, a BAR that moves, and the window in configuration space.
pub fn seeds() -> Vec<Vec<u8>> {
    const READ: u8 = 0x80;
    let one = |space: u8, width: u8, offset: u32, value: u64| {
        [&[space, width][..], &offset.to_le_bytes(), &value.to_le_bytes()].concat()
    };
    let config = |width: u8, offset: u32, value: u64| one(0, width, offset, value);
    let common = |width: u8, offset: u32, value: u64| one(3, width, offset, value);
    let mut start =
        vec![common(0, 0x14, 1), common(0, 0x14, 3), common(3, 8, 1), common(3, 0xc, 1), common(0, 0x14, 11)];
    for queue in 0..2 {
        let base = 0x1000 * (queue + 1);
        let set = [
            (1, 0x16, queue),
            (1, 0x18, 64),
            (7, 0x20, base),
            (7, 0x28, base + 0x400),
            (7, 0x30, base + 0x600),
            (1, 0x1c, 1),
        ];
        start.extend(set.map(|(width, offset, value)| common(width, offset, value)));
    }
    start.push(common(0, 0x14, 15));
    let moves = [
        config(1, 4, 0),
        config(7, 0x10, MEM64.0),
        config(1, 4, 6),
        config(3, 0x10, 0xfee0_0000),
        config(3, 0x10, 0xc001_0000),
    ];
    let window =
        [config(0, 0x98, 0), config(3, 0x9c, 0), config(3, 0xa0, 4), config(READ | 3, 0xa4, 0), config(3, 0xa4, 1)];
    let ports = [one(2, 3, 0, 0x8000_0800), one(2, READ | 3, 4, 0), one(2, READ, 7, 0), one(2, 1, 6, 7)];
    let msix =
        [config(1, 0x42, 0x8000), one(4, 7, 0x8000, 0xfee0_0000), one(4, 7, 0x8008, 0x41), one(4, READ | 7, 0x9000, 0)];
    let used = [one(7, 7, 0x2400, 0x1_0000), one(4, 1, 0x3004, 1), one(4, READ, 0x1000, 0), one(4, 3, 0x3404, 7)];
    let reset = [common(0, 0x14, 0), common(READ, 0x14, 0)];
    let start = start.concat();
    vec![
        [&start[..], &used.concat(), &reset.concat()].concat(),
        [&start[..], &moves.concat(), &used.concat()].concat(),
        window.concat(),
        ports.concat(),
        [&msix.concat()[..], &start].concat(),
        [&moves.concat()[..], &window.concat(), &reset.concat()].concat(),
    ]
}
