//! Forks the processes of a VM.
#![expect(unsafe_code, reason = "fork has no safe wrapper in the crates used here")]

use nix::unistd::ForkResult;

/// Forks this process, which has one thread.
///
/// # Errors
/// If there is no room for another process.
pub(crate) fn fork() -> nix::Result<ForkResult> {
    // SAFETY: the process has one thread, so the child finds every lock free and may do what it likes.
    unsafe { nix::unistd::fork() }
}
