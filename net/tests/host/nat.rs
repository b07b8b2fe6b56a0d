//! `nat` and `host`: what guests reach, and what remains on the host.

use std::time::{Duration, Instant};

use net::MacAddr;

use crate::Case;
use crate::guest::{Namespace, ask_tcp, ask_udp, configure, echo, is_silent, send_frame};
use crate::lan::{exists, link, names, sh, snapshot, until};
use crate::vmm::Vmm;

pub(crate) const CASES: &[Case] = &[
    ("nat_guest_reaches_the_world_by_the_hosts_address", out),
    ("nat_guest_gets_its_lease_by_dhcp", lease),
    ("nat_leaves_nothing_however_it_ends", endings),
    ("nat_leaves_nothing_when_it_is_killed_during_set_up", killed_early),
    ("nat_mtu_is_that_of_the_way_out", mtu),
    ("nat_forwarding_of_the_host_is_put_back_by_the_last_network", forwarding),
    ("nat_siblings_reach_each_other_also_by_name", siblings),
    ("nat_subnet_avoids_what_the_host_can_reach", subnets),
    ("nat_of_many_vms_at_once_gives_each_an_address", many_at_once),
    ("nat_forward_leads_from_everywhere_to_the_guest", forward),
    ("nat_forward_of_one_address_leads_from_there_alone", forward_address),
    ("nat_forward_of_a_port_that_is_taken_is_refused", forward_taken),
    ("nat_guest_that_forges_is_dropped_and_counted", forged),
    ("nat_ipv6_leads_out_and_is_put_back", ipv6),
    ("nat_forward_leads_over_ipv6_to_the_guest", forward6),
    ("host_guest_reaches_host_and_siblings_and_nobody_else", host_only),
];

/// The world: a namespace behind the host's only uplink. It has no route to networks of ours.
pub(crate) fn world() -> Namespace {
    sh("ip link set lo up");
    let world = Namespace::behind("up0", "198.51.100.1/24", "198.51.100.2/24");
    sh("ip route add default via 198.51.100.1");
    world
}

/// All host state that a network of ours changes.
fn state() -> String {
    let forwarding = sh("sysctl -a --pattern net.ipv[46].conf.*.(forwarding|route_localnet|accept_ra)$");
    [snapshot(), sh("nft list ruleset"), sh("ip route show table all"), sh("ip rule"), forwarding].concat()
}

/// The lease in a tap's alias.
pub(crate) fn address(tap: &str) -> String {
    let alias = link(tap)["ifalias"].as_str().unwrap().to_owned();
    alias.split(' ').find_map(|word| word.strip_prefix("ip4=")).unwrap().to_owned()
}

/// The gateway of a /24 network.
pub(crate) fn gateway(address: &str) -> String {
    format!("{}.1", address.rsplit_once('.').unwrap().0)
}

fn out() {
    let world = world();
    let before = state();
    let (vmm, guest) = Vmm::start_with_guest("web", "nat");
    let address = address("vmtap0");
    configure(&guest, &address, &gateway(&address));
    echo(&world, 7);
    guest.sh(&format!("ping -c 1 -W 5 {}", gateway(&address)));
    let host = Some("198.51.100.2".parse().unwrap());
    assert_eq!(ask_tcp(&guest, "198.51.100.1:7"), host);
    assert_eq!(ask_udp(&guest, "198.51.100.1:7"), host);
    guest.sh("ping -c 1 -W 5 198.51.100.1");
    // The world has a route, and still gets no answer.
    world.sh("ip route add 10.0.0.0/8 via 198.51.100.2");
    echo(&guest, 9);
    assert!(is_silent(&world, &format!("{address}:9")));
    vmm.stop();
    assert_eq!(state(), before);
}

