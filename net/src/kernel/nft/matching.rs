//! The fields of a packet, and of the kernel's data about it, that a rule can test.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::kernel::*;
use super::test::{RawItem, RawTest, Test};
use super::value::{
    AddrType, ArpOp, EtherAddr, EtherType, Icmp6Type, IcmpType, L4Proto, LinkKind, NamePrefix, NfProto,
};
use crate::spec::IfName;

/// A condition of a rule. A condition on a protocol header matches packets of that protocol only, without a separate
/// test. One on the Ethernet header never matches a packet that has not come in through an Ethernet interface: not at
/// the output hook, and not at egress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// `iifname`
    Iif(Test<IfName>),
    /// `oifname`
    Oif(Test<IfName>),
    /// `iifname "PREFIX*"`
    IifPrefix(NamePrefix),
    /// `oifname "PREFIX*"`
    OifPrefix(NamePrefix),
    /// `meta iifkind`
    IifKind(Test<LinkKind>),
    /// `meta oifkind`
    OifKind(Test<LinkKind>),
    /// `meta oifgroup`: it goes out through an interface of this device group.
    OifGroup(u32),
    /// `meta priority`: a number that goes with a packet inside the kernel until its queue. IPv4 forwarding sets it
    /// anew.
    Priority(u32),
    /// `meta protocol`: the protocol above Ethernet and VLAN tags. At egress, too.
    Protocol(Test<EtherType>),
    /// `meta nfproto`
    NfProto(Test<NfProto>),
    /// `meta l4proto`
    L4Proto(Test<L4Proto>),
    /// `meta mark & MASK == VALUE`
    Mark {
        /// The bits that count.
        mask: u32,
        /// Their values.
        value: u32,
    },
    /// `ether saddr`
    EtherSaddr(Test<EtherAddr>),
    /// `ether daddr`
    EtherDaddr(Test<EtherAddr>),
    /// `ether type`
    EtherType(Test<EtherType>),
    /// `ip saddr`, `ip daddr`
    Ip4(IpFields<Ipv4Addr>),
    /// `ip6 saddr`, `ip6 daddr`
    Ip6(IpFields<Ipv6Addr>),
    /// A fragment of an IPv4 packet.
    Fragment4(Fragment),
    /// `ip6 nexthdr`: the header that follows the fixed IPv6 header.
    Ip6Next(Test<L4Proto>),
    /// The same for IPv6, if the fragment header comes first, which has to be tested for before.
    Fragment6(Fragment),
    /// `frag nexthdr`: the header after a fragment header, wherever that is.
    FragmentNext(Test<L4Proto>),
    /// `frag more-fragments`: others follow, wherever the fragment header is.
    FragmentMore,
    /// `frag frag-off`: others come before, wherever the fragment header is.
    FragmentBehind,
    /// `ip6 length`: bytes after the fixed IPv6 header. There may be more in the frame.
    Ip6Length(Test<u16>),
    /// `tcp sport`
    TcpSport(Test<u16>),
    /// `tcp dport`
    TcpDport(Test<u16>),
    /// `tcp flags VALUE / MASK`: of the flags in the mask, those in the value are set.
    TcpFlags {
        /// The flags that are set.
        value: Vec<TcpFlag>,
        /// The flags that count.
        mask: Vec<TcpFlag>,
    },
    /// `udp sport`
    UdpSport(Test<u16>),
    /// `udp dport`
    UdpDport(Test<u16>),
    /// The first byte of a UDP datagram's payload.
    UdpPayload(u8),
    /// The frame holds this many bytes of the protocol's header. A later fragment's payload counts as that header.
    Whole {
        /// The protocol.
        proto: L4Proto,
        /// How many bytes, at least 1.
        bytes: u32,
    },
    /// `icmp type`
    IcmpType(Test<IcmpType>),
    /// `icmpv6 type`
    Icmp6Type(Test<Icmp6Type>),
    /// `icmpv6 taddr`: the target of a neighbour solicitation, advertisement or redirect, which has to be tested for
    /// before.
    NdTarget(Test<Ipv6Addr>),
    /// `arp operation`
    ArpOp(Test<ArpOp>),
    /// `arp saddr ether`
    ArpSender(Test<EtherAddr>),
    /// `arp saddr ip`
    ArpSenderIp(Test<Ipv4Addr>),
    /// `arp daddr ip`
    ArpTargetIp(Test<Ipv4Addr>),
    /// `ct state`: it is one of these.
    CtState(Vec<CtState>),
    /// `ct state !`: it is none of these.
    CtStateNot(Vec<CtState>),
    /// `ct status`: one of these holds.
    CtStatus(Vec<CtStatus>),
    /// `fib saddr type`
    FibSaddrType(Test<AddrType>),
    /// `fib daddr type`
    FibDaddrType(Test<AddrType>),
    /// `fib daddr oifname`: the interface by which this host would route the packet. Never matches the host's own
    /// addresses.
    FibDaddrOif(Test<IfName>),
}

