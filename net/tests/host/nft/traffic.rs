//! The effect of rules on packets.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use net::nft::{
    AddrType, Batch, Chain, ChainType, Command, CtState, CtStatus, Elements, Hook, IpFields, Item, L4Proto, Limit,
    Match, Mss, NatPort, NatTarget, NftSocket, Per, Reject, Rule, Set, Statement, Table, Test, Verdict,
};

use super::lab::{GUEST_A, GUEST_B, Lab, OUTSIDE, ROUTER, with_ip6};
use super::{applied, base, inet, table};
use crate::Case;

pub(super) const CASES: &[Case] = &[
    ("nft_masquerade_hides_guests_behind_the_router", masquerade),
    ("nft_dnat_forwards_a_port", one_port),
    ("nft_dnat_forwards_a_range_one_to_one", range),
    ("nft_dnat_reaches_siblings_and_the_guest_itself", hairpin),
    ("nft_ip6_is_translated_too", ip6),
    ("nft_mss_is_clamped_to_the_route", mss),
    ("nft_ct_count_holds_the_number_of_connections", connections),
    ("nft_limit_lets_the_burst_pass_and_no_more", limit),
    ("nft_ct_state_lets_answers_pass_only", states),
    ("nft_reject_is_an_answer", reject),
    ("nft_set_elements_are_replaced", elements),
    ("nft_rules_are_replaced_without_a_gap", no_gap),
    ("nft_counters_are_read_back", counters),
];

const FORWARDED: u16 = 8080;

fn rule(conditions: impl IntoIterator<Item = Match>, statement: Statement) -> Rule {
    conditions.into_iter().fold(Rule::new(), Rule::with).with(statement)
}

fn masquerading() -> Chain {
    let subnet = Match::Ip4(IpFields::Saddr(Test::prefix4(Ipv4Addr::new(10, 0, 0, 0), 24)));
    let out = Match::Oif(Test::is_not("br0".parse().unwrap()));
    let hairpin = Match::CtStatus(vec![CtStatus::Dnat]);
    let rules = vec![
        rule([subnet, out], Statement::Masquerade(None)),
        rule([hairpin, Match::oif(&"br0".parse().unwrap())], Statement::Masquerade(None)),
    ];
    base("post", ChainType::Nat, Hook::Postrouting, 100, rules)
}

/// A table of the router that forwards to guest a.
fn forwarding(forwards: impl IntoIterator<Item = (Match, NatPort)>) -> Table {
    let local = || Match::FibDaddrType(Test::is(AddrType::LOCAL));
    let dnat = |port| Statement::Dnat(NatTarget { addr: GUEST_A.into(), port });
    let rules = forwards.into_iter().map(|(port, to)| rule([local(), port], dnat(to))).collect();
    table(inet("x"), vec![base("pre", ChainType::Nat, Hook::Prerouting, -100, rules), masquerading()])
}

/// A table with one chain at the forward hook.
fn filtering(rules: Vec<Rule>) -> Table {
    table(inet("x"), vec![base("forward", ChainType::Filter, Hook::Forward, 0, rules), masquerading()])
}

fn masquerade() {
    let lab = Lab::new();
    lab.outside.serve_tcp([80]);
    lab.outside.serve_udp([53]);
    let _nft = applied(&table(inet("x"), vec![masquerading()]));
    assert!(lab.a.ask_tcp((OUTSIDE, 80)).starts_with("192.0.2.1 80 "));
    assert_eq!(lab.b.ask_udp((OUTSIDE, 53)), "192.0.2.1 53 1");
}

fn one_port() {
    let lab = Lab::new();
    lab.a.serve_tcp([80]);
    lab.a.serve_udp([53]);
    let _nft = applied(&forwarding([
        (Match::TcpDport(Test::is(FORWARDED)), NatPort::Is(80)),
        (Match::UdpDport(Test::is(FORWARDED)), NatPort::Is(53)),
    ]));
    assert!(lab.outside.ask_tcp((ROUTER, FORWARDED)).starts_with("10.0.0.1 80 "));
    assert_eq!(lab.outside.ask_udp((ROUTER, FORWARDED)), "10.0.0.1 53 1");
}

