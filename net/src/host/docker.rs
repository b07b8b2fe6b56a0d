//! Docker's chain for the rules of other programs.
//!
//! Docker drops forwarded traffic that no rule accepts, and a table of ours cannot accept what another table drops. But
//! its first rule jumps to a chain that it never changes itself, which takes two rules for each card behind NAT:
//!
//! ```text
//! table ip filter    FORWARD (policy drop) --> DOCKER-USER: what the user has put there, [rules of VMs], return
//! ```
//!
//! They come after the user's own rules, which so decide first, name VM and network in a comment, which `iptables -S`
//! shows, and do not lead to containers. The keeper that made them removes them by their handles. If it was killed, the
//! next start behind NAT, or `minivmm net gc`, finds rules whose VM has no tap on that network. The table is not ours,
//! so the kernel does not remove them by itself.
//!
//! Docker may come and go, and flush its rules, while a VM runs: the keeper sees that, and has the rules where the
//! chain is.
//!
//! Not supported: a Docker that works through the predecessor of nf_tables (`minivmm doctor` says what to do then).

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::facts::Link;
use crate::facts::docker::{CHAIN, DockerTables};
use crate::identity::alias::{Mode, TapAlias};
use crate::kernel::nft::{
    BaseChainSeen, Batch, Command, Family, IpFields, Match, NftError, NftSocket, Rule, RuleInChain, Statement, Test,
    Verdict,
};
use crate::rules::Member;
use crate::services::PREFIX_LEN;
use crate::spec::IfName;
use crate::survey::docker::table;

/// The first word of the comments of our rules.
const MARK: &str = "minivmm";

/// Bridges of containers: the first one, that of a swarm, and those of networks that the user has made.
const BRIDGES: [&str; 2] = ["docker0", "docker_gwbridge"];
const NETWORK_PREFIX: &str = "br-";
const NETWORK_DIGITS: usize = 12;

/// A card that is to be let through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Admission {
    /// The network's bridge.
    pub bridge: IfName,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The network's IPv6 prefix, if it has one and Docker drops there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix6: Option<Ipv6Addr>,
}

/// A rule of ours in a table of Docker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    family: Family,
    handle: u64,
}

/// The admission that a card on a network of ours needs where Docker drops; none if its packets do not pass there.
pub(crate) fn admission(member: &Member, docker: DockerTables, bridged_as_routed: bool) -> Option<Admission> {
    let passes = docker.ip4 && (member.mode == Mode::Nat || bridged_as_routed);
    let prefix6 = member.ipv6.filter(|_| docker.ip6).map(|network| network.prefix);
    passes.then(|| Admission { bridge: member.bridge.clone(), address: member.address, prefix6 })
}

/// Returns whether a chain is the one in which Docker drops and leaves a place for others.
pub(crate) fn is_its_own(chain: &BaseChainSeen, docker: DockerTables) -> bool {
    let drops = if chain.family == "ip6" { docker.ip6 } else { chain.family == "ip" && docker.ip4 };
    drops && chain.table == "filter" && chain.chain == "FORWARD"
}

/// The bridges of containers.
pub(crate) fn containers(links: &[Link]) -> Vec<IfName> {
    let made_by_docker = |name: &str| {
        let network = name.strip_prefix(NETWORK_PREFIX);
        let is_id = |id: &str| id.len() == NETWORK_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        BRIDGES.contains(&name) || network.is_some_and(is_id)
    };
    let bridges = links.iter().filter(|link| link.is_bridge() && made_by_docker(&link.name));
    bridges.filter_map(|link| link.name.parse().ok()).collect()
}

