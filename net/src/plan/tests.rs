//! Plans of hand-made hosts.

mod macvtap;
mod ovs;

use super::*;
use std::collections::BTreeSet;

use crate::docker::DockerTables;
use crate::facts::{Address, BridgeFact, FdFact, FdbEntry, IpFacts, Neighbour, OUR_GROUP, Route, TunFact, UplinkFact};

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

#[test]
fn a_card_on_a_bridge_with_ports() {
    assert_eq!(
        text(&["bridge=br0,mac=52:54:00:12:34:56"], &host()),
        "card 0: mac 52:54:00:12:34:56, mtu 1500, 1 queue pairs\n\
         1. create a tap with 1 queue pairs for card 0; at the end: remove the tap\n\
         2. attach the tap of card 0 to bridge br0 with address fe:54:00:12:34:56 and mtu 1500, and raise it; \
         at the end: nothing, it goes with the tap\n"
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
         at the end: nothing, it goes with the tap\n"
    );
}

#[test]
fn a_bridge_whose_ports_are_all_above_a_tap_keeps_its_address() {
    let mut facts = host();
    for link in &mut facts.links {
        link.mac = link.mac.map(|[_, rest @ ..]| [[0xfe].as_slice(), &rest].concat().try_into().unwrap());
    }
    let plan = plan("vm", &specs(&["bridge=br0"]), &facts).unwrap();
    assert!(matches!(plan.steps[0], Step::PinAddress { .. }), "{:?}", plan.steps[0]);
}

#[test]
fn a_bridge_that_has_lost_its_address_cannot_keep_it() {
    let mut facts = host();
    facts.links[3].mac = Some([0; 6]);
    let plan = plan("vm", &specs(&["bridge=br1"]), &facts).unwrap();
    assert!(!plan.steps.iter().any(|step| matches!(step, Step::PinAddress { .. })));
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
         at the end: nothing, it goes with the tap\n"
    );
}

#[test]
fn two_new_bridges_have_two_addresses() {
    let plan = plan("vm", &specs(&["bridge=n1,create=on", "bridge=n2,create=on"]), &host()).unwrap();
    let created = plan.steps.iter().filter_map(|step| match step {
        Step::CreateBridge { mac, .. } => Some(mac.to_string()),
        _ => None,
    });
    assert_eq!(created.collect::<Vec<_>>(), ["02:01:02:03:04:05", "02:01:02:03:04:06"]);
}

#[test]
fn a_new_bridge_has_the_cards_mtu() {
    let plan = plan("vm", &specs(&["bridge=new,create=on,mtu=9000"]), &host()).unwrap();
    assert_eq!(plan.cards[0].mtu, 9000);
    assert!(matches!(plan.steps[0], Step::CreateBridge { mtu: 9000, .. }));
    assert!(matches!(plan.steps[2], Step::AttachTap { mtu: 9000, .. }));
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
    assert!(matches!(plan.steps[1], Step::AttachTap { mtu: 65521, .. }));
    assert_eq!(refusal(&["bridge=br0,mtu=65522"], &facts), "mtu=65522 is more than br0 carries, which is 65521");
}

#[test]
fn the_tap_has_the_bridges_mtu_and_the_guest_what_it_asked_for() {
    let mut facts = host();
    facts.links[2].mtu = 9000;
    let plan = plan("vm", &specs(&["bridge=br0,mtu=1400"]), &facts).unwrap();
    assert_eq!(plan.cards[0].mtu, 1400);
    assert!(matches!(plan.steps[1], Step::AttachTap { mtu: 9000, .. }));
    assert_eq!(refusal(&["bridge=br0,mtu=9001"], &facts), "mtu=9001 is more than br0 carries, which is 9000");
}

#[test]
fn addresses_are_derived_from_the_vms_name() {
    let plan = plan("web", &specs(&["bridge=br0", "bridge=br0"]), &host()).unwrap();
    assert_eq!(plan.cards[0].mac, MacAddr::for_vm("web", 0));
    assert_eq!(plan.cards[1].mac, MacAddr::for_vm("web", 1));
}

