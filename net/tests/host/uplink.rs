//! `uplink=`: an interface of the host as a port of a bridge of ours, which has its addresses meanwhile.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Case;
use crate::guest::Namespace;
use crate::lan::{exists, link, names, sh, snapshot, until};
use crate::vmm::{DEADLINE, Vmm};

pub(crate) const CASES: &[Case] = &[
    ("uplink_without_addresses_is_taken_and_released", plain),
    ("uplink_gives_its_addresses_and_gets_them_back", moved),
    ("uplink_connection_of_the_host_lives_through_it", connection_lives),
    ("uplink_is_shared_and_goes_with_the_last_vm", shared),
    ("uplink_is_left_by_sigkill_of_the_vmm_as_it_was", vmm_killed),
    ("uplink_after_sigkill_of_both_is_for_the_next_vm_and_gc", both_killed),
    ("uplink_after_sigkill_in_set_up_is_given_back", killed_in_set_up),
    ("uplink_carries_the_vlans_of_guests", vlans),
    ("uplink_that_was_down_is_down_again", was_down),
    ("uplink_with_several_ways_keeps_them", several_ways),
    ("uplink_refusals_say_why", refusals),
];

const FLAG: &str = "bridge=br0,create=on,uplink=eth1,move-addresses=on";

/// The host's interface `eth1` with every kind of setting, and a namespace behind it.
fn outside() -> Namespace {
    let outside = Namespace::behind("eth1", "10.9.0.1/24", "10.9.0.2/24");
    // No other machine has its addresses, so duplicate address detection is not needed.
    for (key, value) in [("accept_dad", "0"), ("disable_ipv6", "0")] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/eth1/{key}"), value).expect("IPv6");
    }
    outside.within(|| {
        std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0").expect("IPv6");
        std::fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "0").expect("IPv6");
    });
    outside.sh("ip addr add fd09::1/64 dev eth0 nodad");
    for line in [
        "ip addr add 10.9.0.3/24 dev eth1 label eth1:x",
        "ip addr add 10.9.1.1/24 dev eth1 valid_lft 3000 preferred_lft 2000 noprefixroute",
        "ip addr add fd09::2/64 dev eth1",
        "ip addr add fd09:1::2/64 dev eth1 valid_lft 3000 preferred_lft 2000",
        "ip route add default via 10.9.0.1 dev eth1 metric 100",
        "ip route add 10.20.0.0/16 via 10.9.0.1 dev eth1 src 10.9.0.3 mtu lock 1300 advmss 1200",
        "ip route add 10.21.0.0/16 via 10.88.0.1 dev eth1 onlink table 77 metric 7",
        "ip route add 10.22.0.0/16 dev eth1 scope link proto static",
        "ip -6 route add default via fd09::1 dev eth1 metric 300 mtu 1400",
        "ip -6 route add fd20::/32 via fd09::1 dev eth1 table 77 hoplimit 9",
        "ip -6 route add fd22::/32 dev eth1",
    ] {
        sh(line);
    }
    until(|| link("eth1")["operstate"] == "UP");
    until(|| !sh("ip -6 addr show dev eth1").contains("tentative"));
    until(|| sh("ip -6 addr show dev eth1").contains("fe80::"));
    outside
}

/// All addresses and routes.
fn ip_state() -> String {
    without_times(&[sh("ip addr"), sh("ip route show table all"), sh("ip -6 route show table all")].concat())
}

/// A text without remaining lifetimes.
fn without_times(text: &str) -> String {
    let mut words: Vec<&str> = text.split_inclusive([' ', '\n']).collect();
    for idx in 1..words.len() {
        let timed = ["valid_lft ", "preferred_lft ", "expires "].contains(&words[idx - 1]);
        if timed && !words[idx].starts_with("forever") {
            words[idx] = "T ";
        }
    }
    words.concat()
}

