//! Frames on their way from the queue that received them to the queue they belong to, where the kernel does not steer.
//!
//! One bounded inbox for each queue, filled by all the others' workers and emptied by its own. A frame that finds it full is lost, as
//! on a card whose ring is full.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Frames that an inbox holds: what a driver's smallest useful ring does. At 64 KiB each they take 4 MiB.
pub(super) const INBOX_FRAMES: usize = 64;

/// The way to the queue of a pair.
pub(in crate::virtio::net) struct Peer {
    frames: SyncSender<Vec<u8>>,
    filled: Arc<EventFd>,
}

impl Peer {
    /// Passes `frame`, with its header, on. Returns whether there was room.
    pub(super) fn pass(&self, frame: Vec<u8>) -> bool {
        let fits = self.frames.try_send(frame).is_ok();
        // Refused only by a counter that is full, which wakes as well.
        let _ = self.filled.write(1);
        fits
    }
}

/// Where a queue finds frames that others received for it.
pub(in crate::virtio::net) struct Inbox {
    frames: Receiver<Vec<u8>>,
    filled: Arc<EventFd>,
}

impl Inbox {
    /// The next frame, with its header.
    pub(in crate::virtio::net) fn take(&self) -> Option<Vec<u8>> {
        self.frames.try_recv().ok()
    }

    /// Signalled when a frame was put in.
    pub(in crate::virtio::net) fn filled(&self) -> Arc<EventFd> {
        self.filled.clone()
    }
}

/// An inbox for each of `queues` queues, and the ways to them in the same order.
///
/// # Errors
/// If the host has no eventfd left.
pub(in crate::virtio::net) fn inboxes(queues: usize) -> io::Result<(Vec<Inbox>, Arc<[Peer]>)> {
    let make = || {
        let ((sender, receiver), filled) = (sync_channel(INBOX_FRAMES), EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let filled = Arc::new(filled);
        Ok((Inbox { frames: receiver, filled: filled.clone() }, Peer { frames: sender, filled }))
    };
    let ends = (0..queues).map(|_| make()).collect::<io::Result<Vec<_>>>()?;
    let (inboxes, peers): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
    Ok((inboxes, peers.into()))
}
