//! Guards: the frames that a guest may send on a bridge, and its isolation from other VMs of the host there.
//!
//! ```text
//! table netdev minivmm-VM    a chain on the tap's ingress: its own addresses only, nothing that only servers say;
//!                            without a guard nothing that only switches say
//! table bridge minivmm-VM    forward: no frames between the tap and those of other VMs
//! ```
//!
//! The netdev family sees ARP and other protocols beside IP, which the ingress hook of inet tables lets pass. A guest
//! without a list of addresses may use any on its own MAC. It still cannot speak for another MAC, nor as a DHCP server
//! or a router.
//!
//! [`owned`] says which IPv6 addresses are a guest's.

pub(crate) mod headers;
pub(crate) mod link;
pub(crate) mod owned;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::identity::mac::MacAddr;
use crate::kernel::nft::{
    Base, Chain, ChainType, EtherAddr, EtherType, Fragment, Hook, Icmp6Type, IpFields, Item, L4Proto, LinkKind, Match,
    Policy, Rule, Statement, Test, Verdict,
};
use crate::services::{DHCP_CLIENT, DHCP_SERVER, DHCP6_CLIENT, DHCP6_SERVER};
use crate::spec::{IfName, Switch};
use headers::MALFORMED;
use link::{BPDU, TAGGED};
use owned::Owned6;

/// Reasons for drops: the names of the counters.
pub(crate) const SPOOFED_MAC: &str = "spoofed-mac";
pub(crate) const SPOOFED_ARP: &str = "spoofed-arp";
pub(crate) const SPOOFED_IP: &str = "spoofed-ip";
pub(crate) const SPOOFED_ND: &str = "spoofed-nd";
pub(crate) const ROGUE_DHCP: &str = "rogue-dhcp";
pub(crate) const ROGUE_ROUTER: &str = "rogue-router";
pub(crate) const OTHER_PROTOCOL: &str = "other-protocol";
pub(crate) const ISOLATED: &str = "isolated";
pub(crate) const LOOPBACK_ADDRESS: &str = "loopback";

/// All counters of frames that a guard refuses.
pub(crate) const COUNTERS: [&str; 8] =
    [SPOOFED_MAC, SPOOFED_ARP, SPOOFED_IP, SPOOFED_ND, ROGUE_DHCP, ROGUE_ROUTER, OTHER_PROTOCOL, MALFORMED];

/// Counters of frames that are refused without a guard, too.
pub(crate) const ALWAYS: [&str; 3] = [LOOPBACK_ADDRESS, BPDU, TAGGED];

/// Protocols that a guest may use. A tagged frame has the type of its tag, unless the guest is on a trunk.
pub(crate) const PROTOCOLS: [EtherType; 3] = [EtherType::IP4, EtherType::ARP, EtherType::IP6];

/// First bytes of a server's messages to a relay (RFC 2131 2, RFC 8415 7.3).
const BOOT_REPLY: u8 = 2;
const RELAY_REPLY: u8 = 13;

/// The host's own addresses, which no packet on a wire may have (RFC 1122 3.2.1.3).
pub(crate) const LOOPBACK: (Ipv4Addr, u8) = (Ipv4Addr::new(127, 0, 0, 0), 8);

/// Link-local addresses (RFC 4291 2.5.6), and their prefix length.
const LINK_LOCAL: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);

/// Priority of the chains, between others' (`NF_IP_PRI_FILTER`, `NF_BR_PRI_FILTER_BRIDGED`).
const FILTER: i32 = 0;
const BRIDGE_FILTER: i32 = -200;

