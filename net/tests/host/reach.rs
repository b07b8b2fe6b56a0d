//! `reach=` and `metadata=`: the destinations that a guest reaches, and those that the host refuses.

use net::MacAddr;

use crate::Case;
use crate::guest::{Namespace, ask_tcp, ask_udp, configure, echo, is_silent};
use crate::lan::{link, sh, until};
use crate::nat::{address, gateway, world};
use crate::vmm::Vmm;

pub(crate) const CASES: &[Case] = &[
    ("reach_of_a_nat_guest_is_the_world_and_private_networks_but_not_the_host", by_default),
    ("reach_of_a_host_guest_is_the_host_unless_it_is_none", host_mode),
    ("reach_can_be_any_of_world_private_and_host", places),
    ("reach_without_the_host_leaves_what_the_host_and_others_begin", begun_elsewhere),
    ("reach_of_metadata_takes_a_key_of_its_own", metadata),
    ("reach_of_ipv6_is_that_of_ipv4", ipv6),
    ("reach_of_a_guest_that_forges_is_the_same", forging),
    ("reach_of_a_guest_does_not_fill_the_hosts_table_of_neighbours", neighbours),
];

/// The metadata addresses of clouds, in the world of these tests.
const METADATA: [&str; 3] = ["169.254.169.254", "100.100.100.200", "168.63.129.16"];

/// The world, with a private network and a cloud's metadata behind it, and a host with a container's bridge and a
/// service on all addresses.
fn surroundings() -> Namespace {
    let world = world();
    for address in [&METADATA[..], &["192.168.7.1", "10.200.0.1"]].concat() {
        world.sh(&format!("ip addr add {address}/32 dev lo"));
        sh(&format!("ip route add {address} via 198.51.100.1"));
    }
    sh("ip link add docker0 type bridge");
    sh("ip addr add 172.17.0.1/16 dev docker0");
    sh("ip link set docker0 up");
    echo(&world, 7);
    echo(&host(), 7);
    world
}

fn host() -> Namespace {
    Namespace::at("/proc/self/ns/net")
}

fn start(spec: &str) -> (Vmm, Namespace, String) {
    let (vmm, guest) = Vmm::start_with_guest("web", spec);
    let address = address("vmtap0");
    configure(&guest, &address, &gateway(&address));
    (vmm, guest, gateway(&address))
}

/// The addresses that answer on port 7.
fn answering(guest: &Namespace, addresses: &[&str]) -> Vec<String> {
    let answers = |address: &&&str| !is_silent(guest, &format!("{address}:7"));
    addresses.iter().filter(answers).map(|address| (*address).to_owned()).collect()
}

