//! Receive: frames from the port into the guest's buffers.
//!
//! The kernel copies each frame straight into guest memory. Buffers are taken from the ring ahead of the frame, as many
//! as frames have needed lately and never more than the largest possible one does. With MRG_RXBUF a frame spans as many
//! of them as it has to; without, it must fit into one. A frame that finds fewer buffers than it needs ends in a spill
//! buffer of ours and waits there until the guest has posted the rest, so nothing is lost when the guest is slow to
//! refill; only a frame that all of the ring cannot take is dropped.

use crate::virtio::chain::Chain;
use crate::virtio::iovec::IoVecs;
use crate::virtio::net::coalesce::Coalescer;
use crate::virtio::net::counters::Counters;
use crate::virtio::net::filter::{self, Filter, HEAD_LEN};
use crate::virtio::net::lane::Side;
use crate::virtio::net::link::Link;
use crate::virtio::net::port::FramePort;
use crate::virtio::net::rss::{Hasher, Verdict};
use crate::virtio::net::{BUDGET, MAX_FRAME, MAX_HEADER_LEN, PUBLISH_EVERY, Turn};
use crate::virtio::ring::Ring;
use crate::virtio::worker::Fault;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Instant;

/// Offset of `num_buffers` in the header (virtio 1.3 5.1.6).
const NUM_BUFFERS: usize = 10;

/// Pieces that are offered to the kernel for one frame before it is known how long it is, give or take a chain: half of
/// what `readv` takes. A frame for which they are too few goes on in the spill and gets the others afterwards.
const MAX_PIECES: usize = 512;

/// Bursts after which a queue that goes out of use is left as it is: as many frames as a tap's queue holds (its
/// `txqueuelen`).
const VACATING_BURSTS: u32 = 4;

/// A chain that is ready to be filled.
struct Posted {
    head: u16,
    len: usize,
}

/// A frame that waits for buffers: the posted ones hold its first `in_buffers` bytes, the spill the rest.
struct Waiting {
    len: usize,
    in_buffers: usize,
    origin: Origin,
}

/// Where a frame comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The port.
    Port,
    /// The inbox: another queue has received it and found that it belongs here.
    Inbox,
}

/// The properties of frames by the negotiated features.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frames {
    /// A frame may span several chains.
    pub(super) mergeable: bool,
    /// The longest frame that the port can hand out, header included.
    pub(super) longest: usize,
    /// Bytes of the header in front of each frame.
    pub(super) header_len: usize,
}

/// The conditions on which frames come in.
pub(super) struct Gate {
    /// The link: down, it lets none in.
    pub(super) link: Link,
    /// Which of them the guest wants.
    pub(super) filter: Arc<filter::Shared>,
}

/// The receive side of one queue pair.
pub(super) struct Rx {
    ring: Ring,
    coalescer: Coalescer,
    port: Arc<dyn FramePort>,
    counters: Arc<Counters>,
    link: Link,
    chain: Chain,
    /// The pieces of `posted`, in the same order.
    pieces: IoVecs,
    posted: VecDeque<Posted>,
    /// Sum of the lengths in `posted`.
    room: usize,
    frames: Frames,
    /// How long frames have been lately.
    recent: RecentLength,
    spill: Vec<u8>,
    waiting: Option<Waiting>,
    /// True if there is nothing to do before the driver posts more buffers.
    starved: bool,
    /// Frames that the last call took from the port.
    taken: u32,
    filter: Arc<filter::Shared>,
    /// The filter of version `seen`.
    wanted: Filter,
    seen: u32,
    /// `None` if neither hashes nor steering were negotiated.
    hasher: Option<Hasher>,
}

impl Rx {
    /// The receive side on `ring`.
    pub(super) fn new(
        ring: Ring,
        port: Arc<dyn FramePort>,
        counters: Arc<Counters>,
        gate: Gate,
        frames: Frames,
    ) -> Self {
        let Gate { link, filter } = gate;
        let (seen, wanted) = (filter.version(), filter.copy());
        let pieces = IoVecs::new(ring.mem().clone());
        Self {
            ring,
            coalescer: Coalescer::default(),
            port,
            counters,
            link,
            chain: Chain::default(),
            pieces,
            posted: VecDeque::new(),
            room: 0,
            frames,
            recent: RecentLength::default(),
            spill: vec![0; MAX_HEADER_LEN + MAX_FRAME],
            waiting: None,
            starved: true,
            taken: 0,
            filter,
            wanted,
            seen,
            hasher: None,
        }
    }

