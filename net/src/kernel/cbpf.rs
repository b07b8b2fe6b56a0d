//! Classic BPF programs with labels: the filters of packet and netlink sockets (Documentation/networking/filter.rst).
//!
//! A program has two ends, one that keeps a frame and one that drops it; a load past the end of a frame also drops it.

use std::io;

/// Instruction codes (linux/bpf_common.h): loads at absolute offsets, at offsets from X, arithmetic, jumps, return.
pub(crate) const LOAD_WORD: u16 = 0x20;
pub(crate) const LOAD_HALF: u16 = 0x28;
pub(crate) const LOAD_BYTE: u16 = 0x30;
pub(crate) const LOAD_WORD_FROM_X: u16 = 0x40;
pub(crate) const LOAD_HALF_FROM_X: u16 = 0x48;
pub(crate) const LOAD_BYTE_FROM_X: u16 = 0x50;
/// Immediate loads into the accumulator and X, and the copy of the accumulator to X.
pub(crate) const LOAD_NUMBER: u16 = 0x00;
pub(crate) const LOAD_X_NUMBER: u16 = 0x01;
pub(crate) const COPY_TO_X: u16 = 0x07;
/// X becomes four times the low nibble of a byte: the length of an IPv4 header.
pub(crate) const LOAD_X_HEADER_LEN: u16 = 0xb1;
pub(crate) const AND: u16 = 0x54;
pub(crate) const JUMP_EQUAL: u16 = 0x15;
pub(crate) const JUMP_ANY_BIT: u16 = 0x45;
pub(crate) const RETURN: u16 = 0x06;

/// Data outside the frame has negative offsets, in two's complement (`SKF_AD_OFF`, linux/filter.h): the flag of a VLAN
/// tag that the kernel has taken off, and the direction of the frame.
pub(crate) const VLAN_TAG_PRESENT: u32 = 0xffff_f000 + 48;
pub(crate) const PACKET_TYPE: u32 = 0xffff_f000 + 4;
/// The offset of the next netlink attribute of type X, searched from the accumulator; 0 if there is none.
pub(crate) const NETLINK_ATTRIBUTE: u32 = 0xffff_f000 + 12;

/// The whole frame.
pub(crate) const ALL: u32 = u32::MAX;

/// One instruction, `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    /// Instructions to skip if the comparison is true, and if it is false.
    pub(crate) skip_true: u8,
    pub(crate) skip_false: u8,
    pub(crate) operand: u32,
}

/// The target of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    /// The following instruction.
    Next,
    /// The end that keeps the frame.
    Accept,
    /// The end that drops the frame.
    Drop,
    /// The next place of this name.
    Label(&'static str),
}

/// A program being written.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    lines: Vec<(u16, u32, To, To)>,
    labels: Vec<(&'static str, usize)>,
}

impl Assembler {
    /// Loads the value at an offset.
    pub(crate) fn load(&mut self, code: u16, at: u32) {
        self.lines.push((code, at, To::Next, To::Next));
    }

    /// Masks the accumulator.
    pub(crate) fn and(&mut self, mask: u32) {
        self.lines.push((AND, mask, To::Next, To::Next));
    }

    /// Compares the accumulator with a number.
    pub(crate) fn jump(&mut self, code: u16, operand: u32, then: To, otherwise: To) {
        self.lines.push((code, operand, then, otherwise));
    }

    /// Continues if the value at the offset equals `value`, and drops the frame if not.
    pub(crate) fn expect(&mut self, code: u16, at: u32, value: u32) {
        self.load(code, at);
        self.jump(JUMP_EQUAL, value, To::Next, To::Drop);
    }

    /// Ends here, for programs whose end is out of a jump's reach: keeps this many bytes of the frame, none for 0.
    pub(crate) fn end(&mut self, bytes: u32) {
        self.lines.push((RETURN, bytes, To::Next, To::Next));
    }

    /// Names the next instruction. A jump leads to the first later place of its name.
    pub(crate) fn place(&mut self, label: &'static str) {
        self.labels.push((label, self.lines.len()));
    }

    /// The program, with its two ends after the last line: it keeps this many bytes of a frame, or none.
    ///
    /// # Errors
    /// A jump leads further than 255 instructions, or has no target.
    pub(crate) fn finish(self, keep: u32) -> io::Result<Vec<Instruction>> {
        let len = self.lines.len();
        let skip = |to: To, at: usize| {
            let place = match to {
                To::Next => Some(at + 1),
                To::Accept => Some(len),
                To::Drop => Some(len + 1),
                To::Label(label) => {
                    let places = self.labels.iter().filter(|(name, place)| *name == label && *place > at);
                    places.map(|(_, place)| *place).next()
                }
            };
            let skipped = place.and_then(|place| u8::try_from(place - (at + 1)).ok());
            skipped.ok_or_else(|| io::Error::other("a jump of a packet filter is too long"))
        };
        let mut program = Vec::with_capacity(len + 2);
        for (at, (code, operand, then, otherwise)) in self.lines.iter().enumerate() {
            let (skip_true, skip_false) = match *code {
                JUMP_EQUAL | JUMP_ANY_BIT => (skip(*then, at)?, skip(*otherwise, at)?),
                _ => (0, 0),
            };
            program.push(Instruction { code: *code, skip_true, skip_false, operand: *operand });
        }
        let end = |operand| Instruction { code: RETURN, skip_true: 0, skip_false: 0, operand };
        program.extend([end(keep), end(0)]);
        Ok(program)
    }
}

