//! The classic BPF program that decides which of a guest's frames wake the services.
//!
//! It runs in the kernel for every frame that the guest sends (Documentation/networking/filter.rst), so it rejects
//! early: most frames cost it four or five instructions. It passes, in the terms of pcap-filter(7):
//!
//! ```text
//!   not vlan and (
//!     (ip and not fragment and (udp dst port 67 or (dst port 53 and dst host GATEWAY)))
//!     or (ip6 and (icmp6 router solicitation or udp dst port 547 or (dst port 53 and dst host one of the GATEWAY's))))
//! ```
//!
//! where port 53 is of UDP or TCP, and IPv6 has no extension headers.

use std::io;
use std::net::Ipv6Addr;

use super::frame::{ETHERNET_BYTES, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAGMENT_MASK, Protocol};
use super::ipv6::{advertiser, dhcpv6};
use super::{ServiceSpec, dhcp, dns};
use crate::kernel::cbpf::{
    ALL, Assembler, Instruction, JUMP_ANY_BIT, JUMP_EQUAL, LOAD_BYTE, LOAD_HALF, LOAD_HALF_FROM_X, LOAD_WORD,
    LOAD_X_HEADER_LEN, To, VLAN_TAG_PRESENT,
};

/// Offsets of fields in a frame.
const ETHERTYPE_AT: u32 = 12;
const IP_AT: u32 = 14;

/// The program for a card's services.
pub(super) fn program(spec: &ServiceSpec) -> io::Result<Vec<Instruction>> {
    let mut asm = Assembler::default();
    asm.load(LOAD_BYTE, VLAN_TAG_PRESENT);
    asm.jump(JUMP_EQUAL, 0, To::Next, To::Drop);
    asm.load(LOAD_HALF, ETHERTYPE_AT);
    let other = if spec.ipv6.is_some() { To::Label("ipv6") } else { To::Drop };
    asm.jump(JUMP_EQUAL, ETHERTYPE_IPV4.into(), To::Next, other);
    ipv4(&mut asm, spec.ipv4.gateway.to_bits());
    if let Some(network) = &spec.ipv6 {
        asm.place("ipv6");
        asm.jump(JUMP_EQUAL, ETHERTYPE_IPV6.into(), To::Next, To::Drop);
        ipv6(&mut asm, [network.gateway, network.link_local]);
    }
    asm.finish(ALL)
}

/// Decides on an IPv4 packet.
fn ipv4(asm: &mut Assembler, gateway: u32) {
    let protocol_at = IP_AT + 9;
    asm.load(LOAD_BYTE, protocol_at);
    asm.jump(JUMP_EQUAL, number(Protocol::Udp), To::Label("ipv4 whole"), To::Next);
    asm.jump(JUMP_EQUAL, number(Protocol::Tcp), To::Next, To::Drop);
    asm.place("ipv4 whole");
    asm.load(LOAD_HALF, IP_AT + 6);
    asm.jump(JUMP_ANY_BIT, FRAGMENT_MASK.into(), To::Drop, To::Next);
    asm.load(LOAD_X_HEADER_LEN, IP_AT);
    asm.load(LOAD_HALF_FROM_X, IP_AT + 2);
    asm.jump(JUMP_EQUAL, dns::PORT.into(), To::Label("ipv4 dns"), To::Next);
    asm.jump(JUMP_EQUAL, dhcp::SERVER_PORT.into(), To::Next, To::Drop);
    asm.load(LOAD_BYTE, protocol_at);
    asm.jump(JUMP_EQUAL, number(Protocol::Udp), To::Accept, To::Drop);
    asm.place("ipv4 dns");
    asm.load(LOAD_WORD, IP_AT + 16);
    asm.jump(JUMP_EQUAL, gateway, To::Accept, To::Drop);
}