fn lease() {
    let _world = world();
    let (vmm, guest) = Vmm::start_with_guest("web", "nat");
    let text = guest.sh("busybox udhcpc -f -q -n -t 5 -T 2 -i eth0 -s /bin/true");
    let address = address("vmtap0");
    assert!(text.contains(&format!("lease of {address} obtained from {}", gateway(&address))), "{text}");
    vmm.stop();
}

fn endings() {
    let world = world();
    let before = state();
    let mut vmm = Vmm::start("web", &["nat"]);
    vmm.kill();
    assert_eq!(vmm.end(), "");
    assert_eq!(state(), before);

    let mut vmm = Vmm::start("web", &["nat"]);
    let guest = vmm.guest();
    // All but the name of the process that made the tables.
    let rules = || sh("nft -s list ruleset").replace(" # progname keeper", "");
    let before_the_kill = rules();
    vmm.kill_keeper();
    assert_eq!(vmm.line(), "keeper gone");
    // The guest is still guarded, and still has its network.
    let named = rules();
    let after = named.split_inclusive('\n').map(|line| line.split(" # progname").next().unwrap().trim_end());
    assert_eq!(after.collect::<Vec<_>>(), before_the_kill.lines().collect::<Vec<_>>());
    let address = address("vmtap0");
    configure(&guest, &address, &gateway(&address));
    echo(&world, 7);
    assert!(ask_tcp(&guest, "198.51.100.1:7").is_some());
    vmm.kill();
    assert!(exists("mvn-default"));
    assert_eq!(sh("nft list ruleset"), "");
    Vmm::start_with_guest("web", "nat").0.stop();
    assert_eq!(state(), before);
    assert_eq!(names(), ["up0"]);
}

fn is_forwarding(link: &str) -> bool {
    std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{link}/forwarding")).unwrap().trim() == "1"
}

fn killed_early() {
    let _world = world();
    let before = state();
    for kill_after_ms in 0..20 {
        let mut vmm = Vmm::spawn("web", &["nat,ipv6=on,forward=tcp:8080:80", "host"]);
        let start = Instant::now();
        until(|| start.elapsed() >= Duration::from_millis(kill_after_ms));
        vmm.kill();
        vmm.end();
        assert_eq!(state(), before, "killed after {kill_after_ms} ms");
    }
}

fn mtu() {
    let world = world();
    sh("ip link set up0 mtu 1400");
    world.sh("ip link set eth0 mtu 1400");
    let (vmm, guest) = Vmm::start_with_guest("web", "nat");
    assert_eq!([&link("mvn-default")["mtu"], &link("vmtap0")["mtu"]], [1400, 1400]);
    let address = address("vmtap0");
    configure(&guest, &address, &gateway(&address));
    echo(&world, 7);
    assert!(ask_tcp(&guest, "198.51.100.1:7").is_some());
    vmm.stop();
    let (vmm, _guest) = Vmm::start_with_guest("web", "nat,mtu=9000");
    assert_eq!([&link("mvn-default")["mtu"], &link("vmtap0")["mtu"]], [9000, 9000]);
    vmm.stop();
}

fn forwarding() {
    let _world = world();
    let before = state();
    let first = Vmm::start("a", &["nat=a"]);
    assert!(is_forwarding("up0") && is_forwarding("mvn-a") && !is_forwarding("lo"));
    let up0 = link("up0")["ifindex"].to_string();
    assert_eq!(link("mvn-a")["ifalias"], format!("minivmm mode=nat net=a forward={up0}"));
    let second = Vmm::start("b", &["nat=b"]);
    assert_eq!(link("mvn-b")["ifalias"], "minivmm mode=nat net=b");
    stop(first);
    assert!(is_forwarding("up0"));
    assert_eq!(link("mvn-b")["ifalias"], format!("minivmm mode=nat net=b forward={up0}"));
    stop(second);
    assert_eq!(state(), before);

    // Forwarding that an admin turns on meanwhile stays on.
    let vmm = Vmm::start("a", &["nat=a"]);
    sh("sysctl -q net.ipv4.ip_forward=1");
    stop(vmm);
    assert!(is_forwarding("up0"));
}

