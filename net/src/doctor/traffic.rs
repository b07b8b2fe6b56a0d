//! Obstacles for packets on their way: MTUs, subnets, return paths, and the connection tracking table.

use std::fs;
use std::net::Ipv4Addr;

use super::{Finding, Needs};
use crate::facts::{Address, Facts, Link};
use crate::plan::subnet;
use crate::spec::{BridgeSpec, MacvtapMode, MacvtapSpec, NetSpec};

/// A connection tracking table fuller than this, in percent, is a warning: a guest that opens a few more fills it.
const CONNTRACK_PERCENT: u64 = 80;

pub(super) fn look(needs: Needs, cards: &[NetSpec], facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for card in cards {
        match card {
            NetSpec::Bridge(spec) => findings.extend(narrow_ports(spec, facts)),
            NetSpec::Macvtap(spec) => findings.push(apart(spec)),
            _ => {}
        }
    }
    if needs.forwarding {
        findings.extend(return_path(facts));
        findings.extend(connections());
    }
    if needs.bridge || needs.forwarding {
        findings.extend(overlaps(facts));
    }
    findings
}

/// A host and the guests on its interface do not hear each other: frames of either go out on the wire.
fn apart(spec: &MacvtapSpec) -> Finding {
    let MacvtapSpec { macvtap, mode, .. } = spec;
    let (what, fix) = match mode {
        MacvtapMode::Passthru => (
            format!("{macvtap} is for the guest alone, with the guest's MAC address"),
            "give the host another interface",
        ),
        _ => (
            format!("This host and the guest do not reach each other through {macvtap}"),
            "give the VM a second card: --net host",
        ),
    };
    Finding::warning("macvtap", what, "frames of either go out on the wire, and do not come back", fix)
}

/// Ports of a card's bridge that carry less than the card may send.
fn narrow_ports(spec: &BridgeSpec, facts: &Facts) -> Vec<Finding> {
    let Some(bridge) = facts.link(spec.bridge.as_str()) else { return Vec::new() };
    let mtu = spec.card.mtu.map_or(bridge.mtu, |mtu| mtu.get().into());
    let narrow = |port: &&Link| port.mtu < mtu;
    let ports = facts.ports_of(bridge).filter(narrow);
    let finding = |port: &Link| {
        Finding::warning(
            "mtu",
            format!("Port {} of bridge {} carries {} bytes, and the card {mtu}", port.name, bridge.name, port.mtu),
            "the bridge silently drops larger frames there",
            format!("ip link set {} mtu {mtu}, or give the card mtu={}", port.name, port.mtu),
        )
    };
    ports.map(finding).collect()
}

/// Several ways out, with a reverse path filter that accepts a packet only from the interface that leads back to its
/// sender.
fn return_path(facts: &Facts) -> Vec<Finding> {
    let defaults = facts.ip.routes.iter().filter(|route| route.prefix_len == 0 && route.unicast);
    let mut uplinks: Vec<u32> = defaults.filter_map(|route| route.link).collect();
    uplinks.sort_unstable();
    uplinks.dedup();
    if uplinks.len() < 2 {
        return Vec::new();
    }
    let strict = |name: &str| setting(&format!("net/ipv4/conf/{name}/rp_filter"));
    let effective = |name: &str| strict("all").max(strict(name));
    let links = facts.links.iter().filter(|link| uplinks.contains(&link.index) && effective(&link.name) == Some(1));
    let finding = |link: &Link| {
        Finding::warning(
            "rp-filter",
            format!(
                "{} is one of {} ways out, and accepts only packets whose answers leave by it (rp_filter=1)",
                link.name,
                uplinks.len()
            ),
            "answers to guests that arrive on it are dropped while another way out is preferred",
            format!("sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{}.rp_filter=2", link.name),
        )
    };
    links.map(finding).collect()
}

/// The host and all guests behind NAT share the connection tracking table.
fn connections() -> Option<Finding> {
    let count = setting("net/netfilter/nf_conntrack_count")?;
    let max = setting("net/netfilter/nf_conntrack_max").filter(|max| *max > 0)?;
    let what = format!("{count} of {max} connections are in use");
    if count * 100 < max * CONNTRACK_PERCENT {
        return Some(Finding::fine("conntrack", what));
    }
    let fix = format!("sysctl -w net.netfilter.nf_conntrack_max={}", max * 2);
    Some(Finding::warning(
        "conntrack",
        what,
        "when the table is full, new connections of guests and host are dropped",
        fix,
    ))
}

