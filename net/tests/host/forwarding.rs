//! Forwarding that a way out needs from the host, and that it leaves alone: interfaces come, go and change while VMs
//! run.

use std::time::{Duration, Instant};

use net::doctor::{Level, examine};
use nix::sched::{CloneFlags, unshare};

use crate::Case;
use crate::guest::{Namespace, ask_tcp, configure, echo, is_silent, send_frame};
use crate::lan::{link, sh, until};
use crate::nat::{address, gateway, stop, world};
use crate::vmm::Vmm;

pub(crate) const CASES: &[Case] = &[
    ("forwarding_of_an_uplink_that_comes_after_the_start_is_switched_on_and_back", late),
    ("forwarding_of_a_second_uplink_that_comes_later_is_switched_on_and_back", second),
    ("forwarding_that_somebody_switches_off_is_put_right_once_and_then_left", switched_off),
    ("forwarding_for_a_network_makes_the_host_no_router", no_router),
    ("forwarding_that_the_owner_switches_on_is_the_owners", owners),
    ("forwarding_of_ipv6_leaves_router_advertisements_to_later_interfaces", advertised),
    ("forwarding_of_ipv6_is_put_back_for_each_interface", each6),
    ("forwarding_of_ipv6_makes_the_host_no_router", no_router6),
    ("forwarding_takes_a_bridge_of_ours_with_an_uplink_for_a_way_out", own_bridge),
    ("forwarding_goes_from_an_uplink_to_its_bridge_and_back", own_bridge_later),
    ("forwarding_under_a_read_only_proc_sys_needs_what_is_right_already", read_only),
];

/// How long to watch a keeper that should do nothing.
const STILL: Duration = Duration::from_millis(600);

/// A setting of an interface, `all` or `default`.
fn setting(path: &str) -> String {
    let text =
        std::fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.trim().to_owned()
}

fn forwards(link: &str) -> bool {
    setting(&format!("ipv4/conf/{link}/forwarding")) == "1"
}

/// A guest of a network of ours, with its address.
fn start(name: &str, spec: &str) -> (Vmm, Namespace) {
    let (vmm, guest) = Vmm::start_with_guest(name, spec);
    let address = address("vmtap0");
    configure(&guest, &address, &gateway(&address));
    (vmm, guest)
}

fn late() {
    sh("ip link set lo up");
    let (vmm, guest) = start("web", "nat");
    let world = Namespace::behind("up0", "198.51.100.1/24", "198.51.100.2/24");
    sh("ip route add default via 198.51.100.1");
    until(|| forwards("up0"));
    echo(&world, 7);
    assert_eq!(ask_tcp(&guest, "198.51.100.1:7"), Some("198.51.100.2".parse().unwrap()));
    let up0 = link("up0")["ifindex"].to_string();
    assert_eq!(link("mvn-default")["ifalias"], format!("minivmm mode=nat net=default forward={up0}"));
    assert!(!forwards("lo"));
    vmm.stop();
    assert!(!forwards("up0"));
}

fn second() {
    let _world = world();
    let vmm = Vmm::start("web", &["nat"]);
    for round in 0..2 {
        sh("ip link add vpn0 type veth peer name vpn1");
        sh("ip addr add 203.0.113.1/24 dev vpn0");
        sh("ip link set vpn1 up");
        assert!(!forwards("vpn0"), "it leads nowhere in round {round}");
        sh("ip link set vpn0 up");
        until(|| forwards("vpn0"));
        assert!(!forwards("vpn1"));
        if round == 0 {
            sh("ip link del vpn0");
        }
    }
    // A route is enough.
    sh("ip link add tun9 type veth peer name tun8");
    sh("ip link set tun8 up");
    sh("ip link set tun9 up");
    until(|| link("tun9")["operstate"] == "UP");
    assert!(!forwards("tun9"));
    sh("ip route add 192.0.2.0/24 nexthop dev tun9 nexthop via 198.51.100.1");
    until(|| forwards("tun9"));
    stop(vmm);
    for link in ["up0", "vpn0", "tun9"] {
        assert!(!forwards(link), "{link}");
    }
}

/// Problems that doctor finds without cards.
fn problems() -> Vec<String> {
    let request = net::Request { vm_name: "x".to_owned(), vcpus: 1, cards: Vec::new(), policy: None, steering: None };
    let found = examine(&request).expect("a look").into_iter();
    found.filter(|finding| finding.level == Level::Problem).map(|finding| finding.what).collect()
}

