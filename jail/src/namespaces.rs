//! New namespaces (namespaces(7)), made by one process and joined by another.
//!
//! An ordinary user may make them inside a user namespace of its own, with one mapping: to itself. Some hosts forbid
//! that (`user.max_user_namespaces`, AppArmor, containers); then there are none.

use std::fs;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, getegid, geteuid};

use crate::root;

/// The namespaces that a process joins. That of PIDs is its own from birth.
const JOINED: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWCGROUP);

/// The user namespace around a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    /// That of minivmm's caller, who is root there.
    Callers,
    /// One of its own.
    Own,
}

/// Has the children of the calling process be in a PID namespace of their own, each for itself. Without CAP_SYS_ADMIN
/// the calling process, too, enters a user namespace of its own.
///
/// # Errors
/// If the host forbids it; then nothing has changed.
pub fn begin() -> nix::Result<Outer> {
    match unshare(CloneFlags::CLONE_NEWPID) {
        Err(Errno::EPERM) => {}
        result => return result.map(|()| Outer::Callers),
    }
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID)?;
    // A process without a mapping has the overflow user, and works as well.
    let _ = map(uid, gid);
    Ok(Outer::Own)
}

fn map(uid: Uid, gid: Gid) -> std::io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Moves the calling process, after [`begin`], into new mount, network, IPC, UTS and cgroup namespaces and an empty
/// root folder.
///
/// # Errors
/// If the host refuses.
pub fn enclose() -> nix::Result<()> {
    unshare(JOINED)?;
    root::empty()
}

/// Moves the calling process into new mount, IPC, UTS and cgroup namespaces: all that a process can leave which goes on
/// using the network and the files of the host.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn isolate() -> nix::Result<()> {
    unshare(JOINED.difference(CloneFlags::CLONE_NEWNET))
}

/// Moves the calling process, which has one thread, to the namespaces and the root folder of `process`.
///
/// # Errors
/// If the host refuses.
pub fn join(process: BorrowedFd<'_>) -> nix::Result<()> {
    setns(process, JOINED)
}
