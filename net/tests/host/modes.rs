//! Each mode with each use of a network: a table of cases `mode_MODE_PROPERTY`.
//!
//! Properties that other files test are left out. `nat` covers addresses, ways out and in, siblings and IPv6 of `nat`,
//! and what a `host` network refuses; `addresses` covers the sources of a guest's address. Bridges with VLANs need a
//! kernel that has them.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

use crate::Case;
use crate::guest::{Namespace, ask_tcp, ask_udp, configure, echo, is_silent};
use crate::lan::{link, names, sh, until};
use crate::ovs::Switch;
use crate::vmm::{Vmm, itself};

pub(crate) const CASES: &[Case] = &[
    ("mode_bridge_guest_gets_an_address", || gets_an_address(Mode::Bridge)),
    ("mode_bridge_guest_reaches_the_outside", || reaches_the_outside(Mode::Bridge)),
    ("mode_bridge_guest_is_reached_from_outside", || is_reached_from_outside(Mode::Bridge)),
    ("mode_bridge_guest_is_reached_by_the_host", || is_reached_by_the_host(Mode::Bridge)),
    ("mode_bridge_guests_reach_each_other", || reach_each_other(Mode::Bridge)),
    ("mode_bridge_has_ipv6", || has_ipv6(Mode::Bridge)),
    ("mode_bridge_passes_packets_of_9000_bytes", || passes_9000_bytes(Mode::Bridge)),
    ("mode_bridge_second_vm_outlives_the_first", || outlives_the_first(Mode::Bridge)),
    ("mode_nat_guest_is_reached_by_the_host", || is_reached_by_the_host(Mode::Nat)),
    ("mode_nat_passes_packets_of_9000_bytes_and_says_so", || passes_9000_bytes(Mode::Nat)),
    ("mode_nat_second_vm_outlives_the_first", || outlives_the_first(Mode::Nat)),
    ("mode_host_guest_gets_an_address", || gets_an_address(Mode::Host)),
    ("mode_host_guest_is_reached_by_the_host", || is_reached_by_the_host(Mode::Host)),
    ("mode_host_guests_reach_each_other", || reach_each_other(Mode::Host)),
    ("mode_host_has_ipv6", || has_ipv6(Mode::Host)),
    ("mode_host_passes_packets_of_9000_bytes_and_says_so", || passes_9000_bytes(Mode::Host)),
    ("mode_host_second_vm_outlives_the_first", || outlives_the_first(Mode::Host)),
    ("mode_tap_guest_gets_an_address", || gets_an_address(Mode::Tap)),
    ("mode_tap_guest_reaches_the_outside", || reaches_the_outside(Mode::Tap)),
    ("mode_tap_guest_is_reached_from_outside", || is_reached_from_outside(Mode::Tap)),
    ("mode_tap_guest_is_reached_by_the_host", || is_reached_by_the_host(Mode::Tap)),
    ("mode_tap_guests_reach_each_other", || reach_each_other(Mode::Tap)),
    ("mode_tap_has_ipv6", || has_ipv6(Mode::Tap)),
    ("mode_tap_passes_packets_of_9000_bytes", || passes_9000_bytes(Mode::Tap)),
    ("mode_tap_second_vm_outlives_the_first", || outlives_the_first(Mode::Tap)),
    ("mode_ovs_guest_gets_an_address", || gets_an_address(Mode::Ovs)),
    ("mode_ovs_guest_reaches_the_outside", || reaches_the_outside(Mode::Ovs)),
    ("mode_ovs_guest_is_reached_from_outside", || is_reached_from_outside(Mode::Ovs)),
    ("mode_ovs_guest_is_reached_by_the_host", || is_reached_by_the_host(Mode::Ovs)),
    ("mode_ovs_guests_reach_each_other", || reach_each_other(Mode::Ovs)),
    ("mode_ovs_has_ipv6", || has_ipv6(Mode::Ovs)),
    ("mode_ovs_passes_packets_of_9000_bytes", || passes_9000_bytes(Mode::Ovs)),
    ("mode_ovs_second_vm_outlives_the_first", || outlives_the_first(Mode::Ovs)),
];

