//! The program run by an interpreter of the instructions it uses, beside the computation that it stands for. Whether a
//! kernel accepts it is shown where there are privileges.

use super::super::dissect::Types;
use super::super::settings::RssSettings;
use super::super::tests::{KEY, TCP, UDP, frames, rss_config};
use super::{layout, program};
use proptest::prelude::*;

const STACK: usize = 512;
/// Addresses as the interpreter gives them out.
const STACK_END: u64 = 0x1000_0000;
const MAP: u64 = 0x2000_0000;
/// More instructions than any path through the program has.
const STEPS: usize = 2000;

/// The map's element for `settings`.
fn element(settings: &RssSettings) -> Vec<u8> {
    let mut bytes = vec![0; layout::BYTES];
    let mut put = |at: usize, word: u32| bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    put(layout::TYPES, settings.hash.types.bits());
    put(layout::MASK, settings.indirection.mask());
    put(layout::UNCLASSIFIED, settings.indirection.unclassified().into());
    for (i, queue) in settings.indirection.table().iter().enumerate() {
        put(layout::TABLE + 4 * i, u32::from(*queue));
    }
    for (i, word) in settings.hash.toeplitz.words().enumerate() {
        put(layout::ADDED + 4 * i, word);
    }
    bytes
}

struct Machine<'a> {
    registers: [u64; 11],
    stack: Vec<u8>,
    map: &'a [u8],
    frame: &'a [u8],
}

