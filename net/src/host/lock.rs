//! One set-up or teardown of bridges at a time in a network namespace.
//!
//! Between the check that a bridge of ours has no ports left and its removal, another keeper could attach a tap to it.
//! The lock is a `flock` on the namespace's own file, so it needs no agreed directory, covers exactly the processes
//! that see the same bridges, and ends with the process. Any user can take it, hence the deadline: a program that
//! blocks it costs a start two seconds and brings the race back, nothing more. While a process of root's or of this
//! user's holds it, the wait is longer: with dozens of starts at once some take their turn late.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Timeout while another user's process holds the lock. A set-up takes about a millisecond, a teardown of eight cards
/// 0.2 s.
const DEADLINE: Duration = Duration::from_secs(2);

/// Timeout while a process of root's or of this user's holds it. The VMM waits a little longer for its keeper.
const TRUSTED_TIMEOUT: Duration = Duration::from_secs(20);

/// Pause between two attempts; `flock` cannot wait with a deadline without a signal.
const PAUSE: Duration = Duration::from_millis(2);

/// Holds the namespace's lock until dropped, if it was acquired.
#[derive(Debug)]
pub(crate) struct NamespaceLock {
    _lock: Option<Flock<File>>,
}

impl NamespaceLock {
    /// Waits for the lock, at most [`DEADLINE`], or [`TRUSTED_TIMEOUT`] if a process of root's or of this user's holds
    /// it then.
    pub(crate) async fn take() -> Self {
        match Self::wait().await {
            Ok(lock) => Self { _lock: Some(lock) },
            Err(error) => {
                log::warn!("Going on without the lock of this network namespace: {error}");
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
                Err((back, Errno::EWOULDBLOCK))
                    if start.elapsed() >= TRUSTED_TIMEOUT
                        || start.elapsed() >= DEADLINE && !is_held_by_our_own(&back) =>
                {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err((back, Errno::EWOULDBLOCK)) => file = back,
                Err((_, errno)) => return Err(errno.into()),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// True if only processes of root's or of this user's hold the lock, or none does because it was just released.
fn is_held_by_our_own(file: &File) -> bool {
    let Ok(inode) = file.metadata().map(|metadata| metadata.ino()) else { return false };
    let own = nix::unistd::geteuid().as_raw();
    let is_own = |pid: u32| fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| [0, own].contains(&process.uid()));
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    locks.lines().filter_map(|line| holder(line, inode)).all(is_own)
}

/// The process in a line of `/proc/locks` (proc(5)), if it is about this file.
fn holder(line: &str, inode: u64) -> Option<u32> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let &[_, "FLOCK", _, _, pid, file, ..] = words.as_slice() else { return None };
    let same = file.rsplit(':').next()?.parse() == Ok(inode);
    // A process that cannot be seen from here has number 0, which no directory has.
    if same { Some(pid.parse().unwrap_or(0)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holder_is_read_from_the_line_of_the_file() {
        let line = "4: FLOCK  ADVISORY  WRITE 4711 00:04:4026531833 0 EOF";
        assert_eq!(holder(line, 4_026_531_833), Some(4711));
        for (line, inode) in [
            (line, 4_026_531_834),
            ("4: POSIX  ADVISORY  WRITE 4711 00:04:4026531833 0 EOF", 4_026_531_833),
            ("4: -> FLOCK  ADVISORY  WRITE 4711 00:04:4026531833 0 EOF", 4_026_531_833),
            ("", 0),
        ] {
            assert_eq!(holder(line, inode), None, "{line}");
        }
    }

    #[test]
    fn own_lock_is_held_by_our_own() {
        let file = tempfile::tempfile().unwrap();
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
        assert!(is_held_by_our_own(&lock));
    }
}
