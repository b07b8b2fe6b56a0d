//! Rules for `reach=` and `metadata=`: where a guest gets beyond its network.
//!
//! ```text
//! prerouting            --from the guest, not an answer-->  fromN: metadata? too many connections? (see `limits`)
//! prerouting, after it  --a guest that forges-->            offN: not to this host or network  -->  reachN
//! input                 --from the guest, not an answer-->  hostN: the host's own addresses
//! forward, back         --from the guest, not an answer-->  routed-back
//! forward, outward      --from the guest, not an answer-->  reachN: private networks, the world
//! ```
//!
//! A guest that can only be itself is known by its MAC address. Frames of one that can forge (`antispoof=off`) get a
//! number on its tap that stays with them inside the kernel (`meta priority`), until IPv4 is forwarded. So for such a
//! guest the rules decide before routing which packets are forwarded.
//!
//! Packets to places out of reach are refused, not dropped in silence: a client that tries (cloud-init looks for
//! metadata) goes on at once.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::identity::alias::Mode;
use crate::identity::alias::OUR_GROUP;
use crate::kernel::nft::{
    AddrType, Base, Chain, ChainType, CtState, CtStatus, EtherAddr, Hook, Icmp6Type, IcmpType, IpFields, Item, Match,
    Policy, Reject, Rule, Statement, Test, Verdict,
};
use crate::rules::guard::drop_as;
use crate::rules::limits::{self, MANGLE};
use crate::rules::member::Member;
use crate::services::PREFIX_LEN;
use crate::spec::{Place, Switch};

/// Names of the counters.
pub(crate) const METADATA: &str = "metadata";
pub(crate) const OUT_OF_REACH: &str = "out-of-reach";
pub(crate) const ROUTED_BACK: &str = "routed-back";

/// Addresses at which clouds tell a machine its identity and credentials. Most clouds use a link-local address (RFC
/// 3927), which no router is to forward; others: Alibaba 100.100.100.200, Azure's WireServer 168.63.129.16, Oracle's
/// older cloud 192.0.0.192.
const METADATA4: [Item<Ipv4Addr>; 4] = [
    Item::Prefix(Ipv4Addr::new(169, 254, 0, 0), 16),
    Item::One(Ipv4Addr::new(100, 100, 100, 200)),
    Item::One(Ipv4Addr::new(168, 63, 129, 16)),
    Item::One(Ipv4Addr::new(192, 0, 0, 192)),
];

/// The same for IPv6: link-local ones, and Amazon's fd00:ec2::254 with what is beside it, Google's fd20:ce::254,
/// Oracle's fd00:c1::a9fe:a9fe, Scaleway's fd00:42::42, Akamai's fd00:a9fe:a9fe::1; and 169.254.0.0/16 by a translator
/// (RFC 6052).
const METADATA6: [Item<Ipv6Addr>; 7] = [
    Item::Prefix(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    Item::Prefix(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0), 32),
    Item::Prefix(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0), 32),
    Item::One(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
    Item::One(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
    Item::One(Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1)),
    Item::Prefix(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xa9fe, 0), 112),
];

/// Private addresses: RFC 1918 and RFC 6598, RFC 4193.
const PRIVATE4: [Item<Ipv4Addr>; 4] = [
    Item::Prefix(Ipv4Addr::new(10, 0, 0, 0), 8),
    Item::Prefix(Ipv4Addr::new(172, 16, 0, 0), 12),
    Item::Prefix(Ipv4Addr::new(192, 168, 0, 0), 16),
    Item::Prefix(Ipv4Addr::new(100, 64, 0, 0), 10),
];
const PRIVATE6: Item<Ipv6Addr> = Item::Prefix(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7);

/// Groups of the link and beyond (RFC 4291 2.7).
const MULTICAST6: Item<Ipv6Addr> = Item::Prefix(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8);

/// After the translation of destinations, and where filters are.
const AFTER_DSTNAT: i32 = -99;
const FILTER: i32 = 0;

/// Messages that the gateway accepts on its own link: neighbour discovery and multicast listener discovery.
const LINK6: [Icmp6Type; 6] = [
    Icmp6Type::NEIGHBOR_SOLICIT,
    Icmp6Type::NEIGHBOR_ADVERT,
    Icmp6Type::MLD_QUERY,
    Icmp6Type::MLD_REPORT,
    Icmp6Type::MLD_DONE,
    Icmp6Type::MLD2_REPORT,
];