fn switched_off() {
    let world = world();
    echo(&world, 7);
    let (mut vmm, guest) = start("web", "nat");
    let reaches = || ask_tcp(&guest, "198.51.100.1:7").is_some();
    sh("sysctl -q net.ipv4.ip_forward=1");
    sh("sysctl -q net.ipv4.ip_forward=0");
    until(|| forwards("up0") && forwards("mvn-default"));
    assert!(reaches() && !forwards("all"));
    assert!(!problems().iter().any(|what| what.contains("does not forward")), "{:?}", problems());
    sh("sysctl -q net.ipv4.ip_forward=1");
    sh("sysctl -q net.ipv4.ip_forward=0");
    let start = Instant::now();
    while start.elapsed() < STILL {
        assert!(!forwards("up0") && !forwards("mvn-default"), "it was switched on a second time");
    }
    for link in ["up0", "mvn-default"] {
        let what = format!("{link} does not forward IPv4, which guests of mvn-default need: it has been switched off");
        assert!(problems().contains(&what), "{:?}", problems());
    }
    // It stays off until an admin turns it on.
    sh("sysctl -q net.ipv4.conf.mvn-default.forwarding=1 net.ipv4.conf.up0.forwarding=1");
    assert!(reaches());
    assert_eq!(vmm.order("stop"), "stopped");
    let words = vmm.end();
    assert_eq!(words.matches("Forwarding has been switched off twice").count(), 1, "{words}");
    assert!(words.contains("net.ipv4.conf.mvn-default.forwarding") && !words.contains("conf.lo."), "{words}");
    assert!(!forwards("up0"));
}

/// A second network of the host, with a machine on it. That machine and the world have routes to each other.
fn second_network(world: &Namespace) -> Namespace {
    let other = Namespace::behind("up1", "203.0.113.1/24", "203.0.113.2/24");
    world.sh("ip route add 203.0.113.0/24 via 198.51.100.2");
    other.sh("ip route add 198.51.100.0/24 via 203.0.113.2");
    echo(world, 7);
    echo(&other, 7);
    other
}

fn no_router() {
    let world = world();
    let other = second_network(&world);
    assert!(is_silent(&world, "203.0.113.1:7"));
    let (vmm, guest) = start("web", "nat");
    let db = Vmm::start("db", &["nat=other"]);
    for (address, host) in [("198.51.100.1:7", "198.51.100.2"), ("203.0.113.1:7", "203.0.113.2")] {
        assert_eq!(ask_tcp(&guest, address), Some(host.parse().unwrap()));
    }
    assert!(is_silent(&world, "203.0.113.1:7") && is_silent(&other, "198.51.100.1:7"));
    // Neither the end of the last VM, which had turned on nothing, nor a later interface changes that.
    vmm.stop();
    assert!(forwards("up0") && forwards("up1"));
    assert!(is_silent(&world, "203.0.113.1:7"));
    let third = Namespace::behind("up2", "192.0.2.1/24", "192.0.2.2/24");
    third.sh("ip route add default via 192.0.2.2");
    until(|| forwards("up2"));
    until(|| sh("nft list table inet minivmm-db/fence").contains("up2"));
    assert!(is_silent(&third, "198.51.100.1:7"));
    stop(db);
    assert_eq!(["up0", "up1", "up2"].map(forwards), [false; 3]);
    assert_eq!(sh("nft list ruleset"), "");
}

fn owners() {
    let world = world();
    let other = second_network(&world);
    let vmm = Vmm::start("web", &["nat"]);
    assert!(is_silent(&world, "203.0.113.1:7"));
    sh("sysctl -q net.ipv4.ip_forward=1");
    until(|| ask_tcp(&world, "203.0.113.1:7").is_some());
    assert!(ask_tcp(&other, "198.51.100.1:7").is_some());
    stop(vmm);
    assert!(forwards("up0") && forwards("up1"));
    // On a host that forwards everything, nothing is kept apart.
    let vmm = Vmm::start("web", &["nat"]);
    assert!(ask_tcp(&world, "203.0.113.1:7").is_some());
    assert!(!sh("nft list tables").contains("fence"));
    stop(vmm);
    assert!(forwards("up0") && forwards("up1"));
}

/// Turns on IPv6 on the host, and on its ways out.
fn with_ipv6(world: &Namespace) {
    sh("sysctl -q net.ipv6.conf.default.disable_ipv6=0 net.ipv6.conf.up0.disable_ipv6=0");
    sh("ip -6 addr add 2001:db8:1::2/64 dev up0 nodad");
    world.sh("ip -6 addr add 2001:db8:1::1/64 dev eth0 nodad");
}

