//! Rules that keep one guest from filling the host's table of connections.
//!
//! ```text
//! prerouting (from the guest), forward (to it)  --first packet of a connection-->  limitsN: too fast? too many?
//! ```
//!
//! Both ways meet in one chain, because a rule counts what it has seen itself. A packet is a connection's first until the
//! connection is confirmed, which is when it has passed all hooks; one that is dropped leaves no connection behind.
//! The kernel forgets a closed TCP connection here at once, though it tracks it for two more minutes.
//!
//! Not counted: what guests of a bridge say to each other, which the host does not track.

use crate::guard::drop_as;
use crate::nft::{
    Base, Chain, ChainType, CtState, CtStatus, EtherAddr, Hook, IpFields, Limit, Match, Per, Policy, Rule, Statement,
    Test, Verdict,
};
use crate::rules::Member;

/// Names of the counters.
pub(crate) const TOO_MANY: &str = "too-many-connections";
pub(crate) const TOO_FAST: &str = "too-many-new-connections";

/// After connection tracking and before the translation of destinations (`NF_IP_PRI_MANGLE`).
const MANGLE: i32 = -150;

/// The chains for members with limits; none if there are no limits.
pub(crate) fn chains(members: &[Member]) -> Vec<Chain> {
    let limited = || members.iter().filter(|member| !member.limits.is_none());
    let mut chains: Vec<Chain> = limited().map(limits).collect();
    if !chains.is_empty() {
        chains.push(base("limit-from", Hook::Prerouting, limited().map(from).collect()));
        chains.push(base("limit-to", Hook::Forward, limited().flat_map(to).collect()));
    }
    chains
}

fn name(member: &Member) -> String {
    format!("limits{}", member.card)
}

fn limits(member: &Member) -> Chain {
    let mut rules = vec![Rule::new().with(Match::CtStatus(vec![CtStatus::Confirmed])).with(Verdict::Return)];
    if let Some(rate) = member.limits.new_connections {
        let packets = u64::from(rate.per_second());
        let limit = Limit { over: true, packets, per: Per::Second, burst: rate.per_second() };
        rules.push(drop_as(Rule::new().with(Statement::Limit(limit)), TOO_FAST));
    }
    if let Some(most) = member.limits.connections {
        rules.push(drop_as(Rule::new().with(Statement::CtCountOver(most.get())), TOO_MANY));
    }
    Chain { name: name(member), base: None, rules }
}

fn from(member: &Member) -> Rule {
    // By the address on the wire, which is the same for every protocol.
    Rule::new()
        .with(Match::iif(&member.bridge))
        .with(Match::EtherSaddr(Test::is(EtherAddr::from(member.mac))))
        .with(Match::CtState(vec![CtState::New]))
        .with(Verdict::Jump(name(member)))
}

fn to(member: &Member) -> Vec<Rule> {
    let ip4 = Match::Ip4(IpFields::Daddr(Test::is(member.address)));
    let ip6 = member.address6.map(|address| Match::Ip6(IpFields::Daddr(Test::is(address))));
    let rule = |to_guest: Match| {
        Rule::new()
            .with(Match::oif(&member.bridge))
            .with(to_guest)
            .with(Match::CtState(vec![CtState::New]))
            .with(Verdict::Jump(name(member)))
    };
    [Some(ip4), ip6].into_iter().flatten().map(rule).collect()
}

fn base(name: &str, hook: Hook, rules: Vec<Rule>) -> Chain {
    let base = Base { chain_type: ChainType::Filter, hook, priority: MANGLE, policy: Policy::Accept };
    Chain { name: name.to_owned(), base: Some(base), rules }
}