/// Cases for kernels whose bridges have VLANs. They also run in an emulated machine, so each one checks all that it can
/// at once.
pub(crate) const VLAN_CASES: &[Case] = &[
    ("mode_vlan_guest_gets_an_address", || gets_an_address(Mode::Vlan)),
    ("mode_vlan_guests_reach_outside_host_and_each_other_over_ipv4_and_ipv6_and_outlive_each_other", in_a_vlan),
    ("mode_vlan_passes_packets_of_9000_bytes", || passes_9000_bytes(Mode::Vlan)),
];

/// The modes of a card.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// On a bridge of the host.
    Bridge,
    /// On a bridge of the host, in VLAN 100, which is tagged on the uplink.
    Vlan,
    /// On an existing tap, on a bridge.
    Tap,
    /// On an Open vSwitch bridge, whose own interface is the host's.
    Ovs,
    Nat,
    Host,
}

impl Mode {
    /// True if guests share a network with the outside.
    fn is_flat(self) -> bool {
        matches!(self, Self::Bridge | Self::Vlan | Self::Tap | Self::Ovs)
    }
}

/// Addresses of machines on a flat network: outside, host, and the guests.
const OUTSIDE: &str = "192.0.2.1";
const HOST: &str = "192.0.2.3";
const GUESTS: [&str; 2] = ["192.0.2.5", "192.0.2.6"];
const OUTSIDE6: &str = "2001:db8::1";
const HOST6: &str = "2001:db8::3";
const GUESTS6: [&str; 2] = ["2001:db8::5", "2001:db8::6"];

/// The outside of a host with addresses of its own for guests.
const WORLD: &str = "198.51.100.1";
const UPLINK: &str = "198.51.100.2";

/// A host with VMs, each with its guest and the guest's address.
struct Scene {
    mode: Mode,
    outside: Namespace,
    host: Namespace,
    vms: Vec<(Vmm, Namespace, String)>,
    /// Dropped after all others.
    switch: Option<Switch>,
}

impl Scene {
    /// A host with an outside, all links with `mtu`.
    fn new(mode: Mode, mtu: u16) -> Self {
        sh("ip link set lo up");
        let (outside, switch) = if mode.is_flat() {
            flat(mode, mtu)
        } else {
            let world = Namespace::behind("up0", &format!("{WORLD}/24"), &format!("{UPLINK}/24"));
            sh(&format!("ip route add default via {WORLD}"));
            sh(&format!("ip link set up0 mtu {mtu}"));
            (world, None)
        };
        outside.sh(&format!("ip link set eth0 mtu {mtu}"));
        Self { mode, outside, host: Namespace::at("/proc/self/ns/net"), vms: Vec::new(), switch }
    }

    /// A host with VMs, whose guests have their addresses.
    fn with_vms(mode: Mode, count: usize) -> Self {
        let mut scene = Self::new(mode, 1500);
        for _ in 0..count {
            scene.start("");
            scene.configure();
        }
        scene
    }

    /// Starts a VM with these further keys.
    fn start(&mut self, keys: &str) {
        let idx = self.vms.len();
        let spec = match self.mode {
            Mode::Bridge => format!("bridge=br0{keys}"),
            Mode::Vlan => format!("bridge=br0,vlan=100{keys}"),
            Mode::Tap => format!("tap=tap{idx}{keys}"),
            Mode::Ovs => format!("ovs=b0{keys}"),
            // The guests connect to the host, too.
            Mode::Nat => format!("nat,reach=world+private+host{keys}"),
            Mode::Host => format!("host{keys}"),
        };
        let mut command = itself(&["vmm", &format!("vm{idx}"), &spec]);
        command.env("GUESTS", "all");
        if let Some(switch) = &self.switch {
            switch.at_home(&mut command);
        }
        let vmm = Vmm::from_command(command);
        let tap = vmm.taps().remove(0);
        let guest = vmm.guest();
        let address = if self.mode.is_flat() { GUESTS[idx].to_owned() } else { lease(&tap) };
        self.vms.push((vmm, guest, address));
    }

    /// Configures the last guest's address, as DHCP would.
    fn configure(&self) {
        let (_, guest, address) = self.vms.last().unwrap();
        if self.mode.is_flat() {
            guest.sh(&format!("ip addr add {address}/24 dev eth0"));
        } else {
            configure(guest, address, &self.gateway());
        }
    }

    fn guest(&self, idx: usize) -> (&Namespace, &str) {
        let (_, guest, address) = &self.vms[idx];
        (guest, address)
    }

