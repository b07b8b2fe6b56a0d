//! A queue of a pair as its worker holds it: served while the driver has it enabled, at rest while the driver has it
//! reset (virtio 1.3 2.6.1).

use crate::virtio::device::Activation;
use crate::virtio::net::Turn;
use crate::virtio::ring::Ring;
use crate::virtio::worker::Fault;
use vmm_sys_util::eventfd::EventFd;

/// The part that serves a ring: receive, transmit, control.
pub(super) trait Side {
    /// Forgets everything that it took from its ring, which it does not touch from here on.
    fn stop(&mut self);

    /// Goes on with another ring.
    fn restart(&mut self, ring: Ring);
}

/// The state of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Serving,
    Reset,
}

/// A queue and its doorbell.
pub(super) struct Lane<S> {
    idx: u16,
    side: S,
    doorbell: EventFd,
    /// True if we have rung it ourselves since it was answered.
    own_ring: bool,
    state: State,
}

impl<S: Side> Lane<S> {
    /// Queue `idx` of the device, which the driver has enabled.
    pub(super) fn new(idx: u16, side: S, doorbell: EventFd) -> Self {
        Self { idx, side, doorbell, own_ring: false, state: State::Serving }
    }

    /// The device's index of the queue.
    pub(super) fn idx(&self) -> u16 {
        self.idx
    }

    /// The side, if it is served.
    pub(super) fn serving(&mut self) -> Option<&mut S> {
        match self.state {
            State::Serving => Some(&mut self.side),
            State::Reset => None,
        }
    }

    /// The driver's doorbell, for [`Source::signalled`](crate::virtio::worker::Source::signalled).
    pub(super) fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }

    /// Takes note of the doorbell. Returns 1 if it was the driver's ring, and 0 if it was our own.
    pub(super) fn answer_doorbell(&mut self) -> u64 {
        u64::from(!std::mem::take(&mut self.own_ring))
    }

    /// After a burst that was cut short, rings the doorbell so that the queue comes again after the other sources.
    pub(super) fn come_again(&mut self, turn: Turn) -> Result<(), Fault> {
        match turn {
            Turn::Done => Ok(()),
            Turn::More => {
                self.own_ring = true;
                self.doorbell.write(1).map_err(|source| Fault::Host { operation: "ring a doorbell of our own", source })
            }
        }
    }

    /// The driver has reset the queue.
    pub(super) fn stop(&mut self) {
        self.state = State::Reset;
        self.side.stop();
    }

    /// The driver has enabled the queue again: it is the one of `activation`. The doorbell stays the same.
    ///
    /// # Errors
    /// If its rings are not in guest memory, which the transport has checked.
    pub(super) fn restart(&mut self, activation: Activation) -> Result<(), Fault> {
        let Activation { mem, queues, interrupts, .. } = activation;
        if let Some(active) = queues.into_iter().find(|active| active.idx == self.idx) {
            let outside = |_| Fault::Guest { queue: self.idx, reason: "the ring is not in guest memory" };
            self.side.restart(Ring::new(active, mem, interrupts).map_err(outside)?.0);
            self.state = State::Serving;
        }
        Ok(())
    }
}