fn range() {
    const COUNT: u16 = 3000;
    let lab = Lab::new();
    let ends = [20_000, 20_001, 20_000 + COUNT - 1];
    lab.a.serve_tcp(ends);
    lab.a.serve_udp(ends);
    let ports = Test::range(10_000, 10_000 + COUNT - 1);
    let _nft = applied(&forwarding([
        (Match::TcpDport(ports.clone()), NatPort::shift(L4Proto::TCP, 10_000, 20_000, COUNT)),
        (Match::UdpDport(ports), NatPort::shift(L4Proto::UDP, 10_000, 20_000, COUNT)),
    ]));
    for end in ends {
        assert!(lab.outside.ask_tcp((ROUTER, end - 10_000)).starts_with(&format!("10.0.0.1 {end} ")));
        assert_eq!(lab.outside.ask_udp((ROUTER, end - 10_000)), format!("10.0.0.1 {end} 1"));
    }
}

fn hairpin() {
    let lab = Lab::new();
    lab.a.serve_tcp([80]);
    let _nft = applied(&forwarding([(Match::TcpDport(Test::is(FORWARDED)), NatPort::Is(80))]));
    assert!(lab.b.ask_tcp((ROUTER, FORWARDED)).starts_with("10.0.0.1 80 "));
    assert!(lab.a.ask_tcp((ROUTER, FORWARDED)).starts_with("10.0.0.1 80 "));
    // Only packets to the router are forwarded.
    assert!(lab.b.connect((GUEST_A, FORWARDED)).is_err());
}

fn ip6() {
    let lab = Lab::new();
    with_ip6(&lab);
    lab.a.serve_tcp([80]);
    lab.outside.serve_tcp([80]);
    let (guest, router, outside) = ("fd00:a::2", "fd00:b::1", "fd00:b::9");
    let [guest, router, outside] = [guest, router, outside].map(|addr: &str| addr.parse::<Ipv6Addr>().unwrap());
    let subnet = Match::Ip6(IpFields::Saddr(Test::prefix6("fd00:a::".parse().unwrap(), 64)));
    let local = Match::Ip6(IpFields::Daddr(Test::is(router)));
    let to = Statement::Dnat(NatTarget { addr: guest.into(), port: NatPort::Is(80) });
    let forward = rule([local, Match::TcpDport(Test::is(FORWARDED))], to);
    let _nft = applied(&table(
        inet("x"),
        vec![
            base("pre", ChainType::Nat, Hook::Prerouting, -100, vec![forward]),
            base("post", ChainType::Nat, Hook::Postrouting, 100, vec![rule([subnet], Statement::Masquerade(None))]),
        ],
    ));
    assert!(lab.a.ask_tcp((outside, 80)).starts_with("fd00:b::1 80 "));
    assert!(lab.outside.ask_tcp((router, FORWARDED)).starts_with("fd00:b::9 80 "));
}

fn mss() {
    // The router's uplink carries 1400 bytes: 1360 without the headers of IP and TCP, 1348 without timestamps.
    let lab = Lab::new();
    lab.outside.serve_tcp([80]);
    let _nat = applied(&table(inet("nat"), vec![masquerading()]));
    assert!(lab.a.ask_tcp((OUTSIDE, 80)).ends_with(" 1448"));
    let clamp = |mss| filtering(vec![rule([Match::tcp_syn()], Statement::SetMss(mss))]);
    let route = applied(&clamp(Mss::RouteMtu));
    assert!(lab.a.ask_tcp((OUTSIDE, 80)).ends_with(" 1348"));
    drop(route);
    let _fixed = applied(&clamp(Mss::Bytes(1000)));
    assert!(lab.a.ask_tcp((OUTSIDE, 80)).ends_with(" 988"));
}

