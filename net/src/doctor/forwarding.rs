//! Forwarding: by this host, and for networks of ours that have VMs.

use std::collections::BTreeSet;

use super::{Finding, Needs};
use crate::facts::{Facts, Link};
use crate::host::forwarding::fence::Fence;
use crate::host::forwarding::{self, network};
use crate::kernel::sysctl::{self, Conf};
use crate::refusal::locked_hint;

const NO_WAY_OUT: &str = "no packet of a guest leaves the host";

pub(super) fn look(needs: Needs, facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = if needs.forwarding { host(facts).into_iter().collect() } else { Vec::new() };
    findings.extend(running(facts));
    findings
}

/// NAT turns on forwarding for the interfaces that it needs, if it may.
fn host(facts: &Facts) -> Option<Finding> {
    let silent = leading(facts).find(|link| !sysctl::forwards(&link.name));
    if facts.ip.settings.locked && (silent.is_some() || !facts.ip.settings.forwarding) {
        let name = silent.map_or("default", |link| &link.name);
        let setting = format!("net.ipv4.conf.{name}.forwarding");
        let what = format!("{name} does not forward IPv4, and that cannot be changed: /proc/sys is read-only");
        return Some(Finding::problem("ip-forward", what, NO_WAY_OUT, Some(locked_hint(&setting))));
    }
    if sysctl::forwards("all") {
        return Some(Finding::fine("ip-forward", "This host forwards IPv4"));
    }
    let may_write = std::fs::OpenOptions::new().write(true).open(Conf::Ipv4.path("all", "forwarding"));
    match may_write {
        Ok(_) => Some(Finding::fine(
            "ip-forward",
            "This host does not forward IPv4; minivmm enables it where a VM needs it, and restores it",
        )),
        // Only root can read it.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => None,
        // Every interface needed forwards by itself.
        Err(_) if facts.ip.settings.locked => {
            Some(Finding::fine("ip-forward", "The interfaces that lead out of this host forward IPv4"))
        }
        Err(error) => Some(Finding::problem(
            "ip-forward",
            format!("This host does not forward IPv4, and that cannot be changed: {error}"),
            NO_WAY_OUT,
            Some("sysctl -w net.ipv4.ip_forward=1 (for a container, on its host)".to_owned()),
        )),
    }
}

/// Findings about the settings that running networks of ours with a way out need.
fn running(facts: &Facts) -> Vec<Finding> {
    let networks: Vec<_> = facts.links.iter().filter_map(network).collect();
    let nat = networks.iter().filter(|(_, alias)| alias.mode == crate::identity::alias::Mode::Nat);
    let nat: Vec<&Link> = nat.map(|(link, _)| *link).filter(|link| facts.ports_of(link).next().is_some()).collect();
    let Some(first) = nat.first() else { return Vec::new() };
    let mut findings = Vec::new();
    let off = nat.iter().copied().chain(leading(facts)).filter(|link| !sysctl::forwards(&link.name));
    for link in off {
        findings.push(Finding::problem(
            "ip-forward",
            format!(
                "{} does not forward IPv4, which guests of {} need: it has been switched off",
                link.name, first.name
            ),
            "guests have no way out there; minivmm switches it on again once in ten minutes, and then leaves it off",
            Some(format!("sysctl -w net.ipv4.conf.{}.forwarding=1", link.name)),
        ));
    }
    if networks.iter().any(|(_, alias)| alias.forward6) && !sysctl::forwards6() {
        findings.push(Finding::problem(
            "ip-forward",
            "This host does not forward IPv6, which guests need: it has been switched off",
            "guests have no way out by IPv6",
            Some("sysctl -w net.ipv6.conf.all.forwarding=1".to_owned()),
        ));
    }
    let fence = Fence::of(&facts.links);
    if !fence.is_empty() {
        findings.push(Finding::fine(
            "ip-forward",
            format!("{fence} forward for networks of minivmm only, and between themselves once this host is a router"),
        ));
    }
    findings
}

/// The interfaces with IPv4 routes to other machines.
fn leading(facts: &Facts) -> impl Iterator<Item = &Link> {
    let routes = facts.ip.routes.iter().filter(|route| route.unicast);
    let leading: BTreeSet<u32> = routes.filter_map(|route| route.link).collect();
    facts.links.iter().filter(move |link| forwarding::may_lead(link) && leading.contains(&link.index))
}
