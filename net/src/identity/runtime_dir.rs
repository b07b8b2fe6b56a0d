//! The folder of a user's running VMs: a lock and two sockets for each name.
//!
//! | File | Held by | Use |
//! |---|---|---|
//! | `NAME.lock` | VMM and keeper, by `flock` | the name is taken for as long as one of them lives |
//! | `NAME.sock` | VMM | control of the VM |
//! | `NAME.keeper` | keeper | network policy of the VM |
//!
//! The folder is `/run/minivmm` for root. For other users it is `minivmm` in `$XDG_RUNTIME_DIR` or `/run/user/UID`, or
//! `/tmp/minivmm-UID` where neither exists. Only its owner can write to it, so that no other user can take a name or
//! answer for a VM; abstract sockets, which any user can bind, would allow both. A name is unique among the VMs of one
//! folder, whatever their network namespaces.
//!
//! A killed process leaves its files behind. They are harmless: its lock is released, and the next holder, a VM of that
//! name or `minivmm net gc`, removes them. Only the holder of a lock removes files of its name.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, getsockopt, socket, sockopt};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::unistd::{Uid, UnlinkatFlags, geteuid, unlinkat};

use crate::identity::unix_sockets::UnixSockets;

/// The folder of root's VMs.
const ROOT_FOLDER: &str = "/run/minivmm";

/// Any user may list the names of VMs; only the owner may add some.
const FOLDER_MODE: u32 = 0o755;

/// Only the owner can open a lock or socket: a process that can open a lock can hold it.
const FILE_MODE: u32 = 0o600;

/// Write permission of group and others, in the mode of a folder.
const WRITE_BY_OTHERS: u32 = 0o022;

/// A user's folder, open.
#[derive(Debug)]
pub struct RuntimeDir {
    path: PathBuf,
    fd: File,
}

/// The reason why there is no folder for names.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The host refuses it.
    #[error("Cannot use the folder {} for names of VMs", path.display())]
    Host {
        /// The folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Another user could change it.
    #[error("Cannot use the folder {} for names of VMs: it is not this user's alone", .0.display())]
    Foreign(PathBuf),
}

/// A socket of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmSocket {
    /// The VMM's socket, for control of the VM.
    Control,
    /// The keeper's socket, for the network policy.
    Keeper,
}

impl VmSocket {
    /// The suffix of its file's name. The part after the last dot tells the kinds of files apart.
    fn suffix(self) -> &'static str {
        match self {
            Self::Control => ".sock",
            Self::Keeper => ".keeper",
        }
    }
}

/// The suffix of the lock's name.
const LOCK_SUFFIX: &str = ".lock";

impl RuntimeDir {
    /// Opens the folder of this process's user, and creates it if it is missing.
    ///
    /// # Errors
    /// No candidate folder is usable and this user's alone.
    pub fn open() -> Result<Self, FolderError> {
        let mut refusal = None;
        for path in candidates() {
            match Self::open_at(path) {
                Ok(folder) => return Ok(folder),
                // The last candidate, `/tmp`, exists on every host: its error says more than that of a missing
                // `/run/user`.
                Err(error) => refusal = Some(error),
            }
        }
        let missing = || FolderError::Host { path: ROOT_FOLDER.into(), source: io::ErrorKind::NotFound.into() };
        Err(refusal.unwrap_or_else(missing))
    }

    fn open_at(path: PathBuf) -> Result<Self, FolderError> {
        match Self::make_and_open(&path) {
            Ok((fd, folder)) if folder.uid() == geteuid().as_raw() && folder.mode() & WRITE_BY_OTHERS == 0 => {
                Ok(Self { path, fd })
            }
            Ok(_) => Err(FolderError::Foreign(path)),
            Err(source) => Err(FolderError::Host { path, source }),
        }
    }

