//! Landlock: no file, no TCP and no other process, for threads that hold everything that they need.
//!
//! What is open stays open: rights are checked where a path is looked up, a socket is bound or connected, or a signal
//! is sent. The kernel decides how much of it there is: files from Linux 5.13, TCP from 6.7, ioctls of devices from
//! 6.10, abstract sockets and signals from 6.12. What a kernel lacks is left out; the result says how much it was.
//!
//! A restriction is a thread's, and inherited by those that it starts.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, Scope, make_bitflags,
};
use std::fmt;
use std::os::fd::BorrowedFd;

/// The newest version whose rights are asked for: the newest that the tests have met.
const NEWEST: ABI = ABI::V7;

/// A folder in which a thread may still change something.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Folder<'a> {
    /// Files in it are made, written and replaced: those of captures.
    Captures(BorrowedFd<'a>),
    /// Files in it are removed: those of the VM's name.
    Names(BorrowedFd<'a>),
}

impl<'a> Folder<'a> {
    fn rule(self) -> PathBeneath<BorrowedFd<'a>> {
        let (fd, rights): (_, BitFlags<AccessFs>) = match self {
            Self::Captures(fd) => (fd, make_bitflags!(AccessFs::{MakeReg | WriteFile | RemoveFile})),
            Self::Names(fd) => (fd, AccessFs::RemoveFile.into()),
        };
        PathBeneath::new(fd, rights)
    }
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

/// Restricts the calling thread to the descriptors that it has, and `folders`. Best effort, for good.
///
/// # Errors
/// If the kernel has Landlock and refuses.
pub(crate) fn restrict(folders: &[Folder<'_>]) -> Result<Status, RulesetError> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let rules = folders.iter().map(|folder| Ok::<_, RulesetError>(folder.rule()));
    let restriction = ruleset.add_rules(rules)?.restrict_self()?;
    Ok(match restriction.landlock {
        LandlockStatus::Available { effective_abi, .. } => Status::Enforced { abi: effective_abi as i32 },
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => Status::Unavailable,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File, OpenOptions};
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::thread;

    /// What `work` gives in a thread that is restricted to `folders`; nothing where there is no Landlock.
    fn restricted<R: Send>(folders: &[Folder<'_>], work: impl FnOnce(i32) -> R + Send) -> Option<R> {
        let result = thread::scope(|scope| {
            let thread = scope.spawn(|| match restrict(folders).unwrap() {
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
        let seen = restricted(&[], |abi| {
            let opened = [folder.path().join("file"), "/etc/passwd".into(), "/dev/null".into()]
                .map(|path| File::open(path).is_ok());
            (opened, abi < 4 || TcpListener::bind("127.0.0.1:0").is_err())
        });
        assert!(seen.is_none_or(|seen| seen == ([false; 3], true)), "{seen:?}");
        assert!(File::open(folder.path().join("file")).is_ok());
    }

    #[test]
    fn folders_are_open_for_what_they_are_named_for_only() {
        let (captures, names) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for folder in [&captures, &names] {
            fs::write(folder.path().join("old"), "x").unwrap();
        }
        let fds = [&captures, &names].map(|folder| File::open(folder.path()).unwrap());
        let folders = [Folder::Captures(fds[0].as_fd()), Folder::Names(fds[1].as_fd())];
        let seen = restricted(&folders, |_| {
            let made = [&captures, &names].map(|folder| {
                let new = folder.path().join("new");
                OpenOptions::new().write(true).create_new(true).open(new).is_ok()
            });
            let read = [&captures, &names].map(|folder| fs::read(folder.path().join("old")).is_ok());
            let renamed = fs::rename(captures.path().join("new"), captures.path().join("old")).is_ok();
            (made, read, renamed, fs::remove_file(names.path().join("old")).is_ok())
        });
        assert!(seen.is_none_or(|seen| seen == ([true, false], [false; 2], true, true)), "{seen:?}");
    }
}
