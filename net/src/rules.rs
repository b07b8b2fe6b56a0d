//! The nftables of a VM: address translation, forwarded ports, and what a guest may send at all.
//! Knows neither facts nor policies.
//!
//! ```text
//! table inet minivmm-VM      forward: no way around the translation; prerouting, output: forwarded ports;
//!                            postrouting: masquerade;
//!                            what is in the guest's reach (see `reach`), and how much of it (see `limits`)
//! table netdev minivmm-VM    a chain on each tap: the guest's own addresses only, nothing that only a gateway says
//! table bridge minivmm-VM    forward: nothing between an isolated card and other VMs
//! ```
//!
//! The guards are in tables of other families because inet tables see neither ARP nor other protocols beside IP. They
//! also drop the packets that a card's services answer, after the services' packet socket has seen them.

pub(crate) mod guard;
mod limits;
mod member;
mod reach;
pub(crate) mod tables;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::identity::alias::Mode;
use crate::kernel::nft::{
    AddrType, Base, Chain, ChainType, Command, CtState, CtStatus, EtherAddr, EtherType, Expr, Family, Hook, Icmp6Type,
    IpFields, Item, L4Proto, Match, Mss, NatPort, NatTarget, NfProto, Policy, Rule, Statement, Table, TableName, Test,
    Verdict,
};
use crate::services::{DHCP_SERVER, DHCP6_SERVER, DNS_PORT, Ipv6Network, PREFIX_LEN};
use crate::spec::{Forward, IfName, Protocol, Switch};
use guard::{
    Guard, ISOLATED, LOOPBACK, LOOPBACK_ADDRESS, OTHER_PROTOCOL, PROTOCOLS, SPOOFED_ARP, SPOOFED_IP, SPOOFED_MAC,
    SPOOFED_ND, drop_as, headers, link, owned::Owned6,
};
use limits::{TOO_FAST, TOO_MANY};
pub use member::Member;
use reach::{METADATA, OUT_OF_REACH, ROUTED_BACK};

/// Priorities of hooks (`NF_IP_PRI_*`, linux/netfilter_ipv4.h).
const RAW: i32 = -300;
const DSTNAT: i32 = -100;
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;

/// Reasons for drops: the names of the counters, beside those of guards.
const UNASKED: &str = "unasked";
const NO_WAY_OUT: &str = "no-way-out";

/// The tables of a VM, as many as its cards need. `tap` gives the tap of a card.
pub(crate) fn tables(
    vm: &str,
    members: &[Member],
    guards: &[Guard],
    tap: impl Fn(usize) -> Option<IfName>,
) -> Vec<Table> {
    let table = |family, counters: &[&str], chains| {
        let name = name(vm, family);
        let counters = counters.iter().map(|name| (*name).to_owned()).collect();
        Table { name, counters, sets: Vec::new(), chains }
    };
    let mut tables = Vec::new();
    if !members.is_empty() {
        let reasons =
            [UNASKED, NO_WAY_OUT, ISOLATED, TOO_MANY, TOO_FAST, LOOPBACK_ADDRESS, METADATA, OUT_OF_REACH, ROUTED_BACK];
        tables.push(Table { sets: limits::sets(members), ..table(Family::Inet, &reasons, routed(members)) });
    }
    let of_members = members.iter().filter_map(|member| Some(guard(member, tap(member.card)?)));
    let chains: Vec<Chain> =
        of_members.chain(guards.iter().filter_map(|guard| Some(guard.chain(tap(guard.card)?)))).collect();
    if !chains.is_empty() {
        let of_guards = guards.iter().filter_map(Owned6::of_guard);
        let sets = members.iter().map(Owned6::of_member).chain(of_guards).map(|owned| owned.set()).collect();
        let table = table(Family::Netdev, &[&guard::COUNTERS[..], &guard::ALWAYS, &[ISOLATED]].concat(), chains);
        tables.push(Table { sets, ..table });
    }
    let isolated = members.iter().filter(|member| member.isolate == Switch::On);
    // The only ports of a network of ours are those of VMs.
    let alone = isolated
        .filter_map(|member| tap(member.card))
        .flat_map(|tap| [Match::iif(&tap), Match::oif(&tap)].map(|passing| drop_as(rule(passing), ISOLATED)));
    let isolated = guards.iter().filter(|guard| guard.isolate == Switch::On);
    let between = isolated.filter_map(|guard| tap(guard.card)).flat_map(|tap| guard::between_taps(&tap));
    let reflecting = members.iter().filter(|member| member.hairpin == Switch::On);
    let reflected = reflecting.filter_map(|member| Some(reflected(member, &tap(member.card)?))).flatten();
    let rules: Vec<Rule> = reflected.chain(alone).chain(between).collect();
    if !rules.is_empty() {
        tables.push(table(Family::Bridge, &[ISOLATED], vec![guard::isolation(rules)]));
    }
    tables
}

