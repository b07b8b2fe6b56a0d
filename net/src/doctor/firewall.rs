//! Rules of other programs that drop guests' packets.
//!
//! A table of ours cannot accept what another one drops. A chain whose policy or last rule drops is a problem unless it
//! has a rule for the card's network. That rule is looked for in the output of `nft` or iptables. The fix is a command
//! of the program that made the chain: ufw and firewalld forget rules that other programs put into their chains.

use std::process::Command;

use super::traffic::setting;
use super::{Finding, Needs};
use crate::facts::docker::CHAIN;
use crate::facts::{Facts, IpFacts, Link};
use crate::host::docker;
use crate::identity::alias::{Mode, NetworkAlias};
use crate::kernel::nft::{BaseChainSeen, Family, NftSocket, TableName};
use crate::spec::{NetSpec, Switch};

/// The prefix of minivmm's tables.
const OURS: &str = "minivmm-";

/// The bridge of a card behind NAT whose network has no name.
const DEFAULT_NETWORK: &str = "mvn-default";

/// The kernel's lists of ip_tables, the predecessor of nf_tables.
const LEGACY_TABLES: [(&str, &str); 2] =
    [("iptables-legacy", "/proc/self/net/ip_tables_names"), ("ip6tables-legacy", "/proc/self/net/ip6_tables_names")];

const WHY_ROUTED: &str = "traffic between guests behind NAT and the outside does not pass it";

/// Traffic that has to pass the chains for routed packets.
struct Wanted {
    /// The bridges of networks of ours.
    bridges: Vec<String>,
    /// The families whose chains see their packets.
    families: Vec<&'static str>,
}

impl Wanted {
    fn of(cards: &[NetSpec], facts: &Facts) -> Self {
        let ip = &facts.ip;
        // If bridged frames pass these chains (br_netfilter), frames between guests of a network without a way out do,
        // too.
        let private = cards.iter().filter_map(NetSpec::private);
        let routed = private.filter(|card| card.mode == Mode::Nat || ip.bridged_as_routed);
        let (mut bridges, mut families) = (Vec::new(), vec!["ip", "inet"]);
        for card in routed {
            bridges.push(card.bridge().to_string());
            if card.ipv6 == Switch::On && !families.contains(&"ip6") {
                families.push("ip6");
            }
        }
        bridges.dedup();
        if cards.is_empty() {
            // Running networks count, too.
            let networks = facts.links.iter().filter(|link| is_way_out(link)).map(|link| link.name.clone());
            bridges.extend(networks.filter(|name| name != DEFAULT_NETWORK));
            bridges.push(DEFAULT_NETWORK.to_owned());
        }
        Self { bridges, families }
    }

    /// True if the text of a table, or of all iptables rules, has a rule for each bridge that does not drop.
    fn is_admitted_by(&self, text: &str) -> bool {
        let lines: Vec<&str> = text.lines().filter(|line| !line.contains(" drop") && !line.contains("DROP")).collect();
        let named = |bridge: &String| {
            let words = [format!("\"{bridge}\""), "\"mvn-*\"".to_owned(), format!(" {bridge} "), " mvn-+ ".to_owned()];
            lines.iter().any(|line| words.iter().any(|word| line.contains(word.as_str())))
        };
        self.bridges.iter().all(named)
    }

    /// One command for each bridge, joined.
    fn each(&self, command: impl Fn(&str) -> String) -> String {
        self.bridges.iter().map(|bridge| command(bridge)).collect::<Vec<_>>().join(" && ")
    }
}