/// The chains for members; the jump from the forward chain is in [`forward`].
pub(crate) fn chains(members: &[Member]) -> Vec<Chain> {
    let mut chains: Vec<Chain> = Vec::new();
    let mut bases = [("prerouting-from", Hook::Prerouting, MANGLE), ("prerouting-off", Hook::Prerouting, AFTER_DSTNAT)]
        .map(|(name, hook, priority)| base(name, hook, priority));
    let mut input = base("input", Hook::Input, FILTER);
    for member in members {
        let own = |name: &str, rules| Chain { name: format!("{name}{}", member.card), base: None, rules };
        let jump = |name: &str| Verdict::Jump(format!("{name}{}", member.card));
        let early = early(member);
        if !early.is_empty() {
            chains.push(own("from", early));
            bases[0].rules.push(from(member).with(jump("from")));
        }
        if !member.reach.has(Place::Host) {
            chains.push(own("host", local(member)));
            input.rules.push(from(member).with(jump("host")));
        }
        if restricts_ways_out(member) {
            chains.push(own("reach", outward(member)));
            if member.antispoof == Switch::Off {
                chains.push(own("off", [elsewhere(member), vec![Rule::new().with(jump("reach"))]].concat()));
                bases[1].rules.push(from(member).with(jump("off")));
            }
        }
    }
    chains.push(Chain { name: ROUTED_BACK.to_owned(), base: None, rules: routed_back() });
    chains.extend(bases.into_iter().chain([input]).filter(|base| !base.rules.is_empty()));
    chains
}

/// The rules of a member in the forward chain, before all others.
pub(crate) fn forward(member: &Member) -> Vec<Rule> {
    let bridge = &member.bridge;
    let back = begun(Rule::new().with(Match::iif(bridge)).with(Match::oif(bridge)))
        .with(Match::EtherDaddr(Test::is(EtherAddr::from(member.gateway_mac))));
    let mut rules = vec![back.with(Verdict::Jump(ROUTED_BACK.to_owned()))];
    if restricts_ways_out(member) && member.antispoof == Switch::On {
        let out = from(member).with(Match::Oif(Test::is_not(bridge.clone())));
        rules.push(out.with(Verdict::Jump(format!("reach{}", member.card))));
    }
    rules
}

/// The number that a tap gives the frames of a guest that may forge. It follows from the guest's MAC address; its last
/// bits are those of ordinary traffic for a queue that looks at them (`TC_PRIO_BESTEFFORT`).
pub(crate) fn tag(member: &Member) -> Option<u32> {
    let [_, _, a, b, c, d] = member.mac.octets();
    (member.antispoof == Switch::Off).then(|| u32::from_be_bytes([a, b, c, d]) << 4 | 1 << 31)
}

fn restricts_ways_out(member: &Member) -> bool {
    let all = [Place::World, Place::Private, Place::Host].iter().all(|place| member.reach.has(*place));
    member.mode == Mode::Nat && !all
}

/// Matches packets from the member that belong to no known connection.
fn from(member: &Member) -> Rule {
    let known = match tag(member) {
        Some(tag) => Match::Priority(tag),
        None => Match::EtherSaddr(Test::is(EtherAddr::from(member.mac))),
    };
    begun(Rule::new().with(Match::iif(&member.bridge)).with(known))
}

fn begun(rule: Rule) -> Rule {
    rule.with(Match::CtStateNot(vec![CtState::Established, CtState::Related]))
}

/// Rules that precede the host's own address translation.
fn early(member: &Member) -> Vec<Rule> {
    let mut rules = Vec::new();
    if member.metadata == Switch::Off {
        rules.push(refuse(daddr4(Test::In(METADATA4.to_vec())), METADATA));
        // Link-local addresses are for the link, and never forwarded.
        rules.push(refuse(daddr6(Test::In(METADATA6[1..].to_vec())), METADATA));
    }
    rules.extend(limits::jump(member));
    rules
}

