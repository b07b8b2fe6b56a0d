//! A card on Open vSwitch as distributions run it, with the data path of the kernel: the bridge's network in a VLAN,
//! large packets, and a policy that holds.

use super::Scenario;
use crate::lan::sh;
use crate::stage::Stage;
use std::net::TcpListener;
use std::process::{Child, Command};

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario { name: "ovs::a_guest_in_a_vlan_has_the_network_that_its_policy_lets_it_have", run: guest_in_a_vlan }];

/// Addresses of the host, of a machine outside and of the guest.
const HOST: [&str; 2] = ["10.76.0.1", "fd00:76::1"];
const OUTSIDE: [&str; 2] = ["10.76.0.2", "fd00:76::2"];
const GUEST: [&str; 2] = ["10.76.0.9", "fd00:76::9"];

/// The port that the guest may send to on the host, and one that it may not.
const OPEN_PORT: u16 = 26;
const CLOSED_PORT: u16 = 25;

/// The host may ping the guest, and everybody use a port of it.
const POLICY: &str = r#"
ingress = [{ protocol = "icmp", source = ["10.76.0.1", "fd00:76::1"] }, { protocol = "tcp", ports = 4000 }]
egress = [{ protocol = "tcp", ports = 25, action = "drop" }]
"#;

/// Open vSwitch with bridge `sw`, whose host, uplink and DHCP server are in VLAN 100, and a machine behind the uplink.
struct Switch {
    outside: Child,
    dnsmasq: Child,
}

impl Switch {
    fn start() -> Self {
        // A folder of this scenario's own in the place where everybody looks.
        sh("modprobe openvswitch; mkdir -p /run/openvswitch; mount -t tmpfs openvswitch /run/openvswitch; cd /run/openvswitch
            ovsdb-tool create conf.db /usr/share/openvswitch/vswitch.ovsschema
            ovsdb-server --remote=punix:db.sock --detach --pidfile --log-file=/dev/null conf.db >/dev/null 2>&1
            ovs-vsctl --no-wait init
            ovs-vswitchd unix:db.sock --detach --pidfile --log-file=/dev/null >/dev/null 2>&1");
        let outside = Command::new("unshare").args(["--net", "sleep", "3600"]).spawn().expect("a namespace");
        sh(&format!(
            "timeout 20 sh -c 'until ip link add up0 mtu 9000 type veth peer name eth0 mtu 9000 netns {} 2>/dev/null; do sleep 0.02; done'
             ip link set up0 up
             ovs-vsctl add-br sw -- set Port sw tag=100 -- add-port sw up0 tag=100 -- set Interface sw mtu_request=9000
             ip addr add {}/24 dev sw; ip addr add {}/64 dev sw nodad; ip link set sw up",
            outside.id(),
            HOST[0],
            HOST[1]
        ));
        let mut dnsmasq = Command::new("dnsmasq");
        dnsmasq
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--port=0"])
            .args(["--bind-interfaces", "--interface=sw", "--leasefile-ro", "--log-facility=/dev/null", "--no-ping"])
            .arg("--dhcp-authoritative")
            .arg(format!("--dhcp-range={0},{0},1h", GUEST[0]));
        let switch = Self { outside, dnsmasq: dnsmasq.spawn().expect("dnsmasq") };
        switch.outside(&format!(
            "ip addr add {}/24 dev eth0; ip addr add {}/64 dev eth0 nodad; ip link set eth0 up",
            OUTSIDE[0], OUTSIDE[1]
        ));
        switch
    }

    /// The output of a shell command on the machine outside.
    fn outside(&self, line: &str) -> String {
        sh(&format!("nsenter --net=/proc/{}/ns/net sh -ec '{line}'", self.outside.id()))
    }

    /// All that a VM changes.
    fn state() -> String {
        sh("ip -o link; ovs-vsctl show; nft list ruleset")
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for child in [&mut self.outside, &mut self.dnsmasq] {
            // Nothing to do for one that has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn guest_in_a_vlan(stage: &Stage) {
    let switch = Switch::start();
    let before = Switch::state();
    let policy = stage.file("policy.toml");
    std::fs::write(&policy, POLICY).expect("a policy");
    let listen = |port| TcpListener::bind((HOST[0], port)).expect("a port");
    let (_closed, open) = (listen(CLOSED_PORT), listen(OPEN_PORT));
    let ([host, host6], [outside, outside6], [address, address6]) = (HOST, OUTSIDE, GUEST);

    let vm = stage
        .vm()
        .name("web")
        .net("ovs=sw,vlan=100,iface-id=web-0")
        .flag("--policy", policy.display())
        .script(&format!(
            "echo address=$(ip -4 -o addr show dev eth0 | sed 's/.*inet //; s,/.*,,')
             echo mtu=$(cat /sys/class/net/eth0/mtu)
             ip -6 addr add {address6}/64 dev eth0
             until ip -6 addr show dev eth0 | grep {address6} | grep -vq tentative; do sleep 0.1; done
             for to in {host} {outside} {host6} {outside6} '-s 8900 {outside}' '-s 8900 {outside6}'; do
                 ping -c 1 -W 5 $to >/dev/null; echo \"ping $to=$?\"
             done
             nc -w 2 {host} {CLOSED_PORT} </dev/null >/dev/null; echo closed=$?
             echo good morning | nc -w 9 {host} {OPEN_PORT} >/dev/null; echo open=$?
             echo heard=$(nc -l -p 4000)"
        ))
        .start();
    assert_eq!((vm.value("address").as_str(), vm.value("mtu").as_str()), (address, "9000"));
    let port = sh("ovs-vsctl --bare --columns=name find Interface external_ids:iface-id=web-0").trim().to_owned();
    assert_eq!(sh(&format!("ovs-vsctl get Port {port} tag")).trim(), "100");
    for to in [host, outside, host6, outside6, &format!("-s 8900 {outside}"), &format!("-s 8900 {outside6}")] {
        assert_eq!(vm.value(&format!("ping {to}")), "0", "a ping to {to}");
    }
    assert_ne!(vm.value("closed"), "0", "a connection that the policy forbids");
    drop(open.accept().expect("the guest connects"));
    assert_eq!(vm.value("open"), "0", "one that it does not");

    // Whole: with the headers of IP and ICMP 9000 bytes.
    sh(&format!("ping -c 1 -W 5 -M do -s 8972 {address}; ping -c 1 -W 5 -M do -s 8952 {address6}"));
    for to in [address, address6] {
        switch.outside(&format!("ping -c 1 -W 1 {to} >/dev/null && exit 1 || true"));
    }
    let counters = sh("nft list counters table netdev minivmm-web/policy0");
    switch.outside(&format!(
        "timeout 60 sh -c \"until echo good evening | busybox nc -w 5 {address} 4000; do sleep 0.2; done\""
    ));
    assert_eq!(vm.value("heard"), "good evening");
    assert_eq!(vm.wait_exit(), 0, "exit code of minivmm");
    println!("{address} and {address6} in VLAN 100 of sw with packets of 9000 bytes; {counters}");
    for reason in ["ingress", "egress"] {
        let counter = counters.split(&format!("policy-{reason} {{")).nth(1).unwrap_or_default();
        assert!(
            counter.contains("packets ") && !counter.trim_start().starts_with("packets 0 "),
            "{reason}: {counters}"
        );
    }
    assert_eq!(Switch::state(), before, "the host after the guest");
}
