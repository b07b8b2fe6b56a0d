//! A started card with all its rings full.

use super::Terms;
use super::frame::{self, HEADER, Route, SINK_MAC};
use super::queue::PolledQueue;
use crate::report::Check;
use crate::virtio::Device;
use crate::virtio::ring::{Desc, flag};
use crate::{arena, cpu, fail, interrupts, require};

const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_HOST_TSO4: u64 = 1 << 11;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_CTRL_VQ: u64 = 1 << 17;
const F_MQ: u64 = 1 << 22;
const F_EVENT_IDX: u64 = 1 << 29;
/// The features that Linux drivers take.
const WANTED: u64 = OFFLOADS | F_MAC | F_MRG_RXBUF | F_EVENT_IDX;
/// The offloads: a benchmark of frames that are ready for the wire does without.
const OFFLOADS: u64 = F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4 | F_HOST_TSO4;
const MULTI_QUEUE: u64 = F_CTRL_VQ | F_MQ;

const PAIRS_MAX: usize = 4;
/// Entries of a ring: the default of both VMMs.
const RING_SIZE: u16 = 256;
const CTRL_RING_SIZE: u16 = 16;
const NUM_BUFFERS: u64 = 10;
/// VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET (virtio 1.3 5.1.6.5.5).
const SET_PAIRS: [u8; 2] = [4, 0];

/// One pair of rings.
pub(super) struct Pair {
    rx: PolledQueue,
    /// Transmit ring. All its descriptors are the same frame.
    pub(super) tx: PolledQueue,
    /// Address of the transmit frame with its header.
    pub(super) frame: u64,
    /// Address of the first receive buffer.
    buffers: u64,
    buffer_bytes: u64,
    /// Buffers that still belong to the frame that was begun.
    rest: u16,
}

/// The card.
pub(super) struct Card {
    pairs: [Option<Pair>; PAIRS_MAX],
}

impl Card {
    /// Starts the card and makes one frame known to the network, so that a bridge knows where the card is.
    pub(super) fn start(device: &Device, terms: &Terms) -> Check<Self> {
        require!((1..=PAIRS_MAX).contains(&usize::from(terms.pairs)), "{} pairs", terms.pairs);
        let multi_queue = if terms.pairs > 1 { MULTI_QUEUE } else { 0 };
        let features = device.negotiate(WANTED | multi_queue)?;
        let spare = F_EVENT_IDX | if terms.partial || terms.mss > 0 { 0 } else { OFFLOADS };
        let missing = (WANTED | multi_queue) & !features & !spare;
        require!(missing == 0, "features {missing:#x} are not offered");
        let mac: [u8; 6] = [0, 1, 2, 3, 4, 5].map(|idx| cpu::read8(device.config.address + idx));
        let queue = |idx| Ok(PolledQueue::new(device.enable_queue(idx, RING_SIZE)?, features & F_EVENT_IDX != 0));
        let mut pairs = [const { None }; PAIRS_MAX];
        for (idx, slot) in (0..terms.pairs).zip(&mut pairs) {
            let (rx, tx) = (queue(2 * idx)?, queue(2 * idx + 1)?);
            let route = Route { from: mac, to: SINK_MAC, flow: idx };
            let frame = frame::make(&route, terms);
            let buffers = arena::take(u64::from(terms.buffer) * u64::from(rx.ring().size), 4096);
            *slot = Some(Pair { rx, tx, frame, buffers, buffer_bytes: terms.buffer.into(), rest: 0 });
        }
        let max_pairs = cpu::read16(device.config.address + 8);
        let control = match multi_queue {
            0 => None,
            _ => Some(device.enable_queue(2 * max_pairs, CTRL_RING_SIZE)?),
        };
        device.go_live()?;
        if let Some(mut ring) = control {
            let command = arena::take(8, 8);
            for (at, byte) in (command..).zip(SET_PAIRS.into_iter().chain(terms.pairs.to_le_bytes()).chain([0xff])) {
                cpu::write8(at, byte);
            }
            ring.chain(&[(command, 2, 0), (command + 2, 2, 0), (command + 4, 1, flag::WRITE)]);
            ring.publish(0);
            ring.kick();
            require!(ring.wait_used(cpu::PATIENCE_TICKS).is_some(), "the control queue is silent");
            require!(cpu::read8(command + 4) == 0, "{} pairs are refused", terms.pairs);
        }
        let mut card = Self { pairs };
        card.pairs.iter_mut().flatten().for_each(|pair| pair.fill(terms.size));
        card.announce()?;
        Ok(card)
    }