/// Rules for packets to this host: its gateway is a neighbour, and answers a ping.
fn local(member: &Member) -> Vec<Rule> {
    let echo6 = Match::Icmp6Type(Test::is(Icmp6Type::ECHO_REQUEST));
    let ping6 = member.ipv6.map(|network| daddr6(Test::any([network.gateway, network.link_local])).with(echo6));
    let rules = [
        Some(
            daddr4(Test::is(member.subnet.gateway()))
                .with(Match::IcmpType(Test::is(IcmpType::ECHO_REQUEST)))
                .with(Verdict::Return),
        ),
        Some(Rule::new().with(Match::Icmp6Type(Test::any(LINK6))).with(Verdict::Return)),
        ping6.map(|rule| rule.with(Verdict::Return)),
        Some(refuse(Rule::new().with(Match::FibDaddrType(Test::is(AddrType::LOCAL))), OUT_OF_REACH)),
        // Packets for all on the link.
        Some(drop_as(Rule::new(), OUT_OF_REACH)),
    ];
    rules.into_iter().flatten().collect()
}

/// Rules for packets that leave the network.
fn outward(member: &Member) -> Vec<Rule> {
    let dnat = || Rule::new().with(Match::CtStatus(vec![CtStatus::Dnat]));
    let mut rules = Vec::new();
    if member.metadata == Switch::On {
        rules.push(daddr4(Test::In(METADATA4.to_vec())).with(Verdict::Return));
        rules.push(daddr6(Test::In(METADATA6.to_vec())).with(Verdict::Return));
    }
    // A port of the host that leads elsewhere, such as a container's, counts as the host's; those of other VMs do not.
    rules.push(dnat().with(Match::OifGroup(OUR_GROUP)).with(Verdict::Return));
    rules.push(if member.reach.has(Place::Host) { dnat().with(Verdict::Return) } else { refuse(dnat(), OUT_OF_REACH) });
    if !member.reach.has(Place::Private) {
        rules.push(refuse(daddr4(Test::In(PRIVATE4.to_vec())), OUT_OF_REACH));
        rules.push(refuse(daddr6(Test::Is(PRIVATE6)), OUT_OF_REACH));
    }
    if !member.reach.has(Place::World) {
        rules.push(refuse(daddr4(Test::NotIn(PRIVATE4.to_vec())), OUT_OF_REACH));
        rules.push(refuse(daddr6(Test::IsNot(PRIVATE6)), OUT_OF_REACH));
    }
    rules
}

/// Rules that let packets pass that do not leave the network, as far as that can be told before routing.
fn elsewhere(member: &Member) -> Vec<Rule> {
    let own4 = Test::prefix4(member.subnet.network(), member.subnet.prefix_len());
    let prefix = member.ipv6.map(|network| Item::Prefix(network.prefix, PREFIX_LEN));
    let own6 = Test::In([METADATA6[0].clone(), MULTICAST6].into_iter().chain(prefix).collect());
    let local = Match::FibDaddrType(Test::any([AddrType::LOCAL, AddrType::BROADCAST, AddrType::MULTICAST]));
    [Rule::new().with(local), daddr4(own4), daddr6(own6)].map(|rule| rule.with(Verdict::Return)).to_vec()
}

/// Drops packets that the host would route back into their own network. Its guests reach each other without a router;
/// packets to addresses that no guest has would fill the host's neighbour table.
fn routed_back() -> Vec<Rule> {
    vec![
        Rule::new().with(Match::CtStatus(vec![CtStatus::Dnat])).with(Verdict::Return),
        drop_as(Rule::new(), ROUTED_BACK),
    ]
}

fn refuse(rule: Rule, reason: &str) -> Rule {
    rule.with(Statement::CountIn(reason.to_owned())).with(Statement::Reject(Reject::AdminProhibited))
}

fn daddr4(test: Test<Ipv4Addr>) -> Rule {
    Rule::new().with(Match::Ip4(IpFields::Daddr(test)))
}

fn daddr6(test: Test<Ipv6Addr>) -> Rule {
    Rule::new().with(Match::Ip6(IpFields::Daddr(test)))
}

fn base(name: &str, hook: Hook, priority: i32) -> Chain {
    let base = Base { chain_type: ChainType::Filter, hook, priority, policy: Policy::Accept };
    Chain { name: name.to_owned(), base: Some(base), rules: Vec::new() }
}