/// Stops a VMM whose guests are not used.
pub(crate) fn stop(mut vmm: Vmm) {
    vmm.guest();
    assert_eq!(vmm.order("stop"), "stopped");
    assert_eq!(vmm.end(), "");
}

fn siblings() {
    let (first, web) = Vmm::start_with_guest("web", "nat");
    let (second, db) = Vmm::start_with_guest("db", "nat");
    let (third, other) = Vmm::start_with_guest("other", "nat=other");
    let addresses = [address("vmtap0"), address("vmtap1"), address("vmtap2")];
    for (guest, address) in [&web, &db, &other].into_iter().zip(&addresses) {
        configure(guest, address, &gateway(address));
    }
    assert_ne!(addresses[0], addresses[1]);
    web.sh(&format!("ping -c 1 -W 5 {}", addresses[1]));
    let (ok, text) = web.attempt(&format!("nslookup -type=a db.minivmm {}", gateway(&addresses[0])));
    assert!(ok && text.contains(&format!("Address: {}", addresses[1])), "{text}");
    let (ok, text) = web.attempt(&format!("nslookup -type=a other.minivmm {}", gateway(&addresses[0])));
    assert!(!ok && text.contains("NXDOMAIN"), "{text}");
    echo(&db, 9);
    assert!(is_silent(&other, &format!("{}:9", addresses[1])));
    for vmm in [first, second, third] {
        vmm.stop();
    }
}

fn subnets() {
    let _world = world();
    let vmm = Vmm::start("web", &["nat"]);
    let address = address("vmtap0");
    stop(vmm);
    let (subnet, _) = address.rsplit_once('.').unwrap();
    // A route of a policy table, and an address on an interface that is down.
    sh(&format!("ip route add {subnet}.64/28 via 198.51.100.1 table 7"));
    let vmm = Vmm::start("web", &["nat"]);
    let (second, _) = super_subnet("vmtap0");
    assert_ne!(second, subnet);
    stop(vmm);
    sh("ip link add vpn0 type bridge");
    sh(&format!("ip addr add {second}.9/24 dev vpn0"));
    let vmm = Vmm::start("web", &["nat"]);
    let (third, _) = super_subnet("vmtap0");
    assert!(third != second && third != subnet);
    stop(vmm);
    let vmm = Vmm::spawn("web", &[&format!("nat,subnet={second}.0/24")]);
    let line = vmm.line();
    let hint = format!("leave subnet= out, or give subnet={third}.0/24");
    assert_eq!(line, format!("failed subnet={second}.0/24 overlaps the network of vpn0 | {hint} | usage"));
    let vmm = Vmm::start("web", &["nat,subnet=192.168.77.0/28"]);
    assert_eq!(super_subnet("vmtap0").0, "192.168.77");
    let other = Vmm::spawn("db", &["nat,subnet=192.168.78.0/28"]);
    assert!(other.line().starts_with("failed Network default exists with subnet 192.168.77.0/28"));
    stop(vmm);
}

/// The lease of a tap, split in two.
fn super_subnet(tap: &str) -> (String, String) {
    let address = address(tap);
    let (subnet, host) = address.rsplit_once('.').unwrap();
    (subnet.to_owned(), host.to_owned())
}

fn many_at_once() {
    let _world = world();
    let before = state();
    for _ in 0..3 {
        let mut vmms: Vec<Vmm> = (0..64).map(|idx| Vmm::spawn(&format!("vm{idx}"), &["nat"])).collect();
        let leases: std::collections::BTreeSet<String> = vmms.iter().map(|vmm| address(&vmm.taps()[0])).collect();
        println!("64 started at once have {} different leases", leases.len());
        assert_eq!(leases.len(), 64);
        for vmm in vmms.split_off(32) {
            stop(vmm);
        }
        // The others end at once.
        vmms.iter_mut().for_each(Vmm::kill);
        assert!(vmms.iter().all(|vmm| vmm.end().is_empty()));
        assert_eq!(state(), before);
    }
}

