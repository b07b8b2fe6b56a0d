//! Cards with an address of their own on an interface of the host.

use super::*;
use crate::facts::MacvlanMode;
use crate::step::RemoveLeftBehind;

/// A host with an interface that has no master.
fn host_with_wire() -> Facts {
    let names = ["vmtap00000001", "vmtap00000002"].map(|name| name.parse().unwrap());
    Facts { spare_names: names.to_vec(), ..with(host(), Link { mtu: 9000, ..link(7, "eth1", None) }) }
}

/// An unused macvtap of ours on eth1.
fn left_behind(name: &str, mode: MacvlanMode) -> Link {
    let (lower, macvlan) = (Some(7), Some(mode));
    Link { lower, macvlan, group: OUR_GROUP, ..link(8, name, Some("macvtap")) }
}

#[test]
fn a_macvtap_has_the_mtu_of_its_interface_and_a_name_of_its_own() {
    assert_eq!(
        text(&["macvtap=eth1,mac=52:54:00:00:00:01", "macvtap=eth1,mac=52:54:00:00:00:02,mtu=1500"], &host_with_wire()),
        "card 0: mac 52:54:00:00:00:01, mtu 9000, 1 queue pairs\n\
         card 1: mac 52:54:00:00:00:02, mtu 1500, 1 queue pairs\n\
         1. create macvtap vmtap00000001 on eth1 in mode bridge with address 52:54:00:00:00:01 and 1 queue pairs for card \
         0, and raise it; at the end: remove the macvtap\n\
         2. create macvtap vmtap00000002 on eth1 in mode bridge with address 52:54:00:00:00:02 and 1 queue pairs for card \
         1, and raise it; at the end: remove the macvtap\n"
    );
}

#[test]
fn a_macvtap_that_nobody_uses_makes_room_for_the_next() {
    for mode in [MacvlanMode::Shared, MacvlanMode::Passthru] {
        let facts = with(host_with_wire(), left_behind("old", mode));
        let plan = plan("vm", &specs(&["macvtap=eth1,mode=passthru,mac=1a:00:00:00:00:08"]), &facts).unwrap();
        assert_eq!(plan.steps[0], Step::RemoveLeftBehind(RemoveLeftBehind { link: "old".parse().unwrap() }));
        assert!(matches!(plan.steps[1], Step::CreateMacvtap(_)));
    }
}

#[test]
fn a_macvtap_that_is_used_stays_and_is_in_the_way_of_passthru() {
    let mut facts = with(host_with_wire(), left_behind("used", MacvlanMode::Shared));
    facts.claimed.insert("used".to_owned());
    assert_eq!(refusal(&["macvtap=eth1,mode=passthru"], &facts), "eth1 is used by used");
    assert_eq!(plan("vm", &specs(&["macvtap=eth1"]), &facts).unwrap().steps.len(), 1);
    assert_eq!(
        refusal(&["macvtap=eth1,mac=1a:00:00:00:00:08"], &facts),
        "MAC address 1a:00:00:00:00:08 is already used by interface used of this host"
    );

    facts.links.last_mut().unwrap().macvlan = Some(MacvlanMode::Passthru);
    assert_eq!(refusal(&["macvtap=eth1"], &facts), "eth1 is used by used alone (mode=passthru)");
}

#[test]
fn interfaces_that_carry_no_macvtap_are_refused() {
    let mut facts = host_with_wire();
    facts.wireless.insert("eth1".to_owned());
    let facts = with(facts, Link { up: false, ..link(9, "eth2", None) });
    for (flag, message) in [
        ("macvtap=eth9", "Interface eth9 does not exist"),
        ("macvtap=lo", "lo cannot carry a macvtap, it is the loopback interface"),
        ("macvtap=eth0", "eth0 is a port of br0, which takes all its frames"),
        ("macvtap=eth1", "eth1 is a Wi-Fi card, and access points take frames from its own address only"),
        ("macvtap=eth2", "eth2 is down"),
    ] {
        assert_eq!(refusal(&[flag], &facts), message);
    }
}
