//! Classic BPF programs that decide which of the kernel's notifications wake a keeper at all.
//!
//! Every keeper of a host listens to the same notifications, and each start of a VM causes dozens: without a filter, n
//! VMs that start at once cost n² messages, each decoded, and as many looks at the host. The kernel runs such a program
//! for each socket of a multicast group before it makes a copy (`do_one_broadcast`, net/netlink/af_netlink.c), so what
//! it drops costs about 50 ns.
//!
//! A program sees the first message of a notification. rtnetlink sends one in each; nf_tables as many as fit, but only
//! of one transaction.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;

use crate::address_listener::{attach_filter, jump_if_equal as jump, statement};

/// Most instructions: jumps reach no farther than 255.
const INSTRUCTIONS_MAX: usize = 255;

/// Bytes before a message's own header (`struct nlmsghdr`), and the place of its kind there.
pub(crate) const HEAD_LEN: u32 = 16;
pub(crate) const KIND_AT: u32 = 4;

/// Bytes before the payload of an attribute.
pub(crate) const ATTR_HEAD_LEN: u32 = 4;

/// Where a comparison leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    /// On to the next instruction.
    Next,
    /// To a label further down.
    Label(&'static str),
    /// To the end: the socket gets it.
    Keep,
    /// To the end: the socket does not.
    Drop,
}

/// A line of a program. Numbers in a message have the host's byte order, and so have those here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Loads the octet at an offset.
    Octet(u32),
    /// Loads the `u16` at an offset.
    Half(u32),
    /// Loads the `u32` at an offset.
    Word(u32),
    /// Looks for an attribute from an offset on; 0 is loaded if it is not there, else its offset, to X as well.
    Attr(u32, u16),
    /// Loads four octets at an offset from X.
    WordFromX(u32),
    /// Loads two octets at an offset from X.
    HalfFromX(u32),
    /// Loads an octet at an offset from X.
    OctetFromX(u32),
    /// Compares what [`Octet`](Self::Octet) has loaded, or whether an attribute is not there.
    IfOctet(u8, To, To),
    /// Compares what [`Half`](Self::Half) has loaded.
    IfHalf(u16, To, To),
    /// Compares what [`Word`](Self::Word) has loaded.
    IfWord(u32, To, To),
    /// Compares what [`WordFromX`](Self::WordFromX) has loaded.
    IfText([u8; 4], To, To),
    /// The place that comparisons lead to.
    Label(&'static str),
    /// The end, if it comes here.
    End(To),
}

/// Has the kernel run a program for a socket from now on. What has come before is in the socket.
pub(crate) fn attach(socket: &impl AsRawFd, lines: &[Line]) -> io::Result<()> {
    attach_filter(socket, assemble(lines).ok_or(io::ErrorKind::InvalidInput)?)
}

/// The kernel's form of a program; none if a label is not there, or it is too long.
fn assemble(lines: &[Line]) -> Option<Vec<libc::sock_filter>> {
    let sizes: Vec<usize> = lines.iter().map(|line| line.size()).collect();
    let len: usize = sizes.iter().sum();
    (len + 2 <= INSTRUCTIONS_MAX).then_some(())?;
    let place = |to: To, next: usize| {
        let target = match to {
            To::Next => Some(next),
            To::Keep => Some(len),
            To::Drop => Some(len + 1),
            To::Label(_) => {
                let at =
                    lines.iter().position(|line| matches!((line, to), (Line::Label(a), To::Label(b)) if *a == b))?;
                Some(sizes.get(..at)?.iter().sum())
            }
        };
        u8::try_from(target?.checked_sub(next)?).ok()
    };
    let mut program = Vec::with_capacity(len + 2);
    for line in lines {
        let next = program.len() + line.size();
        match *line {
            Line::Octet(at) => program.push(statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, at)),
            Line::Half(at) => program.push(statement(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, at)),
            Line::Word(at) => program.push(statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at)),
            Line::Attr(from, kind) => program.extend([
                statement(libc::BPF_LD | libc::BPF_IMM, from),
                statement(libc::BPF_LDX | libc::BPF_IMM, kind.into()),
                // What is not part of the message has negative offsets, in two's complement.
                statement(
                    libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
                    (libc::SKF_AD_OFF + libc::SKF_AD_NLATTR).cast_unsigned(),
                ),
                statement(libc::BPF_MISC | libc::BPF_TAX, 0),
            ]),
            Line::WordFromX(at) => program.push(statement(libc::BPF_LD | libc::BPF_W | libc::BPF_IND, at)),
            Line::HalfFromX(at) => program.push(statement(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, at)),
            Line::OctetFromX(at) => program.push(statement(libc::BPF_LD | libc::BPF_B | libc::BPF_IND, at)),
            Line::IfOctet(value, yes, no) => program.push(jump(value.into(), place(yes, next)?, place(no, next)?)),
            // The machine loads numbers as if the most significant octet came first.
            Line::IfHalf(value, yes, no) => {
                program.push(jump(u16::from_be_bytes(value.to_ne_bytes()).into(), place(yes, next)?, place(no, next)?));
            }
            Line::IfWord(value, yes, no) => {
                program.push(jump(u32::from_be_bytes(value.to_ne_bytes()), place(yes, next)?, place(no, next)?));
            }
            Line::IfText(text, yes, no) => {
                program.push(jump(u32::from_be_bytes(text), place(yes, next)?, place(no, next)?));
            }
            Line::Label(_) => {}
            Line::End(to) => program.push(statement(libc::BPF_JMP | libc::BPF_JA, place(to, next)?.into())),
        }
    }
    program.extend([statement(RETURN, u32::MAX), statement(RETURN, 0)]);
    Some(program)
}

const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

impl Line {
    /// Instructions that it takes.
    fn size(self) -> usize {
        match self {
            Self::Label(_) => 0,
            Self::Attr(..) => 4,
            _ => 1,
        }
    }
}

/// Compares with each of some numbers, and leads to `yes` if it is one of them.
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
            Line::End(To::Keep),
        ]);
        let program = program.unwrap();
        assert_eq!(program.len(), 9);
        assert_eq!((program[1].jt, program[1].jf), (4, 6));
        assert_eq!(program[6].k, 0);
    }

    #[test]
    fn unknown_labels_and_long_programs_are_refused() {
        assert!(assemble(&[Line::IfOctet(0, To::Label("nowhere"), To::Next)]).is_none());
        assert!(assemble(&vec![Line::Octet(0); INSTRUCTIONS_MAX]).is_none());
        let backwards = [Line::Label("back"), Line::Octet(0), Line::IfOctet(0, To::Label("back"), To::Next)];
        assert!(assemble(&backwards).is_none());
    }
}
