//! IPv6 packets whose headers cannot be seen: a filter that cannot tell what a packet is does not let it through.
//!
//! A first fragment that ends before the header above IP hides what the packet is until it is put together, behind
//! the filter. So it has to have that header (RFC 7112 5), and a router advertisement or an answer of a DHCP server
//! cannot hide in fragments (RFC 7113 2.2). nf_tables finds the header behind any number of others, but in the frame,
//! not in the packet: what is behind its end counts, too. So the fragment header is to be the first and the only one,
//! and the length has to take in the header above. Packets that are not cut may have any headers: receivers see the
//! same as the filter, or nothing. Later fragments pass: without the first they are nothing.
//!
//! Proper fragments with other extension headers are lost. The Internet drops them as well (RFC 7872).

use super::drop_as;
use crate::kernel::nft::{EtherType, Fragment, Item, L4Proto, Match, Rule, Test, Verdict};

/// Reason for drops: the name of the counter.
pub(crate) const MALFORMED: &str = "malformed";

/// Bytes of a TCP header at least (RFC 9293 3.1), of a UDP header (RFC 768), and of the shortest ICMP message (RFC
/// 792, RFC 4443 2.1: an error or an echo).
const TCP_BYTES: u32 = 20;
const UDP_BYTES: u32 = 8;
const ICMP_BYTES: u32 = 8;

/// Matches if the header above IP is whole, for protocols that filters look into.
pub(crate) fn whole(proto: L4Proto) -> Match {
    let bytes = match proto {
        L4Proto::TCP => TCP_BYTES,
        L4Proto::UDP => UDP_BYTES,
        _ => ICMP_BYTES,
    };
    Match::Whole { proto, bytes }
}

/// Matches if a protocol above IP has been found.
pub(crate) fn found() -> Match {
    Match::L4Proto(Test::Is(Item::Range(L4Proto(0), L4Proto(u8::MAX))))
}

/// Extension headers (RFC 8200 4, RFC 4302, RFC 6275, RFC 7401, RFC 5533).
const EXTENSIONS: [u8; 8] = [0, 43, 44, 51, 60, 135, 139, 140];

/// Bytes of the fragment header (RFC 8200 4.5).
const FRAGMENT_BYTES: u32 = 8;

/// Decides on IPv6 fragments, except first ones that have their header. `later` is the verdict on later ones: no other
/// rule may look at them, because the kernel takes their payload for a header (`nft_payload_fast_eval`).
pub(crate) fn fragments6(later: &Verdict, reason: &str) -> Vec<Rule> {
    let ip6 = || Rule::new().with(Match::Protocol(Test::is(EtherType::IP6)));
    let direct = || ip6().with(Match::Ip6Next(Test::is(L4Proto::FRAGMENT)));
    let others = || EXTENSIONS.map(L4Proto).into_iter().filter(|next| *next != L4Proto::FRAGMENT);
    let elsewhere = || ip6().with(Match::Ip6Next(Test::any(others())));
    let first = || direct().with(Match::Fragment6(Fragment::First));
    let least = u16::try_from(FRAGMENT_BYTES + TCP_BYTES).unwrap_or(u16::MAX);
    vec![
        drop_as(elsewhere().with(Match::FragmentMore), reason),
        drop_as(elsewhere().with(Match::FragmentBehind), reason),
        direct().with(Match::Fragment6(Fragment::Later)).with(later.clone()),
        drop_as(first().with(Match::FragmentNext(Test::any(EXTENSIONS.map(L4Proto)))), reason),
        drop_as(first().with(Match::Ip6Length(Test::range(0, least - 1))), reason),
    ]
}

/// An IPv6 packet with the whole header of this protocol, and no other.
pub(crate) fn plain6(proto: L4Proto) -> Rule {
    Rule::new().with(Match::Ip6Next(Test::is(proto))).with(whole(proto))
}

/// Protocols above IPv6 that filters look into.
pub(crate) const SEEN6: [L4Proto; 3] = [L4Proto::TCP, L4Proto::UDP, L4Proto::ICMP6];

/// The end of a guard's chain, behind [`fragments6`]: decides on all IPv6 packets that come there.
pub(crate) fn whole_ip6() -> Vec<Rule> {
    let ip6 = || Rule::new().with(Match::Protocol(Test::is(EtherType::IP6)));
    let mut rules: Vec<Rule> = SEEN6.iter().map(|proto| plain6(*proto).with(Verdict::Accept)).collect();
    rules.extend(SEEN6.iter().map(|proto| ip6().with(whole(*proto)).with(Verdict::Accept)));
    rules.push(drop_as(ip6().with(Match::L4Proto(Test::any(SEEN6))), MALFORMED));
    rules.push(ip6().with(found()).with(Verdict::Accept));
    rules.push(drop_as(ip6(), MALFORMED));
    rules
}
