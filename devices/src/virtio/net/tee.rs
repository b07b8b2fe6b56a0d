//! A look at every frame that passes a port.
//!
//! A port that is watched stands in front of another one and shows the beginning of each frame to a [`Watcher`], which must not take long: it
//! is called by the worker that moves the frame.

use crate::virtio::iovec::IoVecs;
use crate::virtio::net::offload::Offloads;
use crate::virtio::net::port::FramePort;
use crate::virtio::net::{HEADER_LEN, MAX_FRAME, MAX_HEADER_LEN};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the guest.
    ToGuest,
    /// From the guest.
    FromGuest,
}

/// Who looks at frames.
pub trait Watcher: Send + Sync {
    /// A frame of `len` bytes passes, without its virtio header; these are its first bytes, or all of them.
    fn saw(&self, way: Way, start: Vec<u8>, len: usize);
}

/// A port whose frames are looked at.
pub struct Watched {
    inner: Arc<dyn FramePort>,
    watcher: Arc<dyn Watcher>,
    /// Bytes of a frame that are shown at most.
    snap: usize,
    header_len: AtomicUsize,
}

impl Watched {
    /// `port`, with the first `snap` bytes of each frame shown to `watcher`.
    pub fn new(port: Arc<dyn FramePort>, watcher: Arc<dyn Watcher>, snap: usize) -> Self {
        let snap = snap.min(MAX_FRAME);
        Self { inner: port, watcher, snap, header_len: AtomicUsize::new(HEADER_LEN) }
    }

    /// Shows a frame of `len` bytes with its header, of which `copy_out` copies what comes after so many bytes.
    fn show(&self, way: Way, len: usize, copy_out: impl FnOnce(usize, &mut [u8])) {
        let header_len = self.header_len.load(Ordering::Relaxed).min(MAX_HEADER_LEN);
        let len = len.saturating_sub(header_len);
        let mut start = vec![0; len.min(self.snap)];
        copy_out(header_len, &mut start);
        self.watcher.saw(way, start, len);
    }
}

impl FramePort for Watched {
    fn fd(&self) -> RawFd {
        self.inner.fd()
    }

    fn receive(&self, into: &mut IoVecs, spill: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.receive(into, spill)?;
        let direct = into.spill_offset();
        self.show(Way::ToGuest, len, |skip, start| {
            into.copy_out(skip, start);
            // What the list had no room for.
            let (rest, from) = (direct.saturating_sub(skip).min(start.len()), skip.saturating_sub(direct));
            let spilled = spill.get(from..).unwrap_or_default();
            start[rest..].iter_mut().zip(spilled).for_each(|(to, from)| *to = *from);
        });
        Ok(len)
    }

    fn transmit(&self, frame: &IoVecs) -> io::Result<usize> {
        let sent = self.inner.transmit(frame)?;
        let len = usize::try_from(frame.len_bytes()).unwrap_or(usize::MAX);
        self.show(Way::FromGuest, len, |skip, start| frame.copy_out(skip, start));
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
