//! The actions of a program.

use crate::input::Input;

/// The kind of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
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
    /// Send datagrams of one UDP flow through queue `a`; see [`Flow`](super::flow::Flow).
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
pub(super) struct Action<'a> {
    pub(super) kind: Kind,
    pub(super) a: u8,
    pub(super) b: u16,
    pub(super) c: u32,
    pub(super) d: u64,
    pub(super) bytes: &'a [u8],
}

impl<'a> Action<'a> {
    pub(super) fn decode(input: &mut Input<'a>) -> Self {
        let kind = KINDS[usize::from(input.u8()) % KINDS.len()];
        let (a, b, c, d) = (input.u8(), input.u16(), input.u32(), input.u64());
        let bytes = match kind {
            Kind::Arrive => input.bytes(32),
            Kind::Command | Kind::Poke => input.bytes(usize::from(b % 512)),
            _ => &[],
        };
        Self { kind, a, b, c, d, bytes }
    }

    pub(super) fn encode(&self, program: &mut Vec<u8>) {
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
