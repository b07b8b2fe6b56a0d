//! Plans that the host has no room for.

use super::*;
use crate::facts::Route;
use crate::refusal::HostLimit;

/// A host whose default route's interface has this MTU.
fn host_with_uplink(mtu: u32) -> Facts {
    let mut facts = host();
    facts.links[1].mtu = mtu;
    facts.links[1].master = None;
    let destination = std::net::Ipv4Addr::UNSPECIFIED;
    facts.ip.routes = vec![Route { destination, prefix_len: 0, gateway: None, link: Some(2), unicast: true }];
    facts
}

fn limit(flags: &[&str], facts: &Facts) -> Option<HostLimit> {
    match plan("vm", &specs(flags), facts) {
        Err(Refusal::Limit(limit)) => Some(limit),
        _ => None,
    }
}

#[test]
fn ipv6_behind_an_uplink_that_is_too_narrow_for_it_is_refused_with_the_uplink() {
    let narrow = |link: &str, mtu| Some(HostLimit::MtuBelowIpv6 { link: link.to_owned(), mtu });
    assert_eq!(limit(&["nat,ipv6=on"], &host_with_uplink(1200)), narrow("eth0", 1200));
    assert_eq!(limit(&["nat,ipv6=on,mtu=1279"], &host_with_uplink(1500)), narrow("mvn-default", 1279));
    assert_eq!(limit(&["host,ipv6=on,mtu=1000"], &host_with_uplink(1500)), narrow("mvh-default", 1000));
    assert_eq!(limit(&["nat,ipv6=on"], &host_with_uplink(1280)), None);
    assert_eq!(limit(&["nat"], &host_with_uplink(1200)), None);
    let refused = refusal(&["nat,ipv6=on"], &host_with_uplink(1200));
    assert_eq!(refused, "ipv6=on needs an MTU of 1280, and eth0 carries 1200");
}

#[test]
fn ipv6_on_a_kernel_without_it_is_refused() {
    let mut facts = host_with_uplink(1500);
    facts.ip.lacks_ipv6 = true;
    assert_eq!(limit(&["nat,ipv6=on"], &facts), Some(HostLimit::NoIpv6));
    assert!(HostLimit::NoIpv6.hint().contains("ipv6.disable=1"));
    assert_eq!(limit(&["nat"], &facts), None);
}

#[test]
fn bridge_without_room_for_another_port_is_refused() {
    let full = |ports: u32| {
        let mut facts = host();
        let port =
            |idx: u32| Link { index: 1000 + idx, name: format!("p{idx}"), master: Some(4), ..link(9, "p", None) };
        facts.links.extend((0..ports).map(port));
        facts
    };
    let bridge = "br1".parse().unwrap();
    assert_eq!(limit(&["bridge=br1"], &full(1023)), Some(HostLimit::BridgeFull { bridge, ports: 1024 }));
    assert_eq!(limit(&["bridge=br1"], &full(1022)), None);
    assert!(limit(&["bridge=br1", "bridge=br1"], &full(1022)).is_some());
}

#[test]
fn more_uplinks_than_can_be_written_on_a_bridge_are_refused_with_the_setting() {
    let many = |count: u32| {
        let mut facts = host_with_uplink(1500);
        // Adjacent numbers are written as a range; these have gaps.
        let index = |idx: u32| 1000 + 2 * idx;
        let card = |idx: u32| Link { index: index(idx), name: format!("vpn{idx}"), ..link(9, "vpn", None) };
        facts.links.extend((0..count).map(card));
        let route = |idx: u32| Route {
            destination: [172, 31, idx.to_le_bytes()[0], 0].into(),
            prefix_len: 24,
            gateway: None,
            link: Some(index(idx)),
            unicast: true,
        };
        facts.ip.routes.extend((0..count).map(route));
        facts
    };
    assert_eq!(limit(&["nat"], &many(60)), Some(HostLimit::TooManyUplinks { count: 61 }));
    assert_eq!(limit(&["nat"], &many(20)), None);
    assert!(HostLimit::TooManyUplinks { count: 61 }.hint().contains("net.ipv4.ip_forward=1"));
}

#[test]
fn descriptors_of_queues_and_ports_are_counted() {
    let with = |limit| Facts { descriptors: Some(limit), ..host_with_uplink(1500) };
    let ports = "nat,queues=4,forward=tcp:1000-1199:1000-1199";
    assert_eq!(limit(&[ports], &with(236)), Some(HostLimit::Descriptors { needed: 237, limit: 236 }));
    assert_eq!(limit(&[ports], &with(237)), None);
    let both = "nat,ipv6=on,queues=4,forward=tcp:1000-1199:1000-1199";
    assert_eq!(limit(&[both], &with(400)), Some(HostLimit::Descriptors { needed: 437, limit: 400 }));
}