impl Machine<'_> {
    fn memory(&mut self, at: u64, len: usize) -> Vec<u8> {
        let (memory, base) = if at >= MAP { (self.map, MAP) } else { (&self.stack[..], STACK_END - STACK as u64) };
        let start = usize::try_from(at - base).unwrap();
        memory[start..start + len].to_vec()
    }

    fn store(&mut self, at: u64, bytes: &[u8]) {
        let start = usize::try_from(at - (STACK_END - STACK as u64)).unwrap();
        self.stack[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// `skb_load_bytes_relative`.
    fn load_bytes(&mut self) {
        let [offset, to, len] = [2, 3, 4].map(|register| self.registers[register]);
        let (start, len) = (usize::try_from(offset).unwrap(), usize::try_from(len).unwrap());
        let found = self.frame.get(start..start + len);
        let bytes = found.map_or_else(|| vec![0; len], <[u8]>::to_vec);
        self.registers[0] = if found.is_some() { 0 } else { u64::MAX };
        self.store(to, &bytes);
        self.registers[1..6].fill(0xdead_dead_dead_dead);
    }

    fn run(&mut self, code: &[u64]) -> u64 {
        let mut at = 0;
        for _ in 0..STEPS {
            let [opcode, registers, o0, o1, i0, i1, i2, i3] = code[at].to_le_bytes();
            let (to, from) = (usize::from(registers & 0xf), usize::from(registers >> 4));
            let (offset, number) = (i16::from_le_bytes([o0, o1]), i32::from_le_bytes([i0, i1, i2, i3]));
            let operand = if opcode & 8 == 0 { i64::from(number).cast_unsigned() } else { self.registers[from] };
            let (value, there) = (self.registers[to], |base: u64| base.wrapping_add_signed(offset.into()));
            let width = [4, 2, 1, 8][usize::from(opcode >> 3 & 3)];
            at += 1;
            match (opcode & 7, opcode & 0xf0) {
                (0, _) => {
                    self.registers[to] = MAP;
                    at += 1;
                }
                (1, _) => {
                    let mut bytes = self.memory(there(self.registers[from]), width);
                    bytes.resize(8, 0);
                    self.registers[to] = u64::from_le_bytes(bytes.try_into().unwrap());
                }
                (2, _) => self.store(there(value), &i64::from(number).to_le_bytes()[..width]),
                (3, _) => self.store(there(value), &self.registers[from].to_le_bytes()[..width]),
                (7, 0x00) => self.registers[to] = value.wrapping_add(operand),
                (7, 0x10) => self.registers[to] = value.wrapping_sub(operand),
                (7, 0x50) => self.registers[to] = value & operand,
                (7, 0x60) => self.registers[to] = value << operand,
                (7, 0x70) => self.registers[to] = value >> operand,
                (7, 0xa0) => self.registers[to] = value ^ operand,
                (7, 0xb0) => self.registers[to] = operand,
                (5, 0x80) => self.load_bytes(),
                (5, 0x90) => return self.registers[0],
                (5, comparison) => {
                    let taken = match comparison {
                        0x00 => true,
                        0x10 => value == operand,
                        0x20 => value > operand,
                        0x50 => value != operand,
                        0xa0 => value < operand,
                        other => panic!("Comparison {other:#x}"),
                    };
                    at += if taken { usize::try_from(offset).unwrap() } else { 0 };
                }
                other => panic!("Instruction {other:x?}"),
            }
        }
        panic!("The program does not end");
    }
}

fn queue(settings: &RssSettings, frame: &[u8]) -> u64 {
    let map = element(settings);
    let mut registers = [0; 11];
    registers[10] = STACK_END;
    Machine { registers, stack: vec![0xaa; STACK], map: &map, frame }.run(&program().instructions)
}

/// A table of 128 different queues.
fn settings(types: u32) -> RssSettings {
    let mut config = rss_config(types, 127, 128, 1, &KEY);
    for (i, entry) in config[8..8 + 256].chunks_mut(2).enumerate() {
        entry.copy_from_slice(&u16::try_from(i + 1).unwrap().to_le_bytes());
    }
    RssSettings::parse(&config).unwrap()
}

#[test]
fn map_is_named_by_the_instruction_that_loads_it() {
    let program = program();
    assert_eq!(program.instructions[program.map_fd_at] & 0xff, 0x18);
    assert!(program.instructions.len() < 4096);
}

/// A frame with `head` from its EtherType on, and ports and data behind it.
fn frame(head: &[&[u8]]) -> Vec<u8> {
    [&[2; 12], head.concat().as_slice(), &[0x12, 0x34, 0x56, 0x78, 9, 9, 9, 9]].concat()
}

#[test]
fn program_agrees_on_every_header_that_differs_in_one_octet() {
    let [tcp, udp] =
        [TCP, UDP].map(|protocol| [&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0], &[7; 8][..]].concat());
    let ipv6 = |next| [&[0x60, 0, 0, 0, 0, 8, next, 64], &[7; 32][..]].concat();
    let settings = settings(0x3f);
    let frames = [
        frame(&[&[8, 0], &tcp]),
        frame(&[&[0x81, 0, 0, 1, 8, 0], &udp]),
        frame(&[&[8, 0], &[0x46], &udp[1..], &[1; 4]]),
        frame(&[&[0x86, 0xdd], &ipv6(TCP)]),
        // A destination options header and a first fragment.
        frame(&[&[0x86, 0xdd], &ipv6(60), &[44, 0, 1, 4, 0, 0, 0, 0], &[UDP, 0, 0, 1, 0, 0, 0, 9]]),
    ];
    for mut frame in frames {
        let check = |frame: &[u8]| {
            let hash = settings.hash.hash(frame).map(|(hash, _)| hash);
            assert_eq!(queue(&settings, frame), u64::from(settings.indirection.queue(hash)), "{frame:?}");
        };
        (14..frame.len()).for_each(|len| check(&frame[..len]));
        // The addresses of Ethernet are not looked at.
        for at in 12..frame.len() {
            let octet = frame[at];
            for other in 0..=u8::MAX {
                frame[at] = other;
                check(&frame);
            }
            frame[at] = octet;
        }
    }
}

proptest! {
    #[test]
    fn program_chooses_the_queue_that_the_hash_leads_to(frame in frames(), types in 0_u32..0x40) {
        let settings = settings(types);
        let expected = settings.indirection.queue(settings.hash.hash(&frame).map(|(hash, _)| hash));
        prop_assert!(!settings.hash.types.has_any(Types::EXTENDED));
        prop_assert_eq!(queue(&settings, &frame), u64::from(expected));
    }
}
