//! Reads [`Facts`] from the kernel. Changes nothing, and knows no plan.

pub(crate) mod docker;
pub(crate) mod inherited;
pub(crate) mod ip;
pub(crate) mod ovs;
pub(crate) mod siblings;
mod translations;
pub(crate) mod uplink;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use rtnetlink::packet_core::{DefaultNla, Nla};
use rtnetlink::packet_route::link::{
    BridgeStpState, InfoBridge, InfoData, InfoKind, InfoMacVlan, InfoMacVtap, InfoTun, LinkAttribute, LinkInfo,
    LinkMessage, MacVlanMode, MacVtapMode,
};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};

use crate::facts::claim;
use crate::facts::{BridgeFact, Facts, FdFact, FdbEntry, Link, MacvlanMode, Neighbour, TunFact};
use crate::identity::mac::MacAddr;
use crate::identity::mac::RawMac;
use crate::kernel::random;
use crate::kernel::rtnl::{self, Rtnl, USER_HZ};
use crate::kernel::tun::{FdKind, inspect};
use crate::spec::{IfName, NetSpec, Switch};

/// Attributes of a tun or tap (`IFLA_TUN_*`, linux/if_link.h); the crate has no names for them.
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;
const IFLA_TUN_NUM_QUEUES: u16 = 8;

/// Kinds of links that come in pairs.
const PAIRS: [&str; 2] = ["veth", "netkit"];

/// Value of `IFLA_TUN_TYPE` for a tap (`IFF_TAP`).
const TUN_TYPE_TAP: u8 = 2;

/// Reads the facts that the plan for these cards depends on.
pub(crate) async fn survey(rtnl: &Rtnl, specs: &[NetSpec], inherited: &BTreeMap<RawFd, OwnedFd>) -> io::Result<Facts> {
    let mut facts = Facts { links: links(rtnl).await?, ..Facts::default() };
    for bridge in bridges_of(specs, &facts) {
        let entries = rtnl.fdb(bridge).await?;
        facts.fdb.extend(entries.iter().filter_map(|entry| fdb_entry(entry, bridge)));
    }
    if specs.iter().any(|spec| spec.private().is_some()) {
        facts.ip = ip::survey(rtnl, &facts.links).await?;
    }
    let wants_ipv6 = |spec: &NetSpec| spec.private().is_some_and(|card| card.ipv6 == Switch::On);
    // Every tap of every VM has routes of IPv6.
    if specs.iter().any(wants_ipv6) && !facts.ip.forwards6 {
        facts.ip.advertised6 = ip::advertised(rtnl, &facts.links).await?;
    }
    if specs.iter().any(|spec| spec.private().is_some_and(|card| !card.forward.is_empty())) {
        facts.translations = translations::survey();
    }
    for name in specs.iter().filter_map(NetSpec::uplink) {
        let fact = facts.link(name.as_str()).map(uplink::survey).transpose()?;
        facts.uplinks.extend(fact);
    }
    facts.fds = specs.iter().flat_map(|spec| fd_facts(spec, inherited)).collect();
    facts.spare_macs = spare_macs(specs)?;
    // A start raises the soft limit to the hard one.
    let (_, descriptors) = getrlimit(Resource::RLIMIT_NOFILE)?;
    facts.descriptors = (descriptors != RLIM_INFINITY).then_some(descriptors);
    facts.claimed = claim::taken()?;
    let switches = specs.iter().filter_map(|spec| if let NetSpec::Ovs(spec) = spec { Some(&spec.ovs) } else { None });
    let switches: BTreeSet<&IfName> = switches.collect();
    if !switches.is_empty() {
        facts.ovs = ovs::survey(&switches);
    }
    facts.spare_names = spare_names(specs)?;
    facts.wireless = specs.iter().filter_map(|spec| wireless(spec, &facts)).collect();
    Ok(facts)
}

/// A random address for every card that may need a new bridge.
fn spare_macs(specs: &[NetSpec]) -> io::Result<Vec<MacAddr>> {
    let creating = |spec: &&NetSpec| match spec {
        NetSpec::Bridge(spec) => spec.create == Switch::On,
        spec => spec.private().is_some(),
    };
    let count = specs.iter().filter(creating).count();
    (0..count).map(|_| random::bytes().map(MacAddr::local)).collect()
}

