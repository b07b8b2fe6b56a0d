//! Rules of others that drop what guests send.
//!
//! A table of ours cannot let pass what another one drops. A chain whose policy or last rule drops is a problem unless somebody has
//! put a rule for networks of ours into it, which is looked for in the text that the command nft prints, where there is one.

use std::process::Command;

use super::traffic::setting;
use super::{Finding, Needs};
use crate::facts::Facts;
use crate::nft::{BaseChainSeen, Ending, NftSocket, Policy};

/// What tables of minivmm begin with.
const OURS: &str = "minivmm-";

/// What the names of bridges that make networks of ours begin with, in rules of others.
const NETWORKS: &str = "mvn-";

/// Families whose chains see routed IPv4.
const ROUTED: [&str; 2] = ["ip", "inet"];

pub(super) fn look(needs: Needs, facts: &Facts) -> Vec<Finding> {
    if !needs.bridge && !needs.forwarding {
        return Vec::new();
    }
    let chains = match NftSocket::open().and_then(|mut socket| socket.base_chains(OURS)) {
        Ok(chains) => chains,
        Err(error) => {
            let what = "The host's firewall cannot be looked at";
            let fix = "sudo minivmm doctor, with the same flags";
            log::debug!("{error}");
            return vec![Finding::warning("firewall", what, "it may drop what guests send", fix)];
        }
    };
    let dropping: Vec<_> = chains.iter().filter(|chain| chain.hook == "forward" && drops(chain)).collect();
    let mut findings = Vec::new();
    if needs.forwarding {
        let routed = dropping.iter().filter(|chain| ROUTED.contains(&chain.family) && !admits(chain));
        findings.extend(routed.map(|chain| drops_routed(chain, facts)));
    }
    if needs.bridge {
        findings.extend(dropping.iter().filter(|chain| chain.family == "bridge").map(|chain| drops_bridged(chain)));
        findings.extend(bridged_as_routed(&dropping));
    }
    if findings.is_empty() {
        findings.push(Finding::fine("firewall", "No chain in nf_tables drops what guests send by default"));
    }
    findings
}

fn drops(chain: &BaseChainSeen) -> bool {
    match chain.ending {
        Ending::Drop | Ending::Reject => true,
        Ending::Accept => false,
        Ending::Policy => chain.policy == Policy::Drop,
    }
}

/// Whether a rule of the chain's table names networks of ours.
fn admits(chain: &BaseChainSeen) -> bool {
    let table = Command::new("nft").args(["list", "table", chain.family, &chain.table]).output();
    table.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(NETWORKS))
}

fn drops_routed(chain: &BaseChainSeen, facts: &Facts) -> Finding {
    let BaseChainSeen { family, table, chain: name, .. } = chain;
    // Tables of iptables have its names, and it does not see rules that others have put into them.
    let fix = if table == "filter" && name == "FORWARD" {
        let chain = if facts.link("docker0").is_some() { "DOCKER-USER" } else { "FORWARD" };
        format!("iptables -I {chain} -i {NETWORKS}+ -j ACCEPT && iptables -I {chain} -o {NETWORKS}+ -j ACCEPT")
    } else {
        let rule = |side| format!("nft insert rule {family} {table} {name} {side} '\"{NETWORKS}*\"' accept");
        format!("{} && {}", rule("iifname"), rule("oifname"))
    };
    let what = format!("Chain {name} of table {family} {table} drops what it does not know");
    Finding::problem("firewall", what, "no packet between a guest behind NAT and the world passes it", Some(fix))
}

fn drops_bridged(chain: &BaseChainSeen) -> Finding {
    let BaseChainSeen { family, table, chain: name, .. } = chain;
    let what = format!("Chain {name} of table {family} {table} drops what it does not know");
    let rule = |side| format!("nft insert rule {family} {table} {name} {side} '\"vmtap*\"' accept");
    let fix = format!("{} && {}", rule("iifname"), rule("oifname"));
    Finding::problem("firewall", what, "no frame between a guest and other ports of its bridge passes it", Some(fix))
}

/// With `br_netfilter` what is bridged passes the rules for what is routed.
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
                let why = format!("chain {} of table {} drops what guests on a bridge send", chain.chain, chain.table);
                Finding::problem("bridge-nf", what, why, Some(fix))
            }
            None => {
                Finding::warning("bridge-nf", what, "rules for routed packets may drop them, and each costs time", fix)
            }
        })
    };
    families.into_iter().filter_map(finding).collect()
}