#[test]
fn a_tap_that_is_down_is_raised_for_as_long_as_the_vm_runs() {
    let facts = with(host(), Link { up: false, mtu: 1400, ..tap(9, "tap0") });
    assert_eq!(
        text(&["tap=tap0,mac=52:54:00:12:34:56"], &facts),
        "card 0: mac 52:54:00:12:34:56, mtu 1400, 1 queue pairs\n\
         1. open tap tap0 with 1 queue pairs for card 0; at the end: close it\n\
         2. raise tap0; at the end: lower tap0\n"
    );
}

#[test]
fn a_plan_is_also_json() {
    let plan = plan("vm", &specs(&["bridge=br0,mac=52:54:00:12:34:56,queues=2"]), &host()).unwrap();
    assert_eq!(
        serde_json::to_value(&plan).unwrap(),
        serde_json::json!({
            "cards": [{ "mac": "52:54:00:12:34:56", "mtu": 1500, "queues": 2, "offload": "on" }],
            "steps": [
                { "step": "create-tap", "card": 0, "queues": 2 },
                {
                    "step": "attach-tap",
                    "card": 0,
                    "bridge": "br0",
                    "mac": "fe:54:00:12:34:56",
                    "mtu": 1500,
                    "alias": "minivmm vm=vm card=0 mode=bridge net=br0",
                    "isolated": "off",
                    "hairpin": "off",
                },
            ],
        })
    );
}

#[test]
fn descriptors_are_taken_over_with_the_mtu_of_their_tap() {
    let mut facts = with(host(), Link { mtu: 1400, ..tap(9, "tap0") });
    let kind = FdKind::Tun { name: "tap0".to_owned(), frames: true, vnet_header: true };
    facts.fds = vec![FdFact { fd: 3, kind: kind.clone() }, FdFact { fd: 4, kind }];
    assert_eq!(
        text(&["fd=3:4,mac=52:54:00:12:34:56"], &facts),
        "card 0: mac 52:54:00:12:34:56, mtu 1400, 2 queue pairs\n\
         1. take over tap tap0 through 2 descriptors for card 0; at the end: close it\n"
    );
    assert_eq!(refusal(&["fd=3", "fd=3"], &facts), "fd=3 belongs to another card of this VM");
}

#[test]
fn descriptors_of_other_things_are_refused() {
    let tun = |frames, vnet_header, name: &str| FdKind::Tun { name: name.to_owned(), frames, vnet_header };
    let kinds =
        [FdKind::Other, tun(false, true, "a"), tun(true, false, "a"), tun(true, true, "a"), tun(true, true, "b")];
    let fds = (4..).zip(kinds).map(|(fd, kind)| FdFact { fd, kind }).collect();
    let facts = Facts { fds, ..host() };
    assert_eq!(refusal(&["fd=3"], &facts), "fd=3 is not open in this process");
    assert_eq!(refusal(&["fd=4"], &facts), "fd=4 is not a tap");
    assert_eq!(refusal(&["fd=5"], &facts), "fd=5 does not carry plain Ethernet frames");
    assert_eq!(refusal(&["fd=6"], &facts), "fd=6 is a tap without virtio-net headers");
    assert_eq!(refusal(&["fd=7:8"], &facts), "fd= mixes queues of the taps a and b");
}

#[test]
fn names_of_other_things_are_refused() {
    let layer3 = Link { tun: Some(TunFact::default()), ..link(8, "tun0", Some("tun")) };
    let facts = with(with(host(), tap(9, "tap0")), layer3);
    assert_eq!(refusal(&["bridge=nope"], &facts), "Bridge nope does not exist");
    assert_eq!(refusal(&["bridge=eth0"], &facts), "eth0 is not a bridge, it is a network card");
    assert_eq!(refusal(&["bridge=tap0,create=on"], &facts), "tap0 is not a bridge, it is a tap");
    assert_eq!(refusal(&["bridge=lo"], &facts), "lo is not a bridge, it is the loopback interface");
    assert_eq!(refusal(&["tap=nope"], &facts), "Tap nope does not exist");
    assert_eq!(refusal(&["tap=br0"], &facts), "br0 is not a tap, it is a bridge");
    assert_eq!(refusal(&["tap=tun0"], &facts), "tun0 is not a tap, it is a tun device (layer 3)");
}

