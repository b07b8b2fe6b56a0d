//! A plan's promises while the VM runs: other programs break them, and the keeper restores them or reports those that
//! it cannot keep.

use std::os::unix::fs::PermissionsExt;

use net::Request;
use net::doctor::{Level, examine};

use crate::Case;
use crate::coexist::{docker_rules, firewalld_starts, iptables_rules, start_docker, with_own};
use crate::guest::{Namespace, ask_tcp, configure, echo, is_silent, send_out};
use crate::lan::{bridge_with_uplink, empty_bridge, link, sh, until};
use crate::nat::{address, gateway, world};
use crate::vmm::Vmm;

pub(crate) const CASES: &[Case] = &[
    ("kept_tap_is_put_back_however_often_it_is_taken_off", tap_taken_off),
    ("kept_tap_is_put_back_at_once_on_a_new_bridge", new_bridge),
    ("kept_port_settings_and_mtu_are_restored", port_settings),
    ("kept_uplink_of_a_bridge_of_ours_is_put_back", uplink_taken_off),
    ("kept_mirror_goes_on_when_its_interface_comes_back", mirror_comes_back),
    ("kept_gateway_addresses_survive_a_bridge_that_goes_down", bridge_down),
    ("kept_gateway_addresses_that_are_deleted_are_put_back", addresses_deleted),
    ("kept_rules_come_and_go_with_docker", docker_comes_and_goes),
    ("kept_rules_are_put_back_into_a_flushed_docker_chain", docker_flushed),
    ("kept_rules_leave_later_container_networks_to_docker", docker_network_later),
    ("kept_firewall_that_begins_to_drop_is_named_once", table_drops),
    ("kept_firewall_reload_of_firewalld_is_named", firewalld_reloads),
    ("kept_firewall_of_ufw_is_named_when_it_is_enabled", ufw_enabled),
    ("kept_firewall_that_drops_bridged_frames_is_named", bridged),
    ("kept_mtu_follows_the_uplink", mtu_follows),
    ("kept_promises_of_one_vm_are_not_looked_at_when_others_come_and_go", others_come_and_go),
];

/// Bridge and tap of the first card.
fn is_attached() -> bool {
    link("vmtap0")["master"] == "br0"
}

fn take_off() {
    sh("ip link set vmtap0 nomaster");
}

/// Stops a VMM and returns its and its keeper's log.
fn log_of(mut vmm: Vmm) -> String {
    assert_eq!(vmm.order("stop"), "stopped");
    vmm.end()
}

