//! Who else says to have an address of a guest: packet sockets on its bridge whose filters pass such claims only.
//!
//! ```text
//! IPv4     ARP whose sender has the address                    (RFC 5227 2.1.1, 2.4)
//! IPv6     a neighbour advertisement with it as its target     (RFC 4861 4.4)
//!          a neighbour solicitation for it from nobody, who is about to take it   (RFC 4862 5.4.3)
//! ```
//!
//! What has the guest's MAC is from the guest itself. Whoever listens asks once for every address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::task::{Context, Poll};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socket};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::address_listener::{attach_filter, bind_to, jump_if_equal, statement};
use crate::identity::mac::{MAC_LEN, MacAddr};
use crate::keeper::pollable::pollable;
use crate::services::solicitation;
use crate::spec::ADDRESSES_MAX;

/// Offsets in a frame: IEEE 802.3 3.1.1; RFC 826; RFC 8200 3, RFC 4861 4.3.
const SOURCE_MAC_AT: u32 = 6;
const ARP_SENDER_MAC_AT: u32 = 22;
const ARP_SENDER_IP_AT: u32 = 28;
const NEXT_HEADER_AT: u32 = 20;
const HOP_LIMIT_AT: u32 = 21;
const IPV6_SOURCE_AT: u32 = 22;
const ICMP6_TYPE_AT: u32 = 54;
const ND_TARGET_AT: u32 = 62;

/// Bytes of a frame with ARP, and of the shortest with a solicitation or an advertisement.
const ARP_BYTES: usize = 42;
const ND_BYTES: usize = 78;

/// The protocol, types and hop limit of those.
const ICMP6: u32 = 58;
const NEIGHBOR_SOLICIT: u32 = 135;
const NEIGHBOR_ADVERT: u32 = 136;
const HOPS: u32 = 255;

/// Somebody else with an address of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::keeper) struct Claim {
    pub(super) ip: IpAddr,
    pub(super) mac: [u8; MAC_LEN],
}

/// Where claims of one IP version come.
pub(in crate::keeper) struct ConflictListener {
    /// A packet socket in the clothes of another, which tokio can wait for.
    socket: UnixStream,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

impl ConflictListener {
    /// Listens on the interface with this number, whose own address is `own`, for others with the addresses of the guest with `mac`, after
    /// all have been asked for; as many as IP versions are among them.
    pub(super) fn open(index: u32, own: MacAddr, mac: MacAddr, addresses: &[IpAddr]) -> io::Result<Vec<Self>> {
        let (mut ip4, mut ip6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => ip4.push(*address),
                IpAddr::V6(address) => ip6.push(*address),
            }
        }
        let mut ears = Vec::new();
        if !ip4.is_empty() {
            let socket = listen(index, libc::ETH_P_ARP, arp_program(mac, &ip4))?;
            ip4.iter().for_each(|ip| ask(&socket, &arp_probe(own, *ip), (*ip).into()));
            ears.push(Self { socket: pollable(&socket)?, version: Version::V4 });
        }
        if !ip6.is_empty() {
            let socket = listen(index, libc::ETH_P_IPV6, nd_program(mac, &ip6))?;
            let questions = ip6.iter().filter_map(|ip| Some((*ip, solicitation(own, *ip)?)));
            questions.for_each(|(ip, question)| ask(&socket, &question, ip.into()));
            ears.push(Self { socket: pollable(&socket)?, version: Version::V6 });
        }
        Ok(ears)
    }

    /// Waits for a claim.
    pub(super) fn poll(&self, context: &mut Context<'_>) -> bool {
        matches!(self.socket.poll_read_ready(context), Poll::Ready(Ok(())))
    }

    /// The next claim, if there is one. Does not wait.
    pub(in crate::keeper) fn next(&self) -> Option<Claim> {
        let mut frame = [0; ND_BYTES];
        let receive = || Ok(recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT)?);
        let bytes = self.socket.try_io(Interest::READABLE, receive).ok()?;
        claim(self.version, frame.get(..bytes)?)
    }
}

/// The claim in a frame that a filter has passed.
fn claim(version: Version, frame: &[u8]) -> Option<Claim> {
    match version {
        Version::V4 => Some(Claim {
            ip: Ipv4Addr::from(field(frame, ARP_SENDER_IP_AT)?).into(),
            mac: field(frame, ARP_SENDER_MAC_AT)?,
        }),
        Version::V6 => Some(Claim {
            ip: Ipv6Addr::from(field::<16>(frame, ND_TARGET_AT)?).into(),
            mac: field(frame, SOURCE_MAC_AT)?,
        }),
    }
}

