//! Cards that are ports of Open vSwitch.

use super::*;
use crate::facts::ovs::{Datapath, OvsError, OvsFact};
use crate::step::RemoveOvsPort;

fn host_with_ovs(left_behind: &[&str]) -> Facts {
    let left_behind = left_behind.iter().map(|name| name.parse().unwrap()).collect();
    let datapaths = [("b0".to_owned(), Datapath::Kernel)].into();
    let ovs = OvsFact::There { bridges: vec!["b0".to_owned()], datapaths, left_behind };
    Facts { ovs, spare_names: vec!["vmtap00000001".parse().unwrap()], ..host() }
}

fn host_whose_frames_move_by(datapath: Datapath) -> Facts {
    let datapaths = [("b0".to_owned(), datapath)].into();
    let ovs = OvsFact::There { bridges: vec!["b0".to_owned()], datapaths, left_behind: vec![] };
    Facts { ovs, ..host_with_ovs(&[]) }
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
    assert_eq!(plan.steps[0], Step::RemoveOvsPort(RemoveOvsPort { port: "old".parse().unwrap() }));
    assert!(matches!(plan.steps[1], Step::CreateOvsPort(_)));
    assert_eq!(plan.bridge_of(0).map(IfName::as_str), Some("b0"));
}

#[test]
fn open_vswitch_without_the_bridge_or_not_there_at_all_is_refused() {
    assert_eq!(refusal(&["ovs=b1"], &host_with_ovs(&[])), "Open vSwitch has no bridge b1");
    let facts = Facts { ovs: OvsFact::Trouble(OvsError::Missing), ..host() };
    assert_eq!(refusal(&["ovs=b0"], &facts), "Open vSwitch is not installed: there is no ovs-vsctl in PATH");
}

#[test]
fn what_only_rules_can_do_is_refused_where_frames_pass_around_them() {
    let outcome = |flag: &str, policy: bool, datapath| {
        let policy = policy.then(|| serde_json::from_str("{}").unwrap());
        let request = Request { vm_name: "vm".to_owned(), vcpus: 1, cards: specs(&[flag]), policy, steering: None };
        let mut facts = host_whose_frames_move_by(datapath);
        facts.links.push(link(9, "mon0", Some("veth")));
        super::super::plan(&request, &facts).map_err(|refusal| (refusal.to_string(), refusal.hint()))
    };
    let filtered = outcome("ovs=b0", true, Datapath::Kernel).unwrap();
    assert!(matches!(filtered.steps[..], [Step::CreateOvsPort(_), Step::ApplyPolicy(_)]));
    let (user, offloaded) = (Datapath::User, Datapath::TrafficControl);
    let (text, hint) = outcome("ovs=b0", true, user).unwrap_err();
    assert_eq!(
        text,
        "A policy cannot work on Open vSwitch bridge b0: a process (datapath_type=netdev) moves its frames, around the rules on a tap"
    );
    assert!(hint.contains("ovs-vsctl set Bridge b0 datapath_type=system"), "{hint}");
    let (text, hint) = outcome("ovs=b0", true, offloaded).unwrap_err();
    assert_eq!(
        text,
        "A policy cannot work on Open vSwitch bridge b0: traffic control (other_config:hw-offload) moves its frames, around \
         the rules on a tap"
    );
    assert!(hint.contains("other_config:hw-offload=false"), "{hint}");
    for datapath in [Datapath::Kernel, user] {
        assert!(outcome("ovs=b0,mirror=mon0", false, datapath).is_ok());
    }
    let (text, _) = outcome("ovs=b0,mirror=mon0", false, offloaded).unwrap_err();
    assert!(text.starts_with("mirror= cannot work on Open vSwitch bridge b0"), "{text}");
}

#[test]
fn card_leaves_nothing_to_a_tap_whose_frames_nobody_completes() {
    let offload = |flag: &str, datapath| {
        plan("vm", &specs(&[flag]), &host_whose_frames_move_by(datapath)).unwrap().cards[0].offload.to_string()
    };
    assert_eq!(offload("ovs=b0", Datapath::User), "off");
    assert_eq!(offload("ovs=b0", Datapath::Kernel), "on");
    assert_eq!(offload("ovs=b0,offload=csum", Datapath::TrafficControl), "csum");
}