/// The lines of a log with this text.
fn count(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

fn tap_taken_off() {
    bridge_with_uplink("br0");
    let vmm = Vmm::start("web", &["bridge=br0"]);
    for _ in 0..19 {
        take_off();
        until(is_attached);
    }
    let log = log_of(vmm);
    assert!(log.contains("again and again"), "{log}");
    // Persistent interference does not fill the log.
    assert!(log.lines().count() <= 18, "{log}");
}

fn new_bridge() {
    bridge_with_uplink("br0");
    let vmm = Vmm::start("web", &["bridge=br0"]);
    for _ in 0..16 {
        take_off();
        until(is_attached);
    }
    take_off();
    sh("ip link del br0");
    empty_bridge("br0");
    until(is_attached);
    // All is as at first: the keeper puts it back as often again.
    for _ in 0..15 {
        take_off();
        until(is_attached);
    }
    // Attaching it by hand resets the count, too.
    take_off();
    sh("ip link set vmtap0 master br0");
    take_off();
    until(is_attached);
    log_of(vmm);
}

fn port_settings() {
    bridge_with_uplink("br0");
    let vmm = Vmm::start("web", &["bridge=br0,antispoof=on,isolate=on"]);
    let before = link("vmtap0");
    let settings = |link: &serde_json::Value| {
        let port = &link["linkinfo"]["info_slave_data"];
        [&link["mtu"], &port["isolated"], &port["learning"], &port["flood"]].map(ToString::to_string)
    };
    let is_as_before = || settings(&link("vmtap0")) == settings(&before);
    for change in [
        "bridge link set dev vmtap0 isolated off",
        "bridge link set dev vmtap0 learning on",
        "bridge link set dev vmtap0 flood on",
        "ip link set vmtap0 mtu 1280",
    ] {
        sh(change);
        until(is_as_before);
    }
    let mac = sh("bridge fdb show dev vmtap0").lines().find(|line| line.contains("static")).unwrap().to_owned();
    let mac = mac.split(' ').next().unwrap();
    sh(&format!("bridge fdb del {mac} dev vmtap0 master"));
    until(|| sh("bridge fdb show dev vmtap0").lines().any(|line| line.contains(mac) && line.contains("static")));
    log_of(vmm);
}

fn uplink_taken_off() {
    let world = Namespace::behind("up0", "198.51.100.1/24", "198.51.100.2/24");
    sh("ip route add default via 198.51.100.1");
    let first = Vmm::start("db", &["bridge=lan,create=on,uplink=up0,move-addresses=on"]);
    // Restored by the second keeper, which found the bridge made.
    let vmm = Vmm::start("web", &["bridge=lan"]);
    first.stop();
    let is_on = || link("up0")["master"] == "lan" && addresses_of("lan").contains(&"198.51.100.2/24".to_owned());
    assert!(is_on());
    for _ in 0..2 {
        sh("ip link set up0 nomaster");
        until(is_on);
    }
    world.sh("ping -c 1 -W 5 198.51.100.2");
    // The uplink disappears, and comes back.
    drop(world);
    assert!(vmm.not_kept().contains("Uplink up0 of bridge lan is gone"));
    let world = Namespace::behind("up0", "198.51.100.1/24", "198.51.100.2/24");
    until(is_on);
    world.sh("ping -c 1 -W 5 198.51.100.2");
    let log = log_of(vmm);
    assert!(count(&log, "has been put back") >= 2, "{log}");
    assert_eq!(addresses_of("up0"), ["198.51.100.2/24"]);
}

/// Counters of the copies.
fn copied() -> String {
    let table = sh("nft list counters table netdev minivmm-web/mirror");
    table.lines().filter(|line| line.contains("packets")).collect()
}

fn mirror_comes_back() {
    let mon =
        || sh("ip link add mon0 type veth peer name mon1") + &sh("ip link set mon0 up") + &sh("ip link set mon1 up");
    bridge_with_uplink("br0");
    mon();
    let vmm = Vmm::start("web", &["bridge=br0,mirror=mon0"]);
    sh("ip link del mon0");
    assert_eq!(vmm.not_kept(), "Interface mon0 of mirror= is gone");
    mon();
    assert_eq!(vmm.not_kept(), "");
    let counted = || link_bytes("mon1");
    let before = counted();
    until(|| {
        send_out("peer0", &[&[0xff; 6][..], &[2, 0, 0, 0, 0, 7, 0x88, 0xb5], &[0; 50]].concat());
        counted() > before + 1000
    });
    assert!(!copied().is_empty());
    log_of(vmm);
}

/// Bytes that an interface has received.
fn link_bytes(name: &str) -> u64 {
    let text = sh(&format!("ip -s -j link show dev {name}"));
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    links[0]["stats64"]["rx"]["bytes"].as_u64().unwrap()
}

/// The addresses of a bridge of ours, in the order of the kernel.
fn addresses_of(bridge: &str) -> Vec<String> {
    let text = sh(&format!("ip -o addr show dev {bridge}"));
    let mut addresses: Vec<String> =
        text.lines().map(|line| line.split_whitespace().nth(3).unwrap().to_owned()).collect();
    addresses.sort();
    addresses
}

fn bridge_down() {
    let _world = world();
    let (vmm, _guest) = Vmm::start_with_guest("web", "nat,ipv6=on");
    let before = addresses_of("mvn-default");
    assert_eq!(before.len(), 3, "{before:?}");
    sh("ip link set mvn-default down");
    sh("ip link set mvn-default up");
    until(|| addresses_of("mvn-default") == before);
    log_of(vmm);
}

fn addresses_deleted() {
    let _world = world();
    // Restored also by the keeper that found the network made.
    let (first, _) = Vmm::start_with_guest("db", "nat,ipv6=on");
    let (vmm, guest) = Vmm::start_with_guest("web", "nat,ipv6=on");
    first.stop();
    let before = addresses_of("mvn-default");
    for address in &before {
        sh(&format!("ip addr del {address} dev mvn-default"));
        until(|| addresses_of("mvn-default") == before);
    }
    sh("ip addr flush dev mvn-default");
    until(|| addresses_of("mvn-default") == before);
    let address = address("vmtap1");
    configure(&guest, &address, &gateway(&address));
    guest.sh(&format!("ping -c 1 -W 5 {}", gateway(&address)));
    let log = log_of(vmm);
    assert!(log.contains("mvn-default had lost"), "{log}");
}

/// A VM with its guest, and the world.
struct Lab {
    world: Namespace,
    vmm: Vmm,
    guest: Namespace,
}

impl Lab {
    fn new() -> Self {
        let world = world();
        echo(&world, 7);
        let (vmm, guest) = Vmm::start_with_guest("web", "nat");
        let address = address("vmtap0");
        configure(&guest, &address, &gateway(&address));
        let lab = Self { world, vmm, guest };
        assert!(lab.leads_out());
        lab
    }

    fn leads_out(&self) -> bool {
        ask_tcp(&self.guest, "198.51.100.1:7").is_some()
    }

    fn is_cut_off(&self) -> bool {
        is_silent(&self.guest, "198.51.100.1:7")
    }

    /// Stops the VM, and returns its log.
    fn log(self) -> String {
        drop(self.world);
        log_of(self.vmm)
    }
}

/// The comments of our rules in Docker's chain.
fn admitted() -> usize {
    sh("iptables-save").matches("minivmm web mvn-default").count()
}

/// Stops Docker and removes its rules.
fn stop_docker() {
    for program in ["iptables", "ip6tables"] {
        sh(&format!("{program} -w -P FORWARD ACCEPT"));
        sh(&format!("{program} -w -F"));
        sh(&format!("{program} -w -X"));
    }
}

fn docker_comes_and_goes() {
    let lab = Lab::new();
    start_docker();
    let placed = || admitted() == 3;
    until(placed);
    assert!(lab.leads_out());
    stop_docker();
    assert!(lab.leads_out());
    docker_rules();
    until(placed);
    assert!(lab.leads_out());
    let (docker, log) = (sh("iptables-save"), lab.log());
    assert_eq!(count(&log, "DOCKER-USER"), 2, "{log}");
    // The VM removes its own rules, and no others.
    assert_eq!(admitted(), 0);
    let others = |text: &str| text.lines().filter(|line| line.starts_with("-A") && !line.contains("minivmm")).count();
    assert_eq!(others(&docker), others(&sh("iptables-save")));
}

fn docker_flushed() {
    let lab = Lab::new();
    start_docker();
    until(|| admitted() == 3);
    let before = iptables_rules();
    sh("iptables -w -F DOCKER-USER");
    sh("iptables -w -A DOCKER-USER -j RETURN");
    until(|| admitted() == 3);
    assert!(lab.leads_out());
    // Placed before the rules that leave the chain.
    until(|| iptables_rules() == before);
    lab.log();
}

fn docker_network_later() {
    let lab = Lab::new();
    start_docker();
    until(|| admitted() == 3);
    sh("ip link add br-0123456789ab type bridge");
    sh("iptables -w -A DOCKER-BRIDGE -o br-0123456789ab -j DOCKER");
    until(|| sh("iptables -w -S DOCKER-USER").contains("-i mvn-default -o br-0123456789ab "));
    assert!(lab.leads_out());
    lab.log();
}

/// The problems and warnings that doctor finds without cards.
fn doctor() -> Vec<String> {
    let request = Request { vm_name: "another".to_owned(), vcpus: 1, cards: Vec::new(), policy: None, steering: None };
    let findings = examine(&request).unwrap().into_iter().filter(|finding| finding.level == Level::Problem);
    findings.map(|finding| finding.what).collect()
}

/// Waits for a report of the keeper on a promise that it cannot keep.
fn await_word(vmm: &Vmm, text: &str) {
    while !vmm.not_kept().contains(text) {}
}

fn table_drops() {
    let lab = Lab::new();
    sh("nft add table inet strict");
    sh("nft add chain inet strict gate { type filter hook forward priority 10 ; policy drop ; }");
    let words = "Chain gate of table inet strict drops traffic that network mvn-default forwards";
    await_word(&lab.vmm, words);
    assert!(lab.is_cut_off());
    // Other findings are left out: this machine may have bridged frames pass the rules as well.
    let about_chains: Vec<String> = doctor().into_iter().filter(|what| what.starts_with("Chain")).collect();
    assert_eq!(about_chains, ["Chain gate of table inet strict drops traffic that no rule accepts"]);
    // It is reported again after it was right in between.
    sh("nft insert rule inet strict gate iifname mvn-default accept");
    sh("nft insert rule inet strict gate oifname mvn-default accept");
    assert_eq!(lab.vmm.not_kept(), "");
    assert!(lab.leads_out());
    sh("nft flush chain inet strict gate");
    await_word(&lab.vmm, words);
    sh("nft add rule inet strict gate counter");
    sh("nft delete table inet strict");
    assert_eq!(lab.vmm.not_kept(), "");
    let log = lab.log();
    assert_eq!(count(&log, words), 2, "{log}");
}

fn firewalld_reloads() {
    with_own(&["/etc/firewalld"]);
    let lab = Lab::new();
    let words = "Chain filter_FORWARD of table inet firewalld drops traffic that network mvn-default forwards";
    let _firewalld = firewalld_starts();
    await_word(&lab.vmm, words);
    sh("firewall-cmd --zone=trusted --add-interface=mvn-default");
    assert_eq!(lab.vmm.not_kept(), "");
    assert!(lab.leads_out());
    // Only permanent configuration survives that.
    sh("firewall-cmd --complete-reload");
    await_word(&lab.vmm, words);
    assert!(lab.is_cut_off());
    lab.log();
}

fn ufw_enabled() {
    with_own(&["/etc/ufw", "/etc/default/ufw"]);
    let lab = Lab::new();
    sh("ufw --force enable");
    sh("ufw default deny routed");
    await_word(&lab.vmm, "Chain FORWARD of table ip filter drops traffic that network mvn-default forwards");
    assert!(lab.is_cut_off());
    sh("ufw route allow in on mvn-default");
    sh("ufw route allow out on mvn-default");
    assert_eq!(lab.vmm.not_kept(), "");
    assert!(lab.leads_out());
    sh("ufw reload");
    let log = lab.log();
    assert!(count(&log, "drops traffic that network") <= 2, "{log}");
}

fn bridged() {
    bridge_with_uplink("br0");
    let vmm = Vmm::start("web", &["bridge=br0"]);
    sh("nft add table bridge strict");
    sh("nft add chain bridge strict gate { type filter hook forward priority 0 ; policy drop ; }");
    await_word(&vmm, "Chain gate of table bridge strict drops traffic that bridge br0 forwards");
    sh("nft delete table bridge strict");
    assert_eq!(vmm.not_kept(), "");
    log_of(vmm);
}

/// The MTU that the guest is told by DHCP.
fn told_by_dhcp(guest: &Namespace) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (hook, told) = (folder.path().join("hook"), folder.path().join("told"));
    std::fs::write(&hook, format!("#!/bin/sh\n[ \"$1\" != bound ] || echo $mtu > {}\n", told.display())).unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    guest.sh(&format!("busybox udhcpc -i eth0 -f -n -q -t 20 -T 1 -s {} -O mtu", hook.display()));
    std::fs::read_to_string(told).unwrap().trim().to_owned()
}

