//! Frames beyond 1500 bytes: segments that the other side cuts, as long as the guest wants them, and jumbo frames.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};

use serde_json::Value;

use super::Story;
use crate::lan::{Lan, sh};
use crate::stage::Stage;

pub(super) const STORIES: &[Story] = &[
    Story { name: "large::tcp_crosses_the_card_in_large_segments_unless_they_are_switched_off", tell: segments },
    Story { name: "large::a_guest_has_the_mtu_of_its_card_and_moves_jumbo_frames", tell: jumbo },
];

/// What goes each way in each connection, in bytes.
const AMOUNT: usize = 4 << 20;
/// What a segment carries over Ethernet's usual MTU, with timestamps.
const SEGMENT: usize = 1448;
/// A jumbo frame's MTU, and what a ping of that size carries.
const JUMBO: usize = 9000;
const JUMBO_PING: usize = JUMBO - 28;

fn segments(stage: &Stage) {
    let lan = Lan::new();
    let listener = TcpListener::bind((lan.address(), 0)).expect("a port on the bridge's address");
    let host = listener.local_addr().expect("the address of a bound socket");
    let (ip, port) = (host.ip(), host.port());
    let vm = stage
        .vm()
        .name("segments")
        .net(lan.net())
        .script(&format!(
            "trip() {{ nc {ip} {port} </dev/null >/tmp/data; nc {ip} {port} </tmp/data >/dev/null; }}
             trip; ethtool -K eth0 rx-gro-hw off tso off; trip
             ethtool -K eth0 tx off gro off rx off; trip; nc {ip} {port} </dev/null >/dev/null"
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
        there_and_back(&listener, &data, state);
        let after = ["rx", "tx"].map(frames);
        let moved = [after[0] - before[0], after[1] - before[1]];
        before = after;
        println!("{AMOUNT} bytes each way with segments {state}: {} frames received, {} sent", moved[0], moved[1]);
        // Acknowledgements cross the other way; of frames no larger than a segment it takes as many as this.
        let cut = AMOUNT / SEGMENT;
        assert!(if large { moved[0] < cut } else { moved[0] >= cut }, "frames received, segments {state}");
        assert!(if large { moved[1] < cut } else { moved[1] >= cut }, "frames sent, segments {state}");
    }
    drop(listener.accept().expect("the guest waits"));
    assert_eq!(vm.wait_exit(), 0);
}

fn jumbo(stage: &Stage) {
    let lan = Lan::new();
    sh(&format!(
        "for port in $(ls /sys/class/net/{0}/brif); do ip link set $port mtu {JUMBO}; done; ip link set {0} mtu {JUMBO}",
        lan.bridge()
    ));
    let listener = TcpListener::bind((lan.address(), 0)).expect("a port on the bridge's address");
    let host = listener.local_addr().expect("the address of a bound socket");
    let (ip, port) = (host.ip(), host.port());
    let vm = stage
        .vm()
        .net(format!("{},mtu={JUMBO}", lan.net()))
        .script(&format!(
            "echo mtu=$(cat /sys/class/net/eth0/mtu)
             ip -4 -o addr show dev eth0 | sed 's/.*inet /address=/; s,/.*,,'
             nc {ip} {port} </dev/null >/tmp/data; nc {ip} {port} </tmp/data >/dev/null
             nc {ip} {port} </dev/null >/dev/null"
        ))
        .start();
    println!("the guest's MTU: {}", vm.value("mtu"));
    assert_eq!(vm.value("mtu"), JUMBO.to_string());
    there_and_back(&listener, &data(), "jumbo frames");
    let address = vm.value("address");
    let ping = sh(&format!("ping -c 3 -M do -s {JUMBO_PING} {address}"));
    println!("{}", ping.lines().find(|line| line.contains("transmitted")).unwrap_or_default());
    assert!(ping.contains(" 0% packet loss"), "{ping}");
    assert!(sh(&format!("ping -c 1 -W 1 -M do -s {} {address} 2>&1 || true", JUMBO_PING + 1)).contains("too long"));
    drop(listener.accept().expect("the guest waits"));
    assert_eq!(vm.wait_exit(), 0);
}

/// Bytes that differ everywhere.
fn data() -> Vec<u8> {
    sh(&format!("head -c {AMOUNT} /dev/urandom | base64 -w 0 | head -c {AMOUNT}")).into_bytes()
}

/// Sends to the guest, which sends it back.
fn there_and_back(listener: &TcpListener, data: &[u8], what: &str) {
    let mut down = listener.accept().expect("the guest connects").0;
    down.write_all(data).expect("sending to the guest");
    down.shutdown(Shutdown::Write).expect("the end of what is sent");
    drop(down);
    let mut returned = Vec::new();
    listener.accept().expect("the guest connects back").0.read_to_end(&mut returned).expect("receiving from the guest");
    assert!(returned == data, "{what}: {} bytes came back, not those that were sent", returned.len());
}