/// The addresses in an IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IpFields<T> {
    /// The source.
    Saddr(Test<T>),
    /// The destination.
    Daddr(Test<T>),
}

/// A fragment of a packet that was too long for a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// The first, which has the ports.
    First,
    /// A later one, without the ports.
    Later,
    /// A later one at offset 8, within the TCP header.
    Second,
}

/// A field that can be part of a key, see [`super::Statement::InSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `meta l4proto`
    L4Proto,
    /// `ip saddr`
    Ip4Saddr,
    /// `ip daddr`
    Ip4Daddr,
    /// `ip6 saddr`
    Ip6Saddr,
    /// `ip6 daddr`
    Ip6Daddr,
    /// The source port of this protocol.
    Sport(L4Proto),
    /// Its destination port.
    Dport(L4Proto),
    /// `icmp id`: of an echo request or reply, which has to be tested for before.
    IcmpId,
    /// `icmpv6 id`
    Icmp6Id,
    /// `ip id`
    Ip4Id,
    /// The same in a fragment header directly after the fixed IPv6 header, which has to be tested for before.
    Ip6FragmentId,
    /// Raw bytes at an offset from the transport header. An ICMP error quotes a packet from offset 8.
    Quoted {
        /// The offset in bytes.
        at: u32,
        /// How many bytes.
        len: u32,
    },
}

/// Names of bits.
macro_rules! bits {
    ($(#[$doc:meta])* $name:ident: $number:ty { $($word:ident = $bit:literal $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $(#[doc = concat!("`", $text, "`")] $word,)+
        }

        impl $name {
            fn bit(self) -> $number {
                match self {
                    $(Self::$word => $bit,)+
                }
            }

            fn all(words: &[Self]) -> $number {
                words.iter().fold(0, |bits, word| bits | word.bit())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$word => $text,)+
                })
            }
        }
    };
}

bits! {
    /// The connection tracking state of a packet (`NF_CT_STATE_BIT` of linux/netfilter/nf_conntrack_common.h).
    CtState: u32 { Invalid = 1 "invalid", Established = 2 "established", Related = 4 "related", New = 8 "new", Untracked = 64 "untracked" }
}
bits! {
    /// The connection tracking status of a connection (`enum ip_conntrack_status`).
    CtStatus: u32 { SeenReply = 2 "seen-reply", Assured = 4 "assured", Confirmed = 8 "confirmed", Snat = 16 "snat", Dnat = 32 "dnat" }
}
bits! {
    /// A flag of a TCP header (RFC 9293 3.1).
    TcpFlag: u8 { Fin = 1 "fin", Syn = 2 "syn", Rst = 4 "rst", Psh = 8 "psh", Ack = 16 "ack", Urg = 32 "urg" }
}