pub(super) fn look(needs: Needs, cards: &[NetSpec], facts: &Facts) -> Vec<Finding> {
    let wanted = Wanted::of(cards, facts);
    if !needs.bridge && wanted.bridges.is_empty() {
        return Vec::new();
    }
    let looked = NftSocket::open().and_then(|mut socket| Ok((socket.base_chains(OURS)?, socket)));
    let (chains, mut socket) = match looked {
        Ok(looked) => looked,
        Err(error) => {
            let what = "Cannot read the nftables of this host";
            let fix = "sudo minivmm doctor, with the same flags";
            log::debug!("{error}");
            return vec![Finding::warning("firewall", what, "they may drop traffic of guests", fix)];
        }
    };
    let dropping: Vec<_> = chains.iter().filter(|chain| chain.hook == "forward" && chain.drops()).collect();
    let mut findings = Vec::new();
    if !wanted.bridges.is_empty() {
        let routed = dropping.iter().filter(|chain| wanted.families.contains(&chain.family));
        findings.extend(routed.filter_map(|chain| drops_routed(chain, &wanted, &facts.ip, &mut socket)));
        findings.extend(legacy(&wanted));
        if facts.ip.docker.ip4 {
            findings.extend(docker::missing(&facts.links).unwrap_or_default().iter().map(left_out));
        }
    }
    if needs.bridge {
        findings.extend(dropping.iter().filter(|chain| chain.family == "bridge").map(|chain| drops_bridged(chain)));
        findings.extend(bridged_as_routed(&dropping));
    }
    if findings.is_empty() {
        findings.push(Finding::fine("firewall", "No chain of nf_tables drops traffic of guests by default"));
    }
    findings
}

/// A command's output; `None` if the command is missing or fails.
fn output(program: &str, words: &[&str]) -> Option<String> {
    let output = Command::new(program).args(words).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The iptables program of an address family.
fn iptables(family: &str) -> &'static str {
    if family == "ip6" { "ip6tables" } else { "iptables" }
}

fn drops_routed(chain: &BaseChainSeen, wanted: &Wanted, ip: &IpFacts, socket: &mut NftSocket) -> Option<Finding> {
    let BaseChainSeen { family, table, chain: name, .. } = chain;
    let of_iptables = table == "filter" && name == "FORWARD";
    let docker = if *family == "ip6" { ip.docker.ip6 } else { ip.docker.ip4 };
    if of_iptables && docker {
        let what = format!(
            "Docker drops forwarded traffic that no rule accepts; minivmm adds rules for its guests to {CHAIN}"
        );
        return Some(Finding::fine("firewall", what));
    }
    let text = output("nft", &["list", "table", family, table]);
    let text = text.or_else(|| of_iptables.then(|| output(iptables(family), &["-S"])).flatten());
    if text.is_some_and(|text| wanted.is_admitted_by(&text)) {
        return None;
    }
    let fix = match table.as_str() {
        "firewalld" => wanted.each(|bridge| {
            let add = |permanent| format!("firewall-cmd {permanent}--zone=trusted --add-interface={bridge}");
            format!("{} && {}", add(""), add("--permanent "))
        }),
        "filter" if of_iptables && is_of_ufw(socket, chain) => {
            wanted.each(|bridge| format!("ufw route allow in on {bridge} && ufw route allow out on {bridge}"))
        }
        "filter" if of_iptables => admit_by(iptables(family), "FORWARD", wanted),
        _ => wanted.each(|bridge| {
            let rule = |side| format!("nft insert rule {family} {table} {name} {side} {bridge} accept");
            format!("{} && {}", rule("iifname"), rule("oifname"))
        }),
    };
    let what = format!("Chain {name} of table {family} {table} drops traffic that no rule accepts");
    Some(Finding::problem("firewall", what, WHY_ROUTED, Some(fix)))
}

/// A bridge of a network of ours with a way out.
fn is_way_out(link: &Link) -> bool {
    let alias = link.alias.as_deref().filter(|_| link.is_our_bridge()).and_then(NetworkAlias::parse);
    alias.is_some_and(|alias| alias.mode == Mode::Nat)
}

