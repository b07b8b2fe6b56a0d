//! `connections=` and `new-connections=`: one guest's share of the host's connection tracking, to the connection.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::Case;
use crate::guest::{Namespace, ask_tcp, configure, echo, is_silent};
use crate::lan::{link, sh, until};
use crate::vmm::{DEADLINE, Vmm};

pub(crate) const CASES: &[Case] = &[
    ("limit_of_connections_is_exact_and_frees_what_is_closed", concurrent),
    ("limit_of_connections_counts_those_to_the_guest_as_well", both_ways),
    ("limit_of_connections_unless_given_is_an_eighth_of_the_hosts_table", by_default),
    ("limit_of_connections_counts_ipv6_as_well", over_ipv6),
    ("limit_of_new_connections_leaves_old_ones_alone", rate),
];

/// Timeout for frames that no rule drops.
const PATIENCE: Duration = Duration::from_millis(700);

fn world() -> Namespace {
    sh("ip link set lo up");
    let world = Namespace::behind("up0", "198.51.100.1/24", "198.51.100.2/24");
    sh("ip route add default via 198.51.100.1");
    world
}

fn start(spec: &str) -> (Vmm, Namespace) {
    let (vmm, guest) = Vmm::start_with_guest("web", spec);
    let alias = link("vmtap0")["ifalias"].as_str().unwrap().to_owned();
    let lease = alias.split("ip4=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    configure(&guest, &lease, &format!("{}.1", lease.rsplit_once('.').unwrap().0));
    (vmm, guest)
}

fn counted(reason: &str) -> u64 {
    let text = sh(&format!("nft list counter inet minivmm-web {reason}"));
    text.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

/// Sockets of a guest that have sent nothing.
fn sockets(guest: &Namespace, count: usize) -> Vec<UdpSocket> {
    guest.within(|| (0..count).map(|_| UdpSocket::bind("0.0.0.0:0").unwrap()).collect())
}

/// The datagrams that arrive, until none has for a while.
fn arrived(server: &UdpSocket) -> usize {
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = [0; 16];
    std::iter::from_fn(|| server.recv_from(&mut bytes).ok()).count()
}

fn concurrent() {
    let world = world();
    let (vmm, guest) = start("nat,connections=10");
    let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 5000);
    let (tcp, udp) = world.within(|| (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap()));
    let to: SocketAddr = "198.51.100.1:5000".parse().unwrap();
    let connect = || guest.within(|| TcpStream::connect_timeout(&to, DEADLINE / 4));
    let mut streams: Vec<TcpStream> = (0..10).map(|_| connect().unwrap()).collect();
    assert_eq!(counted("too-many-connections"), 0);
    assert!(is_silent(&guest, "198.51.100.1:5000"));
    assert!(is_silent(&guest, "198.51.100.2:9"));
    assert!(counted("too-many-connections") >= 2);
    // Open connections go on, and a closed one makes room for one.
    drop((streams.remove(0), tcp.accept().unwrap()));
    until(|| !is_silent(&guest, "198.51.100.1:5000"));
    vmm.stop();

    let (vmm, guest) = start("nat,connections=50");
    for socket in &sockets(&guest, 200) {
        socket.send_to(b"1", to).unwrap();
    }
    assert_eq!(arrived(&udp), 50);
    assert_eq!(counted("too-many-connections"), 150);
    vmm.stop();
}

fn both_ways() {
    let world = world();
    let (vmm, guest) = start("nat,connections=4,forward=udp:5000:5000+tcp:8080:80");
    let inside = guest.within(|| UdpSocket::bind("0.0.0.0:5000").unwrap());
    for socket in &sockets(&world, 10) {
        socket.send_to(b"1", "198.51.100.2:5000").unwrap();
    }
    assert_eq!(arrived(&inside), 4);
    assert!(is_silent(&guest, "198.51.100.1:7"));
    echo(&guest, 80);
    assert!(is_silent(&world, "198.51.100.2:8080"));
    vmm.stop();
}

/// Datagrams in a round, each a connection of its own: as many as a tap has room for.
const ROUND: u16 = 500;

/// Sends a round from a new socket.
fn flood(guest: &Namespace) {
    guest.within(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for port in 1..=ROUND {
            let _ = socket.send_to(b"x", SocketAddr::from(([198, 51, 100, 1], port)));
        }
    });
}

