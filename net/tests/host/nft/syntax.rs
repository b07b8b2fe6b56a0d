//! Every condition and every statement: `nft` lists what we print.

use std::net::Ipv4Addr;

use net::nft::{
    AddrType, ArpOp, Chain, ChainType, CtState, CtStatus, Elements, EtherAddr, EtherType, Expr, Family, Field,
    Fragment, Hook, Icmp6Type, IcmpType, IpFields, Item, KeyPart, L4Proto, Limit, LinkKind, Match, Mss, NatPort,
    NatTarget, NfProto, Per, Reject, Rule, Set, Statement, Table, TableName, TcpFlag, Test, Verdict,
};

use super::{applied, base, inet, table};
use crate::Case;
use crate::lan::sh;

pub(super) const CASES: &[Case] = &[
    ("nft_conditions_read_back_as_they_are_printed", conditions),
    ("nft_statements_read_back_as_they_are_printed", statements),
    ("nft_translations_read_back_as_they_are_printed", translations),
    ("nft_netdev_rules_read_back_as_they_are_printed", netdev),
    ("nft_keys_of_several_fields_read_back_as_they_are_printed", keys),
    ("nft_bridge_rules_read_back_as_they_are_printed", bridge),
    ("nft_target_of_a_neighbour_solicitation_is_where_it_should_be", neighbour_target),
    ("nft_sets_counters_and_chains_read_back_as_they_are_printed", objects),
];

const MAC: EtherAddr = EtherAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

fn rule(exprs: impl IntoIterator<Item = Expr>) -> Rule {
    Rule { exprs: exprs.into_iter().collect(), comment: None }
}

/// A text without insignificant differences: white space, the owner's process, and names in older versions.
fn normal(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split(" # progname").next().unwrap_or(line));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).filter(|line| !line.is_empty()).collect()
}

/// Applies a table and compares what `nft` lists with what we print.
fn read_back(table: &Table) {
    let _socket = applied(table);
    let listed = sh(&format!("nft -y -s list table {}", table.name));
    assert_eq!(normal(&listed), normal(&table.to_string()), "listed on the left:\n{listed}");
}

fn one_rule_each(conditions: Vec<Match>) -> Vec<Rule> {
    conditions.into_iter().map(|condition| rule([condition.into(), Verdict::Accept.into()])).collect()
}

fn conditions() {
    let (v4, v6) = (Ipv4Addr::new(10, 0, 0, 0), "fd00:1::".parse().unwrap());
    let name = |name: &str| name.parse().unwrap();
    let mut conditions = vec![
        Match::iif(&name("tap0")),
        Match::Iif(Test::any([name("a"), name("b")])),
        Match::Oif(Test::is_not(name("br0"))),
        Match::IifKind(Test::is(LinkKind("tun".to_owned()))),
        Match::OifKind(Test::is_not(LinkKind("bridge".to_owned()))),
        Match::NfProto(Test::is(NfProto::IP6)),
        Match::L4Proto(Test::is(L4Proto::UDP)),
        Match::L4Proto(Test::any([L4Proto::TCP, L4Proto::UDP])),
        Match::Mark { mask: u32::MAX, value: 7 },
        Match::Mark { mask: 0xff00, value: 0x100 },
        Match::OifGroup(28022),
        Match::Priority(0x6d76_0010),
        Match::EtherSaddr(Test::is(MAC)),
        Match::EtherDaddr(Test::is_not(EtherAddr::BROADCAST)),
        Match::EtherType(Test::is(EtherType(0x88cc))),
        Match::Ip4(IpFields::Saddr(Test::is(Ipv4Addr::LOCALHOST))),
        Match::Ip4(IpFields::Saddr(Test::prefix4(v4, 24))),
        Match::Ip4(IpFields::Daddr(Test::prefix4(v4, 23))),
        Match::Ip4(IpFields::Daddr(Test::IsNot(Item::Prefix(v4, 8)))),
        Match::Ip4(IpFields::Daddr(Test::range(v4, Ipv4Addr::new(10, 0, 0, 9)))),
        Match::Ip4(IpFields::Saddr(Test::In(vec![Item::Prefix(v4, 24), Item::One(Ipv4Addr::new(10, 1, 0, 1))]))),
        Match::Ip6(IpFields::Saddr(Test::prefix6(v6, 64))),
        Match::Ip6(IpFields::Saddr(Test::NotIn(vec![Item::Prefix(v6, 64), Item::One("fe80::1".parse().unwrap())]))),
        Match::Ip6(IpFields::Daddr(Test::is("fd00:1::2".parse().unwrap()))),
    ];
    conditions.extend(transport_conditions());
    read_back(&table(inet("x"), vec![base("c", ChainType::Filter, Hook::Forward, 0, one_rule_each(conditions))]));
}

