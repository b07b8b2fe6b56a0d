//! The IPv6 addresses of a guest: those that follow from its MAC or are listed, and those that it has claimed first.
//!
//! ```text
//! fixed      known before the guest runs: listed, or made of its MAC (RFC 4291 appendix A), under its prefix and on
//!            the link
//! claimed    asked for by duplicate address detection (RFC 4862 5.4.2) when no machine had them; the keeper says which
//! ```
//!
//! A guest sends from these and answers for these, nothing else. An address made of another MAC is never claimed, so a
//! guest cannot take that of a VM that is yet to start. A guest that does not probe for its addresses (`dad_transmits`
//! 0, `nodad`) has the fixed ones only.

use std::net::Ipv6Addr;

use super::{Guard, LINK_LOCAL, SPOOFED_IP, SPOOFED_ND, drop_as, rule};
use crate::identity::mac::MacAddr;
use crate::kernel::nft::{Elements, Icmp6Type, IpFields, Item, Match, Rule, Set, Test, Verdict};
use crate::rules::member::Member;
use crate::services::{Ipv6Network, PREFIX_LEN};
use crate::spec::Switch;

/// Most addresses that a guest has claimed at a time; beyond, the one claimed longest ago goes. Linux makes at most
/// 16 by itself on a card (`max_addresses`), so those of the boot before have room, too. Each may be a neighbour of
/// the host, which has room for 1024.
pub(crate) const CLAIMED_MAX: usize = 32;

/// The addresses of one card's guest.
#[derive(Clone, Debug)]
pub(crate) struct Owned6 {
    pub(crate) card: usize,
    pub(crate) mac: MacAddr,
    pub(crate) fixed: Vec<Ipv6Addr>,
    /// The prefix under which it may claim some.
    pub(crate) prefix: Option<Ipv6Addr>,
    /// On if it may claim link-local ones.
    link_local: Switch,
    /// Those of its gateway.
    gateways: Vec<Ipv6Addr>,
    /// On if its solicitations get to machines that minivmm does not know.
    asks_others: Switch,
}

impl Owned6 {
    /// The addresses of a guest on a network of ours.
    pub(crate) fn of_member(member: &Member) -> Self {
        let global = member.ipv6.map(|network| network.address_of(member.mac));
        Self {
            card: member.card,
            mac: member.mac,
            fixed: [link_local_of(member.mac)].into_iter().chain(global).collect(),
            prefix: member.ipv6.map(|network| network.prefix),
            link_local: Switch::On,
            gateways: member.ipv6.map_or_else(Vec::new, |network| vec![network.gateway, network.link_local]),
            asks_others: Switch::Off,
        }
    }

    /// The addresses of a guest on a bridge of the host; none if it may have any.
    pub(crate) fn of_guard(guard: &Guard) -> Option<Self> {
        let mut fixed = guard.listed6().filter(|_| guard.antispoof == Switch::On)?;
        let link_local = if fixed.iter().any(Ipv6Addr::is_unicast_link_local) { Switch::Off } else { Switch::On };
        fixed.extend((link_local == Switch::On).then(|| link_local_of(guard.mac)));
        let (card, mac) = (guard.card, guard.mac);
        Some(Self { card, mac, fixed, prefix: None, link_local, gateways: Vec::new(), asks_others: Switch::On })
    }

    /// The name of the set of claimed addresses.
    pub(crate) fn set_name(&self) -> String {
        format!("claimed6-{}", self.card)
    }

    /// The set, empty.
    pub(crate) fn set(&self) -> Set {
        Set { name: self.set_name(), elements: Elements::Ip6(Vec::new()) }
    }

    /// True if its solicitations reach machines that minivmm does not know, which may object.
    pub(crate) fn asks_others(&self) -> bool {
        self.asks_others == Switch::On
    }