fn by_default() {
    let number =
        |key: &str| -> u32 { sh(&format!("sysctl -n net.netfilter.nf_conntrack_{key}")).trim().parse().unwrap() };
    let world = world();
    echo(&world, 7);
    let (vmm, guest) = start("nat");
    let share = number("max") / 8;
    // Some are lost on the way, so there are more rounds than needed.
    let rounds = 2 + 4 * share / u32::from(ROUND);
    let full = (0..rounds).any(|_| {
        flood(&guest);
        counted("too-many-connections") > 0
    });
    assert!(full, "{} of {share}", number("count"));
    // The host has a few connections of its own.
    assert!(number("count") <= share + 16, "{} of {share}", number("count"));
    // Another guest still has room.
    let (second, other) = Vmm::start_with_guest("db", "nat=other");
    let alias = link("vmtap1")["ifalias"].as_str().unwrap().to_owned();
    let lease = alias.split("ip4=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    configure(&other, &lease, &format!("{}.1", lease.rsplit_once('.').unwrap().0));
    assert!(ask_tcp(&other, "198.51.100.1:7").is_some());
    second.stop();
    vmm.stop();
}

fn over_ipv6() {
    let world = world();
    sh("sysctl -q net.ipv6.conf.up0.disable_ipv6=0");
    sh("ip -6 addr add 2001:db8:1::2/64 dev up0 nodad");
    world.sh("ip -6 addr add 2001:db8:1::1/64 dev eth0 nodad");
    let (vmm, guest) = Vmm::start_with_guest("web", "nat,ipv6=on,connections=10");
    until(|| guest.sh("ip -6 addr show dev eth0 scope global -tentative").contains("inet6 fd"));
    until(|| guest.sh("ip -6 route").contains("default via fe80::1 "));
    let udp = world.within(|| UdpSocket::bind("[::]:5000").unwrap());
    let sockets: Vec<UdpSocket> = guest.within(|| (0..30).map(|_| UdpSocket::bind("[::]:0").unwrap()).collect());
    for socket in &sockets {
        socket.send_to(b"1", "[2001:db8:1::1]:5000").unwrap();
    }
    let arrived = arrived(&udp);
    assert!((1..=10).contains(&arrived), "{arrived}");
    assert!(counted("too-many-connections") >= 20);
    vmm.stop();
}

fn rate() {
    let world = world();
    let (vmm, guest) = start("nat,new-connections=20/s");
    let udp = world.within(|| UdpSocket::bind("0.0.0.0:5000").unwrap());
    let start = Instant::now();
    let sockets = sockets(&guest, 200);
    for socket in &sockets {
        socket.send_to(b"1", "198.51.100.1:5000").unwrap();
    }
    let first = arrived(&udp);
    // The burst, and the number that the rate allows meanwhile.
    let most = 20 + usize::try_from((start.elapsed().as_millis() * 20).div_ceil(1000)).unwrap();
    assert!((20..=most).contains(&first), "{first} of {most}");
    assert_eq!(counted("too-many-new-connections"), 200 - u64::try_from(first).unwrap());
    // The first connection has no answer yet, but is no longer new.
    for _ in 0..100 {
        sockets[0].send_to(b"2", "198.51.100.1:5000").unwrap();
    }
    assert_eq!(arrived(&udp), 100);
    echo(&world, 7);
    assert!(ask_tcp(&guest, "198.51.100.1:7").is_some());
    vmm.stop();
}
