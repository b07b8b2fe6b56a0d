//! Keeps the host from becoming a router: packets that come in by an interface that forwards because of a network of
//! ours leave by such a network only.
//!
//! ```text
//! table inet minivmm-VM/fence
//!   forward   to or from mvn-* -> pass;  IPv4 from what we switched on, IPv6 if we switched it on -> drop
//! ```
//!
//! Otherwise a host with two networks would be a router between them for as long as a VM runs. Every VM has such a
//! table, as each may be the last, and they all say the same: what one drops is dropped, and rules of other programs
//! decide about packets that all of them accept, whatever their priority. Interfaces that forwarded before are in none
//! of them. As soon as the admin has the host forward (`net.ipv4.ip_forward=1`, IPv6 by `all` or `default`), there is
//! nothing to fence off, and the rules go.
//!
//! Frames that a bridge hands to the rules of packets (`br_netfilter`) come in and leave by the same bridge, and pass.
//! Thus not kept apart: two subnets on one bridge. IPv6 between two bridges of which one has been made in the last
//! tenth of a second is not, either.

use std::collections::BTreeSet;
use std::fmt;

use super::{ipv6, network};
use crate::facts::Link;
use crate::kernel::nft::{
    Base, Chain, ChainType, Family, Hook, LinkKind, Match, NamePrefix, NfProto, Policy, Rule, Table, TableName, Test,
    Verdict,
};
use crate::kernel::sysctl;
use crate::rules::guard::drop_as;
use crate::spec::{IfName, NETWORK_PREFIXES};

/// Name of the counter, which gives the reason for the drops.
const NO_ROUTER: &str = "no-router";

/// The name of the only chain.
pub(crate) const CHAIN: &str = "forward";

/// Priority of the hook (`NF_IP_PRI_FILTER`).
const FILTER: i32 = 0;

/// Interfaces whose packets leave by networks of ours only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fence {
    /// Interfaces by which IPv4 comes in, without bridges.
    links: BTreeSet<IfName>,
    /// The bridges among them.
    bridges: BTreeSet<IfName>,
    /// If the fence covers IPv6, which concerns all interfaces: all bridges of the host but our networks.
    ipv6: Option<BTreeSet<IfName>>,
}

impl Fence {
    /// The current fence, from the aliases of bridges of ours.
    pub(crate) fn of(links: &[Link]) -> Self {
        let mut fence = Self::default();
        let all = sysctl::forwards("all");
        for (_, mut alias) in links.iter().filter_map(network) {
            alias.settle(all);
            fence.add(links, |link| alias.forward.contains(&link.index));
            if alias.forward6 && !ipv6::is_wanted_by_others(&alias) {
                fence = fence.with_ipv6(links);
            }
        }
        fence
    }

    /// Adds interfaces that are about to be switched on.
    pub(crate) fn with(mut self, links: &[Link], uplinks: &[IfName]) -> Self {
        self.add(links, |link| {
            uplinks.iter().any(|uplink| uplink.as_str() == link.name) && !sysctl::forwards(&link.name)
        });
        self
    }

    /// Extends the fence to IPv6.
    pub(crate) fn with_ipv6(mut self, links: &[Link]) -> Self {
        let bridges = links.iter().filter(|link| link.is_bridge() && !link.is_our_network());
        self.ipv6 = Some(bridges.filter_map(name).collect());
        self
    }

    /// True if it fences nothing off.
    pub(crate) fn is_empty(&self) -> bool {
        self.links.is_empty() && self.bridges.is_empty() && self.ipv6.is_none()
    }

    fn add(&mut self, links: &[Link], is_in: impl Fn(&Link) -> bool) {
        for link in links.iter().filter(|link| is_in(link)) {
            let set = if link.is_bridge() { &mut self.bridges } else { &mut self.links };
            set.extend(name(link));
        }
    }

    /// The table of a VM.
    pub(crate) fn table(&self, vm: &str) -> Table {
        let base =
            Base { chain_type: ChainType::Filter, hook: Hook::Forward, priority: FILTER, policy: Policy::Accept };
        let chain = Chain { name: CHAIN.to_owned(), base: Some(base), rules: self.rules() };
        Table { name: table_name(vm), counters: vec![NO_ROUTER.to_owned()], sets: Vec::new(), chains: vec![chain] }
    }

    /// The rules of its chain.
    pub(crate) fn rules(&self) -> Vec<Rule> {
        if self.is_empty() {
            return Vec::new();
        }
        let [nat, _] = NETWORK_PREFIXES.map(NamePrefix);
        let bridge = || Test::is(LinkKind("bridge".to_owned()));
        let of = |version| Rule::new().with(Match::NfProto(Test::is(version)));
        let beyond = |version, bridge: &IfName| {
            of(version).with(Match::iif(bridge)).with(Match::Oif(Test::is_not(bridge.clone())))
        };
        let mut rules = vec![
            Rule::new().with(Match::OifPrefix(nat)).with(Verdict::Accept),
            Rule::new().with(Match::IifPrefix(nat)).with(Verdict::Accept),
        ];
        if !self.links.is_empty() {
            let links = Match::Iif(Test::any(self.links.iter().cloned()));
            rules.push(drop_as(of(NfProto::IP4).with(links), NO_ROUTER));
        }
        rules.extend(self.bridges.iter().map(|bridge| drop_as(beyond(NfProto::IP4, bridge), NO_ROUTER)));
        if let Some(bridges) = &self.ipv6 {
            rules.extend(bridges.iter().map(|bridge| drop_as(beyond(NfProto::IP6, bridge), NO_ROUTER)));
            let bridged = of(NfProto::IP6).with(Match::IifKind(bridge())).with(Match::OifKind(bridge()));
            rules.push(bridged.with(Verdict::Accept));
            rules.push(drop_as(of(NfProto::IP6), NO_ROUTER));
        }
        rules
    }
}

/// The interfaces in a sentence.
impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<&str> = self.links.iter().chain(&self.bridges).map(IfName::as_str).collect();
        if self.ipv6.is_some() {
            names.push("all interfaces by IPv6");
        }
        f.write_str(&names.join(", "))
    }
}

/// The name of a VM's table. A VM's name has no slash.
pub(crate) fn table_name(vm: &str) -> TableName {
    TableName { family: Family::Inet, name: format!("minivmm-{vm}/fence") }
}

fn name(link: &Link) -> Option<IfName> {
    link.name.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<IfName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn text(fence: &Fence) -> Vec<String> {
        fence.rules().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_fence_around_nothing_has_no_rules() {
        assert!(Fence::default().is_empty());
        assert_eq!(text(&Fence::default()), Vec::<String>::new());
    }

    #[test]
    fn networks_of_ours_pass_and_the_rest_is_dropped() {
        let fence = Fence { links: names(&["eth0", "eth1"]), bridges: names(&["br0"]), ipv6: Some(names(&["br0"])) };
        assert_eq!(
            text(&fence),
            [
                "oifname \"mvn-*\" accept",
                "iifname \"mvn-*\" accept",
                "meta nfproto ipv4 iifname { \"eth0\", \"eth1\" } counter name \"no-router\" drop",
                "meta nfproto ipv4 iifname \"br0\" oifname != \"br0\" counter name \"no-router\" drop",
                "meta nfproto ipv6 iifname \"br0\" oifname != \"br0\" counter name \"no-router\" drop",
                "meta nfproto ipv6 meta iifkind \"bridge\" meta oifkind \"bridge\" accept",
                "meta nfproto ipv6 counter name \"no-router\" drop",
            ]
        );
    }
}
