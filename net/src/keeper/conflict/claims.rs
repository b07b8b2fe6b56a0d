//! Claims of a guest's addresses by other machines, received by packet sockets on its bridge whose filters pass nothing
//! else.
//!
//! ```text
//! IPv4     ARP whose sender has the address                    (RFC 5227 2.1.1, 2.4)
//! IPv6     a neighbour advertisement with it as its target     (RFC 4861 4.4)
//!          a neighbour solicitation for it from the unspecified address (RFC 4862 5.4.3)
//! ```
//!
//! Frames with the guest's MAC are from the guest itself. Opening a listener asks once for every address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::task::{Context, Poll};

use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::identity::mac::{MAC_LEN, MacAddr};
use crate::keeper::pollable::pollable;
use crate::kernel::cbpf::{Assembler, Instruction, JUMP_EQUAL, LOAD_BYTE, LOAD_HALF, LOAD_WORD, To};
use crate::kernel::packet;
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
const ARP_BYTES: u32 = 42;
const ND_BYTES: u32 = 78;

/// Their protocol, types and hop limit.
const ICMP6: u32 = 58;
const NEIGHBOR_SOLICIT: u32 = 135;
const NEIGHBOR_ADVERT: u32 = 136;
const HOPS: u32 = 255;

/// A claim of a guest's address by another machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::keeper) struct Claim {
    pub(super) ip: IpAddr,
    pub(super) mac: [u8; MAC_LEN],
}

/// A listener for claims of one IP version.
pub(in crate::keeper) struct ConflictListener {
    /// A packet socket in the type of a Unix socket, which tokio can wait for.
    socket: UnixStream,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

impl ConflictListener {
    /// Asks for the addresses of the guest with `mac`, and listens for others that have them, on the interface with
    /// this index, whose own MAC is `own`. Returns one listener for each IP version among them.
    pub(super) fn open(index: u32, own: MacAddr, mac: MacAddr, addresses: &[IpAddr]) -> io::Result<Vec<Self>> {
        let (mut ip4, mut ip6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => ip4.push(*address),
                IpAddr::V6(address) => ip6.push(*address),
            }
        }
        let mut listeners = Vec::new();
        if !ip4.is_empty() {
            let socket = listen(index, libc::ETH_P_ARP, &arp_program(mac, &ip4)?)?;
            ip4.iter().for_each(|ip| send_probe(&socket, &arp_probe(own, *ip), (*ip).into()));
            listeners.push(Self { socket: pollable(&socket)?, version: Version::V4 });
        }
        if !ip6.is_empty() {
            let socket = listen(index, libc::ETH_P_IPV6, &nd_program(mac, &ip6)?)?;
            let probes = ip6.iter().filter_map(|ip| Some((*ip, solicitation(own, *ip)?)));
            probes.for_each(|(ip, probe)| send_probe(&socket, &probe, ip.into()));
            listeners.push(Self { socket: pollable(&socket)?, version: Version::V6 });
        }
        Ok(listeners)
    }

    /// True if there is a claim; otherwise registers the task to be woken.
    pub(super) fn poll(&self, context: &mut Context<'_>) -> bool {
        matches!(self.socket.poll_read_ready(context), Poll::Ready(Ok(())))
    }