#[test]
fn a_tap_has_one_user_and_its_own_number_of_queues() {
    let mut facts = with(host(), tap(9, "tap0"));
    assert_eq!(refusal(&["tap=tap0,queues=2"], &facts), "Tap tap0 has one queue, and queues=2 needs more");
    assert_eq!(refusal(&["tap=tap0", "tap=tap0"], &facts), "Tap tap0 is held by another process or card");
    facts.links[4].tun = Some(TunFact { tap: true, multi_queue: true, queues_open: 1 });
    assert_eq!(refusal(&["tap=tap0"], &facts), "Tap tap0 is held by another process or card");
}

#[test]
fn a_card_has_a_queue_pair_for_each_vcpu_as_far_as_its_tap_has_them() {
    let mut facts = with(with(host(), tap(8, "single")), tap(9, "multi"));
    facts.links[5].tun = Some(TunFact { tap: true, multi_queue: true, queues_open: 0 });
    for (vcpus, flag, queues) in [
        (2, "bridge=br0", 2),
        (64, "bridge=br0", 8),
        (64, "bridge=br0,queues=64", 64),
        (4, "bridge=br0,queues=1", 1),
        (4, "tap=single", 1),
        (4, "tap=single,queues=1", 1),
        (4, "tap=multi", 4),
        (4, "tap=multi,queues=2", 2),
    ] {
        let request = Request { vm_name: "vm".to_owned(), vcpus, cards: specs(&[flag]), policy: None, steering: None };
        let plan = super::plan(&request, &facts).unwrap();
        assert_eq!(plan.cards[0].queues, queues, "{vcpus} {flag}");
        let steps = plan.steps.iter().find_map(|step| match step {
            Step::CreateTap { queues, .. } | Step::OpenTap { queues, .. } => Some(*queues),
            _ => None,
        });
        assert_eq!(steps, Some(queues), "{vcpus} {flag}");
    }
}

#[test]
fn vhost_is_opened_once_for_each_queue_pair_in_every_mode() {
    let mut facts = with(host(), tap(8, "tap0"));
    let kind = FdKind::Tun { name: "vmtap0".to_owned(), frames: true, vnet_header: true };
    facts.fds = [3, 4].map(|fd| FdFact { fd, kind: kind.clone() }).to_vec();
    for (flag, queues) in [("bridge=br0,queues=3,vhost=on", 3), ("tap=tap0,vhost=on", 1), ("fd=3:4,vhost=on", 2)] {
        let steps = plan("vm", &specs(&[flag]), &facts).unwrap().steps;
        assert!(steps.contains(&Step::OpenVhost { card: 0, queues }), "{flag}");
    }
    let steps = plan("vm", &specs(&["bridge=br0,vhost=off"]), &facts).unwrap().steps;
    assert!(!steps.iter().any(|step| matches!(step, Step::OpenVhost { .. })));
}

#[test]
fn an_address_of_this_host_is_refused() {
    assert_eq!(
        refusal(&["bridge=br0,mac=1a:00:00:00:00:02"], &host()),
        "MAC address 1a:00:00:00:00:02 is already used by interface eth0 of this host"
    );
}

#[test]
fn an_address_of_another_card_is_refused() {
    assert_eq!(
        refusal(&["bridge=br0,mac=52:54:00:00:00:01", "bridge=br1,mac=52:54:00:00:00:01"], &host()),
        "MAC address 52:54:00:00:00:01 is already used by card 0 of this VM"
    );
    let silent = Link { mac: Some(mac("fe:54:00:00:00:01")), ..tap(9, "vmtap0") };
    assert_eq!(
        refusal(&["bridge=br0,mac=52:54:00:00:00:01"], &with(host(), silent)),
        "MAC address 52:54:00:00:00:01 is already used by the guest behind tap vmtap0"
    );
}

