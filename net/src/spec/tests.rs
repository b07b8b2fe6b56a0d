use super::*;

fn parse(text: &str) -> NetSpec {
    text.parse().unwrap()
}

/// The error message of a refused flag.
fn refusal(text: &str) -> String {
    text.parse::<NetSpec>().unwrap_err().to_string()
}

#[test]
fn a_bridge_needs_nothing_but_its_name() {
    let NetSpec::Bridge(spec) = parse("bridge=br0") else { panic!("another mode") };
    assert_eq!(spec.bridge.as_str(), "br0");
    assert_eq!(spec.create, Switch::Off);
    assert_eq!(spec.card, CardSpec::default());
}

#[test]
fn every_key_of_every_mode_is_read_in_any_order() {
    for text in [
        "bridge=br0,create=on,mac=52:54:00:00:00:01,mtu=9000,queues=4,ring=1024,offload=csum:tso,vhost=on",
        "bridge=br0,create=on,stp=on,forward-delay=4,vlan=100,mtu=1400",
        "bridge=br0,create=on,uplink=eth1,stp=on,vlan=100",
        "bridge=br0,create=on,uplink=eth1,move-addresses=on",
        "bridge=br0,create=on,trunk=10+20+100-110,native=30,queues=2",
        "nat=web,subnet=10.1.2.0/24,ipv6=on,forward=tcp:8080:80+udp:127.0.0.1:53:53,mac=52:54:00:00:00:01,queues=2",
        "host=lab,subnet=10.1.2.0/24,ipv6=on,mac=52:54:00:00:00:01,mtu=9000,queues=2",
        "macvtap=eth1,mode=passthru,mac=52:54:00:00:00:01,mtu=9000,queues=2,vhost=on",
        "ovs=b0,vlan=7,iface-id=ns_pod-1,mac=52:54:00:00:00:01,mtu=9000,queues=2",
        "tap=tap7,mac=52:54:00:00:00:01,mtu=1400,queues=1,ring=64,offload=off,vhost=on",
        "fd=3:4:5,mac=52:54:00:00:00:01,mtu=1400,queues=3,ring=4096,offload=csum:tso:ecn:uso",
    ] {
        let mut items: Vec<&str> = text.split(',').collect();
        items.reverse();
        assert_eq!(parse(&items.join(",")), parse(text));
        assert_eq!(parse(text).to_string(), text);
    }
}

#[test]
fn limits_themselves_are_taken() {
    for text in [
        "bridge=b,mtu=68",
        "bridge=b,mtu=65535",
        "bridge=b,queues=1",
        "bridge=b,queues=64",
        "bridge=b,ring=64",
        "bridge=b,ring=4096",
        "bridge=abcdefghijklmno",
    ] {
        parse(text);
    }
}

