//! Single queues of a running card under a stock driver: it resizes their rings, and has their interrupts held back.

use super::Scenario;
use super::large::{AMOUNT, data, there_and_back};
use crate::lan::{Lan, sh};
use crate::stage::Stage;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::thread;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "queues::rings_change_their_sizes_under_a_transfer_both_ways", run: resized },
    Scenario { name: "queues::data_crosses_the_smallest_and_the_largest_rings_both_ways", run: sizes },
    Scenario { name: "queues::interrupts_are_held_back_as_the_guest_wishes", run: coalesced },
];

/// The amount that goes to the guest and back while the rings change.
const TRANSFER_MIB: usize = 16;
/// Changes back and forth that have to fit into it.
const CHANGES_MIN: u32 = 3;

fn resized(stage: &Stage) {
    let lan = Lan::new();
    let host = lan.address();
    let (down, up) = (listener(&lan), listener(&lan));
    let vm = stage
        .vm()
        .cpus(2)
        .net(format!("{},queues=2,ring=512", lan.net()))
        .script(&format!(
            "sizes() {{ ethtool -g eth0 | awk '/^(RX|TX):/ {{ printf $2 \" \" }}'; }}
             echo before=$(sizes); nc {host} {} </dev/null | nc {host} {} >/dev/null & n=0
             while kill -0 $! 2>/dev/null; do
                 ethtool -G eth0 rx 128 tx 64 || break; small=$(sizes); sleep 0.3
                 ethtool -G eth0 rx 512 tx 256 || break; n=$((n+1)); sleep 0.3
             done
             echo changes=$n; echo small=$small; echo after=$(sizes)
             ping -c 3 {host} >/dev/null; echo ping=$?",
            port(&down),
            port(&up)
        ))
        .start();

    let data = sh(&format!("head -c {}M /dev/urandom | base64 -w 0 | head -c {0}M", TRANSFER_MIB)).into_bytes();
    let outgoing = data.clone();
    let sender = thread::spawn(move || {
        let mut guest = down.accept().expect("the guest connects").0;
        guest.write_all(&outgoing).expect("sending to the guest");
        guest.shutdown(Shutdown::Write).expect("the end of what is sent");
    });
    let mut returned = Vec::new();
    up.accept().expect("the guest connects back").0.read_to_end(&mut returned).expect("receiving from the guest");
    sender.join().expect("the sender");

    let changes: u32 = vm.value("changes").parse().expect("a number of changes");
    let sizes = |name: &str| vm.value(name).trim().to_owned();
    let (before, small, after) = (sizes("before"), sizes("small"), sizes("after"));
    println!("{TRANSFER_MIB} MiB there and back, {changes} times from {after} to {small} and back");
    assert!(returned == data, "{} bytes came back, not those that were sent", returned.len());
    // The largest sizes, then those in use.
    assert_eq!(before, "512 512 512 512");
    assert_eq!((small.as_str(), after.as_str()), ("512 512 128 64", "512 512 512 256"));
    assert!(changes >= CHANGES_MIN, "only {changes} changes during the transfer");
    assert_eq!(vm.value("ping"), "0", "ping after it all");
    assert_eq!(vm.wait_exit(), 0);
}

/// The smallest ring and the largest.
const SIZES: [u16; 2] = [64, 4096];

