//! One set-up or teardown of bridges at a time in a network namespace.
//!
//! Between the look whether a bridge of ours has ports left and its removal, another keeper could attach a tap to it.
//! The lock is a `flock` on the namespace's own file, so it needs no directory that everybody can agree on, covers
//! exactly the processes that see the same bridges, and is gone with the process. Any user can take it, hence the
//! deadline: whoever blocks it costs a start two seconds and brings the race back, nothing more.

use std::fs::File;
use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// How long to wait for others. A set-up takes about a millisecond, a teardown of eight cards 0.2 s.
const DEADLINE: Duration = Duration::from_secs(2);

/// Pause between two attempts; `flock` cannot wait with a deadline without a signal.
const PAUSE: Duration = Duration::from_millis(2);

/// Holds the namespace's lock until dropped, if it could be had.
#[derive(Debug)]
pub(crate) struct NamespaceLock {
    _lock: Option<Flock<File>>,
}

impl NamespaceLock {
    /// Waits for the lock, at most [`DEADLINE`].
    pub(crate) async fn take() -> Self {
        match Self::wait().await {
            Ok(lock) => Self { _lock: Some(lock) },
            Err(error) => {
                log::warn!("Go on without the lock of this network namespace: {error}");
                Self { _lock: None }
            }
        }
    }

    async fn wait() -> io::Result<Flock<File>> {
        let mut file = File::open("/proc/self/ns/net")?;
        let start = tokio::time::Instant::now();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((_, Errno::EWOULDBLOCK)) if start.elapsed() >= DEADLINE => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err((back, Errno::EWOULDBLOCK)) => file = back,
                Err((_, errno)) => return Err(errno.into()),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
