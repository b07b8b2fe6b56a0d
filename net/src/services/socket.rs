//! The packet socket on a card's tap.
#![expect(unsafe_code, reason = "packet(7) sockets: filters and addresses that are plain C structures")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_void, socklen_t};

use super::ServiceSpec;
use super::filter::{self, Instruction};

/// `AF_PACKET` and `ETH_P_ALL` as they are in an address.
const FAMILY: u16 = 17;
const EVERY_PROTOCOL: u16 = 3;

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
    // With protocol 0 it receives nothing until it is bound, so nothing comes in before the filter is there.
    // SAFETY: no pointers.
    let number = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    check(number)?;
    // SAFETY: a descriptor that was just opened, and is owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    attach(socket.as_fd(), &filter::program(spec))?;
    // What is sent to the guest is not what it sends.
    set_option(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1)?;
    // Whoever has CAP_NET_RAW alone gets what the host allows.
    set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER_BYTES)
        .or_else(|_| set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, &RECEIVE_BUFFER_BYTES))?;
    // What tells it from what others send to the guest.
    set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, &SERVICES_MARK)?;
    bind(socket.as_fd(), tap_index)?;
    Ok(socket)
}

fn attach(socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let raw = |instruction: &Instruction| libc::sock_filter {
        code: instruction.code,
        jt: instruction.skip_true,
        jf: instruction.skip_false,
        k: instruction.operand,
    };
    let mut lines: Vec<libc::sock_filter> = program.iter().map(raw).collect();
    let len = u16::try_from(lines.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: lines.as_mut_ptr() };
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

fn bind(socket: BorrowedFd<'_>, tap_index: u32) -> io::Result<()> {
    let index = c_int::try_from(tap_index).map_err(|_| io::ErrorKind::InvalidInput)?;
    let address = libc::sockaddr_ll {
        sll_family: FAMILY,
        sll_protocol: EVERY_PROTOCOL.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is of the family that it says, and lives through the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len_of(&address)) };
    check(result)
}

fn set_option<T>(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let pointer: *const c_void = std::ptr::from_ref(value).cast();
    // SAFETY: the callers pass the type that belongs to the option; what it points to lives through the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, pointer, len_of(value)) })
}

/// The sizes of these structures are a few octets.
fn len_of<T>(value: &T) -> socklen_t {
    socklen_t::try_from(size_of_val(value)).unwrap_or(0)
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const _: () = assert!(FAMILY as c_int == libc::AF_PACKET && EVERY_PROTOCOL as c_int == libc::ETH_P_ALL);
