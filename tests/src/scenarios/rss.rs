//! Receive-side scaling as a stock driver uses it: its table and key decide which queue a flow arrives on.

use super::Scenario;
use crate::lan::{Lan, sh};
use crate::stage::Stage;
use crate::vm::Builder;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "rss::flows_arrive_on_the_queues_that_the_guests_table_and_key_name", run: by_the_kernel },
    Scenario { name: "rss::flows_arrive_there_without_privileges_as_well", run: by_workers },
];

/// Flows that the host sends: one UDP datagram each, from ports of their own.
const FLOWS: u16 = 1000;
const FIRST_PORT: u16 = 20_000;
const GUEST_PORT: u16 = 9;

/// Other frames that a queue may receive: DHCP, ARP, the connection that waits for the host's turn, a ping.
const NOISE: u32 = 60;

const QUEUES: usize = 4;
const NAME: &str = "rss";

/// The table that the guest sets, as weights of its queues, and where each quarter of its 128 entries then leads.
const WEIGHTS: &str = "1 2 0 1";
const QUARTERS: [usize; 4] = [0, 1, 1, 3];

/// The key that the guest sets: that of the verification suite which Microsoft publishes.
const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b,
    0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac,
    0x01, 0xfa,
];

fn by_the_kernel(stage: &Stage) {
    let passed_on = tell(stage.minivmm(), stage.vm());
    assert_eq!(passed_on, 0, "frames that the kernel did not steer");
}

/// A minivmm that may make networks but load no program.
fn by_workers(stage: &Stage) {
    let guest = stage.default_guest();
    let wrapper = stage.file("minivmm-without-bpf");
    let program = stage.minivmm().display();
    let script = format!("#!/bin/sh\nexec setpriv --bounding-set=-bpf,-sys_admin {program} \"$@\"\n");
    std::fs::write(&wrapper, script).expect("a file of the scenario's own");
    sh(&format!("chmod +x {}", wrapper.display()));
    let passed_on = tell(stage.minivmm(), Builder::new(&wrapper).kernel(guest.bzimage).initrd(guest.initramfs));
    println!("the card's workers passed {passed_on} frames on");
    assert!(passed_on > 0, "frames that workers steered");
}

/// Returns how many frames the card's workers passed on to each other. What a queue received is what the card counts:
/// since Linux 6.10 `ethtool -S` does not show it.
fn tell(minivmm: &Path, machine: Builder) -> u32 {
    let lan = Lan::new();
    let host = lan.address();
    let listener = || TcpListener::bind((lan.address(), 0)).expect("a port on the bridge's address");
    let (turn, end) = (listener(), listener());
    let port = |listener: &TcpListener| listener.local_addr().expect("the address of a bound socket").port();
    let key: Vec<String> = KEY.iter().map(|byte| format!("{byte:02x}")).collect();
    let vm = machine
        .cpus(2)
        .name(NAME)
        .net(format!("{},queues={QUEUES}", lan.net()))
        .script(&format!(
            "ethtool -L eth0 combined {QUEUES}; ethtool -X eth0 hkey {}; ethtool -X eth0 weight {WEIGHTS}
             echo rings=$(ethtool -x eth0 | head -n 1); echo key=$(ethtool -x eth0 | grep -A 1 'hash key' | tail -n 1)
             echo table=$(ethtool -x eth0 | awk '/^ *[0-9]+:/ {{ $1 = \"\"; print }}')
             ethtool -K eth0 rxhash on; echo hash=$(ethtool -k eth0 | grep receive-hashing)
             echo address=$(ip -4 -o addr show eth0 | awk '{{ print $4 }}' | cut -d / -f 1)
             nc {host} {} </dev/null >/dev/null; ping -c 3 {host} >/dev/null; echo ping=$?
             nc {host} {} </dev/null >/dev/null",
            key.join(":"),
            port(&turn),
            port(&end)
        ))
        .start();

    let guest: Ipv4Addr = vm.value("address").parse().expect("the guest's address");
    let table: Vec<usize> = numbers(&vm.value("table"));
    println!(
        "{}; key {}; entries 0, 32, 64, 96: {:?}",
        vm.value("rings"),
        vm.value("key"),
        [0, 32, 64, 96].map(|i| table[i])
    );
    assert_eq!(vm.value("key"), key.join(":"));
    assert!(table.iter().enumerate().all(|(entry, queue)| *queue == QUARTERS[entry / 32]), "{table:?}");
    assert_eq!(vm.value("hash"), "receive-hashing: on");
    let connection = turn.accept();
    let expected = send(&host, guest);
    drop(connection);
    assert_eq!(vm.value("ping"), "0");
    let counters: serde_json::Value = serde_json::from_str(&sh(&format!("{} counters {NAME}", minivmm.display())))
        .expect("JSON from minivmm counters");
    drop(end.accept());
    assert_eq!(vm.wait_exit(), 0);

    let count = |name: &str| -> [u32; QUEUES] {
        let value = |queue| counters["net0"][format!("rx.{queue}.{name}")].as_u64().expect("a count");
        std::array::from_fn(|queue| u32::try_from(value(queue)).expect("a small count"))
    };
    let received = count("frames");
    println!(
        "{FLOWS} flows belong to {expected:?} by table and Toeplitz, the queues received {received:?} (with other traffic)"
    );
    let close = |(received, expected): (&u32, &u32)| (*expected..*expected + NOISE).contains(received);
    assert!(received.iter().zip(&expected).all(close), "flows on other queues");
    assert_eq!(count("steered_lost"), [0; QUEUES]);
    count("steered").iter().sum()
}

/// Sends the flows and returns how many belong to each queue.
fn send(host: &str, guest: Ipv4Addr) -> [u32; QUEUES] {
    let mut expected = [0; QUEUES];
    let source: Ipv4Addr = host.parse().expect("the host's address");
    for port in FIRST_PORT..FIRST_PORT + FLOWS {
        let socket = UdpSocket::bind((source, port)).expect("a port of the host's");
        socket.send_to(b"flow", (guest, GUEST_PORT)).expect("sending to the guest");
        let addresses = [source.octets(), guest.octets()].concat();
        let flow = [&addresses[..], &port.to_be_bytes(), &GUEST_PORT.to_be_bytes()].concat();
        let entry = usize::try_from(toeplitz(&flow) % 128).expect("a small number");
        expected[QUARTERS[entry / 32]] += 1;
    }
    expected
}

/// The hash (virtio 1.3 5.1.6.4.3), bit by bit.
fn toeplitz(input: &[u8]) -> u32 {
    let key_bit = |at: usize| u32::from(KEY[at / 8] >> (7 - at % 8) & 1);
    let window = |at: usize| (at..at + 32).fold(0, |window, at| window << 1 | key_bit(at));
    let set = (0..input.len() * 8).filter(|at| input[at / 8] >> (7 - at % 8) & 1 == 1);
    set.fold(0, |hash, at| hash ^ window(at))
}

fn numbers(text: &str) -> Vec<usize> {
    text.split_whitespace().map(|word| word.parse().expect("a number from the guest's shell")).collect()
}
