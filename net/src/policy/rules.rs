//! A policy as nftables rules: a table of its own for each card, on the card's tap.
//!
//! ```text
//! table netdev minivmm-VM/policyN
//!   from-guest  tap's ingress  IP? -> filter-from -> established-from? -> rules of egress  -> new-from -> accept-from
//!   to-guest    tap's egress   IP? -> filter-to   -> established-to?   -> rules of ingress -> new-to   -> accept-to
//! ```
//!
//! On a macvtap the hooks are swapped: the guest's frames leave through it (egress).
//!
//! All traffic of a guest passes through its tap: to and from the outside, the host, its services and other VMs, on
//! every kind of network, IPv4 and IPv6, with translated addresses as the guest sees them. So this is the one place
//! where no packet bypasses the rules. The kernel tracks connections elsewhere (above a bridge, or on it where the
//! kernel supports that), and the chains of a tap cannot query it. Instead, each accepted connection is an element of a
//! set: protocol, the guest's address and port, and the peer's. Packets that match an element in either direction pass
//! and refresh its timeout. Sequence numbers are not checked.
//!
//! Later fragments have no ports: they pass if the first one has passed. So the first has to contain the whole header
//! above IP, and no later one may begin within the TCP header (RFC 7112 5, RFC 1858 3.1, RFC 3128 2). Frames that are
//! neither IP nor ARP are dropped.
//!
//! A new policy comes with new sets, in one transaction: packets of an old connection are filtered as if they opened
//! one.

use crate::kernel::nft::{
    Base, Chain, ChainType, Command, Elements, EtherType, Expr, Family, Field, Fragment, Hook, Icmp6Type, IcmpType,
    IpFields, Item, KeyPart, L4Proto, Match, Policy as Verdicts, Rule, Set, Statement, Table, TableName, TcpFlag, Test,
    Verdict,
};
use crate::kernel::tun::TapKind;
use crate::rules::guard::drop_as;
use crate::rules::guard::headers::{SEEN6, found, fragments6, plain6, whole};
use crate::services::{DHCP_CLIENT, DHCP_SERVER, DHCP6_CLIENT, DHCP6_SERVER, SERVICES_MARK};
use crate::spec::IfName;

use super::{Action, Policy, PolicyProtocol, PolicyRule};

/// The counters, named by the reason why packets are dropped.
const EGRESS: &str = "policy-egress";
const INGRESS: &str = "policy-ingress";
const NOT_IP: &str = "policy-not-ip";
const MALFORMED: &str = "policy-malformed";
const FRAGMENT: &str = "policy-fragment";

/// Priority of the chains: after those of the guard.
const POLICY: i32 = 10;

/// Timeouts of a connection after its last packet, in seconds: established TCP (RFC 5382 5), TCP that opens or closes,
/// UDP (RFC 4787 4.3), echo requests, other protocols. The entry of a first fragment lives as long as reassembly may
/// take.
const TCP_S: u32 = 7860;
const TCP_EDGE_S: u32 = 120;
const UDP_S: u32 = 180;
const ECHO_S: u32 = 30;
const OTHER_S: u32 = 600;
const FRAGMENT_S: u32 = 30;

/// Most connections of one card and IP version: more than the 100,000 of a busy server. An entry takes some 100
/// bytes.
const CONNECTIONS_MAX: u32 = 1 << 17;

/// Most packets in reassembly at a time.
const FRAGMENTED_MAX: u32 = 1 << 12;

/// A card on which a policy is enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EnforcedCard {
    /// The card.
    pub(crate) card: usize,
    /// Its tap.
    pub(crate) tap: IfName,
    /// The tap's driver.
    pub(crate) kind: TapKind,
    /// True if our services assign its address, over a socket on the tap; otherwise a server on its network may.
    pub(crate) served: bool,
}

/// The VM of a policy and the policy's number: successive policies have sets of different names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generation<'a> {
    pub(crate) vm: &'a str,
    pub(crate) number: u32,
}

