//! `antispoof=`, `addresses=` and `isolate=`: guests that spoof on a bridge, and guests that are isolated.

use net::MacAddr;
use serde_json::Value;

use crate::Case;
use crate::guest::{Namespace, ask_tcp, ask_udp, configure, echo, is_silent, send_frame};
use crate::lan::{exists, link, sh, snapshot, until};
use crate::machine::{give6, machine_on_bridge};
use crate::vmm::Vmm;

pub(crate) const CASES: &[Case] = &[
    ("guarded_bridge_guest_is_only_what_its_list_says", listed),
    ("guarded_bridge_guest_without_a_list_has_any_address_on_its_own_mac", unlisted),
    ("guarded_port_learns_nothing_and_is_not_flooded", port_flags),
    ("isolated_bridge_guests_are_not_routed_to_each_other_by_the_host", not_routed),
    ("isolated_bridge_guests_reach_the_uplink_and_no_other_vm", isolated_on_bridge),
    ("isolated_nat_guest_reaches_the_world_and_no_sibling", isolated_on_nat),
    ("nat_without_antispoof_lets_any_mac_pass", nat_unguarded),
];

/// Cases for kernels whose bridges have VLANs.
pub(crate) const VLAN_CASES: &[Case] = &[("guarded_trunk_guest_is_only_what_its_list_says_in_every_vlan", on_trunk)];

const REASONS: [&str; 7] =
    ["spoofed-mac", "spoofed-arp", "spoofed-ip", "spoofed-nd", "rogue-dhcp", "rogue-router", "other-protocol"];

/// Packets counted for a drop reason in a table of a VM.
fn counted(family: &str, vm: &str, reason: &str) -> u64 {
    let text = sh(&format!("nft list counter {family} minivmm-{vm} {reason}"));
    text.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

/// All packets that a VM's guard has dropped, by reason.
fn all_counted(vm: &str) -> [u64; 7] {
    REASONS.map(|reason| counted("netdev", vm, reason))
}

/// Forged frames of the machine with the address `own`, and the reason why each is dropped where `192.0.2.5` and
/// `2001:db8::5` are listed. The first ones are dropped without a list, too.
fn forgeries(own: [u8; 6]) -> Vec<(&'static str, Vec<u8>)> {
    let ether = |source: [u8; 6], kind: [u8; 2], body: &[u8]| {
        let mut frame = [&[0xff; 6][..], &source, &kind, body].concat();
        frame.resize(frame.len().max(60), 0);
        frame
    };
    let arp = |mac: [u8; 6], ip: [u8; 4]| {
        ether(own, [8, 6], &[&[0, 1, 8, 0, 6, 4, 0, 2][..], &mac, &ip, &[0xff; 6], &[192, 0, 2, 1]].concat())
    };
    let ip4 = |source: [u8; 4], protocol: u8, body: &[u8]| {
        let length = u8::try_from(20 + body.len()).unwrap();
        [&[0x45, 0, 0, length, 0, 0, 0, 0, 64, protocol, 0, 0][..], &source, &[192, 0, 2, 1], body].concat()
    };
    let ip6 = |source: &str, next: u8, body: &[u8]| {
        let source = source.parse::<std::net::Ipv6Addr>().unwrap().octets();
        let length = u8::try_from(body.len()).unwrap();
        [&[0x60, 0, 0, 0, 0, length, next, 255][..], &source, &[0xff, 2], &[0; 13], &[1], body].concat()
    };
    let claim = |kind: u8, target: &str| {
        let target = target.parse::<std::net::Ipv6Addr>().unwrap().octets();
        [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target].concat()
    };
    let (v4, v6) = ([8, 0], [0x86, 0xdd]);
    // Its own link-local address, so that the source is not the reason.
    let [a, b, c, d, e, f] = own.map(u16::from);
    let link = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f);
    let link = &link.to_string();
    let mine = [192, 0, 2, 5];
    let options = [&[58, 0, 1, 4, 0, 0, 0, 0, 134][..], &[0; 15]].concat();
    vec![
        ("spoofed-mac", ether([2, 0, 0, 0, 0, 9], v4, &ip4(mine, 6, &[0; 20]))),
        ("spoofed-arp", arp([2, 0, 0, 0, 0, 9], mine)),
        ("rogue-dhcp", ether(own, v4, &ip4(mine, 17, &[0, 67, 0, 68, 0, 8, 0, 0]))),
        ("rogue-dhcp", ether(own, v6, &ip6(link, 17, &[2, 35, 2, 34, 0, 8, 0, 0]))),
        ("rogue-router", ether(own, v6, &ip6(link, 58, &[&[134][..], &[0; 15]].concat()))),
        // The same behind a hop-by-hop options header.
        ("rogue-router", ether(own, v6, &ip6(link, 0, &options))),
        ("rogue-router", ether(own, v6, &ip6(link, 58, &claim(137, "fe80::1")))),
        ("other-protocol", ether(own, [0x81, 0], &[0, 5, 8, 0])),
        ("other-protocol", ether(own, [0x88, 0xcc], &[0; 46])),
        ("spoofed-arp", arp(own, [192, 0, 2, 1])),
        ("spoofed-ip", ether(own, v4, &ip4([192, 0, 2, 1], 6, &[0; 20]))),
        ("spoofed-ip", ether(own, v4, &ip4([0, 0, 0, 0], 17, &[0, 68, 0, 53, 0, 8, 0, 0]))),
        ("spoofed-ip", ether(own, v6, &ip6("2001:db8::1", 58, &[&[128][..], &[0; 7]].concat()))),
        ("spoofed-nd", ether(own, v6, &ip6(link, 58, &claim(136, "2001:db8::1")))),
        ("spoofed-nd", ether(own, v6, &ip6("::", 58, &claim(135, "2001:db8::1")))),
    ]
}

