//! Many flows over a card whose queue pairs come and go: none is lost.

use super::Scenario;
use crate::lan::{Lan, sh};
use crate::stage::Stage;
use crate::traffic::flows::{self, Report};
use std::net::TcpListener;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "flows::two_hundred_flows_go_on_while_queue_pairs_come_and_go_a_hundred_times",
    run: two_hundred,
}];

/// TCP connections that all send both ways at the same time.
const FLOWS: usize = 200;
/// Pairs that the card has, and those that a guest with as many processors uses.
const PAIRS: u32 = 8;
const USED: u32 = 2;
/// How often the guest changes the number of pairs while the flows are busy.
const CHANGES: u32 = 100;
/// Seconds of the flows without a change.
const SECONDS: u32 = 10;
/// A flow that receives nothing for so long has stalled. On an emulated processor, whose host is busy with other
/// things, flows of which none is lost wait for ten seconds.
const STALL_MS: u128 = 20_000;

fn two_hundred(stage: &Stage) {
    let lan = Lan::new();
    let listener = TcpListener::bind((lan.address(), 0)).expect("a port on the bridge's address");
    let address = listener.local_addr().expect("the address of a bound socket");
    let minivmm = stage.minivmm().display().to_string();
    let vm = stage
        .vm()
        .cpus(USED)
        .name("flows")
        .net(format!("{},queues={PAIRS}", lan.net()))
        .script(&format!(
            "pairs() {{ echo $(ethtool -l eth0 | awk '/^Combined/ {{ print $2 }}'); }}
             again() {{ awk '/^Tcp:/ {{ n = $13 }} END {{ print n }}' /proc/net/snmp; }}
             echo before=$(pairs)
             echo steady=$(sleep {SECONDS} | tests traffic flows {address} {FLOWS})
             echo again1=$(again)
             change() {{
                 n=0
                 until [ $n = {CHANGES} ]; do ethtool -L eth0 combined $((n % {USED} + 1)) || break; n=$((n+1)); done
                 echo $n >/tmp/changes
             }}
             echo changing=$(change | tests traffic flows {address} {FLOWS})
             echo again2=$(again); echo changes=$(cat /tmp/changes); echo after=$(pairs)"
        ))
        .start();

    assert_eq!(vm.value("before"), format!("{PAIRS} {USED}"), "pairs there are, pairs in use");
    let here = flows::listen(&listener, FLOWS).expect("the guest's flows");
    hold("steady", &here, &vm.value("steady"));
    println!("sent again: {} segments by the guest, {} by the host", vm.value("again1"), again());
    let counted: serde_json::Value =
        serde_json::from_str(&sh(&format!("{minivmm} counters flows"))).expect("JSON from minivmm counters");
    for pair in 0..PAIRS {
        let of = |what: &str| {
            ["rx", "tx"].map(|side| counted["net0"][format!("{side}.{pair}.{what}")].as_u64().expect("a count"))
        };
        let (frames, interrupts) = (of("frames"), of("interrupts"));
        println!("pair {pair}: {} frames received, {} sent; interrupts {interrupts:?}", frames[0], frames[1]);
        assert_eq!(frames.map(|frames| frames > 0), [pair < USED; 2], "pair {pair} carries frames");
    }

    let here = flows::listen(&listener, FLOWS).expect("the guest's flows");
    hold("while pairs change", &here, &vm.value("changing"));
    println!("sent again: {} segments by the guest, {} by the host", vm.value("again2"), again());
    println!("{} changes of the number of pairs", vm.value("changes"));
    assert_eq!(vm.value("changes"), CHANGES.to_string());
    assert_eq!(vm.value("after"), format!("{PAIRS} {USED}"));
    assert_eq!(vm.wait_exit(), 0);
}

/// Segments that the host has retransmitted so far.
fn again() -> String {
    sh("awk '/^Tcp:/ { n = $13 } END { print n }' /proc/net/snmp").trim().to_owned()
}

/// Holds that no flow broke or stalled, seen from both ends.
fn hold(when: &str, here: &Report, there: &str) {
    let there: Report = serde_json::from_str(there).expect("the guest's report");
    for (end, report) in [("host", here), ("guest", &there)] {
        println!(
            "{when}: the {end} received {} MiB in {} flows, {} KiB in the one with least; longest pause of one {} ms",
            report.bytes >> 20,
            report.flows,
            report.least_bytes >> 10,
            report.longest_pause_ms
        );
        assert_eq!((report.flows, report.broken, report.reason.as_deref()), (FLOWS, 0, None), "{when}, {end}");
        assert!(report.least_bytes > 0 && report.longest_pause_ms < STALL_MS, "{when}: a flow stalled at the {end}");
    }
}
