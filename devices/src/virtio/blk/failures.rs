//! The consequences of a request that the host fails to serve.
//!
//! ```text
//!   Report   the guest is told (VIRTIO_BLK_S_IOERR); its file system does what it does with a bad disk
//!   Pause    the request waits and is tried again; one line when the disk pauses, one when it goes on
//!   Stop     the machine ends; the request is not answered
//! ```
//! The model is `werror=` and `rerror=` of QEMU, whose `enospc` is not here: which errors pass is the user's guess as
//! much as ours. A flush that has failed is never tried again, since it could only succeed without the data: `Pause`
//! reports it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// How long a request waits until it is tried again. Short for whoever has just made room, and nothing to the host.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// Ends the machine because of a disk. Called by workers and vCPU threads, any number of times; does not wait for them.
pub trait StopMachine: Send + Sync {
    /// The host has failed to serve a request with `failure`.
    fn stop(&self, failure: io::Error);
}

/// The effect of a failure of the host.
#[derive(Clone, Default)]
pub enum OnError {
    /// The guest is told.
    #[default]
    Report,
    /// The guest waits until the host has recovered.
    Pause,
    /// The machine ends.
    Stop(Arc<dyn StopMachine>),
}

/// The decision on a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Answer it with an error.
    Fail,
    /// Leave it unanswered.
    Wait,
}

/// The failures of a disk, shared by its queues. The counts are relaxed: they order nothing.
pub(super) struct Failures {
    name: String,
    on_error: OnError,
    errors: AtomicU64,
    pauses: AtomicU64,
    /// Queues whose first request waits.
    waiting: AtomicUsize,
    flush_failed: AtomicBool,
}

impl Failures {
    /// For the disk called `name`.
    pub(super) fn new(name: &str, on_error: OnError) -> Self {
        Self {
            name: name.to_owned(),
            on_error,
            errors: AtomicU64::new(0),
            pauses: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            flush_failed: AtomicBool::new(false),
        }
    }

    /// How long a request waits that is tried again, if there are such.
    pub(super) fn retry(&self) -> Option<Duration> {
        match self.on_error {
            OnError::Pause => Some(RETRY),
            OnError::Report | OnError::Stop(_) => None,
        }
    }

    /// A flush has failed.
    pub(super) fn flush_failed(&self, err: io::Error) -> Verdict {
        self.errors.fetch_add(1, Ordering::Relaxed);
        if !self.flush_failed.swap(true, Ordering::Relaxed) {
            log::error!(
                "{}: The disk failed: {err}; what was written before may be lost, and every flush fails until the VM \
                 starts anew",
                self.name
            );
        }
        match &self.on_error {
            OnError::Report | OnError::Pause => Verdict::Fail,
            OnError::Stop(machine) => {
                machine.stop(err);
                Verdict::Wait
            }
        }
    }

    /// The requests that were failed, and the pauses.
    pub(super) fn counts(&self) -> [(&'static str, &AtomicU64); 2] {
        [("host_errors", &self.errors), ("pauses", &self.pauses)]
    }

    /// Any other request has failed.
    fn failed(&self, err: io::Error) -> Verdict {
        match &self.on_error {
            OnError::Report => {
                // The guest can cause any number of these, on a full host for example.
                if self.errors.fetch_add(1, Ordering::Relaxed) == 0 {
                    log::warn!("{}: The disk failed: {err}; further failures are only counted", self.name);
                }
                Verdict::Fail
            }
            OnError::Pause => Verdict::Wait,
            OnError::Stop(machine) => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                machine.stop(err);
                Verdict::Wait
            }
        }
    }
}

/// One queue of a disk, and whether it waits.
pub(super) struct QueueFailures {
    disk: Arc<Failures>,
    waits: bool,
}

impl QueueFailures {
    /// A queue that does not wait.
    pub(super) fn new(disk: Arc<Failures>) -> Self {
        Self { disk, waits: false }
    }

    /// The disk's.
    pub(super) fn disk(&self) -> &Failures {
        &self.disk
    }

    /// A request has failed that is not a flush.
    pub(super) fn failed(&mut self, err: io::Error) -> Verdict {
        let text = err.to_string();
        let verdict = self.disk.failed(err);
        if self.disk.retry().is_some() && !self.waits {
            self.waits = true;
            self.disk.pauses.fetch_add(1, Ordering::Relaxed);
            self.disk.errors.fetch_add(1, Ordering::Relaxed);
            if self.disk.waiting.fetch_add(1, Ordering::Relaxed) == 0 {
                log::warn!("{}: The disk failed: {text}; the guest waits, and it is tried again", self.disk.name);
            }
        }
        verdict
    }

    /// A request has been answered: whatever waited does not wait any more.
    pub(super) fn answered(&mut self) {
        if self.leave() {
            log::warn!("{}: The disk works again, and the guest goes on", self.disk.name);
        }
    }

    /// Returns whether this queue was the last one that waited.
    fn leave(&mut self) -> bool {
        std::mem::take(&mut self.waits) && self.disk.waiting.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

impl Drop for QueueFailures {
    /// A reset while the queue waits.
    fn drop(&mut self) {
        self.leave();
    }
}