/// A guest's IPv6 MTU, from router advertisements.
fn mtu6(guest: &Namespace) -> String {
    guest.sh("cat /proc/sys/net/ipv6/conf/eth0/mtu").trim().to_owned()
}

fn mtu_follows() {
    let _world = world();
    let (vmm, guest) = Vmm::start_with_guest("web", "nat,ipv6=on");
    let (fixed, other) = Vmm::start_with_guest("db", "nat,mtu=1450");
    until(|| guest.sh("ip -6 route").contains("default via fe80::1 "));
    assert_eq!((told_by_dhcp(&guest), mtu6(&guest)), ("1500".to_owned(), "1500".to_owned()));
    sh("ip link set up0 mtu 1400");
    until(|| mtu6(&guest) == "1400");
    assert_eq!(told_by_dhcp(&guest), "1400");
    // An MTU that the user asked for stays.
    assert_eq!(told_by_dhcp(&other), "1450");
    // A VPN, which takes all traffic with two routes.
    sh("ip link set up0 mtu 1500");
    sh("ip link add vpn0 mtu 1420 type veth peer name vpn1 mtu 1420");
    sh("ip link set vpn1 up");
    sh("ip link set vpn0 up");
    sh("ip route add 0.0.0.0/1 dev vpn0");
    sh("ip route add 128.0.0.0/1 dev vpn0");
    until(|| mtu6(&guest) == "1420");
    sh("ip link del vpn0");
    until(|| mtu6(&guest) == "1500");
    fixed.stop();
    let log = log_of(vmm);
    assert!(count(&log, "its guest is told") >= 3, "{log}");
}

/// A survey for each start of another VM would make n² surveys when n VMs start at once.
fn others_come_and_go() {
    let _world = world();
    let (vmm, _) = Vmm::start_with_guest("web", "nat");
    let come_and_go = |name: &str| Vmm::start_with_guest(name, "nat").0.stop();
    let woken = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", vmm.keeper())).unwrap();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        count.trim().parse::<u32>().unwrap()
    };
    // The first VM gives the keeper time to finish its own start.
    come_and_go("first");
    let before = woken();
    for idx in 0..16 {
        come_and_go(&format!("vm{idx}"));
    }
    let times = woken() - before;
    println!("a keeper was woken {times} times by 16 starts and ends of others");
    // Each start or end used to wake it 14 times.
    assert!(times < 16 * 6, "{times}");
    vmm.stop();
}
