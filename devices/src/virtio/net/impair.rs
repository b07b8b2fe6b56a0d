//! A connection made worse on purpose: slower, later and with losses, the same ones each time for the same seed.
//!
//! An impaired port stands in front of another one. It needs no thread: its descriptor is an epoll of the other port
//! and of a timer, so the worker that waits for frames also comes back when one is due.
//!
//! ```text
//!   from the guest -> loss -> delay, jitter -> rate -> port
//!     to the guest <- rate <- delay, jitter <- loss <- port
//! ```
//!
//! A rate alone copies nothing and drops nothing: what is too early waits in the guest's ring, or in the port. Delays
//! keep frames here, in their order, as many as a tap's queue would; one that finds no room is dropped, and counted if
//! the guest sent it. Loss and delay are about single frames, so a card with them offers no segmentation.
//!
//! The rates are those of the card, which its queues share. Losses and delays are drawn for each queue and direction by
//! itself: the n-th frame of one meets the same fate in every run.

mod bucket;
mod line;
mod port;
mod splitmix;
mod wire;

use crate::virtio::device::Memory;
use crate::virtio::net::budget::Budget;
use crate::virtio::net::port::FramePort;
use bucket::Bucket;
use port::{Impaired, Shares};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use bucket::Rate;
pub(in crate::virtio::net) use port::receive_with_start;

/// The impairment of a card's frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Impairment {
    /// Most bytes per second to the guest.
    pub rate_in: Option<Rate>,
    /// Most bytes per second from the guest.
    pub rate_out: Option<Rate>,
    /// How long each frame takes longer, each way.
    pub delay: Duration,
    /// By how much that differs, more or less.
    pub jitter: Duration,
    /// How many frames of a million are lost, each way.
    pub loss_ppm: u32,
    /// The seed of all random choices.
    pub seed: u64,
}

impl Impairment {
    /// Returns whether frames are delayed or lost, rather than only slowed down.
    fn touches_frames(&self) -> bool {
        !self.delay.is_zero() || !self.jitter.is_zero() || self.loss_ppm > 0
    }

    /// The same ports with this done to them, or unchanged if there is nothing to do. They are the queues of one card
    /// of a guest with `mem`; frames that wait are on account of `budget`.
    ///
    /// # Errors
    /// If the host has no epoll or timer left.
    pub fn ports(
        &self,
        ports: Vec<Arc<dyn FramePort>>,
        mem: &Memory,
        budget: &Budget,
    ) -> io::Result<Vec<Arc<dyn FramePort>>> {
        if !self.touches_frames() && self.rate_in.is_none() && self.rate_out.is_none() {
            return Ok(ports);
        }
        let shared = |rate: Option<Rate>| rate.map(|rate| Arc::new(Mutex::new(Bucket::new(rate))));
        let (bucket_in, bucket_out) = (shared(self.rate_in), shared(self.rate_out));
        let impair = |(queue, port): (u64, Arc<dyn FramePort>)| {
            let shares = Shares { buckets: [bucket_in.clone(), bucket_out.clone()], budget: budget.clone() };
            let impaired = Impaired::new(port, queue, self, shares, mem.clone())?;
            Ok(Arc::new(impaired) as Arc<dyn FramePort>)
        };
        (0..).zip(ports).map(impair).collect()
    }
}