fn forward() {
    let world = world();
    // With bridge-nf-call-iptables the kernel translates on the bridge, which never returns a frame to the port that it
    // came from.
    let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
    let host = Namespace::at("/proc/self/ns/net");
    let spec = "nat,forward=tcp:8080:80+udp:8080:80+tcp:9000-9002:90-92+udp:9000-9002:90-92";
    let (first, web) = Vmm::start_with_guest("web", spec);
    let (second, db) = Vmm::start_with_guest("db", "nat");
    let [address, other] = ["vmtap0", "vmtap1"].map(address);
    configure(&web, &address, &gateway(&address));
    configure(&db, &other, &gateway(&other));
    for port in [80, 90, 92] {
        echo(&web, port);
    }
    for port in [8080, 9000, 9002] {
        for (from, to, seen) in [
            (&world, "198.51.100.2", "198.51.100.1"),
            (&host, "198.51.100.2", "198.51.100.2"),
            (&host, "127.0.0.1", &gateway(&address)),
            (&db, "198.51.100.2", &gateway(&address)),
            (&web, "198.51.100.2", &gateway(&address)),
        ] {
            let (to, seen) = (format!("{to}:{port}"), Some(seen.parse().unwrap()));
            assert_eq!(ask_tcp(from, &to), seen, "tcp {to}");
            assert_eq!(ask_udp(from, &to), seen, "udp {to}");
        }
    }
    assert!(is_silent(&world, "198.51.100.2:9001"));
    first.stop();
    second.stop();
    assert!(is_silent(&world, "198.51.100.2:8080"));
}

fn forward_address() {
    let world = world();
    let host = Namespace::at("/proc/self/ns/net");
    let (vmm, guest) = Vmm::start_with_guest("web", "nat,forward=tcp:127.0.0.1:8080:80+tcp:198.51.100.2:8081:80");
    let address = address("vmtap0");
    configure(&guest, &address, &gateway(&address));
    echo(&guest, 80);
    assert_eq!(ask_tcp(&host, "127.0.0.1:8080"), Some(gateway(&address).parse().unwrap()));
    assert_eq!(ask_tcp(&host, "198.51.100.2:8081"), Some("198.51.100.2".parse().unwrap()));
    assert_eq!(ask_tcp(&world, "198.51.100.2:8081"), Some("198.51.100.1".parse().unwrap()));
    assert!(is_silent(&world, "198.51.100.2:8080"));
    assert!(is_silent(&host, "127.0.0.1:8081"));
    // A neighbour sends to the host's loopback address.
    world.sh("sysctl -q net.ipv4.conf.eth0.route_localnet=1");
    world.sh("ip route flush table local 127.0.0.0/8");
    world.sh("ip addr flush dev lo");
    world.sh("ip route add 127.0.0.0/8 via 198.51.100.2 src 198.51.100.1");
    assert!(is_silent(&world, "127.0.0.1:8080"));
    // The guest cannot reach the host's loopback interface, either.
    guest.sh("sysctl -q net.ipv4.conf.eth0.route_localnet=1");
    guest.sh("ip addr flush dev lo");
    guest.sh(&format!("ip route add 127.0.0.0/8 via {}", gateway(&address)));
    assert!(is_silent(&guest, "127.0.0.1:8080"));
    vmm.stop();
}