    /// The host's address on the guests' network.
    fn gateway(&self) -> String {
        let (_, _, address) = &self.vms[0];
        if self.mode.is_flat() { HOST.to_owned() } else { format!("{}.1", address.rsplit_once('.').unwrap().0) }
    }

    /// An address beyond the host that guests can reach, or else the host's.
    fn farthest(&self) -> String {
        match self.mode {
            Mode::Nat => WORLD.to_owned(),
            Mode::Host => self.gateway(),
            _ => OUTSIDE.to_owned(),
        }
    }

    fn stop(self) {
        for (vmm, ..) in self.vms {
            vmm.stop();
        }
        assert!(!names().iter().any(|name| name.starts_with("vmtap") || name.starts_with("mv")), "{:?}", names());
        assert!(self.switch.is_none_or(|switch| switch.ports() == "up0"), "ports of Open vSwitch");
    }
}

/// A switch with a machine behind its uplink; in mode `Vlan`, all of it is in VLAN 100.
fn flat(mode: Mode, mtu: u16) -> (Namespace, Option<Switch>) {
    let outside = Namespace::behind("up0", "203.0.113.1/30", "203.0.113.2/30");
    sh("ip addr flush dev up0");
    sh(&format!("ip link set up0 mtu {mtu}"));
    let switch = if mode == Mode::Ovs {
        Some(open_vswitch(&outside, mtu))
    } else {
        linux_bridge(mode, mtu);
        None
    };
    let (there, here) = match mode {
        Mode::Vlan => {
            for line in [
                "bridge vlan add dev up0 vid 100",
                "bridge vlan add dev br0 vid 100 self",
                "ip link add link br0 name lan100 type vlan id 100",
                "ip link set lan100 up",
            ] {
                sh(line);
            }
            outside.sh(&format!("ip link set eth0 mtu {mtu}"));
            outside.sh("ip link add link eth0 name lan100 type vlan id 100");
            outside.sh("ip link set lan100 up");
            ("lan100", "lan100")
        }
        Mode::Ovs => ("eth0", "b0"),
        _ => ("eth0", "br0"),
    };
    outside.sh(&format!("ip addr add {OUTSIDE}/24 dev {there}"));
    sh(&format!("ip addr add {HOST}/24 dev {here}"));
    outside.sh(&format!("sysctl -q net.ipv6.conf.{there}.disable_ipv6=0"));
    outside.sh(&format!("ip addr add {OUTSIDE6}/64 dev {there} nodad"));
    sh(&format!("sysctl -q net.ipv6.conf.{here}.disable_ipv6=0"));
    sh(&format!("ip addr add {HOST6}/64 dev {here} nodad"));
    if mode == Mode::Tap {
        for tap in ["tap0", "tap1"] {
            sh(&format!("ip tuntap add {tap} mode tap"));
            sh(&format!("ip link set {tap} mtu {mtu} master br0 up"));
        }
    }
    if mode != Mode::Ovs {
        until(|| link("br0")["operstate"] == "UP");
    }
    (outside, switch)
}

fn linux_bridge(mode: Mode, mtu: u16) {
    let filtering = if mode == Mode::Vlan { " vlan_filtering 1" } else { "" };
    sh(&format!("ip link add br0 type bridge mcast_snooping 0{filtering}"));
    sh("ip link set up0 master br0");
    sh(&format!("ip link set br0 mtu {mtu} up"));
}

fn open_vswitch(outside: &Namespace, mtu: u16) -> Switch {
    let switch = Switch::start();
    // A data path in user space gets frames as they are on the wire: it completes no checksums that a virtual card left
    // out,
    outside.sh("ethtool -K eth0 tx off");
    // and the host, which also gets the frames, must not answer in the switch's place.
    sh("sysctl -q net.ipv4.conf.all.arp_ignore=1");
    switch.ctl(&format!("add-port b0 up0 -- set Interface b0 mtu_request={mtu}")).expect("an uplink");
    sh("ip link set b0 up");
    until(|| link("b0")["mtu"] == mtu);
    switch
}

/// The lease in a tap's alias.
fn lease(tap: &str) -> String {
    let alias = link(tap)["ifalias"].as_str().unwrap().to_owned();
    alias.split("ip4=").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}

/// A DHCP server outside, for flat networks.
struct DhcpServer(Child);

