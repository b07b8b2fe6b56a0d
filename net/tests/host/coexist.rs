//! `nat` beside other programs' packet filters: it works, or doctor names the reason and the command after which it
//! works.
//!
//! The programs are real: ufw, firewalld and iptables do here what they do on a host. Docker's rules are copies of
//! Docker's.

use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use net::Request;
use net::doctor::{Finding, Level, examine};
use nix::sched::{CloneFlags, unshare};

use crate::Case;
use crate::guest::{Namespace, ask_tcp, ask_udp, configure, echo, is_silent};
use crate::lan::{exists, sh, until};
use crate::nat::{address, gateway, stop, world};
use crate::vmm::Vmm;

pub(crate) const CASES: &[Case] = &[
    ("coexist_with_nobody", nobody),
    ("coexist_with_docker", docker),
    ("coexist_with_docker_and_a_rule_of_the_users", docker_user),
    ("coexist_with_docker_after_everybody_was_killed", docker_killed),
    ("coexist_with_docker_over_ipv6", docker_ip6),
    ("coexist_with_ufw", ufw),
    ("coexist_with_firewalld", firewalld),
    ("coexist_with_iptables_that_drop", iptables),
    ("coexist_with_legacy_iptables_that_drop", legacy_iptables),
    ("coexist_with_bridge_netfilter", bridge_nf),
    ("coexist_with_bridge_netfilter_and_docker", bridge_nf_docker),
    ("coexist_with_a_strict_return_path", return_path),
    ("coexist_with_a_table_that_drops", table_drops),
    ("coexist_with_a_table_that_ends_in_a_reject", table_rejects),
];

/// Programs that cases need and that some machines lack.
pub(crate) const PROGRAMS: &[(&str, &str)] = &[
    ("coexist_with_docker", "iptables"),
    ("end_by_sigkill_at_random", "iptables"),
    ("coexist_with_iptables", "iptables"),
    ("coexist_with_legacy_iptables", "iptables"),
    ("coexist_with_bridge_netfilter_and_docker", "iptables"),
    ("coexist_with_ufw", "ufw"),
    ("coexist_with_firewalld", "firewalld"),
    ("kept_rules", "iptables"),
    ("kept_firewall_reload_of_firewalld", "firewalld"),
    ("kept_firewall_of_ufw", "ufw"),
];

const SPEC: &str = "nat,forward=tcp:8080:80";

/// Doctor's problems and warnings.
fn troubles(spec: &str) -> Vec<Finding> {
    let cards = vec![spec.parse().unwrap()];
    let findings =
        examine(&Request { vm_name: "another".to_owned(), vcpus: 1, cards, policy: None, steering: None }).unwrap();
    findings.into_iter().filter(|finding| finding.level != Level::Fine).collect()
}

/// The only trouble, after running its fix.
fn fixed(level: Level, what: &str, fix: &str) {
    let found = troubles(SPEC);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].level, found[0].what.as_str(), found[0].fix.as_deref()), (level, what, Some(fix)));
    let status = Command::new("sh").args(["-c", fix]).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "{fix}");
    assert_eq!(troubles(SPEC), []);
}

/// The world, with an echo server.
fn answering() -> Namespace {
    let world = world();
    echo(&world, 7);
    world
}

/// A VM with its guest, and the world.
struct Lab {
    world: Namespace,
    vmm: Vmm,
    guest: Namespace,
    address: String,
}

impl Lab {
    fn new(world: Namespace) -> Self {
        let (vmm, guest) = Vmm::start_with_guest("web", SPEC);
        let address = address("vmtap0");
        configure(&guest, &address, &gateway(&address));
        echo(&guest, 80);
        Self { world, vmm, guest, address }
    }