/// A running VM whose keeper has no rules in Docker's chain: the keeper was killed, or is of an older release.
fn left_out((vm, bridge): &(String, String)) -> Finding {
    let what = format!("Docker drops the traffic of VM {vm} on {bridge}: its rules are not in {CHAIN}");
    let rule = |side| format!("iptables -I {CHAIN} {side} {bridge} -j ACCEPT");
    Finding::problem("firewall", what, WHY_ROUTED, Some(format!("{} && {}", rule("-i"), rule("-o"))))
}

fn admit_by(program: &str, chain: &str, wanted: &Wanted) -> String {
    wanted.each(|bridge| {
        let rule = |side| format!("{program} -I {chain} {side} {bridge} -j ACCEPT");
        format!("{} && {}", rule("-i"), rule("-o"))
    })
}

/// True if ufw made the chain.
fn is_of_ufw(socket: &mut NftSocket, chain: &BaseChainSeen) -> bool {
    let (family, own) =
        if chain.family == "ip6" { (Family::Ip6, "ufw6-user-forward") } else { (Family::Ip, "ufw-user-forward") };
    let table = TableName { family, name: chain.table.clone() };
    socket.policy_of(&table, own).is_ok_and(|policy| policy.is_some())
}

/// ip_tables, the predecessor of nf_tables, where it is in use and its own program can list its rules.
fn legacy(wanted: &Wanted) -> Vec<Finding> {
    let finding = |(program, tables): (&str, &str)| {
        std::fs::read_to_string(tables).ok().filter(|names| names.lines().any(|name| name == "filter"))?;
        let text = output(program, &["-S"])?;
        let has = |line: &str| text.lines().any(|found| found == line);
        if !has("-P FORWARD DROP") || wanted.is_admitted_by(&text) {
            return None;
        }
        let chain = if has(&format!("-N {CHAIN}")) { CHAIN } else { "FORWARD" };
        let what = format!("Chain FORWARD of {program} drops traffic that no rule accepts");
        Some(Finding::problem("firewall", what, WHY_ROUTED, Some(admit_by(program, chain, wanted))))
    };
    let families = LEGACY_TABLES.into_iter().zip(["ip", "ip6"]);
    families.filter(|(_, family)| wanted.families.contains(family)).filter_map(|(tables, _)| finding(tables)).collect()
}

fn drops_bridged(chain: &BaseChainSeen) -> Finding {
    let BaseChainSeen { family, table, chain: name, .. } = chain;
    let what = format!("Chain {name} of table {family} {table} drops traffic that no rule accepts");
    let rule = |side| format!("nft insert rule {family} {table} {name} {side} '\"vmtap*\"' accept");
    let fix = format!("{} && {}", rule("iifname"), rule("oifname"));
    Finding::problem(
        "firewall",
        what,
        "traffic between a guest and other ports of its bridge does not pass it",
        Some(fix),
    )
}

/// With `br_netfilter`, bridged frames pass the rules for routed packets.
fn bridged_as_routed(dropping: &[&BaseChainSeen]) -> Vec<Finding> {
    let families = [("iptables", ["ip", "inet"]), ("ip6tables", ["ip6", "inet"])];
    let finding = |(program, families): (&str, [&str; 2])| {
        let key = format!("bridge-nf-call-{program}");
        if setting(&format!("net/bridge/{key}")) != Some(1) {
            return None;
        }
        let what = format!("Frames on bridges pass the rules of {program} ({key}=1)");
        let fix = format!("sysctl -w net.bridge.{key}=0");
        Some(match dropping.iter().find(|chain| families.contains(&chain.family)) {
            Some(chain) => {
                let why = format!("chain {} of table {} drops traffic of guests on bridges", chain.chain, chain.table);
                Finding::problem("bridge-nf", what, why, Some(fix))
            }
            None => {
                Finding::warning("bridge-nf", what, "rules for routed packets may drop them, and slow them down", fix)
            }
        })
    };
    families.into_iter().filter_map(finding).collect()
}