    /// The first pair.
    pub(super) fn first(&mut self) -> Check<&mut Pair> {
        match &mut self.pairs {
            [Some(first), ..] => Ok(first),
            _ => fail!("no pair"),
        }
    }

    /// Doorbells rung so far.
    pub(super) fn doorbells(&self) -> u64 {
        self.pairs.iter().flatten().map(|pair| pair.rx.doorbells + pair.tx.doorbells).sum()
    }

    /// Offers every transmit descriptor; `send_more` keeps them on the way.
    pub(super) fn fill_transmit_rings(&mut self) {
        for pair in self.pairs.iter_mut().flatten() {
            (0..pair.tx.ring().size).for_each(|idx| pair.tx.offer(idx));
        }
    }

    /// Sends again what has been sent. Returns how many frames.
    pub(super) fn send_more(&mut self) -> u64 {
        let mut frames = 0;
        for pair in self.pairs.iter_mut().flatten() {
            pair.tx.take(|queue, used| {
                queue.offer(head(used.id));
                frames += 1;
            });
            pair.tx.show();
        }
        frames
    }

    /// Takes what has arrived and returns the buffers. Returns how many frames that was.
    pub(super) fn receive_more(&mut self) -> u64 {
        let mut frames = 0;
        for pair in self.pairs.iter_mut().flatten() {
            let mut rest = pair.rest;
            pair.receive(|buffer| {
                if rest == 0 {
                    frames += 1;
                    rest = cpu::read16(buffer + NUM_BUFFERS).max(1);
                }
                rest -= 1;
            });
            pair.rest = rest;
        }
        frames
    }

    fn announce(&mut self) -> Check {
        let pair = self.first()?;
        pair.tx.offer(0);
        pair.tx.show();
        let mut sent = false;
        let in_time = cpu::wait(cpu::PATIENCE_TICKS, || {
            pair.tx.take(|_, _| sent = true);
            sent
        });
        require!(in_time, "the first frame is not returned");
        Ok(())
    }
}

impl Pair {
    /// Halts until a frame has come, if none is there. The receive ring's interrupts are those of `interrupts::halt`.
    pub(super) fn halt(&self) {
        let seen = interrupts::count(0);
        if !self.rx.ask_for_interrupt() {
            interrupts::halt(seen);
        }
    }

    fn fill(&mut self, size: u32) {
        let frame_bytes = size + u32::try_from(HEADER).unwrap_or(0);
        for idx in 0..self.rx.ring().size {
            let address = self.buffer(idx);
            let len = u32::try_from(self.buffer_bytes).unwrap_or(0);
            self.rx.ring().describe(idx, Desc { address, len, flags: flag::WRITE, next: 0 });
            self.rx.offer(idx);
        }
        for idx in 0..self.tx.ring().size {
            self.tx.ring().describe(idx, Desc { address: self.frame, len: frame_bytes, flags: 0, next: 0 });
        }
        self.rx.show();
    }

    fn buffer(&self, idx: u16) -> u64 {
        self.buffers + u64::from(idx) * self.buffer_bytes
    }

    /// Hands the address of every buffer that has arrived to `each` and returns the buffers.
    pub(super) fn receive(&mut self, mut each: impl FnMut(u64)) {
        let Self { rx, buffers, buffer_bytes, .. } = self;
        rx.take(|queue, used| {
            let head = head(used.id);
            each(*buffers + u64::from(head) * *buffer_bytes);
            queue.offer(head);
        });
        rx.show();
    }
}

/// The head in a used element. Heads are below the ring's size, so the other bits are the device's fault and ignored.
fn head(id: u32) -> u16 {
    let [low, high, ..] = id.to_le_bytes();
    u16::from_le_bytes([low, high]) % RING_SIZE
}