    fn make_and_open(path: &Path) -> io::Result<(File, Metadata)> {
        match DirBuilder::new().mode(FOLDER_MODE).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let fd = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)?;
        let metadata = fd.metadata()?;
        Ok((fd, metadata))
    }

    /// The path of a VM's socket.
    #[must_use]
    pub fn socket(&self, vm: &str, socket: VmSocket) -> PathBuf {
        self.path.join(format!("{vm}{}", socket.suffix()))
    }

    /// Tries to lock a name. Returns `None` while another process holds the lock.
    ///
    /// # Errors
    /// The host refuses the file.
    pub fn try_lock(&self, vm: &str) -> io::Result<Option<NameLock>> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(FILE_MODE);
        loop {
            let file = File::from(openat(&self.fd, lock_name(vm).as_str(), flags, mode)?);
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            let lock = NameLock { folder: RefCell::new(Some(self.fd.try_clone()?)), vm: vm.to_owned(), file };
            // Otherwise the last holder has removed the file meanwhile, and another process may have made a new one.
            if lock.is_current() {
                for socket in [VmSocket::Control, VmSocket::Keeper] {
                    remove(self.fd.as_fd(), &format!("{vm}{}", socket.suffix()));
                }
                return Ok(Some(lock));
            }
        }
    }

    /// Binds a non-blocking listener to a socket of a VM whose name the caller has locked.
    ///
    /// # Errors
    /// The host refuses the socket, for example because the path is too long for a socket address.
    pub fn listen(&self, vm: &str, socket: VmSocket) -> io::Result<std::os::unix::net::UnixListener> {
        let path = self.socket(vm, socket);
        remove(self.fd.as_fd(), &format!("{vm}{}", socket.suffix()));
        let listener = std::os::unix::net::UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(FILE_MODE))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Removes the files of killed VMs, and returns the names of these VMs. A VM that runs, starts or has a keeper
    /// holds its lock and keeps its files.
    ///
    /// # Errors
    /// The folder cannot be read, or refuses a file.
    pub fn sweep(&self) -> io::Result<Vec<String>> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&self.path)? {
            let file = entry?.file_name();
            let suffixes = [LOCK_SUFFIX, VmSocket::Control.suffix(), VmSocket::Keeper.suffix()];
            let name = file.to_str().and_then(|file| suffixes.iter().find_map(|suffix| file.strip_suffix(suffix)));
            names.extend(name.map(str::to_owned));
        }
        let mut swept = Vec::new();
        for name in names {
            // Dropping the lock removes the files.
            if self.try_lock(&name)?.is_some() {
                swept.push(name);
            }
        }
        Ok(swept)
    }

    /// Removes a socket of a VM.
    pub fn remove(&self, vm: &str, socket: VmSocket) {
        remove(self.fd.as_fd(), &format!("{vm}{}", socket.suffix()));
    }
}

/// The lock of a name. No other VM of the folder can have the name while this, or a duplicate of its descriptor, is
/// open.
#[derive(Debug)]
pub struct NameLock {
    /// None where another process removes the files of the name.
    folder: RefCell<Option<File>>,
    vm: String,
    file: File,
}

impl NameLock {
    /// The lock as a descriptor, for another process that is to hold it as well.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Leaves it to another process, which shares the lock, to remove the files of the name.
    pub(crate) fn leave(&self) {
        self.folder.take();
    }

    /// Returns true if the locked file is the one in the folder.
    fn is_current(&self) -> bool {
        self.folder.borrow().as_ref().is_some_and(|folder| is_current(folder.as_fd(), &self.vm, self.file.as_fd()))
    }
}

impl Drop for NameLock {
    fn drop(&mut self) {
        if let Some(folder) = self.folder.take() {
            clear(folder.as_fd(), &self.vm, self.file.as_fd());
        }
    }
}

/// Removes the files of a name whose lock this process shares: `file` is a duplicate of the lock's descriptor.
pub(crate) fn clear_shared(vm: &str, file: BorrowedFd) {
    if let Ok(folder) = RuntimeDir::open() {
        clear(folder.fd.as_fd(), vm, file);
    }
}

/// Removes the files of a name, the lock last. If the locked file is no longer in the folder, another holder has done
/// so, and the files there are another VM's.
fn clear(folder: BorrowedFd, vm: &str, file: BorrowedFd) {
    if is_current(folder, vm, file) {
        for socket in [VmSocket::Control, VmSocket::Keeper] {
            remove(folder, &format!("{vm}{}", socket.suffix()));
        }
        remove(folder, &lock_name(vm));
    }
}