fn forward_taken() {
    let _world = world();
    let before = state();
    let tcp = std::net::TcpListener::bind("127.0.0.1:8080").unwrap();
    let refused = |spec: &str| {
        let mut vmm = Vmm::spawn("web", &[spec]);
        let line = vmm.line();
        vmm.wait();
        assert_eq!(vmm.end(), "");
        line
    };
    let hint = "forward another port, or stop the process that has it: ss -tlnp 'sport = 8080' shows it";
    let wanted = format!("failed tcp port 8080 of this host is taken | {hint} | usage");
    assert_eq!(refused("nat,forward=tcp:8080:80"), wanted);
    assert_eq!(refused("nat,forward=tcp:8079-8081:79-81"), wanted);
    drop(tcp);
    let udp = std::net::UdpSocket::bind("198.51.100.2:5353").unwrap();
    for spec in ["nat,forward=udp:5353:53", "nat,forward=udp:5350-5360:50-60"] {
        assert!(refused(spec).starts_with("failed udp port 5353 of this host is taken"));
    }
    drop(udp);
    assert!(refused("nat,forward=tcp:192.0.2.1:80:80").starts_with("failed 192.0.2.1 is not an address of this host"));
    assert_eq!(state(), before);
    // No other VM gets a port that leads to a guest.
    let vmm = Vmm::start("first", &["nat,forward=tcp:8080:80+udp:8080:80"]);
    assert_eq!(refused("nat,forward=tcp:8080:80"), wanted);
    assert!(std::net::TcpListener::bind("127.0.0.1:8080").is_err());
    assert!(std::net::UdpSocket::bind("127.0.0.1:8080").is_err());
    stop(vmm);
    std::net::TcpListener::bind("127.0.0.1:8080").unwrap();
    assert_eq!(state(), before);
}

/// The packet count of a drop reason in the VM's guards.
fn counted(vm: &str, reason: &str) -> u64 {
    let text = sh(&format!("nft list counter netdev minivmm-{vm} {reason}"));
    text.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

fn forged() {
    let world = world();
    let (vmm, guest) = Vmm::start_with_guest("web", "nat");
    let address = address("vmtap0");
    configure(&guest, &address, &gateway(&address));
    echo(&world, 7);
    assert!(ask_tcp(&guest, "198.51.100.1:7").is_some());
    let reasons =
        ["spoofed-mac", "spoofed-arp", "spoofed-ip", "rogue-dhcp", "rogue-router", "loopback", "other-protocol"];
    // The guest's kernel sends from a link-local IPv6 address, and nothing else unusual.
    assert_eq!(reasons.map(|reason| counted("web", reason)), [0; 7]);

    let subnet = address.rsplit_once('.').unwrap().0;
    let guessed = format!("{subnet}.{}", if address.ends_with(".77") { 78 } else { 77 });
    guest.sh(&format!("ip addr add {guessed}/24 dev eth0"));
    assert!(!guest.attempt(&format!("ping -c 1 -W 1 -I {guessed} {}", gateway(&address))).0);
    assert!(counted("web", "spoofed-arp") + counted("web", "spoofed-ip") > 0);
    guest.sh(&format!("ip addr del {guessed}/24 dev eth0"));

    let mac = link("mvn-default")["address"].as_str().unwrap().to_owned();
    guest.sh(&format!("ip neigh replace {} lladdr {mac} dev eth0 nud permanent", gateway(&address)));
    guest.sh(&format!("ip addr add {guessed}/32 dev lo"));
    assert!(!guest.attempt(&format!("ping -c 1 -W 1 -I {guessed} {}", gateway(&address))).0);
    assert!(counted("web", "spoofed-ip") > 0);

    guest.sh("ip link set eth0 address 02:00:00:00:00:09");
    assert!(!guest.attempt(&format!("ping -c 1 -W 1 {}", gateway(&address))).0);
    assert!(counted("web", "spoofed-mac") > 0);
    guest.sh(&format!("ip link set eth0 address {}", MacAddr::for_vm("web", 0)));

    guest.within(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:67").unwrap();
        socket.send_to(&[2; 300], format!("{}:68", gateway(&address))).unwrap();
    });
    until(|| counted("web", "rogue-dhcp") > 0);
    // A frame with a VLAN tag around nothing.
    let own = MacAddr::for_vm("web", 0).octets();
    send_frame(&guest, &[&[0xff; 6][..], &own, &[0x81, 0, 0, 5, 0x08, 0], &[0; 46]].concat());
    // A router advertisement: IPv6, next header 58, type 134.
    let [a, b, c, d, e, f] = own;
    let from = [&[0xfe, 0x80, 0, 0, 0, 0, 0, 0][..], &[a ^ 2, b, c, 0xff, 0xfe, d, e, f]].concat();
    let ip6 = [&[0x60, 0, 0, 0, 0, 16, 58, 255][..], &from, &[0xff, 2], &[0; 13], &[1]].concat();
    send_frame(&guest, &[&[0x33, 0x33, 0, 0, 0, 1][..], &own, &[0x86, 0xdd], &ip6, &[134], &[0; 15]].concat());
    // An ARP answer for the gateway.
    let sender = [&own[..], &[10, 255, 255, 1]].concat();
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &sender, &[0xff; 6], &[10, 255, 255, 2]].concat();
    let before = counted("web", "spoofed-arp");
    send_frame(&guest, &[&[0xff; 6][..], &own, &[0x08, 0x06], &arp, &[0; 18]].concat());
    for (reason, least) in [("rogue-router", 1), ("other-protocol", 1), ("spoofed-arp", before + 1)] {
        until(|| counted("web", reason) >= least);
    }
    assert!(ask_tcp(&guest, "198.51.100.1:7").is_some());
    vmm.stop();
}