    /// The same, with interrupts held back as `coalescer` says.
    pub(super) fn coalesced_by(self, coalescer: Coalescer) -> Self {
        Self { coalescer, ..self }
    }

    /// The same with hashes or steering.
    pub(super) fn with_hasher(self, hasher: Option<Hasher>) -> Self {
        Self { hasher, ..self }
    }

    /// Receives until the port is empty, the guest has no buffers left, or the budget is used up.
    ///
    /// # Errors
    /// If the guest broke the ring.
    pub(super) fn receive(&mut self) -> Result<Turn, Fault> {
        if std::mem::take(&mut self.starved) {
            self.ring.disable_doorbell();
        }
        self.taken = 0;
        let turn = self.burst(BUDGET)?;
        self.coalescer.notify(&mut self.ring);
        Ok(turn)
    }

    /// Receives one frame from a port that is readable as long as there are more.
    ///
    /// # Errors
    /// If the guest broke the ring.
    pub(super) fn receive_one(&mut self) -> Result<Turn, Fault> {
        self.taken = 0;
        self.burst(1)?;
        // A frame that is in the spill is not announced again.
        let turn = if self.waiting.is_some() { self.burst(BUDGET)? } else { Turn::Done };
        self.coalescer.notify(&mut self.ring);
        Ok(turn)
    }

    /// True if there is nothing to do before the driver posts more buffers.
    pub(super) fn is_starved(&self) -> bool {
        self.starved
    }

    /// Frames that the last call took from the port.
    pub(super) fn taken(&self) -> u32 {
        self.taken
    }

    /// Empties the port because this queue goes out of use: into the ring as far as it has buffers, and into the first
    /// queue's inbox.
    ///
    /// # Errors
    /// If the guest broke the ring.
    pub(super) fn vacate(&mut self) -> Result<(), Fault> {
        for _ in 0..VACATING_BURSTS {
            if self.receive()? == Turn::Done {
                break;
            }
        }
        if let Some(waiting) = self.waiting.take() {
            // Its first part is in buffers, which take another frame.
            let mut frame = vec![0; waiting.len];
            let (first, rest) = frame.split_at_mut(waiting.in_buffers);
            self.pieces.copy_out(0, first);
            rest.copy_from_slice(&self.spill[..waiting.len - waiting.in_buffers]);
            self.hand_on(&frame);
        }
        // Where there are no buffers, all of a frame goes to the spill.
        let mut nowhere = IoVecs::new(self.ring.mem().clone());
        let mut frame = vec![0; self.spill.len()];
        for _ in 0..VACATING_BURSTS * BUDGET {
            match self.port.receive(&mut nowhere, &mut frame) {
                Ok(len) if len >= self.frames.header_len => self.hand_on(&frame[..len]),
                // An error too: a queue that is detached has nothing any more.
                _ => break,
            }
        }
        Ok(())
    }

    /// Gives a frame, with its header, to a queue that stays in use, if the guest wants it.
    fn hand_on(&mut self, frame: &[u8]) {
        let mut head = [0; HEAD_LEN];
        let start = frame.get(self.frames.header_len..).unwrap_or_default();
        start.iter().zip(&mut head).for_each(|(from, to)| *to = *from);
        if !self.wanted.accepts(&head) {
            self.counters.rx_filtered.add(1);
        } else if self.hasher.as_mut().is_some_and(|hasher| hasher.hand_on(frame)) {
            self.counters.rx_steered.add(1);
        } else {
            self.counters.rx_steered_lost.add(1);
        }
    }

    /// Returns whether buffers have come that were waited for, and that were not announced.
    ///
    /// # Errors
    /// If the guest broke the ring.
    pub(super) fn has_buffers(&mut self) -> Result<bool, Fault> {
        Ok(self.starved && self.ring.has_available()?)
    }

    /// Asks the driver to notify of buffers, if they are waited for. Returns whether there are some that it did not
    /// announce.
    ///
    /// # Errors
    /// If the guest broke the ring.
    pub(super) fn ask_for_buffers(&mut self) -> Result<bool, Fault> {
        Ok(self.starved && self.ring.enable_doorbell()?)
    }