/// Commands that replace the rules of members where `after` differs from `before`.
pub(crate) fn changes(vm: &str, before: &[Member], after: &[Member]) -> Vec<Command> {
    let chains = routed(before).into_iter().zip(routed(after));
    let changed = chains.filter(|(old, new)| old.rules != new.rules).map(|(_, new)| new);
    changed.map(|chain| Command::ReplaceRules(name(vm, Family::Inet), chain.name, chain.rules)).collect()
}

/// The families in which a VM can have a table.
pub(crate) const FAMILIES: [Family; 3] = [Family::Inet, Family::Netdev, Family::Bridge];

/// The name of a VM's table.
pub(crate) fn name(vm: &str, family: Family) -> TableName {
    TableName { family, name: format!("minivmm-{vm}") }
}

/// The chains for routed packets.
fn routed(members: &[Member]) -> Vec<Chain> {
    let all = |rules: fn(&Member) -> Vec<Rule>| members.iter().flat_map(rules).collect::<Vec<_>>();
    let mut chains = vec![chain("arriving", ChainType::Filter, Hook::Prerouting, RAW, all(arriving))];
    chains.extend(limits::chains(members));
    chains.extend(reach::chains(members));
    chains.push(chain("forward", ChainType::Filter, Hook::Forward, FILTER, all(forward)));
    let nat = |name: &str, hook, priority, rules| chain(name, ChainType::Nat, hook, priority, rules);
    chains.push(nat("postrouting", Hook::Postrouting, SRCNAT, all(source)));
    if members.iter().any(|member| !member.forward.is_empty()) {
        // Only this host can use a forwarded loopback address: packets to one from elsewhere are not translated.
        let foreign = rule(ip4_daddr(prefix(LOOPBACK))).with(Verdict::Accept);
        let outside: Vec<Rule> = [foreign].into_iter().chain(all(incoming)).collect();
        chains.push(nat("prerouting", Hook::Prerouting, DSTNAT, outside));
        chains.push(nat("output", Hook::Output, DSTNAT, all(incoming)));
    }
    chains
}

fn chain(name: &str, chain_type: ChainType, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    let base = Base { chain_type, hook, priority, policy: Policy::Accept };
    Chain { name: name.to_owned(), base: Some(base), rules }
}

/// Drops packets to the host's loopback addresses, however the frame is wrapped: guards see one tag at most, the kernel
/// removes two. Where a port is forwarded, the kernel would let such packets pass.
fn arriving(member: &Member) -> Vec<Rule> {
    vec![drop_as(rule(Match::iif(&member.bridge)).with(ip4_daddr(prefix(LOOPBACK))), LOOPBACK_ADDRESS)]
}