fn ipv6() {
    let world = world();
    sh("sysctl -q net.ipv6.conf.up0.disable_ipv6=0");
    // The host's IPv6 default route comes from a router advertisement, as far as its settings tell.
    sh("ip -6 addr add 2001:db8:1::2/64 dev up0 nodad");
    sh("ip -6 route add default via 2001:db8:1::1 dev up0");
    world.sh("ip -6 addr add 2001:db8:1::1/64 dev eth0 nodad");
    let setting =
        |key: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{key}")).unwrap().trim().to_owned();
    until(|| !sh("ip -6 addr show dev up0").contains("tentative"));
    let before = state();
    let (vmm, guest) = Vmm::start_with_guest("web", "nat,ipv6=on");
    assert_eq!([setting("all/forwarding"), setting("up0/accept_ra")], ["1", "2"]);
    let global = || {
        let text = guest.sh("ip -6 -o addr show dev eth0 scope global -tentative");
        text.split_whitespace().skip_while(|word| *word != "inet6").nth(1).map(str::to_owned)
    };
    // The prefix and the route come with an advertisement.
    until(|| global().is_some());
    assert!(global().unwrap().starts_with("fd"), "{:?}", global());
    until(|| guest.sh("ip -6 route").contains("default via fe80::1 "));
    guest.sh("ping -6 -c 1 -W 5 2001:db8:1::1");
    world.sh("ip -6 route add fd00::/8 via 2001:db8:1::2");
    let address = global().unwrap().replace("/64", "");
    assert!(!world.attempt(&format!("ping -6 -c 1 -W 1 {address}")).0);

    let (second, db) = Vmm::start_with_guest("db", "nat=other,ipv6=on");
    vmm.stop();
    // Another network still needs it.
    assert_eq!([setting("all/forwarding"), setting("up0/accept_ra")], ["1", "2"]);
    db.sh("ip -6 addr add fdff::1/64 dev eth0 nodad");
    let guessed = "ping -6 -c 1 -W 1 -I fdff::1 fe80::1%eth0";
    assert!(!db.attempt(guessed).0);
    assert!(counted("db", "spoofed-ip") > 0);
    second.stop();
    assert_eq!(state(), before);
}