    /// When an interrupt that is held back is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.coalescer.deadline()
    }

    /// Sends an interrupt that was held back, if it is due.
    pub(super) fn interrupt_in_time(&mut self) {
        self.coalescer.notify(&mut self.ring);
    }

    fn burst(&mut self, most: u32) -> Result<Turn, Fault> {
        for frames in 1..=most {
            let received = match self.waiting.take() {
                Some(waiting) => self.complete(waiting)?,
                None => self.next_frame()?,
            };
            match received {
                // Without the cable nothing comes in; the port is read all the same, so that nothing old comes in
                // later.
                Received::Frame(..) if !self.link.is_up() => self.counters.rx_link_down.add(1),
                Received::Frame(len, Origin::Inbox) => self.take_over(len),
                Received::Frame(len, Origin::Port) if self.accepts() => self.deliver(len),
                // Its buffers take the next one.
                Received::Frame(..) => self.counters.rx_filtered.add(1),
                Received::Nothing => return Ok(Turn::Done),
                // Counted, or on its way: the next step completes a frame that waits.
                Received::Lost | Received::Deferred => {}
            }
            if frames % PUBLISH_EVERY == 0 {
                self.ring.publish();
            }
        }
        if most == BUDGET {
            self.counters.rx_budget_exhausted.add(1);
        }
        Ok(Turn::More)
    }

    /// Returns whether the guest wants the frame that is in the posted buffers.
    fn accepts(&mut self) -> bool {
        let version = self.filter.version();
        if version != self.seen {
            (self.seen, self.wanted) = (version, self.filter.copy());
        }
        if self.wanted.is_open() {
            return true;
        }
        let mut head = [0; HEAD_LEN];
        self.pieces.copy_out(self.frames.header_len, &mut head);
        self.wanted.accepts(&head)
    }

    /// Gives a frame that the port handed out to the queue it belongs to.
    fn deliver(&mut self, len: usize) {
        let verdict = self.hasher.as_mut().map_or(Verdict::Here, |hasher| hasher.steer(&self.pieces, len));
        match verdict {
            Verdict::Here => self.place(len),
            // Its buffers take the next one.
            Verdict::Passed => self.counters.rx_steered.add(1),
            Verdict::Lost => self.counters.rx_steered_lost.add(1),
        }
    }

    /// Gives a frame that another queue has received to the driver.
    fn take_over(&mut self, len: usize) {
        if let Some(hasher) = &mut self.hasher {
            hasher.accept(&self.pieces, len);
        }
        self.place(len);
    }

    /// Receives a frame into posted buffers.
    fn next_frame(&mut self) -> Result<Received, Fault> {
        if let Some(len) = self.take_from_inbox() {
            self.waiting = Some(Waiting { len, in_buffers: 0, origin: Origin::Inbox });
            return Ok(Received::Deferred);
        }
        self.post_until(self.recent.expected().min(self.frames.longest), MAX_PIECES)?;
        if self.posted.is_empty() {
            return Ok(self.wait_for_buffers());
        }
        let direct = self.pieces.spill_offset();
        let received = self.port.receive(&mut self.pieces, &mut self.spill);
        self.taken += u32::from(received.is_ok());
        match received {
            Ok(len) if len > direct => {
                self.recent.saw(len);
                self.waiting = Some(Waiting { len, in_buffers: direct, origin: Origin::Port });
                Ok(Received::Deferred)
            }
            Ok(len) if len >= self.frames.header_len => Ok(Received::Frame(len, Origin::Port)),
            Ok(_) => {
                self.counters.rx_host_errors.add(1);
                Ok(Received::Lost)
            }
            Err(err) if err.kind() == ErrorKind::WouldBlock => Ok(Received::Nothing),
            Err(err) => {
                // A queue that is detached, an interface that is gone: nothing to receive until that changes.
                self.counters.rx_error(&err).add(1);
                log::debug!("Cannot receive: {err}");
                Ok(Received::Nothing)
            }
        }
    }

    /// Moves the next frame of the inbox to the spill buffer. Returns its length.
    fn take_from_inbox(&mut self) -> Option<usize> {
        let frame = self.hasher.as_ref()?.take_from_inbox()?;
        let bytes = frame.bytes();
        self.spill.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(bytes.len())
    }

    /// Tries to finish a frame that found too few buffers.
    fn complete(&mut self, waiting: Waiting) -> Result<Received, Fault> {
        // As many pieces as it takes: each has a byte at least, so a frame's length bounds them.
        self.post_until(waiting.len, usize::MAX)?;
        if waiting.len <= self.room {
            self.pieces.copy_in(waiting.in_buffers, &self.spill[..waiting.len - waiting.in_buffers]);
            return Ok(Received::Frame(waiting.len, waiting.origin));
        }
        // A chain takes a descriptor for each of its pieces, unless it is indirect: then this may be too early, which
        // loses a frame where waiting for buffers that cannot come would lose all.
        let all_posted = self.pieces.count() >= usize::from(self.ring.size());
        if all_posted || !self.frames.mergeable {
            self.counters.rx_too_long.add(1);
            return Ok(Received::Lost);
        }
        self.waiting = Some(waiting);
        Ok(self.wait_for_buffers())
    }

    /// Waits until the driver has posted more buffers.
    fn wait_for_buffers(&mut self) -> Received {
        // What was received so far has to be seen first, or the driver may never post more.
        self.coalescer.notify_now(&mut self.ring);
        self.starved = true;
        Received::Nothing
    }

    /// Takes buffers from the ring until `bytes` fit, there are `pieces`, or there are no more.
    fn post_until(&mut self, bytes: usize, pieces: usize) -> Result<(), Fault> {
        // Bounded by the ring: a driver on another vCPU can refill it for ever.
        for _ in 0..self.ring.size() {
            let one_is_enough = !self.frames.mergeable && !self.posted.is_empty();
            if self.room >= bytes || self.pieces.count() >= pieces || one_is_enough || !self.post()? {
                break;
            }
        }
        Ok(())
    }

    /// Takes one chain from the ring. Returns whether there was one.
    fn post(&mut self) -> Result<bool, Fault> {
        let Some(head) = self.ring.pop(&mut self.chain)? else { return Ok(false) };
        let len = usize::try_from(self.chain.writable_len()).unwrap_or(usize::MAX);
        if len < self.frames.header_len || !self.chain.readable.is_empty() {
            self.counters.rx_bad_buffers.add(1);
            self.ring.push_used(head, 0);
            return Ok(true);
        }
        for buffer in &self.chain.writable {
            let pushed = self.pieces.push(*buffer);
            debug_assert!(pushed.is_ok(), "the chain was checked to be in guest memory");
        }
        self.room += len;
        self.posted.push_back(Posted { head, len });
        Ok(true)
    }

    /// Gives a frame of `len` bytes that is in the posted buffers to the driver.
    fn place(&mut self, len: usize) {
        self.recent.saw(len);
        let (mut left, mut count) = (len, 0_u16);
        for chain in &self.posted {
            if left == 0 {
                break;
            }
            left -= left.min(chain.len);
            count += 1;
        }
        self.pieces.copy_in(NUM_BUFFERS, &count.to_le_bytes());
        left = len;
        for chain in self.posted.drain(..usize::from(count)) {
            let used = left.min(chain.len);
            self.ring.push_used(chain.head, u32::try_from(used).unwrap_or(u32::MAX));
            self.pieces.skip(u64::try_from(chain.len).unwrap_or(u64::MAX));
            self.room -= chain.len;
            left -= used;
        }
        self.coalescer.count();
        self.counters.rx_frames.add(1);
        self.counters.rx_bytes.add(u64::try_from(len - self.frames.header_len).unwrap_or(0));
    }
}

