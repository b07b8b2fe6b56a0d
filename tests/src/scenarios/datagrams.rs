//! UDP bursts: consecutive datagrams that the card joins, and those that the guest or the host leave whole for the
//! other side to cut. Whoever receives them gets each datagram as it was sent, in order.

use super::Scenario;
use crate::lan::{Lan, sh};
use crate::stage::Stage;
use crate::traffic::datagrams::{self, Cut, Plan, Report};
use crate::vm::Vm;
use serde_json::Value;
use std::net::{SocketAddr, TcpListener, UdpSocket};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "datagrams::bursts_of_a_guest_are_joined_and_arrive_as_they_were_sent", run: joined },
    Scenario { name: "datagrams::uncut_bursts_cross_the_card_whole_both_ways_unless_switched_off", run: uncut },
];

/// Datagrams of each test.
const COUNT: u32 = 256;
/// Their payloads where one will do.
const SIZE: &str = "1000";
/// The last one of four is shorter: the end of what can be joined.
const SIZES: &str = "1000,1000,1000,300";
/// The port of receivers in guests.
const PORT: u16 = 5000;
/// Addresses of the host and the guest; they have others of DHCP besides.
const HOST_V6: &str = "fd77::1";
const GUEST_V6: &str = "fd77::2";

/// Prelude of the guests' scripts: `v6` gives eth0 its address; `take NAME ADDRESS SIZES` begins to receive in the
/// background, and `took NAME` tells what came.
fn words() -> String {
    format!(
        "address() {{ ip -4 -o addr show dev $1 | sed 's/.*inet //; s,/.*,,'; }}
         v6() {{ echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip addr add {GUEST_V6}/64 dev eth0; }}
         take() {{ tests traffic receive $2 {COUNT} $3 >/tmp/$1 & until netstat -uln | grep -q $2; do sleep 0.1; done; }}
         took() {{ echo $1=$(cat /tmp/$1); }}\n"
    )
}

fn joined(stage: &Stage) {
    let (net, bare) = (Net::new(), Lan::new());
    let (v4, v6) = (net.socket(&net.lan.address()), net.socket(HOST_V6));
    // One card takes datagrams joined. For the other the host's kernel takes them apart and fills in the checksums, and
    // that guest checks them.
    let receiver = stage
        .vm()
        .name("receiver")
        .net(net.lan.net())
        .net(format!("{},offload=off", bare.net()))
        .script(&format!(
            "{} for card in eth0 eth1; do take $card $(address $card):{PORT} {SIZES}; done
             for card in eth0 eth1; do echo $card-address=$(address $card); done
             wait; took eth0; took eth1; {}",
            words(),
            net.wait()
        ))
        .start();
    let cards = ["eth0", "eth1"];
    let addresses = cards.map(|card| receiver.value(&format!("{card}-address"))).join(" ");

    let cases = [
        (&v4, SIZE),
        (&v4, SIZES),
        (&v4, "18"),
        (&v4, "700,1400,20,1472,1472,4"),
        (&v6, SIZE),
        (&v6, SIZES),
        (&v6, "1452,1452,5,900"),
    ];
    let sends: Vec<_> = cases.iter().map(|(socket, sizes)| format!("send {} {sizes}", address(socket))).collect();
    let sender = stage
        .vm()
        .name("sender")
        .net(net.lan.net())
        .net(bare.net())
        .script(&format!(
            "{} v6; send() {{ tests traffic send $1 {COUNT} $2 || echo failed=$1 $2; }}
             {}; for to in {addresses}; do send $to:{PORT} {SIZES}; done; {}",
            words(),
            sends.join("; "),
            net.wait()
        ))
        .start();

    let mut before = 0;
    for (socket, sizes) in cases {
        receive(socket, sizes);
        let joined = counter(stage, "sender", "net0", "tx.0.joined");
        // The guest may be at the next burst already, so this is about what it was.
        println!("{COUNT} datagrams of {sizes} bytes to {}: {} were joined", address(socket), joined - before);
        before = joined;
    }
    assert!(before >= COUNT.into(), "{before} datagrams were joined");
    for card in cards {
        hold(&receiver, card, SIZES);
    }
    let frames = ["net0", "net1"].map(|card| counter(stage, "receiver", card, "rx.0.frames"));
    println!("to the other guest: {COUNT} datagrams in {} frames, without offloads in {}", frames[0], frames[1]);
    assert!(frames[0] < COUNT.into() && frames[1] >= COUNT.into(), "frames of the other guest");
    net.end(2);
    assert_eq!((sender.wait_exit(), receiver.wait_exit()), (0, 0));
}

