//! Frames beyond 1500 bytes: segments that the other side cuts, as long as the guest wants them, and jumbo frames up to
//! the largest.

use super::Scenario;
use crate::lan::{Lan, sh};
use crate::stage::Stage;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "large::tcp_crosses_the_card_in_large_segments_unless_they_are_switched_off", run: segments },
    Scenario { name: "large::a_guest_has_the_mtu_of_its_card_and_moves_jumbo_frames", run: jumbo },
];

/// The amount that goes each way in each connection, in bytes.
pub(super) const AMOUNT: usize = 4 << 20;
/// The payload of a segment over Ethernet's usual MTU, with timestamps.
const SEGMENT: usize = 1448;
/// A jumbo frame's MTU, and the largest that a tap takes: 65535 bytes less the Ethernet header (drivers/net/tun.c).
const JUMBO: [usize; 2] = [9000, 65521];
/// Headers of IPv4 and ICMP.
const PING_HEADERS: usize = 28;
/// Addresses of the host and the guest; they have others of DHCP besides.
const HOST_V6: &str = "fd77::1";
const GUEST_V6: &str = "fd77::2";

fn segments(stage: &Stage) {
    let lan = Lan::new();
    sh(&format!("ip addr add {HOST_V6}/64 dev {} nodad", lan.bridge()));
    let listener = TcpListener::bind(("::", 0)).expect("a port");
    let (v4, port) = (lan.address(), port(&listener));
    let vm = stage
        .vm()
        .name("segments")
        .net(lan.net())
        .script(&format!(
            "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip addr add {GUEST_V6}/64 dev eth0
             trip() {{ nc $1 {port} </dev/null >/tmp/data; nc $1 {port} </tmp/data >/dev/null; }}
             trips() {{ trip {v4}; trip {HOST_V6}; }}
             trips; ethtool -K eth0 rx-gro-hw off tso off; trips
             ethtool -K eth0 tx off gro off rx off; trips; nc {v4} {port} </dev/null >/dev/null"
        ))
        .start();

    let data = data();
    let frames = |side: &str| -> usize {
        let counted: Value = serde_json::from_str(&sh(&format!("{} counters segments", stage.minivmm().display())))
            .expect("JSON from minivmm counters");
        counted["net0"][format!("{side}.0.frames")].as_u64().and_then(|n| n.try_into().ok()).expect("a count")
    };
    let mut before = [0, 0];
    for (state, large) in [("on", true), ("off", false), ("off, and checksums as well", false)] {
        for version in ["IPv4", "IPv6"] {
            there_and_back(&listener, &data, state);
            let after = ["rx", "tx"].map(frames);
            let moved = [after[0] - before[0], after[1] - before[1]];
            before = after;
            println!(
                "{AMOUNT} bytes each way over {version} with segments {state}: {} frames received, {} sent",
                moved[0], moved[1]
            );
            // Acknowledgements cross the other way; of frames no larger than a segment it takes as many as this.
            let cut = AMOUNT / SEGMENT;
            assert!(if large { moved[0] < cut } else { moved[0] >= cut }, "frames received, segments {state}");
            assert!(if large { moved[1] < cut } else { moved[1] >= cut }, "frames sent, segments {state}");
        }
    }
    drop(listener.accept().expect("the guest waits"));
    assert_eq!(vm.wait_exit(), 0);
}

fn jumbo(stage: &Stage) {
    let listener = TcpListener::bind(("0.0.0.0", 0)).expect("a port");
    let lans = JUMBO.map(|mtu| {
        let lan = Lan::new();
        sh(&format!(
            "for port in $(ls /sys/class/net/{0}/brif); do ip link set $port mtu {mtu}; done; ip link set {0} mtu {mtu}",
            lan.bridge()
        ));
        (mtu, lan)
    });
    let hosts = lans.each_ref().map(|(_, lan)| lan.address()).join(" ");
    let port = port(&listener);
    let mut vm = stage.vm();
    for (mtu, lan) in &lans {
        vm = vm.net(format!("{},mtu={mtu}", lan.net()));
    }
    let vm = vm
        .script(&format!(
            "for card in eth0 eth1; do
                 echo $card-mtu=$(cat /sys/class/net/$card/mtu)
                 echo $card-address=$(ip -4 -o addr show dev $card | sed 's/.*inet //; s,/.*,,')
             done
             for host in {hosts}; do
                 nc $host {port} </dev/null >/tmp/data; nc $host {port} </tmp/data >/dev/null
                 nc $host {port} </dev/null >/dev/null
             done"
        ))
        .start();
    let data = data();
    for (card, (mtu, _lan)) in ["eth0", "eth1"].into_iter().zip(&lans) {
        assert_eq!(vm.value(&format!("{card}-mtu")), mtu.to_string());
        there_and_back(&listener, &data, "jumbo frames");
        let address = vm.value(&format!("{card}-address"));
        let payload = mtu - PING_HEADERS;
        let ping = sh(&format!("ping -c 3 -i 0.2 -M do -s {payload} {address}"));
        let answers = ping.lines().find(|line| line.contains("transmitted")).unwrap_or_default();
        println!("MTU {mtu}: {AMOUNT} bytes each way; pings of {payload} bytes: {answers}");
        assert!(ping.contains(" 0% packet loss"), "{ping}");
        assert!(sh(&format!("ping -c 1 -W 1 -M do -s {} {address} 2>&1 || true", payload + 1)).contains("too long"));
        drop(listener.accept().expect("the guest waits"));
    }
    assert_eq!(vm.wait_exit(), 0);
}

/// Bytes that differ everywhere.
pub(super) fn data() -> Vec<u8> {
    sh(&format!("head -c {AMOUNT} /dev/urandom | base64 -w 0 | head -c {AMOUNT}")).into_bytes()
}

/// Sends to the guest, which sends it back.
pub(super) fn there_and_back(listener: &TcpListener, data: &[u8], what: &str) {
    let mut down = listener.accept().expect("the guest connects").0;
    down.write_all(data).expect("sending to the guest");
    down.shutdown(Shutdown::Write).expect("the end of what is sent");
    drop(down);
    let mut returned = Vec::new();
    listener.accept().expect("the guest connects back").0.read_to_end(&mut returned).expect("receiving from the guest");
    assert!(returned == data, "{what}: {} bytes came back, not those that were sent", returned.len());
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("the address of a bound socket").port()
}