    /// Traffic in every direction works.
    fn works(self) -> Namespace {
        let host = Some("198.51.100.2".parse().unwrap());
        assert_eq!(ask_tcp(&self.guest, "198.51.100.1:7"), host);
        assert_eq!(ask_udp(&self.guest, "198.51.100.1:7"), host);
        assert_eq!(ask_tcp(&self.world, "198.51.100.2:8080"), Some("198.51.100.1".parse().unwrap()));
        let gateway: IpAddr = gateway(&self.address).parse().unwrap();
        assert_eq!(ask_tcp(&Namespace::at("/proc/self/ns/net"), "127.0.0.1:8080"), Some(gateway));
        let (second, db) = Vmm::start_with_guest("db", "nat");
        let other = address("vmtap1");
        configure(&db, &other, &self::gateway(&other));
        echo(&db, 9);
        assert_eq!(ask_tcp(&self.guest, &format!("{other}:9")), Some(self.address.parse().unwrap()));
        assert_eq!(ask_tcp(&db, "198.51.100.2:8080"), Some(gateway));
        second.stop();
        self.vmm.stop();
        self.world
    }

    /// The guest has no way out. firewalld accepts translated traffic on its way in.
    fn reaches_nobody(self) -> Namespace {
        assert!(is_silent(&self.guest, "198.51.100.1:7"));
        self.stop()
    }

    /// No traffic passes in either direction.
    fn reaches_nobody_and_is_out_of_reach(self) -> Namespace {
        assert!(is_silent(&self.guest, "198.51.100.1:7"));
        assert!(is_silent(&self.world, "198.51.100.2:8080"));
        self.stop()
    }

    /// The keeper's log names the chain that drops, if the keeper could see it, and nothing else.
    fn stop(mut self) -> Namespace {
        assert_eq!(self.vmm.order("stop"), "stopped");
        let log = self.vmm.end();
        assert!(log.lines().all(|line| line.ends_with("drops traffic that network mvn-default forwards")), "{log}");
        self.world
    }
}

fn nobody() {
    let world = answering();
    assert_eq!(troubles(SPEC), []);
    Lab::new(world).works();
}

/// Docker's part of the tables, with a network of containers and a container on it.
pub(crate) fn start_docker() -> Namespace {
    let container = Namespace::behind("veth0", "172.17.0.2/16", "172.17.0.1/16");
    sh("ip addr flush dev veth0");
    sh("ip link add docker0 type bridge");
    sh("ip addr add 172.17.0.1/16 dev docker0");
    sh("ip link set docker0 up");
    sh("ip link set veth0 master docker0");
    container.sh("ip route add default via 172.17.0.1");
    docker_rules();
    container
}

/// Docker's rules alone.
pub(crate) fn docker_rules() {
    for program in ["iptables", "ip6tables"] {
        for chain in ["DOCKER-USER", "DOCKER-FORWARD", "DOCKER-CT", "DOCKER-BRIDGE", "DOCKER"] {
            sh(&format!("{program} -w -N {chain}"));
        }
        for rule in [
            "FORWARD -j DOCKER-USER",
            "FORWARD -j DOCKER-FORWARD",
            "DOCKER-FORWARD -j DOCKER-CT",
            "DOCKER-FORWARD -j DOCKER-BRIDGE",
            "DOCKER-FORWARD -i docker0 -j ACCEPT",
            "DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "DOCKER-BRIDGE -o docker0 -j DOCKER",
            "DOCKER ! -i docker0 -o docker0 -j DROP",
            "DOCKER-USER -j RETURN",
        ] {
            sh(&format!("{program} -w -A {rule}"));
        }
        sh(&format!("{program} -w -P FORWARD DROP"));
    }
}

/// The rules of both families as iptables prints them.
pub(crate) fn iptables_rules() -> String {
    sh("iptables-save")
        .lines()
        .chain(sh("ip6tables-save").lines())
        .filter(|line| !line.starts_with(['#', ':']))
        .collect()
}

