//! The role *backend* of a card: where frames go to and come from.

use crate::virtio::iovec::IoVecs;
use crate::virtio::net::offload::Offloads;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

/// One queue of a network interface. Frames carry the header of virtio 1.3 5.1.6 in front, in both directions.
///
/// Used by the worker of one queue pair, and by the worker of the first pair for the settings; so all take `&self`.
pub trait FramePort: Send + Sync {
    /// The descriptor to wait on. It is in non-blocking mode.
    fn fd(&self) -> RawFd;

    /// True if the descriptor is readable as long as a frame waits, so that a reader may leave some and is woken again.
    fn stays_readable(&self) -> bool {
        false
    }

    /// Receives one frame into `into`, and what does not fit into `spill`. Returns its length with the header; one that
    /// is longer than both together is cut.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; anything else as the kernel says.
    fn receive(&self, into: &mut IoVecs, spill: &mut [u8]) -> io::Result<usize>;

    /// Sends one frame whole, in however many pieces it is.
    ///
    /// # Errors
    /// `WouldBlock` if there is no room; anything else means that this frame is lost.
    fn transmit(&self, frame: &IoVecs) -> io::Result<usize>;

    /// Finds out what the interface can do, and may leave it set; one answer for all queues of an interface.
    fn probe_offloads(&self) -> Offloads;

    /// Which frames the interface may hand out from now on. One setting for all queues of an interface.
    ///
    /// # Errors
    /// As the kernel says.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Returns whether the interface uses this queue. The kernel moves the flows of a detached queue to the others.
    ///
    /// # Errors
    /// As the kernel says.
    fn set_attached(&self, attached: bool) -> io::Result<()>;

    /// Bytes of the header from now on: 12, or 20 with room for a hash, which the port leaves as it was. One setting
    /// for all queues of an interface.
    ///
    /// # Errors
    /// As the kernel says.
    fn set_header_len(&self, bytes: usize) -> io::Result<()>;

    /// The program that chooses the queue for a frame; `None` leaves it to the kernel. One setting for all queues of an
    /// interface.
    ///
    /// # Errors
    /// As the kernel says.
    fn set_steering(&self, program: Option<BorrowedFd>) -> io::Result<()>;
}