impl DhcpServer {
    fn start(outside: &Namespace, device: &str) -> Self {
        let flags = [
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file=",
            "--user=root",
            "--port=0",
            "--bind-interfaces",
            "--leasefile-ro",
            "--log-facility=/dev/null",
            "--dhcp-authoritative",
            "--no-ping",
            "--dhcp-range=192.0.2.100,192.0.2.120,1h",
        ];
        let mut command = outside.command("dnsmasq");
        command.args(flags).arg(format!("--interface={device}")).stdin(Stdio::null());
        let server = Self(command.spawn().expect("dnsmasq"));
        until(|| outside.sh("cat /proc/net/udp").contains(":0043 "));
        server
    }
}

impl Drop for DhcpServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The output of a guest's DHCP client. The server sends the MTU as well.
fn ask_for_an_address(guest: &Namespace) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("say");
    // Configures nothing, and prints its environment: the server's options.
    std::fs::write(&script, "#!/bin/sh\nenv\n").expect("a script");
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("a script that runs");
    guest.sh(&format!("busybox udhcpc -f -q -n -t 10 -T 2 -O mtu -i eth0 -s {}", script.display()))
}

fn gets_an_address(mode: Mode) {
    let mut scene = Scene::new(mode, 1500);
    let device = if mode == Mode::Vlan { "lan100" } else { "eth0" };
    let _server = mode.is_flat().then(|| DhcpServer::start(&scene.outside, device));
    scene.start("");
    let text = ask_for_an_address(scene.guest(0).0);
    let expected = match mode {
        Mode::Host | Mode::Nat => format!("lease of {} obtained from {}", scene.guest(0).1, scene.gateway()),
        _ => "lease of 192.0.2.1".to_owned(),
    };
    assert!(text.contains(&expected), "{text}");
    scene.stop();
}

fn reaches_the_outside(mode: Mode) {
    let scene = Scene::with_vms(mode, 1);
    ask_outside(&scene);
    scene.stop();
}

fn is_reached_from_outside(mode: Mode) {
    let scene = Scene::with_vms(mode, 1);
    ask_from_outside(&scene);
    scene.stop();
}

fn is_reached_by_the_host(mode: Mode) {
    let scene = Scene::with_vms(mode, 1);
    ask_by_host(&scene);
    scene.stop();
}

fn reach_each_other(mode: Mode) {
    let scene = Scene::with_vms(mode, 2);
    ask_each_other(&scene);
    scene.stop();
}

fn outlives_the_first(mode: Mode) {
    let mut scene = Scene::with_vms(mode, 2);
    end_the_first(&mut scene);
    scene.stop();
}

fn in_a_vlan() {
    let mut scene = Scene::with_vms(Mode::Vlan, 2);
    ask_outside(&scene);
    ask_from_outside(&scene);
    ask_by_host(&scene);
    ask_each_other(&scene);
    ask_over_ipv6(&scene);
    end_the_first(&mut scene);
    scene.stop();
}

/// Connects over TCP and UDP, and expects the server to see the source address `seen`.
fn ask(from: &Namespace, to: &str, seen: &str) {
    let seen = Some(seen.parse().unwrap());
    assert_eq!([ask_tcp(from, to), ask_udp(from, to)], [seen; 2], "{to}");
}

fn ask_outside(scene: &Scene) {
    let (guest, address) = scene.guest(0);
    echo(&scene.outside, 7);
    ask(guest, &format!("{}:7", scene.farthest()), address);
}

fn ask_from_outside(scene: &Scene) {
    let (guest, address) = scene.guest(0);
    echo(guest, 8);
    ask(&scene.outside, &format!("{address}:8"), OUTSIDE);
}

/// The host connects to the guest, and the guest to the host.
fn ask_by_host(scene: &Scene) {
    let (guest, address) = scene.guest(0);
    echo(guest, 9);
    ask(&scene.host, &format!("{address}:9"), &scene.gateway());
    echo(&scene.host, 9);
    ask(guest, &format!("{}:9", scene.gateway()), address);
}

fn ask_each_other(scene: &Scene) {
    let guests = [scene.guest(0), scene.guest(1)];
    guests.iter().for_each(|(guest, _)| echo(guest, 10));
    for ((guest, own), (_, other)) in [(guests[0], guests[1]), (guests[1], guests[0])] {
        ask(guest, &format!("{other}:10"), own);
    }
}

