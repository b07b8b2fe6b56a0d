//! Transmit: frames from the guest's buffers to the port.
//!
//! The kernel copies each frame straight out of guest memory, virtio header included; it checks what the header says.
//! The driver is asked to notify only before the worker sleeps. A frame for which the port has no room waits for it.
//! Datagrams of one flow that are in the ring together leave together.

use crate::virtio::chain::Chain;
use crate::virtio::iovec::IoVecs;
use crate::virtio::net::coalesce::Coalescer;
use crate::virtio::net::counters::Counters;
use crate::virtio::net::gro::{Datagram, Joined};
use crate::virtio::net::lane::Side;
use crate::virtio::net::link::Link;
use crate::virtio::net::port::FramePort;
use crate::virtio::net::{BUDGET, HEADER_LEN, MAX_FRAME, PUBLISH_EVERY, Turn};
use crate::virtio::ring::Ring;
use crate::virtio::worker::Fault;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Instant;

/// Shortest frame: an Ethernet header.
const MIN_FRAME: usize = 14;

/// The transmit side of one queue pair.
pub(super) struct Tx {
    ring: Ring,
    coalescer: Coalescer,
    port: Arc<dyn FramePort>,
    /// The one port that is never detached.
    first_port: Option<Arc<dyn FramePort>>,
    counters: Arc<Counters>,
    link: Link,
    chain: Chain,
    /// The frame that was taken from the ring last.
    next: IoVecs,
    /// The frames that go to the port next.
    batch: Batch,
    /// True if the batch waits for room in the port.
    waits: bool,
    /// True if the port takes datagrams that are joined.
    joins: bool,
    /// Used buffers that the driver has not been shown.
    unpublished: u32,
}

impl Tx {
    /// The transmit side on `ring`.
    pub(super) fn new(ring: Ring, port: Arc<dyn FramePort>, counters: Arc<Counters>, link: Link) -> Self {
        let frame = || IoVecs::new(ring.mem().clone());
        let (next, batch) = (frame(), Batch::new(frame()));
        let coalescer = Coalescer::default();
        Self {
            ring,
            coalescer,
            port,
            first_port: None,
            counters,
            link,
            chain: Chain::default(),
            next,
            batch,
            waits: false,
            joins: false,
            unpublished: 0,
        }
    }

    /// The same with a port for what is still to be sent when its own has been detached.
    pub(super) fn with_first_port(self, first: &Arc<dyn FramePort>) -> Self {
        Self { first_port: Some(first.clone()), ..self }
    }

    /// The same, with datagrams of one flow joined: for a port that takes UDP to be segmented.
    pub(super) fn joining(self, joins: bool) -> Self {
        Self { joins, ..self }
    }

    /// The same for frames with `header_len` bytes of header.
    pub(super) fn with_header(self, header_len: usize) -> Self {
        Self { batch: Batch { header_len, ..self.batch }, ..self }
    }

    /// The same, with interrupts held back as `coalescer` says.
    pub(super) fn coalesced_by(self, coalescer: Coalescer) -> Self {
        Self { coalescer, ..self }
    }

    /// Returns whether a frame waits for room in the port.
    pub(super) fn waits(&self) -> bool {
        self.waits
    }

