//! Transmit: frames from the guest's buffers to the port.
//!
//! The kernel copies each frame straight out of guest memory, virtio header included; it checks what the header says. The driver
//! is asked to notify only before the worker sleeps. A frame for which the port has no room waits for it.

use crate::virtio::chain::Chain;
use crate::virtio::iovec::IoVecs;
use crate::virtio::net::coalesce::Coalescer;
use crate::virtio::net::counters::Counters;
use crate::virtio::net::lane::Side;
use crate::virtio::net::link::Link;
use crate::virtio::net::port::FramePort;
use crate::virtio::net::{BUDGET, HEADER_LEN, MAX_FRAME, PUBLISH_EVERY, Turn};
use crate::virtio::ring::Ring;
use crate::virtio::worker::Fault;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Instant;

/// Shortest frame: an Ethernet header.
const MIN_FRAME: usize = HEADER_LEN + 14;

/// The transmit side of one queue pair.
pub(super) struct Tx {
    ring: Ring,
    coalescer: Coalescer,
    port: Arc<dyn FramePort>,
    counters: Arc<Counters>,
    link: Link,
    chain: Chain,
    /// The frame that is being sent.
    frame: IoVecs,
    /// The head of a chain whose frame waits in `frame` for room in the port.
    waiting: Option<u16>,
}

impl Tx {
    /// The transmit side on `ring`.
    pub(super) fn new(ring: Ring, port: Arc<dyn FramePort>, counters: Arc<Counters>, link: Link) -> Self {
        let frame = IoVecs::new(ring.mem().clone());
        let coalescer = Coalescer::default();
        Self { ring, coalescer, port, counters, link, chain: Chain::default(), frame, waiting: None }
    }

    /// The same, with interrupts held back as `coalescer` says.
    pub(super) fn coalesced_by(self, coalescer: Coalescer) -> Self {
        Self { coalescer, ..self }
    }

    /// Whether a frame waits for room in the port.
    pub(super) fn waits(&self) -> bool {
        self.waiting.is_some()
    }

    /// Sends until the ring is empty, the port is full, or the budget is used up.
    ///
    /// # Errors
    /// If the guest broke the ring.
    pub(super) fn transmit(&mut self) -> Result<Turn, Fault> {
        self.ring.disable_doorbell();
        let turn = self.burst()?;
        self.coalescer.notify(&mut self.ring);
        Ok(turn)
    }

    /// When an interrupt that is held back is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.coalescer.deadline()
    }

    /// Sends an interrupt that was held back, if it is due.
    pub(super) fn interrupt_in_time(&mut self) {
        self.coalescer.notify(&mut self.ring);
    }

    /// Whether a frame can be sent that nobody has announced.
    ///
    /// # Errors
    /// If the guest broke the ring.
    pub(super) fn has_frame(&mut self) -> Result<bool, Fault> {
        Ok(!self.waits() && self.ring.has_available()?)
    }

    /// Asks the driver to notify. Returns whether there is a frame that it did not announce.
    ///
    /// # Errors
    /// If the guest broke the ring.
    pub(super) fn ask_for_frames(&mut self) -> Result<bool, Fault> {
        Ok(self.ring.enable_doorbell()? && !self.waits())
    }

    fn burst(&mut self) -> Result<Turn, Fault> {
        for frames in 1..=BUDGET {
            let Some(head) = self.next_frame()? else { return Ok(Turn::Done) };
            if !self.send() {
                self.waiting = Some(head);
                return Ok(Turn::Done);
            }
            self.ring.push_used(head, 0);
            self.coalescer.count();
            if frames % PUBLISH_EVERY == 0 {
                self.ring.publish();
            }
        }
        self.counters.tx_budget_exhausted.add(1);
        Ok(Turn::More)
    }

    /// Puts the next frame into `self.frame` and returns the head of its chain; `None` if there is none.
    fn next_frame(&mut self) -> Result<Option<u16>, Fault> {
        if let Some(head) = self.waiting.take() {
            return Ok(Some(head));
        }
        let Some(head) = self.ring.pop(&mut self.chain)? else { return Ok(None) };
        self.frame.clear();
        for buffer in &self.chain.readable {
            let pushed = self.frame.push(*buffer);
            debug_assert!(pushed.is_ok(), "the chain was checked to be in guest memory");
        }
        Ok(Some(head))
    }

    /// Sends the frame. Returns whether its chain is done with: sent, or not sendable at all.
    fn send(&mut self) -> bool {
        let len = usize::try_from(self.frame.len_bytes()).unwrap_or(usize::MAX);
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) || !self.chain.writable.is_empty() {
            self.counters.tx_malformed.add(1);
            return true;
        }
        if !self.link.is_up() {
            self.counters.tx_link_down.add(1);
            return true;
        }
        match self.port.transmit(&self.frame) {
            Ok(_) => {
                self.counters.tx_frames.add(1);
                self.counters.tx_bytes.add(u64::try_from(len - HEADER_LEN).unwrap_or(0));
                true
            }
            Err(err) if err.kind() == ErrorKind::WouldBlock => {
                self.counters.tx_waits.add(1);
                false
            }
            Err(err) => {
                self.counters.tx_error(&err).add(1);
                log::debug!("Failed to send a frame: {err}");
                true
            }
        }
    }
}

impl Side for Tx {
    /// A frame that waits for room is not sent any more.
    fn stop(&mut self) {
        self.waiting = None;
        self.frame.clear();
        self.coalescer.stop();
    }

    fn restart(&mut self, ring: Ring) {
        self.ring = ring;
        self.coalescer.restart();
    }
}
