//! Packet sockets (packet(7)) with their filter attached before the first frame.
#![expect(unsafe_code, reason = "filters and addresses are plain C structures")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{c_int, c_void, socklen_t};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::cbpf::Instruction;

/// A socket for the frames that `program` keeps, once it is [bound](bind): non-blocking, closed on exec. Opening takes
/// CAP_NET_RAW, using it no privilege.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn open(program: &[Instruction]) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Without a protocol it receives nothing until it is bound.
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    attach(&socket, program)?;
    Ok(socket)
}

/// Attaches a program to a socket of any family.
///
/// # Errors
/// The program is too long.
pub(crate) fn attach(socket: &impl AsRawFd, program: &[Instruction]) -> io::Result<()> {
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

/// Locks the filter against replacement.
pub(crate) fn lock_filter(socket: &OwnedFd) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, &1_i32)
}

/// Excludes outgoing frames from a socket of all protocols. It takes Linux 4.20.
pub(crate) fn ignore_outgoing(socket: &OwnedFd) -> io::Result<()> {
    set_option(socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)
}

/// Sets the receive buffer in bytes, including the kernel's bookkeeping. With CAP_NET_RAW alone, the host's limit
/// applies (`net.core.rmem_max`).
pub(crate) fn set_receive_buffer(socket: &OwnedFd, bytes: c_int) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes)
        .or_else(|_| set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &bytes))
}

/// Marks the packets that the socket sends.
pub(crate) fn set_mark(socket: &OwnedFd, mark: u32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_MARK, &mark)
}

/// Binds a socket to the frames of an interface, of one protocol or of all (`ETH_P_ALL`).
///
/// # Errors
/// ENODEV for an interface that does not exist.
pub(crate) fn bind(socket: &OwnedFd, index: u32, protocol: c_int) -> io::Result<()> {
    let protocol = u16::try_from(protocol).map_err(io::Error::other)?;
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index.try_into().map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the kernel reads all of `address` and no more, which is of the type that the socket's family takes.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len_of(&address)) })
}

fn set_option<T>(socket: &impl AsRawFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
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