fn is_current(folder: BorrowedFd, vm: &str, file: BorrowedFd) -> bool {
    let named = fstatat(folder, lock_name(vm).as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
    let (Ok(locked), Ok(named)) = (fstat(file), named) else { return false };
    (locked.st_dev, locked.st_ino) == (named.st_dev, named.st_ino)
}

fn lock_name(vm: &str) -> String {
    format!("{vm}{LOCK_SUFFIX}")
}

fn remove(folder: BorrowedFd, name: &str) {
    // A missing file needs no removal.
    let _ = unlinkat(folder, name, UnlinkatFlags::NoRemoveDir);
}

/// Connects to a socket of a VM of this user or of root.
///
/// # Errors
/// `NotFound` or `ConnectionRefused`: no such VM runs. `PermissionDenied`: the VM is another user's. `WouldBlock`: the
/// VM has not accepted within `timeout`. `Other`: the socket exists, but a process of another user listens.
pub fn connect(vm: &str, socket: VmSocket, timeout: Duration) -> io::Result<UnixStream> {
    let mut refusal = io::ErrorKind::NotFound.into();
    let mut folders = candidates();
    folders.push(ROOT_FOLDER.into());
    folders.dedup();
    for folder in folders {
        match connect_to(&folder.join(format!("{vm}{}", socket.suffix())), timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Left by a killed VM, perhaps; another folder may have a live one.
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

fn connect_to(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let stream = UnixStream::from(socket);
    // The send timeout also limits the wait of `connect` for room in the listener's queue (unix(7)).
    stream.set_write_timeout(Some(timeout))?;
    stream.set_read_timeout(Some(timeout))?;
    nix::sys::socket::connect(stream.as_raw_fd(), &address)?;
    let server = Uid::from_raw(getsockopt(&stream, sockopt::PeerCredentials)?.uid());
    if !server.is_root() && server != geteuid() {
        return Err(io::Error::other(format!("user {server} answers in place of the VM")));
    }
    Ok(stream)
}

/// The names of the VMs that run in this network namespace and whose folder this user may use, in alphabetical order.
///
/// # Errors
/// The kernel does not list its sockets.
pub fn running() -> io::Result<Vec<String>> {
    let mut folders = candidates();
    folders.push(ROOT_FOLDER.into());
    let sockets = UnixSockets::read()?;
    let mut names: Vec<String> = folders.iter().flat_map(|folder| names_in(&sockets, folder)).collect();
    names.sort();
    // A caller's connection has the same address.
    names.dedup();
    Ok(names)
}

/// The names of VMs with a control socket in `folder`, from the addresses of sockets.
fn names_in(sockets: &UnixSockets, folder: &Path) -> Vec<String> {
    let names = sockets.addresses().filter_map(|address| {
        let name = Path::new(OsStr::from_bytes(address)).strip_prefix(folder).ok()?.to_str()?;
        let name = name.strip_suffix(VmSocket::Control.suffix())?;
        // A process with its own mount namespace can bind a socket of this path there.
        let exists = folder.join(format!("{name}{}", VmSocket::Control.suffix())).exists();
        (!name.contains('/') && exists).then(|| name.to_owned())
    });
    names.collect()
}

/// The candidate folders of this process's user, best first.
fn candidates() -> Vec<PathBuf> {
    let user = geteuid();
    // Root of a user namespace may not have `/run`.
    let root = user.is_root().then(|| PathBuf::from(ROOT_FOLDER));
    root.into_iter().chain(user_candidates(env::var_os("XDG_RUNTIME_DIR"), user.as_raw())).collect()
}

/// The candidates of an ordinary user (XDG base directory specification; pam_systemd(8)).
fn user_candidates(xdg_runtime_dir: Option<OsString>, uid: u32) -> Vec<PathBuf> {
    let given = xdg_runtime_dir.map(PathBuf::from).filter(|path| path.is_absolute());
    let usual = PathBuf::from(format!("/run/user/{uid}"));
    let mut folders: Vec<PathBuf> = given.into_iter().chain([usual]).map(|path| path.join("minivmm")).collect();
    folders.push(PathBuf::from(format!("/tmp/minivmm-{uid}")));
    folders.dedup();
    folders
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn folder() -> (tempfile::TempDir, RuntimeDir) {
        let parent = tempfile::tempdir().unwrap();
        let folder = RuntimeDir::open_at(parent.path().join("minivmm")).unwrap();
        (parent, folder)
    }

    #[test]
    fn folder_is_looked_for_where_only_its_user_writes() {
        let paths = |xdg: Option<&str>| user_candidates(xdg.map(OsString::from), 7);
        let usual = ["/run/user/7/minivmm", "/tmp/minivmm-7"].map(PathBuf::from);
        assert_eq!(paths(Some("/x"))[0], PathBuf::from("/x/minivmm"));
        assert_eq!(paths(Some("/x"))[1..], usual);
        assert_eq!(paths(Some("/run/user/7")), usual);
        assert_eq!(paths(Some("relative")), usual);
        assert_eq!(paths(None), usual);
    }

    #[test]
    fn folder_that_others_can_write_to_is_refused() {
        let (parent, folder) = folder();
        let path = folder.path.clone();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(RuntimeDir::open_at(path.clone()), Err(FolderError::Foreign(_))));
        let link = parent.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(RuntimeDir::open_at(link), Err(FolderError::Host { .. })));
    }

    #[test]
    fn name_is_taken_until_its_last_holder_lets_go() {
        let (_parent, folder) = folder();
        let lock = folder.try_lock("web").unwrap().unwrap();
        let shared = lock.as_fd().try_clone_to_owned().unwrap();
        assert!(folder.try_lock("web").unwrap().is_none());
        assert!(folder.try_lock("web.lock").unwrap().is_some());

        // As after SIGKILL of one of the two.
        std::mem::forget(lock);
        assert!(folder.try_lock("web").unwrap().is_none());

        clear(folder.fd.as_fd(), "web", shared.as_fd());
        let next = folder.try_lock("web").unwrap().unwrap();
        // A holder of the old lock removes nothing of the new one.
        clear(folder.fd.as_fd(), "web", shared.as_fd());
        assert!(next.is_current());
    }

    #[test]
    fn files_of_killed_vms_are_swept_and_those_of_a_running_one_stay() {
        let (_parent, folder) = folder();
        let lock = folder.try_lock("web").unwrap().unwrap();
        let _listener = folder.listen("web", VmSocket::Control).unwrap();
        for file in ["killed.lock", "killed.sock", "keeper-too.keeper"] {
            fs::write(folder.path.join(file), "").unwrap();
        }

        assert_eq!(folder.sweep().unwrap(), ["keeper-too", "killed"]);

        let mut left: Vec<_> = fs::read_dir(&folder.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["web.lock", "web.sock"]);
        drop(lock);
        assert!(folder.sweep().unwrap().is_empty());
    }

    #[test]
    fn sockets_are_their_users_alone_and_go_with_the_lock() {
        let (_parent, folder) = folder();
        let lock = folder.try_lock("web").unwrap().unwrap();
        let _listener = folder.listen("web", VmSocket::Control).unwrap();
        let path = folder.socket("web", VmSocket::Control);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        connect_to(&path, Duration::from_secs(5)).unwrap();

        drop(lock);

        assert_eq!(fs::read_dir(&folder.path).unwrap().count(), 0);
    }

    #[test]
    fn socket_of_a_killed_vm_is_replaced() {
        let (_parent, folder) = folder();
        drop(folder.listen("web", VmSocket::Control).unwrap());
        let path = folder.socket("web", VmSocket::Control);
        let error = connect_to(&path, Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);

        let _lock = folder.try_lock("web").unwrap().unwrap();
        let _listener = folder.listen("web", VmSocket::Control).unwrap();
        connect_to(&path, Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn names_are_found_among_sockets_that_have_a_file() {
        let (_parent, folder) = folder();
        for name in ["web", "db", "a.b"] {
            fs::write(folder.socket(name, VmSocket::Control), "").unwrap();
        }
        let path = folder.path.display();
        let sockets = format!(
            "Num       RefCount Protocol Flags    Type St Inode Path\n\
             0000: 00000002 00000000 00010000 0001 01 7 {path}/web.sock\n\
             0000: 00000003 00000000 00000000 0001 03 8 {path}/web.sock\n\
             0000: 00000002 00000000 00010000 0001 01 9 {path}/elsewhere.sock\n\
             0000: 00000002 00000000 00010000 0001 01 10 @minivmm/old\n\
             0000: 00000002 00000000 00010000 0001 01 11 {path}/db.keeper\n\
             0000: 00000002 00000000 00010000 0001 01 12 {path}/a.b.sock\n"
        );
        assert_eq!(names_in(&sockets.into(), &folder.path), ["web", "web", "a.b"]);
    }
}
