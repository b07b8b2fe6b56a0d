//! A look at every frame that passes a port.
//!
//! A port that is observed stands in front of another one and shows the beginning of each frame to a [`FrameObserver`],
//! which must not take long: it is called by the worker that moves the frame. The beginning is copied once, and what is
//! shown is what is moved: the guest, which can write to its buffers meanwhile, cannot have one thing seen and another
//! sent.

use crate::virtio::device::Memory;
use crate::virtio::iovec::IoVecs;
use crate::virtio::net::impair::receive_with_start;
use crate::virtio::net::offload::Offloads;
use crate::virtio::net::port::FramePort;
use crate::virtio::net::{HEADER_LEN, MAX_FRAME, MAX_HEADER_LEN};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which direction a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the guest.
    ToGuest,
    /// From the guest.
    FromGuest,
}

/// Who looks at frames.
pub trait FrameObserver: Send + Sync {
    /// A frame of `len` bytes passes, without its virtio header; these are its first bytes, or all of them.
    fn observe(&self, direction: Direction, start: Vec<u8>, len: usize);
}

/// A port whose frames are looked at.
pub struct ObservedPort {
    inner: Arc<dyn FramePort>,
    observer: Arc<dyn FrameObserver>,
    /// Bytes of a frame that are shown at most.
    snap: usize,
    header_len: AtomicUsize,
    /// A frame with a beginning that is ours.
    passing: Mutex<IoVecs>,
}

impl ObservedPort {
    /// `port` of a guest with `mem`, with the first `snap` bytes of each frame shown to `observer`.
    pub fn new(port: Arc<dyn FramePort>, observer: Arc<dyn FrameObserver>, snap: usize, mem: Memory) -> Self {
        let (snap, passing) = (snap.min(MAX_FRAME), Mutex::new(IoVecs::new(mem)));
        Self { inner: port, observer, snap, header_len: AtomicUsize::new(HEADER_LEN), passing }
    }

    fn header_len(&self) -> usize {
        self.header_len.load(Ordering::Relaxed).min(MAX_HEADER_LEN)
    }

    /// Shows a frame of `len` bytes that begins with `start`, both with the header.
    fn show(&self, direction: Direction, len: usize, mut start: Vec<u8>) {
        let header_len = self.header_len();
        start.drain(..header_len.min(start.len()));
        self.observer.observe(direction, start, len.saturating_sub(header_len));
    }

    fn passing(&self) -> MutexGuard<'_, IoVecs> {
        self.passing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FramePort for ObservedPort {
    fn fd(&self) -> RawFd {
        self.inner.fd()
    }

    fn stays_readable(&self) -> bool {
        self.inner.stays_readable()
    }

    fn receive(&self, into: &mut IoVecs, spill: &mut [u8]) -> io::Result<usize> {
        let mut start = vec![0; self.header_len() + self.snap];
        let (len, known) = receive_with_start(&*self.inner, &mut self.passing(), into, spill, &mut start)?;
        start.truncate(known);
        self.show(Direction::ToGuest, len, start);
        Ok(len)
    }

    fn transmit(&self, frame: &IoVecs) -> io::Result<usize> {
        let len = usize::try_from(frame.len_bytes()).unwrap_or(usize::MAX);
        let mut start = vec![0; len.min(self.header_len() + self.snap)];
        frame.copy_out(0, &mut start);
        let mut passing = self.passing();
        passing.replace_start(frame, &start);
        let sent = self.inner.transmit(&passing)?;
        self.show(Direction::FromGuest, len, start);
        Ok(sent)
    }

    fn probe_offloads(&self) -> Offloads {
        self.inner.probe_offloads()
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.inner.set_offloads(offloads)
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        self.inner.set_attached(attached)
    }

    fn set_header_len(&self, bytes: usize) -> io::Result<()> {
        self.inner.set_header_len(bytes)?;
        self.header_len.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn set_steering(&self, program: Option<BorrowedFd>) -> io::Result<()> {
        self.inner.set_steering(program)
    }
}