/// A frame with the tag of a VLAN.
fn tagged(frame: &[u8], vlan: u8) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    [addresses, &[0x81, 0, 0, vlan], rest].concat()
}

/// The number of forgeries that need no list.
const WITHOUT_LIST: usize = 9;

fn listed() {
    let machine = machine_on_bridge();
    let before = snapshot();
    let (vmm, guest) = Vmm::start_bridged("web", "bridge=br0,antispoof=on,addresses=192.0.2.5+2001:db8::5");
    assert_eq!(link("vmtap0")["ifalias"], "minivmm vm=web card=0 mode=bridge net=br0 ip4=192.0.2.5 ip6=2001:db8::5");
    guest.sh("ip addr add 192.0.2.5/24 dev eth0");
    give6(&guest, "2001:db8::5");
    echo(&machine, 7);
    assert_eq!(ask_tcp(&guest, "192.0.2.1:7"), Some("192.0.2.5".parse().unwrap()));
    assert_eq!(ask_udp(&guest, "192.0.2.1:7"), Some("192.0.2.5".parse().unwrap()));
    guest.sh("ping -6 -c 1 -W 5 2001:db8::1");
    machine.sh("ping -c 1 -W 5 192.0.2.5");
    // A client that requests an address.
    guest.attempt("busybox udhcpc -f -q -n -t 1 -T 1 -i eth0 -s /bin/true");
    assert_eq!(all_counted("web"), [0; 7]);

    for (reason, frame) in forgeries(MacAddr::for_vm("web", 0).octets()) {
        let so_far = counted("netdev", "web", reason);
        send_frame(&guest, &frame);
        until(|| counted("netdev", "web", reason) > so_far);
    }
    assert_eq!(all_counted("web"), [1, 2, 3, 2, 2, 3, 2]);
    let dropped = net::inventory::dropped("web").unwrap();
    assert_eq!(REASONS.map(|reason| dropped[reason]), all_counted("web"));
    guest.sh("ping -c 1 -W 5 192.0.2.1");
    vmm.stop();
    assert_eq!(snapshot(), before);
    assert_eq!(sh("nft list ruleset"), "");
}

fn on_trunk() {
    let spec = "bridge=lan,create=on,trunk=100+101,antispoof=on,addresses=192.0.2.5+2001:db8::5";
    let (vmm, guest) = Vmm::start_bridged("web", spec);
    let (other, peer) = Vmm::start_bridged("db", "bridge=lan,trunk=100+101");
    for (namespace, host) in [(&guest, 5), (&peer, 1)] {
        for line in [
            "ip link add link eth0 name tagged type vlan id 101",
            "sysctl -q net.ipv6.conf.tagged.disable_ipv6=0",
            &format!("ip addr add 192.0.2.{host}/24 dev tagged"),
            &format!("ip addr add 2001:db8::{host}/64 dev tagged nodad"),
            "ip link set tagged up",
        ] {
            namespace.sh(line);
        }
        echo(namespace, 7);
    }
    assert_eq!(ask_tcp(&guest, "192.0.2.1:7"), Some("192.0.2.5".parse().unwrap()));
    assert_eq!(ask_udp(&guest, "192.0.2.1:7"), Some("192.0.2.5".parse().unwrap()));
    assert_eq!(ask_tcp(&peer, "192.0.2.5:7"), Some("192.0.2.1".parse().unwrap()));
    guest.sh("ping -6 -c 1 -W 5 2001:db8::1");
    peer.sh("ping -6 -c 1 -W 5 2001:db8::5");
    assert_eq!(all_counted("web"), [0; 7]);

    for (idx, (reason, frame)) in forgeries(MacAddr::for_vm("web", 0).octets()).into_iter().enumerate() {
        let so_far = counted("netdev", "web", reason);
        // In either VLAN, and untagged.
        let frame = [tagged(&frame, 100), tagged(&frame, 101), frame][idx % 3].clone();
        send_frame(&guest, &frame);
        until(|| counted("netdev", "web", reason) > so_far);
    }
    assert_eq!(all_counted("web"), [1, 2, 3, 2, 2, 3, 2]);
    guest.sh("ping -c 1 -W 5 192.0.2.1");
    vmm.stop();
    other.stop();
    assert_eq!(sh("nft list ruleset"), "");
}

