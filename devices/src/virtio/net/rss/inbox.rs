//! Frames on their way from the queue that received them to the queue they belong to: where the kernel does not steer,
//! and what is left for a queue that goes out of use.
//!
//! One bounded inbox for each queue, filled by all the others' workers and emptied by its own. A frame that finds it
//! full is lost, as on a card whose ring is full; so is one that finds the VM's budget used up.

use crate::virtio::net::budget::{Budget, Held};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Bytes that an inbox holds: what a driver's smallest useful ring does, 64 frames of 64 KiB.
pub(super) const INBOX_BYTES: usize = 4 << 20;

/// Frames that an inbox holds: as many as wait in a tap's queue (its `txqueuelen`).
pub(super) const INBOX_FRAMES: usize = 1000;

#[derive(Default)]
struct Frames {
    waiting: VecDeque<Held>,
    bytes: usize,
}

fn lock(frames: &Mutex<Frames>) -> MutexGuard<'_, Frames> {
    frames.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The way to the queue of a pair.
pub(in crate::virtio::net) struct Peer {
    frames: Arc<Mutex<Frames>>,
    filled: Arc<EventFd>,
    budget: Budget,
}

impl Peer {
    /// Passes `frame`, with its header, on. Returns whether there was room.
    pub(super) fn pass(&self, frame: Vec<u8>) -> bool {
        let mut frames = lock(&self.frames);
        let fits = frames.waiting.len() < INBOX_FRAMES && frames.bytes + frame.len() <= INBOX_BYTES;
        let share = if fits { self.budget.take(frame.len()) } else { None };
        let passed = share.is_some();
        if let Some(share) = share {
            frames.bytes += frame.len();
            frames.waiting.push_back(Held::new(frame, share));
        }
        drop(frames);
        // Refused only by a counter that is full, which wakes as well.
        let _ = self.filled.write(1);
        passed
    }
}

/// Where a queue finds frames that others received for it.
pub(in crate::virtio::net) struct Inbox {
    frames: Arc<Mutex<Frames>>,
    filled: Arc<EventFd>,
}

impl Inbox {
    /// The next frame, with its header.
    pub(in crate::virtio::net) fn take(&self) -> Option<Held> {
        let mut frames = lock(&self.frames);
        let frame = frames.waiting.pop_front()?;
        frames.bytes -= frame.bytes().len();
        Some(frame)
    }

    /// Signalled when a frame was put in.
    pub(in crate::virtio::net) fn filled(&self) -> Arc<EventFd> {
        self.filled.clone()
    }
}

/// An inbox for each of `queues` queues, and the ways to them in the same order. Frames wait on account of `budget`.
///
/// # Errors
/// If the host has no eventfd left.
pub(in crate::virtio::net) fn inboxes(queues: usize, budget: &Budget) -> io::Result<(Vec<Inbox>, Arc<[Peer]>)> {
    let make = || {
        let (frames, filled) = (Arc::default(), Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?));
        Ok((
            Inbox { frames: Arc::clone(&frames), filled: filled.clone() },
            Peer { frames, filled, budget: budget.clone() },
        ))
    };
    let ends = (0..queues).map(|_| make()).collect::<io::Result<Vec<_>>>()?;
    let (inboxes, peers): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
    Ok((inboxes, peers.into()))
}
