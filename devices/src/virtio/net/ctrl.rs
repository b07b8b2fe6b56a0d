//! The control queue (virtio 1.3 5.1.6.5): bytes become a command, a command becomes an acknowledgement.

use crate::virtio::chain::Chain;
use crate::virtio::device::Memory;
use crate::virtio::net::Turn;
use crate::virtio::net::counters::Counters;
use crate::virtio::net::offload::{self, Offloads, bit};
use crate::virtio::net::port::FramePort;
use crate::virtio::ring::Ring;
use crate::virtio::worker::Fault;
use std::sync::Arc;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;

/// Longest command that is understood: class, command and 8 bytes of data.
const MAX_COMMAND: usize = 10;

/// A command that the driver gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Use this many queue pairs from now on, 5.1.6.5.5.
    SetPairs(u16),
    /// Give the guest only these offloads, as feature bits, 5.1.6.5.6.
    SetGuestOffloads(u64),
}

impl Command {
    /// Reads a command; `None` if it is unknown, short or long.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (&class, rest) = bytes.split_first()?;
        let (&command, data) = rest.split_first()?;
        match (u32::from(class), u32::from(command)) {
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                Some(Self::SetPairs(u16::from_le_bytes(data.try_into().ok()?)))
            }
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                Some(Self::SetGuestOffloads(u64::from_le_bytes(data.try_into().ok()?)))
            }
            _ => None,
        }
    }
}

/// One queue of the interface, and how to tell its worker that it was attached or detached.
pub(super) struct PairSwitch {
    /// The queue.
    pub(super) port: Arc<dyn FramePort>,
    /// Signalled after the queue was attached or detached.
    pub(super) changed: EventFd,
}

/// What commands act on.
pub(super) struct Control {
    /// All queue pairs that the driver has enabled, in order.
    pub(super) pairs: Vec<PairSwitch>,
    /// The pairs in use: a prefix of `pairs`.
    pub(super) active: u16,
    /// The negotiated feature bits.
    pub(super) features: u64,
}

impl Control {
    /// Does what `command` says. Returns whether it was done.
    pub(super) fn execute(&mut self, command: Command) -> bool {
        match command {
            Command::SetPairs(pairs) => self.set_pairs(pairs),
            Command::SetGuestOffloads(features) => self.set_guest_offloads(features),
        }
    }

    fn set_pairs(&mut self, pairs: u16) -> bool {
        let legal = (1..=self.pairs.len()).contains(&usize::from(pairs));
        if self.features & bit(VIRTIO_NET_F_MQ) == 0 || !legal {
            return false;
        }
        let changed = self.active.min(pairs)..self.active.max(pairs);
        let attach = pairs > self.active;
        for switch in &self.pairs[usize::from(changed.start)..usize::from(changed.end)] {
            if let Err(err) = switch.port.set_attached(attach) {
                log::warn!("Failed to {} a queue: {err}", if attach { "attach" } else { "detach" });
                return false;
            }
            if let Err(err) = switch.changed.write(1) {
                log::warn!("Failed to wake a worker: {err}");
            }
        }
        self.active = pairs;
        true
    }

    fn set_guest_offloads(&self, features: u64) -> bool {
        let allowed = self.features & offload::GUEST_FEATURES;
        if self.features & bit(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) == 0 || features & !allowed != 0 {
            return false;
        }
        let port = self.pairs.first().map(|switch| &switch.port);
        match port.map(|port| port.set_offloads(Offloads::for_guest(features))) {
            Some(Ok(())) => true,
            Some(Err(err)) => {
                log::warn!("Failed to change the offloads: {err}");
                false
            }
            None => false,
        }
    }
}

/// The control queue and what it controls.
pub(super) struct CtrlQueue {
    ring: Ring,
    chain: Chain,
    control: Control,
    counters: Arc<Counters>,
}

impl CtrlQueue {
    /// A control queue.
    pub(super) fn new(ring: Ring, control: Control, counters: Arc<Counters>) -> Self {
        Self { ring, chain: Chain::default(), control, counters }
    }

    /// Answers every command that is there; at most a ring full, so that a driver that never stops cannot keep the worker.
    ///
    /// # Errors
    /// If the ring is broken, or a command has no room for its acknowledgement.
    pub(super) fn serve(&mut self) -> Result<Turn, Fault> {
        let turn = self.answer()?;
        self.ring.notify()?;
        Ok(turn)
    }

    fn answer(&mut self) -> Result<Turn, Fault> {
        for _ in 0..self.ring.size() {
            let Some(head) = self.ring.pop(&mut self.chain)? else {
                if self.ring.enable_doorbell()? {
                    continue;
                }
                return Ok(Turn::Done);
            };
            let done = read_command(self.ring.mem(), &self.chain).is_some_and(|c| self.control.execute(c));
            let count = if done { &self.counters.ctrl_ok } else { &self.counters.ctrl_refused };
            count.add(1);
            let ack = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            let room = self.chain.writable.first();
            let written = room.map(|room| self.ring.mem().write_obj(ack.to_le_bytes()[0], room.addr));
            if !matches!(written, Some(Ok(()))) {
                return Err(Fault::Guest { queue: CTRL, reason: "a control command has no room for its answer" });
            }
            self.ring.push_used(head, 1)?;
        }
        Ok(Turn::More)
    }
}

/// What faults of the control queue are reported as; its index depends on what was negotiated.
const CTRL: u16 = u16::MAX;

/// The command in the readable part of `chain`, however it is cut into buffers.
fn read_command(mem: &Memory, chain: &Chain) -> Option<Command> {
    let len = usize::try_from(chain.readable_len()).ok().filter(|len| *len <= MAX_COMMAND)?;
    let mut bytes = [0; MAX_COMMAND];
    let mut at = 0;
    for buffer in &chain.readable {
        let end = at + usize::try_from(buffer.len).ok()?;
        mem.read_slice(bytes.get_mut(at..end)?, buffer.addr).ok()?;
        at = end;
    }
    Command::parse(&bytes[..len])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_by_class_and_command() {
        assert_eq!(Command::parse(&[4, 0, 2, 1]), Some(Command::SetPairs(0x102)));
        let offloads = Command::parse(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0x80]);
        assert_eq!(offloads, Some(Command::SetGuestOffloads(0x8000_0000_0000_0002)));
    }

    #[test]
    fn short_long_and_unknown_commands_are_refused() {
        for bytes in [&[][..], &[4], &[4, 0], &[4, 0, 1], &[4, 0, 1, 0, 0], &[4, 1, 1, 0], &[9, 0, 1, 0]] {
            assert_eq!(Command::parse(bytes), None, "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_command_or_a_refusal(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..32)) {
            let _ = Command::parse(&bytes);
        }
    }
}