/// Two interfaces of the host with overlapping addresses.
fn overlaps(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (idx, first) in facts.ip.addresses.iter().enumerate() {
        let others = &facts.ip.addresses[idx + 1..];
        if let Some(second) = others.iter().find(|second| second.link != first.link && overlap(first, second)) {
            let (name, other) = (facts.name_of(first.link), facts.name_of(second.link));
            findings.push(Finding::warning(
                "subnets",
                format!(
                    "{}/{} on {name} and {}/{} on {other} overlap",
                    first.ip, first.prefix_len, second.ip, second.prefix_len
                ),
                "the host reaches each machine there on one of the two only",
                overlap_fix([first, second].map(|address| (address, facts.link_at(address.link))), facts),
            ));
        }
    }
    findings
}

/// The change that ends an overlap. Only their owner knows which of two LANs may change its addresses; a network of
/// ours always may.
fn overlap_fix(pair: [(&Address, Option<&Link>); 2], facts: &Facts) -> String {
    let ours = pair.iter().find_map(|(_, link)| link.filter(|link| link.is_our_bridge()));
    if let Some(network) = ours {
        let taken = subnet::taken(facts);
        let free =
            subnet::choose(&network.name, &taken).map_or_else(|| "A.B.C.D/LEN".to_owned(), |free| free.to_string());
        return format!("end the VMs of network {} and start them with another subnet={free}", network.name);
    }
    let [first, second] = pair.map(|(address, _)| facts.name_of(address.link));
    format!(
        "give the machines on {first} or {second} addresses of another subnet, or remove the \
         interface that is not needed"
    )
}

fn overlap(first: &Address, second: &Address) -> bool {
    let bits = first.prefix_len.min(second.prefix_len);
    // A single address, and all of IPv4, are no subnet.
    bits > 0 && first.prefix_len < 32 && second.prefix_len < 32 && network(first.ip, bits) == network(second.ip, bits)
}

fn network(ip: Ipv4Addr, bits: u8) -> u32 {
    ip.to_bits() >> (32 - u32::from(bits))
}

/// A number below `/proc/sys`.
pub(super) fn setting(path: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/{path}")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::alias::OUR_GROUP;

    fn link(index: u32, name: &str, group: u32) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: Some("bridge".to_owned()),
            mac: None,
            mtu: 1500,
            master: None,
            lower: None,
            peer: None,
            up: true,
            group,
            alias: None,
            macvlan: None,
            tun: None,
            bridge: crate::facts::BridgeFact::default(),
        }
    }

    #[test]
    fn fix_of_an_overlap_leaves_the_addresses_of_a_lan_alone() {
        let address = |ip: [u8; 4], link| Address { ip: ip.into(), prefix_len: 24, link };
        let mut facts =
            Facts { links: vec![link(1, "mvn-default", OUR_GROUP), link(2, "lan0", 0)], ..Facts::default() };
        facts.ip.addresses = vec![address([10, 0, 0, 1], 1), address([10, 0, 0, 9], 2)];
        let fix = |facts: &Facts| overlaps(facts)[0].fix.clone().unwrap();

        let ours = fix(&facts);
        facts.links[0].group = 0;
        let others = fix(&facts);

        assert!(ours.starts_with("end the VMs of network mvn-default and start them with another subnet="), "{ours}");
        assert!(others.contains("on mvn-default or lan0"), "{others}");
        assert!(!ours.contains("address del") && !others.contains("address del"));
    }

    #[test]
    fn subnets_overlap_if_one_holds_the_other() {
        let address = |ip: [u8; 4], prefix_len| Address { ip: ip.into(), prefix_len, link: 1 };
        let ten = address([10, 0, 0, 1], 24);
        assert!(overlap(&ten, &address([10, 0, 0, 9], 24)));
        assert!(overlap(&ten, &address([10, 200, 0, 1], 8)));
        assert!(!overlap(&ten, &address([10, 0, 1, 1], 24)));
        assert!(!overlap(&ten, &address([10, 0, 0, 2], 32)));
        assert!(!overlap(&ten, &address([10, 0, 0, 2], 0)));
    }
}
