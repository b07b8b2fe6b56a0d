//! Explicit congestion notification (RFC 3168) over the card: the network marks packets, and whoever sent them says in
//! a large segment that it has slowed down. Such a segment may only be cut by one who knows that CWR belongs to its
//! first part.

use super::Scenario;
use super::large::{AMOUNT, data, there_and_back};
use crate::lan::{Lan, sh};
use crate::sniffer::{GSO_ECN, Sniffer};
use crate::stage::Stage;
use std::net::TcpListener;

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario { name: "ecn::segments_with_cwr_cross_the_card_uncut_both_ways", run: marked }];

/// Of so many packets that may be marked, one is.
const MARKED_OF: u32 = 24;
/// Transfers there and back.
const TRIPS: u32 = 2;
/// The longest frame that fits into Ethernet's usual MTU.
const ETHERNET_FRAME: usize = 1514;

fn marked(stage: &Stage) {
    let lan = Lan::new();
    let host = lan.address();
    let mark = format!("ip ecn ect0 numgen inc mod {MARKED_OF} == 0 counter ip ecn set ce");
    sh(&format!(
        "echo 1 >/proc/sys/net/ipv4/tcp_ecn
         nft 'table ip marks {{
             chain received {{ type filter hook prerouting priority raw; {mark}; }}
             chain sent {{ type filter hook postrouting priority raw; {mark}; }}
         }}'"
    ));
    let listener = TcpListener::bind((host.as_str(), 0)).expect("a port on the bridge's address");
    let port = listener.local_addr().expect("the address of a bound socket").port();
    let vm = stage
        .vm()
        .net(lan.net())
        .script(&format!(
            "echo 1 >/proc/sys/net/ipv4/tcp_ecn; echo mac=$(cat /sys/class/net/eth0/address)
             echo ecn=$(ethtool -k eth0 | awk '/^\ttx-tcp-ecn-segmentation:/ {{ print $2 }}')
             for trip in $(seq {TRIPS}); do nc {host} {port} </dev/null >/tmp/data; nc {host} {port} </tmp/data >/dev/null; done
             echo marked=$(awk '/^IpExt:/ {{ for (i in name) if (name[i] == \"InCEPkts\") print $i; split($0, name) }}' /proc/net/netstat)"
        ))
        .start();
    let (mac, ecn) = (vm.value("mac"), vm.value("ecn"));
    assert_eq!(ecn, "on", "tx-tcp-ecn-segmentation of the guest");
    let tap = lan.guest_taps().pop().expect("the guest's tap");
    let sniffer = Sniffer::new(&tap).expect("a look at the tap");
    let data = data();
    for _ in 0..TRIPS {
        there_and_back(&listener, &data, "with ECN");
    }
    let with_cwr = |gso_type: u8| gso_type & GSO_ECN != 0;
    let (sent, received) = (sniffer.sent_by(&mac, with_cwr), sniffer.sent_by_others(&mac, with_cwr));
    let marks = sh("nft list table ip marks | sed -n 's/.*counter packets \\([0-9]*\\).*/\\1/p'");
    println!(
        "{AMOUNT} bytes each way, {TRIPS} times, the host has marked {} packets",
        marks.trim().replace('\n', " and ")
    );
    println!("the guest got {} that were", vm.value("marked"));
    println!("large segments with CWR: {} of the guest, up to {} bytes", sent.frames, sent.longest);
    println!("and {} to the guest, up to {} bytes", received.frames, received.longest);
    for seen in [sent, received] {
        assert!(seen.frames > 0 && seen.longest > ETHERNET_FRAME, "{sent:?} {received:?}");
    }
    assert_ne!(vm.value("marked"), "0", "marks that the guest has seen");
    assert_eq!(vm.wait_exit(), 0);
}