/// The ingress chain of a card: the frames that its guest may send.
fn guard(member: &Member, tap: IfName) -> Chain {
    let Member { mac, address, subnet, .. } = member;
    let own_mac = EtherAddr::from(*mac);
    let ip4 = || rule(Match::EtherType(Test::is(EtherType::IP4)));
    let ip6 = || rule(Match::EtherType(Test::is(EtherType::IP6)));
    let mut rules = vec![
        drop_as(rule(Match::EtherSaddr(Test::is_not(own_mac))), SPOOFED_MAC),
        // A tagged frame has the type of its tag.
        drop_as(rule(Match::EtherType(Test::NotIn(PROTOCOLS.map(Item::One).to_vec()))), OTHER_PROTOCOL),
        // Answered by the services.
        ip4().with(ip4_daddr(Test::is(subnet.gateway()))).with(Match::TcpDport(Test::is(DNS_PORT))).with(Verdict::Drop),
        // Most frames end here.
        rule(ip4_saddr(Test::is(*address)))
            .with(Match::L4Proto(Test::is(L4Proto::TCP)))
            .with(ip4_daddr(Test::IsNot(Item::Prefix(LOOPBACK.0, LOOPBACK.1))))
            .with(Verdict::Accept),
        guard::later4(rule(ip4_saddr(Test::is(*address)))),
        ip4().with(Match::UdpDport(Test::is(DHCP_SERVER))).with(Verdict::Drop),
        ip4().with(ip4_daddr(Test::is(subnet.gateway()))).with(Match::UdpDport(Test::is(DNS_PORT))).with(Verdict::Drop),
    ];
    rules.extend(guard::no_dhcp_server(ip4));
    rules.extend([
        drop_as(rule(ip4_saddr(Test::is_not(*address))), SPOOFED_IP),
        drop_as(rule(ip4_daddr(prefix(LOOPBACK))), LOOPBACK_ADDRESS),
        ip4().with(Verdict::Accept),
        drop_as(rule(Match::ArpSender(Test::is_not(own_mac))), SPOOFED_ARP),
        // An ARP probe asks from no address (RFC 5227 2.1.1).
        drop_as(
            rule(Match::ArpSenderIp(Test::NotIn(vec![Item::One(*address), Item::One(Ipv4Addr::UNSPECIFIED)]))),
            SPOOFED_ARP,
        ),
        rule(Match::EtherType(Test::is(EtherType::ARP))).with(Verdict::Accept),
    ]);
    let owned = Owned6::of_member(member);
    rules.push(owned.source());
    rules.extend(headers::fragments6(&Verdict::Accept, headers::MALFORMED));
    rules.push(guard::no_router());
    rules.extend(guard::no_dhcp6_server(ip6));
    if member.antispoof == Switch::On {
        rules.extend(owned.claims());
    }
    rules.extend(member.ipv6.into_iter().flat_map(gateway6));
    rules.extend(headers::whole_ip6());
    if member.antispoof == Switch::Off {
        // Packets that the services answer and those to loopback addresses are dropped all the same.
        let reasons = guard::COUNTERS.map(|reason| Expr::from(Statement::CountIn(reason.to_owned())));
        rules.retain(|rule| !rule.exprs.iter().any(|expr| reasons.contains(expr)));
        // There are no VLANs on a network of ours.
        rules.splice(..0, [link::no_bpdu(), link::no_tag()]);
        rules.splice(..0, reach::tag(member).map(|tag| rule(Statement::SetPriority(tag))));
    }
    guard::ingress(member.card, tap, rules)
}

/// Rules for a hairpin port, which sends frames back: only those translated for its own guest pass. A guest that hears
/// its own duplicate address probes believes that the address is taken.
fn reflected(member: &Member, tap: &IfName) -> [Rule; 2] {
    let own = EtherAddr::from(member.mac);
    let back = || rule(Match::iif(tap)).with(Match::oif(tap));
    [back().with(Match::EtherDaddr(Test::is_not(own))).with(Verdict::Drop), back().with(Verdict::Accept)]
}