#[test]
fn an_address_behind_the_bridge_is_refused_with_its_owners_name() {
    let taken = mac("52:54:00:00:00:01");
    let mut facts = host();
    facts.fdb = vec![FdbEntry { mac: taken, port: 2, bridge: 3 }];
    assert_eq!(
        refusal(&["bridge=br0,mac=52:54:00:00:00:01"], &facts),
        "MAC address 52:54:00:00:00:01 is already used by a machine behind port eth0 of bridge br0"
    );
    facts.neighbours = vec![Neighbour { mac: taken, ip: "10.0.0.5".parse().unwrap(), link: 3 }];
    assert_eq!(
        refusal(&["bridge=br0,mac=52:54:00:00:00:01"], &facts),
        "MAC address 52:54:00:00:00:01 is already used by a machine with address 10.0.0.5 behind port eth0 of bridge br0"
    );
    assert!(plan("vm", &specs(&["bridge=br1,mac=52:54:00:00:00:01"]), &facts).is_ok());
}

#[test]
fn a_neighbour_that_no_bridge_knows_is_a_memory_of_this_vm() {
    let mut facts = host();
    let mac = mac("52:54:00:00:00:01");
    facts.neighbours = vec![Neighbour { mac, ip: "10.0.0.5".parse().unwrap(), link: 3 }];
    assert!(plan("vm", &specs(&["bridge=br0,mac=52:54:00:00:00:01"]), &facts).is_ok());
}

#[test]
fn every_refusal_says_what_to_do() {
    let facts = with(host(), tap(9, "tap0"));
    for (flag, hint) in [
        (
            "bridge=nope",
            "add create=on to have minivmm make it (--net bridge=nope,create=on), or use one that exists: br0, br1",
        ),
        ("bridge=eth0", "give the name of a bridge; `ip link show type bridge` lists them"),
        (
            "tap=nope",
            "make it first (ip tuntap add nope mode tap), or use --net bridge=NAME, which needs no tap of yours",
        ),
        (
            "tap=tap0,queues=2",
            "leave queues= out, or make the tap with several queues: ip tuntap add tap0 mode tap multi_queue",
        ),
        ("bridge=br0,mtu=9000", "give mtu=1500 or less, or raise the link first: ip link set br0 mtu 9000"),
        (
            "bridge=br0,mac=1a:00:00:00:00:02",
            "give the card another address with mac=, or the VM another name with --name",
        ),
    ] {
        assert_eq!(plan("vm", &specs(&[flag]), &facts).unwrap_err().hint(), hint);
    }
}

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
         8. create the nftables inet and netdev minivmm-vm for card 0; at the end: remove them\n\
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
            Step::OpenServices { spec, .. } => Some((spec.ipv4.gateway, spec.ipv4.address)),
            _ => None,
        })
        .collect();
    assert_eq!((leases.len(), leases.iter().map(|(gateway, _)| gateway).collect::<BTreeSet<_>>().len()), (3, 2));
    assert!(!plan.steps.iter().any(|step| matches!(step, Step::EnableForwarding { .. })));
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
    assert!(matches!(plan.steps[1], Step::CreateTap { .. }));
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

/// The bridge br0 with this in it.
fn host_with_br0(fact: BridgeFact, group: u32) -> Facts {
    let mut facts = host();
    facts.links[2].bridge = fact;
    facts.links[2].group = group;
    facts
}

const FILTERS: BridgeFact = BridgeFact { vlan_filtering: Some(true), default_pvid: 1, stp_delay_s: None };
const FLAT: BridgeFact = BridgeFact { vlan_filtering: Some(false), default_pvid: 1, stp_delay_s: None };