/// A card on a bridge of the host, as far as rules depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Guard {
    /// The card.
    pub card: usize,
    /// The guest's MAC address.
    pub mac: MacAddr,
    /// On if the guest may use its own MAC and addresses only.
    pub antispoof: Switch,
    /// Its addresses; any if empty.
    pub addresses: Vec<IpAddr>,
    /// On if other VMs are out of reach.
    pub isolate: Switch,
    /// On if its frames may have tags: the rules on the guest then hold in every VLAN of its port.
    pub tagged: Switch,
    /// On if it is in one VLAN only, which its bridge knows from the port.
    pub access: Switch,
    /// The bridge and its MAC address, if that is known when the plan is made.
    pub router: Option<(IfName, MacAddr)>,
}

impl Guard {
    /// True if the guest is refused only frames that no guest may send.
    pub(crate) fn is_open(&self) -> bool {
        self.antispoof == Switch::Off && self.isolate == Switch::Off
    }

    /// The chain with the rules on what its guest may send.
    pub(crate) fn chain(&self, tap: IfName) -> Chain {
        if self.antispoof == Switch::Off {
            let second_tag = (self.access == Switch::On).then(link::no_second_tag);
            let rules = [link::no_bpdu()].into_iter().chain(second_tag).chain(self.not_routed_back());
            return ingress(self.card, tap, rules.collect());
        }
        let own_mac = EtherAddr::from(self.mac);
        let mut rules = vec![
            drop_as(rule(Match::EtherSaddr(Test::is_not(own_mac))), SPOOFED_MAC),
            drop_as(rule(self.carries(Test::NotIn(PROTOCOLS.map(Item::One).to_vec()))), OTHER_PROTOCOL),
        ];
        rules.extend(self.not_routed_back());
        rules.extend(self.ip4());
        rules.extend(self.arp(own_mac));
        rules.extend(self.ip6());
        ingress(self.card, tap, rules)
    }

    /// Drops packets that an isolated guest sends to the host to be routed back into the bridge, to other VMs. The
    /// machines that the guest may reach need no router.
    fn not_routed_back(&self) -> Option<Rule> {
        let (bridge, mac) = self.router.as_ref().filter(|_| self.isolate == Switch::On)?;
        let to_host = rule(Match::EtherDaddr(Test::is(EtherAddr::from(*mac))));
        Some(drop_as(to_host.with(Match::FibDaddrOif(Test::is(bridge.clone()))), ISOLATED))
    }

    /// Matches the protocol of a frame. The kernel has removed a tag before the frame comes to the chain: `ether type`
    /// is still that of the tag, `meta protocol` the one behind it, which is another tag if there are two.
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
        let daddr = |test| Match::Ip4(IpFields::Daddr(test));
        let saddr = |test| rule(Match::Ip4(IpFields::Saddr(test)));
        let loopback = || Item::Prefix(LOOPBACK.0, LOOPBACK.1);
        // Most frames end here.
        let tcp = |rule: Rule| {
            rule.with(Match::L4Proto(Test::is(L4Proto::TCP))).with(daddr(Test::IsNot(loopback()))).with(Verdict::Accept)
        };
        let own = match self.listed4() {
            None => ip4(),
            Some(listed) if listed.is_empty() => return vec![drop_as(ip4(), SPOOFED_IP)],
            Some(listed) => saddr(Test::any(listed)),
        };
        let mut rules = vec![tcp(own.clone()), later4(own)];
        rules.extend(no_dhcp_server(ip4));
        if let Some(listed) = self.listed4() {
            // A client that asks for an address has none yet (RFC 2131 4.1).
            let asks = saddr(Test::is(Ipv4Addr::UNSPECIFIED)).with(Match::UdpDport(Test::is(DHCP_SERVER)));
            rules.extend([asks.with(Verdict::Accept), drop_as(saddr(none_of(&listed)), SPOOFED_IP)]);
        }
        rules.push(drop_as(rule(daddr(Test::Is(loopback()))), LOOPBACK_ADDRESS));
        rules.push(ip4().with(Verdict::Accept));
        rules
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
        let ip6 = || rule(self.carries(Test::is(EtherType::IP6)));
        let owned = Owned6::of_guard(self);
        let mut rules: Vec<Rule> = owned.iter().map(Owned6::source).collect();
        rules.extend(headers::fragments6(&Verdict::Accept, MALFORMED));
        rules.push(no_router());
        rules.extend(no_dhcp6_server(ip6));
        rules.extend(owned.iter().flat_map(Owned6::claims));
        rules.extend(headers::whole_ip6());
        rules
    }
}