#[test]
fn a_table_with_native_values_gives_the_same_as_the_flag() {
    for (flag, table) in [
        ("bridge=br0,create=on,mtu=9000", r#"{"bridge": "br0", "create": true, "mtu": 9000}"#),
        (
            "bridge=b,create=on,stp=on,forward-delay=4",
            r#"{"bridge": "b", "create": true, "stp": true, "forward-delay": 4}"#,
        ),
        (
            "bridge=b,create=on,uplink=e1,move-addresses=on",
            r#"{"bridge": "b", "create": true, "uplink": "e1", "move-addresses": true}"#,
        ),
        ("bridge=br0,vlan=7", r#"{"bridge": "br0", "vlan": 7}"#),
        ("bridge=br0,trunk=7+8,native=9", r#"{"bridge": "br0", "trunk": [7, 8], "native": 9}"#),
        ("bridge=br0,trunk=7-9+11", r#"{"bridge": "br0", "trunk": ["7-9", "11"]}"#),
        ("tap=t0,mac=52:54:00:00:00:01", r#"{"mac": "52:54:00:00:00:01", "tap": "t0"}"#),
        ("macvtap=eth1,mode=vepa", r#"{"macvtap": "eth1", "mode": "vepa"}"#),
        ("ovs=b0,vlan=7,iface-id=a", r#"{"ovs": "b0", "vlan": 7, "iface-id": "a"}"#),
        ("macvtap=eth1,mode=bridge", r#"{"macvtap": "eth1"}"#),
        ("nat", r#"{"nat": "default"}"#),
        ("nat=web,forward=tcp:1:2+udp:3:4", r#"{"nat": "web", "forward": ["tcp:1:2", "udp:3:4"]}"#),
        ("host=lab,subnet=10.1.0.0/16", r#"{"host": "lab", "subnet": "10.1.0.0/16"}"#),
        ("fd=3:4", r#"{"fd": [3, 4]}"#),
        ("fd=3", r#"{"fd": 3}"#),
        ("fd=3,vhost=on", r#"{"fd": 3, "vhost": true}"#),
        ("fd=3,vhost=off", r#"{"fd": 3}"#),
        ("tap=t0,queues=2,ring=512,offload=off", r#"{"tap": "t0", "queues": 2, "ring": 512, "offload": false}"#),
    ] {
        assert_eq!(serde_json::from_str::<NetSpec>(table).unwrap(), parse(flag));
    }
}

#[test]
fn a_spec_survives_json() {
    for flag in [
        "bridge=br0,create=on,mtu=9000,queues=3,ring=512,offload=csum:ufo",
        "bridge=br0,vlan=100",
        "bridge=br0,trunk=10+100-110,native=3",
        "tap=t0,mac=52:54:00:00:00:01",
        "fd=3:4",
        "tap=t0,rate=100M/1500k,burst=2M,delay=20ms,jitter=500us,loss=0.25%,seed=7,capture=/a b.pcapng,snaplen=96,capture-size=1M,mirror=mon0",
    ] {
        let json = serde_json::to_string(&parse(flag)).unwrap();
        assert_eq!(serde_json::from_str::<NetSpec>(&json).unwrap(), parse(flag));
    }
}

#[test]
fn reach_is_a_list_of_places_that_a_network_without_a_way_out_has_not() {
    for text in ["nat,reach=world+private,metadata=on", "nat,reach=none", "host,reach=none", "host,reach=host"] {
        assert_eq!(parse(text).to_string(), text);
    }
    assert_eq!(refusal("nat,reach=lan"), "reach=lan is not possible: give none, or a list out of world+private+host");
    assert!(refusal("host,reach=world").starts_with("reach=world is not possible with host="));
    assert!(refusal("host,metadata=on").starts_with("host= takes no key \"metadata\""));
    assert!(refusal("bridge=b,reach=world").starts_with("bridge= takes no key \"reach\""));
}

#[test]
fn the_lists_of_keys_are_the_fields_of_the_structs() {
    let card = CardSpec {
        mac: Some("52:54:00:00:00:01".parse().unwrap()),
        mtu: Some("1500".parse().unwrap()),
        queues: Some(Queues::ONE),
        ring: RingSize::default(),
        offload: OffloadList::default(),
        vhost: Switch::On,
        impair: ImpairSpec {
            rate: "1M/1M".parse().ok(),
            burst: "64K".parse().ok(),
            delay: "1ms".parse().ok(),
            jitter: "1ms".parse().ok(),
            loss: "1%".parse().ok(),
            seed: "1".parse().ok(),
        },
        capture: CaptureSpec {
            capture: Some("a".into()),
            snaplen: "64".parse().ok(),
            capture_size: "64K".parse().ok(),
        },
        mirror: "x".parse().ok(),
    };
    let name: IfName = "x".parse().unwrap();
    let stp = StpSpec { stp: Switch::On, forward_delay: "4".parse().ok() };
    let vlans = VlanSpec { vlan: "1".parse().ok(), trunk: "2".parse().unwrap(), native: "3".parse().ok() };
    let guard = GuardSpec { antispoof: Some(Switch::On), isolate: Switch::On };
    let addresses = "192.0.2.5".parse().unwrap();
    let limits = LimitSpec { connections: "1".parse().ok(), new_connections: "1/s".parse().ok() };
    let (bridge, create) = (name.clone(), Switch::On);
    let uplink = UplinkSpec { uplink: Some(name.clone()), move_addresses: Switch::On };
    let bridge = BridgeSpec { bridge, create, uplink, stp, vlans, addresses, guard, card: card.clone() };
    let macvtap = MacvtapSpec { macvtap: name.clone(), mode: MacvtapMode::Vepa, card: card.clone() };
    let (ovs, vlan, iface_id) = (name.clone(), "1".parse().ok(), "a".parse().ok());
    let ovs = NetSpec::Ovs(OvsSpec { ovs, vlan, iface_id, card: card.clone() });
    let tap = TapSpec { tap: name, card: card.clone() };
    let private = [
        parse("nat=a,subnet=10.0.0.0/24,forward=tcp:1:1,search=off,reach=world"),
        parse("host=a,subnet=10.0.0.0/24,reach=none"),
    ];
    let [mut nat, mut host] = private;
    for spec in [&mut nat, &mut host] {
        match spec {
            NetSpec::Nat(spec) => (spec.card, spec.guard, spec.limits) = (card.clone(), guard, limits),
            NetSpec::Host(spec) => (spec.card, spec.guard, spec.limits) = (card.clone(), guard, limits),
            _ => panic!("another mode"),
        }
    }
    let fd = FdSpec { fd: "3".parse().unwrap(), card };
    let (bridge, macvtap) = (NetSpec::Bridge(bridge), NetSpec::Macvtap(macvtap));
    for (mode, spec) in MODES.iter().zip([bridge, nat, host, macvtap, ovs, NetSpec::Tap(tap), NetSpec::Fd(fd)]) {
        let Value::Object(table) = serde_json::to_value(&spec).unwrap() else { panic!("no table") };
        let mut all = [vec![mode.key], keys::of_mode(mode.key)].concat();
        all.sort_unstable();
        assert_eq!(table.keys().collect::<Vec<_>>(), all);
    }
}

#[test]
fn an_uplink_needs_a_bridge_of_ours_and_no_host_that_waits() {
    for (text, message) in [
        ("bridge=b,uplink=e1", "uplink= does nothing by itself: give create=on with it, or leave it out"),
        (
            "bridge=b,create=on,move-addresses=on",
            "move-addresses= does nothing by itself: give uplink=IFACE with it, or leave it out",
        ),
        (
            "bridge=b,create=on,uplink=e1,move-addresses=on,stp=on",
            "stp=on and move-addresses=on contradict each other, the host would be cut off while the port waits: \
             leave one of them out",
        ),
    ] {
        assert_eq!(refusal(text), message);
    }
}

#[test]
fn guards_are_refused_where_they_do_nothing() {
    assert_eq!(
        refusal("bridge=br0,addresses=192.0.2.5"),
        "addresses= does nothing by itself: give antispoof=on with it, or leave it out"
    );
    assert!(refusal("tap=t0,antispoof=on").starts_with("tap= takes no key \"antispoof\""));
    assert!(refusal("nat,addresses=192.0.2.5").starts_with("nat= takes no key \"addresses\""));
    let text = "bridge=br0,addresses=192.0.2.5+2001:db8::5,antispoof=on,isolate=on";
    assert_eq!(parse(text).to_string(), text);
    assert_eq!(parse("nat,antispoof=off").to_string(), "nat,antispoof=off");
    let text = "nat,isolate=on,connections=1000,new-connections=50/s";
    assert_eq!(parse(text).to_string(), text);
    assert!(refusal("nat,new-connections=50").starts_with("new-connections=50 is not possible"));
}

#[test]
fn what_macvtap_and_ovs_cannot_have_is_refused_with_the_reason() {
    for (text, beginning) in [
        ("macvtap=eth1,antispoof=on", "macvtap= takes no key \"antispoof\": what the guest sends does not come in"),
        (
            "macvtap=eth1,isolate=on",
            "macvtap= takes no key \"isolate\": mode=private keeps VMs on the same interface apart",
        ),
        ("macvtap=eth1,vlan=5", "macvtap= takes no key \"vlan\": make a VLAN interface and give that"),
        ("macvtap=eth1,mod=vepa", "macvtap= takes no key \"mod\": did you mean mode=?"),
        ("macvtap=eth1,mode=open", "mode=open is not possible: give bridge, private, vepa or passthru"),
        ("ovs=b0,antispoof=on", "ovs= takes no key \"antispoof\": what passes its bridge is up to Open vSwitch"),
        ("ovs=b0,trunk=1+2", "ovs= takes no key \"trunk\": set trunks= of its port in Open vSwitch"),
        ("ovs=b0,iface-id=a b", "iface-id=a b is not possible: give 1 to 127 letters, digits and ._:/@-"),
        ("bridge=br0,mode=vepa", "bridge= takes no key \"mode\""),
    ] {
        let refused = refusal(text);
        assert!(refused.starts_with(beginning), "{text}: {refused}");
    }
}

#[test]
fn the_address_of_a_guest_is_fixed_where_frames_come_for_it_alone() {
    for (text, fixed) in [
        ("macvtap=eth1", true),
        ("macvtap=eth1,mode=vepa", true),
        ("macvtap=eth1,mode=passthru", false),
        ("bridge=br0", false),
    ] {
        assert_eq!(parse(text).address_is_fixed(), fixed, "{text}");
    }
}

#[test]
fn impairments_are_refused_where_they_do_nothing() {
    assert_eq!(
        refusal("tap=t0,vhost=on,loss=1%"),
        "loss= and vhost=on contradict each other, the kernel's vhost-net moves frames as they come: leave one of them out"
    );
    for text in ["tap=t0,vhost=on,rate=1M/1M", "bridge=b,vhost=on,rate=1M/1M,delay=1ms", "nat,vhost=on,loss=1%"] {
        assert!(refusal(text).contains("= and vhost=on contradict each other"), "{text}");
    }
    let held = "bridge=b,vhost=on,rate=1000000/2000000,burst=65536";
    assert_eq!(parse(held).to_string(), held);
    assert_eq!(
        refusal("tap=t0,burst=1M"),
        "burst= does nothing by itself: give rate=100M/100M with it, or leave it out"
    );
    assert_eq!(
        refusal("tap=t0,snaplen=64"),
        "snaplen= does nothing by itself: give capture=FILE with it, or leave it out"
    );
    assert_eq!(
        refusal("tap=t0,delay=1ms,seed=1"),
        "seed= does nothing by itself: give loss=1% or jitter=5ms with it, or leave it out"
    );
}

#[test]
fn the_mode_has_to_be_there_once() {
    assert_eq!(
        refusal(""),
        "The network of a card is missing: give bridge=NAME, nat, host, macvtap=IFACE, ovs=BRIDGE, tap=NAME or fd=N"
    );
    assert_eq!(
        refusal("br0"),
        "\"br0\" does not say what the card is connected to: start with bridge=NAME, nat, host, macvtap=IFACE, ovs=BRIDGE, tap=NAME or fd=N"
    );
    assert_eq!(
        refusal("mtu=1500"),
        "\"mtu\" does not say what the card is connected to: start with bridge=NAME, nat, host, macvtap=IFACE, ovs=BRIDGE, tap=NAME or fd=N"
    );
    assert_eq!(
        refusal("bridge=br0,tap=tap0"),
        "bridge= and tap= contradict each other, a card has one network: give a --net flag for each"
    );
}

#[test]
fn keys_are_known_given_once_and_have_a_value() {
    assert_eq!(refusal("bridge=br0,quues=2"), "bridge= takes no key \"quues\": did you mean queues=?");
    assert_eq!(
        refusal("bridge=br0,colour=on"),
        "bridge= takes no key \"colour\": it takes create, uplink, move-addresses, stp, forward-delay, vlan, trunk, native, addresses, antispoof, isolate, mac, mtu, queues, ring, offload, vhost, rate, burst, delay, jitter, loss, seed, capture, snaplen, capture-size, mirror"
    );
    assert_eq!(
        refusal("tap=t0,colour=on"),
        "tap= takes no key \"colour\": it takes mac, mtu, queues, ring, offload, vhost, rate, burst, delay, jitter, loss, seed, capture, snaplen, capture-size, mirror"
    );
    assert_eq!(refusal("bridge=br0,bridge=br1"), "bridge= is given twice: keep one of them");
    assert_eq!(refusal("bridge=br0,mtu=1500,mtu=1500"), "mtu= is given twice: keep one of them");
    assert_eq!(refusal("bridge=br0,create"), "create has no value: write create=VALUE");
    assert_eq!(refusal("bridge=br0,mtu="), "mtu has no value: write mtu=VALUE");
    assert_eq!(refusal("bridge="), "bridge has no value: write bridge=VALUE");
    assert_eq!(
        refusal("bridge=br0,"),
        "There is nothing between two commas or after the last one: write key=value there, or leave the comma out"
    );
}

#[test]
fn a_network_of_ours_needs_no_name() {
    for (text, name, bridge) in [
        ("nat", "default", "mvn-default"),
        ("nat=a", "a", "mvn-a"),
        ("host", "default", "mvh-default"),
        ("host=a", "a", "mvh-a"),
    ] {
        let spec = parse(text);
        let private = spec.private().unwrap();
        assert_eq!((private.name.as_str(), private.bridge().as_str()), (name, bridge));
        assert_eq!(spec.to_string(), text);
    }
    assert_eq!(parse("nat=default"), parse("nat"));
    assert_eq!(refusal("bridge"), "bridge has no value: write bridge=VALUE");
    assert_eq!(refusal("mtu=1500,nat"), "nat has no value: write nat=VALUE");
    assert!(refusal("host,forward=tcp:1:1").starts_with("host= takes no key \"forward\": it takes subnet, ipv6, "));
}

#[test]
fn values_are_in_range() {
    for (text, message) in [
        ("bridge=br0,create=maybe", "\"maybe\" is not possible: give on or off"),
        ("bridge=br0,mtu=67", "mtu=67 is not possible: give whole bytes from 68 to 65535"),
        ("bridge=br0,mtu=65536", "mtu=65536 is not possible: give whole bytes from 68 to 65535"),
        ("bridge=br0,mtu=1.5k", "mtu=1.5k is not possible: give whole bytes from 68 to 65535"),
        ("bridge=br0,queues=0", "queues=0 is not possible: give a whole number from 1 to 64"),
        ("bridge=br0,queues=65", "queues=65 is not possible: give a whole number from 1 to 64"),
        ("bridge=br0,queues=-1", "queues=-1 is not possible: give a whole number from 1 to 64"),
        ("bridge=br0,ring=32", "ring=32 is not possible: give a power of two from 64 to 4096"),
        ("bridge=br0,ring=1000", "ring=1000 is not possible: give a power of two from 64 to 4096"),
        ("bridge=br0,ring=8192", "ring=8192 is not possible: give a power of two from 64 to 4096"),
        ("bridge=br0,offload=tcp", "offload=tcp is not possible: give on, off, or some of csum:tso:ecn:ufo:uso"),
        ("bridge=br0,offload=csum:", "offload=csum: is not possible: give on, off, or some of csum:tso:ecn:ufo:uso"),
        ("fd=x", "fd=x is not possible: give the numbers of inherited descriptors, such as fd=3 or fd=3:4"),
        ("fd=3:", "fd= is not possible: give the numbers of inherited descriptors, such as fd=3 or fd=3:4"),
        ("fd=0", "fd=0 is a standard stream and cannot be a tap: give a descriptor from 3 up"),
        ("fd=3:3", "fd=3 is given twice: every queue pair takes a descriptor of its own"),
        (
            "fd=3:4,queues=3",
            "queues=3 contradicts fd=3:4, which has one queue pair for each descriptor: leave queues= out",
        ),
    ] {
        assert_eq!(refusal(text), message);
    }
    let many: Vec<String> = (3..68).map(|fd| fd.to_string()).collect();
    assert_eq!(
        refusal(&format!("fd={}", many.join(":"))),
        "fd= lists 65 descriptors, and a card has at most 64 queue pairs: give fewer"
    );
}

#[test]
fn an_offload_is_listed_with_what_it_needs() {
    assert_eq!(refusal("bridge=br0,offload=tso"), "offload= with tso needs csum as well: write csum:tso");
    assert_eq!(refusal("bridge=br0,offload=csum:ecn"), "offload= with ecn needs tso as well: write tso:ecn");
    let listed = |text: &str| parse(text).card().offload.iter().collect::<Vec<_>>();
    assert_eq!(listed("bridge=br0"), Offload::ALL);
    assert_eq!(listed("bridge=br0,offload=on"), Offload::ALL);
    assert_eq!(listed("bridge=br0,offload=off"), []);
    assert_eq!(listed("bridge=br0,offload=uso:csum"), [Offload::Csum, Offload::Uso]);
}

#[test]
fn default_queues_are_one_for_each_vcpu_up_to_eight() {
    let defaults = [0, 1, 3, 8, 9, u32::MAX].map(|vcpus| Queues::for_vcpus(vcpus).get());
    assert_eq!(defaults, [1, 1, 3, 8, 8, 8]);
}

#[test]
fn addresses_are_a_cards() {
    for (text, message) in [
        ("bridge=br0,mac=52:54:00", "\"52:54:00\" is not a MAC address: it takes 6 octets, such as 52:54:00:12:34:56"),
        (
            "bridge=br0,mac=01:00:5e:00:00:01",
            "01:00:5e:00:00:01 is a multicast MAC address and cannot belong to a card: make the first octet even",
        ),
        (
            "bridge=br0,mac=00:00:00:00:00:00",
            "00:00:00:00:00:00 cannot be the MAC address of a card: give another or leave mac= out",
        ),
    ] {
        assert_eq!(refusal(text), message);
    }
}

#[test]
fn names_are_an_interfaces() {
    assert_eq!(
        refusal("bridge=abcdefghijklmnop"),
        "\"abcdefghijklmnop\" cannot be the name of an interface: Linux takes at most 15 bytes"
    );
    assert_eq!(
        refusal("tap=a/b"),
        "\"a/b\" cannot be the name of an interface: /, :, %, commas, blanks and control characters cannot be part of one"
    );
    assert_eq!(refusal("tap=.."), "\"..\" cannot be the name of an interface: Linux reserves it");
    assert_eq!(
        refusal("tap=tap%d"),
        "\"tap%d\" cannot be the name of an interface: /, :, %, commas, blanks and control characters cannot be part of one"
    );
}

#[test]
fn no_text_panics() {
    let pieces = ["bridge", "tap", "fd", "=", ",", ":", "mtu", "\u{fffd}", "\0", "3", "on", "-", "mac"];
    for a in pieces {
        for b in pieces {
            for c in pieces {
                for d in pieces {
                    let _ = format!("{a}{b}{c}{d}").parse::<NetSpec>();
                }
            }
        }
    }
}

#[test]
fn vlans_that_contradict_each_other_are_refused() {
    for (text, message) in [
        (
            "bridge=b,vlan=7,trunk=8+9",
            "vlan= and trunk= contradict each other: write trunk=8+9,native=7 for both, or leave one of them out",
        ),
        ("bridge=b,native=7", "native= does nothing by itself: give trunk= with it, or leave it out"),
        ("bridge=b,vlan=7,native=8", "native= does nothing by itself: give trunk= with it, or leave it out"),
        ("bridge=b,vlan=0", "VLAN \"0\" is not possible: give a whole number from 1 to 4094"),
    ] {
        assert_eq!(refusal(text), message);
    }
    assert!(refusal("nat,vlan=7").contains("nat= takes no key \"vlan\""));
}

#[test]
fn spanning_trees_are_for_bridges_that_are_made() {
    for (text, message) in [
        ("bridge=b,stp=on", "stp= does nothing by itself: give create=on with it, or leave it out"),
        (
            "bridge=b,create=on,forward-delay=4",
            "forward-delay= does nothing by itself: give stp=on with it, or leave it out",
        ),
        (
            "bridge=b,create=on,stp=on,forward-delay=1",
            "forward-delay=1 is not possible: give whole seconds from 2 to 30",
        ),
        (
            "bridge=b,create=on,stp=on,forward-delay=31",
            "forward-delay=31 is not possible: give whole seconds from 2 to 30",
        ),
    ] {
        assert_eq!(refusal(text), message);
    }
}