/// Words separated by commas.
struct Words<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Words<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, word) in self.0.iter().enumerate() {
            write!(f, "{}{word}", if idx == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Field {
    /// The protocols that the field needs, where it is, and its bytes in a register.
    pub(super) fn raw(&self) -> (Vec<Needs>, Load, usize) {
        let (ip4, ip6) = (Needs::Network(EtherType::IP4), Needs::Network(EtherType::IP6));
        let transport = |proto: &L4Proto| vec![Needs::Transport(*proto)];
        match self {
            Self::L4Proto => (Vec::new(), Load::Meta(NFT_META_L4PROTO), 1),
            Self::Ip4Saddr => (vec![ip4], IP4_SADDR, 4),
            Self::Ip4Daddr => (vec![ip4], IP4_DADDR, 4),
            Self::Ip6Saddr => (vec![ip6], IP6_SADDR, 16),
            Self::Ip6Daddr => (vec![ip6], IP6_DADDR, 16),
            Self::Sport(proto) => (transport(proto), SPORT, 2),
            Self::Dport(proto) => (transport(proto), DPORT, 2),
            Self::IcmpId => (transport(&L4Proto::ICMP), ICMP_ID, 2),
            Self::Icmp6Id => (transport(&L4Proto::ICMP6), ICMP_ID, 2),
            Self::Ip4Id => (vec![ip4], IP4_ID, 2),
            Self::Ip6FragmentId => (vec![ip6], IP6_FRAGMENT_ID, 4),
            Self::Quoted { at, len } => {
                let bytes = usize::try_from(*len).unwrap_or_default();
                (Vec::new(), Load::Payload(NFT_PAYLOAD_TRANSPORT_HEADER, *at, *len), bytes)
            }
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::L4Proto => f.write_str("meta l4proto"),
            Self::Ip4Saddr => f.write_str("ip saddr"),
            Self::Ip4Daddr => f.write_str("ip daddr"),
            Self::Ip6Saddr => f.write_str("ip6 saddr"),
            Self::Ip6Daddr => f.write_str("ip6 daddr"),
            Self::Sport(proto) => write!(f, "{proto} sport"),
            Self::Dport(proto) => write!(f, "{proto} dport"),
            Self::IcmpId => f.write_str("icmp id"),
            Self::Icmp6Id => f.write_str("icmpv6 id"),
            Self::Ip4Id => f.write_str("ip id"),
            Self::Ip6FragmentId => f.write_str("@nh,352,32"),
            Self::Quoted { at, len } => write!(f, "@th,{},{}", at * 8, len * 8),
        }
    }
}

impl NamePrefix {
    /// The kernel compares as many bytes as it is given.
    fn raw(self) -> RawTest {
        let bytes = self.0.as_bytes().to_vec();
        RawTest::Item { item: RawItem { first: bytes.clone(), last: bytes, mask: None }, negate: false }
    }
}

impl Fragment {
    /// The test of the fragment offset and flags (RFC 791 3.1), for IPv4.
    fn test4(self) -> RawTest {
        match self {
            Self::First => bits(0x3fff, 0x2000, false),
            Self::Later => bits(0x1fff, 0, true),
            Self::Second => bits(0x1fff, 1, false),
        }
    }

    /// The same for IPv6 (RFC 8200 4.5).
    fn test6(self) -> RawTest {
        match self {
            Self::First => bits(0xfff9, 1, false),
            Self::Later => bits(0xfff8, 0, true),
            Self::Second => bits(0xfff8, 8, false),
        }
    }
}

/// A test that a masked number of the packet equals the value, or does not.
fn bits(mask: u16, value: u16, negate: bool) -> RawTest {
    RawTest::Bits { mask: mask.to_be_bytes().to_vec(), value: value.to_be_bytes().to_vec(), negate }
}

impl Match {
    /// It came in through this interface.
    pub fn iif(name: &IfName) -> Self {
        Self::Iif(Test::is(name.clone()))
    }

    /// It goes out through this interface.
    pub fn oif(name: &IfName) -> Self {
        Self::Oif(Test::is(name.clone()))
    }

    /// A TCP segment that opens a connection, in either direction.
    pub fn tcp_syn() -> Self {
        Self::TcpFlags { value: vec![TcpFlag::Syn], mask: vec![TcpFlag::Syn, TcpFlag::Rst] }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iif(test) => write!(f, "iifname {test}"),
            Self::Oif(test) => write!(f, "oifname {test}"),
            Self::IifPrefix(prefix) => write!(f, "iifname {prefix}"),
            Self::OifPrefix(prefix) => write!(f, "oifname {prefix}"),
            Self::IifKind(test) => write!(f, "meta iifkind {test}"),
            Self::OifKind(test) => write!(f, "meta oifkind {test}"),
            Self::OifGroup(group) => write!(f, "oifgroup {group}"),
            Self::Priority(number) => write!(f, "meta priority {}", TcHandle(*number)),
            Self::Protocol(test) => write!(f, "meta protocol {test}"),
            Self::NfProto(test) => write!(f, "meta nfproto {test}"),
            Self::L4Proto(test) => write!(f, "meta l4proto {test}"),
            Self::Mark { mask: u32::MAX, value } => write!(f, "meta mark {value:#010x}"),
            Self::Mark { mask, value } => write!(f, "meta mark & {mask:#010x} == {value:#010x}"),
            Self::EtherSaddr(test) => write!(f, "ether saddr {test}"),
            Self::EtherDaddr(test) => write!(f, "ether daddr {test}"),
            Self::EtherType(test) => write!(f, "ether type {test}"),
            Self::Ip4(IpFields::Saddr(test)) => write!(f, "ip saddr {test}"),
            Self::Ip4(IpFields::Daddr(test)) => write!(f, "ip daddr {test}"),
            Self::Ip6(IpFields::Saddr(test)) => write!(f, "ip6 saddr {test}"),
            Self::Ip6(IpFields::Daddr(test)) => write!(f, "ip6 daddr {test}"),
            Self::Fragment4(Fragment::First) => f.write_str("ip frag-off & 16383 == 8192"),
            Self::Fragment4(Fragment::Later) => f.write_str("ip frag-off & 8191 != 0"),
            Self::Ip6Next(test) => write!(f, "ip6 nexthdr {test}"),
            Self::Fragment4(Fragment::Second) => f.write_str("ip frag-off & 8191 == 1"),
            Self::Fragment6(Fragment::First) => f.write_str("@nh,336,16 & 0xfff9 == 0x1"),
            Self::Fragment6(Fragment::Later) => f.write_str("@nh,336,16 & 0xfff8 != 0x0"),
            Self::Fragment6(Fragment::Second) => f.write_str("@nh,336,16 & 0xfff8 == 0x8"),
            Self::FragmentNext(test) => write!(f, "frag nexthdr {test}"),
            Self::FragmentMore => f.write_str("frag more-fragments 1"),
            Self::FragmentBehind => f.write_str("frag frag-off != 0"),
            Self::Ip6Length(test) => write!(f, "ip6 length {test}"),
            Self::UdpPayload(byte) => write!(f, "meta l4proto udp @th,64,8 {byte:#x}"),
            Self::Whole { proto, bytes } => {
                write!(f, "meta l4proto {proto} @th,{},8 0x0-0xff", bytes.saturating_sub(1) * 8)
            }
            Self::TcpSport(test) => write!(f, "tcp sport {test}"),
            Self::TcpDport(test) => write!(f, "tcp dport {test}"),
            Self::TcpFlags { value, mask } if value.is_empty() => write!(f, "tcp flags ! {}", Words(mask)),
            Self::TcpFlags { value, mask } => write!(f, "tcp flags {} / {}", Words(value), Words(mask)),
            Self::UdpSport(test) => write!(f, "udp sport {test}"),
            Self::UdpDport(test) => write!(f, "udp dport {test}"),
            Self::IcmpType(test) => write!(f, "icmp type {test}"),
            Self::Icmp6Type(test) => write!(f, "icmpv6 type {test}"),
            Self::NdTarget(test) => write!(f, "icmpv6 taddr {test}"),
            Self::ArpOp(test) => write!(f, "arp operation {test}"),
            Self::ArpSender(test) => write!(f, "arp saddr ether {test}"),
            Self::ArpSenderIp(test) => write!(f, "arp saddr ip {test}"),
            Self::ArpTargetIp(test) => write!(f, "arp daddr ip {test}"),
            Self::CtState(states) => write!(f, "ct state {}", Words(states)),
            Self::CtStateNot(states) => write!(f, "ct state ! {}", Words(states)),
            Self::CtStatus(status) => write!(f, "ct status {}", Words(status)),
            Self::FibSaddrType(test) => write!(f, "fib saddr type {test}"),
            Self::FibDaddrType(test) => write!(f, "fib daddr type {test}"),
            Self::FibDaddrOif(test) => write!(f, "fib daddr oifname {test}"),
        }
    }
}

/// A number as traffic control writes it.
pub(super) struct TcHandle(pub(super) u32);

impl fmt::Display for TcHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("none"),
            number => write!(f, "{:x}:{:x}", number >> 16, number & 0xffff),
        }
    }
}