fn docker() {
    let world = answering();
    let container = start_docker();
    let before = iptables_rules();
    assert_eq!(troubles(SPEC), []);
    let lab = Lab::new(world);
    let (ip, rules) = (&lab.address, sh("iptables -w -S DOCKER-USER"));
    let comment = "-m comment --comment \"minivmm web mvn-default\"";
    let expected = [
        "-N DOCKER-USER".to_owned(),
        format!("-A DOCKER-USER -i mvn-default -o docker0 {comment} -j RETURN"),
        format!("-A DOCKER-USER -s {ip}/32 -i mvn-default {comment} -j ACCEPT"),
        format!("-A DOCKER-USER -d {ip}/32 -o mvn-default {comment} -j ACCEPT"),
        "-A DOCKER-USER -j RETURN".to_owned(),
    ];
    assert_eq!(rules.lines().collect::<Vec<_>>(), expected);
    // Only Docker opens ports of a container.
    echo(&container, 7);
    assert!(is_silent(&lab.guest, "172.17.0.2:7"));
    lab.works();
    assert_eq!(iptables_rules(), before);
}

fn docker_user() {
    let world = answering();
    start_docker();
    sh("iptables -w -I DOCKER-USER -d 198.51.100.1 -p udp -j DROP");
    let before = iptables_rules();
    let lab = Lab::new(world);
    assert!(ask_tcp(&lab.guest, "198.51.100.1:7").is_some());
    assert_eq!(ask_udp(&lab.guest, "198.51.100.1:7"), None);
    // Rules of another program come and go meanwhile, and so change the place of ours.
    sh("iptables -w -D DOCKER-USER -d 198.51.100.1 -p udp -j DROP");
    sh("iptables -w -I DOCKER-USER -i nobody -j DROP");
    lab.works();
    sh("iptables -w -D DOCKER-USER -i nobody -j DROP");
    sh("iptables -w -I DOCKER-USER -d 198.51.100.1 -p udp -j DROP");
    assert_eq!(iptables_rules(), before);
}

fn docker_killed() {
    let _world = world();
    start_docker();
    let before = iptables_rules();
    let kill_both = |name: &str| {
        let mut vmm = Vmm::start(name, &["nat"]);
        vmm.guest();
        vmm.kill_keeper();
        assert_eq!(vmm.line(), "keeper gone");
        vmm.kill();
        assert!(iptables_rules().contains(&format!("minivmm {name} mvn-default")));
    };
    let other = Vmm::start("other", &["nat"]);
    // The next start of another VM, and of the same one.
    for next in ["db", "web"] {
        kill_both("web");
        let vmm = Vmm::start(next, &["nat"]);
        let owners = |name: &str| iptables_rules().matches(&format!("minivmm {name} ")).count();
        assert_eq!(["other", "web", "db"].map(owners), if next == "db" { [3, 0, 3] } else { [3, 3, 0] });
        stop(vmm);
    }
    kill_both("web");
    assert_eq!(net::gc::collect().unwrap().rules, 3);
    assert_eq!(iptables_rules().matches("minivmm other ").count(), 3);
    let mut other = other;
    other.guest();
    other.kill();
    assert_eq!(other.end(), "");
    assert_eq!(iptables_rules(), before);
}

fn docker_ip6() {
    let _world = world();
    start_docker();
    let before = iptables_rules();
    let spec = "nat,ipv6=on";
    assert_eq!(troubles(spec), []);
    let vmm = Vmm::start("web", &[spec]);
    let rules = sh("ip6tables -w -S DOCKER-USER");
    assert!(rules.contains("/64 -i mvn-default -m comment --comment \"minivmm web mvn-default\" -j ACCEPT"), "{rules}");
    stop(vmm);
    assert_eq!(iptables_rules(), before);
}

/// Gives this case its own copies of these directories and files.
pub(crate) fn with_own(paths: &[&str]) {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    sh("mount --make-rprivate /");
    sh("mount -t tmpfs none /run");
    for (idx, path) in paths.iter().enumerate() {
        let copy = format!("/run/own{idx}");
        sh(&format!("cp -a {path} {copy}"));
        sh(&format!("mount --bind {copy} {path}"));
    }
}

fn ufw() {
    with_own(&["/etc/ufw", "/etc/default/ufw"]);
    let world = answering();
    sh("ufw --force enable");
    sh("ufw default deny routed");
    let world = Lab::new(world).reaches_nobody_and_is_out_of_reach();
    let what = "Chain FORWARD of table ip filter drops traffic that no rule accepts";
    fixed(Level::Problem, what, "ufw route allow in on mvn-default && ufw route allow out on mvn-default");
    Lab::new(world).works();
}

