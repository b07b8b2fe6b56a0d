//! How a queue pair goes out of use without the loss of what has come for it already.
//!
//! The kernel drops what waits in a tap's queue when the queue is detached, and under load there is always something: a
//! flow whose frames are lost at every change of the number of pairs comes to a halt. So the worker of the pair empties
//! the queue first, into the driver's ring as far as that has buffers and into the inbox of the first pair beyond that.
//!
//! ```text
//!   control queue                        worker of the pair
//!   steers all frames to the first pair
//!   asks, and waits  ----changed---->    receives until nothing is left
//!   detaches         <-----------------  has left
//! ```

use crate::sync::{Condvar, Mutex};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// How long the control queue waits for all workers that are to leave. A queue of 1000 frames is emptied in about a
/// millisecond; a worker that has met a fault never answers. Without threads there is no answer.
pub(super) const TIMEOUT: Duration = Duration::from_millis(if cfg!(feature = "inline-workers") { 0 } else { 100 });

/// Where a pair stands.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    Idle,
    Requested,
    Drained,
}

/// The state of a drain, shared by the worker and the control queue.
#[derive(Debug, Default)]
pub(super) struct Drain {
    stage: Mutex<Stage>,
    drained: Condvar,
}

impl Drain {
    /// Asks the worker, which has to be woken, to empty its queue.
    pub(super) fn request(&self) {
        self.set(Stage::Requested);
    }

    /// Waits until the worker has done so, but not longer than until `deadline`.
    pub(super) fn wait(&self, deadline: Instant) {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        while *stage == Stage::Requested {
            let timeout = deadline.saturating_duration_since(Instant::now());
            if timeout.is_zero() {
                break;
            }
            let waited = self.drained.wait_timeout(stage, timeout);
            stage = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        // A worker that comes too late finds its queue detached and empty.
        *stage = Stage::Idle;
    }

    /// Returns whether the worker is to empty its queue.
    pub(super) fn is_requested(&self) -> bool {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) == Stage::Requested
    }

    /// The worker has emptied its queue.
    pub(super) fn complete(&self) {
        self.set(Stage::Drained);
        self.drained.notify_all();
    }

    fn set(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn who_is_asked_leaves_once() {
        let drain = Arc::new(Drain::default());
        assert!(!drain.is_requested());
        drain.request();
        let worker = thread::spawn({
            let drain = drain.clone();
            move || {
                assert!(drain.is_requested());
                drain.complete();
            }
        });
        drain.wait(Instant::now() + Duration::from_secs(60));
        worker.join().unwrap();
        assert!(!drain.is_requested());
    }

    #[test]
    fn nobody_waits_for_ever() {
        let drain = Drain::default();
        drain.request();
        drain.wait(Instant::now());
        assert!(!drain.is_requested());
    }
}