/// Rules for packets between the network and the rest of the world.
fn forward(member: &Member) -> Vec<Rule> {
    let Member { bridge, address, .. } = member;
    let (inward, outward) = ([Match::oif(bridge), iif_not(bridge)], [Match::iif(bridge), oif_not(bridge)]);
    let from = |matches: [Match; 2]| matches.into_iter().fold(Rule::new(), Rule::with);
    let mut rules = if member.isolate == Switch::On { within(member) } else { Vec::new() };
    rules.extend(reach::forward(member));
    if member.mode != Mode::Nat {
        rules.extend([drop_as(from(outward), NO_WAY_OUT), drop_as(from(inward), NO_WAY_OUT)]);
        return rules;
    }
    let clamp = |rule: Rule| rule.with(Match::tcp_syn()).with(Statement::SetMss(Mss::RouteMtu));
    let inward = || from(inward.clone()).with(ip4_daddr(Test::is(*address)));
    rules.extend([
        clamp(from(outward).with(ip4_saddr(Test::is(*address)))),
        clamp(inward()),
        inward().with(Match::CtState(vec![CtState::Established, CtState::Related])).with(Verdict::Accept),
        inward().with(Match::CtStatus(vec![CtStatus::Dnat])).with(Verdict::Accept),
        drop_as(inward(), UNASKED),
    ]);
    rules.extend(member.ipv6.into_iter().flat_map(|network| forward6(bridge, network)));
    rules
}

/// Drops packets that the host routes between siblings, as by a forwarded port. The guest itself may use its own.
fn within(member: &Member) -> Vec<Rule> {
    let Member { bridge, address, .. } = member;
    let within = || rule(Match::iif(bridge)).with(Match::oif(bridge));
    let (own, other) = (|| Test::is(*address), || Test::is_not(*address));
    vec![
        drop_as(within().with(ip4_saddr(own())).with(ip4_daddr(other())), ISOLATED),
        drop_as(within().with(ip4_daddr(own())).with(ip4_saddr(other())), ISOLATED),
        // Which IPv6 address is whose only the guests know. Siblings that are not isolated need no router.
        drop_as(within().with(Match::NfProto(Test::is(NfProto::IP6))), ISOLATED),
    ]
}

/// Rules for packets to the gateway that the services answer, and for those that only the gateway itself sends.
fn gateway6(network: Ipv6Network) -> [Rule; 6] {
    let ip6 = || rule(Match::EtherType(Test::is(EtherType::IP6)));
    let gateways = || Test::any([network.gateway, network.link_local]);
    let asked = || rule(Match::Ip6(IpFields::Daddr(gateways())));
    let claim = rule(Match::Icmp6Type(Test::is(Icmp6Type::NEIGHBOR_ADVERT))).with(Match::NdTarget(gateways()));
    [
        ip6().with(Match::Icmp6Type(Test::is(Icmp6Type::ROUTER_SOLICIT))).with(Verdict::Drop),
        ip6().with(Match::UdpDport(Test::is(DHCP6_SERVER))).with(Verdict::Drop),
        asked().with(Match::UdpDport(Test::is(DNS_PORT))).with(Verdict::Drop),
        asked().with(Match::TcpDport(Test::is(DNS_PORT))).with(Verdict::Drop),
        drop_as(rule(Match::Ip6(IpFields::Saddr(gateways()))), SPOOFED_IP),
        drop_as(claim, SPOOFED_ND),
    ]
}

/// The forward rules for IPv6. They cover the whole network, because guests choose their own addresses there.
fn forward6(bridge: &IfName, network: Ipv6Network) -> [Rule; 5] {
    let own = || Test::prefix6(network.prefix, PREFIX_LEN);
    let outward = rule(Match::iif(bridge)).with(oif_not(bridge)).with(Match::Ip6(IpFields::Saddr(own())));
    let inward = || rule(Match::oif(bridge)).with(iif_not(bridge)).with(Match::Ip6(IpFields::Daddr(own())));
    let clamp = |rule: Rule| rule.with(Match::tcp_syn()).with(Statement::SetMss(Mss::RouteMtu));
    let answers = Match::CtState(vec![CtState::Established, CtState::Related]);
    [
        clamp(outward),
        clamp(inward()),
        inward().with(answers).with(Verdict::Accept),
        // By a forwarded port, also one of another VM.
        inward().with(Match::CtStatus(vec![CtStatus::Dnat])).with(Verdict::Accept),
        drop_as(inward(), UNASKED),
    ]
}

