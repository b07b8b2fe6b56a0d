//! A card that is reset while another of the guest's processors has it send, and while frames arrive.

use super::Scenario;
use crate::lan::{Lan, sh};
use crate::stage::Stage;
use std::net::{TcpListener, UdpSocket};
use std::process::{Command, Stdio};

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario { name: "resets::a_card_works_on_after_fifty_resets_in_the_middle_of_bursts", run: fifty }];

/// How often the driver lets the card go and takes it again.
const RESETS: u32 = 50;
/// Frames that have been sent and received at least between two resets, so that each comes in the middle.
const SENT_MIN: u32 = 20;
const RECEIVED_MIN: u32 = 5;

fn fifty(stage: &Stage) {
    let lan = Lan::new();
    let host = lan.address();
    let start = TcpListener::bind((lan.address(), 0)).expect("a port on the bridge's address");
    let (minivmm, port) =
        (stage.minivmm().display(), start.local_addr().expect("the address of a bound socket").port());
    // Takes as much as has room; no one reads it.
    let sink = UdpSocket::bind((lan.address(), 0)).expect("a port on the bridge's address");
    let sink = sink.local_addr().expect("the address of a bound socket").port();
    let vm = stage
        .vm()
        .cpus(2)
        .name("resets")
        .net(format!("{},queues=2", lan.net()))
        .script(&format!(
            "a=$(ip -4 -o addr show dev eth0 | sed 's/.*inet //; s, .*,,'); echo address=${{a%/*}}
             d=$(basename $(readlink /sys/class/net/eth0/device)); cd /sys/bus/virtio/drivers/virtio_net
             more() {{ read count </sys/class/net/eth0/statistics/$1_packets && [ $count -ge $2 ]; }}
             nc {host} {port} </dev/null >/dev/null
             taskset -p 2 $$ >/dev/null; while :; do nc -u {host} {sink} </dev/zero; sleep 0.03; done >/dev/null 2>&1 &
             taskset -p 1 $$ >/dev/null
             for n in $(seq {RESETS}); do
                 until more tx {SENT_MIN} && more rx {RECEIVED_MIN}; do :; done
                 echo $d >unbind; echo $d >bind
                 ip link set eth0 up; ip addr add $a dev eth0
             done
             kill $!; killall nc; echo resets=$n; echo cards=$(ls /sys/class/net | grep -c eth)
             ping -c 3 -W 5 {host} >/dev/null; echo ping=$?"
        ))
        .start();
    let address = vm.value("address");
    let connection = start.accept().expect("the guest connects").0;
    let mut flood =
        Command::new("ping").args(["-q", "-i", "0.005", &address]).stdout(Stdio::null()).spawn().expect("ping starts");
    drop(connection);
    let resets = vm.value("resets");
    let counted: serde_json::Value =
        serde_json::from_str(&sh(&format!("{minivmm} counters resets"))).expect("JSON from minivmm counters");
    flood.kill().and_then(|()| flood.wait()).expect("ping is still running");
    let sum = |side: &str| -> u64 {
        (0..2).map(|pair| counted["net0"][format!("{side}.{pair}.frames")].as_u64().expect("a count")).sum()
    };
    let (sent, received) = (sum("tx"), sum("rx"));
    println!("{resets} resets, {sent} frames sent and {received} received meanwhile");
    assert_eq!((resets, vm.value("cards").as_str()), (RESETS.to_string(), "1"));
    assert!(sent >= (RESETS * SENT_MIN).into() && received >= (RESETS * RECEIVED_MIN).into(), "frames meanwhile");
    assert_eq!(vm.value("ping"), "0", "ping after the last reset");
    assert!(!vm.log().contains("waits for a reset"), "{}", vm.log());
    assert_eq!(vm.wait_exit(), 0);
}
