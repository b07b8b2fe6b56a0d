//! Cards that are ports of Open vSwitch.

use super::*;
use crate::ovs::{OvsError, OvsFact};

fn host_with_ovs(left_behind: &[&str]) -> Facts {
    let left_behind = left_behind.iter().map(|name| name.parse().unwrap()).collect();
    let ovs = OvsFact::There { bridges: vec!["b0".to_owned()], left_behind };
    Facts { ovs, spare_names: vec!["vmtap00000001".parse().unwrap()], ..host() }
}

#[test]
fn a_port_of_open_vswitch_has_its_vlan_and_id() {
    let flags = ["ovs=b0,vlan=7,iface-id=pod,mac=52:54:00:00:00:01,mtu=9000"];
    assert_eq!(
        text(&flags, &host_with_ovs(&[])),
        "card 0: mac 52:54:00:00:00:01, mtu 9000, 1 queue pairs\n\
         1. create tap vmtap00000001 with 1 queue pairs and mtu 9000, and add it to Open vSwitch bridge b0 with attached-mac \
         52:54:00:00:00:01 and iface-id pod in VLAN 7 for card 0; at the end: remove the port and the tap\n"
    );
}

#[test]
fn ports_that_nobody_uses_are_removed_once() {
    let plan = plan("vm", &specs(&["ovs=b0"]), &host_with_ovs(&["old"])).unwrap();
    assert_eq!(plan.steps[0], Step::RemoveOvsPort { port: "old".parse().unwrap() });
    assert!(matches!(plan.steps[1], Step::CreateOvsPort { .. }));
    assert_eq!(plan.bridge_of(0).map(IfName::as_str), Some("b0"));
}

#[test]
fn open_vswitch_without_the_bridge_or_not_there_at_all_is_refused() {
    assert_eq!(refusal(&["ovs=b1"], &host_with_ovs(&[])), "Open vSwitch has no bridge b1");
    let facts = Facts { ovs: OvsFact::Trouble(OvsError::Missing), ..host() };
    assert_eq!(refusal(&["ovs=b0"], &facts), "Open vSwitch is not installed: there is no ovs-vsctl in PATH");
}