/// All IPv6 settings of interfaces that concern routers.
fn settings6() -> String {
    sh("sysctl -a --pattern net.ipv6.conf.*.(forwarding|accept_ra)$")
}

/// A router advertisement of fe80::99 (RFC 4861 4.2), as a frame.
fn advertisement() -> Vec<u8> {
    let from = [&[0xfe, 0x80][..], &[0; 13], &[0x99]].concat();
    let to = [&[0xff, 2][..], &[0; 13], &[1]].concat();
    let mut body = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let sum: u32 = [&from[..], &to, &[0, 0, 0, 16, 0, 0, 0, 58], &body]
        .concat()
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    body[2..4].copy_from_slice(&checksum.to_be_bytes());
    let ip = [&[0x60, 0, 0, 0, 0, 16, 58, 255][..], &from, &to].concat();
    [&[0x33, 0x33, 0, 0, 0, 1][..], &[2, 0, 0, 0, 0, 9], &[0x86, 0xdd], &ip, &body].concat()
}

fn advertised() {
    let world = world();
    with_ipv6(&world);
    let before = settings6();
    let vmm = Vmm::start("web", &["nat,ipv6=on"]);
    assert_eq!(setting("ipv6/conf/all/forwarding"), "1");
    assert_eq!(setting("ipv6/conf/default/accept_ra"), "2");
    let later = Namespace::behind("late0", "203.0.113.1/24", "203.0.113.2/24");
    assert_eq!(setting("ipv6/conf/late0/accept_ra"), "2");
    let learned = |link: &str| sh("ip -6 route show default").contains(&format!("via fe80::99 dev {link} "));
    until(|| {
        send_frame(&later, &advertisement());
        learned("late0")
    });
    // And one that had no router so far.
    until(|| {
        send_frame(&world, &advertisement());
        learned("up0")
    });
    stop(vmm);
    assert_eq!([setting("ipv6/conf/late0/accept_ra"), setting("ipv6/conf/late0/forwarding")], ["1", "0"]);
    assert!(learned("late0") && learned("up0"));
    sh("ip link del late0");
    assert_eq!(settings6(), before);
}

fn each6() {
    let world = world();
    with_ipv6(&world);
    sh("ip link add nic0 type veth peer name nic1");
    sh("sysctl -q net.ipv6.conf.default.forwarding=1 net.ipv6.conf.nic0.forwarding=1 net.ipv6.conf.nic1.accept_ra=2");
    let before = settings6();
    let mut vmm = Vmm::start("web", &["nat,ipv6=on"]);
    assert_eq!(setting("ipv6/conf/all/forwarding"), "1");
    assert_eq!(
        ["default", "nic0", "nic1", "up0"].map(|name| setting(&format!("ipv6/conf/{name}/forwarding"))),
        ["1", "1", "0", "0"]
    );
    let second = Vmm::start("db", &["nat=other,ipv6=on"]);
    vmm.guest();
    assert_eq!(vmm.order("stop"), "stopped");
    assert_eq!(setting("ipv6/conf/mvn-other/forwarding"), "1");
    stop(second);
    assert_eq!(settings6(), before);

    // Settings changed meanwhile stay, and forwarding stays on if an admin turned it on.
    sh("sysctl -q net.ipv6.conf.default.forwarding=0");
    let vmm = Vmm::start("web", &["nat,ipv6=on"]);
    sh("sysctl -q net.ipv6.conf.nic0.forwarding=0 net.ipv6.conf.up0.accept_ra=0");
    stop(vmm);
    let values = ["all/forwarding", "nic0/forwarding", "up0/accept_ra", "nic1/accept_ra", "default/accept_ra"];
    assert_eq!(values.map(|key| setting(&format!("ipv6/conf/{key}"))), ["0", "0", "0", "2", "1"]);
    let vmm = Vmm::start("web", &["nat,ipv6=on"]);
    sh("sysctl -q net.ipv6.conf.all.forwarding=1");
    stop(vmm);
    assert_eq!(["all", "default", "up0"].map(|name| setting(&format!("ipv6/conf/{name}/forwarding"))), ["1"; 3]);
}

