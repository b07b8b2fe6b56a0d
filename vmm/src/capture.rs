//! The frames of a card, in a pcapng file that Wireshark and tshark open.
//!
//! ```text
//!   worker of a queue pair --copies the start of a frame--> bounded channel --> thread "capture" --> file
//! ```
//!
//! A worker never waits for the disk: what finds the channel full is left out, and the file says how many were before
//! the next frame. The file is written out whenever the channel is empty, so a SIGKILL loses little. Once it has
//! `capture-size=` bytes its contents replace those of `FILE.1`, and it begins anew. A disk that fails ends
//! the capture with one line, not the VM.

mod file;

use crate::confine::seccomp::{Filters, Thread};
use devices::virtio::net::{Budget, Direction, FrameObserver, Share};
use file::CaptureFile;
use net::spec::CaptureSpec;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

/// Frames that wait for the disk at most; their bytes are on account of the VM's budget.
const WAITING_MAX: usize = 1024;

/// Why there is no capture.
#[derive(Debug, thiserror::Error)]
#[error("Cannot write the capture {}", path.display())]
pub(crate) struct Error {
    path: PathBuf,
    source: io::Error,
}

/// A frame as it was seen.
struct Seen {
    direction: Direction,
    at: SystemTime,
    start: Vec<u8>,
    len: usize,
    /// Frames left out before it.
    missed: u64,
    _share: Share,
}

/// The end that workers hold.
struct Tap {
    frames: SyncSender<Seen>,
    missed: AtomicU64,
    budget: Budget,
}

impl FrameObserver for Tap {
    fn observe(&self, direction: Direction, start: Vec<u8>, len: usize) {
        let Some(share) = self.budget.take(start.len()) else {
            self.missed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let missed = self.missed.swap(0, Ordering::Relaxed);
        let seen = Seen { direction, at: SystemTime::now(), start, len, missed, _share: share };
        if let Err(TrySendError::Full(seen)) = self.frames.try_send(seen) {
            self.missed.fetch_add(seen.missed + 1, Ordering::Relaxed);
        }
    }
}

/// The capture of one card.
pub(crate) struct Capture {
    tap: Arc<Tap>,
    snap: usize,
    writer: Mutex<Writer>,
}

enum Writer {
    /// Not yet at work: threads begin after the process has given up its privileges.
    Ready(Box<CaptureFile>, Receiver<Seen>),
    Writing(JoinHandle<()>),
    Ended,
}

impl Capture {
    /// Opens the file of card `card`, if the card is to be captured. Frames wait for it on account of `budget`.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub(crate) fn open(card: &str, spec: &CaptureSpec, budget: &Budget) -> Result<Option<Self>, Error> {
        let Some(path) = &spec.capture else { return Ok(None) };
        let failed = |source| Error { path: path.clone(), source };
        let file = CaptureFile::create(path, card, spec.snap_bytes(), spec.size_bytes()).map_err(failed)?;
        let (frames, received) = sync_channel(WAITING_MAX);
        let snap = usize::try_from(spec.snap_bytes()).unwrap_or(usize::MAX);
        let tap = Arc::new(Tap { frames, missed: AtomicU64::new(0), budget: budget.clone() });
        Ok(Some(Self { tap, snap, writer: Mutex::new(Writer::Ready(Box::new(file), received)) }))
    }

    /// Who looks at the card's frames.
    pub(crate) fn observer(&self) -> Arc<dyn FrameObserver> {
        self.tap.clone()
    }

    /// Bytes of a frame that it wants to see.
    pub(crate) fn snap(&self) -> usize {
        self.snap
    }

    /// Starts writing, in a thread with a filter of `filters`. Once.
    ///
    /// # Errors
    /// If the host has no thread left.
    pub(crate) fn start(&self, filters: &Arc<Filters>) -> io::Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Writer::Ready(file, frames) = std::mem::replace(&mut *writer, Writer::Ended) {
            let thread = thread::Builder::new().name("capture".to_owned()).stack_size(256 << 10);
            let filters = filters.clone();
            *writer = Writer::Writing(thread.spawn(move || {
                filters.enter(Thread::Capture);
                write(*file, &frames);
            })?);
        }
        Ok(())
    }

    /// Writes out what is left. No card may be left that is watched.
    pub(crate) fn finish(self) {
        let Self { tap, writer, .. } = self;
        drop(tap);
        if let Writer::Writing(thread) = writer.into_inner().unwrap_or_else(PoisonError::into_inner)
            && thread.join().is_err()
        {
            log::error!("The thread of a capture ended by a bug");
        }
    }
}

fn write(mut file: CaptureFile, frames: &Receiver<Seen>) {
    loop {
        let next = match frames.try_recv() {
            Err(TryRecvError::Empty) => file.flush().map(|()| frames.recv().ok()),
            next => Ok(next.ok()),
        };
        let written = match next {
            Ok(None) => return finish(&mut file),
            Ok(Some(seen)) => file.write(&seen),
            Err(err) => Err(err),
        };
        if let Err(err) = written {
            log::error!("The capture {} ends here: {err}", file.path().display());
            // Workers go on showing frames, which cost them little; they are left out.
            while frames.recv().is_ok() {}
            return;
        }
    }
}

fn finish(file: &mut CaptureFile) {
    if let Err(err) = file.flush() {
        log::error!("The end of the capture {} is lost: {err}", file.path().display());
    }
}

/// Time since 1970.
fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
