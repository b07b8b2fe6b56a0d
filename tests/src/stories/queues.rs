//! What a stock driver does to single queues of a running card: it resizes their rings.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::thread;

use super::Story;
use crate::lan::{Lan, sh};
use crate::stage::Stage;

pub(super) const STORIES: &[Story] =
    &[Story { name: "queues::rings_change_their_sizes_under_a_transfer_both_ways", tell: resized }];

/// What goes to the guest and back while the rings change.
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

fn listener(lan: &Lan) -> TcpListener {
    TcpListener::bind((lan.address(), 0)).expect("a port on the bridge's address")
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("the address of a bound socket").port()
}
