//! Properties of all cards, however connected: addresses, queues, limits, copies.

use super::*;
use crate::facts::{FdbEntry, Neighbour};
use crate::step::{CreateTap, LimitRates, OpenTap, OpenVhost};

#[test]
fn addresses_are_derived_from_the_vms_name() {
    let plan = plan("web", &specs(&["bridge=br0", "bridge=br0"]), &host()).unwrap();
    assert_eq!(plan.cards[0].mac, MacAddr::for_vm("web", 0));
    assert_eq!(plan.cards[1].mac, MacAddr::for_vm("web", 1));
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
                {
                    "step": "create-tables",
                    "vm": "vm",
                    "members": [],
                    "guards": [{
                        "card": 0,
                        "mac": "52:54:00:12:34:56",
                        "antispoof": "off",
                        "addresses": [],
                        "isolate": "off",
                        "tagged": "off",
                        "access": "off",
                        "router": ["br0", "1a:00:00:00:00:03"],
                    }],
                },
            ],
        })
    );
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
        let plan = crate::plan::plan(&request, &facts).unwrap();
        assert_eq!(plan.cards[0].queues, queues, "{vcpus} {flag}");
        let steps = plan.steps.iter().find_map(|step| match step {
            Step::CreateTap(CreateTap { queues, .. }) | Step::OpenTap(OpenTap { queues, .. }) => Some(*queues),
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
        assert!(steps.contains(&Step::OpenVhost(OpenVhost { card: 0, queues })), "{flag}");
    }
    let steps = plan("vm", &specs(&["bridge=br0,vhost=off"]), &facts).unwrap().steps;
    assert!(!steps.iter().any(|step| matches!(step, Step::OpenVhost(_))));
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

#[test]
fn rates_of_a_card_on_vhost_net_are_the_kernels_and_of_another_card_the_vmms() {
    let held =
        plan("vm", &specs(&["bridge=br0,vhost=on,rate=100M/1M,burst=1K", "bridge=br0,rate=1M/1M"]), &host()).unwrap();
    let texts: Vec<String> =
        held.steps.iter().map(ToString::to_string).filter(|text| text.starts_with("hold")).collect();
    assert_eq!(texts, ["hold 100000000/1000000 bit/s of card 0"]);
    let Some(Step::LimitRates(LimitRates { limits, .. })) = held.steps.last() else { panic!("no rates") };
    // A whole frame fits into a burst.
    assert_eq!([limits[0].to_guest.burst_bytes, limits[0].from_guest.burst_bytes], [1518, 1518]);
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