/// A random name for every card whose link does not go by itself.
fn spare_names(specs: &[NetSpec]) -> io::Result<Vec<IfName>> {
    let count = specs.iter().filter(|spec| spec.outlives_its_vm()).count();
    let name = |bytes| format!("vmtap{:08x}", u32::from_ne_bytes(bytes)).parse().map_err(io::Error::other);
    (0..count).map(|_| random::bytes().and_then(name)).collect()
}

/// The name of a card's interface if it is a radio card. A mount of sysfs can show another namespace, hence the number.
fn wireless(spec: &NetSpec, facts: &Facts) -> Option<String> {
    let link = facts.link(spec.shared_interface()?.as_str())?;
    let directory = Path::new("/sys/class/net").join(&link.name);
    let index = fs::read_to_string(directory.join("ifindex")).ok()?;
    let same = index.trim().parse() == Ok(link.index);
    (same && directory.join("phy80211").exists()).then(|| link.name.clone())
}

/// The bridges on which the guests' addresses would show, each once.
fn bridges_of(specs: &[NetSpec], facts: &Facts) -> Vec<u32> {
    let mut bridges: Vec<u32> = (specs.iter())
        .filter_map(|spec| match spec {
            NetSpec::Bridge(spec) => {
                facts.link(spec.bridge.as_str()).filter(|link| link.is_bridge()).map(|link| link.index)
            }
            NetSpec::Nat(_) | NetSpec::Host(_) | NetSpec::Macvtap(_) | NetSpec::Ovs(_) => None,
            NetSpec::Tap(spec) => facts.link(spec.tap.as_str()).and_then(|link| link.master),
            NetSpec::Fd(_) => None,
        })
        .collect();
    bridges.sort_unstable();
    bridges.dedup();
    bridges
}

/// Every link of this network namespace.
pub(crate) async fn links(rtnl: &Rtnl) -> io::Result<Vec<Link>> {
    Ok(rtnl.links().await?.iter().filter_map(link).collect())
}

/// A link as far as plans depend on it; none if it has no name.
pub(crate) fn link(message: &LinkMessage) -> Option<Link> {
    let mut link = Link {
        index: message.header.index,
        name: rtnl::name(message)?.to_owned(),
        kind: None,
        mac: None,
        mtu: 0,
        master: rtnl::master(message),
        lower: None,
        peer: None,
        up: rtnl::is_up(message),
        group: 0,
        alias: None,
        macvlan: None,
        tun: None,
        bridge: BridgeFact::default(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(octets) => link.mac = RawMac::try_from(octets.as_slice()).ok(),
            LinkAttribute::Mtu(bytes) => link.mtu = *bytes,
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::IfAlias(text) => link.alias = Some(text.clone()),
            LinkAttribute::LinkInfo(infos) => read_infos(infos, &mut link),
            _ => {}
        }
    }
    (link.lower, link.peer) = lower_and_peer(message);
    Some(link)
}

/// The interface that a link is made on, and the other end of a pair. Both are in the same attribute.
fn lower_and_peer(message: &LinkMessage) -> (Option<u32>, Option<u32>) {
    let infos = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let pair = |info: &LinkInfo| matches!(info, LinkInfo::Kind(kind) if PAIRS.contains(&kind.to_string().as_str()));
    let elsewhere = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::LinkNetNsId(_));
    if message.attributes.iter().any(elsewhere) {
        return (None, None);
    }
    let other = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) if *index != 0 => Some(*index),
        _ => None,
    });
    if infos.flatten().any(pair) { (None, other) } else { (other, None) }
}

fn read_infos(infos: &[LinkInfo], link: &mut Link) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => {
                link.kind = Some(kind.to_string());
                if *kind == InfoKind::Tun && link.tun.is_none() {
                    link.tun = Some(TunFact::default());
                }
            }
            LinkInfo::Data(InfoData::Tun(attributes)) => link.tun = Some(tun_fact(attributes)),
            LinkInfo::Data(InfoData::Bridge(attributes)) => link.bridge = bridge_fact(attributes),
            LinkInfo::Data(InfoData::MacVlan(attributes)) => {
                link.macvlan = Some(macvlan_mode(attributes, &InfoMacVlan::Mode(MacVlanMode::Passthrough)));
            }
            LinkInfo::Data(InfoData::MacVtap(attributes)) => {
                link.macvlan = Some(macvlan_mode(attributes, &InfoMacVtap::Mode(MacVtapMode::Passthrough)));
            }
            _ => {}
        }
    }
}