/// Lets later fragments of IPv4 packets pass before other rules take their payload for a header. `own` begins a rule
/// for the guest's.
pub(crate) fn later4(own: Rule) -> Rule {
    own.with(Match::Fragment4(Fragment::Later)).with(Verdict::Accept)
}

/// Drops messages that only routers send to hosts.
pub(crate) fn no_router() -> Rule {
    let types = Test::any([Icmp6Type::ROUTER_ADVERT, Icmp6Type::REDIRECT]);
    drop_as(rule(Match::Icmp6Type(types)), ROGUE_ROUTER)
}

/// Drops messages that only DHCP servers send: from their port, to clients from any port, which clients do not check,
/// and to relays. `ip4` begins a rule for IPv4.
pub(crate) fn no_dhcp_server(ip4: impl Fn() -> Rule) -> [Rule; 3] {
    let to = |port| ip4().with(Match::UdpDport(Test::is(port)));
    [
        drop_as(ip4().with(Match::UdpSport(Test::is(DHCP_SERVER))), ROGUE_DHCP),
        drop_as(to(DHCP_CLIENT), ROGUE_DHCP),
        drop_as(to(DHCP_SERVER).with(Match::UdpPayload(BOOT_REPLY)), ROGUE_DHCP),
    ]
}

/// The same for DHCPv6.
pub(crate) fn no_dhcp6_server(ip6: impl Fn() -> Rule) -> [Rule; 3] {
    let to = |port| ip6().with(Match::UdpDport(Test::is(port)));
    [
        drop_as(ip6().with(Match::UdpSport(Test::is(DHCP6_SERVER))), ROGUE_DHCP),
        drop_as(to(DHCP6_CLIENT), ROGUE_DHCP),
        drop_as(to(DHCP6_SERVER).with(Match::UdpPayload(RELAY_REPLY)), ROGUE_DHCP),
    ]
}

/// Drops frames between the card behind `tap` and other VMs. The other ports of a bridge of the host may lead out;
/// those of VMs are taps.
pub(crate) fn between_taps(tap: &IfName) -> [Rule; 2] {
    let other = || Test::is(LinkKind("tun".to_owned()));
    [
        drop_as(rule(Match::iif(tap)).with(Match::OifKind(other())), ISOLATED),
        drop_as(rule(Match::oif(tap)).with(Match::IifKind(other())), ISOLATED),
    ]
}

/// The chain for frames that a bridge forwards from port to port.
pub(crate) fn isolation(rules: Vec<Rule>) -> Chain {
    let base =
        Base { chain_type: ChainType::Filter, hook: Hook::Forward, priority: BRIDGE_FILTER, policy: Policy::Accept };
    Chain { name: "forward".to_owned(), base: Some(base), rules }
}

/// The chain for frames from the guest of a card.
pub(crate) fn ingress(card: usize, tap: IfName, rules: Vec<Rule>) -> Chain {
    let base =
        Base { chain_type: ChainType::Filter, hook: Hook::Ingress(tap), priority: FILTER, policy: Policy::Accept };
    Chain { name: format!("card{card}"), base: Some(base), rules }
}

fn rule(condition: Match) -> Rule {
    Rule::new().with(condition)
}

/// Ends a rule: it counts under `reason`, and drops.
pub(crate) fn drop_as(rule: Rule, reason: &str) -> Rule {
    rule.with(Statement::CountIn(reason.to_owned())).with(Verdict::Drop)
}

fn none_of(addresses: &[Ipv4Addr]) -> Test<Ipv4Addr> {
    Test::NotIn(addresses.iter().copied().map(Item::One).collect())
}
