//! Rules that keep one guest from filling the host's table of connections.
//!
//! ```text
//! prerouting (from the guest, see `reach`) --.
//! forward (to it) ---------------------------'--first packet of a connection-->  limitsN: too fast? too many?
//! ```
//!
//! Both ways meet in one chain, because a rule counts only what it has seen itself. A packet is a connection's first
//! until the connection is confirmed, which is when it has passed all hooks; a dropped one leaves no connection behind.
//! The kernel forgets a closed TCP connection here at once, though it tracks it for two more minutes.
//!
//! At a new connection the kernel looks up all that a rule has counted, which takes milliseconds where there are tens
//! of thousands. So beyond [`LIST_MAX`] each is counted in the next of many short lists, or in one of the few after it
//! if that is full. As long as none is closed, the limit is exact; lists from which some have gone are of different
//! lengths, and then a few may be refused from about three quarters of the limit on.
//!
//! Not counted: traffic between guests of a bridge, which the host does not track.

use crate::kernel::nft::{
    Base, Chain, ChainType, CtState, CtStatus, Elements, Hook, IpFields, Limit, Match, Per, Policy, Rule, Set,
    Statement, Test, Verdict,
};
use crate::rules::guard::drop_as;
use crate::rules::member::Member;

/// After connection tracking and before the translation of destinations (`NF_IP_PRI_MANGLE`).
pub(super) const MANGLE: i32 = -150;

/// Names of the counters.
pub(crate) const TOO_MANY: &str = "too-many-connections";
pub(crate) const TOO_FAST: &str = "too-many-new-connections";

/// Connections that are counted in one list.
const LIST_MAX: u32 = 1024;

/// Connections in each of many lists, and how many of these are tried.
const SHARE: u32 = 16;
const TRIES: usize = 4;

/// The chains for members with limits; none if there are no limits.
pub(crate) fn chains(members: &[Member]) -> Vec<Chain> {
    let limited = || members.iter().filter(|member| !member.limits.is_none());
    let mut chains: Vec<Chain> = limited().map(limits).collect();
    if !chains.is_empty() {
        chains.push(base("limit-to", Hook::Forward, limited().flat_map(to).collect()));
    }
    chains
}

/// The sets of lists that the chains use.
pub(crate) fn sets(members: &[Member]) -> Vec<Set> {
    let shared = |member: &Member| {
        let most = shares(member.limits.connections?.get())?;
        Some(Set { name: set(member), elements: Elements::Shares { most } })
    };
    members.iter().filter_map(shared).collect()
}

/// The rule that leads the member's new connections to its limits, if it has any.
pub(crate) fn jump(member: &Member) -> Option<Rule> {
    let first = Rule::new().with(Match::CtState(vec![CtState::New]));
    (!member.limits.is_none()).then(|| first.with(Verdict::Jump(name(member))))
}

fn name(member: &Member) -> String {
    format!("limits{}", member.card)
}

fn set(member: &Member) -> String {
    format!("connections{}", member.card)
}

/// The number of lists for so many connections; none where one list does.
fn shares(connections: u32) -> Option<u32> {
    (connections > LIST_MAX).then_some(connections / SHARE)
}

fn limits(member: &Member) -> Chain {
    let mut rules = vec![Rule::new().with(Match::CtStatus(vec![CtStatus::Confirmed])).with(Verdict::Return)];
    if let Some(rate) = member.limits.new_connections {
        let packets = u64::from(rate.per_second());
        let limit = Limit { over: true, packets, per: Per::Second, burst: rate.per_second() };
        rules.push(drop_as(Rule::new().with(Statement::Limit(limit)), TOO_FAST));
    }
    if let Some(most) = member.limits.connections {
        rules.push(drop_as(over(member, most.get()), TOO_MANY));
    }
    Chain { name: name(member), base: None, rules }
}

/// A rule that matches beyond `most` connections.
fn over(member: &Member, most: u32) -> Rule {
    let Some(shares) = shares(most) else { return Rule::new().with(Statement::CtCountOver(most)) };
    let share = || Statement::CtShareOver { set: set(member), shares, count: SHARE };
    let rule = (0..TRIES).fold(Rule::new(), |rule, _| rule.with(share()));
    match most % SHARE {
        0 => rule,
        rest => rule.with(Statement::CtCountOver(rest)),
    }
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