/// The prefix of the names of a VM's policy tables. A VM's name has no slash.
pub(crate) fn table_prefix(vm: &str) -> String {
    format!("minivmm-{vm}/policy")
}

/// The table of a card.
pub(crate) fn table(generation: Generation<'_>, enforced: &EnforcedCard, policy: &Policy) -> Table {
    let counters = [EGRESS, INGRESS, NOT_IP, MALFORMED, FRAGMENT].map(str::to_owned).to_vec();
    let side = |direction| DirectionRules { direction, enforced, policy, generation: generation.number };
    let (from, to) = (side(Direction::From), side(Direction::To));
    let chains = [[from.base()].to_vec(), [to.base()].to_vec(), from.chains(), to.chains()].concat();
    Table { name: name(generation.vm, enforced.card), counters, sets: sets(generation.number), chains }
}

/// The commands that replace the policy in the table of a card.
pub(crate) fn replacement(generation: Generation<'_>, enforced: &EnforcedCard, policy: &Policy) -> Vec<Command> {
    let table = name(generation.vm, enforced.card);
    let side = |direction| DirectionRules { direction, enforced, policy, generation: generation.number };
    let chains = [side(Direction::From).chains(), side(Direction::To).chains()].concat();
    let mut commands: Vec<Command> =
        sets(generation.number).into_iter().map(|set| Command::AddSet(table.clone(), set)).collect();
    commands.extend(chains.into_iter().map(|chain| Command::ReplaceRules(table.clone(), chain.name, chain.rules)));
    let old = sets(generation.number.wrapping_sub(1));
    commands.extend(old.into_iter().map(|set| Command::DeleteSet(table.clone(), set.name)));
    commands
}

/// The name of a card's table.
pub(crate) fn name(vm: &str, card: usize) -> TableName {
    TableName { family: Family::Netdev, name: format!("{}{card}", table_prefix(vm)) }
}

/// The sets of accepted connections and of packets whose first fragment has passed.
fn sets(generation: u32) -> Vec<Set> {
    let set = |version: Version, kind, key: &[KeyPart], most| Set {
        name: version.set(kind, generation),
        elements: Elements::Timed { key: key.to_vec(), most },
    };
    [(Version::V4, KeyPart::Ip4, KeyPart::Port), (Version::V6, KeyPart::Ip6, KeyPart::Number)]
        .into_iter()
        .flat_map(|(version, ip, id)| {
            let connection = [KeyPart::L4Proto, ip, ip, KeyPart::Port, KeyPart::Port];
            let fragmented = [KeyPart::L4Proto, ip, ip, id];
            [
                set(version, Kept::Connections, &connection, CONNECTIONS_MAX),
                set(version, Kept::Fragments, &fragmented, FRAGMENTED_MAX),
            ]
        })
        .collect()
}

/// The elements of a set.
#[derive(Clone, Copy)]
enum Kept {
    Connections,
    Fragments,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

impl Version {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn set(self, kept: Kept, generation: u32) -> String {
        let kind = match kept {
            Kept::Connections => "connections",
            Kept::Fragments => "fragments",
        };
        let version = if self == Self::V4 { 4 } else { 6 };
        format!("{kind}{version}-{generation}")
    }

    fn is(self) -> Match {
        Match::Protocol(Test::is(if self == Self::V4 { EtherType::IP4 } else { EtherType::IP6 }))
    }

    fn icmp(self) -> L4Proto {
        if self == Self::V4 { L4Proto::ICMP } else { L4Proto::ICMP6 }
    }