fn unlisted() {
    let machine = machine_on_bridge();
    let (vmm, guest) = Vmm::start_bridged("web", "bridge=br0,antispoof=on");
    echo(&machine, 7);
    for address in ["192.0.2.5", "192.0.2.6"] {
        guest.sh(&format!("ip addr replace {address}/24 dev eth0"));
        assert!(ask_tcp(&guest, "192.0.2.1:7").is_some(), "{address}");
    }
    for address in ["2001:db8::5", "2001:db8::6"] {
        give6(&guest, address);
        guest.sh("ping -6 -c 1 -W 5 2001:db8::1");
    }
    assert_eq!(all_counted("web"), [0; 7]);
    for (reason, frame) in forgeries(MacAddr::for_vm("web", 0).octets()).into_iter().take(WITHOUT_LIST) {
        let so_far = counted("netdev", "web", reason);
        send_frame(&guest, &frame);
        until(|| counted("netdev", "web", reason) > so_far);
    }
    assert_eq!(all_counted("web"), [1, 1, 0, 0, 2, 3, 2]);
    vmm.stop();
}

/// A setting of a bridge port.
fn port(tap: &str, setting: &str) -> bool {
    link(tap)["linkinfo"]["info_slave_data"][setting].as_bool().unwrap()
}

fn port_flags() {
    let machine = machine_on_bridge();
    let (vmm, _guest) = Vmm::start_bridged("web", "bridge=br0,antispoof=on,isolate=on");
    let flags = || ["learning", "flood", "isolated"].map(|setting| port("vmtap0", setting));
    assert_eq!(flags(), [false, false, true]);
    let mac = MacAddr::for_vm("web", 0).to_string();
    let entry = || {
        sh("bridge fdb show br br0 brport vmtap0").lines().any(|line| line.contains(&mac) && line.contains("static"))
    };
    assert!(entry(), "{}", sh("bridge fdb show br br0"));
    // Frames to unknown addresses do not reach the guest.
    let sent = || link_stats("vmtap0");
    let before = sent();
    let burst = |to: [u8; 6]| {
        for _ in 0..50 {
            // An experimental protocol (IEEE 802), which no firewall on the bridge looks into.
            send_frame(&machine, &[&to[..], &[2, 0, 0, 0, 0, 0x78], &[0x88, 0xb5], &[0; 46]].concat());
        }
    };
    burst([2, 0, 0, 0, 0, 0x77]);
    // The machine's kernel may send broadcasts meanwhile.
    assert!(sent() < before + 50);
    burst([0xff; 6]);
    until(|| sent() >= before + 50);
    // The keeper puts it back with all of that.
    sh("ip link set vmtap0 nomaster");
    until(|| link("vmtap0")["master"] == "br0" && flags() == [false, false, true] && entry());
    let mut vmm = vmm;
    assert_eq!(vmm.order("stop"), "stopped");
    let (vmm, _guest) = Vmm::start_bridged("web", "bridge=br0");
    assert_eq!(flags(), [true, true, false]);
    // Only frames of switches' protocols are dropped.
    assert_eq!(sh("nft list ruleset").matches(" drop").count(), 1);
    vmm.stop();
}

/// Frames that a tap has sent to its guest.
fn link_stats(tap: &str) -> u64 {
    let links: Value = serde_json::from_str(&sh(&format!("ip -j -s link show dev {tap}"))).expect("JSON");
    links[0]["stats64"]["tx"]["packets"].as_u64().expect("a number")
}

fn isolated_on_bridge() {
    let machine = machine_on_bridge();
    echo(&machine, 7);
    let vms = [
        ("alone", "bridge=br0,isolate=on", "192.0.2.5"),
        ("hermit", "bridge=br0,isolate=on", "192.0.2.6"),
        ("open", "bridge=br0", "192.0.2.7"),
    ];
    let [(first, alone), (second, hermit), (third, open)] = vms.map(|(name, spec, address)| {
        let (vmm, guest) = Vmm::start_bridged(name, spec);
        guest.sh(&format!("ip addr add {address}/24 dev eth0"));
        echo(&guest, 9);
        (vmm, guest)
    });
    for guest in [&alone, &hermit, &open] {
        assert!(ask_tcp(guest, "192.0.2.1:7").is_some());
    }
    for address in ["192.0.2.5", "192.0.2.6", "192.0.2.7"] {
        assert!(ask_tcp(&machine, &format!("{address}:9")).is_some());
    }
    for (guest, address) in [(&alone, "192.0.2.6"), (&hermit, "192.0.2.5"), (&alone, "192.0.2.7"), (&open, "192.0.2.5")]
    {
        assert!(is_silent(guest, &format!("{address}:9")), "{address}");
    }
    assert!(counted("bridge", "alone", "isolated") > 0);
    for vmm in [first, second, third] {
        vmm.stop();
    }
}

