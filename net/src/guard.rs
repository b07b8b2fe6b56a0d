//! What a guest may send on a bridge, and whether it reaches other VMs of the host there.
//!
//! ```text
//! table netdev minivmm-VM    a chain on the tap's ingress: the guest's own addresses only, nothing that only servers say
//! table bridge minivmm-VM    forward: no frames between the tap and those of other VMs
//! ```
//!
//! The netdev family sees ARP and what is not IP, which the ingress hook of inet tables lets pass. A guest without a list of
//! addresses has any on its own MAC: it still cannot speak for another machine's MAC, nor as a DHCP server or a router.
//!
//! Not refused: link-local IPv6 addresses, which a guest chooses by itself, unless the list has one; then it has only that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::mac::MacAddr;
use crate::nft::{
    Base, Chain, ChainType, EtherAddr, EtherType, Hook, Icmp6Type, IpFields, Item, L4Proto, LinkKind, Match, Policy,
    Rule, Statement, Test, Verdict,
};
use crate::services::PREFIX_LEN;
use crate::spec::{IfName, Switch};

/// Why frames are dropped: the names of the counters.
pub(crate) const SPOOFED_MAC: &str = "spoofed-mac";
pub(crate) const SPOOFED_ARP: &str = "spoofed-arp";
pub(crate) const SPOOFED_IP: &str = "spoofed-ip";
pub(crate) const SPOOFED_ND: &str = "spoofed-nd";
pub(crate) const ROGUE_DHCP: &str = "rogue-dhcp";
pub(crate) const ROGUE_ROUTER: &str = "rogue-router";
pub(crate) const OTHER_PROTOCOL: &str = "other-protocol";
pub(crate) const ISOLATED: &str = "isolated";

/// All counters of guards.
pub(crate) const COUNTERS: [&str; 7] =
    [SPOOFED_MAC, SPOOFED_ARP, SPOOFED_IP, SPOOFED_ND, ROGUE_DHCP, ROGUE_ROUTER, OTHER_PROTOCOL];

/// What a guest may speak. A tagged frame has the type of its tag, unless the guest is on a trunk.
pub(crate) const PROTOCOLS: [EtherType; 3] = [EtherType::IP4, EtherType::ARP, EtherType::IP6];

/// Ports of services that are not a guest's to offer.
const DHCP_SERVER: u16 = 67;
const DHCP6_SERVER: u16 = 547;

/// Addresses of a link (RFC 4291 2.5.6), and their bits that are the same.
const LINK_LOCAL: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);

/// Priority of the chains, between others' (`NF_IP_PRI_FILTER`, `NF_BR_PRI_FILTER_BRIDGED`).
const FILTER: i32 = 0;
const BRIDGE_FILTER: i32 = -200;

/// A guarded card on a bridge of the host, as far as rules depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Guard {
    /// The card.
    pub card: usize,
    /// The guest's address on the wire.
    pub mac: MacAddr,
    /// Whether the guest can only be itself.
    pub antispoof: Switch,
    /// Its addresses; any if empty.
    pub addresses: Vec<IpAddr>,
    /// Whether other VMs are out of reach.
    pub isolate: Switch,
    /// Whether its frames may have tags: what is said of the guest holds in every VLAN of its port then.
    pub tagged: Switch,
}

impl Guard {
    /// What its guest may send; none if it may send anything.
    pub(crate) fn chain(&self, tap: IfName) -> Option<Chain> {
        if self.antispoof == Switch::Off {
            return None;
        }
        let own_mac = EtherAddr::from(self.mac);
        let mut rules = vec![
            drop_as(rule(Match::EtherSaddr(Test::is_not(own_mac))), SPOOFED_MAC),
            drop_as(rule(self.carries(Test::NotIn(PROTOCOLS.map(Item::One).to_vec()))), OTHER_PROTOCOL),
        ];
        rules.extend(self.ip4());
        rules.extend(self.arp(own_mac));
        rules.extend(self.ip6());
        Some(ingress(self.card, tap, rules))
    }

    /// What a frame carries. The kernel has taken a tag off before it comes to the chain: `ether type` is still that of the tag, `meta protocol`
    /// what is behind it, which is another tag if there are two.
    fn carries(&self, test: Test<EtherType>) -> Match {
        if self.tagged == Switch::On { Match::Protocol(test) } else { Match::EtherType(test) }
    }

    /// The listed addresses of IPv4; none if there is no list.
    fn listed4(&self) -> Option<Vec<Ipv4Addr>> {
        let of_family = |address: &IpAddr| if let IpAddr::V4(address) = address { Some(*address) } else { None };
        (!self.addresses.is_empty()).then(|| self.addresses.iter().filter_map(of_family).collect())
    }

    /// The same for IPv6.
    fn listed6(&self) -> Option<Vec<Ipv6Addr>> {
        let of_family = |address: &IpAddr| if let IpAddr::V6(address) = address { Some(*address) } else { None };
        (!self.addresses.is_empty()).then(|| self.addresses.iter().filter_map(of_family).collect())
    }