fn field<const N: usize>(frame: &[u8], at: u32) -> Option<[u8; N]> {
    frame.get(usize::try_from(at).ok()?..)?.first_chunk().copied()
}

fn listen(index: u32, protocol: libc::c_int, program: Vec<libc::sock_filter>) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Without a protocol it hears nothing until it is bound.
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    attach_filter(&socket, program)?;
    bind_to(&socket, index, protocol)?;
    Ok(socket)
}

fn ask(socket: &OwnedFd, question: &[u8], ip: IpAddr) {
    if let Err(errno) = send(socket.as_raw_fd(), question, MsgFlags::MSG_DONTWAIT) {
        log::debug!("Nobody is asked for {ip}: {errno}");
    }
}

/// The question of `own`, who says nothing of its own IP address, who has this one.
fn arp_probe(own: MacAddr, ip: Ipv4Addr) -> Vec<u8> {
    let own = own.octets();
    [&[0xff; 6][..], &own, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &own, &[0; 4], &[0; 6], &ip.octets()].concat()
}

/// Passes ARP whose sender has one of these addresses, and not this MAC. At most 64 addresses are compared, in both programs, which is far
/// below what the kernel takes.
fn arp_program(mac: MacAddr, addresses: &[Ipv4Addr]) -> Vec<libc::sock_filter> {
    let mut program = not_from(mac, ARP_SENDER_MAC_AT).to_vec();
    program.push(load(libc::BPF_W, ARP_SENDER_IP_AT));
    for ip in addresses.iter().take(ADDRESSES_MAX) {
        program.extend([jump_if_equal(ip.to_bits(), 0, 1), end(ARP_BYTES)]);
    }
    program.push(end(0));
    program
}

/// Passes neighbour discovery by which somebody with another MAC claims one of these addresses.
fn nd_program(mac: MacAddr, addresses: &[Ipv6Addr]) -> Vec<libc::sock_filter> {
    let mut program = vec![
        load(libc::BPF_B, NEXT_HEADER_AT),
        jump_if_equal(ICMP6, 1, 0),
        end(0),
        load(libc::BPF_B, HOP_LIMIT_AT),
        jump_if_equal(HOPS, 1, 0),
        end(0),
        load(libc::BPF_B, ICMP6_TYPE_AT),
        jump_if_equal(NEIGHBOR_ADVERT, 10, 0),
        jump_if_equal(NEIGHBOR_SOLICIT, 0, 8),
        // From nobody.
        load(libc::BPF_W, IPV6_SOURCE_AT),
        jump_if_equal(0, 0, 6),
        load(libc::BPF_W, IPV6_SOURCE_AT + 4),
        jump_if_equal(0, 0, 4),
        load(libc::BPF_W, IPV6_SOURCE_AT + 8),
        jump_if_equal(0, 0, 2),
        load(libc::BPF_W, IPV6_SOURCE_AT + 12),
        jump_if_equal(0, 1, 0),
        end(0),
    ];
    program.extend(not_from(mac, SOURCE_MAC_AT));
    for ip in addresses.iter().take(ADDRESSES_MAX) {
        // The last words differ most.
        let words = (0..4).rev().map(|word| (word * 4, u32_at(ip.to_bits(), word)));
        for (behind, (at, word)) in [1, 3, 5, 7].into_iter().rev().zip(words) {
            program.extend([load(libc::BPF_W, ND_TARGET_AT + at), jump_if_equal(word, 0, behind)]);
        }
        program.push(end(ND_BYTES));
    }
    program.push(end(0));
    program
}

/// The word of an IPv6 address with this place in it.
fn u32_at(bits: u128, word: u32) -> u32 {
    // Each shift leaves 32 bits.
    u32::try_from((bits >> (96 - 32 * word)) & u128::from(u32::MAX)).unwrap_or_default()
}

/// Ends the program for frames with this MAC at `at`.
fn not_from(mac: MacAddr, at: u32) -> [libc::sock_filter; 5] {
    let [a, b, c, d, e, f] = mac.octets();
    [
        load(libc::BPF_W, at),
        jump_if_equal(u32::from_be_bytes([a, b, c, d]), 0, 3),
        load(libc::BPF_H, at + 4),
        jump_if_equal(u32::from_be_bytes([0, 0, e, f]), 0, 1),
        end(0),
    ]
}

fn load(size: u32, at: u32) -> libc::sock_filter {
    statement(libc::BPF_LD | size | libc::BPF_ABS, at)
}

/// Passes so many bytes of the frame; none at all for 0.
fn end(bytes: usize) -> libc::sock_filter {
    // Below 100.
    statement(libc::BPF_RET | libc::BPF_K, u32::try_from(bytes).unwrap_or_default())
}