fn no_router6() {
    let world = world();
    with_ipv6(&world);
    let other = Namespace::behind("up1", "203.0.113.1/24", "203.0.113.2/24");
    sh("ip -6 addr add 2001:db8:2::2/64 dev up1 nodad");
    other.sh("ip -6 addr add 2001:db8:2::1/64 dev eth0 nodad");
    world.sh("ip -6 route add 2001:db8:2::/64 via 2001:db8:1::2");
    other.sh("ip -6 route add 2001:db8:1::/64 via 2001:db8:2::2");
    let asks = "ping -6 -c 1 -W 1 2001:db8:2::1";
    let (vmm, guest) = Vmm::start_with_guest("web", "nat,ipv6=on");
    until(|| guest.sh("ip -6 route").contains("default via fe80::1 "));
    until(|| !guest.sh("ip -6 addr show dev eth0").contains("tentative"));
    until(|| guest.attempt("ping -6 -c 1 -W 1 2001:db8:1::1").0);
    guest.sh("ping -6 -c 1 -W 5 2001:db8:2::1");
    assert!(!world.attempt(asks).0);
    sh("sysctl -q net.ipv6.conf.all.forwarding=1");
    until(|| world.attempt(asks).0);
    // The first time that it is turned off, the keeper turns it on again.
    sh("sysctl -q net.ipv6.conf.all.forwarding=0");
    until(|| setting("ipv6/conf/all/forwarding") == "1");
    assert!(!world.attempt(asks).0);
    guest.sh("ping -6 -c 1 -W 5 2001:db8:1::1");
    vmm.stop();
    assert_eq!(setting("ipv6/conf/all/forwarding"), "0");
}

const UPLINK: &str = "bridge=br0,create=on,uplink=up0,move-addresses=on";

fn own_bridge() {
    let world = world();
    echo(&world, 7);
    let bridged = Vmm::start("lan", &[UPLINK]);
    assert!(!forwards("br0"));
    let (vmm, guest) = Vmm::start_with_guest("web", "nat");
    let own = address("vmtap1");
    configure(&guest, &own, &gateway(&own));
    assert!(forwards("br0"));
    assert_eq!(ask_tcp(&guest, "198.51.100.1:7"), Some("198.51.100.2".parse().unwrap()));
    vmm.stop();
    assert!(!forwards("br0"));
    bridged.stop();
    assert!(!forwards("up0"));
}

fn own_bridge_later() {
    let world = world();
    echo(&world, 7);
    for first in ["web", "lan"] {
        let (vmm, guest) = start("web", "nat");
        let bridged = Vmm::start("lan", &[UPLINK]);
        assert!(forwards("br0"));
        assert!(ask_tcp(&guest, "198.51.100.1:7").is_some());
        if first == "web" {
            vmm.stop();
            assert!(!forwards("br0") && !forwards("up0"));
            bridged.stop();
        } else {
            bridged.stop();
            assert!(ask_tcp(&guest, "198.51.100.1:7").is_some());
            vmm.stop();
        }
        assert!(!forwards("up0"));
    }
}

fn read_only() {
    let world = world();
    echo(&world, 7);
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    sh("mount --make-rprivate /");
    sh("mount --bind /proc/sys /proc/sys");
    let lock = |how: &str| sh(&format!("mount -o remount,bind,{how} /proc/sys"));
    lock("ro");
    let vmm = Vmm::spawn("web", &["nat"]);
    let hint = "set it from outside (a container: docker run --sysctl net.ipv4.ip_forward=1), \
                or mount /proc/sys to be written to (--privileged)";
    let refused = "net.ipv4.conf.up0.forwarding is to be 1, and /proc/sys is read-only here";
    assert_eq!(vmm.line(), format!("failed {refused} | {hint} | usage"));
    assert_eq!(vmm.end(), "");
    let problem = "up0 does not forward IPv4, and that cannot be changed: /proc/sys is read-only".to_owned();
    assert!(problems().contains(&problem), "{:?}", problems());
    lock("rw");
    sh("sysctl -q net.ipv4.ip_forward=1");
    lock("ro");
    assert!(!problems().iter().any(|what| what.contains("forward")), "{:?}", problems());
    let (vmm, guest) = start("web", "nat,forward=tcp:8080:80");
    assert_eq!(
        [setting("ipv4/conf/mvn-default/route_localnet"), setting("ipv4/conf/mvn-default/send_redirects")],
        ["1", "0"]
    );
    assert_eq!(ask_tcp(&guest, "198.51.100.1:7"), Some("198.51.100.2".parse().unwrap()));
    echo(&guest, 80);
    let host = Namespace::at("/proc/self/ns/net");
    assert!(ask_tcp(&host, "127.0.0.1:8080").is_some());
    vmm.stop();
}
