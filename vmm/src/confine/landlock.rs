//! Landlock: no file, no TCP and no other process, for threads that hold everything that they need.
//!
//! Open descriptors stay open: rights are checked where a path is looked up, a socket is bound or connected, or a
//! signal
//! is sent. The kernel decides how much of it there is: files from Linux 5.13, TCP from 6.7, ioctls of devices from
//! 6.10, abstract sockets and signals from 6.12. What a kernel lacks is left out; the result says how much it was.
//!
//! A restriction is a thread's, and inherited by those that it starts.

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, NetPort, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, Scope,
};
use std::fmt;
use std::os::fd::BorrowedFd;

/// The newest version whose rights are asked for: the newest that the tests have met.
const NEWEST: ABI = ABI::V7;

/// The files and ports that a process may still reach.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reach<'a> {
    /// Folders whose files it may read.
    pub(crate) readable: &'a [BorrowedFd<'a>],
    /// Ports of TCP that it may connect to.
    pub(crate) ports: &'a [u16],
}

/// How far a thread is restricted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// By the rights of this version of the kernel's interface, or of [`NEWEST`].
    Enforced {
        /// The version.
        abi: i32,
    },
    /// Not at all: the kernel has no Landlock, or it is switched off.
    Unavailable,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enforced { abi } => write!(f, "Landlock {abi}"),
            Self::Unavailable => f.write_str("no Landlock"),
        }
    }
}

/// Restricts the calling thread to the descriptors that it has, and `reach`. Best effort, for good.
///
/// # Errors
/// If the kernel has Landlock and refuses.
pub(crate) fn restrict(reach: Reach<'_>) -> Result<Status, RulesetError> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let files = reach.readable.iter().map(|folder| Ok::<_, RulesetError>(PathBeneath::new(folder, AccessFs::ReadFile)));
    let ports = reach.ports.iter().map(|port| Ok::<_, RulesetError>(NetPort::new(*port, AccessNet::ConnectTcp)));
    let restriction = ruleset.add_rules(files)?.add_rules(ports)?.restrict_self()?;
    Ok(match restriction.landlock {
        LandlockStatus::Available { effective_abi, .. } => Status::Enforced { abi: effective_abi as i32 },
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => Status::Unavailable,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::thread;

    /// The result of `work` in a thread that is restricted to `reach`; nothing where there is no Landlock.
    fn restricted<R: Send>(reach: Reach<'_>, work: impl FnOnce(i32) -> R + Send) -> Option<R> {
        let result = thread::scope(|scope| {
            let thread = scope.spawn(|| match restrict(reach).unwrap() {
                Status::Enforced { abi } => Some(work(abi)),
                Status::Unavailable => None,
            });
            thread.join().unwrap()
        });
        if result.is_none() {
            println!("skipped: this kernel has no Landlock");
        }
        result
    }

    #[test]
    fn restricted_thread_opens_no_file_and_no_port() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "x").unwrap();
        let seen = restricted(Reach::default(), |abi| {
            let opened = [folder.path().join("file"), "/etc/passwd".into(), "/dev/null".into()]
                .map(|path| File::open(path).is_ok());
            (opened, abi < 4 || TcpListener::bind("127.0.0.1:0").is_err())
        });
        assert!(seen.is_none_or(|seen| seen == ([false; 3], true)), "{seen:?}");
        assert!(File::open(folder.path().join("file")).is_ok());
    }

    #[test]
    fn files_of_a_readable_folder_are_read_and_not_written_and_ports_are_those_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "x").unwrap();
        let fd = File::open(folder.path()).unwrap();
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        let reach = Reach { readable: &[fd.as_fd()], ports: &[addresses[0].port()] };
        let seen = restricted(reach, |abi| {
            let written = fs::write(&path, "y").is_ok() || File::create(folder.path().join("new")).is_ok();
            let connected = addresses.map(|address| TcpStream::connect(address).is_ok());
            (fs::read(&path).is_ok(), written, abi < 4 || connected == [true, false])
        });
        assert!(seen.is_none_or(|seen| seen == (true, false, true)), "{seen:?}");
    }
}