/// An interpreter that runs a program as the kernel does.
#[cfg(test)]
pub(crate) mod interpreter {
    use super::*;

    /// Data outside the frame.
    #[derive(Clone, Copy, Default)]
    pub(crate) struct Beside {
        /// True if the kernel took a VLAN tag off.
        pub(crate) tagged: bool,
        /// `PACKET_HOST` and its like.
        pub(crate) packet_type: u32,
    }

    /// Examines a frame, all that differ from it in one field, and all that end before it does. `numbers` are the
    /// offsets of the fields of 16 bits; the others are tried octet by octet.
    pub(crate) fn each_that_differs_in_one_field(frame: &[u8], numbers: &[usize], mut examine: impl FnMut(&[u8])) {
        (0..=frame.len()).for_each(|len| examine(&frame[..len]));
        let mut other = frame.to_vec();
        for at in 0..frame.len() {
            for octet in 0..=u8::MAX {
                other[at] = octet;
                examine(&other);
            }
            other.copy_from_slice(frame);
        }
        for &at in numbers.iter().filter(|at| **at + 2 <= frame.len()) {
            for number in 0..=u16::MAX {
                other[at..at + 2].copy_from_slice(&number.to_be_bytes());
                examine(&other);
            }
            other.copy_from_slice(frame);
        }
    }

    /// The number of bytes that a program keeps of a frame: a load past the frame ends it.
    pub(crate) fn kept(program: &[Instruction], frame: &[u8], beside: Beside) -> u32 {
        let number = |at: u32, len: usize| {
            let at = usize::try_from(at).unwrap();
            let bytes = frame.get(at..at + len)?;
            Some(bytes.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte)))
        };
        let (mut a, mut x, mut at) = (0, 0, 0);
        let mut run = || loop {
            let Instruction { code, skip_true, skip_false, operand } = program[at];
            at += 1;
            match code {
                RETURN => return Some(operand),
                LOAD_BYTE if operand == VLAN_TAG_PRESENT => a = u32::from(beside.tagged),
                LOAD_BYTE if operand == PACKET_TYPE => a = beside.packet_type,
                LOAD_BYTE => a = number(operand, 1)?,
                LOAD_HALF => a = number(operand, 2)?,
                LOAD_WORD => a = number(operand, 4)?,
                LOAD_HALF_FROM_X => a = number(operand + x, 2)?,
                LOAD_X_HEADER_LEN => x = 4 * (number(operand, 1)? & 0xf),
                AND => a &= operand,
                JUMP_EQUAL => at += usize::from(if a == operand { skip_true } else { skip_false }),
                JUMP_ANY_BIT => at += usize::from(if a & operand != 0 { skip_true } else { skip_false }),
                _ => panic!("an instruction that is not in the program"),
            }
        };
        run().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::interpreter::{Beside, kept};
    use super::*;

    #[test]
    fn label_leads_to_its_next_place() {
        let mut asm = Assembler::default();
        for value in [1, 2] {
            asm.load(LOAD_BYTE, 0);
            asm.jump(JUMP_EQUAL, value, To::Next, To::Label("other"));
            asm.end(value);
            asm.place("other");
        }
        asm.jump(JUMP_EQUAL, 3, To::Accept, To::Drop);
        let program = asm.finish(9).unwrap();
        for (byte, expected) in [(1, 1), (2, 2), (3, 9), (4, 0)] {
            assert_eq!(kept(&program, &[byte], Beside::default()), expected, "{byte}");
        }
        assert_eq!(kept(&program, &[], Beside::default()), 0);
    }

    #[test]
    fn jump_that_is_too_long_or_leads_nowhere_is_refused() {
        let mut long = Assembler::default();
        long.jump(JUMP_EQUAL, 0, To::Accept, To::Drop);
        (0..255).for_each(|at| long.load(LOAD_BYTE, at));
        assert!(long.finish(ALL).is_err());
        let mut nowhere = Assembler::default();
        nowhere.place("before");
        nowhere.jump(JUMP_EQUAL, 0, To::Label("before"), To::Next);
        assert!(nowhere.finish(ALL).is_err());
    }
}