/// The source of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// A key of `enum nft_meta_keys`.
    Meta(u32),
    /// Base (`enum nft_payload_bases`), offset and length in bytes.
    Payload(u32, u32, u32),
    /// An extension header of IPv6, wherever it is, offset and length in bytes.
    Extension(L4Proto, u32, u32),
    /// A key of `enum nft_ct_keys`.
    Ct(u32),
    /// The type of the address that a flag of `enum nft_fib_flags` names.
    FibType(u32),
    /// The name of the interface that leads to the address that such a flag names.
    FibOif(u32),
}

/// The protocol that a packet must have before a field is meaningful.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// Nothing.
    Nothing,
    /// An Ethernet header.
    Ether,
    /// A packet of this kind above Ethernet.
    Network(EtherType),
    /// A packet of this kind above IP.
    Transport(L4Proto),
}

/// A test in the kernel's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawMatch {
    pub(super) needs: Needs,
    pub(super) load: Load,
    pub(super) test: RawTest,
}

/// Fields of headers.
const ETHER_DADDR: Load = Load::Payload(NFT_PAYLOAD_LL_HEADER, 0, 6);
const ETHER_SADDR: Load = Load::Payload(NFT_PAYLOAD_LL_HEADER, 6, 6);
const ETHER_TYPE: Load = Load::Payload(NFT_PAYLOAD_LL_HEADER, 12, 2);
const IP4_SADDR: Load = Load::Payload(NFT_PAYLOAD_NETWORK_HEADER, 12, 4);
const IP4_DADDR: Load = Load::Payload(NFT_PAYLOAD_NETWORK_HEADER, 16, 4);
const IP6_SADDR: Load = Load::Payload(NFT_PAYLOAD_NETWORK_HEADER, 8, 16);
const IP6_DADDR: Load = Load::Payload(NFT_PAYLOAD_NETWORK_HEADER, 24, 16);
const IP4_ID: Load = Load::Payload(NFT_PAYLOAD_NETWORK_HEADER, 4, 2);
const IP4_FRAGMENT: Load = Load::Payload(NFT_PAYLOAD_NETWORK_HEADER, 6, 2);
const IP6_LENGTH: Load = Load::Payload(NFT_PAYLOAD_NETWORK_HEADER, 4, 2);
const IP6_NEXT: Load = Load::Payload(NFT_PAYLOAD_NETWORK_HEADER, 6, 1);
/// In a fragment header after the 40 bytes of the fixed IPv6 header.
const IP6_FRAGMENT: Load = Load::Payload(NFT_PAYLOAD_NETWORK_HEADER, 42, 2);
const IP6_FRAGMENT_ID: Load = Load::Payload(NFT_PAYLOAD_NETWORK_HEADER, 44, 4);
const ICMP_ID: Load = Load::Payload(NFT_PAYLOAD_TRANSPORT_HEADER, 4, 2);
const ARP_OPERATION: Load = Load::Payload(NFT_PAYLOAD_NETWORK_HEADER, 6, 2);
const ARP_SADDR_ETHER: Load = Load::Payload(NFT_PAYLOAD_NETWORK_HEADER, 8, 6);
const ARP_SADDR_IP: Load = Load::Payload(NFT_PAYLOAD_NETWORK_HEADER, 14, 4);
const ARP_DADDR_IP: Load = Load::Payload(NFT_PAYLOAD_NETWORK_HEADER, 24, 4);
const SPORT: Load = Load::Payload(NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2);
pub(super) const DPORT: Load = Load::Payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
const TCP_FLAGS: Load = Load::Payload(NFT_PAYLOAD_TRANSPORT_HEADER, 13, 1);
const UDP_PAYLOAD: Load = Load::Payload(NFT_PAYLOAD_TRANSPORT_HEADER, 8, 1);
const ICMP_TYPE: Load = Load::Payload(NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1);
const ND_TARGET: Load = Load::Payload(NFT_PAYLOAD_TRANSPORT_HEADER, 8, 16);