fn forward6() {
    let world = world();
    sh("sysctl -q net.ipv6.conf.up0.disable_ipv6=0 net.ipv6.conf.lo.disable_ipv6=0");
    sh("ip -6 addr add 2001:db8:1::2/64 dev up0 nodad");
    world.sh("ip -6 addr add 2001:db8:1::1/64 dev eth0 nodad");
    until(|| !sh("ip -6 addr show dev up0").contains("tentative"));
    let before = state();
    let host = Namespace::at("/proc/self/ns/net");
    let spec = "nat,ipv6=on,forward=tcp:8080:80+udp:8080:80+tcp:9000-9001:90-91+tcp:127.0.0.1:7000:80";
    let (first, web) = Vmm::start_with_guest("web", spec);
    let (second, db) = Vmm::start_with_guest("db", "nat,ipv6=on");
    let known = |tap: &str| {
        let alias = link(tap)["ifalias"].as_str().unwrap().to_owned();
        alias.split(' ').find_map(|word| word.strip_prefix("ip6=")).unwrap().to_owned()
    };
    let [address, other] = ["vmtap0", "vmtap1"].map(known);
    for (guest, address) in [(&web, &address), (&db, &other)] {
        until(|| guest.sh("ip -6 addr show dev eth0 scope global -tentative").contains(&format!("inet6 {address}/64")));
        until(|| guest.sh("ip -6 route").contains("default via fe80::1 "));
    }
    let gateway = format!("{}::1", address.split(':').take(3).collect::<Vec<_>>().join(":"));
    for port in [80, 91] {
        echo(&web, port);
    }
    for port in [8080, 9001] {
        for (from, to, seen) in [
            (&world, "2001:db8:1::2", "2001:db8:1::1"),
            (&host, "2001:db8:1::2", "2001:db8:1::2"),
            (&db, "2001:db8:1::2", &gateway),
            (&web, "2001:db8:1::2", &gateway),
        ] {
            assert_eq!(ask_tcp(from, &format!("[{to}]:{port}")), Some(seen.parse().unwrap()), "{to} {port}");
        }
    }
    assert_eq!(ask_udp(&world, "[2001:db8:1::2]:8080"), Some("2001:db8:1::1".parse().unwrap()));
    assert!(is_silent(&world, "[2001:db8:1::2]:7000"));
    // Refused at once, for clients that try ::1 before 127.0.0.1, and no other program can bind it.
    let refused = std::net::TcpStream::connect("[::1]:8080").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(std::net::TcpListener::bind("[::1]:8080").is_err());
    assert!(is_silent(&world, &format!("[{address}]:80")));
    let (ok, text) = db.attempt("dig +short @fe80::1%eth0 web.minivmm AAAA");
    assert_eq!((ok, text.trim()), (true, address.as_str()));
    first.stop();
    second.stop();
    let taken = std::net::TcpListener::bind("[2001:db8:1::2]:8080").unwrap();
    let mut vmm = Vmm::spawn("web", &[spec]);
    assert!(vmm.line().starts_with("failed tcp port 8080 of this host is taken"));
    vmm.wait();
    drop(taken);
    assert_eq!(state(), before);
}

fn host_only() {
    let world = world();
    let before = state();
    let (first, web) = Vmm::start_with_guest("web", "host");
    let (second, db) = Vmm::start_with_guest("db", "host");
    let [address, other] = ["vmtap0", "vmtap1"].map(address);
    configure(&web, &address, &gateway(&address));
    configure(&db, &other, &gateway(&other));
    echo(&world, 7);
    web.sh(&format!("ping -c 1 -W 5 {}", gateway(&address)));
    web.sh(&format!("ping -c 1 -W 5 {other}"));
    assert!(is_silent(&web, "198.51.100.1:7"));
    // Not even on a host that forwards everything, for a sender that knows the route back.
    sh("sysctl -q net.ipv4.ip_forward=1");
    world.sh("ip route add 10.0.0.0/8 via 198.51.100.2");
    assert!(is_silent(&web, "198.51.100.1:7"));
    echo(&web, 9);
    assert!(is_silent(&world, &format!("{address}:9")));
    sh("sysctl -q net.ipv4.ip_forward=0");
    first.stop();
    second.stop();
    assert_eq!(state(), before);
}