/// Rules that masquerade the source of packets.
fn source(member: &Member) -> Vec<Rule> {
    let Member { bridge, address, subnet, .. } = member;
    if member.mode != Mode::Nat {
        return Vec::new();
    }
    let mut rules = vec![rule(ip4_saddr(Test::is(*address))).with(oif_not(bridge)).with(Statement::Masquerade(None))];
    if let Some(network) = member.ipv6 {
        let own = Match::Ip6(IpFields::Saddr(Test::prefix6(network.prefix, PREFIX_LEN)));
        rules.push(rule(own).with(oif_not(bridge)).with(Statement::Masquerade(None)));
    }
    if !member.forward.is_empty() {
        // Otherwise clients of a forwarded port on the network itself, or on the host's loopback, could not be
        // answered.
        for near in [(subnet.network(), subnet.prefix_len()), LOOPBACK] {
            rules.push(
                rule(Match::oif(bridge))
                    .with(ip4_saddr(prefix(near)))
                    .with(ip4_daddr(Test::is(*address)))
                    .with(Match::CtStatus(vec![CtStatus::Dnat]))
                    .with(Statement::Masquerade(None)),
            );
        }
        if let (Some(network), Some(own)) = (member.ipv6, member.address6) {
            rules.push(
                rule(Match::oif(bridge))
                    .with(Match::Ip6(IpFields::Saddr(Test::prefix6(network.prefix, PREFIX_LEN))))
                    .with(Match::Ip6(IpFields::Daddr(Test::is(own))))
                    .with(Match::CtStatus(vec![CtStatus::Dnat]))
                    .with(Statement::Masquerade(None)),
            );
        }
    }
    rules
}

/// Rules that lead ports of the host to the guest.
fn incoming(member: &Member) -> Vec<Rule> {
    let lead = |forward: &Forward, to_host: Rule, addr: IpAddr| {
        let (ports, proto) = (Test::range(forward.host_port, forward.last_host_port()), proto(forward.protocol));
        let port = match forward.protocol {
            Protocol::Tcp => Match::TcpDport(ports),
            Protocol::Udp => Match::UdpDport(ports),
        };
        let to = NatPort::shift(proto, forward.host_port, forward.guest_port, forward.count);
        to_host.with(port).with(Statement::Dnat(NatTarget { addr, port: to }))
    };
    let local = || Match::FibDaddrType(Test::is(AddrType::LOCAL));
    let leads = |forward: &Forward| {
        let ip4 = lead(
            forward,
            rule(forward.address.map_or_else(local, |own| ip4_daddr(Test::is(own)))),
            member.address.into(),
        );
        let address6 = member.address6.filter(|_| forward.address.is_none());
        // Packets from ::1 never leave a host: IPv6 has no route_localnet.
        let ip6 = rule(Match::Ip6(IpFields::Daddr(Test::is_not(Ipv6Addr::LOCALHOST)))).with(local());
        [Some(ip4), address6.map(|address| lead(forward, ip6, address.into()))]
    };
    member.forward.iter().flat_map(leads).flatten().collect()
}

fn proto(protocol: Protocol) -> L4Proto {
    match protocol {
        Protocol::Tcp => L4Proto::TCP,
        Protocol::Udp => L4Proto::UDP,
    }
}

fn rule(expr: impl Into<Expr>) -> Rule {
    Rule::new().with(expr)
}

fn prefix((address, len): (Ipv4Addr, u8)) -> Test<Ipv4Addr> {
    Test::prefix4(address, len)
}

fn ip4_saddr(test: Test<Ipv4Addr>) -> Match {
    Match::Ip4(IpFields::Saddr(test))
}

fn ip4_daddr(test: Test<Ipv4Addr>) -> Match {
    Match::Ip4(IpFields::Daddr(test))
}

fn iif_not(name: &IfName) -> Match {
    Match::Iif(Test::is_not(name.clone()))
}

fn oif_not(name: &IfName) -> Match {
    Match::Oif(Test::is_not(name.clone()))
}