impl Match {
    /// The condition in the kernel's form.
    pub(super) fn raw(&self) -> RawMatch {
        let (needs, load) = self.field();
        RawMatch { needs, load, test: self.test() }
    }

    fn field(&self) -> (Needs, Load) {
        let (ip4, ip6) = (Needs::Network(EtherType::IP4), Needs::Network(EtherType::IP6));
        let arp = Needs::Network(EtherType::ARP);
        let transport = Needs::Transport;
        match self {
            Self::Iif(_) | Self::IifPrefix(_) => (Needs::Nothing, Load::Meta(NFT_META_IIFNAME)),
            Self::Oif(_) | Self::OifPrefix(_) => (Needs::Nothing, Load::Meta(NFT_META_OIFNAME)),
            Self::IifKind(_) => (Needs::Nothing, Load::Meta(NFT_META_IIFKIND)),
            Self::OifKind(_) => (Needs::Nothing, Load::Meta(NFT_META_OIFKIND)),
            Self::OifGroup(_) => (Needs::Nothing, Load::Meta(NFT_META_OIFGROUP)),
            Self::Priority(_) => (Needs::Nothing, Load::Meta(NFT_META_PRIORITY)),
            Self::Protocol(_) => (Needs::Nothing, Load::Meta(NFT_META_PROTOCOL)),
            Self::NfProto(_) => (Needs::Nothing, Load::Meta(NFT_META_NFPROTO)),
            Self::L4Proto(_) => (Needs::Nothing, Load::Meta(NFT_META_L4PROTO)),
            Self::Mark { .. } => (Needs::Nothing, Load::Meta(NFT_META_MARK)),
            Self::EtherSaddr(_) => (Needs::Ether, ETHER_SADDR),
            Self::EtherDaddr(_) => (Needs::Ether, ETHER_DADDR),
            Self::EtherType(_) => (Needs::Ether, ETHER_TYPE),
            Self::Ip4(IpFields::Saddr(_)) => (ip4, IP4_SADDR),
            Self::Ip4(IpFields::Daddr(_)) => (ip4, IP4_DADDR),
            Self::Ip6(IpFields::Saddr(_)) => (ip6, IP6_SADDR),
            Self::Ip6(IpFields::Daddr(_)) => (ip6, IP6_DADDR),
            Self::Fragment4(_) => (ip4, IP4_FRAGMENT),
            Self::Ip6Next(_) => (ip6, IP6_NEXT),
            Self::Fragment6(_) => (ip6, IP6_FRAGMENT),
            Self::FragmentNext(_) => (ip6, Load::Extension(L4Proto::FRAGMENT, 0, 1)),
            Self::FragmentMore => (ip6, Load::Extension(L4Proto::FRAGMENT, 3, 1)),
            Self::FragmentBehind => (ip6, Load::Extension(L4Proto::FRAGMENT, 2, 2)),
            Self::Ip6Length(_) => (ip6, IP6_LENGTH),
            Self::TcpSport(_) => (transport(L4Proto::TCP), SPORT),
            Self::TcpDport(_) => (transport(L4Proto::TCP), DPORT),
            Self::TcpFlags { .. } => (transport(L4Proto::TCP), TCP_FLAGS),
            Self::UdpSport(_) => (transport(L4Proto::UDP), SPORT),
            Self::UdpDport(_) => (transport(L4Proto::UDP), DPORT),
            Self::UdpPayload(_) => (transport(L4Proto::UDP), UDP_PAYLOAD),
            Self::Whole { proto, bytes } => {
                (transport(*proto), Load::Payload(NFT_PAYLOAD_TRANSPORT_HEADER, bytes.saturating_sub(1), 1))
            }
            Self::IcmpType(_) => (transport(L4Proto::ICMP), ICMP_TYPE),
            Self::Icmp6Type(_) => (transport(L4Proto::ICMP6), ICMP_TYPE),
            Self::NdTarget(_) => (transport(L4Proto::ICMP6), ND_TARGET),
            Self::ArpOp(_) => (arp, ARP_OPERATION),
            Self::ArpSender(_) => (arp, ARP_SADDR_ETHER),
            Self::ArpSenderIp(_) => (arp, ARP_SADDR_IP),
            Self::ArpTargetIp(_) => (arp, ARP_DADDR_IP),
            Self::CtState(_) | Self::CtStateNot(_) => (Needs::Nothing, Load::Ct(NFT_CT_STATE)),
            Self::CtStatus(_) => (Needs::Nothing, Load::Ct(NFT_CT_STATUS)),
            Self::FibSaddrType(_) => (Needs::Nothing, Load::FibType(NFTA_FIB_F_SADDR)),
            Self::FibDaddrType(_) => (Needs::Nothing, Load::FibType(NFTA_FIB_F_DADDR)),
            Self::FibDaddrOif(_) => (Needs::Nothing, Load::FibOif(NFTA_FIB_F_DADDR)),
        }
    }