    fn ip4(&self) -> Vec<Rule> {
        let ip4 = || rule(self.carries(Test::is(EtherType::IP4)));
        let rogue = drop_as(ip4().with(Match::UdpSport(Test::is(DHCP_SERVER))), ROGUE_DHCP);
        let tcp = |rule: Rule| rule.with(Match::L4Proto(Test::is(L4Proto::TCP))).with(Verdict::Accept);
        let saddr = |test| rule(Match::Ip4(IpFields::Saddr(test)));
        match self.listed4() {
            None => vec![tcp(ip4()), rogue, ip4().with(Verdict::Accept)],
            Some(listed) if listed.is_empty() => vec![drop_as(ip4(), SPOOFED_IP)],
            Some(listed) => vec![
                // Most of all frames go no further.
                tcp(saddr(Test::any(listed.iter().copied()))),
                rogue,
                // Who asks for an address has none yet (RFC 2131 4.1).
                saddr(Test::is(Ipv4Addr::UNSPECIFIED))
                    .with(Match::UdpDport(Test::is(DHCP_SERVER)))
                    .with(Verdict::Accept),
                drop_as(saddr(none_of(&listed)), SPOOFED_IP),
                ip4().with(Verdict::Accept),
            ],
        }
    }

    fn arp(&self, own_mac: EtherAddr) -> Vec<Rule> {
        let mut rules = vec![drop_as(rule(Match::ArpSender(Test::is_not(own_mac))), SPOOFED_ARP)];
        if let Some(mut listed) = self.listed4() {
            // An ARP probe asks from no address (RFC 5227 2.1.1).
            listed.push(Ipv4Addr::UNSPECIFIED);
            rules.push(drop_as(rule(Match::ArpSenderIp(none_of(&listed))), SPOOFED_ARP));
        }
        rules.push(rule(self.carries(Test::is(EtherType::ARP))).with(Verdict::Accept));
        rules
    }

    fn ip6(&self) -> Vec<Rule> {
        let mut rules = vec![
            drop_as(rule(Match::Icmp6Type(Test::any([Icmp6Type::ROUTER_ADVERT, Icmp6Type::REDIRECT]))), ROGUE_ROUTER),
            drop_as(
                rule(self.carries(Test::is(EtherType::IP6))).with(Match::UdpSport(Test::is(DHCP6_SERVER))),
                ROGUE_DHCP,
            ),
        ];
        if let Some(listed) = self.listed6() {
            rules.extend(own_ip6(&listed, None));
        }
        rules
    }
}

/// Drops what is not from these addresses or that prefix, and what claims others. Link-local ones are fine unless one is among them.
pub(crate) fn own_ip6(addresses: &[Ipv6Addr], prefix: Option<Ipv6Addr>) -> Vec<Rule> {
    let mut own: Vec<Item<Ipv6Addr>> = addresses.iter().copied().map(Item::One).collect();
    if !addresses.iter().any(Ipv6Addr::is_unicast_link_local) {
        own.push(Item::Prefix(LINK_LOCAL.0, LINK_LOCAL.1));
    }
    own.extend(prefix.map(|prefix| Item::Prefix(prefix, PREFIX_LEN)));
    // A guest has no address before it has one, and asks from none whether anybody has it (RFC 4862 5.4.2).
    let none = Item::One(Ipv6Addr::UNSPECIFIED);
    let from = [own.as_slice(), &[none]].concat();
    let claim =
        |icmp6_type| rule(Match::Icmp6Type(Test::is(icmp6_type))).with(Match::NdTarget(Test::NotIn(own.clone())));
    let probe = rule(Match::Ip6(IpFields::Saddr(Test::is(Ipv6Addr::UNSPECIFIED))))
        .with(Match::Icmp6Type(Test::is(Icmp6Type::NEIGHBOR_SOLICIT)))
        .with(Match::NdTarget(Test::NotIn(own.clone())));
    vec![
        drop_as(rule(Match::Ip6(IpFields::Saddr(Test::NotIn(from)))), SPOOFED_IP),
        drop_as(claim(Icmp6Type::NEIGHBOR_ADVERT), SPOOFED_ND),
        drop_as(probe, SPOOFED_ND),
    ]
}

/// Keeps frames from passing between the card behind `tap` and other VMs. The other ports of a bridge of the host may lead out;
/// those of VMs are taps.
pub(crate) fn between_taps(tap: &IfName) -> [Rule; 2] {
    let other = || Test::is(LinkKind("tun".to_owned()));
    [
        drop_as(rule(Match::iif(tap)).with(Match::OifKind(other())), ISOLATED),
        drop_as(rule(Match::oif(tap)).with(Match::IifKind(other())), ISOLATED),
    ]
}

/// The chain of what a bridge passes from port to port.
pub(crate) fn isolation(rules: Vec<Rule>) -> Chain {
    let base =
        Base { chain_type: ChainType::Filter, hook: Hook::Forward, priority: BRIDGE_FILTER, policy: Policy::Accept };
    Chain { name: "forward".to_owned(), base: Some(base), rules }
}

/// The chain of what comes from the guest of a card.
pub(crate) fn ingress(card: usize, tap: IfName, rules: Vec<Rule>) -> Chain {
    let base =
        Base { chain_type: ChainType::Filter, hook: Hook::Ingress(tap), priority: FILTER, policy: Policy::Accept };
    Chain { name: format!("card{card}"), base: Some(base), rules }
}

fn rule(condition: Match) -> Rule {
    Rule::new().with(condition)
}

/// The rule with an end: counted under a reason, and dropped.
pub(crate) fn drop_as(rule: Rule, reason: &str) -> Rule {
    rule.with(Statement::CountIn(reason.to_owned())).with(Verdict::Drop)
}

fn none_of(addresses: &[Ipv4Addr]) -> Test<Ipv4Addr> {
    Test::NotIn(addresses.iter().copied().map(Item::One).collect())
}