/// The routes through a link, except those of link-local addresses, which every link has.
fn routes_through(dev: &str) -> Vec<String> {
    let shown = ["-4", "-6"].map(|family| sh(&format!("ip {family} route show table all dev {dev}"))).concat();
    let shown = without_times(&shown);
    let lines = shown.lines().filter(|line| !line.contains("fe80:") && !line.starts_with("multicast "));
    let mut lines: Vec<String> = lines.map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

fn plain() {
    sh("ip link add eth1 mtu 1400 type veth peer name peer1");
    sh("ip link set peer1 up");
    sh("ip link set eth1 up");
    until(|| link("eth1")["operstate"] == "UP");
    let before = snapshot();
    let vmm = Vmm::start("web", &["bridge=br0,create=on,uplink=eth1"]);
    let (bridge, port) = (link("br0"), link("eth1"));
    assert_eq!(port["master"], "br0");
    assert_eq!([&bridge["address"], &bridge["mtu"]], [&port["address"], &1400.into()]);
    assert_eq!(bridge["ifalias"], "minivmm uplink=eth1");
    vmm.stop();
    assert_eq!(snapshot(), before);
}

fn moved() {
    let outside = outside();
    let (before, links, routes) = (ip_state(), snapshot(), routes_through("eth1"));
    let vmm = Vmm::start("web", &[FLAG]);
    assert_eq!(link("br0")["ifalias"], "minivmm uplink=eth1 moved=on");
    assert_eq!((routes_through("eth1"), routes_through("br0")), (Vec::new(), routes));
    assert!(sh("ip addr show dev br0").contains("inet6 fe80::"));
    assert!(!sh("ip -6 addr show dev br0").contains("nodad"));
    for (family, address) in [("-4", "10.9.0.1"), ("-6", "fd09::1")] {
        sh(&format!("ping {family} -c 1 -W 5 {address}"));
        let peer = if family == "-4" { "10.9.0.2" } else { "fd09::2" };
        outside.sh(&format!("ping {family} -c 1 -W 5 {peer}"));
    }
    vmm.stop();
    assert_eq!(ip_state(), before);
    assert_eq!(snapshot(), links);
    sh("ping -c 1 -W 5 10.9.0.1");
}

/// A connection from the host to the outside that sends all the time.
struct Talk {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Talk {
    fn start(outside: &Namespace, address: &str) -> Self {
        let address: SocketAddr = address.parse().unwrap();
        let listener = outside.within(|| TcpListener::bind(address).expect("a port"));
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        });
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), rounds.clone());
        let thread = std::thread::spawn(move || {
            let mut byte = [0];
            while !stopped.load(Ordering::Relaxed) {
                stream.write_all(&[7]).expect("a connection that lives");
                stream.read_exact(&mut byte).expect("a connection that lives");
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Self { stop, rounds, thread }
    }

    /// Waits for answers to what is sent from here on.
    fn goes_on(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        until(|| self.rounds.load(Ordering::Relaxed) > before + 2);
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a connection that lives");
    }
}

fn connection_lives() {
    let outside = outside();
    let before = ip_state();
    let talks = [Talk::start(&outside, "10.9.0.1:7777"), Talk::start(&outside, "[fd09::1]:7777")];
    for _ in 0..3 {
        let vmm = Vmm::start("web", &[FLAG]);
        talks.iter().for_each(Talk::goes_on);
        vmm.stop();
        talks.iter().for_each(Talk::goes_on);
        assert_eq!(ip_state(), before);
    }
    talks.into_iter().for_each(Talk::end);
}

fn shared() {
    let _outside = outside();
    let before = ip_state();
    let first = Vmm::start("first", &[FLAG, FLAG]);
    let second = Vmm::start("second", &["bridge=br0,create=on,uplink=eth1"]);
    let third = Vmm::start("third", &["bridge=br0"]);
    first.stop();
    second.stop();
    assert_eq!(link("eth1")["master"], "br0");
    sh("ping -c 1 -W 5 10.9.0.1");
    third.stop();
    assert_eq!(ip_state(), before);
}

fn vmm_killed() {
    let _outside = outside();
    let before = ip_state();
    let mut vmm = Vmm::start("web", &[FLAG]);
    vmm.kill();
    assert_eq!(vmm.end(), "");
    assert_eq!(ip_state(), before);
}

fn kill_both(flag: &str) {
    let mut vmm = Vmm::start("web", &[flag]);
    vmm.kill_keeper();
    assert_eq!(vmm.line(), "keeper gone");
    vmm.kill();
    assert_eq!(vmm.end(), "");
}

fn both_killed() {
    let _outside = outside();
    let before = ip_state();
    kill_both(FLAG);
    assert_eq!(names(), ["eth1", "br0"]);
    sh("ping -c 1 -W 5 10.9.0.1");
    Vmm::start("web", &[FLAG]).stop();
    assert_eq!(ip_state(), before);
    kill_both(FLAG);
    let collected = net::gc::collect().unwrap();
    assert_eq!((collected.removed, collected.failed), (vec![net::gc::Removed::Bridge("br0".to_owned())], vec![]));
    assert_eq!(ip_state(), before);
}

fn killed_in_set_up() {
    let _outside = outside();
    let before = ip_state();
    for round in 0..50 {
        let mut vmm = Vmm::spawn("web", &[FLAG]);
        let start = Instant::now();
        // From before the fork to after the hand-over. The last rounds are spread wider, for a busy machine.
        let kill_after = Duration::from_micros(if round < 40 { 250 * round } else { 4000 * (round - 37) });
        until(|| start.elapsed() >= kill_after);
        if let Some(keeper) = vmm.try_keeper() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper), nix::sys::signal::Signal::SIGKILL);
        }
        vmm.kill();
        vmm.end();
        // Clean up by the next start, or by the collector.
        if round % 2 == 0 {
            let collected = net::gc::collect().unwrap();
            assert_eq!(collected.failed, [], "killed after {kill_after:?}");
        } else {
            Vmm::start("web", &[FLAG]).stop();
        }
        assert_eq!(ip_state(), before, "killed after {kill_after:?}");
        assert!(!exists("br0"));
    }
}