/// Lets the cards of a VM through, but not to `containers`, and removes rules of VMs that have gone.
pub(crate) fn admit(
    vm: &str,
    admissions: &[Admission],
    containers: &[IfName],
    links: &[Link],
) -> Result<Vec<Placed>, NftError> {
    let mut socket = NftSocket::open()?;
    let (mut batch, mut families) = (Batch::new(), Vec::new());
    for family in [Family::Ip, Family::Ip6] {
        let rules: Vec<Rule> =
            admissions.iter().flat_map(|admission| admission.rules(family, vm, containers)).collect();
        if rules.is_empty() {
            continue;
        }
        families.push(family);
        let present = socket.rules_of(&table(family), CHAIN)?;
        // Those of this VM are its predecessor's.
        let old = present.iter().filter(|rule| is_left_over(rule, links) || is_of(rule, vm));
        batch.commands.extend(old.map(|rule| delete(family, rule.handle)));
        let before = present.last().filter(|rule| rule.returns).map(|rule| rule.handle);
        let insert = |rule| Command::InsertRule { table: table(family), chain: CHAIN.to_owned(), before, rule };
        batch.commands.extend(rules.into_iter().map(insert));
    }
    socket.apply(&batch)?;
    let mut placed = Vec::new();
    for family in families {
        let present = socket.rules_of(&table(family), CHAIN)?;
        placed.extend(present.iter().filter(|rule| is_of(rule, vm)).map(|rule| Placed { family, handle: rule.handle }));
    }
    Ok(placed)
}

/// Removes rules of ours that are still there. Others can have their handles by now.
pub(crate) fn withdraw(placed: &[Placed]) -> Result<(), NftError> {
    if placed.is_empty() {
        return Ok(());
    }
    remove(|family, rule| placed.contains(&Placed { family, handle: rule.handle }) && owner(rule).is_some()).map(drop)
}

/// Returns whether all of these rules are still there.
pub(crate) fn are_placed(placed: &[Placed]) -> Result<bool, NftError> {
    let mut socket = NftSocket::open()?;
    for family in [Family::Ip, Family::Ip6] {
        let mut wanted = placed.iter().filter(|rule| rule.family == family).peekable();
        if wanted.peek().is_none() {
            continue;
        }
        let present = socket.rules_of(&table(family), CHAIN)?;
        let is_there = |rule: &Placed| present.iter().any(|it| it.handle == rule.handle && owner(it).is_some());
        if !wanted.all(is_there) {
            return Ok(false);
        }
    }
    Ok(!placed.is_empty())
}

/// The VMs on networks with a way out whose rules are not in Docker's chain, each with its bridge.
pub(crate) fn missing(links: &[Link]) -> Result<Vec<(String, String)>, NftError> {
    let mut socket = NftSocket::open()?;
    let present = socket.rules_of(&table(Family::Ip), CHAIN)?;
    let mut found = Vec::new();
    for tap in links {
        let bridge = links.iter().find(|link| Some(link.index) == tap.master && link.is_our_bridge());
        let (Some(alias), Some(bridge)) = (tap.alias.as_deref().and_then(TapAlias::parse), bridge) else { continue };
        let is_own = |rule: &RuleInChain| owner(rule) == Some((alias.vm.as_str(), bridge.name.as_str()));
        if alias.mode == Mode::Nat && !present.iter().any(is_own) {
            found.push((alias.vm, bridge.name.clone()));
        }
    }
    found.dedup();
    Ok(found)
}

/// Removes rules of VMs that have gone, and says how many.
pub(crate) fn sweep(links: &[Link]) -> Result<usize, NftError> {
    remove(|_, rule| is_left_over(rule, links))
}

fn remove(unwanted: impl Fn(Family, &RuleInChain) -> bool) -> Result<usize, NftError> {
    let mut socket = NftSocket::open()?;
    let mut batch = Batch::new();
    for family in [Family::Ip, Family::Ip6] {
        let present = socket.rules_of(&table(family), CHAIN)?;
        let found = present.iter().filter(|rule| unwanted(family, rule));
        batch.commands.extend(found.map(|rule| delete(family, rule.handle)));
    }
    socket.apply(&batch).map(|()| batch.commands.len())
}

impl Admission {
    /// The chains that get rules for this card.
    pub(crate) fn chains(&self) -> Vec<String> {
        let families = [Some(Family::Ip), self.prefix6.map(|_| Family::Ip6)];
        families.into_iter().flatten().map(|family| format!("{} {CHAIN}", table(family))).collect()
    }