fn uncut(stage: &Stage) {
    let net = Net::new();
    let (v4, v6) = (net.socket(&net.lan.address()), net.socket(HOST_V6));
    let vm = stage
        .vm()
        .name("uncut")
        .net(net.lan.net())
        .script(&format!(
            "{} v6; a=$(address eth0); ethtool -K eth0 tx-udp-segmentation on
             for to in {} {}; do tests traffic send $to {COUNT} {SIZE} --uncut || echo failed=$to; done
             got() {{ take $1 $2:{PORT} {SIZE}; echo $1-at=$2:{PORT}; wait; took $1; }}
             got v4 $a; got v6 [{GUEST_V6}]; ethtool -K eth0 rx-gro-hw off; echo off=$?
             got v4-off $a; got v6-off [{GUEST_V6}]; ethtool -K eth0 rx-gro-hw on; got v4-on $a; {}",
            words(),
            address(&v4),
            address(&v6),
            net.wait()
        ))
        .start();

    // What else crosses the card meanwhile: answers and neighbour discovery.
    let few = u64::from(COUNT) / 4;
    let frames = |side: &str| counter(stage, "uncut", "net0", &format!("{side}.0.frames"));
    let mut before = 0;
    for socket in [&v4, &v6] {
        receive(socket, SIZE);
        let sent = frames("tx");
        println!("guest to {}: {COUNT} datagrams in {} frames", address(socket), sent - before);
        assert!(sent - before < few, "{} frames", sent - before);
        before = sent;
    }
    for (name, whole) in [("v4", true), ("v6", true), ("v4-off", false), ("v6-off", false), ("v4-on", true)] {
        let to: SocketAddr = vm.value(&format!("{name}-at")).parse().expect("the guest's address");
        let before = frames("rx");
        datagrams::send(to, &plan(SIZE), Cut::Kernel).expect("the guest receives");
        hold(&vm, name, SIZE);
        let received = frames("rx") - before;
        println!("host to guest, {name}: {COUNT} datagrams in {received} frames");
        assert_eq!(received < few, whole, "{name}: {received} frames");
        assert!(whole || received >= COUNT.into(), "{name}: {received} frames");
    }
    assert_eq!(vm.value("off"), "0", "exit code of ethtool -K eth0 rx-gro-hw off");
    net.end(1);
    assert_eq!(vm.wait_exit(), 0);
}

/// The network with an IPv6 address, and something for guests to wait for while the scenario asks for their counters.
struct Net {
    lan: Lan,
    end: TcpListener,
}

impl Net {
    fn new() -> Self {
        let lan = Lan::new();
        sh(&format!("ip addr add {HOST_V6}/64 dev {} nodad", lan.bridge()));
        let end = TcpListener::bind((lan.address(), 0)).expect("a port on the bridge's address");
        Self { lan, end }
    }

    fn socket(&self, host: &str) -> UdpSocket {
        UdpSocket::bind((host, 0)).expect("a port on the bridge's address")
    }

    /// The command that waits.
    fn wait(&self) -> String {
        let port = self.end.local_addr().expect("the address of a bound socket").port();
        format!("nc {} {port} </dev/null >/dev/null", self.lan.address())
    }

    /// Ends the waiting of so many guests.
    fn end(&self, guests: usize) {
        for _ in 0..guests {
            drop(self.end.accept().expect("the guest waits"));
        }
    }
}

fn plan(sizes: &str) -> Plan {
    let sizes = sizes.split(',').map(|size| size.parse().expect("a size")).collect();
    Plan { count: COUNT.try_into().expect("a count"), sizes }
}

/// The report of a receiver.
fn good(sizes: &str) -> Report {
    let plan = plan(sizes);
    let bytes = plan.sizes.iter().cycle().take(plan.count).copied().map(usize::from).sum();
    Report { received: plan.count, disordered: 0, wrong: 0, bytes }
}

fn receive(socket: &UdpSocket, sizes: &str) {
    let report = datagrams::receive(socket, &plan(sizes)).expect("the guest's datagrams");
    assert_eq!(report, good(sizes), "datagrams of {sizes} bytes to {}", address(socket));
}

fn hold(vm: &Vm, name: &str, sizes: &str) {
    let report: Report = serde_json::from_str(&vm.value(name)).expect("the guest's report");
    assert_eq!(report, good(sizes), "{name}: datagrams of {sizes} bytes to the guest");
}

fn counter(stage: &Stage, vm: &str, card: &str, name: &str) -> u64 {
    let counted: Value = serde_json::from_str(&sh(&format!("{} counters {vm}", stage.minivmm().display())))
        .expect("JSON from minivmm counters");
    counted[card][name].as_u64().expect("a count")
}

fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("the address of a bound socket")
}