fn counted(reason: &str) -> u64 {
    let text = sh(&format!("nft list counter inet minivmm-web {reason}"));
    text.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

fn by_default() {
    let _world = surroundings();
    let (vmm, guest, gateway) = start("nat");
    let all = ["198.51.100.1", "192.168.7.1", "10.200.0.1", "198.51.100.2", "172.17.0.1", &gateway];
    assert_eq!(answering(&guest, &all), ["198.51.100.1", "192.168.7.1", "10.200.0.1"]);
    assert!(ask_udp(&guest, "198.51.100.1:7").is_some());
    assert!(ask_udp(&guest, "198.51.100.2:7").is_none());
    // The gateway and its services are in reach.
    guest.sh(&format!("ping -c 1 -W 5 {gateway}"));
    assert!(!guest.attempt("ping -c 1 -W 1 172.17.0.1").0);
    let (ok, text) = guest.attempt(&format!("nslookup -type=a web.minivmm {gateway}"));
    assert!(ok && text.contains(&address("vmtap0")), "{text}");
    guest.sh("busybox udhcpc -f -q -n -t 5 -T 2 -i eth0 -s /bin/true");
    // Refused, not silently dropped.
    let refused = guest.within(|| std::net::TcpStream::connect("172.17.0.1:7").unwrap_err());
    assert_eq!(refused.kind(), std::io::ErrorKind::HostUnreachable);
    assert!(counted("out-of-reach") > 0);
    vmm.stop();
}

fn host_mode() {
    let _world = surroundings();
    let (vmm, guest, gateway) = start("host");
    guest.sh(&format!("ping -c 1 -W 5 {gateway}"));
    assert_eq!(answering(&guest, &["198.51.100.1", "172.17.0.1", &gateway]), ["172.17.0.1".to_owned(), gateway]);
    vmm.stop();
    let (vmm, guest, gateway) = start("host,reach=none");
    guest.sh(&format!("ping -c 1 -W 5 {gateway}"));
    assert_eq!(answering(&guest, &["198.51.100.1", "172.17.0.1", &gateway]), [""; 0]);
    vmm.stop();
}

fn places() {
    let _world = surroundings();
    let all = ["198.51.100.1", "192.168.7.1", "198.51.100.2", "172.17.0.1"];
    for (reach, answer) in [
        ("world", &all[..1]),
        ("private", &all[1..2]),
        ("host", &all[2..]),
        ("world+private+host", &all[..]),
        ("none", &all[..0]),
    ] {
        let (vmm, guest, _) = start(&format!("nat,reach={reach}"));
        assert_eq!(answering(&guest, &all), answer, "{reach}");
        vmm.stop();
    }
}

fn begun_elsewhere() {
    let world = surroundings();
    let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
    let (vmm, guest) = Vmm::start_with_guest("web", "nat,reach=none,forward=tcp:8080:80");
    let own = address("vmtap0");
    configure(&guest, &own, &gateway(&own));
    let (second, db) = Vmm::start_with_guest("db", "nat,reach=world");
    let (third, other) = Vmm::start_with_guest("other", "nat=other,reach=world");
    for (guest, tap) in [(&db, "vmtap1"), (&other, "vmtap2")] {
        configure(guest, &address(tap), &gateway(&address(tap)));
    }
    echo(&guest, 80);
    // Through the forwarded port: from the world, the host, a sibling, the guest itself, and a VM of another network;
    // and from the host directly.
    for from in [&world, &host(), &db, &guest, &other] {
        assert!(ask_tcp(from, "198.51.100.2:8080").is_some(), "{}", from.path());
    }
    assert!(ask_tcp(&host(), "127.0.0.1:8080").is_some());
    assert!(ask_tcp(&host(), &format!("{own}:80")).is_some());
    host().sh(&format!("ping -c 1 -W 5 {own}"));
    guest.sh(&format!("ping -c 1 -W 5 {}", address("vmtap1")));
    for vmm in [vmm, second, third] {
        vmm.stop();
    }
    // A port of the host that is forwarded to a container is one of the host.
    let container = Namespace::behind("c0", "172.17.0.2/16", "192.0.2.9/32");
    sh("ip addr flush dev c0");
    sh("ip link set c0 master docker0");
    container.sh("ip route add default via 172.17.0.1");
    echo(&container, 80);
    until(|| ask_tcp(&host(), "172.17.0.2:80").is_some());
    sh("sysctl -q net.ipv4.ip_forward=1");
    for line in [
        "nft add table ip published",
        "nft add chain ip published pre { type nat hook prerouting priority -100 ; }",
        "nft add rule ip published pre fib daddr type local tcp dport 8088 dnat to 172.17.0.2:80",
    ] {
        sh(line);
    }
    assert!(ask_tcp(&world, "198.51.100.2:8088").is_some());
    let (vmm, guest, _) = start("nat");
    assert!(is_silent(&guest, "198.51.100.2:8088"));
    vmm.stop();
    let (vmm, guest, _) = start("nat,reach=host");
    assert!(ask_tcp(&guest, "198.51.100.2:8088").is_some());
    vmm.stop();
}

fn metadata() {
    let _world = surroundings();
    let (vmm, guest, _) = start("nat,reach=world+private+host");
    assert_eq!(answering(&guest, &METADATA), [""; 0]);
    assert!(counted("metadata") >= 3);
    vmm.stop();
    let (vmm, guest, _) = start("nat,metadata=on");
    assert_eq!(answering(&guest, &METADATA), METADATA);
    vmm.stop();
    // A service of the host on such an address, and one that the host redirects elsewhere.
    sh("ip addr add 169.254.169.254/32 dev lo");
    sh("nft add table ip mds");
    sh("nft add chain ip mds pre { type nat hook prerouting priority -100 ; }");
    sh("nft add rule ip mds pre ip daddr 169.254.170.2 tcp dport 7 dnat to 198.51.100.1");
    let (vmm, guest, _) = start("nat,reach=world+private+host");
    for address in ["169.254.169.254", "169.254.170.2"] {
        assert!(is_silent(&guest, &format!("{address}:7")), "{address}");
    }
    vmm.stop();
}

fn ipv6() {
    let world = world();
    sh("sysctl -q net.ipv6.conf.up0.disable_ipv6=0");
    sh("ip -6 addr add 2001:db8:1::2/64 dev up0 nodad");
    sh("ip -6 route add default via 2001:db8:1::1 dev up0");
    world.sh("ip -6 addr add 2001:db8:1::1/64 dev eth0 nodad");
    for address in ["fd99::1", "fd00:ec2::254"] {
        world.sh(&format!("ip -6 addr add {address}/128 dev lo nodad"));
    }
    until(|| !sh("ip -6 addr show dev up0").contains("tentative"));
    [&world, &host()].into_iter().for_each(|namespace| echo(namespace, 7));
    let all = ["[2001:db8:1::1]", "[fd99::1]", "[2001:db8:1::2]", "[fd00:ec2::254]"];
    for (keys, answer) in [
        ("", &all[..2]),
        (",reach=world", &all[..1]),
        (",reach=private", &all[1..2]),
        (",reach=host", &all[2..3]),
        (",reach=world+host+private,metadata=on", &all[..]),
        (",reach=none", &all[..0]),
    ] {
        let (vmm, guest) = Vmm::start_with_guest("web", &format!("nat,ipv6=on{keys}"));
        until(|| guest.sh("ip -6 addr show dev eth0 scope global -tentative").contains("inet6 fd"));
        guest.sh("ping -6 -c 1 -W 5 fe80::1%eth0");
        // With `reach=none` no router is advertised.
        if answer.is_empty() {
            guest.sh("ip -6 route add default via fe80::1 dev eth0");
        }
        until(|| guest.sh("ip -6 route").contains("default via fe80::1 "));
        // Each start switches forwarding. Then the host looks for its neighbour anew, which may take longer than an
        // answer may.
        sh("ping -6 -q -c 1 -W 10 2001:db8:1::1");
        assert_eq!(answering(&guest, &all), answer, "{keys}");
        vmm.stop();
    }
}

fn forging() {
    let _world = surroundings();
    let all = ["198.51.100.1", "192.168.7.1", "198.51.100.2", "172.17.0.1", METADATA[0]];
    for (keys, answer) in [("reach=world", &all[..1]), ("reach=world+host", &[all[0], all[2], all[3]][..])] {
        let (mut vmm, guest) = Vmm::start_with_guest("web", &format!("nat,{keys},antispoof=off,connections=20"));
        let (mut second, _db) = Vmm::start_with_guest("db", "nat,reach=world+private+host,metadata=on");
        let (own, other) = (address("vmtap0"), address("vmtap1"));
        // With its own addresses, and with another VM's.
        configure(&guest, &own, &gateway(&own));
        assert_eq!(answering(&guest, &all), answer, "{keys}");
        guest.sh("ip addr flush dev eth0");
        guest.sh(&format!("ip link set eth0 address {}", MacAddr::for_vm("db", 0)));
        configure(&guest, &other, &gateway(&other));
        assert!(all.iter().filter(|to| !answer.contains(to)).all(|to| is_silent(&guest, &format!("{to}:7"))), "{keys}");
        // Their logs report the conflict, so they are killed.
        for vmm in [&mut vmm, &mut second] {
            vmm.kill();
            vmm.end();
        }
    }
    // Connections count for the tap, whatever their source address.
    let (vmm, guest, gateway) = start("nat,antispoof=off,connections=20");
    for host in 100..150 {
        guest.sh(&format!("ip link set eth0 address 02:00:00:00:01:{host:02x}"));
        guest.sh(&format!("ip route replace default via {gateway}"));
        let socket = guest.within(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
        let _ = socket.send_to(b"x", "198.51.100.1:9");
    }
    until(|| counted("too-many-connections") > 0);
    vmm.stop();
}

fn neighbours() {
    let _world = world();
    let (vmm, guest, gateway) = start("nat");
    let mac = link("mvn-default")["address"].as_str().unwrap().to_owned();
    // Unused addresses of the network, through the gateway.
    guest.sh("ip route flush table main");
    guest.sh(&format!("ip route add {gateway} dev eth0"));
    guest.sh(&format!("ip route add default via {gateway}"));
    guest.sh(&format!("ip neigh replace {gateway} lladdr {mac} dev eth0 nud permanent"));
    let subnet = gateway.rsplit_once('.').unwrap().0;
    let socket = guest.within(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
    for host in 2..250 {
        let _ = socket.send_to(b"x", format!("{subnet}.{host}:9"));
    }
    until(|| counted("routed-back") >= 240);
    let known = sh("ip neigh show dev mvn-default");
    assert!(known.lines().count() < 5, "{known}");
    vmm.stop();
}