fn transport_conditions() -> Vec<Match> {
    vec![
        Match::TcpSport(Test::is(80)),
        Match::TcpDport(Test::range(80, 90)),
        Match::TcpDport(Test::IsNot(Item::Range(80, 90))),
        Match::TcpDport(Test::In(vec![Item::One(22), Item::Range(8000, 8010), Item::One(65535)])),
        Match::TcpDport(Test::any([22, 80])),
        Match::tcp_syn(),
        Match::UdpSport(Test::is(67)),
        Match::UdpDport(Test::is_not(53)),
        Match::IcmpType(Test::is(IcmpType::ECHO_REQUEST)),
        Match::Icmp6Type(Test::is(Icmp6Type::NEIGHBOR_ADVERT)),
        Match::Icmp6Type(Test::any([Icmp6Type::NEIGHBOR_SOLICIT, Icmp6Type::NEIGHBOR_ADVERT])),
        Match::CtState(vec![CtState::Established, CtState::Related]),
        Match::CtStateNot(vec![CtState::New]),
        Match::CtStatus(vec![CtStatus::Dnat]),
        Match::FibDaddrType(Test::is(AddrType::LOCAL)),
        Match::FibSaddrType(Test::is_not(AddrType::UNICAST)),
    ]
}

fn statements() {
    let limit = |over, packets, per, burst| Statement::Limit(Limit { over, packets, per, burst });
    let statements = vec![
        Statement::Counter,
        limit(false, 10, Per::Second, 20),
        limit(true, 100, Per::Minute, 7),
        Statement::CtCountOver(10),
        Statement::SetMark(1),
        Statement::SetPriority(0x8000_0010),
        Statement::SetPriority(0),
        Statement::Reject(Reject::AdminProhibited),
        Statement::Reject(Reject::HostUnreachable),
        Statement::Reject(Reject::NoRoute),
    ];
    let mut rules: Vec<Rule> = statements.into_iter().map(|statement| rule([statement.into()])).collect();
    for verdict in [Verdict::Drop, Verdict::Return, Verdict::Continue, Verdict::Jump("d".to_owned())] {
        rules.push(rule([verdict.into()]));
    }
    for mss in [Mss::RouteMtu, Mss::Bytes(1360)] {
        rules.push(rule([Match::tcp_syn().into(), Statement::SetMss(mss).into()]));
    }
    rules.push(rule([Match::TcpDport(Test::is(22)).into(), Statement::Reject(Reject::TcpReset).into()]));
    rules.push(rule([Verdict::Goto("d".to_owned()).into()]).comment("a \"comment\""));
    let chains = vec![
        Chain { name: "d".to_owned(), base: None, rules: vec![rule([Verdict::Accept.into()])] },
        base("c", ChainType::Filter, Hook::Forward, -5, rules),
        base("r", ChainType::Filter, Hook::Prerouting, -300, vec![rule([Statement::NoTrack.into()])]),
        base("o", ChainType::Route, Hook::Output, -150, Vec::new()),
    ];
    read_back(&table(inet("x"), chains));
}

