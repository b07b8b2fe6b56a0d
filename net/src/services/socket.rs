//! The packet socket on a card's tap.

use std::io;
use std::os::fd::OwnedFd;

use libc::c_int;

use super::ServiceSpec;
use super::filter;
use crate::kernel::packet;

/// The mark of what the services of a card send to its guest, which no policy is about. Only a process with CAP_NET_ADMIN can set one.
pub(crate) const SERVICES_MARK: u32 = 0x6d76_6d73;

/// Octets of frames that may wait in the kernel for the services, with the kernel's own bookkeeping: a thousand
/// questions at once. It is more than a host lets others ask for (`net.core.rmem_max`).
const RECEIVE_BUFFER_BYTES: c_int = 1024 * 1024;

/// A socket on which the frames arrive that the guest sends to its services over interface `tap_index`, and no others, and through
/// which the guest gets the answers: non-blocking, closed on exec. It takes CAP_NET_RAW, and nothing afterwards.
///
/// # Errors
/// What the kernel refuses; ENODEV for an interface that does not exist.
pub fn open_socket(tap_index: u32, spec: &ServiceSpec) -> io::Result<OwnedFd> {
    let socket = packet::open(&filter::program(spec)?)?;
    // What is sent to the guest is not what it sends.
    packet::ignore_outgoing(&socket)?;
    packet::set_receive_buffer(&socket, RECEIVE_BUFFER_BYTES)?;
    // What tells it from what others send to the guest.
    packet::set_mark(&socket, SERVICES_MARK)?;
    packet::bind(&socket, tap_index, libc::ETH_P_ALL)?;
    Ok(socket)
}