    fn rules(&self, family: Family, vm: &str, containers: &[IfName]) -> Vec<Rule> {
        let Self { bridge, address, prefix6 } = self;
        let (from, to) = match (family, prefix6) {
            (Family::Ip, _) => {
                let own = || Test::is(*address);
                (Match::Ip4(IpFields::Saddr(own())), Match::Ip4(IpFields::Daddr(own())))
            }
            (_, Some(prefix)) => {
                let own = || Test::prefix6(*prefix, PREFIX_LEN);
                (Match::Ip6(IpFields::Saddr(own())), Match::Ip6(IpFields::Daddr(own())))
            }
            _ => return Vec::new(),
        };
        let rule = |first: Match, second: Match, verdict| {
            let rule = Rule::new().with(first).with(second).with(Statement::Counter).with(verdict);
            rule.comment(&comment(vm, bridge))
        };
        let leave = containers.iter().map(|name| rule(Match::iif(bridge), Match::oif(name), Verdict::Return));
        let pass = [rule(Match::iif(bridge), from, Verdict::Accept), rule(Match::oif(bridge), to, Verdict::Accept)];
        leave.chain(pass).collect()
    }
}

fn delete(family: Family, handle: u64) -> Command {
    Command::DeleteRule(table(family), CHAIN.to_owned(), handle)
}

fn comment(vm: &str, bridge: &IfName) -> String {
    format!("{MARK} {vm} {bridge}")
}

/// VM and bridge, if the rule is one of ours.
fn owner(rule: &RuleInChain) -> Option<(&str, &str)> {
    let mut words = rule.comment.as_deref()?.split(' ');
    let ours = words.next() == Some(MARK);
    let owner = (words.next()?, words.next()?);
    (ours && words.next().is_none()).then_some(owner)
}

fn is_of(rule: &RuleInChain, vm: &str) -> bool {
    owner(rule).is_some_and(|(name, _)| name == vm)
}

/// True for a rule of ours whose VM has no tap on its network. The namespace's lock excludes starts, which make the tap
/// first.
fn is_left_over(rule: &RuleInChain, links: &[Link]) -> bool {
    let Some((vm, bridge)) = owner(rule) else { return false };
    let bridge = links.iter().find(|link| link.name == bridge && link.is_our_bridge());
    let mut ports = links.iter().filter(|link| bridge.is_some_and(|bridge| link.master == Some(bridge.index)));
    !ports.any(|port| port.alias.as_deref().and_then(TapAlias::parse).is_some_and(|tap| tap.vm == vm))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Admission {
        let prefix6 = Some("fd00:1::".parse().unwrap());
        Admission { bridge: "mvn-default".parse().unwrap(), address: [10, 1, 2, 3].into(), prefix6 }
    }

    fn text(rules: &[Rule]) -> Vec<String> {
        rules.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_say_whose_they_are_and_leave_containers_to_docker() {
        let rules = admission().rules(Family::Ip, "web", &["docker0".parse().unwrap()]);
        let end = "comment \"minivmm web mvn-default\"";
        assert_eq!(
            text(&rules),
            [
                format!("iifname \"mvn-default\" oifname \"docker0\" counter return {end}"),
                format!("iifname \"mvn-default\" ip saddr 10.1.2.3 counter accept {end}"),
                format!("oifname \"mvn-default\" ip daddr 10.1.2.3 counter accept {end}"),
            ]
        );
        let rules = admission().rules(Family::Ip6, "web", &[]);
        assert_eq!(text(&rules)[0], format!("iifname \"mvn-default\" ip6 saddr fd00:1::/64 counter accept {end}"));
        assert_eq!(Admission { prefix6: None, ..admission() }.rules(Family::Ip6, "web", &[]), []);
    }

    #[test]
    fn rules_of_others_are_nobodys() {
        let rule =
            |comment: Option<&str>| RuleInChain { handle: 1, comment: comment.map(str::to_owned), returns: false };
        for comment in
            [None, Some(""), Some("minivmm"), Some("minivmm web"), Some("minivmm web mvn-a b"), Some("x web mvn-a")]
        {
            assert!(!is_left_over(&rule(comment), &[]), "{comment:?}");
        }
        assert!(is_left_over(&rule(Some("minivmm web mvn-a")), &[]));
        assert!(is_of(&rule(Some("minivmm web mvn-a")), "web"));
        assert!(!is_of(&rule(Some("minivmm web mvn-a")), "we"));
    }
}
