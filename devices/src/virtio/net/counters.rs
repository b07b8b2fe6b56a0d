//! What a queue pair counts. Written by its worker, read by anybody; Relaxed, since each count stands for itself.

use crate::virtio::device::Counter;
use std::sync::atomic::{AtomicU64, Ordering};

/// A monotonic count.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    /// Adds `n`.
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counts of one queue pair, or of all of a card.
#[derive(Default)]
pub(super) struct Counters {
    /// Frames given to the guest.
    pub(super) rx_frames: Count,
    /// Their bytes, without the virtio header.
    pub(super) rx_bytes: Count,
    /// Frames that were longer than all the buffers the guest can post.
    pub(super) rx_too_long: Count,
    /// Frames that the guest does not want: another address, another VLAN.
    pub(super) rx_filtered: Count,
    /// Frames that came while the link was down.
    pub(super) rx_link_down: Count,
    /// Receive buffers that cannot take a frame: too small for a header, or not writable.
    pub(super) rx_bad_buffers: Count,
    /// Errors of the host when receiving.
    pub(super) rx_host_errors: Count,
    /// Frames taken from the guest and given to the tap.
    pub(super) tx_frames: Count,
    /// Their bytes, without the virtio header.
    pub(super) tx_bytes: Count,
    /// Chains that are not a frame: too short, too long, or not readable.
    pub(super) tx_malformed: Count,
    /// Frames that were to be sent while the link was down.
    pub(super) tx_link_down: Count,
    /// Frames that the host refused: a lying GSO header, an interface that is down, no memory.
    pub(super) tx_host_errors: Count,
    /// Times the tap had no room and the frame waited.
    pub(super) tx_waits: Count,
    /// Times a burst was cut so that others get their turn.
    pub(super) budget_exhausted: Count,
    /// Control commands that were obeyed.
    pub(super) ctrl_ok: Count,
    /// Control commands that were refused.
    pub(super) ctrl_refused: Count,
}

type Get = fn(&Counters) -> &Count;

impl Counters {
    /// All counts by name, summed over `pairs`.
    pub(super) fn sum<'a>(pairs: impl Iterator<Item = &'a Self> + Clone) -> Vec<Counter> {
        let all: [(&'static str, Get); 16] = [
            ("rx_frames", |c| &c.rx_frames),
            ("rx_bytes", |c| &c.rx_bytes),
            ("rx_too_long", |c| &c.rx_too_long),
            ("rx_filtered", |c| &c.rx_filtered),
            ("rx_link_down", |c| &c.rx_link_down),
            ("rx_bad_buffers", |c| &c.rx_bad_buffers),
            ("rx_host_errors", |c| &c.rx_host_errors),
            ("tx_frames", |c| &c.tx_frames),
            ("tx_bytes", |c| &c.tx_bytes),
            ("tx_malformed", |c| &c.tx_malformed),
            ("tx_link_down", |c| &c.tx_link_down),
            ("tx_host_errors", |c| &c.tx_host_errors),
            ("tx_waits", |c| &c.tx_waits),
            ("budget_exhausted", |c| &c.budget_exhausted),
            ("ctrl_ok", |c| &c.ctrl_ok),
            ("ctrl_refused", |c| &c.ctrl_refused),
        ];
        let total = |get: Get| pairs.clone().map(|pair| get(pair).get()).sum();
        all.into_iter().map(|(name, get)| Counter { name, value: total(get) }).collect()
    }
}
