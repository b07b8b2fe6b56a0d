//! The packet socket on a card's tap.

use std::io;
use std::os::fd::OwnedFd;

use libc::c_int;

use super::ServiceSpec;
use super::filter;
use crate::kernel::packet;

/// The mark of packets from a card's services to its guest, to which no policy applies. To set it takes CAP_NET_ADMIN.
pub(crate) const SERVICES_MARK: u32 = 0x6d76_6d73;

/// Octets of frames that may wait in the kernel for the services, with the kernel's own bookkeeping: a thousand
/// questions at once. It is more than a host lets others ask for (`net.core.rmem_max`).
const RECEIVE_BUFFER_BYTES: c_int = 1024 * 1024;

/// A packet socket that receives the frames that the guest sends to its services over interface `tap_index`, and no
/// others, and that sends the answers to the guest. It is non-blocking and closed on exec. It takes CAP_NET_RAW to
/// open, and nothing afterwards.
///
/// # Errors
/// Any error of the kernel; ENODEV for an interface that does not exist.
pub fn open_socket(tap_index: u32, spec: &ServiceSpec) -> io::Result<OwnedFd> {
    let socket = packet::open(&filter::program(spec)?)?;
    packet::lock_filter(&socket)?;
    // Frames to the guest are not frames from it.
    packet::ignore_outgoing(&socket)?;
    packet::set_receive_buffer(&socket, RECEIVE_BUFFER_BYTES)?;
    // The mark tells the services' frames from those of others.
    packet::set_mark(&socket, SERVICES_MARK)?;
    packet::bind(&socket, tap_index, libc::ETH_P_ALL)?;
    Ok(socket)
}