fn translations() {
    let v4 = |port| NatTarget { addr: Ipv4Addr::new(10, 0, 0, 2).into(), port };
    let v6 = |port| NatTarget { addr: "fd00::2".parse().unwrap(), port };
    let tcp = |statement: Statement| rule([Match::TcpDport(Test::range(8000, 8002)).into(), statement.into()]);
    let map = NatPort::shift(L4Proto::TCP, 8000, 9000, 3);
    let destination = vec![
        tcp(Statement::Dnat(v4(NatPort::Keep))),
        tcp(Statement::Dnat(v4(NatPort::Is(80)))),
        tcp(Statement::Dnat(v4(NatPort::OneOf(80, 90)))),
        tcp(Statement::Dnat(v4(map.clone()))),
        tcp(Statement::Dnat(v6(NatPort::Is(80)))),
        tcp(Statement::Dnat(v6(map))),
        tcp(Statement::Dnat(v6(NatPort::Keep))),
        tcp(Statement::Redirect(NatPort::Is(80))),
        rule([Statement::Redirect(NatPort::Keep).into()]),
    ];
    let source = vec![
        tcp(Statement::Snat(v4(NatPort::Keep))),
        tcp(Statement::Masquerade(Some((1024, 65535)))),
        rule([Statement::Masquerade(None).into()]),
    ];
    let chains = vec![
        base("d", ChainType::Nat, Hook::Prerouting, -100, destination),
        base("s", ChainType::Nat, Hook::Postrouting, 100, source),
    ];
    read_back(&table(inet("x"), chains));
}

fn netdev() {
    sh("ip link add tap0 type veth peer name peer0");
    let conditions = vec![
        Match::ArpOp(Test::is(ArpOp::REPLY)),
        Match::ArpSender(Test::is_not(MAC)),
        Match::ArpSenderIp(Test::is(Ipv4Addr::LOCALHOST)),
        Match::ArpTargetIp(Test::prefix4(Ipv4Addr::new(127, 0, 0, 0), 8)),
        Match::EtherType(Test::is(EtherType::ARP)),
        Match::EtherSaddr(Test::is_not(MAC)),
        Match::Ip4(IpFields::Saddr(Test::is(Ipv4Addr::LOCALHOST))),
        Match::Ip6(IpFields::Saddr(Test::is("fe80::1".parse().unwrap()))),
        Match::UdpDport(Test::is(67)),
        Match::Icmp6Type(Test::is(Icmp6Type::ROUTER_ADVERT)),
        Match::FibDaddrOif(Test::is("br0".parse().unwrap())),
    ];
    let tap = || "tap0".parse().unwrap();
    let mut rules = one_rule_each(conditions);
    rules.push(rule([Statement::Dup("lo".parse().unwrap()).into()]));
    rules.push(rule([Statement::Fwd("lo".parse().unwrap()).into()]));
    let chains = vec![
        base("in", ChainType::Filter, Hook::Ingress(tap()), 0, rules),
        base("out", ChainType::Filter, Hook::Egress(tap()), 10, Vec::new()),
    ];
    read_back(&table(TableName { family: Family::Netdev, name: "x".to_owned() }, chains));
    let ingress = base("in", ChainType::Filter, Hook::Ingress(tap()), 0, Vec::new());
    read_back(&table(inet("y"), vec![ingress]));
}

/// The keys that a policy uses.
fn keys() {
    sh("ip link add tap0 type veth peer name peer0");
    let timed = |name: &str, ip, last: &[KeyPart]| {
        let key = [&[KeyPart::L4Proto, ip, ip], last].concat();
        Set { name: name.to_owned(), elements: Elements::Timed { key, most: 4096 } }
    };
    let known = |key: &[Field], set: &str| {
        let (key, set) = (key.to_vec(), set.to_owned());
        [
            Statement::InSet { key: key.clone(), set: set.clone() }.into(),
            Statement::Update { set, key, timeout_s: 7860 }.into(),
            Verdict::Accept.into(),
        ]
    };
    let ports = |proto| [Field::Sport(proto), Field::Dport(proto)];
    let (v4, v6) =
        ([Field::L4Proto, Field::Ip4Saddr, Field::Ip4Daddr], [Field::L4Proto, Field::Ip6Daddr, Field::Ip6Saddr]);
    let flags = Match::TcpFlags { value: Vec::new(), mask: vec![TcpFlag::Fin, TcpFlag::Syn, TcpFlag::Rst] };
    let rules = vec![
        rule([flags.into()].into_iter().chain(known(&[&v4[..], &ports(L4Proto::TCP)].concat(), "v4"))),
        rule(known(&[&v6[..], &ports(L4Proto::UDP)].concat(), "v6")),
        rule([Match::Protocol(Test::is(EtherType::ARP)).into(), Verdict::Accept.into()]),
        rule([Match::Protocol(Test::NotIn(vec![Item::One(EtherType::IP4), Item::One(EtherType::IP6)])).into()]),
        rule([Match::L4Proto(Test::Is(Item::Range(L4Proto(0), L4Proto(255)))).into(), Verdict::Accept.into()]),
        rule([Match::Fragment4(Fragment::First).into(), Verdict::Accept.into()]),
        rule([Match::Fragment4(Fragment::Later).into(), Verdict::Accept.into()]),
        rule([Match::Ip6Next(Test::is(L4Proto::FRAGMENT)).into(), Verdict::Accept.into()]),
    ];
    let table = Table {
        name: TableName { family: Family::Netdev, name: "minivmm-x/policy0".to_owned() },
        counters: Vec::new(),
        sets: vec![
            timed("v4", KeyPart::Ip4, &[KeyPart::Port, KeyPart::Port]),
            timed("v6", KeyPart::Ip6, &[KeyPart::Port, KeyPart::Port]),
            timed("ids", KeyPart::Ip6, &[KeyPart::Number]),
        ],
        chains: vec![base("out", ChainType::Filter, Hook::Egress("tap0".parse().unwrap()), 10, rules)],
    };
    read_back(&table);
}

