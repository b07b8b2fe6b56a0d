//! Cards whose frames are slowed down, late or lost on purpose.

use super::Scenario;
use crate::lan::{Lan, sh};
use crate::stage::Stage;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "impair::a_card_loses_frames_each_way", run: losses },
    Scenario { name: "impair::late_and_slow_cards_move_all_bytes", run: late_and_slow },
];

/// Echo requests: of each, the losses of both directions decide whether it is answered.
const PINGS: u32 = 60;
/// Bytes that go each way.
const AMOUNT: usize = 1 << 20;

fn losses(stage: &Stage) {
    let lan = Lan::new();
    let vm = stage
        .vm()
        .net(format!("{},loss=20%,seed=7", lan.net()))
        .parameter("minivmm.ip=eth0:10.79.0.2/24")
        .script(&format!("echo answered=$(ping -c {PINGS} -i 0.2 -W 1 10.79.0.1 | grep -c ' seq=')"))
        .start();
    sh(&format!("ip addr add 10.79.0.1/24 dev {}", lan.bridge()));
    let answered: u32 = vm.value("answered").parse().expect("a number");
    println!("{answered} of {PINGS} requests were answered, where {} are expected", PINGS * 64 / 100);
    assert!((PINGS / 4..PINGS - 5).contains(&answered), "{answered} of {PINGS} were answered");
    assert_eq!(vm.wait_exit(), 0);
}

fn late_and_slow(stage: &Stage) {
    let lan = Lan::new();
    let host = lan.address();
    let listener = TcpListener::bind((host.as_str(), 0)).expect("a port on the bridge's address");
    let port = listener.local_addr().expect("the address of a bound socket").port();
    let vm = stage
        .vm()
        .net(format!("{},delay=30ms,jitter=10ms", lan.net()))
        .net(format!("{},rate=20M/10M", lan.net()))
        .script(&format!(
            "trip() {{ nc {host} {port} </dev/null >/tmp/data; nc {host} {port} </tmp/data >/dev/null; }}
             echo late=$(ping -c 5 -I eth0 {host} | sed -n 's,.*min/avg/max = \\([0-9]*\\).*,\\1,p')
             echo large=$(ethtool -k eth0 | grep -c -e 'tcp-segmentation-offload: on' -e 'tx-udp-segmentation: on')
             ip link set eth0 down; trip; ip link set eth0 up; ip link set eth1 down
             ip route add {host} dev eth0; trip"
        ))
        .start();
    let data: Vec<u8> = (0..AMOUNT).map(|at| (at * 31 % 251).to_le_bytes()[0]).collect();
    for card in ["slow", "late"] {
        let mut guest = accept(&listener);
        let begin = Instant::now();
        guest.write_all(&data).expect("sending to the guest");
        drop(guest);
        let to_guest = begin.elapsed();
        let mut back = Vec::new();
        accept(&listener).read_to_end(&mut back).expect("receiving from the guest");
        println!(
            "{card}: {AMOUNT} bytes to the guest in {to_guest:.2?}, and back in {:.2?}",
            begin.elapsed() - to_guest
        );
        assert!(back == data, "other bytes came back over the {card} card");
    }
    let late: u32 = vm.value("late").parse().expect("milliseconds");
    println!("shortest round trip by the late card: {late} ms");
    assert!(late >= 40, "twice 30 ms less twice the jitter is the least");
    assert_eq!(vm.value("large"), "0", "segmentation that is offered");
    assert_eq!(vm.wait_exit(), 0);
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.accept().expect("the guest connects").0
}