    /// The next claim, if there is one. Does not wait.
    pub(in crate::keeper) fn next(&self) -> Option<Claim> {
        let mut frame = [0; ND_BYTES as usize];
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

fn listen(index: u32, protocol: libc::c_int, program: &[Instruction]) -> io::Result<OwnedFd> {
    let socket = packet::open(program)?;
    packet::lock_filter(&socket)?;
    packet::bind(&socket, index, protocol)?;
    Ok(socket)
}

fn send_probe(socket: &OwnedFd, probe: &[u8], ip: IpAddr) {
    if let Err(errno) = send(socket.as_raw_fd(), probe, MsgFlags::MSG_DONTWAIT) {
        log::debug!("Cannot send a probe for {ip}: {errno}");
    }
}

/// An ARP probe by `own` for this address: a request without a sender IP address (RFC 5227 1.1).
fn arp_probe(own: MacAddr, ip: Ipv4Addr) -> Vec<u8> {
    let own = own.octets();
    [&[0xff; 6][..], &own, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &own, &[0; 4], &[0; 6], &ip.octets()].concat()
}

/// Passes ARP whose sender has one of these addresses, and not this MAC. At most 64 addresses are compared, in both
/// programs, which is far below what the kernel takes.
fn arp_program(mac: MacAddr, addresses: &[Ipv4Addr]) -> io::Result<Vec<Instruction>> {
    let mut asm = Assembler::default();
    not_from(&mut asm, mac, ARP_SENDER_MAC_AT);
    asm.load(LOAD_WORD, ARP_SENDER_IP_AT);
    for ip in addresses.iter().take(ADDRESSES_MAX) {
        asm.jump(JUMP_EQUAL, ip.to_bits(), To::Next, To::Label("next address"));
        asm.end(ARP_BYTES);
        asm.place("next address");
    }
    asm.end(0);
    asm.finish(0)
}

/// Passes neighbour discovery by which a machine with another MAC claims one of these addresses. The end is out of
/// reach for the first jumps.
fn nd_program(mac: MacAddr, addresses: &[Ipv6Addr]) -> io::Result<Vec<Instruction>> {
    let mut asm = Assembler::default();
    asm.load(LOAD_BYTE, NEXT_HEADER_AT);
    asm.jump(JUMP_EQUAL, ICMP6, To::Next, To::Label("another matter"));
    asm.load(LOAD_BYTE, HOP_LIMIT_AT);
    asm.jump(JUMP_EQUAL, HOPS, To::Next, To::Label("another matter"));
    asm.load(LOAD_BYTE, ICMP6_TYPE_AT);
    asm.jump(JUMP_EQUAL, NEIGHBOR_ADVERT, To::Label("claim"), To::Next);
    asm.jump(JUMP_EQUAL, NEIGHBOR_SOLICIT, To::Next, To::Label("another matter"));
    // From the unspecified address.
    for word in 0..3 {
        asm.load(LOAD_WORD, IPV6_SOURCE_AT + 4 * word);
        asm.jump(JUMP_EQUAL, 0, To::Next, To::Label("another matter"));
    }
    asm.load(LOAD_WORD, IPV6_SOURCE_AT + 12);
    asm.jump(JUMP_EQUAL, 0, To::Label("claim"), To::Next);
    asm.place("another matter");
    asm.end(0);
    asm.place("claim");
    not_from(&mut asm, mac, SOURCE_MAC_AT);
    for ip in addresses.iter().take(ADDRESSES_MAX) {
        // The last words differ most.
        for word in (0..4).rev() {
            asm.load(LOAD_WORD, ND_TARGET_AT + 4 * word);
            asm.jump(JUMP_EQUAL, u32_at(ip.to_bits(), word), To::Next, To::Label("next address"));
        }
        asm.end(ND_BYTES);
        asm.place("next address");
    }
    asm.end(0);
    asm.finish(0)
}

/// The 32-bit word of an IPv6 address at this index.
fn u32_at(bits: u128, word: u32) -> u32 {
    // Each shift leaves 32 bits.
    u32::try_from((bits >> (96 - 32 * word)) & u128::from(u32::MAX)).unwrap_or_default()
}

/// Ends the program for frames with this MAC at `at`.
fn not_from(asm: &mut Assembler, mac: MacAddr, at: u32) {
    let [a, b, c, d, e, f] = mac.octets();
    asm.load(LOAD_WORD, at);
    asm.jump(JUMP_EQUAL, u32::from_be_bytes([a, b, c, d]), To::Next, To::Label("another"));
    asm.load(LOAD_HALF, at + 4);
    asm.jump(JUMP_EQUAL, u32::from_be_bytes([0, 0, e, f]), To::Next, To::Label("another"));
    asm.end(0);
    asm.place("another");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::cbpf::interpreter::{Beside, each_that_differs_in_one_field, kept};

    const GUEST: [u8; MAC_LEN] = [2, 0, 0, 0, 0, 7];
    const OTHER: [u8; MAC_LEN] = [2, 0, 0, 0, 0, 8];

    fn guest() -> MacAddr {
        "02:00:00:00:00:07".parse().unwrap()
    }

    fn ip6(texts: &[&str]) -> Vec<Ipv6Addr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// An advertisement, or a solicitation from the unspecified address.
    fn nd(from: [u8; MAC_LEN], kind: u32, target: Ipv6Addr) -> Vec<u8> {
        let mut frame = vec![0; ND_BYTES as usize];
        frame[6..12].copy_from_slice(&from);
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        (frame[20], frame[21]) = (58, 255);
        frame[54] = u8::try_from(kind).unwrap();
        frame[62..78].copy_from_slice(&target.octets());
        frame
    }

    #[test]
    fn every_arp_that_differs_in_one_field_is_passed_if_another_machine_sends_it_from_an_address() {
        let addresses: Vec<Ipv4Addr> = vec![[10, 0, 0, 7].into(), [10, 0, 0, 9].into(), [10, 1, 0, 7].into()];
        let program = arp_program(guest(), &addresses).unwrap();
        let is_claim = |frame: &[u8]| {
            let (mac, ip) = (field(frame, 22), field::<4>(frame, 28));
            mac.is_some_and(|mac| mac != GUEST) && ip.is_some_and(|ip| addresses.contains(&ip.into()))
        };
        for (mac, ip) in [(OTHER, [10, 0, 0, 7]), (OTHER, [10, 0, 0, 8]), (GUEST, [10, 0, 0, 9])] {
            let mut frame = arp_probe("02:00:00:00:00:08".parse().unwrap(), [10, 0, 0, 1].into());
            frame[22..28].copy_from_slice(&mac);
            frame[28..32].copy_from_slice(&ip);
            each_that_differs_in_one_field(&frame, &[12, 20], |other| {
                let expected = if is_claim(other) { ARP_BYTES } else { 0 };
                assert_eq!(kept(&program, other, Beside::default()), expected, "{other:?}");
            });
        }
    }

    #[test]
    fn every_neighbour_discovery_that_differs_in_one_field_is_passed_if_another_machine_claims_an_address_by_it() {
        let addresses = ip6(&["fd00::7", "fe80::7", "fd00:1::7"]);
        let program = nd_program(guest(), &addresses).unwrap();
        let is_claim = |frame: &[u8]| {
            let is_from = |mac| field(frame, 6) == Some(mac);
            let is_free = field(frame, 22) == Some([0; 16]);
            let target = field::<16>(frame, 62).map(Ipv6Addr::from);
            let kind = frame.get(54).copied();
            field(frame, 20) == Some([58, 255])
                && (kind == Some(136) || kind == Some(135) && is_free)
                && !is_from(GUEST)
                && target.is_some_and(|target| addresses.contains(&target))
        };
        let [own, foreign] = [addresses[2], "fd00:2::7".parse().unwrap()];
        for frame in [
            nd(OTHER, NEIGHBOR_ADVERT, own),
            nd(OTHER, NEIGHBOR_SOLICIT, own),
            nd(OTHER, NEIGHBOR_SOLICIT, foreign),
            nd(GUEST, NEIGHBOR_ADVERT, own),
        ] {
            each_that_differs_in_one_field(&frame, &[12, 20], |other| {
                let expected = if is_claim(other) { ND_BYTES } else { 0 };
                assert_eq!(kept(&program, other, Beside::default()), expected, "{other:?}");
            });
        }
    }

    #[test]
    fn as_many_addresses_as_a_card_may_have_are_within_reach_of_the_jumps() {
        let last = u32::try_from(ADDRESSES_MAX).unwrap();
        let ip4: Vec<Ipv4Addr> = (1..=last).map(Ipv4Addr::from_bits).collect();
        let ip6: Vec<Ipv6Addr> = (1..=u128::from(last)).map(Ipv6Addr::from_bits).collect();
        let mut frame = arp_probe(guest(), [0; 4].into());
        frame[22..28].copy_from_slice(&OTHER);
        frame[28..32].copy_from_slice(&last.to_be_bytes());
        assert_eq!(kept(&arp_program(guest(), &ip4).unwrap(), &frame, Beside::default()), ARP_BYTES);
        let frame = nd(OTHER, NEIGHBOR_SOLICIT, *ip6.last().unwrap());
        assert_eq!(kept(&nd_program(guest(), &ip6).unwrap(), &frame, Beside::default()), ND_BYTES);
    }
}
