//! The classic BPF program that decides which of a guest's frames wake the services at all.
//!
//! It runs in the kernel for every frame that the guest sends (Documentation/networking/filter.rst), so it says no early: most
//! frames cost it four or five instructions. What it lets through, in the terms of pcap-filter(7):
//!
//! ```text
//!   not vlan and (
//!     (ip and not fragment and (udp dst port 67 or (dst port 53 and dst host GATEWAY)))
//!     or (ip6 and (icmp6 router solicitation or udp dst port 547 or (dst port 53 and dst host one of the GATEWAY's))))
//! ```
//!
//! where port 53 is of UDP or TCP, and IPv6 has no extension headers.

use std::net::Ipv6Addr;

use super::frame::{ETHERNET_BYTES, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAGMENT_MASK, Protocol};
use super::ipv6::{advertiser, dhcpv6};
use super::{ServiceSpec, dhcp, dns};

/// Instruction codes (linux/bpf_common.h): loads of absolute offsets, of offsets from X, jumps, return.
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF_FROM_X: u16 = 0x48;
/// X becomes four times the low nibble of a byte: the length of an IPv4 header.
const LOAD_X_HEADER_LEN: u16 = 0xb1;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// What the program returns: octets to keep of the frame.
const ALL: u32 = u32::MAX;
const NONE: u32 = 0;

/// Where fields are in a frame.
const ETHERTYPE_AT: u32 = 12;
const IP_AT: u32 = 14;

/// Not in the frame: whether the kernel has taken a VLAN tag off it (SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT).
const VLAN_TAG_PRESENT: u32 = 0xffff_f000 + 48;

/// One instruction, `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    /// Instructions to skip if the comparison is true, and if it is not.
    pub(super) skip_true: u8,
    pub(super) skip_false: u8,
    pub(super) operand: u32,
}

/// Where a comparison leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    /// The following instruction.
    Next,
    /// The end that keeps the frame.
    Accept,
    /// The end that does not.
    Drop,
    /// A place further down.
    Label(&'static str),
}

/// A program that is being written.
#[derive(Default)]
struct Assembler {
    lines: Vec<(u16, u32, To, To)>,
    labels: Vec<(&'static str, usize)>,
}

impl Assembler {
    fn load(&mut self, code: u16, at: u32) {
        self.lines.push((code, at, To::Next, To::Next));
    }

    fn jump(&mut self, code: u16, operand: u32, then: To, otherwise: To) {
        self.lines.push((code, operand, then, otherwise));
    }

    fn place(&mut self, label: &'static str) {
        self.labels.push((label, self.lines.len()));
    }

    /// The program, with its two ends after the last line.
    fn finish(self) -> Vec<Instruction> {
        let len = self.lines.len();
        let position = |to: To, at: usize| match to {
            To::Next => at + 1,
            To::Accept => len,
            To::Drop => len + 1,
            // A label that is not there would drop the frame.
            To::Label(label) => self.labels.iter().find(|(name, _)| *name == label).map_or(len + 1, |(_, at)| *at),
        };
        // All jumps are forward, and the program is shorter than the longest.
        let skip = |to: To, at: usize| u8::try_from(position(to, at).saturating_sub(at + 1)).unwrap_or(0);
        let lines = self.lines.iter().enumerate().map(|(at, (code, operand, then, otherwise))| Instruction {
            code: *code,
            skip_true: skip(*then, at),
            skip_false: skip(*otherwise, at),
            operand: *operand,
        });
        let end = |operand| Instruction { code: RETURN, skip_true: 0, skip_false: 0, operand };
        lines.chain([end(ALL), end(NONE)]).collect()
    }
}

/// The program for a card's services.
pub(super) fn program(spec: &ServiceSpec) -> Vec<Instruction> {
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
    asm.finish()
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

/// Keeps a packet to `address`; with another one it goes on at `otherwise`.
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
    use crate::services::frame::{Link, udp};
    use crate::services::tests::spec;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Runs a program as the kernel does: a load beyond the frame ends it.
    fn keeps(program: &[Instruction], frame: &[u8], tagged: bool) -> bool {
        let number = |at: u32, len: usize| {
            let at = usize::try_from(at).unwrap();
            let bytes = frame.get(at..at + len)?;
            Some(bytes.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte)))
        };
        let (mut a, mut x, mut at) = (0, 0, 0);
        let mut run = || loop {
            let Instruction { code, skip_true, skip_false, operand } = program[at];
            at += 1;
            match code {
                RETURN => return Some(operand == ALL),
                LOAD_BYTE if operand == VLAN_TAG_PRESENT => a = u32::from(tagged),
                LOAD_BYTE => a = number(operand, 1)?,
                LOAD_HALF => a = number(operand, 2)?,
                LOAD_WORD => a = number(operand, 4)?,
                LOAD_HALF_FROM_X => a = number(operand + x, 2)?,
                LOAD_X_HEADER_LEN => x = 4 * (number(operand, 1)? & 0xf),
                JUMP_EQUAL => at += usize::from(if a == operand { skip_true } else { skip_false }),
                JUMP_ANY_BIT => at += usize::from(if a & operand != 0 { skip_true } else { skip_false }),
                _ => panic!("an instruction that is not in the program"),
            }
        };
        run().unwrap_or(false)
    }

    /// The same datagram as if it were of another protocol.
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
        let program = program(&spec());
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
        let program = program(&spec());
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
        let program = program(&spec());
        for (kind, expected) in [(133, true), (134, false), (135, false), (136, false), (128, false)] {
            let mut message = as_protocol(frame("[ff02::2]:1"), Protocol::Icmpv6);
            message[54] = kind;
            assert_eq!(keeps(&program, &message, false), expected, "{kind}");
        }
    }

    #[test]
    fn network_without_ipv6_hears_none() {
        let program = program(&ServiceSpec { ipv6: None, ..spec() });
        assert!(!keeps(&program, &frame("[fe80::1]:53"), false));
        assert!(keeps(&program, &frame("10.9.8.1:53"), false));
    }

    #[test]
    fn tagged_fragmented_and_other_frames_are_not_heard() {
        let program = program(&spec());
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
        let program = program(&spec());
        let plain = frame("10.9.8.1:53");
        let mut longer = [&plain[..34], &[1; 8], &plain[34..]].concat();
        longer[14] = 0x47;
        assert!(keeps(&program, &longer, false));
    }

    #[test]
    fn whatever_is_cut_is_not_heard() {
        let program = program(&spec());
        let whole = frame("10.9.8.1:67");
        for cut in 0..38 {
            assert!(!keeps(&program, &whole[..cut], false));
        }
    }

    proptest! {
        #[test]
        fn any_frame_ends_the_program(bytes in vec(any::<u8>(), 0..100)) {
            keeps(&program(&spec()), &bytes, false);
        }
    }
}