fn vlans_of(plan: &Plan) -> PortVlans {
    let mut vlans = plan.steps.iter().filter_map(|step| match step {
        Step::AttachTap { vlans, .. } => vlans.clone(),
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
        assert!(!plan.steps.iter().any(|step| matches!(step, Step::FilterVlans { .. })), "{flag}");
    }
}

#[test]
fn a_bridge_of_ours_is_made_to_filter() {
    let plan = plan("vm", &specs(&["bridge=br0,vlan=5"]), &host_with_br0(FLAT, OUR_GROUP)).unwrap();
    assert!(plan.steps.iter().any(|step| matches!(step, Step::FilterVlans { .. })));
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

#[test]
fn guests_behind_nat_are_let_through_where_docker_drops() {
    let drops =
        |ip4| Facts { ip: IpFacts { docker: DockerTables { ip4, ip6: false }, ..IpFacts::default() }, ..host() };
    let admits = |spec: &str, facts: &Facts| {
        let plan = plan("web", &specs(&[spec]), facts).unwrap();
        plan.steps.iter().filter(|step| matches!(step, Step::AdmitInDocker { .. })).map(ToString::to_string).next()
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
        plan.steps.iter().find_map(Step::attachment).unwrap()
    };
    let forwarded = "nat,forward=tcp:80:80,isolate=on";
    let attachment = hairpin(forwarded, true);
    assert_eq!((attachment.hairpin, attachment.isolated), (Switch::On, Switch::Off));
    let attachment = hairpin(forwarded, false);
    assert_eq!((attachment.hairpin, attachment.isolated), (Switch::Off, Switch::On));
    assert_eq!(hairpin("nat", true).hairpin, Switch::Off);
}

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
         at the end: nothing, it goes with the tap\n"
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
        (wireless, "eth1 cannot be an uplink, it is a wireless card, whose access point takes frames of nobody else"),
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
    assert!(matches!(cut_short.steps[1], Step::TakeUplink { .. }), "{:?}", cut_short.steps);
    facts.uplinks[0] = UplinkFact { link: 5, ..UplinkFact::default() };
    let whole = plan("vm", &specs(&[MOVING]), &facts).unwrap();
    assert!(matches!(whole.steps[..], [Step::ShareBridge { .. }, Step::CreateTap { .. }, Step::AttachTap { .. }]));
    assert_eq!(refusal(&["bridge=new,create=on,uplink=eth0"], &facts), "Bridge new exists, and its uplink is eth1");
}

#[test]
fn an_uplink_carries_the_vlans_of_guests_with_their_tags() {
    let plan = plan("vm", &specs(&[&format!("{MOVING},vlan=100")]), &host_with_uplink()).unwrap();
    let steps: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
    assert!(steps.contains(&"have eth1 be tagged in VLAN 100 as well".to_owned()), "{steps:?}");
}

#[test]
fn rates_of_a_card_on_vhost_net_are_the_kernels_and_of_another_card_the_vmms() {
    let held =
        plan("vm", &specs(&["bridge=br0,vhost=on,rate=100M/1M,burst=1K", "bridge=br0,rate=1M/1M"]), &host()).unwrap();
    let texts: Vec<String> =
        held.steps.iter().map(ToString::to_string).filter(|text| text.starts_with("hold")).collect();
    assert_eq!(texts, ["hold 100000000/1000000 bit/s of card 0"]);
    let Some(Step::HoldRates { shapes, .. }) = held.steps.last() else { panic!("no rates") };
    // A whole frame fits into a burst.
    assert_eq!([shapes[0].to_guest.burst_bytes, shapes[0].from_guest.burst_bytes], [1518, 1518]);
}

#[test]
fn a_mirror_that_leads_to_the_card_is_refused() {
    let facts = with(with(host(), Link { peer: Some(2), ..link(5, "mon1", Some("veth")) }), tap(6, "tap6"));
    let facts = with(facts, link(7, "mon0", None));
    let plan = plan("vm", &specs(&["bridge=br0,mirror=mon0"]), &facts).unwrap();
    assert_eq!(plan.steps.last().unwrap().to_string(), "copy the frames of card 0 to mon0");
    for name in ["eth0", "br0", "mon1"] {
        assert_eq!(
            refusal(&[&format!("bridge=br0,mirror={name}")], &facts),
            format!("mirror={name} leads to bridge br0, where the card is: copies would be copied for ever")
        );
    }
    assert_eq!(refusal(&["bridge=br0,mirror=tap6"], &facts), "mirror=tap6 cannot have copies of frames, it is a tap");
    assert_eq!(refusal(&["bridge=br0,mirror=mon9"], &facts), "mirror=mon9 does not exist");
}