/// Decides on an IPv6 packet.
fn ipv6(asm: &mut Assembler, [global, link_local]: [Ipv6Addr; 2]) {
    let payload_at = IP_AT + 40;
    asm.load(LOAD_BYTE, IP_AT + 6);
    asm.jump(JUMP_EQUAL, number(Protocol::Udp), To::Label("ipv6 udp"), To::Next);
    asm.jump(JUMP_EQUAL, number(Protocol::Tcp), To::Label("ipv6 tcp"), To::Next);
    asm.jump(JUMP_EQUAL, number(Protocol::Icmpv6), To::Next, To::Drop);
    asm.load(LOAD_BYTE, payload_at);
    asm.jump(JUMP_EQUAL, advertiser::SOLICITATION.into(), To::Accept, To::Drop);
    asm.place("ipv6 udp");
    asm.load(LOAD_HALF, payload_at + 2);
    asm.jump(JUMP_EQUAL, dhcpv6::SERVER_PORT.into(), To::Accept, To::Next);
    asm.place("ipv6 tcp");
    asm.load(LOAD_HALF, payload_at + 2);
    asm.jump(JUMP_EQUAL, dns::PORT.into(), To::Next, To::Drop);
    address(asm, global, To::Label("ipv6 link-local"));
    asm.place("ipv6 link-local");
    address(asm, link_local, To::Drop);
}

/// Passes a packet to `address`; with another one the program goes on at `otherwise`.
fn address(asm: &mut Assembler, address: Ipv6Addr, otherwise: To) {
    let bits = address.to_bits();
    for (at, shift, then) in [(24, 96, To::Next), (28, 64, To::Next), (32, 32, To::Next), (36, 0, To::Accept)] {
        asm.load(LOAD_WORD, IP_AT + at);
        let word = u32::try_from(bits >> shift & u128::from(u32::MAX)).unwrap_or(0);
        asm.jump(JUMP_EQUAL, word, then, otherwise);
    }
}

/// The discriminants are the numbers.
fn number(protocol: Protocol) -> u32 {
    u32::from(protocol as u8)
}

