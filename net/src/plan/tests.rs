//! Plans of hand-made hosts.

mod bridge;
mod card;
mod host_limits;
mod macvtap;
mod network;
mod ovs;
mod tap;
mod uplink;
mod vlan;

use super::*;
use crate::facts::{BridgeFact, FdFact, TunFact};
use crate::identity::alias::OUR_GROUP;

fn specs(flags: &[&str]) -> Vec<NetSpec> {
    flags.iter().map(|flag| flag.parse().unwrap()).collect()
}

/// The plan of a VM with one vCPU.
fn plan(vm_name: &str, cards: &[NetSpec], facts: &Facts) -> Result<Plan, Refusal> {
    super::plan(
        &Request { vm_name: vm_name.to_owned(), vcpus: 1, cards: cards.to_vec(), policy: None, steering: None },
        facts,
    )
}

/// The plan of a VM called "vm" as text.
fn text(flags: &[&str], facts: &Facts) -> String {
    plan("vm", &specs(flags), facts).unwrap().to_string()
}

fn refusal(flags: &[&str], facts: &Facts) -> String {
    plan("vm", &specs(flags), facts).unwrap_err().to_string()
}

fn mac(text: &str) -> RawMac {
    text.parse::<MacAddr>().unwrap().octets()
}

fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
    let last = u8::try_from(index).unwrap();
    Link {
        index,
        name: name.to_owned(),
        kind: kind.map(str::to_owned),
        mac: Some([0x1a, 0, 0, 0, 0, last]),
        mtu: 1500,
        master: None,
        lower: None,
        peer: None,
        up: true,
        group: 0,
        alias: None,
        macvlan: None,
        tun: None,
        bridge: BridgeFact::default(),
    }
}

fn tap(index: u32, name: &str) -> Link {
    let tun = TunFact { tap: true, multi_queue: false, queues_open: 0 };
    Link { tun: Some(tun), ..link(index, name, Some("tun")) }
}

/// A host with hardware, a bridge with an uplink, and an empty bridge.
fn host() -> Facts {
    let uplink = Link { master: Some(3), ..link(2, "eth0", None) };
    Facts {
        links: vec![link(1, "lo", None), uplink, link(3, "br0", Some("bridge")), link(4, "br1", Some("bridge"))],
        spare_macs: vec![MacAddr::local([1, 2, 3, 4, 5]), MacAddr::local([1, 2, 3, 4, 6])],
        ..Facts::default()
    }
}

fn with(mut facts: Facts, link: Link) -> Facts {
    facts.links.push(link);
    facts
}

/// The bridge br0 with this in it.
fn host_with_br0(fact: BridgeFact, group: u32) -> Facts {
    let mut facts = host();
    facts.links[2].bridge = fact;
    facts.links[2].group = group;
    facts
}

const FILTERS: BridgeFact = BridgeFact { vlan_filtering: Some(true), default_pvid: 1, stp_delay_s: None };
const FLAT: BridgeFact = BridgeFact { vlan_filtering: Some(false), default_pvid: 1, stp_delay_s: None };

#[test]
fn bridge_left_behind_takes_the_spanning_tree_that_is_asked_for() {
    let flag = "bridge=lan,create=on,stp=on,forward-delay=2";
    let left = with(host(), Link { group: OUR_GROUP, ..link(9, "lan", Some("bridge")) });
    let plan = plan("web", &specs(&[flag, flag]), &left).unwrap();
    let starts = plan.steps.iter().filter(|step| matches!(step, Step::StartStp(_))).count();
    assert_eq!(starts, 1);

    let used = with(left, Link { master: Some(9), ..tap(10, "vmtap0") });
    let refused = refusal(&[flag], &used);
    assert!(refused.starts_with("Bridge lan exists, and takes part in no spanning tree"), "{refused}");
}
