//! Confinement: once the process holds every descriptor, it gives up its capabilities and the way to get new ones.
//!
//! Both are properties of a thread that its children inherit. The main thread gives them up before it starts any other,
//! except the one that takes signals, which is there from the start and does so by itself. It does not change the user:
//! a process of root's can still open what belongs to root. Filters for system calls (seccomp) and paths (Landlock),
//! and a user of its own, belong here and are not there yet; every file is open by now.

use nix::errno::Errno;
use nix::sys::prctl;
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

/// Gives up all capabilities of the calling thread, and forbids gaining any through an executed file.
///
/// # Errors
/// If the kernel refuses, which it does for no ordinary process.
#[expect(unsafe_code, reason = "capset has no safe wrapper in the crates used here")]
pub(crate) fn confine() -> nix::Result<()> {
    prctl::set_no_new_privs()?;
    let mut header = CapHeader { version: CAPABILITY_VERSION, pid: 0 };
    let none: [CapData; 2] = Default::default();
    // SAFETY: the structures are those of this version, which has two of data, and outlive the call. The kernel writes
    // to the header only.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, from_ref(&none)) };
    Errno::result(result).map(drop)
}