const _: () = assert!(ETHERNET_BYTES == IP_AT as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::cbpf::interpreter::{Beside, each_that_differs_in_one_field, kept};
    use crate::services::frame::{Link, udp};
    use crate::services::tests::spec;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn keeps(program: &[Instruction], frame: &[u8], tagged: bool) -> bool {
        kept(program, frame, Beside { tagged, ..Beside::default() }) == ALL
    }

    /// The same datagram, as if of another protocol.
    fn as_protocol(mut frame: Vec<u8>, protocol: Protocol) -> Vec<u8> {
        let at = if frame[12] == 8 { 23 } else { 20 };
        frame[at] = protocol as u8;
        frame
    }

    fn frame(destination: &str) -> Vec<u8> {
        let destination: std::net::SocketAddr = destination.parse().unwrap();
        let source = if destination.is_ipv4() { "10.9.8.7:68" } else { "[fe80::9]:546" };
        udp(Link { source: [2; 6], destination: [4; 6] }, source.parse().unwrap(), destination, b"something").unwrap()
    }

    #[test]
    fn services_are_heard_and_nothing_else() {
        let program = program(&spec()).unwrap();
        for (destination, expected) in [
            ("255.255.255.255:67", true),
            ("10.9.8.1:67", true),
            ("10.9.8.1:53", true),
            ("10.9.8.2:53", false),
            ("1.1.1.1:53", false),
            ("10.9.8.1:68", false),
            ("10.9.8.1:123", false),
            ("[ff02::1:2]:547", true),
            ("[fe80::1]:53", true),
            ("[fd00:9:8::1]:53", true),
            ("[fd00:9:8::2]:53", false),
            ("[fd00:9:9::1]:53", false),
            ("[fe80::2]:53", false),
            ("[fe80::1]:546", false),
            ("[fe80::1]:123", false),
        ] {
            assert_eq!(keeps(&program, &frame(destination), false), expected, "{destination}");
        }
    }

    #[test]
    fn connections_to_the_resolver_are_heard_and_no_others() {
        let program = program(&spec()).unwrap();
        for (destination, expected) in [
            ("10.9.8.1:53", true),
            ("[fe80::1]:53", true),
            ("10.9.8.2:53", false),
            ("10.9.8.1:67", false),
            ("[fe80::1]:547", false),
            ("[fe80::1]:22", false),
        ] {
            let segment = as_protocol(frame(destination), Protocol::Tcp);
            assert_eq!(keeps(&program, &segment, false), expected, "{destination}");
        }
    }

    #[test]
    fn of_neighbour_discovery_only_solicitations_of_routers_are_heard() {
        let program = program(&spec()).unwrap();
        for (kind, expected) in [(133, true), (134, false), (135, false), (136, false), (128, false)] {
            let mut message = as_protocol(frame("[ff02::2]:1"), Protocol::Icmpv6);
            message[54] = kind;
            assert_eq!(keeps(&program, &message, false), expected, "{kind}");
        }
    }

    #[test]
    fn network_without_ipv6_hears_none() {
        let program = program(&ServiceSpec { ipv6: None, ..spec() }).unwrap();
        assert!(!keeps(&program, &frame("[fe80::1]:53"), false));
        assert!(keeps(&program, &frame("10.9.8.1:53"), false));
    }

    #[test]
    fn tagged_fragmented_and_other_frames_are_not_heard() {
        let program = program(&spec()).unwrap();
        let good = frame("10.9.8.1:53");
        assert!(!keeps(&program, &good, true), "tagged");
        for (what, at, value) in
            [("ARP", 13, 6), ("ICMP", 23, 1), ("first fragment", 20, 0x20), ("later fragment", 21, 1)]
        {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(!keeps(&program, &bad, false), "{what}");
        }
    }

    #[test]
    fn ports_are_found_behind_ip_options() {
        let program = program(&spec()).unwrap();
        let plain = frame("10.9.8.1:53");
        let mut longer = [&plain[..34], &[1; 8], &plain[34..]].concat();
        longer[14] = 0x47;
        assert!(keeps(&program, &longer, false));
    }

    /// The expression in the head of this file, read on a frame; nothing if the frame ends too early.
    fn is_wanted(frame: &[u8]) -> Option<bool> {
        let byte = |at: usize| frame.get(at).copied();
        let half = |at: usize| Some(u16::from_be_bytes([byte(at)?, byte(at + 1)?]));
        let is_destination = |at: usize, addresses: &[&[u8]]| {
            let found = addresses.iter().find(|address| frame.get(at..at + address.len()) == Some(**address));
            found.is_some()
        };
        match half(12)? {
            0x0800 => {
                let (protocol, is_fragment) = (byte(23)?, half(20)? & 0x3fff != 0);
                let port = half(14 + 4 * usize::from(byte(14)? & 15) + 2)?;
                let is_dns = port == 53 && is_destination(30, &[&[10, 9, 8, 1]]);
                Some(!is_fragment && matches!(protocol, 6 | 17) && (is_dns || protocol == 17 && port == 67))
            }
            0x86dd => {
                let gateways = ["fd00:9:8::1", "fe80::1"].map(|ip| ip.parse::<Ipv6Addr>().unwrap().octets());
                let is_dns = || Some(half(56)? == 53 && is_destination(38, &[&gateways[0], &gateways[1]]));
                match byte(20)? {
                    58 => Some(byte(54)? == 133),
                    17 if half(56)? == 547 => Some(true),
                    6 | 17 => is_dns(),
                    _ => Some(false),
                }
            }
            _ => Some(false),
        }
    }

    #[test]
    fn every_frame_that_differs_in_one_field_is_heard_if_the_expression_says_so() {
        let program = program(&spec()).unwrap();
        let mut with_options = frame("10.9.8.1:53");
        with_options.splice(34..34, [1; 8]);
        with_options[14] = 0x47;
        let mut solicitation = as_protocol(frame("[ff02::2]:1"), Protocol::Icmpv6);
        solicitation[54] = 133;
        let frames = [
            frame("255.255.255.255:67"),
            frame("10.9.8.1:53"),
            with_options,
            as_protocol(frame("10.9.8.1:53"), Protocol::Tcp),
            frame("[ff02::1:2]:547"),
            frame("[fe80::1]:53"),
            as_protocol(frame("[fd00:9:8::1]:53"), Protocol::Tcp),
            solicitation,
        ];
        for frame in frames {
            assert!(keeps(&program, &frame, false), "{frame:?}");
            each_that_differs_in_one_field(&frame, &[12, 20, 36, 44, 56], |other| {
                assert_eq!(keeps(&program, other, false), is_wanted(other) == Some(true), "{other:?}");
            });
            each_that_differs_in_one_field(&frame[..16], &[12], |other| {
                assert!(!keeps(&program, &[other, &frame[16..]].concat(), true), "{other:?}");
            });
        }
    }

    #[test]
    fn whatever_is_cut_is_not_heard() {
        let program = program(&spec()).unwrap();
        let whole = frame("10.9.8.1:67");
        for cut in 0..38 {
            assert!(!keeps(&program, &whole[..cut], false));
        }
    }

    proptest! {
        #[test]
        fn any_frame_ends_the_program(bytes in vec(any::<u8>(), 0..100)) {
            keeps(&program(&spec()).unwrap(), &bytes, false);
        }
    }
}
