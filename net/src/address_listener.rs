//! Hears a guest's address by a packet socket on its tap, which wakes its reader at the first frame with one. Knows no VM.
//!
//! The kernel runs a filter over what the guest sends, and passes on the head of the first ARP or IP packet whose sender has an
//! address: not the unspecified one, which asks for an address or whether it is free (RFC 5227 2.1.1, RFC 4862 5.4.2), and not a
//! link-local one, which every guest gives itself before anybody has given it another. Whoever has heard it closes the socket,
//! so that the data path pays for it only until then. It hears what passes through vhost-net as well.
//!
//! The socket takes CAP_NET_RAW to make, and none to use: the keeper opens it, an unprivileged process reads it. The filter is
//! locked, but the kernel lets whoever holds a packet socket bind it to another interface.
#![allow(unsafe_code)] // Socket options and addresses that the crates used here have no safe wrapper for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socket};

use crate::kernel::tun::TapKind;

/// What is read of a frame, in bytes: Ethernet's header and that of IPv6 or ARP.
const HEAD_BYTES: u32 = 64;

/// Frames that are looked at in one go; a flood of others must not hold the reader up.
const FRAMES_MAX: usize = 16;

/// Offsets in a frame (IEEE 802.3 3.1.1, RFC 826, RFC 791 3.1, RFC 8200 3).
const TYPE_AT: u32 = 12;
const ARP_KIND_AT: u32 = 14;
const ARP_SIZES_AT: u32 = 18;
const ARP_SENDER_AT: u32 = 28;
const IPV4_SOURCE_AT: u32 = 26;
const IPV6_SOURCE_AT: u32 = 22;

/// Hardware type Ethernet, protocol type IPv4.
const ARP_KIND: u32 = 0x0001_0800;
/// Addresses of 6 and 4 bytes.
const ARP_SIZES: u32 = 0x0604;

const IPV4: u32 = 0x0800;
const ARP: u32 = 0x0806;
const IPV6: u32 = 0x86dd;

/// A socket that hears what one tap's guest sends.
#[derive(Debug)]
pub struct AddressListener(OwnedFd);

impl AddressListener {
    /// Listens on the interface with this number.
    ///
    /// # Errors
    /// No CAP_NET_RAW, or a kernel before 4.20, which cannot tell the two directions apart.
    pub(crate) fn open(index: u32, kind: TapKind) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Without a protocol it hears nothing until it is bound.
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        let program = match kind {
            TapKind::Tap => program().to_vec(),
            TapKind::Macvtap => [only_outgoing().as_slice(), &program()].concat(),
        };
        attach_filter(&socket, program)?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, &1)?;
        if kind == TapKind::Tap {
            ignore_outgoing(&socket)?;
        }
        bind(&socket, index)?;
        Ok(Self(socket))
    }

    /// What another process opened.
    pub(crate) fn from_socket(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// What to hand to another process.
    pub(crate) fn into_socket(self) -> OwnedFd {
        self.0
    }

    /// The guest's address, if it has been heard. To be called when the socket is readable; does not wait.
    pub fn look(&self) -> Option<IpAddr> {
        let mut head = [0; HEAD_BYTES as usize];
        for _ in 0..FRAMES_MAX {
            // Nothing there, or the interface went down, which the kernel says once.
            let bytes = recv(self.0.as_raw_fd(), &mut head, MsgFlags::empty()).ok()?;
            if let Some(address) = sender(&head[..bytes]) {
                return Some(address);
            }
        }
        None
    }
}

impl AsFd for AddressListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The address of a frame's sender, if it has one that a network gave it.
fn sender(frame: &[u8]) -> Option<IpAddr> {
    match u32::from(u16::from_be_bytes(field(frame, TYPE_AT)?)) {
        ARP => {
            let kind = u32::from_be_bytes(field(frame, ARP_KIND_AT)?);
            let sizes = u32::from(u16::from_be_bytes(field(frame, ARP_SIZES_AT)?));
            let address = field(frame, ARP_SENDER_AT)?;
            (kind == ARP_KIND && sizes == ARP_SIZES).then_some(Ipv4Addr::from(address)).and_then(given4)
        }
        IPV4 => given4(Ipv4Addr::from(field(frame, IPV4_SOURCE_AT)?)),
        IPV6 => given6(Ipv6Addr::from(field::<16>(frame, IPV6_SOURCE_AT)?)),
        _ => None,
    }
}

fn field<const N: usize>(frame: &[u8], at: u32) -> Option<[u8; N]> {
    let start = usize::try_from(at).ok()?;
    frame.get(start..)?.first_chunk().copied()
}

fn given4(ip: Ipv4Addr) -> Option<IpAddr> {
    let network = ip.octets()[0];
    let given = !matches!(network, 0 | 127 | 224..) && !ip.is_link_local();
    given.then_some(IpAddr::V4(ip))
}

fn given6(ip: Ipv6Addr) -> Option<IpAddr> {
    let given = !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !ip.is_unicast_link_local();
    given.then_some(IpAddr::V6(ip))
}

