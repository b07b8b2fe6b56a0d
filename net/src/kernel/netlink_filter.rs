//! Classic BPF programs that decide which kernel notifications wake a keeper.
//!
//! Every keeper of a host listens to the same notifications, and each start of a VM causes dozens: without a filter, n
//! simultaneous starts cost n² messages, each decoded, and as many looks at the host. The kernel runs the program of
//! each socket in a multicast group before it copies the message (`do_one_broadcast`, net/netlink/af_netlink.c), so a
//! dropped message costs about 50 ns.
//!
//! A program sees the first message of a notification. rtnetlink sends one in each; nf_tables as many as fit, but only
//! of one transaction.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;

use super::cbpf::{
    ALL, Assembler, COPY_TO_X, Instruction, JUMP_EQUAL, LOAD_BYTE, LOAD_BYTE_FROM_X, LOAD_HALF, LOAD_HALF_FROM_X,
    LOAD_NUMBER, LOAD_WORD, LOAD_WORD_FROM_X, LOAD_X_NUMBER, NETLINK_ATTRIBUTE,
};
use super::packet;

pub(crate) use super::cbpf::To;

/// Most instructions: jumps reach no farther than 255.
const INSTRUCTIONS_MAX: usize = 255;

/// Bytes before a message's own header (`struct nlmsghdr`), and the offset of its type there.
pub(crate) const HEAD_LEN: u32 = 16;
pub(crate) const KIND_AT: u32 = 4;

/// Bytes before the payload of an attribute.
pub(crate) const ATTR_HEAD_LEN: u32 = 4;

/// A line of a program. Numbers here and in a message are in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Loads the octet at an offset.
    Octet(u32),
    /// Loads the `u16` at an offset.
    Half(u32),
    /// Loads the `u32` at an offset.
    Word(u32),
    /// Searches for an attribute from an offset on; loads its offset, to X as well, or 0 if there is none.
    Attr(u32, u16),
    /// Loads four octets at an offset from X.
    WordFromX(u32),
    /// Loads two octets at an offset from X.
    HalfFromX(u32),
    /// Loads an octet at an offset from X.
    OctetFromX(u32),
    /// Compares the result of [`Octet`](Self::Octet), or tests for a missing attribute.
    IfOctet(u8, To, To),
    /// Compares the result of [`Half`](Self::Half).
    IfHalf(u16, To, To),
    /// Compares the result of [`Word`](Self::Word).
    IfWord(u32, To, To),
    /// Compares the result of [`WordFromX`](Self::WordFromX).
    IfText([u8; 4], To, To),
    /// A jump target.
    Label(&'static str),
    /// An end of the program.
    End(To),
}

/// Attaches a program to a socket. Messages that came before stay in the socket.
pub(crate) fn attach(socket: &impl AsRawFd, lines: &[Line]) -> io::Result<()> {
    packet::attach(socket, &assemble(lines)?)
}

/// The kernel's form of a program.
///
/// # Errors
/// A label is missing, or the program is too long.
fn assemble(lines: &[Line]) -> io::Result<Vec<Instruction>> {
    let len: usize = lines.iter().map(|line| line.size()).sum();
    if len + 2 > INSTRUCTIONS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut asm = Assembler::default();
    for line in lines {
        match *line {
            Line::Octet(at) => asm.load(LOAD_BYTE, at),
            Line::Half(at) => asm.load(LOAD_HALF, at),
            Line::Word(at) => asm.load(LOAD_WORD, at),
            Line::Attr(from, kind) => {
                asm.load(LOAD_NUMBER, from);
                asm.load(LOAD_X_NUMBER, kind.into());
                asm.load(LOAD_WORD, NETLINK_ATTRIBUTE);
                asm.load(COPY_TO_X, 0);
            }
            Line::WordFromX(at) => asm.load(LOAD_WORD_FROM_X, at),
            Line::HalfFromX(at) => asm.load(LOAD_HALF_FROM_X, at),
            Line::OctetFromX(at) => asm.load(LOAD_BYTE_FROM_X, at),
            Line::IfOctet(value, yes, no) => asm.jump(JUMP_EQUAL, value.into(), yes, no),
            // cBPF loads numbers as big-endian.
            Line::IfHalf(value, yes, no) => {
                asm.jump(JUMP_EQUAL, u16::from_be_bytes(value.to_ne_bytes()).into(), yes, no);
            }
            Line::IfWord(value, yes, no) => asm.jump(JUMP_EQUAL, u32::from_be_bytes(value.to_ne_bytes()), yes, no),
            Line::IfText(text, yes, no) => asm.jump(JUMP_EQUAL, u32::from_be_bytes(text), yes, no),
            Line::Label(label) => asm.place(label),
            Line::End(to) => asm.jump(JUMP_EQUAL, 0, to, to),
        }
    }
    asm.finish(ALL)
}

impl Line {
    /// The number of instructions for this line.
    fn size(self) -> usize {
        match self {
            Self::Label(_) => 0,
            Self::Attr(..) => 4,
            _ => 1,
        }
    }
}

/// Compares with each of these numbers, and jumps to `yes` on a match.
pub(crate) fn if_any(numbers: &BTreeSet<u32>, yes: To) -> impl Iterator<Item = Line> {
    numbers.iter().map(move |number| Line::IfWord(*number, yes, To::Next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_ends_are_as_far_as_the_instructions_between() {
        let program = assemble(&[
            Line::Half(KIND_AT),
            Line::IfHalf(16, To::Label("link"), To::Drop),
            Line::Attr(32, 3),
            Line::Label("link"),
            Line::End(To::Accept),
        ]);
        let program = program.unwrap();
        assert_eq!(program.len(), 9);
        assert_eq!((program[1].skip_true, program[1].skip_false), (4, 6));
        assert_eq!((program[6].skip_true, program[6].skip_false), (0, 0));
    }

    #[test]
    fn unknown_labels_and_long_programs_are_refused() {
        assert!(assemble(&[Line::IfOctet(0, To::Label("nowhere"), To::Next)]).is_err());
        assert!(assemble(&vec![Line::Octet(0); INSTRUCTIONS_MAX]).is_err());
        let backwards = [Line::Label("back"), Line::Octet(0), Line::IfOctet(0, To::Label("back"), To::Next)];
        assert!(assemble(&backwards).is_err());
    }
}