/// Two VMs have different addresses, and the end of one leaves the other's network in place.
fn end_the_first(scene: &mut Scene) {
    let [first, second] = [0, 1].map(|idx| scene.guest(idx).1.to_owned());
    assert_ne!(first, second);
    assert_ne!(mac(scene.guest(0).0), mac(scene.guest(1).0));
    let farthest = if scene.mode == Mode::Host { &scene.host } else { &scene.outside };
    echo(farthest, 11);
    let to = format!("{}:11", scene.farthest());
    for idx in [0, 1] {
        assert!(ask_tcp(scene.guest(idx).0, &to).is_some());
    }
    let (vmm, ..) = scene.vms.remove(0);
    vmm.stop();
    assert!(ask_tcp(scene.guest(0).0, &to).is_some());
    assert!(is_silent(scene.guest(0).0, &format!("{first}:11")));
}

fn has_ipv6(mode: Mode) {
    let mut scene = Scene::new(mode, 1500);
    for _ in 0..2 {
        scene.start(if mode.is_flat() { "" } else { ",ipv6=on" });
    }
    ask_over_ipv6(&scene);
    scene.stop();
}

/// Guests have an IPv6 address, by hand or by an advertisement. They reach each other, the host and the outside, and
/// are reached by them.
fn ask_over_ipv6(scene: &Scene) {
    for (idx, own) in GUESTS6.iter().enumerate() {
        let (guest, _) = scene.guest(idx);
        guest.sh("sysctl -q net.ipv6.conf.eth0.disable_ipv6=0");
        if scene.mode.is_flat() {
            guest.sh(&format!("ip addr add {own}/64 dev eth0 nodad"));
        }
    }
    let own = |idx: usize| global(scene.guest(idx).0);
    until(|| own(0).is_some() && own(1).is_some());
    let (guest, other) = (scene.guest(0).0, own(1).unwrap());
    guest.sh(&format!("ping -6 -c 1 -W 5 {other}"));
    if scene.mode.is_flat() {
        guest.sh(&format!("ping -6 -c 1 -W 5 {OUTSIDE6}"));
        guest.sh(&format!("ping -6 -c 1 -W 5 {HOST6}"));
        scene.outside.sh(&format!("ping -6 -c 1 -W 5 {other}"));
    } else {
        guest.sh("ping -6 -c 1 -W 5 fe80::1%eth0");
    }
    sh(&format!("ping -6 -c 1 -W 5 {other}"));
}

/// A guest's IPv6 address beyond the link, once duplicate address detection has passed.
fn global(guest: &Namespace) -> Option<String> {
    let text = guest.sh("ip -6 -o addr show dev eth0 scope global -tentative");
    let address = text.split_whitespace().skip_while(|word| *word != "inet6").nth(1)?;
    Some(address.split('/').next()?.to_owned())
}

fn passes_9000_bytes(mode: Mode) {
    let mut scene = Scene::new(mode, 9000);
    // A network without a way out has no link to take its MTU from.
    let keys = match mode {
        Mode::Host => ",mtu=9000,ipv6=on",
        Mode::Nat => ",ipv6=on",
        _ => "",
    };
    for _ in 0..2 {
        scene.start(keys);
        let (guest, _) = scene.guest(scene.vms.len() - 1);
        guest.sh("ip link set eth0 mtu 9000");
        if !mode.is_flat() {
            let told = ask_for_an_address(guest);
            assert!(told.contains("mtu=9000"), "{told}");
            guest.sh("sysctl -q net.ipv6.conf.eth0.mtu=1280");
            guest.sh("sysctl -q net.ipv6.conf.eth0.disable_ipv6=0");
            until(|| guest.sh("sysctl -n net.ipv6.conf.eth0.mtu").trim() == "9000");
        }
        scene.configure();
    }
    let (guest, address) = scene.guest(0);
    // 9000 bytes with the headers of IPv4 and ICMP, never fragmented.
    let ping = |to: &str| format!("ping -c 1 -W 5 -M do -s 8972 {to}");
    for to in [scene.farthest().as_str(), &scene.gateway(), scene.guest(1).1] {
        guest.sh(&ping(to));
    }
    sh(&ping(address));
    assert!(!guest.attempt(&format!("ping -c 1 -W 1 -M do -s 8973 {}", scene.gateway())).0);
    scene.stop();
}

/// The address of a guest's card.
fn mac(guest: &Namespace) -> String {
    let text = guest.sh("ip -o link show dev eth0");
    text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}