    /// The conditions for a fragment, and the fields that all fragments of a packet share.
    fn fragment(self, part: Fragment) -> (Rule, Vec<Field>) {
        match self {
            Self::V4 => {
                (rule(Match::Fragment4(part)), vec![Field::L4Proto, Field::Ip4Saddr, Field::Ip4Daddr, Field::Ip4Id])
            }
            Self::V6 => (
                rule(Match::Ip6Next(Test::is(L4Proto::FRAGMENT))).with(Match::Fragment6(part)),
                vec![Field::L4Proto, Field::Ip6Saddr, Field::Ip6Daddr, Field::Ip6FragmentId],
            ),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// From the guest: egress.
    From,
    /// To the guest: ingress.
    To,
}

/// The rules of one direction of a card.
struct DirectionRules<'a> {
    direction: Direction,
    enforced: &'a EnforcedCard,
    policy: &'a Policy,
    generation: u32,
}

/// A kind of connection: the packets that open it, the packets that belong to it, its key and its timeout.
struct Kind {
    begins: Rule,
    belongs: Rule,
    key: Vec<Field>,
    seconds: u32,
}

impl DirectionRules<'_> {
    /// The name of a chain.
    fn name(&self, part: &str) -> String {
        let side = if self.direction == Direction::From { "from" } else { "to" };
        format!("{part}-{side}")
    }

    /// The base chain. It is the same for every policy.
    fn base(&self) -> Chain {
        let tap = self.enforced.tap.clone();
        let name = if self.direction == Direction::From { "from-guest" } else { "to-guest" };
        let hook = match (self.direction, self.enforced.kind) {
            (Direction::From, TapKind::Tap) | (Direction::To, TapKind::Macvtap) => Hook::Ingress(tap),
            (Direction::To, TapKind::Tap) | (Direction::From, TapKind::Macvtap) => Hook::Egress(tap),
        };
        let mut rules = Vec::new();
        if self.direction == Direction::To && self.enforced.served {
            rules.push(rule(Match::Mark { mask: u32::MAX, value: SERVICES_MARK }).with(Verdict::Accept));
        }
        let ip = [EtherType::IP4, EtherType::IP6].map(Item::One).to_vec();
        let filter = || Verdict::Goto(self.name("filter"));
        let seen = [L4Proto::TCP, L4Proto::UDP, L4Proto::ICMP];
        let ip4 = || rule(Version::V4.is());
        rules.extend([
            rule(Match::Protocol(Test::is(EtherType::ARP))).with(Verdict::Accept),
            drop_as(rule(Match::Protocol(Test::NotIn(ip))), NOT_IP),
        ]);
        let second = ip4().with(Match::L4Proto(Test::is(L4Proto::TCP))).with(Match::Fragment4(Fragment::Second));
        rules.push(drop_as(second, FRAGMENT));
        rules.push(ip4().with(Match::Fragment4(Fragment::Later)).with(filter()));
        rules.extend(seen.map(|proto| ip4().with(whole(proto)).with(filter())));
        rules.push(drop_as(ip4().with(Match::L4Proto(Test::any(seen))), MALFORMED));
        rules.extend(SEEN6.map(|proto| plain6(proto).with(filter())));
        rules.extend(fragments6(&filter(), MALFORMED));
        rules.extend(SEEN6.map(|proto| rule(Version::V6.is()).with(whole(proto)).with(filter())));
        rules.extend([
            drop_as(rule(Version::V6.is()).with(Match::L4Proto(Test::any(SEEN6))), MALFORMED),
            // False where the header above IP cannot be found.
            rule(found()).with(filter()),
            drop_as(Rule::new(), MALFORMED),
        ]);
        let base = Base { chain_type: ChainType::Filter, hook, priority: POLICY, policy: Verdicts::Accept };
        Chain { name: name.to_owned(), base: Some(base), rules }
    }

    /// The chains of a policy.
    fn chains(&self) -> Vec<Chain> {
        let chain = |part, rules| Chain { name: self.name(part), base: None, rules };
        vec![
            chain("filter", self.filter()),
            chain("established", self.established()),
            chain("new", self.new_connections()),
            chain("accept", self.accept()),
        ]
    }