/// How much room the next frame is given. The kernel looks at every piece that a read brings along, so a stream of
/// small frames should not bring those of a large one; a frame that turns out longer ends in the spill buffer and is
/// copied once more.
#[derive(Default)]
struct RecentLength {
    longest: usize,
    /// Frames in a row that were shorter than half of `longest`.
    short: u8,
}

impl RecentLength {
    /// Short frames after which less room is made.
    const PATIENCE: u8 = 64;

    fn saw(&mut self, len: usize) {
        if len > self.longest {
            self.longest = len;
        } else if len >= self.longest / 2 {
            self.short = 0;
        } else {
            self.short += 1;
            if self.short == Self::PATIENCE {
                self.longest /= 2;
                self.short = 0;
            }
        }
    }

    /// Bytes that the next frame most likely has at most.
    fn expected(&self) -> usize {
        self.longest.max(1)
    }
}

impl Side for Rx {
    /// A frame of which a part is in buffers already waits for others, as it would for more.
    fn stop(&mut self) {
        self.waiting = self.waiting.take().filter(|waiting| waiting.len <= self.spill.len()).map(|waiting| {
            self.spill.copy_within(..waiting.len - waiting.in_buffers, waiting.in_buffers);
            self.pieces.copy_out(0, &mut self.spill[..waiting.in_buffers]);
            Waiting { in_buffers: 0, ..waiting }
        });
        self.pieces.clear();
        self.posted.clear();
        self.room = 0;
        self.coalescer.stop();
    }

    fn restart(&mut self, ring: Ring) {
        self.ring = ring;
        self.starved = true;
        self.coalescer.restart();
    }
}

/// The result of an attempt to receive.
enum Received {
    /// A frame of this length is in the posted buffers.
    Frame(usize, Origin),
    /// A frame that waits for more buffers, as [`Waiting`].
    Deferred,
    /// A frame that is dropped and counted.
    Lost,
    /// Nothing more until something happens.
    Nothing,
}
