//! Cards on networks of ours.

use crate::step::OpenServices;
use std::collections::BTreeSet;

use super::*;
use crate::facts::docker::DockerTables;
use crate::facts::{Address, IpFacts, Route};

/// The host with a default route and a bridge of ours that makes network `default`.
fn host_with_network() -> Facts {
    let bridge = Link {
        group: OUR_GROUP,
        mtu: 1400,
        alias: Some("minivmm mode=nat net=default".to_owned()),
        ..link(9, "mvn-default", Some("bridge"))
    };
    let sibling = Link {
        master: Some(9),
        alias: Some("minivmm vm=db card=0 mode=nat net=default ip4=10.9.9.2".to_owned()),
        ..tap(10, "vmtap0")
    };
    let mut facts = with(with(uplinked_host(), bridge), sibling);
    facts.ip.addresses.push(Address { ip: [10, 9, 9, 1].into(), prefix_len: 30, link: 9 });
    facts.ip.forwarding = [2, 9].into();
    facts
}

/// The host with a default route through a tunnel of a smaller MTU.
fn uplinked_host() -> Facts {
    let mut facts = host();
    facts.links[1].mtu = 1420;
    let default = Route {
        destination: [0, 0, 0, 0].into(),
        prefix_len: 0,
        gateway: Some([192, 0, 2, 1].into()),
        link: Some(2),
        unicast: true,
    };
    facts.ip.routes.push(default);
    facts
}

#[test]
fn a_network_is_made_with_its_first_card() {
    assert_eq!(
        text(&["nat,mac=52:54:00:12:34:56,forward=tcp:8080:80"], &uplinked_host()),
        "card 0: mac 52:54:00:12:34:56, mtu 1420, 1 queue pairs\n\
         1. create bridge mvn-default with address 02:01:02:03:04:05 and mtu 1420, and raise it; \
         at the end: remove bridge mvn-default if it has no ports left\n\
         2. give bridge mvn-default the address 10.36.150.1/24; at the end: nothing, it goes with bridge mvn-default\n\
         3. forward packets from mvn-default and eth0; \
         at the end: with bridge mvn-default, forward from eth0 no longer\n\
         4. hold the host's ports of tcp:8080:80 for card 0; at the end: close them\n\
         5. let 127.0.0.0/8 reach the guests of mvn-default; at the end: nothing, it goes with bridge mvn-default\n\
         6. create a tap with 1 queue pairs for card 0; at the end: remove the tap\n\
         7. attach the tap of card 0 to bridge mvn-default with address fe:54:00:12:34:56 and mtu 1420, and raise it; \
         at the end: nothing, it goes with the tap\n\
         8. create the nftables inet and netdev minivmm-vm for card 0, card 0 reaching world+private \
         with at most 8192 connections; at the end: remove them\n\
         9. answer DHCP and DNS of card 0, which has 10.36.150.69; at the end: close it\n"
    );
}

#[test]
fn a_network_is_shared_by_cards_and_vms() {
    let plan = plan("vm", &specs(&["host=a", "host=a", "host=b"]), &uplinked_host()).unwrap();
    let leases: BTreeSet<_> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::OpenServices(OpenServices { spec, .. }) => Some((spec.ipv4.gateway, spec.ipv4.address)),
            _ => None,
        })
        .collect();
    assert_eq!((leases.len(), leases.iter().map(|(gateway, _)| gateway).collect::<BTreeSet<_>>().len()), (3, 2));
    assert!(!plan.steps.iter().any(|step| matches!(step, Step::EnableForwarding(_))));
    assert_eq!(plan.cards[0].mtu, 1500);
}

#[test]
fn a_network_that_exists_has_its_addresses_and_mtu() {
    let mut facts = host_with_network();
    assert_eq!(refusal(&["nat"], &facts), "Network default has no address left in 10.9.9.0/30");
    assert_eq!(
        refusal(&["nat,subnet=10.9.9.0/24"], &facts),
        "Network default exists with subnet 10.9.9.0/30, and subnet=10.9.9.0/24 asks for another"
    );
    facts.links.pop();
    let plan = plan("vm", &specs(&["nat"]), &facts).unwrap();
    assert_eq!(plan.cards[0].mtu, 1400);
    assert_eq!(plan.steps[0].to_string(), "share bridge mvn-default, which minivmm made");
    assert!(matches!(plan.steps[1], Step::CreateTap(_)));
    assert!(plan.alias_of(0).ends_with(" ip4=10.9.9.2"));
}