    fn test(&self) -> RawTest {
        match self {
            Self::Iif(test) | Self::Oif(test) | Self::FibDaddrOif(test) => test.raw(),
            Self::IifPrefix(prefix) | Self::OifPrefix(prefix) => prefix.raw(),
            Self::IifKind(test) | Self::OifKind(test) => test.raw(),
            Self::Protocol(test) => test.raw(),
            Self::NfProto(test) => test.raw(),
            Self::L4Proto(test) => test.raw(),
            Self::Mark { mask: u32::MAX, value } | Self::OifGroup(value) | Self::Priority(value) => {
                let value = value.to_ne_bytes().to_vec();
                RawTest::Item { item: RawItem { first: value.clone(), last: value, mask: None }, negate: false }
            }
            Self::Mark { mask, value } => {
                let (mask, value) = (mask.to_ne_bytes().to_vec(), value.to_ne_bytes().to_vec());
                RawTest::Bits { mask, value, negate: false }
            }
            Self::EtherSaddr(test) | Self::EtherDaddr(test) | Self::ArpSender(test) => test.raw(),
            Self::EtherType(test) => test.raw(),
            Self::Ip4(IpFields::Saddr(test) | IpFields::Daddr(test)) => test.raw(),
            Self::Ip6(IpFields::Saddr(test) | IpFields::Daddr(test)) | Self::NdTarget(test) => test.raw(),
            Self::TcpSport(test) | Self::TcpDport(test) | Self::UdpSport(test) | Self::UdpDport(test) => test.raw(),
            Self::Ip6Length(test) => test.raw(),
            Self::Fragment4(part) => part.test4(),
            Self::Ip6Next(test) | Self::FragmentNext(test) => test.raw(),
            Self::FragmentMore => RawTest::Bits { mask: vec![1], value: vec![1], negate: false },
            Self::FragmentBehind => bits(0xfff8, 0, true),
            Self::Fragment6(part) => part.test6(),
            Self::TcpFlags { value, mask } => {
                RawTest::Bits { mask: vec![TcpFlag::all(mask)], value: vec![TcpFlag::all(value)], negate: false }
            }
            Self::UdpPayload(byte) => byte_between(*byte, *byte),
            Self::Whole { .. } => byte_between(0, u8::MAX),
            Self::IcmpType(test) => test.raw(),
            Self::Icmp6Type(test) => test.raw(),
            Self::ArpOp(test) => test.raw(),
            Self::ArpSenderIp(test) | Self::ArpTargetIp(test) => test.raw(),
            Self::CtState(states) => any_bit(CtState::all(states)),
            Self::CtStateNot(states) => {
                let mask = CtState::all(states).to_ne_bytes().to_vec();
                RawTest::Bits { value: vec![0; mask.len()], mask, negate: false }
            }
            Self::CtStatus(status) => any_bit(CtStatus::all(status)),
            Self::FibSaddrType(test) | Self::FibDaddrType(test) => test.raw(),
        }
    }
}

/// At least one of these bits is set.
fn any_bit(bits: u32) -> RawTest {
    let mask = bits.to_ne_bytes().to_vec();
    RawTest::Bits { value: vec![0; mask.len()], mask, negate: true }
}

/// A byte of the packet is at least `first` and at most `last`.
fn byte_between(first: u8, last: u8) -> RawTest {
    RawTest::Item { item: RawItem { first: vec![first], last: vec![last], mask: None }, negate: false }
}
