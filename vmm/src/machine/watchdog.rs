//! A deadline for the end of a machine.
//!
//! The threads of vCPUs and devices are joined, and one that is in the middle of host I/O comes back only when the host
//! lets it: a disk on a dead network file system or a slow flush can take for ever. The guest is gone by then and its
//! exit code is known, so the process ends without them. The kernel closes what is left open, and the network keeper
//! undoes its work by itself.

use crate::confine::seccomp::{Filters, Thread};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

/// Stack of the thread in bytes: it formats a log line.
const STACK_BYTES: usize = 128 << 10;

/// Waits while the machine stops. Dropped when it has stopped.
pub(super) struct Watchdog {
    _stopped: Sender<()>,
}

impl Watchdog {
    /// Does `bark` in a thread of its own, with a filter of `filters`, unless the result is dropped within `timeout`.
    ///
    /// # Errors
    /// If the host has no thread left.
    pub(super) fn start(
        timeout: Duration,
        filters: Arc<Filters>,
        bark: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, stopped) = mpsc::channel::<()>();
        // Not joined: it ends as soon as the sender is dropped, or ends the process.
        thread::Builder::new().name("watchdog".to_owned()).stack_size(STACK_BYTES).spawn(move || {
            filters.enter(Thread::Watchdog);
            if stopped.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
                bark();
            }
        })?;
        Ok(Self { _stopped: sender })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confine::seccomp::{Mode, Vhost};

    /// Longer than any of these takes on a loaded machine.
    const DEADLINE: Duration = Duration::from_secs(30);

    fn start(timeout: Duration, bark: impl FnOnce() + Send + 'static) -> Watchdog {
        let filters = Filters::new(Mode::Off, Vhost::None).unwrap();
        Watchdog::start(timeout, Arc::new(filters), bark).unwrap()
    }

    #[test]
    fn machine_that_does_not_stop_is_reported() {
        let (sender, barked) = mpsc::channel();
        let _watchdog = start(Duration::from_millis(1), move || sender.send(()).unwrap());

        assert_eq!(barked.recv_timeout(DEADLINE), Ok(()));
    }

    #[test]
    fn machine_that_stops_is_not() {
        let (sender, barked) = mpsc::channel::<()>();
        let watchdog = start(DEADLINE, move || sender.send(()).unwrap());

        drop(watchdog);

        // The thread ends, and its end of the channel with it.
        assert_eq!(barked.recv_timeout(DEADLINE), Err(RecvTimeoutError::Disconnected));
    }
}