/// The lease in a tap's alias.
fn lease(tap: &str) -> String {
    let alias = link(tap)["ifalias"].as_str().unwrap().to_owned();
    alias.split("ip4=").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}

fn not_routed() {
    sh("ip link add br0 type bridge mcast_snooping 0");
    sh("ip addr add 192.0.2.1/24 dev br0");
    sh("ip link set br0 up");
    sh("sysctl -q net.ipv4.ip_forward=1");
    echo(&Namespace::at("/proc/self/ns/net"), 7);
    for keys in ["antispoof=on", "antispoof=off"] {
        let spec = format!("bridge=br0,isolate=on,{keys}");
        let (first, web) = Vmm::start_bridged("web", &spec);
        let (second, db) = Vmm::start_bridged("db", &spec);
        for (guest, own, other) in [(&web, 5, 6), (&db, 6, 5)] {
            guest.sh(&format!("ip addr add 192.0.2.{own}/24 dev eth0"));
            guest.sh(&format!("ip route add 192.0.2.{other}/32 via 192.0.2.1"));
            echo(guest, 9);
        }
        assert!(ask_tcp(&web, "192.0.2.1:7").is_some());
        assert!(ask_tcp(&db, "192.0.2.1:7").is_some());
        assert!(is_silent(&web, "192.0.2.6:9"), "{keys}");
        assert!(ask_udp(&db, "192.0.2.5:9").is_none(), "{keys}");
        assert!(counted("netdev", "web", "isolated") > 0);
        first.stop();
        second.stop();
    }
}

fn isolated_on_nat() {
    sh("ip link set lo up");
    let world = Namespace::behind("up0", "198.51.100.1/24", "198.51.100.2/24");
    sh("ip route add default via 198.51.100.1");
    let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
    echo(&world, 7);
    let (first, web) = Vmm::start_with_guest("web", "nat,isolate=on,forward=tcp:8080:80");
    let (second, db) = Vmm::start_with_guest("db", "nat,forward=tcp:8081:80");
    let leases = ["vmtap0", "vmtap1"].map(lease);
    for (guest, lease) in [&web, &db].into_iter().zip(&leases) {
        configure(guest, lease, &format!("{}.1", lease.rsplit_once('.').unwrap().0));
        echo(guest, 80);
        assert!(ask_tcp(guest, "198.51.100.1:7").is_some());
    }
    assert!(ask_tcp(&world, "198.51.100.2:8080").is_some());
    // Neither through the bridge, nor through the host's ports, nor routed.
    assert!(is_silent(&db, &format!("{}:80", leases[0])));
    assert!(is_silent(&web, &format!("{}:80", leases[1])));
    assert!(counted("bridge", "web", "isolated") > 0);
    assert!(is_silent(&db, "198.51.100.2:8080"));
    assert!(is_silent(&web, "198.51.100.2:8081"));
    assert!(counted("inet", "web", "isolated") > 0);
    let gateway = format!("{}.1", leases[0].rsplit_once('.').unwrap().0);
    db.sh(&format!("ip route add {}/32 via {gateway}", leases[0]));
    // The first table that sees the packet drops it.
    let by_route = || counted("inet", "web", "isolated") + counted("inet", "db", "routed-back");
    let before = by_route();
    assert!(is_silent(&db, &format!("{}:80", leases[0])));
    assert!(by_route() > before);
    // The guest can use its own forwarded port.
    assert!(ask_tcp(&web, "198.51.100.2:8080").is_some());
    first.stop();
    second.stop();
    assert_eq!(sh("nft list ruleset"), "");
}

fn nat_unguarded() {
    let (vmm, guest) = Vmm::start_with_guest("web", "nat,antispoof=off");
    let lease = lease("vmtap0");
    let gateway = format!("{}.1", lease.rsplit_once('.').unwrap().0);
    guest.sh("ip link set eth0 address 02:00:00:00:00:09");
    configure(&guest, &lease, &gateway);
    guest.sh(&format!("ping -c 1 -W 5 {gateway}"));
    assert!(port("vmtap0", "learning") && port("vmtap0", "flood"));
    vmm.stop();
    assert!(!exists("mvn-default"));
}