fn vlans() {
    sh("ip link add eth1 type veth peer name peer1");
    sh("ip link set eth1 up");
    let vmm = Vmm::spawn("web", &["bridge=br0,create=on,uplink=eth1,vlan=100"]);
    let line = vmm.line();
    if line.starts_with("failed The kernel of this host has no VLAN filtering") {
        assert!(!exists("br0"));
        return;
    }
    let carried: serde_json::Value = serde_json::from_str(&sh("bridge -j vlan show dev eth1")).unwrap();
    assert_eq!(carried[0]["vlans"][1]["vlan"], 100);
    assert!(carried[0]["vlans"][1]["flags"].is_null());
    vmm.stop();
}

fn was_down() {
    sh("ip link add eth1 type veth peer name peer1");
    sh("ip addr add 10.9.0.2/24 dev eth1");
    // Once up, it keeps a queueing discipline.
    sh("ip link set eth1 up");
    sh("ip link set eth1 down");
    let (before, links) = (ip_state(), snapshot());
    let vmm = Vmm::start("web", &[FLAG]);
    assert_eq!(link("br0")["ifalias"], "minivmm uplink=eth1 moved=on raised=on");
    assert!(link("eth1")["flags"].as_array().unwrap().contains(&"UP".into()));
    vmm.stop();
    assert_eq!((ip_state(), snapshot()), (before, links));
}

fn several_ways() {
    let _outside = outside();
    let _other = Namespace::behind("eth2", "10.8.0.1/24", "10.8.0.2/24");
    std::fs::write("/proc/sys/net/ipv6/conf/eth2/disable_ipv6", "0").unwrap();
    for line in [
        "ip addr add fd08::2/64 dev eth2 nodad",
        "ip route add 10.30.0.0/16 nexthop via 10.9.0.1 dev eth1 weight 3 nexthop via 10.8.0.1 dev eth2",
        "ip -6 route add fd30::/32 nexthop via fd08::1 dev eth2 nexthop via fd09::1 dev eth1 weight 3",
    ] {
        sh(line);
    }
    until(|| !sh("ip -6 addr show").contains("tentative"));
    until(|| sh("ip -6 addr show dev eth2").contains("fe80::"));
    let before = ip_state();
    let vmm = Vmm::start("web", &[FLAG]);
    for (family, to, via) in [("-4", "10.30.0.0/16", "10.9.0.1"), ("-6", "fd30::/32", "fd09::1")] {
        let shown = sh(&format!("ip {family} route show {to}"));
        assert!(shown.contains(&format!("via {via} dev br0 weight 3")), "{shown}");
        assert!(shown.contains("dev eth2") && !shown.contains("dev eth1"), "{shown}");
    }
    vmm.stop();
    assert_eq!(ip_state(), before);
}

fn refusals() {
    let _outside = outside();
    for line in [
        "ip link add foreign type bridge",
        "ip link add eth2 type veth peer name peer2",
        "ip link add eth3 type veth peer name peer3",
        "ip link add eth4 type veth peer name peer4",
        "ip link set eth2 master foreign",
        "ip link add link eth3 name upon3 type macvlan",
        "ip addr add 10.5.0.1/24 dev eth4",
        "ip link add ours group 28022 type bridge",
    ] {
        sh(line);
    }
    let before = (ip_state(), snapshot());
    for (flag, message) in [
        ("uplink=eth9", "Uplink eth9 does not exist | give the name of a network card; `ip link` lists them"),
        ("uplink=lo", "lo cannot be an uplink, it is the loopback interface | give the name of an Ethernet card"),
        ("uplink=foreign", "foreign cannot be an uplink, it is a bridge | give the name of an Ethernet card"),
        (
            "uplink=eth2",
            "eth2 is a port of foreign already | use that bridge if it is one (--net bridge=foreign), or free the card \
             first",
        ),
        (
            "uplink=eth3",
            "eth3 cannot be an uplink while upon3 is on it, which is a link of kind macvlan and takes frames before the \
             bridge | use that as uplink (uplink=upon3), or remove it first: ip link del upon3",
        ),
        (
            "uplink=eth4",
            "eth4 has 10.5.0.1/24, and a port of a bridge cannot use them | add move-addresses=on to have them on the \
             bridge while VMs use it",
        ),
        (
            "uplink=eth1",
            "eth1 has 10.9.0.2/24, 10.9.1.1/24, 10.9.0.3/24, fd09:1::2/64, fd09::2/64, the default route, and a port of a \
             bridge cannot use them | add move-addresses=on to have them on the bridge while VMs use it",
        ),
    ] {
        let vmm = Vmm::spawn("web", &[&format!("bridge=br0,create=on,{flag}")]);
        assert_eq!(vmm.line(), format!("failed {message} | usage"));
        assert_eq!(vmm.end(), "");
    }
    for (bridge, message) in [
        ("foreign", "Bridge foreign exists, and minivmm did not make it"),
        ("ours", "Bridge ours exists, and has no uplink"),
    ] {
        let vmm = Vmm::spawn("web", &[&format!("bridge={bridge},create=on,uplink=peer4")]);
        let line = vmm.line();
        assert!(line.starts_with(&format!("failed {message} | ")), "{line}");
        assert_eq!(vmm.end(), "");
    }
    assert_eq!((ip_state(), snapshot()), before);
}