    fn rules(&self) -> impl Iterator<Item = &PolicyRule> {
        let rules = if self.direction == Direction::From { &self.policy.egress } else { &self.policy.ingress };
        rules.iter().filter(|rule| rule.is_for(self.enforced.card))
    }

    fn default(&self) -> Action {
        let defaults = self.policy.defaults;
        if self.direction == Direction::From { defaults.egress } else { defaults.ingress }
    }

    /// Decides on a packet: by its connection, by the rules of the policy, or by their default.
    fn filter(&self) -> Vec<Rule> {
        let accept = || Verdict::Goto(self.name("new"));
        let counter = if self.direction == Direction::From { EGRESS } else { INGRESS };
        let decide = |rule: Rule, action| match action {
            Action::Accept => rule.with(accept()),
            Action::Drop => drop_as(rule, counter),
        };
        if self.default() == Action::Accept && self.rules().all(|rule| rule.action == Action::Accept) {
            return vec![Rule::new().with(accept())];
        }
        let mut rules = vec![Rule::new().with(Verdict::Jump(self.name("established")))];
        rules.extend(self.link().into_iter().map(|rule| rule.with(Verdict::Accept)));
        for rule in self.rules() {
            rules.extend(fitting(rule).into_iter().map(|conditions| decide(conditions, rule.action)));
        }
        rules.push(decide(Rule::new(), self.default()));
        rules
    }

    /// Conditions for the basics of any network: IPv6 neighbour and router discovery, multicast groups, and DHCP.
    fn link(&self) -> Vec<Rule> {
        let types = match self.direction {
            Direction::From => vec![
                Icmp6Type::ROUTER_SOLICIT,
                Icmp6Type::NEIGHBOR_SOLICIT,
                Icmp6Type::NEIGHBOR_ADVERT,
                Icmp6Type::MLD_REPORT,
                Icmp6Type::MLD_DONE,
                Icmp6Type::MLD2_REPORT,
            ],
            Direction::To => vec![
                Icmp6Type::ROUTER_ADVERT,
                Icmp6Type::NEIGHBOR_SOLICIT,
                Icmp6Type::NEIGHBOR_ADVERT,
                Icmp6Type::MLD_QUERY,
            ],
        };
        let mut rules = vec![rule(Match::Icmp6Type(Test::any(types)))];
        if !self.enforced.served {
            let asks = |version: Version, client, server| {
                let (from, to) = if self.direction == Direction::From { (client, server) } else { (server, client) };
                rule(version.is()).with(Match::UdpSport(Test::is(from))).with(Match::UdpDport(Test::is(to)))
            };
            rules.extend([asks(Version::V4, DHCP_CLIENT, DHCP_SERVER), asks(Version::V6, DHCP6_CLIENT, DHCP6_SERVER)]);
        }
        rules
    }

    /// Accepts packets of established connections.
    fn established(&self) -> Vec<Rule> {
        let accept = || Verdict::Goto(self.name("accept"));
        let mut rules = Vec::new();
        for version in Version::BOTH {
            let (later, key) = version.fragment(Fragment::Later);
            let set = version.set(Kept::Fragments, self.generation);
            rules.push(later.clone().with(Statement::InSet { key, set }).with(Verdict::Accept));
            rules.push(drop_as(later, FRAGMENT));
        }
        for version in Version::BOTH {
            let set = || version.set(Kept::Connections, self.generation);
            for Kind { belongs, key, seconds, .. } in self.kinds(version) {
                let in_set = Statement::InSet { key: key.clone(), set: set() };
                rules.push(
                    belongs.with(in_set).with(Statement::Update { set: set(), key, timeout_s: seconds }).with(accept()),
                );
            }
            for key in self.quoted(version) {
                rules.push(error(version).with(Statement::InSet { key, set: set() }).with(accept()));
            }
        }
        rules
    }