fn connections() {
    let lab = Lab::new();
    lab.outside.serve_tcp([80]);
    let _nft = applied(&filtering(vec![
        Rule::new()
            .with(Match::CtState(vec![CtState::New]))
            .with(Match::Ip4(IpFields::Saddr(Test::is(GUEST_A))))
            .with(Statement::CtCountOver(2))
            .with(Statement::Reject(Reject::TcpReset)),
    ]));
    let first = lab.a.connect((OUTSIDE, 80)).unwrap();
    let _second = lab.a.connect((OUTSIDE, 80)).unwrap();
    assert_eq!(lab.a.connect((OUTSIDE, 80)).unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    // Another guest is not counted.
    let _other = lab.b.connect((OUTSIDE, 80)).unwrap();
    drop(first);
    crate::lan::until(|| lab.a.connect((OUTSIDE, 80)).is_ok());
}

fn limit() {
    const BURST: usize = 7;
    let lab = Lab::new();
    let datagram = || Match::UdpDport(Test::is(9));
    let over = Limit { over: true, packets: 1, per: Per::Hour, burst: u32::try_from(BURST).unwrap() };
    let mut nft = applied(&filtering(vec![
        rule([datagram()], Statement::Limit(over)).with(Statement::Counter).with(Verdict::Drop),
        rule([datagram()], Statement::Counter),
    ]));
    lab.a.send_udp((OUTSIDE, 9), 20);
    let counted = nft.rule_counters(&inet("x")).unwrap();
    let counted: Vec<_> = counted.iter().map(|rule| usize::try_from(rule.counts.packets).unwrap()).collect();
    assert_eq!(counted, [20 - BURST, BURST]);
}

fn states() {
    let lab = Lab::new();
    lab.a.serve_tcp([80]);
    lab.outside.serve_tcp([80]);
    lab.outside.run(|| crate::lan::sh("ip route add 10.0.0.0/24 via 192.0.2.1"));
    assert!(lab.outside.connect((GUEST_A, 80)).is_ok());
    let to_guests = || Match::oif(&"br0".parse().unwrap());
    let known = Match::CtState(vec![CtState::Established, CtState::Related]);
    let _nft = applied(&filtering(vec![
        rule([to_guests(), known], Statement::Verdict(Verdict::Accept)),
        rule([to_guests()], Statement::Verdict(Verdict::Drop)),
    ]));
    assert!(!lab.outside.reaches_tcp((GUEST_A, 80)));
    assert!(lab.a.ask_tcp((OUTSIDE, 80)).starts_with("192.0.2.1 80 "));
}

fn reject() {
    let lab = Lab::new();
    lab.outside.serve_tcp([80]);
    let to = |port| Match::TcpDport(Test::is(port));
    let _nft = applied(&filtering(vec![
        rule([to(80)], Statement::Reject(Reject::AdminProhibited)),
        rule([to(81)], Statement::Reject(Reject::TcpReset)),
    ]));
    let errno = |port| lab.a.connect((OUTSIDE, port)).unwrap_err().raw_os_error();
    assert_eq!(errno(80), Some(libc::EHOSTUNREACH));
    assert_eq!(errno(81), Some(libc::ECONNREFUSED));
}

fn elements() {
    let lab = Lab::new();
    lab.outside.serve_udp([53]);
    let allowed = |items| Elements::Ip4(items);
    let guests = Match::Ip4(IpFields::Saddr(Test::NotInSet("guests".to_owned())));
    let mut table = filtering(vec![rule(
        [guests, Match::iif(&"br0".parse().unwrap())],
        Statement::Reject(Reject::AdminProhibited),
    )]);
    table.sets.push(Set { name: "guests".to_owned(), elements: allowed(vec![Item::One(GUEST_A)]) });
    let mut nft = applied(&table);
    let reaches = |host: &super::lab::Host| {
        host.run(|| {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.set_read_timeout(Some(crate::vmm::DEADLINE)).unwrap();
            socket.connect((OUTSIDE, 53)).unwrap();
            socket.send(b"?").unwrap();
            socket.recv(&mut [0; 64]).is_ok()
        })
    };
    assert_eq!((reaches(&lab.a), reaches(&lab.b)), (true, false));
    let replace = |items| Batch::new().with(Command::ReplaceElements(inet("x"), "guests".to_owned(), allowed(items)));
    nft.apply(&replace(vec![Item::Range(GUEST_B, Ipv4Addr::new(10, 0, 0, 9)), Item::One(GUEST_B)])).unwrap();
    assert_eq!((reaches(&lab.a), reaches(&lab.b)), (false, true));
    nft.apply(&replace(Vec::new())).unwrap();
    assert_eq!((reaches(&lab.a), reaches(&lab.b)), (false, false));
}

/// Replaces rules again and again while packets arrive that neither the old nor the new rules accept.
fn no_gap() {
    const REPLACEMENTS: u16 = 300;
    let lab = Lab::new();
    let drop_all = |port| {
        let some = rule([Match::TcpDport(Test::any([port, port + 1]))], Statement::Verdict(Verdict::Accept));
        vec![some, rule([], Statement::Verdict(Verdict::Drop))]
    };
    let mut table = filtering(drop_all(1));
    let after = vec![Rule::new().with(Statement::Counter)];
    table.chains.push(base("after", ChainType::Filter, Hook::Forward, 10, after));
    let before = vec![Rule::new().with(Statement::Counter)];
    table.chains.push(base("before", ChainType::Filter, Hook::Forward, -10, before));
    let mut nft = applied(&table);
    let (done, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                lab.a.send_udp((OUTSIDE, 9), 50);
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut replacements = 0;
        // The sender may be slow to start on a busy machine.
        while replacements < REPLACEMENTS || rounds.load(Ordering::Relaxed) < 20 {
            let replace = Command::ReplaceRules(inet("x"), "forward".to_owned(), drop_all(1 + replacements % 1000));
            nft.apply(&Batch::new().with(replace)).unwrap();
            replacements = replacements.saturating_add(1);
        }
        done.store(true, Ordering::Relaxed);
    });
    let counted = nft.rule_counters(&inet("x")).unwrap();
    let packets = |chain| counted.iter().find(|rule| rule.chain == chain).map(|rule| rule.counts.packets);
    assert!(packets("before") > Some(u64::from(REPLACEMENTS)));
    assert_eq!(packets("after"), Some(0));
}

