//! Hashes in a receive queue: the queue that a frame belongs to, and the hash that is reported of it.
//!
//! The control queue leaves what it has set in [`Shared`]; each receive queue takes a copy when it has changed, so the
//! data path compares one number and takes no lock.

use super::dissect::HEAD_LEN;
use super::inbox::{Inbox, Peer, inboxes};
use super::settings::{HashSettings, Indirection, RssSettings};
use crate::virtio::iovec::IoVecs;
use crate::virtio::net::budget::{Budget, Held};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// Offset of `hash_value` in the header, and the bytes from there to its end (virtio 1.3 5.1.6).
const HASH_OFFSET: usize = 12;
const HASH_LEN: usize = 8;

/// The settings of receive queues.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::virtio::net) struct Receiving {
    /// The hash of each frame; `None` if none is needed.
    hash: Option<HashSettings>,
    /// Where frames go, if it is not the kernel that decides.
    indirection: Option<Indirection>,
}

impl Receiving {
    /// Hashes are reported, and the kernel steers.
    pub(in crate::virtio::net) fn reporting(hash: HashSettings) -> Self {
        Self { hash: Some(hash), indirection: None }
    }

    /// Receive queues steer.
    pub(in crate::virtio::net) fn steering(rss: RssSettings) -> Self {
        Self { hash: Some(rss.hash), indirection: Some(rss.indirection) }
    }

    /// The same without steering.
    pub(in crate::virtio::net) fn unsteered(self) -> Self {
        Self { indirection: None, ..self }
    }
}

/// The settings that the control queue makes for the receive queues.
#[derive(Default)]
pub(in crate::virtio::net) struct Shared {
    /// Counts changes. Release after a change, Acquire before a copy.
    version: AtomicU32,
    current: Mutex<Arc<Receiving>>,
}

impl Shared {
    /// Changes what receive queues do, from what they have done so far.
    pub(in crate::virtio::net) fn change(&self, change: impl FnOnce(Receiving) -> Receiving) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(change(Receiving::clone(&current)));
        self.version.fetch_add(1, Ordering::Release);
    }

    fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    fn copy(&self) -> Arc<Receiving> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The destination of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::virtio::net) enum Verdict {
    /// It belongs to this queue.
    Here,
    /// It was passed to the queue it belongs to.
    Passed,
    /// It belongs to a queue that has no room for it.
    Lost,
}

/// One receive queue's part.
pub(in crate::virtio::net) struct Hasher {
    shared: Arc<Shared>,
    seen: u32,
    current: Arc<Receiving>,
    /// Bytes of the header, which has room for a hash if the driver wants one.
    header_len: usize,
    queue: u16,
    /// The ways to all queues, this one included; none if there is only this one.
    peers: Arc<[Peer]>,
    inbox: Option<Inbox>,
}

impl Hasher {
    /// For a card that reports hashes in headers of `header_len` bytes.
    pub(in crate::virtio::net) fn reporting(shared: Arc<Shared>, header_len: usize) -> Self {
        Self::new(shared, header_len, 0, Arc::default(), None)
    }

    /// For each of the `queues` receive queues of a card that has several, and reports hashes if headers have room for
    /// them. Frames between them are on account of `budget`.
    ///
    /// # Errors
    /// If the host has no eventfd left.
    pub(in crate::virtio::net) fn steering(
        shared: &Arc<Shared>,
        header_len: usize,
        queues: usize,
        budget: &Budget,
    ) -> io::Result<Vec<Self>> {
        let (inboxes, peers) = inboxes(queues, budget)?;
        let new = |(queue, inbox)| Self::new(shared.clone(), header_len, queue, peers.clone(), Some(inbox));
        Ok((0..).zip(inboxes).map(new).collect())
    }

    fn new(shared: Arc<Shared>, header_len: usize, queue: u16, peers: Arc<[Peer]>, inbox: Option<Inbox>) -> Self {
        let (seen, current) = (shared.version(), shared.copy());
        Self { shared, seen, current, header_len, queue, peers, inbox }
    }

    /// Signalled when another queue has received a frame for this one.
    pub(in crate::virtio::net) fn inbox_filled(&self) -> Option<Arc<EventFd>> {
        self.inbox.as_ref().map(Inbox::filled)
    }

    /// The next frame that another queue has received for this one, with its header.
    pub(in crate::virtio::net) fn take_from_inbox(&self) -> Option<Held> {
        self.inbox.as_ref()?.take()
    }

    /// Decides on a frame that the port handed out; `pieces` begin with its header and it has `len` bytes with that.
    pub(in crate::virtio::net) fn steer(&mut self, pieces: &IoVecs, len: usize) -> Verdict {
        self.refresh();
        let hash = self.hash(pieces, len);
        let queue = self.current.indirection.as_ref().map_or(self.queue, |to| to.queue(hash.map(|(value, _)| value)));
        match self.peers.get(usize::from(queue)).filter(|_| queue != self.queue) {
            Some(peer) => {
                let mut frame = vec![0; len];
                pieces.copy_out(0, &mut frame);
                if peer.pass(frame) { Verdict::Passed } else { Verdict::Lost }
            }
            None => {
                self.report(pieces, hash);
                Verdict::Here
            }
        }
    }

    /// Passes a frame, with its header, to the queue that the table names, or the first if there is none, because this
    /// one goes out of use. Returns whether there was room.
    pub(in crate::virtio::net) fn hand_on(&mut self, frame: &[u8]) -> bool {
        self.refresh();
        let Receiving { hash, indirection } = &*self.current;
        let start = frame.get(self.header_len..).unwrap_or_default();
        let hash = hash.as_ref().and_then(|settings| settings.hash(&start[..start.len().min(HEAD_LEN)]));
        let queue = indirection.as_ref().map_or(0, |to| to.queue(hash.map(|(value, _)| value)));
        let peer = self.peers.get(usize::from(queue)).filter(|_| queue != self.queue);
        peer.is_some_and(|peer| peer.pass(frame.to_vec()))
    }

    /// Reports the hash of a frame that another queue passed on.
    pub(in crate::virtio::net) fn accept(&mut self, pieces: &IoVecs, len: usize) {
        self.refresh();
        self.report(pieces, self.hash(pieces, len));
    }

    fn refresh(&mut self) {
        let version = self.shared.version();
        if version != self.seen {
            (self.seen, self.current) = (version, self.shared.copy());
        }
    }

    fn hash(&self, pieces: &IoVecs, len: usize) -> Option<(u32, u16)> {
        let settings = self.current.hash.as_ref()?;
        let mut head = [0; HEAD_LEN];
        let head = head.get_mut(..len.saturating_sub(self.header_len).min(HEAD_LEN))?;
        pieces.copy_out(self.header_len, head);
        settings.hash(head)
    }

    /// Writes `hash_value` and `hash_report` into the header, zeros if there is no hash. The kernel leaves these bytes
    /// as they were.
    fn report(&self, pieces: &IoVecs, hash: Option<(u32, u16)>) {
        if self.header_len < HASH_OFFSET + HASH_LEN {
            return;
        }
        let (value, report) = hash.unwrap_or_default();
        let bytes = u64::from(value) | u64::from(report) << 32;
        pieces.copy_in(HASH_OFFSET, &bytes.to_le_bytes());
    }
}
