//! Bridges that are given an interface of the host as their way out.

use super::*;
use crate::facts::UplinkFact;

/// A host whose `eth1` has two addresses and the default route.
fn host_with_uplink() -> Facts {
    let mut facts = with(host(), Link { mtu: 9000, ..link(5, "eth1", None) });
    let addresses = vec!["192.0.2.1/24".to_owned(), "2001:db8::1/64".to_owned()];
    facts.uplinks.push(UplinkFact { link: 5, addresses, routes: 3, default_route: true, ..UplinkFact::default() });
    facts
}

const MOVING: &str = "bridge=new,create=on,uplink=eth1,move-addresses=on";

#[test]
fn a_bridge_with_an_uplink_has_its_address_and_mtu_and_takes_over_what_it_has() {
    assert_eq!(
        text(&[&format!("{MOVING},mac=52:54:00:00:00:01"), "bridge=new,mac=52:54:00:00:00:02"], &host_with_uplink()),
        "card 0: mac 52:54:00:00:00:01, mtu 9000, 1 queue pairs\n\
         card 1: mac 52:54:00:00:00:02, mtu 9000, 1 queue pairs\n\
         1. create bridge new with address 1a:00:00:00:00:05 and mtu 9000, and raise it; \
         at the end: remove bridge new if it has no ports left\n\
         2. make eth1 a port of bridge new, which takes over 192.0.2.1/24, 2001:db8::1/64 and 3 routes; \
         at the end: with bridge new, move them back to eth1 and release it\n\
         3. create a tap with 1 queue pairs for card 0; at the end: remove the tap\n\
         4. attach the tap of card 0 to bridge new with address fe:54:00:00:00:01 and mtu 9000, and raise it; \
         at the end: nothing, it goes with the tap\n\
         5. create a tap with 1 queue pairs for card 1; at the end: remove the tap\n\
         6. attach the tap of card 1 to bridge new with address fe:54:00:00:00:02 and mtu 9000, and raise it; \
         at the end: nothing, it goes with the tap\n\
         7. create the nftables netdev minivmm-vm for card 0, 1; at the end: remove them\n"
    );
}

#[test]
fn an_uplink_with_addresses_is_refused_unless_they_move() {
    assert_eq!(
        refusal(&["bridge=new,create=on,uplink=eth1"], &host_with_uplink()),
        "eth1 has 192.0.2.1/24, 2001:db8::1/64, the default route, and a port of a bridge cannot use them"
    );
}

#[test]
fn an_uplink_that_no_bridge_can_have_is_refused() {
    let mut wireless = host_with_uplink();
    wireless.uplinks[0].wireless = true;
    let mut nexthops = host_with_uplink();
    nexthops.uplinks[0].nexthop_objects = true;
    let vlan = with(host_with_uplink(), Link { lower: Some(5), ..link(6, "eth1.7", Some("vlan")) });
    for (facts, message) in [
        (wireless, "eth1 cannot be an uplink, it is a wireless card, and access points take its own address only"),
        (nexthops, "Routes through eth1 use nexthop objects, which cannot be moved"),
        (
            vlan,
            "eth1 cannot be an uplink while eth1.7 is on it, which is a link of kind vlan and takes frames before the bridge",
        ),
    ] {
        assert_eq!(refusal(&[MOVING], &facts), message);
    }
    assert_eq!(refusal(&["bridge=new,create=on,uplink=eth0"], &host()), "eth0 is a port of br0 already");
    let both = [MOVING, "bridge=two,create=on,uplink=eth1,move-addresses=on"];
    assert_eq!(refusal(&both, &host_with_uplink()), "eth1 is a port of new already");
}

#[test]
fn a_bridge_left_with_its_uplink_is_shared_and_a_move_that_was_cut_short_goes_on() {
    let alias = Some("minivmm uplink=eth1 moved=on".to_owned());
    let left = Link { group: OUR_GROUP, alias, mac: Some([0x1a, 0, 0, 0, 0, 5]), ..link(9, "new", Some("bridge")) };
    let mut facts = with(host_with_uplink(), left);
    facts.links[4].master = Some(9);
    let cut_short = plan("vm", &specs(&[MOVING]), &facts).unwrap();
    assert!(matches!(cut_short.steps[1], Step::TakeUplink(_)), "{:?}", cut_short.steps);
    facts.uplinks[0] = UplinkFact { link: 5, ..UplinkFact::default() };
    let whole = plan("vm", &specs(&[MOVING]), &facts).unwrap();
    assert!(matches!(
        whole.steps[..],
        [Step::ShareBridge(_), Step::CreateTap(_), Step::AttachTap(_), Step::CreateTables(_)]
    ));
    assert_eq!(refusal(&["bridge=new,create=on,uplink=eth0"], &facts), "Bridge new exists, and its uplink is eth1");
}

#[test]
fn an_uplink_carries_the_vlans_of_guests_with_their_tags() {
    let plan = plan("vm", &specs(&[&format!("{MOVING},vlan=100")]), &host_with_uplink()).unwrap();
    let steps: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
    assert!(steps.contains(&"have eth1 be tagged in VLAN 100 as well".to_owned()), "{steps:?}");
}
