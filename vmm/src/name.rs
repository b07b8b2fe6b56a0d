//! The name of a VM: a checked word, and a lock on it.
//!
//! The lock is an abstract Unix socket, at which the VM can be asked: the kernel owns it, so it is gone with the process, however that ends. Abstract names
//! belong to the network namespace, which is also the scope in which two VMs would disturb each other's interfaces.

use std::fmt;
use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::str::FromStr;

/// The longest name: it must fit a host name label.
const MAX_LEN: usize = 63;

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
    /// The host refused the socket.
    #[error("Cannot lock the name {name}")]
    Host {
        /// The name.
        name: VmName,
        /// Why.
        source: io::Error,
    },
}

/// What the address of a VM's socket begins with.
const SOCKET_PREFIX: &str = "minivmm/";

/// The names of the VMs that run in this network namespace, in alphabetical order.
///
/// # Errors
/// The kernel does not list its sockets.
pub(crate) fn running() -> io::Result<Vec<VmName>> {
    Ok(names_in(&fs::read_to_string("/proc/net/unix")?))
}

/// The names in a list of sockets (proc(5)): the address is the last word of a line, and an abstract one begins with `@`.
fn names_in(sockets: &str) -> Vec<VmName> {
    let addresses = sockets.lines().filter_map(|line| line.rsplit(' ').next()?.strip_prefix('@'));
    let mut names: Vec<VmName> =
        addresses.filter_map(|address| address.strip_prefix(SOCKET_PREFIX)?.parse().ok()).collect();
    // A caller's connection has the same address.
    names.sort();
    names.dedup();
    names
}

/// A name that no other VM of this network namespace can have while this lives.
#[derive(Debug)]
pub(crate) struct NameLock(UnixListener);

impl NameLock {
    /// The socket that holds the name, in non-blocking mode: where the VM is called.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.0
    }
}

impl VmName {
    /// The name of a VM that was given none.
    pub(crate) fn of_process(pid: u32) -> Self {
        Self(format!("minivmm-{pid}"))
    }

    /// The name as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Where a VM of this name is called.
    ///
    /// # Errors
    /// None for a name, which is short and has no zero.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        SocketAddr::from_abstract_name(format!("{SOCKET_PREFIX}{self}"))
    }

    /// Takes the name.
    ///
    /// # Errors
    /// If another VM has it.
    pub(crate) fn lock(&self) -> Result<NameLock, LockError> {
        let host = |source| LockError::Host { name: self.clone(), source };
        let addr = self.address().map_err(host)?;
        match UnixListener::bind_addr(&addr) {
            Ok(socket) => socket.set_nonblocking(true).map(|()| NameLock(socket)).map_err(host),
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => Err(LockError::Taken(self.clone())),
            Err(err) => Err(host(err)),
        }
    }
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
    fn names_follow_the_rule() {
        for good in ["a", "0", "web-1", "a.b_c-d", &"x".repeat(63)] {
            assert!(good.parse::<VmName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "A", "a b", "ü", "a/b", &"x".repeat(64)] {
            assert_eq!(bad.parse::<VmName>(), Err(BadName), "{bad}");
        }
    }

    #[test]
    fn names_are_found_among_sockets() {
        let sockets = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                       0000: 00000002 00000000 00010000 0001 01 7 @minivmm/web\n\
                       0000: 00000003 00000000 00000000 0001 03 8 @minivmm/web\n\
                       0000: 00000002 00000000 00010000 0001 01 9 @minivmm/Bad\n\
                       0000: 00000002 00000000 00010000 0001 01 10 /run/minivmm/x\n\
                       0000: 00000003 00000000 00000000 0001 03 11\n\
                       0000: 00000002 00000000 00010000 0001 01 12 @minivmm/db\n";

        let names: Vec<_> = names_in(sockets).iter().map(ToString::to_string).collect();

        assert_eq!(names, ["db", "web"]);
    }

    #[test]
    fn name_is_taken_until_its_lock_is_dropped() {
        let name: VmName = format!("test-{}", std::process::id()).parse().unwrap();
        let lock = name.lock().unwrap();

        assert!(matches!(name.lock(), Err(LockError::Taken(_))));

        drop(lock);
        assert!(name.lock().is_ok());
    }
}