    /// Records a new connection. If its set is full the packet passes all the same, and later packets are filtered one
    /// by one.
    fn new_connections(&self) -> Vec<Rule> {
        let accept = || Verdict::Goto(self.name("accept"));
        let mut rules = Vec::new();
        for version in Version::BOTH {
            for Kind { begins, key, seconds, .. } in self.kinds(version) {
                let set = version.set(Kept::Connections, self.generation);
                rules.push(begins.with(Statement::Update { set, key, timeout_s: seconds }).with(accept()));
            }
        }
        rules.push(Rule::new().with(accept()));
        rules
    }

    /// Accepts a packet and its later fragments.
    fn accept(&self) -> Vec<Rule> {
        let mut rules: Vec<Rule> = Vec::new();
        for version in Version::BOTH {
            let (first, key) = version.fragment(Fragment::First);
            let set = version.set(Kept::Fragments, self.generation);
            rules.push(first.with(Statement::Update { set, key, timeout_s: FRAGMENT_S }));
        }
        rules.push(Rule::new().with(Verdict::Accept));
        rules
    }

    /// The guest's address and the peer's.
    fn addresses(&self, version: Version) -> [Field; 2] {
        match (version, self.direction) {
            (Version::V4, Direction::From) => [Field::Ip4Saddr, Field::Ip4Daddr],
            (Version::V4, Direction::To) => [Field::Ip4Daddr, Field::Ip4Saddr],
            (Version::V6, Direction::From) => [Field::Ip6Saddr, Field::Ip6Daddr],
            (Version::V6, Direction::To) => [Field::Ip6Daddr, Field::Ip6Saddr],
        }
    }

    fn kinds(&self, version: Version) -> [Kind; 5] {
        let [guest, other] = self.addresses(version);
        let key = |last: [Field; 2]| [[Field::L4Proto, guest, other].as_slice(), &last].concat();
        let ports = |proto| match self.direction {
            Direction::From => key([Field::Sport(proto), Field::Dport(proto)]),
            Direction::To => key([Field::Dport(proto), Field::Sport(proto)]),
        };
        let of = |proto| rule(version.is()).with(Match::L4Proto(Test::is(proto)));
        let kind = |packets: Rule, key, seconds| Kind { begins: packets.clone(), belongs: packets, key, seconds };
        let edges = vec![TcpFlag::Fin, TcpFlag::Syn, TcpFlag::Rst];
        let (echo, id) = match version {
            Version::V4 => (
                [IcmpType::ECHO_REQUEST, IcmpType::ECHO_REPLY].map(|kind| Match::IcmpType(Test::is(kind))),
                Field::IcmpId,
            ),
            Version::V6 => (
                [Icmp6Type::ECHO_REQUEST, Icmp6Type::ECHO_REPLY].map(|kind| Match::Icmp6Type(Test::is(kind))),
                Field::Icmp6Id,
            ),
        };
        let [asks, answers] = echo.map(rule);
        let others = [L4Proto::TCP, L4Proto::UDP, version.icmp()].map(Item::One).to_vec();
        let others = rule(version.is()).with(Match::L4Proto(Test::NotIn(others)));
        [
            kind(of(L4Proto::TCP).with(Match::TcpFlags { value: Vec::new(), mask: edges }), ports(L4Proto::TCP), TCP_S),
            kind(of(L4Proto::TCP), ports(L4Proto::TCP), TCP_EDGE_S),
            kind(of(L4Proto::UDP), ports(L4Proto::UDP), UDP_S),
            Kind { begins: asks, belongs: answers, key: key([id, id]), seconds: ECHO_S },
            // In place of the ports, which other protocols lack.
            kind(others, key([Field::L4Proto, Field::L4Proto]), OTHER_S),
        ]
    }