    /// True if it may claim this address when no other machine has it.
    pub(crate) fn may_claim(&self, address: Ipv6Addr) -> bool {
        let [.., a, b, _, _, _] = address.octets();
        let of_a_mac = [a, b] == [0xff, 0xfe];
        let identifier = address.to_bits() & u128::from(u64::MAX);
        let on_link = self.link_local == Switch::On && address.octets()[..8] == link_local_of(self.mac).octets()[..8];
        let in_prefix = self.prefix.is_some_and(|prefix| prefix.octets()[..8] == address.octets()[..8]);
        // An address without an identifier is that of any router (RFC 4291 2.6.1).
        (on_link || in_prefix) && identifier != 0 && !of_a_mac && !self.gateways.contains(&address)
    }

    /// Drops packets from the addresses of others.
    pub(crate) fn source(&self) -> Rule {
        // A guest without an address probes for one from the unspecified address (RFC 4862 5.4.2).
        let fixed = self.fixed.iter().copied().chain([Ipv6Addr::UNSPECIFIED]).map(Item::One).collect();
        let from = |test| Match::Ip6(IpFields::Saddr(test));
        drop_as(rule(from(Test::NotIn(fixed))).with(from(Test::NotInSet(self.set_name()))), SPOOFED_IP)
    }

    /// Drops claims to the addresses of others, and probes for those that the guest cannot have.
    pub(crate) fn claims(&self) -> Vec<Rule> {
        let fixed = || self.fixed.iter().copied().map(Item::One).collect::<Vec<_>>();
        let others = |rule: Rule| {
            rule.with(Match::NdTarget(Test::NotIn(fixed()))).with(Match::NdTarget(Test::NotInSet(self.set_name())))
        };
        let says = |icmp6_type| Match::Icmp6Type(Test::is(icmp6_type));
        let asks = || {
            rule(Match::Ip6(IpFields::Saddr(Test::is(Ipv6Addr::UNSPECIFIED)))).with(says(Icmp6Type::NEIGHBOR_SOLICIT))
        };
        let mut range = fixed();
        range.extend((self.link_local == Switch::On).then_some(Item::Prefix(LINK_LOCAL.0, LINK_LOCAL.1)));
        range.extend(self.prefix.map(|prefix| Item::Prefix(prefix, PREFIX_LEN)));
        let mut rules = vec![
            drop_as(others(rule(says(Icmp6Type::NEIGHBOR_ADVERT))), SPOOFED_ND),
            drop_as(asks().with(Match::NdTarget(Test::NotIn(range))), SPOOFED_ND),
        ];
        if !self.asks_others() {
            // The keeper has heard the probe and knows whose the address is. A sibling that heard it could object to
            // all.
            rules.push(others(asks()).with(Verdict::Drop));
        }
        rules
    }
}

/// The link-local address that is made of a MAC.
fn link_local_of(mac: MacAddr) -> Ipv6Addr {
    let link = LINK_LOCAL.0;
    Ipv6Network { prefix: link, gateway: link, link_local: link }.address_of(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(addresses: &[&str]) -> Owned6 {
        let guard = Guard {
            card: 0,
            mac: "52:54:00:00:00:05".parse().unwrap(),
            antispoof: Switch::On,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            isolate: Switch::Off,
            tagged: Switch::Off,
            access: Switch::Off,
            router: None,
        };
        Owned6::of_guard(&guard).unwrap()
    }

    #[test]
    fn link_local_addresses_are_claimed_but_for_those_of_macs_and_routers() {
        let owned = owned(&["2001:db8::5"]);
        assert!(owned.may_claim("fe80::1234:5678:9abc:def0".parse().unwrap()));
        for text in ["fe80::5054:ff:fe00:6", "fe80::", "fe80:0:0:1::1", "2001:db8::6", "::1", "ff02::1"] {
            assert!(!owned.may_claim(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_listed_link_local_address_is_the_only_one() {
        let owned = owned(&["fe80::5"]);
        assert_eq!(owned.fixed, ["fe80::5".parse::<Ipv6Addr>().unwrap()]);
        assert!(!owned.may_claim("fe80::6".parse().unwrap()));
    }
}