/// The kernel's part: the frames that [`sender`] most likely finds an address in (linux/filter.h). Offsets count from the
/// instruction after; a load behind the end of a frame drops it.
fn program() -> [libc::sock_filter; 20] {
    let load = |size, at| statement(libc::BPF_LD | size | libc::BPF_ABS, at);
    let and = |mask| statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask);
    let pass = |bytes| statement(libc::BPF_RET | libc::BPF_K, bytes);
    [
        load(libc::BPF_H, TYPE_AT),
        jump_if_equal(ARP, 2, 0),
        jump_if_equal(IPV4, 7, 0),
        jump_if_equal(IPV6, 10, 14),
        // 4: ARP
        load(libc::BPF_W, ARP_KIND_AT),
        jump_if_equal(ARP_KIND, 0, 12),
        load(libc::BPF_H, ARP_SIZES_AT),
        jump_if_equal(ARP_SIZES, 0, 10),
        load(libc::BPF_W, ARP_SENDER_AT),
        statement(libc::BPF_JMP | libc::BPF_JA, 1),
        // 10: IPv4
        load(libc::BPF_W, IPV4_SOURCE_AT),
        // 11: neither 0.0.0.0 nor 169.254.0.0/16
        jump_if_equal(0, 6, 0),
        and(0xffff_0000),
        jump_if_equal(0xa9fe_0000, 4, 5),
        // 14: IPv6, neither ::/32 nor fe80::/10
        load(libc::BPF_W, IPV6_SOURCE_AT),
        jump_if_equal(0, 2, 0),
        and(0xffc0_0000),
        jump_if_equal(0xfe80_0000, 0, 1),
        // 18
        pass(0),
        pass(HEAD_BYTES),
    ]
}

/// What comes before [`program`] where the guest's frames go out.
fn only_outgoing() -> [libc::sock_filter; 3] {
    // What is not part of the frame has negative offsets, in two's complement.
    let direction = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE).cast_unsigned();
    [
        statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, direction),
        jump_if_equal(u32::from(libc::PACKET_OUTGOING), 1, 0),
        statement(libc::BPF_RET | libc::BPF_K, 0),
    ]
}

pub(crate) fn statement(code: u32, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

pub(crate) fn jump_if_equal(value: u32, if_so: u8, if_not: u8) -> libc::sock_filter {
    jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, if_so, if_not)
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    // Every code is below 256.
    libc::sock_filter { code: u16::try_from(code).unwrap_or_default(), jt, jf, k }
}

pub(crate) fn attach_filter(socket: &impl AsRawFd, mut program: Vec<libc::sock_filter>) -> io::Result<()> {
    let len = libc::c_ushort::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Has a socket of all protocols not hear what goes out.
pub(crate) fn ignore_outgoing(socket: &OwnedFd) -> io::Result<()> {
    set_option(socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1)
}

fn set_option<T>(socket: &impl AsRawFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `len` bytes, all of `value`, which is of the type that the option takes; what the pointer in a
    // filter leads to is alive in its caller.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn bind(socket: &OwnedFd, index: u32) -> io::Result<()> {
    bind_to(socket, index, libc::ETH_P_ALL)
}

pub(crate) fn bind_to(socket: &OwnedFd, index: u32, protocol: libc::c_int) -> io::Result<()> {
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
    let len = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `len` bytes, all of `address`, which is of the type that the socket's family takes.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(ether_type: u32, rest: &[(u32, &[u8])]) -> Vec<u8> {
        let mut frame = vec![0; HEAD_BYTES as usize];
        let ether_type = u16::try_from(ether_type).unwrap().to_be_bytes();
        for (at, bytes) in [(TYPE_AT, &ether_type[..])].iter().chain(rest) {
            let at = usize::try_from(*at).unwrap();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
        }
        frame
    }

    fn arp(sender: [u8; 4]) -> Vec<u8> {
        frame(
            ARP,
            &[
                (ARP_KIND_AT, &ARP_KIND.to_be_bytes()),
                (ARP_SIZES_AT, &ARP_SIZES.to_be_bytes()[2..]),
                (ARP_SENDER_AT, &sender),
            ],
        )
    }

    fn v4(source: [u8; 4]) -> Vec<u8> {
        frame(IPV4, &[(IPV4_SOURCE_AT, &source)])
    }

    fn v6(source: &str) -> Vec<u8> {
        frame(IPV6, &[(IPV6_SOURCE_AT, &source.parse::<Ipv6Addr>().unwrap().octets())])
    }

    #[test]
    fn sender_with_an_address_is_found() {
        let ten = IpAddr::from([10, 0, 0, 5]);
        assert_eq!(sender(&arp([10, 0, 0, 5])), Some(ten));
        assert_eq!(sender(&v4([10, 0, 0, 5])), Some(ten));
        assert_eq!(sender(&v6("fd00::5")), Some("fd00::5".parse().unwrap()));
    }

    #[test]
    fn sender_without_one_that_was_given_to_it_is_not() {
        for frame in [
            arp([0; 4]),
            arp([169, 254, 3, 4]),
            v4([0; 4]),
            v4([127, 0, 0, 1]),
            v4([224, 0, 0, 1]),
            v4([255; 4]),
            v6("::"),
            v6("::1"),
            v6("fe80::5"),
            v6("ff02::1"),
            frame(ARP, &[(ARP_SENDER_AT, &[10, 0, 0, 5])]),
            frame(0x8100, &[(IPV4_SOURCE_AT, &[10, 0, 0, 5])]),
        ] {
            assert_eq!(sender(&frame), None, "{frame:?}");
        }
    }

    #[test]
    fn frame_that_ends_early_has_no_sender() {
        for (frame, needed) in [(arp([10, 0, 0, 5]), 32), (v4([10, 0, 0, 5]), 30), (v6("fd00::5"), 38)] {
            for len in 0..needed {
                assert_eq!(sender(&frame[..len]), None, "{len}");
            }
            assert!(sender(&frame[..needed]).is_some());
        }
    }
}
