//! Cards on a bridge: an address by DHCP, data both ways, guests that talk to each other, and nothing left behind.

use super::Scenario;
use crate::lan::{Lan, sh};
use crate::stage::Stage;
use nix::sys::signal::Signal;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::time::Instant;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "bridge::a_guest_gets_a_lease_and_moves_data_both_ways", run: data_both_ways },
    Scenario { name: "bridge::two_guests_talk_to_each_other", run: two_guests },
    Scenario { name: "bridge::eight_cards_get_eight_leases", run: eight_cards },
];

/// The variable that sets another amount for slow machines, in MiB.
const AMOUNT_VARIABLE: &str = "MINIVMM_TRANSFER_MIB";
const AMOUNT_DEFAULT_MIB: u64 = 256;

/// Prints the address of a card.
const ADDRESS: &str = "address() { ip -4 -o addr show dev $1 | sed 's/.*inet //; s,/.*,,'; }\n";

fn data_both_ways(stage: &Stage) {
    let lan = Lan::new();
    let links_before = lan.links();
    let amount_mib = amount_mib();
    let (sent, returned) = (stage.file("sent"), stage.file("returned"));
    sh(&format!("head -c {amount_mib}M /dev/urandom > {}", sent.display()));
    let downstream = TcpListener::bind((lan.address(), 0)).expect("a port on the bridge's address");
    let upstream = TcpListener::bind((lan.address(), 0)).expect("a port on the bridge's address");
    let host = lan.address();
    let (down, up) = (port(&downstream), port(&upstream));

    let vm = stage
        .vm()
        .mem(&format!("{}M", 512 + amount_mib))
        .net(lan.net())
        .script(&format!(
            "{ADDRESS} echo address=$(address eth0); ping -c 3 {host} >/dev/null; echo ping=$?
             nc {host} {down} </dev/null >/tmp/data; echo sum=$(sha256sum </tmp/data); nc {host} {up} </tmp/data >/dev/null"
        ))
        .start();
    let address = vm.value("address");
    assert_eq!(vm.value("ping"), "0", "exit code of the guest's ping");
    assert_eq!(lan.guest_ports(), 1, "ports of the guest on the bridge");
    let start = Instant::now();
    send(&downstream, &sent);
    let guest_sum = vm.value("sum");
    let to_guest = start.elapsed();
    receive(&upstream, &returned);
    let from_guest = start.elapsed() - to_guest;
    assert_eq!(vm.wait_exit(), 0, "exit code of minivmm");

    let sum = sha256(&sent);
    println!("lease {address}, ping answered, {amount_mib} MiB each way, SHA-256 {sum}");
    println!("to the guest (with its own sum) {to_guest:.1?}, from the guest {from_guest:.1?}");
    assert_eq!(guest_sum.split_whitespace().next(), Some(sum.as_str()), "SHA-256 in the guest");
    assert_eq!(sha256(&returned), sum, "SHA-256 of what came back");
    assert_eq!(lan.links(), links_before, "the host's links after the guest");
}

fn two_guests(stage: &Stage) {
    let lan = Lan::new();
    let links_before = lan.links();
    let listener = stage
        .vm()
        .name("listener")
        .net(lan.net())
        .script(&format!("{ADDRESS} echo address=$(address eth0); echo heard=$(nc -l -p 4000)"))
        .start();
    let address = listener.value("address");

    let speaker = stage
        .vm()
        .name("speaker")
        .net(lan.net())
        .script(&format!("ping -c 3 {address} >/dev/null; echo ping=$?; echo good morning | nc {address} 4000"))
        .start();

    assert_eq!(speaker.value("ping"), "0", "exit code of the speaker's ping");
    assert_eq!(listener.value("heard"), "good morning");
    assert_eq!((speaker.wait_exit(), listener.wait_exit()), (0, 0), "exit codes");
    assert_eq!(lan.links(), links_before, "the host's links after the guests");
}

fn eight_cards(stage: &Stage) {
    const CARDS: usize = 8;
    let lan = Lan::new();
    let links_before = lan.links();
    let mut machine = stage.vm();
    for _ in 0..CARDS {
        machine = machine.net(lan.net());
    }
    let vm = machine.parameter("minivmm.dhcp=60").start();

    let ready = vm.wait_for_ready();
    let cards = ready["cards"].as_array().expect("a list of cards");
    let mut addresses: Vec<_> = cards.iter().map(|card| card["addresses"][0].as_str().unwrap_or_default()).collect();
    println!("{}", addresses.join(" "));
    assert_eq!(lan.guest_ports(), CARDS, "ports of the guest on the bridge");
    vm.signal(Signal::SIGTERM);
    assert_eq!(vm.wait_exit(), 0, "exit code of minivmm");
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), CARDS, "different addresses");
    assert!(addresses.iter().all(|address| !address.is_empty()), "a card has no address");
    assert_eq!(lan.links(), links_before, "the host's links after the guest");
}

fn amount_mib() -> u64 {
    std::env::var(AMOUNT_VARIABLE).map_or(AMOUNT_DEFAULT_MIB, |text| text.parse().expect("a number of MiB"))
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("the address of a bound socket").port()
}

fn send(listener: &TcpListener, file: &Path) {
    let (mut guest, _) = listener.accept().expect("the guest connects");
    io::copy(&mut File::open(file).expect("the file to send"), &mut guest).expect("sending to the guest");
}

fn receive(listener: &TcpListener, file: &Path) {
    let (mut guest, _) = listener.accept().expect("the guest connects");
    io::copy(&mut guest, &mut File::create(file).expect("a file to fill")).expect("receiving from the guest");
}

fn sha256(file: &Path) -> String {
    let output = sh(&format!("sha256sum {}", file.display()));
    output.split_whitespace().next().unwrap_or_default().to_owned()
}
