//! A machine, not a VM, behind the uplink of a bridge of the host.

use net::MacAddr;
use serde_json::Value;

use crate::guest::Namespace;
use crate::lan::{link, sh, until};

/// `br0` with a machine behind its uplink `up0`, which has `192.0.2.1/24` and `2001:db8::1/64`. The bridge has learned
/// its port.
pub(crate) fn machine_on_bridge() -> Namespace {
    let machine = Namespace::behind("up0", "192.0.2.1/24", "198.51.100.1/30");
    for line in [
        "ip addr flush dev up0",
        "ip link add br0 type bridge mcast_snooping 0",
        "ip link set br0 up",
        "ip link set up0 master br0",
    ] {
        sh(line);
    }
    until(|| link("br0")["operstate"] == "UP");
    give6(&machine, "2001:db8::1");
    // The bridge learns the port from the machine's packets, whenever they come: have it send first.
    let mac = mac(&machine).to_string();
    let socket = machine.within(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.send_to(b"?", "192.0.2.99:9").unwrap();
    until(|| sh("bridge fdb show br br0").contains(&mac));
    machine
}

/// Gives a namespace's card an IPv6 address, with IPv6 turned on, which this process turns off for new cards.
pub(crate) fn give6(namespace: &Namespace, address: &str) {
    namespace.sh("sysctl -q net.ipv6.conf.eth0.disable_ipv6=0");
    namespace.sh(&format!("ip addr add {address}/64 dev eth0 nodad"));
}

/// The Ethernet address of a namespace's card.
pub(crate) fn mac(namespace: &Namespace) -> MacAddr {
    let links: Value = serde_json::from_str(&namespace.sh("ip -j link show dev eth0")).unwrap();
    links[0]["address"].as_str().unwrap().parse().unwrap()
}
