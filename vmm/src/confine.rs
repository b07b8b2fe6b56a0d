//! Confinement: once the process holds every descriptor, it gives up what it could get besides.
//!
//! | what | how | whose |
//! |---|---|---|
//! | capabilities, and the way to new ones | `capset`, `no_new_privs` | a thread's, inherited |
//! | files, TCP, signals to others, abstract sockets | [`landlock`] | a thread's, inherited |
//! | system calls | [`seccomp`] | a thread's, inherited, by what it is for |
//! | core dumps, a look into its memory | [`fences`] | the process's |
//!
//! Main gives up its own before the first vCPU runs. Threads that are there before it does, since they need what main is
//! not to have or since main waits for them, do so by themselves, first thing: see [`enter`].

pub(crate) mod fences;
pub(crate) mod landlock;
pub(crate) mod seccomp;

use crate::{exit, limits, logger};
use landlock::Folder;
use net::error_chain;
use nix::errno::Errno;
use nix::sys::prctl;
use seccomp::{Filters, Thread};
use std::io;
use std::ptr::from_ref;

/// The version of capset(2) that takes 64 capabilities (`_LINUX_CAPABILITY_VERSION_3`, linux/capability.h).
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct CapHeader {
    version: u32,
    /// 0: the thread that calls.
    pid: i32,
}

/// `struct __user_cap_data_struct`: half of each set.
#[derive(Default)]
#[repr(C)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Confines the calling thread, which main has started before it confined itself, to what `thread` does and to changes
/// in `folders`. The process ends if that fails.
pub(crate) fn enter(filters: &Filters, thread: Thread, folders: &[Folder<'_>]) {
    let given_up = drop_capabilities().map_err(io::Error::from);
    let restricted = given_up.and_then(|()| landlock::restrict(folders).map_err(io::Error::other));
    if let Err(err) = restricted {
        log::error!("The thread {} cannot give up its privileges: {}", thread.name(), error_chain(&err));
        if let Some(hint) = limits::hint(&err) {
            logger::tell(&format!("hint: {hint}"));
        }
        exit::at_once(exit::HOST);
    }
    filters.enter(thread);
}

/// Gives up all capabilities of the calling thread, and forbids gaining any through an executed file.
///
/// # Errors
/// If the kernel refuses, which it does for no ordinary process.
#[expect(unsafe_code, reason = "capset has no safe wrapper in the crates used here")]
pub(crate) fn drop_capabilities() -> nix::Result<()> {
    prctl::set_no_new_privs()?;
    let mut header = CapHeader { version: CAPABILITY_VERSION, pid: 0 };
    let none: [CapData; 2] = Default::default();
    // SAFETY: the structures are those of this version, which has two of data, and outlive the call. The kernel writes
    // to the header only.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, from_ref(&none)) };
    Errno::result(result).map(drop)
}