    /// Sends until the ring is empty, the port is full, or the budget is used up.
    ///
    /// # Errors
    /// If the guest broke the ring.
    pub(super) fn transmit(&mut self) -> Result<Turn, Fault> {
        self.ring.disable_doorbell();
        self.coalescer.reconsider(&mut self.ring);
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

    /// Returns whether a frame can be sent that was not announced.
    ///
    /// # Errors
    /// If the guest broke the ring.
    pub(super) fn has_frame(&mut self) -> Result<bool, Fault> {
        Ok(!self.waits && self.ring.has_available()?)
    }

    /// Asks the driver not to notify until it is asked to again: whatever it answers is looked for.
    pub(super) fn expect_answer(&mut self) {
        self.ring.silence_doorbell();
    }

    /// Asks the driver to notify. Returns whether there is a frame that it did not announce.
    ///
    /// # Errors
    /// If the guest broke the ring.
    pub(super) fn ask_for_frames(&mut self) -> Result<bool, Fault> {
        Ok(self.ring.enable_doorbell()? && !self.waits)
    }

    fn burst(&mut self) -> Result<Turn, Fault> {
        if self.waits && !self.flush() {
            return Ok(Turn::Done);
        }
        for _ in 0..BUDGET {
            let Some(head) = self.ring.pop(&mut self.chain)? else {
                self.flush();
                return Ok(Turn::Done);
            };
            if !self.take_frame() {
                self.counters.tx_malformed.add(1);
                self.give_back(head);
                continue;
            }
            let datagram =
                Some(&self.next).filter(|_| self.joins).and_then(|frame| Datagram::read(frame, self.batch.header_len));
            if datagram.is_some_and(|datagram| self.batch.join(head, &datagram, &mut self.next)) {
                continue;
            }
            if !self.flush() {
                self.ring.put_back();
                return Ok(Turn::Done);
            }
            self.batch.begin(head, &mut self.next, datagram);
            // A frame that none can join need not wait for the next.
            if datagram.is_none() && !self.flush() {
                return Ok(Turn::Done);
            }
        }
        self.counters.tx_budget_exhausted.add(1);
        Ok(if self.flush() { Turn::More } else { Turn::Done })
    }

    /// Puts the frame that was popped into `self.next`. Returns whether it is one.
    fn take_frame(&mut self) -> bool {
        self.next.clear();
        for buffer in &self.chain.readable {
            let pushed = self.next.push(*buffer);
            debug_assert!(pushed.is_ok(), "the chain was checked to be in guest memory");
        }
        let len = usize::try_from(self.next.len_bytes()).unwrap_or(usize::MAX);
        let len = len.checked_sub(self.batch.header_len);
        len.is_some_and(|len| (MIN_FRAME..=MAX_FRAME).contains(&len)) && self.chain.writable.is_empty()
    }

    /// Sends what has been gathered. Returns whether it is done with, sent or not sendable at all; otherwise it waits
    /// for room.
    fn flush(&mut self) -> bool {
        self.waits = false;
        let count = self.batch.heads.len();
        if count == 0 {
            return true;
        }
        let frames = u64::try_from(count).unwrap_or(0);
        let sent = self.link.is_up().then(|| self.send());
        match sent {
            None => self.counters.tx_link_down.add(frames),
            Some(Ok(_)) => {
                self.counters.tx_frames.add(frames);
                self.counters.tx_bytes.add(self.batch.bytes);
                if count > 1 {
                    self.counters.tx_joined.add(frames);
                }
            }
            Some(Err(err)) if err.kind() == ErrorKind::WouldBlock => {
                self.counters.tx_waits.add(1);
                self.waits = true;
                return false;
            }
            Some(Err(err)) => {
                self.counters.tx_error(&err).add(frames);
                log::debug!("Cannot send a frame: {err}");
            }
        }
        for idx in 0..count {
            self.give_back(self.batch.heads[idx]);
        }
        self.batch.clear();
        true
    }

    /// Gives what has been gathered to the port. What the driver sent before it gave up the queue (virtio 1.3
    /// 5.1.6.5.5) may find the port detached; then another port takes it.
    fn send(&mut self) -> io::Result<usize> {
        let sent = self.batch.send(self.port.as_ref());
        match (&self.first_port, &sent) {
            (Some(first), Err(err)) if err.raw_os_error() == Some(libc::EBADFD) => {
                // A full port tells only its own worker when there is room, so nothing can wait for it here.
                let gone = || io::Error::from_raw_os_error(libc::EBADFD);
                self.batch
                    .send(first.as_ref())
                    .map_err(|err| if err.kind() == ErrorKind::WouldBlock { gone() } else { err })
            }
            _ => sent,
        }
    }

    /// Returns a chain to the driver.
    fn give_back(&mut self, head: u16) {
        self.ring.push_used(head, 0);
        self.coalescer.count();
        self.unpublished += 1;
        if self.unpublished >= PUBLISH_EVERY {
            self.ring.publish();
            self.unpublished = 0;
        }
    }
}

/// Frames that go to the port together: one, or the datagrams of one flow.
struct Batch {
    /// Bytes of the virtio header in front of each frame.
    header_len: usize,
    /// The chains they are in.
    heads: Vec<u16>,
    /// The first frame, and of those that joined it what is behind their headers.
    frame: IoVecs,
    joined: Option<Joined>,
    /// Bytes of all of them, without virtio headers.
    bytes: u64,
    /// The replacement of the first frame's headers.
    head: Vec<u8>,
}

impl Batch {
    fn new(frame: IoVecs) -> Self {
        Self { header_len: HEADER_LEN, heads: Vec::new(), frame, joined: None, bytes: 0, head: Vec::new() }
    }

    /// Begins with the frame in `next`, which is left empty.
    fn begin(&mut self, head: u16, next: &mut IoVecs, datagram: Option<Datagram>) {
        std::mem::swap(&mut self.frame, next);
        self.heads.push(head);
        self.joined = datagram.map(Joined::new);
        self.bytes = self.frame.len_bytes() - self.header_bytes();
    }

    /// Lets the frame in `next` follow those before it. Returns whether it can.
    fn join(&mut self, head: u16, datagram: &Datagram, next: &mut IoVecs) -> bool {
        let header_bytes = self.header_bytes();
        let Some(joined) = &mut self.joined else { return false };
        let Some(headers) = joined.follow(datagram, self.frame.count() + next.count()) else { return false };
        self.bytes += next.len_bytes() - header_bytes;
        let headers = header_bytes + u64::try_from(headers).unwrap_or(0);
        if self.heads.len() == 1 {
            self.frame.skip(headers);
        }
        next.skip(headers);
        self.frame.append(next);
        self.heads.push(head);
        true
    }

    fn send(&mut self, port: &dyn FramePort) -> io::Result<usize> {
        // Nothing joins any more; what waits for room is not sent another way the next time.
        if let Some(joined) = self.joined.take().filter(|_| self.heads.len() > 1) {
            joined.head(self.header_len, &mut self.head);
            self.frame.put_in_front(&self.head);
        }
        port.transmit(&self.frame)
    }

    /// The header's length as bytes of a list.
    fn header_bytes(&self) -> u64 {
        u64::try_from(self.header_len).unwrap_or(u64::MAX)
    }

    fn clear(&mut self) {
        self.heads.clear();
        self.frame.clear();
        self.joined = None;
    }
}

impl Side for Tx {
    /// A frame that waits for room is not sent any more.
    fn stop(&mut self) {
        self.waits = false;
        self.batch.clear();
        self.coalescer.stop();
    }

    fn restart(&mut self, ring: Ring) {
        self.ring = ring;
        self.coalescer.restart();
    }
}