    /// The keys of a connection in a packet that an ICMP error quotes: with ports, and with an identifier. The quoted
    /// packet went the other way.
    fn quoted(&self, version: Version) -> [Vec<Field>; 2] {
        // Offsets of the quoted packet's protocol, addresses and next header (RFC 792, RFC 4443 3).
        let (proto, [source, destination], above, len) = match version {
            Version::V4 => (17, [20, 24], 28, 4),
            Version::V6 => (14, [16, 32], 48, 16),
        };
        let (addresses, ports) = match self.direction {
            Direction::To => ([source, destination], [above, above + 2]),
            Direction::From => ([destination, source], [above + 2, above]),
        };
        let quoted = |at, len| Field::Quoted { at, len };
        let key = |last: [u32; 2]| {
            let [guest, other] = addresses.map(|at| quoted(at, len));
            let [first, second] = last.map(|at| quoted(at, 2));
            vec![quoted(proto, 1), guest, other, first, second]
        };
        [key(ports), key([above + 4, above + 4])]
    }
}

/// ICMP errors that belong to a connection.
fn error(version: Version) -> Rule {
    match version {
        Version::V4 => rule(Match::IcmpType(Test::any([
            IcmpType::DESTINATION_UNREACHABLE,
            IcmpType::TIME_EXCEEDED,
            IcmpType::PARAMETER_PROBLEM,
        ]))),
        Version::V6 => rule(Match::Icmp6Type(Test::any([
            Icmp6Type::DESTINATION_UNREACHABLE,
            Icmp6Type::PACKET_TOO_BIG,
            Icmp6Type::TIME_EXCEEDED,
            Icmp6Type::PARAMETER_PROBLEM,
        ]))),
    }
}

/// The conditions of a policy rule: one list for each IP version, where the version matters.
fn fitting(policy: &PolicyRule) -> Vec<Rule> {
    let PolicyRule { protocol, source, destination, .. } = policy;
    let anywhere = source.is_empty() && destination.is_empty();
    if anywhere && *protocol != PolicyProtocol::Icmp {
        return vec![above_ip(Rule::new(), policy, None)];
    }
    let mut rules = Vec::new();
    if source.has_ip4() && destination.has_ip4() {
        let mut conditions = rule(Version::V4.is());
        for (list, field) in [(source, IpFields::Saddr as fn(_) -> _), (destination, IpFields::Daddr)] {
            if !list.is_empty() {
                conditions = conditions.with(Match::Ip4(field(one_of(list.items4()))));
            }
        }
        rules.push(above_ip(conditions, policy, Some(Version::V4)));
    }
    if source.has_ip6() && destination.has_ip6() {
        let mut conditions = rule(Version::V6.is());
        for (list, field) in [(source, IpFields::Saddr as fn(_) -> _), (destination, IpFields::Daddr)] {
            if !list.is_empty() {
                conditions = conditions.with(Match::Ip6(field(one_of(list.items6()))));
            }
        }
        rules.push(above_ip(conditions, policy, Some(Version::V6)));
    }
    rules
}

/// `conditions` with those on the protocol above IP of this version.
fn above_ip(conditions: Rule, policy: &PolicyRule, version: Option<Version>) -> Rule {
    let ports = policy.ports.items();
    match policy.protocol {
        PolicyProtocol::Any => conditions,
        PolicyProtocol::Icmp => conditions.with(Match::L4Proto(Test::is(version.unwrap_or(Version::V4).icmp()))),
        PolicyProtocol::Tcp if ports.is_empty() => conditions.with(Match::L4Proto(Test::is(L4Proto::TCP))),
        PolicyProtocol::Udp if ports.is_empty() => conditions.with(Match::L4Proto(Test::is(L4Proto::UDP))),
        PolicyProtocol::Tcp => conditions.with(Match::TcpDport(one_of(ports))),
        PolicyProtocol::Udp => conditions.with(Match::UdpDport(one_of(ports))),
    }
}

/// A test for one of `items`, of which there is at least one.
fn one_of<T: Clone>(items: Vec<Item<T>>) -> Test<T> {
    match items.as_slice() {
        [item] => Test::Is(item.clone()),
        _ => Test::In(items),
    }
}

fn rule(condition: impl Into<Expr>) -> Rule {
    Rule::new().with(condition)
}