fn sizes(stage: &Stage) {
    let lans = SIZES.map(|size| (size, Lan::new()));
    let hosts = lans.each_ref().map(|(_, lan)| lan.address()).join(" ");
    let listener = TcpListener::bind(("0.0.0.0", 0)).expect("a port");
    let mut vm = stage.vm();
    for (size, lan) in &lans {
        vm = vm.net(format!("{},ring={size}", lan.net()));
    }
    let port = port(&listener);
    let vm = vm
        .script(&format!(
            "for card in eth0 eth1; do echo $card=$(ethtool -g $card | awk '/^(RX|TX):/ {{ printf $2 \" \" }}'); done
             for host in {hosts}; do nc $host {port} </dev/null >/tmp/data; nc $host {port} </tmp/data >/dev/null; done"
        ))
        .start();
    let data = data();
    for (card, (size, _lan)) in ["eth0", "eth1"].into_iter().zip(&lans) {
        assert_eq!(vm.value(card).trim(), vec![size.to_string(); 4].join(" "), "sizes of the rings");
        there_and_back(&listener, &data, card);
        println!("{AMOUNT} bytes each way through rings of {size}");
    }
    assert_eq!(vm.wait_exit(), 0);
}

/// Frames that the host sends for each way to interrupt, and the milliseconds between them.
const FRAMES: u32 = 300;
const INTERVAL_MS: u32 = 4;
/// How many frames the guest wants to come together, and the longest wait: so long that the number of frames decides.
const TOGETHER: u32 = 16;
const WAIT_USECS: u32 = 500_000;

fn coalesced(stage: &Stage) {
    let lan = Lan::new();
    let host = lan.address();
    let [every, together, adaptive] = [(); 3].map(|()| listener(&lan));
    let vm = stage
        .vm()
        .net(lan.net())
        .script(&format!(
            "irqs() {{ awk '/virtio.*input.0/ {{ print $2 }}' /proc/interrupts; }}
             shown() {{ ethtool $1 eth0 $2 $3 $4 | awk '/^rx-(usecs|frames):/ {{ printf $2 \" \" }}'; }}
             turn() {{ n=$(irqs); nc {host} $2 </dev/null >/dev/null; echo $1=$(($(irqs) - n)); }}
             echo address=$(ip -4 -o addr show dev eth0 | sed 's/.*inet //; s,/.*,,')
             echo before=$(shown -c); turn every {}
             ethtool -C eth0 rx-usecs {WAIT_USECS} rx-frames {TOGETHER}; echo set=$? $(shown -c); turn together {}
             ethtool -C eth0 rx-usecs 1000001; echo refused=$?
             ethtool -C eth0 rx-usecs 0 rx-frames 0 && ethtool -C eth0 adaptive-rx on; echo adaptive=$?
             turn adaptively {}; echo queue=$(shown -Q queue_mask 1 --show-coalesce)",
            port(&every),
            port(&together),
            port(&adaptive)
        ))
        .start();

    let address = vm.value("address");
    for listener in [every, together, adaptive] {
        let connection = listener.accept().expect("the guest connects").0;
        let seconds = f64::from(INTERVAL_MS) / 1000.0;
        sh(&format!("ping -q -c {FRAMES} -i {seconds} {address} >/dev/null || true"));
        drop(connection);
    }

    let interrupts = |name: &str| vm.value(name).parse::<u32>().expect("a number of interrupts");
    let (every, together, adaptively) = (interrupts("every"), interrupts("together"), interrupts("adaptively"));
    println!(
        "{FRAMES} frames: {every} interrupts, {together} with rx-frames {TOGETHER}, {adaptively} with adaptive-rx"
    );
    println!("adaptive-rx has set rx-usecs, rx-frames of queue 0 to {}", vm.value("queue"));
    assert_eq!((vm.value("before").trim(), vm.value("set").trim()), ("0 0", "0 500000 16"));
    assert_ne!(vm.value("refused"), "0", "a wait of more than a second");
    assert!(every > 4 * together, "held back {together} interrupts of {every}");
    assert_eq!(vm.value("adaptive"), "0", "exit code of ethtool -C eth0 adaptive-rx on");
    assert_ne!(vm.value("queue").trim(), "0 0", "adaptive-rx changed nothing");
    assert_eq!(vm.wait_exit(), 0);
}

fn listener(lan: &Lan) -> TcpListener {
    TcpListener::bind((lan.address(), 0)).expect("a port on the bridge's address")
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("the address of a bound socket").port()
}
