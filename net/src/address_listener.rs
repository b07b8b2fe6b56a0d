//! Learns a guest's address from a packet socket on its tap, which wakes its reader at the first frame with one. Knows
//! no VM.
//!
//! The kernel runs a filter over what the guest sends, and passes on the head of the first ARP or IP packet whose
//! sender has an address: not the unspecified one, which asks for an address or whether it is free (RFC 5227 2.1.1, RFC
//! 4862 5.4.2), and not a link-local one, which every guest gives itself before a network assigns it another. The
//! reader then closes the socket, so that the data path pays for it only until then. The socket receives frames that
//! pass through vhost-net as well.
//!
//! The socket takes CAP_NET_RAW to make, and none to use: the keeper opens it, an unprivileged process reads it. The
//! filter is locked, but the kernel lets any holder of a packet socket bind it to another interface.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{MsgFlags, recv};

use crate::kernel::cbpf::{Assembler, Instruction, JUMP_EQUAL, LOAD_BYTE, LOAD_HALF, LOAD_WORD, PACKET_TYPE, To};
use crate::kernel::packet;
use crate::kernel::tun::TapKind;

/// Bytes that are read of a frame: Ethernet's header and that of IPv6 or ARP.
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

/// A socket that receives the frames of one tap's guest.
#[derive(Debug)]
pub struct AddressListener(OwnedFd);

impl AddressListener {
    /// Listens on the interface with this index.
    ///
    /// # Errors
    /// No CAP_NET_RAW, or a kernel before 4.20, which cannot tell the two directions apart.
    pub(crate) fn open(index: u32, kind: TapKind) -> io::Result<Self> {
        let socket = packet::open(&program(kind)?)?;
        packet::lock_filter(&socket)?;
        if kind == TapKind::Tap {
            packet::ignore_outgoing(&socket)?;
        }
        packet::bind(&socket, index, libc::ETH_P_ALL)?;
        Ok(Self(socket))
    }

    /// Takes over a socket that another process opened.
    #[must_use]
    pub fn from_socket(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The socket, to be handed to another process.
    pub(crate) fn into_socket(self) -> OwnedFd {
        self.0
    }

    /// The guest's address, if a frame had one. Call it when the socket is readable; it does not wait.
    pub fn look(&self) -> Option<IpAddr> {
        let mut head = [0; HEAD_BYTES as usize];
        for _ in 0..FRAMES_MAX {
            // No frame, or the interface went down, which the kernel reports once.
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

/// The address of a frame's sender, if a network assigned it one.
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

/// The kernel's part: the frames that [`sender`] most likely finds an address in. The frames of a macvtap's guest go
/// out.
fn program(kind: TapKind) -> io::Result<Vec<Instruction>> {
    let mut asm = Assembler::default();
    if kind == TapKind::Macvtap {
        asm.expect(LOAD_BYTE, PACKET_TYPE, libc::PACKET_OUTGOING.into());
    }
    asm.load(LOAD_HALF, TYPE_AT);
    asm.jump(JUMP_EQUAL, ARP, To::Label("arp"), To::Next);
    asm.jump(JUMP_EQUAL, IPV4, To::Label("ipv4"), To::Next);
    asm.jump(JUMP_EQUAL, IPV6, To::Label("ipv6"), To::Drop);
    asm.place("arp");
    asm.expect(LOAD_WORD, ARP_KIND_AT, ARP_KIND);
    asm.expect(LOAD_HALF, ARP_SIZES_AT, ARP_SIZES);
    asm.load(LOAD_WORD, ARP_SENDER_AT);
    let address = To::Label("ipv4 address");
    asm.jump(JUMP_EQUAL, 0, address, address);
    asm.place("ipv4");
    asm.load(LOAD_WORD, IPV4_SOURCE_AT);
    // Neither 0.0.0.0 nor 169.254.0.0/16.
    asm.place("ipv4 address");
    asm.jump(JUMP_EQUAL, 0, To::Drop, To::Next);
    asm.and(0xffff_0000);
    asm.jump(JUMP_EQUAL, 0xa9fe_0000, To::Drop, To::Accept);
    // Neither ::/32 nor fe80::/10.
    asm.place("ipv6");
    asm.load(LOAD_WORD, IPV6_SOURCE_AT);
    asm.jump(JUMP_EQUAL, 0, To::Drop, To::Next);
    asm.and(0xffc0_0000);
    asm.jump(JUMP_EQUAL, 0xfe80_0000, To::Drop, To::Accept);
    asm.finish(HEAD_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::cbpf::interpreter::{Beside, each_that_differs_in_one_field, kept};

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
    fn kernel_passes_the_frames_that_have_a_sender_and_of_macvtaps_those_that_go_out() {
        let program = [TapKind::Tap, TapKind::Macvtap].map(|kind| program(kind).unwrap());
        let out = Beside { packet_type: libc::PACKET_OUTGOING.into(), ..Beside::default() };
        for (frame, expected) in [
            (arp([10, 0, 0, 5]), HEAD_BYTES),
            (v4([10, 0, 0, 5]), HEAD_BYTES),
            (v6("fd00::5"), HEAD_BYTES),
            (arp([0; 4]), 0),
            (arp([169, 254, 3, 4]), 0),
            (v4([0; 4]), 0),
            (v4([169, 254, 3, 4]), 0),
            (v6("::"), 0),
            (v6("fe80::5"), 0),
            (frame(ARP, &[(ARP_SENDER_AT, &[10, 0, 0, 5])]), 0),
            (frame(0x8100, &[(IPV4_SOURCE_AT, &[10, 0, 0, 5])]), 0),
        ] {
            assert_eq!(kept(&program[0], &frame, Beside::default()), expected, "{frame:?}");
            assert_eq!(kept(&program[1], &frame, out), expected, "{frame:?}");
            assert_eq!(kept(&program[1], &frame, Beside::default()), 0, "{frame:?}");
        }
    }

    /// The rule of the kernel's part in words: an ARP or IP packet whose sender is neither unspecified nor link-local.
    fn is_passed(frame: &[u8]) -> bool {
        let is_ipv4 = |at| field(frame, at).is_some_and(|ip: [u8; 4]| ip != [0; 4] && !ip.starts_with(&[169, 254]));
        match field(frame, 12) {
            Some([8, 6]) => field(frame, 14) == Some([0, 1, 8, 0, 6, 4]) && is_ipv4(28),
            Some([8, 0]) => is_ipv4(26),
            Some([0x86, 0xdd]) => {
                field(frame, 22).is_some_and(|ip: [u8; 4]| ip != [0; 4] && !(ip[0] == 0xfe && ip[1] & 0xc0 == 0x80))
            }
            _ => false,
        }
    }

    #[test]
    fn every_frame_that_differs_in_one_field_is_passed_if_its_sender_may_have_an_address() {
        let program = program(TapKind::Tap).unwrap();
        for frame in
            [arp([10, 0, 0, 5]), v4([10, 0, 0, 5]), v6("fd00::5"), arp([0; 4]), v4([169, 254, 3, 4]), v6("fe80::5")]
        {
            each_that_differs_in_one_field(&frame, &[12, 14, 16, 18], |other| {
                let is_kept = kept(&program, other, Beside::default()) == HEAD_BYTES;
                assert_eq!(is_kept, is_passed(other), "{other:?}");
                // ::/32 has addresses too (RFC 4291 2.5.5), which no network assigns.
                let is_in_zero = |ip| matches!(ip, IpAddr::V6(ip) if ip.octets().starts_with(&[0; 4]));
                assert!(is_kept || sender(other).is_none_or(is_in_zero), "{other:?}");
            });
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
