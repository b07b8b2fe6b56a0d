//! What a way out takes of the host, and what it leaves alone: forwarding of interfaces that come, go and are changed while VMs run.

use crate::Case;
use crate::guest::{Namespace, ask_tcp, configure, echo};
use crate::lan::{link, sh, until};
use crate::nat::{address, gateway, stop};
use crate::vmm::Vmm;

pub(crate) const CASES: &[Case] = &[
    ("forwarding_of_an_uplink_that_comes_after_the_start_is_switched_on_and_back", late),
    ("forwarding_of_a_second_uplink_that_comes_later_is_switched_on_and_back", second),
];

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
    let _world = crate::nat::world();
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
