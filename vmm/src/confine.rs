//! Confinement: once the process holds every descriptor, it gives up its capabilities and the way to get new ones.
//!
//! Called on the main thread before any other thread exists, since both are properties of a thread that its children
//! inherit. It does not change the user: a process of root's can still open what belongs to root. Filters for system
//! calls (seccomp) and paths (Landlock), and a user of its own, belong here and are not there yet; every file is open
//! by now.

use rustix::io;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Gives up all capabilities, and forbids gaining any through an executed file.
///
/// # Errors
/// If the kernel refuses, which it does for no ordinary process.
pub(crate) fn confine() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}