fn counters() {
    let lab = Lab::new();
    let to = |port| Match::UdpDport(Test::is(port));
    let mut table = filtering(vec![
        rule([to(9)], Statement::CountIn("nine".to_owned())).with(Verdict::Drop),
        rule([to(10)], Statement::Counter).with(Verdict::Drop).comment("ten"),
    ]);
    table.counters = vec!["nine".to_owned(), "none".to_owned()];
    let _owner = applied(&table);
    lab.a.send_udp((OUTSIDE, 9), 3);
    lab.a.send_udp((OUTSIDE, 10), 4);
    // Any process with the privilege can read, not only the owner.
    let mut reader = NftSocket::open().unwrap();
    let named = reader.named_counters(&inet("x")).unwrap();
    let named: Vec<_> =
        named.iter().map(|counter| (counter.name.as_str(), counter.counts.packets, counter.counts.bytes)).collect();
    assert_eq!(named, [("nine", 3, 87), ("none", 0, 0)]);
    let rules = reader.rule_counters(&inet("x")).unwrap();
    let rules: Vec<_> = rules.iter().map(|rule| (rule.comment.as_deref(), rule.counts.packets)).collect();
    assert_eq!(rules, [(Some("ten"), 4)]);
    assert_eq!(reader.rule_counters(&inet("y")).unwrap(), []);
}
