//! Cards in VLANs.

use super::*;
use crate::step::{AttachTap, CreateTables};

fn vlans_of(plan: &Plan) -> PortVlans {
    let mut vlans = plan.steps.iter().filter_map(|step| match step {
        Step::AttachTap(AttachTap { vlans, .. }) => vlans.clone(),
        _ => None,
    });
    vlans.next().unwrap()
}

#[test]
fn a_new_bridge_filters_vlans_once_for_all_cards() {
    assert_eq!(
        text(
            &[
                "bridge=new,create=on,mac=52:54:00:00:00:01",
                "bridge=new,vlan=100,mac=52:54:00:00:00:02",
                "bridge=new,trunk=10+100-110,native=5,mac=52:54:00:00:00:03",
            ],
            &host()
        )
        .lines()
        .skip(3)
        .filter(|line| !line.contains("create a tap"))
        .collect::<Vec<_>>(),
        [
            "1. create bridge new with address 02:01:02:03:04:05 and mtu 1500, and raise it; \
             at the end: remove bridge new if it has no ports left",
            "3. attach the tap of card 0 to bridge new with address fe:54:00:00:00:01 and mtu 1500, and raise it; \
             at the end: nothing, it goes with the tap",
            "4. have bridge new filter VLANs; at the end: nothing, it goes with bridge new",
            "6. attach the tap of card 1 to bridge new with address fe:54:00:00:00:02 and mtu 1500, untagged in VLAN 100, \
             and raise it; at the end: nothing, it goes with the tap",
            "8. attach the tap of card 2 to bridge new with address fe:54:00:00:00:03 and mtu 1500, untagged in VLAN 5 \
             and tagged in 10+100-110, and raise it; at the end: nothing, it goes with the tap",
            "9. create the nftables netdev minivmm-vm for card 0, 1, 2; at the end: remove them",
        ]
    );
}

#[test]
fn a_port_leaves_the_default_vlan_unless_it_is_to_be_in_it() {
    for (flag, pvid, leave) in [
        ("bridge=br0,vlan=100", 1, Some(1)),
        ("bridge=br0,vlan=100", 7, Some(7)),
        ("bridge=br0,vlan=100", 0, None),
        ("bridge=br0,vlan=1", 1, None),
        ("bridge=br0,trunk=2-9,native=1", 1, None),
        ("bridge=br0,trunk=1-9", 1, None),
        ("bridge=br0,trunk=2-9", 1, Some(1)),
    ] {
        let facts = host_with_br0(BridgeFact { default_pvid: pvid, ..FILTERS }, 0);
        let plan = plan("vm", &specs(&[flag]), &facts).unwrap();
        assert_eq!(vlans_of(&plan).leave, leave, "{flag} with default {pvid}");
        assert!(!plan.steps.iter().any(|step| matches!(step, Step::FilterVlans(_))), "{flag}");
    }
}

#[test]
fn a_bridge_of_ours_is_made_to_filter() {
    let plan = plan("vm", &specs(&["bridge=br0,vlan=5"]), &host_with_br0(FLAT, OUR_GROUP)).unwrap();
    assert!(plan.steps.iter().any(|step| matches!(step, Step::FilterVlans(_))));
}

#[test]
fn a_bridge_of_somebody_else_is_not_made_to_filter() {
    let error = plan("vm", &specs(&["bridge=br0,vlan=5"]), &host_with_br0(FLAT, 0)).unwrap_err();
    assert_eq!(error.to_string(), "Bridge br0 does not filter VLANs, and minivmm did not make it");
    assert!(error.hint().ends_with("ip link set br0 type bridge vlan_filtering 1"));
}

#[test]
fn a_kernel_without_vlans_is_told_apart() {
    assert_eq!(refusal(&["bridge=br0,vlan=5"], &host()), "The kernel of this host has no VLAN filtering on bridges");
}

#[test]
fn a_guarded_guest_on_a_trunk_is_known_by_what_is_behind_its_tags() {
    let protocols = |flag: &str| {
        let facts = host_with_br0(FILTERS, 0);
        let plan = plan("vm", &specs(&[flag]), &facts).unwrap();
        let Some(Step::CreateTables(CreateTables { guards, .. })) = plan.steps.last() else { panic!("no guard") };
        let chain = guards[0].chain("vmtap0".parse().unwrap());
        chain.rules[1].to_string()
    };
    let rest = "!= { ip, arp, ip6 } counter name \"other-protocol\" drop";
    assert_eq!(protocols("bridge=br0,antispoof=on,trunk=7+9"), format!("meta protocol {rest}"));
    assert_eq!(protocols("bridge=br0,antispoof=on,vlan=7"), format!("ether type {rest}"));
}

#[test]
fn bridge_that_filters_and_has_no_default_vlan_takes_no_card_without_one() {
    let facts = host_with_br0(BridgeFact { default_pvid: 0, ..FILTERS }, 0);
    let refused = plan("vm", &specs(&["bridge=br0"]), &facts).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Bridge br0 filters VLANs and has no default one (vlan_default_pvid=0), so no frame would pass the card"
    );
    assert!(refused.hint().contains("vlan=ID"), "{}", refused.hint());
    for flag in ["bridge=br0,vlan=5", "bridge=br0,trunk=5-6"] {
        assert!(plan("vm", &specs(&[flag]), &facts).is_ok(), "{flag}");
    }
    assert!(plan("vm", &specs(&["bridge=br0"]), &host_with_br0(BridgeFact { default_pvid: 0, ..FLAT }, 0)).is_ok());
}