#[test]
fn a_network_that_was_left_half_made_is_completed() {
    let bridge = Link { group: OUR_GROUP, ..link(9, "mvn-default", Some("bridge")) };
    let plan = plan("vm", &specs(&["nat"]), &with(uplinked_host(), bridge)).unwrap();
    let texts: Vec<String> = plan.steps.iter().take(3).map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "share bridge mvn-default, which minivmm made",
            "give bridge mvn-default the address 10.36.150.1/24",
            "forward packets from mvn-default and eth0",
        ]
    );
}

#[test]
fn a_bridge_of_somebody_else_is_no_network() {
    let facts = with(host(), link(9, "mvn-default", Some("bridge")));
    assert_eq!(
        refusal(&["nat"], &facts),
        "The bridge of this network would be mvn-default, and that is a bridge, which minivmm did not make"
    );
}

#[test]
fn a_subnet_that_somebody_has_is_refused() {
    let mut facts = uplinked_host();
    facts.ip.resolvers.push([10, 1, 1, 53].into());
    assert_eq!(refusal(&["nat,subnet=10.1.0.0/16"], &facts), "subnet=10.1.0.0/16 overlaps the name server 10.1.1.53");
    assert_eq!(refusal(&["nat,subnet=192.0.2.0/28"], &facts), "subnet=192.0.2.0/28 overlaps the router 192.0.2.1");
    assert_eq!(
        refusal(&["nat=a,subnet=10.2.0.0/16", "nat=b,subnet=10.2.3.0/24"], &facts),
        "subnet=10.2.3.0/24 overlaps the subnet of mvn-a"
    );
}

#[test]
fn a_network_with_ipv6_has_the_host_forward_it() {
    let mut facts = uplinked_host();
    facts.ip.advertised6 = [2].into();
    let texts = |facts: &Facts, flags: &[&str]| -> Vec<String> {
        let plan = plan("vm", &specs(flags), facts).unwrap();
        plan.steps
            .iter()
            .map(ToString::to_string)
            .filter(|text| text.contains("IPv6") || text.contains("fe80"))
            .collect()
    };
    assert_eq!(
        texts(&facts, &["nat,ipv6=on", "nat,ipv6=on"]),
        [
            "give bridge mvn-default the addresses fd3e:ffb2:d49a::1/64 and fe80::1/64",
            "forward IPv6, and go on taking router advertisements on eth0",
        ]
    );
    assert_eq!(texts(&facts, &["host,ipv6=on"]).len(), 1);
    facts.ip.forwards6 = true;
    assert_eq!(texts(&facts, &["nat,ipv6=on"]).len(), 1);
}

#[test]
fn guests_behind_nat_are_let_through_where_docker_drops() {
    let drops =
        |ip4| Facts { ip: IpFacts { docker: DockerTables { ip4, ip6: false }, ..IpFacts::default() }, ..host() };
    let admits = |spec: &str, facts: &Facts| {
        let plan = plan("web", &specs(&[spec]), facts).unwrap();
        plan.steps.iter().filter(|step| matches!(step, Step::AdmitInDocker(_))).map(ToString::to_string).next()
    };
    let text = admits("nat,subnet=10.1.2.0/30", &drops(true)).unwrap();
    assert_eq!(text, "let 10.1.2.2 on mvn-default through in chain DOCKER-USER of Docker");
    assert_eq!(admits("host", &drops(true)), None);
    assert_eq!(admits("nat", &drops(false)), None);
}

#[test]
fn frames_come_back_to_a_forwarded_guest_where_the_bridge_translates_them() {
    let hairpin = |spec: &str, bridged_as_routed| {
        let facts = Facts { ip: IpFacts { bridged_as_routed, ..IpFacts::default() }, ..host() };
        let plan = plan("web", &specs(&[spec]), &facts).unwrap();
        plan.steps
            .iter()
            .find_map(|step| match step {
                Step::AttachTap(step) => Some(step.attachment()),
                _ => None,
            })
            .unwrap()
    };
    let forwarded = "nat,forward=tcp:80:80,isolate=on";
    let attachment = hairpin(forwarded, true);
    assert_eq!((attachment.hairpin, attachment.isolated), (Switch::On, Switch::Off));
    let attachment = hairpin(forwarded, false);
    assert_eq!((attachment.hairpin, attachment.isolated), (Switch::Off, Switch::On));
    assert_eq!(hairpin("nat", true).hairpin, Switch::Off);
}
