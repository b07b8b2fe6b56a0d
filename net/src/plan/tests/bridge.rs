//! Cards on bridges of the host, and bridges that are made for them.

use super::*;
use crate::step::{AttachTap, CreateBridge};

#[test]
fn a_card_on_a_bridge_with_ports() {
    assert_eq!(
        text(&["bridge=br0,mac=52:54:00:12:34:56"], &host()),
        "card 0: mac 52:54:00:12:34:56, mtu 1500, 1 queue pairs\n\
         1. create a tap with 1 queue pairs for card 0; at the end: remove the tap\n\
         2. attach the tap of card 0 to bridge br0 with address fe:54:00:12:34:56 and mtu 1500, and raise it; \
         at the end: nothing, it goes with the tap\n\
         3. create the nftables netdev minivmm-vm for card 0; at the end: remove them\n"
    );
}

#[test]
fn a_bridge_without_ports_keeps_its_address() {
    assert_eq!(
        text(&["bridge=br1,mac=52:54:00:12:34:56"], &host()),
        "card 0: mac 52:54:00:12:34:56, mtu 1500, 1 queue pairs\n\
         1. keep the address of bridge br1 at 1a:00:00:00:00:04; at the end: nothing, the address is the same\n\
         2. create a tap with 1 queue pairs for card 0; at the end: remove the tap\n\
         3. attach the tap of card 0 to bridge br1 with address fe:54:00:12:34:56 and mtu 1500, and raise it; \
         at the end: nothing, it goes with the tap\n\
         4. create the nftables netdev minivmm-vm for card 0; at the end: remove them\n"
    );
}

#[test]
fn a_bridge_whose_ports_are_all_above_a_tap_keeps_its_address() {
    let mut facts = host();
    for link in &mut facts.links {
        link.mac = link.mac.map(|[_, rest @ ..]| [[0xfe].as_slice(), &rest].concat().try_into().unwrap());
    }
    let plan = plan("vm", &specs(&["bridge=br0"]), &facts).unwrap();
    assert!(matches!(plan.steps[0], Step::PinAddress(_)), "{:?}", plan.steps[0]);
}

#[test]
fn a_bridge_that_has_lost_its_address_cannot_keep_it() {
    let mut facts = host();
    facts.links[3].mac = Some([0; 6]);
    let plan = plan("vm", &specs(&["bridge=br1"]), &facts).unwrap();
    assert!(!plan.steps.iter().any(|step| matches!(step, Step::PinAddress(_))));
}

#[test]
fn a_missing_bridge_is_made_once_for_all_cards() {
    assert_eq!(
        text(&["bridge=new,create=on,mac=52:54:00:00:00:01", "bridge=new,create=on,mac=52:54:00:00:00:02"], &host()),
        "card 0: mac 52:54:00:00:00:01, mtu 1500, 1 queue pairs\n\
         card 1: mac 52:54:00:00:00:02, mtu 1500, 1 queue pairs\n\
         1. create bridge new with address 02:01:02:03:04:05 and mtu 1500, and raise it; \
         at the end: remove bridge new if it has no ports left\n\
         2. create a tap with 1 queue pairs for card 0; at the end: remove the tap\n\
         3. attach the tap of card 0 to bridge new with address fe:54:00:00:00:01 and mtu 1500, and raise it; \
         at the end: nothing, it goes with the tap\n\
         4. create a tap with 1 queue pairs for card 1; at the end: remove the tap\n\
         5. attach the tap of card 1 to bridge new with address fe:54:00:00:00:02 and mtu 1500, and raise it; \
         at the end: nothing, it goes with the tap\n\
         6. create the nftables netdev minivmm-vm for card 0, 1; at the end: remove them\n"
    );
}

#[test]
fn two_new_bridges_have_two_addresses() {
    let plan = plan("vm", &specs(&["bridge=n1,create=on", "bridge=n2,create=on"]), &host()).unwrap();
    let created = plan.steps.iter().filter_map(|step| match step {
        Step::CreateBridge(CreateBridge { mac, .. }) => Some(mac.to_string()),
        _ => None,
    });
    assert_eq!(created.collect::<Vec<_>>(), ["02:01:02:03:04:05", "02:01:02:03:04:06"]);
}

#[test]
fn a_new_bridge_has_the_cards_mtu() {
    let plan = plan("vm", &specs(&["bridge=new,create=on,mtu=9000"]), &host()).unwrap();
    assert_eq!(plan.cards[0].mtu, 9000);
    assert!(matches!(plan.steps[0], Step::CreateBridge(CreateBridge { mtu: 9000, .. })));
    assert!(matches!(plan.steps[2], Step::AttachTap(AttachTap { mtu: 9000, .. })));
}

#[test]
fn a_bridge_of_ours_is_shared() {
    let facts = with(host(), Link { group: OUR_GROUP, ..link(9, "ours", Some("bridge")) });
    for flag in ["bridge=ours", "bridge=ours,create=on"] {
        let plan = plan("vm", &specs(&[flag]), &facts).unwrap();
        assert_eq!(plan.steps[0].to_string(), "share bridge ours, which minivmm made");
        assert_eq!(plan.steps[0].undo_text(), "remove bridge ours if it has no ports left");
    }
}

#[test]
fn a_bridge_with_a_larger_mtu_than_a_tap_can_have_is_joined_with_the_largest() {
    let mut facts = host();
    facts.links[2].mtu = 65535;

    let plan = plan("vm", &specs(&["bridge=br0"]), &facts).unwrap();

    assert_eq!(plan.cards[0].mtu, 65521);
    assert!(matches!(plan.steps[1], Step::AttachTap(AttachTap { mtu: 65521, .. })));
    assert_eq!(refusal(&["bridge=br0,mtu=65522"], &facts), "mtu=65522 is more than br0 carries, which is 65521");
}

#[test]
fn the_tap_has_the_bridges_mtu_and_the_guest_what_it_asked_for() {
    let mut facts = host();
    facts.links[2].mtu = 9000;
    let plan = plan("vm", &specs(&["bridge=br0,mtu=1400"]), &facts).unwrap();
    assert_eq!(plan.cards[0].mtu, 1400);
    assert!(matches!(plan.steps[1], Step::AttachTap(AttachTap { mtu: 9000, .. })));
    assert_eq!(refusal(&["bridge=br0,mtu=9001"], &facts), "mtu=9001 is more than br0 carries, which is 9000");
}

#[test]
fn a_new_bridge_takes_part_in_a_spanning_tree_if_asked() {
    let plan = plan("vm", &specs(&["bridge=new,create=on,stp=on"]), &host()).unwrap();
    assert_eq!(plan.steps[1].to_string(), "have bridge new take part in a spanning tree with a forward delay of 15 s");
}

#[test]
fn a_bridge_that_exists_has_the_spanning_tree_or_is_refused() {
    let flag = "bridge=br0,create=on,stp=on,forward-delay=4";
    let has = |stp_delay_s| host_with_br0(BridgeFact { stp_delay_s, ..FLAT }, OUR_GROUP);
    assert!(plan("vm", &specs(&[flag]), &has(Some(4))).is_ok());
    assert_eq!(refusal(&[flag], &has(None)), "Bridge br0 exists, and takes part in no spanning tree");
    assert_eq!(
        refusal(&[flag], &has(Some(15))),
        "Bridge br0 exists, and its spanning tree has a forward delay of 15 s"
    );
    let error = plan("vm", &specs(&[flag]), &has(None)).unwrap_err();
    assert!(error.hint().ends_with("ip link set br0 type bridge stp_state 1 forward_delay 400"));
}
