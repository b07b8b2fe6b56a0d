//! How the guest wakes a device: a write to an address that ends in an eventfd, with no exit to user space.

use std::io;
use vmm_sys_util::eventfd::EventFd;

/// Turns guest writes to an MMIO address into events. The VMM implements it with ioeventfd; tests fake it.
///
/// Called by vCPU threads when a device becomes live, when its BAR moves, and when it is reset. Where no doorbell is
/// assigned the write reaches the device as an ordinary MMIO write, which must have the same effect.
pub trait Doorbells: Send + Sync {
    /// Signals `event` on any write, of any width and value, to `addr`.
    ///
    /// # Errors
    /// If the host refuses; the device then lives with ordinary MMIO writes.
    fn assign(&self, addr: u64, event: &EventFd) -> io::Result<()>;

    /// Undoes [`assign`](Self::assign).
    ///
    /// # Errors
    /// If the host refuses.
    fn deassign(&self, addr: u64, event: &EventFd) -> io::Result<()>;
}