fn macvlan_mode<T: PartialEq>(attributes: &[T], passthru: &T) -> MacvlanMode {
    if attributes.contains(passthru) { MacvlanMode::Passthru } else { MacvlanMode::Shared }
}

fn bridge_fact(attributes: &[InfoBridge]) -> BridgeFact {
    let mut fact = BridgeFact::default();
    let (mut stp, mut delay, mut default_pvid) = (false, 0, None);
    for attribute in attributes {
        match attribute {
            InfoBridge::VlanFiltering(on) => fact.vlan_filtering = Some(*on),
            InfoBridge::VlanDefaultPvid(id) => default_pvid = Some(*id),
            InfoBridge::StpState(state) => stp = *state != BridgeStpState::Disabled,
            InfoBridge::ForwardDelay(ticks) => delay = *ticks / USER_HZ,
            _ => {}
        }
    }
    // A kernel without VLANs says that it does not filter, and omits the VLAN of new ports.
    fact.vlan_filtering = fact.vlan_filtering.filter(|_| default_pvid.is_some());
    fact.default_pvid = default_pvid.unwrap_or_default();
    fact.stp_delay_s = u8::try_from(delay).ok().filter(|_| stp);
    fact
}

fn tun_fact(attributes: &[InfoTun]) -> TunFact {
    let mut fact = TunFact::default();
    for attribute in attributes {
        let InfoTun::Other(nla) = attribute else { continue };
        let value = nla_value(nla);
        match nla.kind() {
            IFLA_TUN_TYPE => fact.tap = value.first() == Some(&TUN_TYPE_TAP),
            IFLA_TUN_MULTI_QUEUE => fact.multi_queue = value.first() == Some(&1),
            IFLA_TUN_NUM_QUEUES => {
                fact.queues_open = <[u8; 4]>::try_from(value.as_slice()).map_or(0, u32::from_ne_bytes);
            }
            _ => {}
        }
    }
    fact
}

fn nla_value(nla: &DefaultNla) -> Vec<u8> {
    let mut value = vec![0; nla.value_len()];
    nla.emit_value(&mut value);
    value
}

/// An entry that was learned or set for a machine behind a port. The ports' own addresses are in the list of links.
fn fdb_entry(message: &NeighbourMessage, bridge: u32) -> Option<FdbEntry> {
    if message.header.state == NeighbourState::Permanent {
        return None;
    }
    let mac = link_layer_address(message)?;
    Some(FdbEntry { mac, port: message.header.ifindex, bridge })
}

/// A machine that the host has spoken to.
pub(crate) fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let mac = link_layer_address(message)?;
    let ip = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })?;
    Some(Neighbour { mac, ip, link: message.header.ifindex })
}

pub(crate) fn link_layer_address(message: &NeighbourMessage) -> Option<RawMac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(octets) => RawMac::try_from(octets.as_slice()).ok(),
        _ => None,
    })
}

fn fd_facts(spec: &NetSpec, inherited: &BTreeMap<RawFd, OwnedFd>) -> Vec<FdFact> {
    let NetSpec::Fd(spec) = spec else { return Vec::new() };
    let fact = |&fd: &RawFd| FdFact { fd, kind: inherited.get(&fd).map_or(FdKind::Closed, inspect) };
    spec.fd.as_slice().iter().map(fact).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_without_vlans_leaves_the_default_one_out() {
        let without = bridge_fact(&[InfoBridge::VlanFiltering(false)]);
        assert_eq!(without.vlan_filtering, None);

        let with = bridge_fact(&[InfoBridge::VlanFiltering(false), InfoBridge::VlanDefaultPvid(1)]);
        assert_eq!((with.vlan_filtering, with.default_pvid), (Some(false), 1));
    }

    #[test]
    fn forward_delay_counts_in_a_spanning_tree_only() {
        let delay = InfoBridge::ForwardDelay(1500);
        assert_eq!(bridge_fact(std::slice::from_ref(&delay)).stp_delay_s, None);
        assert_eq!(bridge_fact(&[delay, InfoBridge::StpState(BridgeStpState::KernelStp)]).stp_delay_s, Some(15));
    }
}
