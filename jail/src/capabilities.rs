//! Capabilities of the calling thread (capabilities(7)). Threads and processes that it starts inherit them.
#![allow(unsafe_code)] // capset has no safe wrapper in the crates used here.

use std::ptr::from_ref;

use nix::errno::Errno;
use nix::sys::prctl;

/// The version of capset(2) that takes 64 capabilities (`_LINUX_CAPABILITY_VERSION_3`, linux/capability.h).
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// A capability, by its number in linux/capability.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Capability {
    /// Signal processes of other users.
    Kill = 5,
    /// Configure the network.
    NetAdmin = 12,
    /// Open packet sockets.
    NetRaw = 13,
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct CapHeader {
    version: u32,
    /// 0: the thread that calls.
    pid: i32,
}

/// `struct __user_cap_data_struct`: half of each set.
#[derive(Clone, Copy, Default)]
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
pub fn drop_all() -> nix::Result<()> {
    prctl::set_no_new_privs()?;
    set(0)
}

/// Gives up all capabilities of the calling thread but those of `kept` that it has.
///
/// # Errors
/// As [`drop_all`].
pub fn keep(kept: &[Capability]) -> nix::Result<()> {
    let wanted = kept.iter().fold(0, |bits, capability| bits | 1_u64 << *capability as u32);
    set(wanted & permitted()?)
}

/// The permitted capabilities of the calling thread, one bit each.
fn permitted() -> nix::Result<u64> {
    let mut header = CapHeader { version: CAPABILITY_VERSION, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: the structures are those of this version, which has two of data, and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    Errno::result(result)?;
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}

fn set(bits: u64) -> nix::Result<()> {
    let half = |bits: u64| {
        let bits = u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default();
        CapData { effective: bits, permitted: bits, inheritable: 0 }
    };
    let data = [half(bits), half(bits >> 32)];
    let mut header = CapHeader { version: CAPABILITY_VERSION, pid: 0 };
    // SAFETY: as above. The kernel writes to the header only.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, from_ref(&data)) };
    Errno::result(result).map(drop)
}