fn bridge() {
    let conditions = vec![
        Match::EtherSaddr(Test::is(MAC)),
        Match::EtherType(Test::is(EtherType::ARP)),
        Match::ArpSenderIp(Test::is(Ipv4Addr::LOCALHOST)),
        Match::Ip4(IpFields::Saddr(Test::is(Ipv4Addr::LOCALHOST))),
        Match::Ip6(IpFields::Saddr(Test::is("fe80::1".parse().unwrap()))),
        Match::Icmp6Type(Test::is(Icmp6Type::ROUTER_ADVERT)),
        Match::iif(&"tap0".parse().unwrap()),
    ];
    let chains = vec![base("c", ChainType::Filter, Hook::Forward, 0, one_rule_each(conditions))];
    read_back(&table(TableName { family: Family::Bridge, name: "x".to_owned() }, chains));
}

/// Older versions of `nft` have no name for it and print its offset and length.
fn neighbour_target() {
    let solicitation = Match::Icmp6Type(Test::is(Icmp6Type::NEIGHBOR_SOLICIT));
    let target = Match::NdTarget(Test::is_not("fe80::1".parse().unwrap()));
    let rules = vec![rule([solicitation.into(), target.into(), Verdict::Drop.into()])];
    let table = table(inet("x"), vec![base("c", ChainType::Filter, Hook::Input, 0, rules)]);
    let _socket = applied(&table);
    let listed = sh("nft -s list table inet x").replace("@th,64,128", "icmpv6 taddr");
    let listed = listed.replace("0xfe800000000000000000000000000001", "fe80::1");
    assert!(listed.contains(&table.chains[0].rules[0].to_string()), "{listed}");
}

fn objects() {
    let set = |name: &str, elements| Set { name: name.to_owned(), elements };
    let x = |test| rule([Match::Ip4(IpFields::Saddr(test)).into(), Statement::CountIn("seen".to_owned()).into()]);
    let rules = vec![x(Test::InSet("v4".to_owned())), x(Test::NotInSet("v4".to_owned()))];
    let share = Statement::CtShareOver { set: "shares".to_owned(), shares: 4096, count: 16 };
    let shared = rule([share.clone().into(), share.into(), Verdict::Drop.into()]);
    let table = Table {
        name: inet("minivmm-x.y_z"),
        counters: vec!["dropped".to_owned(), "seen".to_owned()],
        sets: vec![
            set("v4", Elements::Ip4(vec![Item::Prefix(Ipv4Addr::new(10, 0, 0, 0), 8)])),
            set("v6", Elements::Ip6(vec![Item::One("fd00::1".parse().unwrap())])),
            set("ports", Elements::Ports(vec![Item::One(22), Item::Range(80, 90)])),
            set("macs", Elements::Ether(vec![MAC])),
            set("links", Elements::Interfaces(vec!["tap0".parse().unwrap()])),
            set("none", Elements::Ip4(Vec::new())),
            set("shares", Elements::Shares { most: 4096 }),
        ],
        chains: vec![base("c", ChainType::Filter, Hook::Input, 0, [rules, vec![shared]].concat())],
    };
    read_back(&table);
}
