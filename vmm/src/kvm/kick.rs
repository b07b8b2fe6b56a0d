//! How a vCPU thread is brought back from `KVM_RUN`, from whatever state it is in.
//!
//! Two steps that together leave no gap: the byte `immediate_exit` makes the *next* `KVM_RUN` return at once, and
//! SIGUSR1 interrupts the one that is under way, also where the vCPU is halted or has never been started. The signal's
//! handler does nothing; its arrival is the point. It also interrupts a blocking system call that a device may be in. A
//! real-time signal would do as well, but those are queued, and a user who has reached RLIMIT_SIGPENDING can send none.
#![expect(unsafe_code, reason = "signals to threads, and a byte that is shared with the kernel")]

use kvm_ioctls::VcpuFd;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use vmm_sys_util::signal::{register_signal_handler, unblock_signal};

/// The signal.
const KICK: libc::c_int = libc::SIGUSR1;

/// The way to interrupt one vCPU.
pub(crate) struct Kick {
    /// `kvm_run.immediate_exit`, in the mapping that the vCPU's `VcpuFd` owns.
    immediate_exit: NonNull<u8>,
}

// SAFETY: the pointer is only used for an atomic store to a byte that the kernel reads; see `Kick::kick` for its
// lifetime.
unsafe impl Send for Kick {}

impl Kick {
    /// For the vCPU `fd`.
    pub(super) fn new(fd: &mut VcpuFd) -> Self {
        let run = fd.get_kvm_run();
        Self { immediate_exit: NonNull::from(&mut run.immediate_exit) }
    }

    /// Makes the vCPU that `thread` runs leave the guest, and every later `KVM_RUN` of it return at once. `thread` must
    /// own the vCPU that this kick was made for, and return it as its result: it cannot be unmapped while the handle is
    /// unjoined.
    pub(crate) fn kick(&self, thread: &JoinHandle<super::Vcpu>) {
        // SAFETY: the byte lies in the `kvm_run` mapping of a vCPU that is owned by `thread` (or by its result), which
        // is alive because its handle is. Nothing else in this program reads or writes the byte.
        let immediate_exit = unsafe { AtomicU8::from_ptr(self.immediate_exit.as_ptr()) };
        // Pairs with the kernel's read at the start of KVM_RUN; the signal below orders the two.
        immediate_exit.store(1, Ordering::SeqCst);
        // SAFETY: the thread has not been joined, so its id is valid.
        let error = unsafe { libc::pthread_kill(thread.as_pthread_t(), KICK) };
        if error != 0 && error != libc::ESRCH {
            log::error!("Cannot interrupt a vCPU: {}", io::Error::from_raw_os_error(error));
        }
    }
}

/// Lets the signal of [`Kick`] reach the calling thread. A mask is inherited, and whoever started the process may have
/// blocked it.
///
/// # Errors
/// If the host refuses.
pub(crate) fn unblock() -> io::Result<()> {
    unblock_signal(KICK).map_err(|err| io::Error::other(err.to_string()))
}

/// Lets the signal of [`Kick`] interrupt system calls instead of killing the process. Called once, before any vCPU
/// thread.
///
/// # Errors
/// If the host refuses the handler.
pub(crate) fn install_handler() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(KICK, nothing)?;
    Ok(())
}