/// A process that ends with the case.
pub(crate) struct Running(Child);

impl Running {
    fn start(program: &str, words: &[&str]) -> Self {
        Self(Command::new(program).args(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect(program))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts firewalld and its bus, and waits until it works. Its directory in /etc must be this case's own.
pub(crate) fn firewalld_starts() -> [Running; 2] {
    std::fs::create_dir_all("/run/dbus").unwrap();
    std::fs::create_dir_all("/run/firewalld").unwrap();
    let bus = Running::start(
        "dbus-daemon",
        &["--system", "--nofork", "--nopidfile", "--address=unix:path=/run/dbus/system_bus_socket"],
    );
    until(|| std::path::Path::new("/run/dbus/system_bus_socket").exists());
    let firewalld = Running::start("firewalld", &["--nofork", "--nopid"]);
    let state = || Command::new("firewall-cmd").arg("--state").output().is_ok_and(|output| output.status.success());
    until(state);
    [bus, firewalld]
}

fn firewalld() {
    with_own(&["/etc/firewalld"]);
    let world = answering();
    let _firewalld = firewalld_starts();
    let world = Lab::new(world).reaches_nobody();
    let what = "Chain filter_FORWARD of table inet firewalld drops traffic that no rule accepts";
    let fix = "firewall-cmd --zone=trusted --add-interface=mvn-default && \
               firewall-cmd --permanent --zone=trusted --add-interface=mvn-default";
    fixed(Level::Problem, what, fix);
    Lab::new(world).works();
}

fn iptables() {
    let world = answering();
    sh("iptables -w -P FORWARD DROP");
    sh("iptables -w -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    let world = Lab::new(world).reaches_nobody_and_is_out_of_reach();
    let what = "Chain FORWARD of table ip filter drops traffic that no rule accepts";
    let fix = "iptables -I FORWARD -i mvn-default -j ACCEPT && iptables -I FORWARD -o mvn-default -j ACCEPT";
    fixed(Level::Problem, what, fix);
    Lab::new(world).works();
}

fn legacy_iptables() {
    let world = answering();
    // More and more kernels are built without it.
    if !Command::new("iptables-legacy").arg("-S").output().is_ok_and(|output| output.status.success()) {
        return;
    }
    sh("iptables-legacy -w -P FORWARD DROP");
    sh("iptables-legacy -w -N DOCKER-USER");
    sh("iptables-legacy -w -A FORWARD -j DOCKER-USER");
    let world = Lab::new(world).reaches_nobody_and_is_out_of_reach();
    let what = "Chain FORWARD of iptables-legacy drops traffic that no rule accepts";
    let fix = "iptables-legacy -I DOCKER-USER -i mvn-default -j ACCEPT && \
               iptables-legacy -I DOCKER-USER -o mvn-default -j ACCEPT";
    fixed(Level::Problem, what, fix);
    Lab::new(world).works();
}

/// Has bridged frames pass the rules for routed packets; false where the kernel cannot.
fn set_bridge_nf(value: &str) -> bool {
    let path = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    std::fs::write(path, value).is_ok()
}

fn bridge_nf() {
    let world = answering();
    for value in ["1", "0"] {
        if !set_bridge_nf(value) {
            return;
        }
        assert_eq!(troubles(SPEC), []);
        let (vmm, guest) = Vmm::start_with_guest("self", "nat,forward=tcp:8088:80,isolate=on");
        let address = address("vmtap0");
        configure(&guest, &address, &gateway(&address));
        echo(&guest, 80);
        let own: IpAddr = gateway(&address).parse().unwrap();
        assert_eq!(ask_tcp(&guest, "198.51.100.2:8088"), Some(own), "bridge-nf-call-iptables={value}");
        // It does not hear its own frames, and finds its addresses free.
        let settled = || !guest.sh("ip -6 addr show dev eth0").contains("tentative");
        until(settled);
        assert!(!guest.sh("ip -6 addr show dev eth0").contains("dadfailed"));
        vmm.stop();
    }
    set_bridge_nf("1");
    Lab::new(world).works();
}

fn bridge_nf_docker() {
    if !set_bridge_nf("1") {
        return;
    }
    let world = answering();
    start_docker();
    let before = iptables_rules();
    for spec in [SPEC, "host"] {
        assert_eq!(troubles(spec), []);
    }
    Lab::new(world).works();
    // The rules also drop frames between guests of a network without a way out.
    let (first, web) = Vmm::start_with_guest("web", "host");
    let (second, db) = Vmm::start_with_guest("db", "host");
    let [address, other] = ["vmtap0", "vmtap1"].map(address);
    configure(&web, &address, &gateway(&address));
    configure(&db, &other, &gateway(&other));
    echo(&db, 9);
    assert!(ask_tcp(&web, &format!("{other}:9")).is_some());
    first.stop();
    second.stop();
    assert!(!exists("mvh-default"));
    assert_eq!(iptables_rules(), before);
}

fn return_path() {
    let world = answering();
    for scope in ["all", "default", "up0"] {
        sh(&format!("sysctl -q net.ipv4.conf.{scope}.rp_filter=1"));
    }
    assert_eq!(troubles(SPEC), []);
    let world = Lab::new(world).works();
    // Another way out: packets arrive by it, and replies leave by the first.
    world.sh(&format!("ip link add eth1 type veth peer name up1 netns {}", std::process::id()));
    for line in [
        "ip link set eth1 up",
        "ip addr add 203.0.113.1/24 dev eth1",
        "ip addr add 192.0.2.9/32 dev lo",
        "ip route add 203.0.113.2 dev eth1 src 192.0.2.9",
        "sysctl -q net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0",
    ] {
        world.sh(line);
    }
    sh("ip addr add 203.0.113.2/24 dev up1");
    sh("ip link set up1 up");
    sh("ip route add default via 203.0.113.1 metric 200");
    let lab = Lab::new(world);
    assert!(is_silent(&lab.world, "203.0.113.2:8080"));
    let found = troubles(SPEC);
    let expected = ["up0", "up1"].map(|uplink| {
        let what =
            format!("{uplink} is one of 2 ways out, and accepts only packets whose answers leave by it (rp_filter=1)");
        let fix = format!("sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{uplink}.rp_filter=2");
        (Level::Warning, what, Some(fix))
    });
    assert_eq!(found.iter().map(|it| (it.level, it.what.clone(), it.fix.clone())).collect::<Vec<_>>(), expected);
    for (_, _, fix) in expected {
        sh(&fix.unwrap());
    }
    assert_eq!(troubles(SPEC), []);
    assert_eq!(ask_tcp(&lab.world, "203.0.113.2:8080"), Some("192.0.2.9".parse().unwrap()));
    lab.works();
}

fn table_drops() {
    let world = answering();
    sh("nft add table inet strict");
    sh("nft add chain inet strict gate { type filter hook forward priority 10 ; policy drop ; }");
    sh("nft add rule inet strict gate ct state established,related accept");
    let world = Lab::new(world).reaches_nobody_and_is_out_of_reach();
    let what = "Chain gate of table inet strict drops traffic that no rule accepts";
    let fix = "nft insert rule inet strict gate iifname mvn-default accept && \
               nft insert rule inet strict gate oifname mvn-default accept";
    fixed(Level::Problem, what, fix);
    Lab::new(world).works();
}

fn table_rejects() {
    let world = answering();
    sh("nft add table ip strict");
    sh("nft add chain ip strict gate { type filter hook forward priority -10 ; }");
    sh("nft add rule ip strict gate counter reject");
    let world = Lab::new(world).reaches_nobody_and_is_out_of_reach();
    let what = "Chain gate of table ip strict drops traffic that no rule accepts";
    let fix = "nft insert rule ip strict gate iifname mvn-default accept && \
               nft insert rule ip strict gate oifname mvn-default accept";
    fixed(Level::Problem, what, fix);
    Lab::new(world).works();
}
