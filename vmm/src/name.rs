//! The name of a VM: a checked word, and a lock on it in the folder of the user's VMs (see [`net::runtime_dir`]).
//!
//! VMM and keeper both hold the lock, so a name is free once nothing is left of its VM. A VM that follows one that was
//! killed waits for that, but not for ever.

use net::runtime_dir::{self, FolderError, NameLock, RuntimeDir, VmSocket};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;
use std::fmt;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait for the keeper of a killed VM. It takes 0.2 s for eight cards; waiting for the lock of other
/// keepers adds up to twenty seconds.
const KEEPER_TIMEOUT: Duration = Duration::from_secs(25);

/// Pauses between two attempts meanwhile.
const PAUSE: Duration = Duration::from_millis(2);

/// How long a VM that has the name may take to accept a connection: the kernel does it for one that runs.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest name: it must fit a host name label.
const MAX_LEN: usize = 63;

/// FNV-1a, 128 bit: offset basis and prime.
const FNV_OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const FNV_PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// A name: `[a-z0-9][a-z0-9._-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VmName(String);

/// Text that is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("A name has 1 to {MAX_LEN} characters of a-z, 0-9, '.', '_' and '-', and starts with a letter or digit")]
pub(crate) struct BadName;

/// Why a name could not be locked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Another VM has it.
    #[error("A VM with the name {0} is already running")]
    Taken(VmName),
    /// Its VM was killed, and its network is still there.
    #[error("The VM with the name {0} has ended, but its network keeper has not")]
    Ending(VmName),
    /// There is no folder for names.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The host refused the lock or the socket.
    #[error("Cannot lock the name {name}")]
    Host {
        /// The name.
        name: VmName,
        /// Why.
        source: io::Error,
    },
}

impl LockError {
    /// Advice to the user.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Taken(_) => "Stop it, or give this VM another --name",
            Self::Ending(_) => {
                "Its process 'keeper' still takes its network away; try again, or give this VM another --name"
            }
            Self::Folder(_) => {
                "Set XDG_RUNTIME_DIR to a folder of this user that only this user can write to, such as /run/user/UID"
            }
            Self::Host { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

/// The names of the VMs that run in this network namespace, in alphabetical order.
///
/// # Errors
/// The kernel does not list its sockets.
pub(crate) fn running() -> io::Result<Vec<VmName>> {
    Ok(runtime_dir::running()?.iter().filter_map(|name| name.parse().ok()).collect())
}

/// A name that no other VM of this user can have while this lives, and the socket where the VM is called.
#[derive(Debug)]
pub(crate) struct LockedName {
    listener: UnixListener,
    lock: NameLock,
}

impl LockedName {
    /// The socket where the VM is called, in non-blocking mode.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The lock, for the keeper to hold as well.
    pub(crate) fn lock(&self) -> &NameLock {
        &self.lock
    }
}

impl VmName {
    /// The name of a VM that was given none.
    pub(crate) fn of_process(pid: u32) -> Self {
        Self(format!("minivmm-{pid}"))
    }

    /// The UUID of a machine with this name, always the same (RFC 9562 5.8, version 8).
    pub(crate) fn uuid(&self) -> [u8; 16] {
        let hash = self.0.bytes().fold(FNV_OFFSET, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(FNV_PRIME));
        // FNV's high bits mix badly for short inputs: fold the low ones over them.
        let mut uuid = (hash ^ (hash << 64)).to_be_bytes();
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        uuid
    }

    /// The name as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Takes the name. Waits for the keeper of a VM that had it and was killed.
    ///
    /// # Errors
    /// If another VM has it, or the host refuses.
    pub(crate) fn lock(&self) -> Result<LockedName, LockError> {
        self.lock_within(KEEPER_TIMEOUT)
    }

    fn lock_within(&self, timeout: Duration) -> Result<LockedName, LockError> {
        let host = |source| LockError::Host { name: self.clone(), source };
        let folder = RuntimeDir::open()?;
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(lock) = folder.try_lock(&self.0).map_err(host)? {
                let listener = folder.listen(&self.0, VmSocket::Control).map_err(host)?;
                return Ok(LockedName { listener, lock });
            }
            match runtime_dir::connect(&self.0, VmSocket::Control, CONNECT_TIMEOUT) {
                Err(error) if is_gone(&error) && Instant::now() < deadline => thread::sleep(PAUSE),
                Err(error) if is_gone(&error) => return Err(LockError::Ending(self.clone())),
                // Its VMM ends as well, in a moment.
                Ok(vm) if is_orphan(&vm) && Instant::now() < deadline => thread::sleep(PAUSE),
                _ => return Err(LockError::Taken(self.clone())),
            }
        }
    }
}

/// Returns whether the process that the VM behind a connection was started as has been killed.
fn is_orphan(vm: &UnixStream) -> bool {
    let starter = getsockopt(vm, sockopt::PeerCredentials).map(|peer| Pid::from_raw(peer.pid()));
    // That of another PID namespace has the number 0 here.
    starter.is_ok_and(|pid| pid.as_raw() > 0 && kill(pid, None) == Err(Errno::ESRCH))
}

/// Returns whether an error of a connection says that no process listens.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

impl FromStr for VmName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let is_plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let first_ok = text.bytes().next().is_some_and(is_plain);
        let rest_ok = text.bytes().all(|c| is_plain(c) || b"._-".contains(&c));
        if first_ok && rest_ok && text.len() <= MAX_LEN { Ok(Self(text.to_owned())) } else { Err(BadName) }
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_follows_from_the_name() {
        let uuid = |name: &str| name.parse::<VmName>().unwrap().uuid();
        assert_eq!(uuid("web"), uuid("web"));
        let uuids: std::collections::BTreeSet<_> = (0..1000).map(|i| uuid(&format!("vm{i}"))).collect();
        assert_eq!(uuids.len(), 1000);
        assert!(uuids.iter().all(|uuid| uuid[6] >> 4 == 8 && uuid[8] >> 6 == 2));
    }

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "0", "web-1", "a.b_c-d", &"x".repeat(63)] {
            assert!(good.parse::<VmName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "A", "a b", "ü", "a/b", &"x".repeat(64)] {
            assert_eq!(bad.parse::<VmName>(), Err(BadName), "{bad}");
        }
    }

    #[test]
    fn name_is_taken_until_its_lock_is_dropped() {
        let name: VmName = format!("test-{}", std::process::id()).parse().unwrap();
        let lock = name.lock().unwrap();

        assert!(matches!(name.lock(), Err(LockError::Taken(_))));

        drop(lock);
        assert!(name.lock().is_ok());
    }
    #[test]
    fn name_of_a_vm_that_has_ended_is_waited_for() {
        let name: VmName = format!("killed-{}", std::process::id()).parse().unwrap();
        let LockedName { listener, lock } = name.lock().unwrap();
        // A keeper has the lock, and no VMM answers.
        drop(listener);

        let waited = name.lock_within(Duration::from_millis(20));
        assert!(matches!(waited, Err(LockError::Ending(_))));

        let next = thread::spawn(move || name.lock().map(drop));
        drop(lock);
        assert!(next.join().unwrap().is_ok());
    }
}
