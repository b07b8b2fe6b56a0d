//! Other machines with a guest's address: logged once, with both parties, and counted.

use std::net::Ipv6Addr;

use crate::Case;
use crate::guest::send_frame;
use crate::lan::{link, until};
use crate::machine::{give6, mac, machine_on_bridge};
use crate::vmm::Vmm;

pub(crate) const CASES: &[Case] = &[
    ("conflict_of_ip_addresses_is_found_by_the_probe_of_the_start", probed),
    ("conflict_of_ip_addresses_is_heard_while_the_vm_runs", claimed),
    ("conflict_of_ipv6_addresses_is_found_by_the_question_of_the_start", solicited),
    ("conflict_of_ipv6_addresses_is_heard_while_the_vm_runs", advertised),
    ("conflict_of_ipv6_addresses_on_a_network_of_ours_is_heard", derived),
    ("conflict_of_mac_addresses_is_seen_by_the_bridge", learned),
    ("conflict_is_not_what_the_guest_itself_says", alone),
];

const SPEC: &str = "bridge=br0,antispoof=on,mac=52:54:00:00:00:05,addresses=192.0.2.5+2001:db8::6+2001:db8::5";
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// An ARP announcement.
fn announcement(mac: &[u8], ip: [u8; 4]) -> Vec<u8> {
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], mac, &ip, &[0; 6], &ip].concat();
    let mut frame = [&[0xff; 6][..], mac, &[8, 6], &arp].concat();
    frame.resize(60, 0);
    frame
}

/// Neighbour discovery of this type about `target`.
fn discovery(mac: [u8; 6], kind: u8, source: &str, target: &str) -> Vec<u8> {
    let [source, target] = [source, target].map(|text| text.parse::<Ipv6Addr>().unwrap().octets());
    let header = [0x60, 0, 0, 0, 0, 24, 58, 255];
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
    [&[0x33, 0x33, 0, 0, 0, 1][..], &mac, &[0x86, 0xdd], &header, &source, &to, &[kind, 0, 0, 0, 0, 0, 0, 0], &target]
        .concat()
}

/// Waits until a process listens for claims of both IP versions here.
fn until_claims_are_heard() {
    let hears = |protocol: &str| {
        let sockets = std::fs::read_to_string("/proc/net/packet").unwrap();
        sockets.lines().any(|socket| socket.split_whitespace().nth(3) == Some(protocol))
    };
    until(|| hears("0806") && hears("86dd"));
}

/// Ends a VM and returns its log.
fn end(mut vmm: Vmm) -> String {
    assert_eq!(vmm.order("stop"), "stopped");
    vmm.end()
}

fn probed() {
    let machine = machine_on_bridge();
    machine.sh("ip addr add 192.0.2.5/24 dev eth0");
    let (vmm, _guest) = Vmm::start_bridged("web", SPEC);
    assert_eq!(vmm.line(), "conflicts of card 0: 0 macs, 1 addresses");
    let other = mac(&machine);
    let expected =
        format!("warn: Address conflict of card 0 (52:54:00:00:00:05): 192.0.2.5 is used by {other} as well\n");
    assert_eq!(end(vmm), expected);
}

fn claimed() {
    let machine = machine_on_bridge();
    let (vmm, _guest) = Vmm::start_bridged("web", SPEC);
    until_claims_are_heard();
    let other = mac(&machine).octets();
    // An unrelated claim, then the same claim twice.
    send_frame(&machine, &announcement(&other, [192, 0, 2, 6]));
    send_frame(&machine, &announcement(&other, [192, 0, 2, 5]));
    assert_eq!(vmm.line(), "conflicts of card 0: 0 macs, 1 addresses");
    send_frame(&machine, &announcement(&other, [192, 0, 2, 5]));
    assert_eq!(vmm.line(), "conflicts of card 0: 0 macs, 2 addresses");
    assert_eq!(end(vmm).matches("Address conflict").count(), 1);
}

fn solicited() {
    let machine = machine_on_bridge();
    give6(&machine, "2001:db8::5");
    let (vmm, _guest) = Vmm::start_bridged("web", SPEC);
    assert_eq!(vmm.line(), "conflicts of card 0: 0 macs, 1 addresses");
    let other = mac(&machine);
    let expected =
        format!("warn: Address conflict of card 0 (52:54:00:00:00:05): 2001:db8::5 is used by {other} as well\n");
    assert_eq!(end(vmm), expected);
}

fn advertised() {
    let machine = machine_on_bridge();
    let (vmm, _guest) = Vmm::start_bridged("web", SPEC);
    until_claims_are_heard();
    let other = mac(&machine).octets();
    let mut routed = discovery(other, ADVERTISEMENT, "2001:db8::1", "2001:db8::5");
    routed[21] = 64;
    // Irrelevant frames: about other addresses, from beyond the link, and the solicitation of a machine with another
    // address.
    for frame in [
        discovery(other, ADVERTISEMENT, "2001:db8::1", "2001:db8::7"),
        discovery(other, ADVERTISEMENT, "2001:db8::1", "2001:db8:0:0:1::5"),
        routed,
        discovery(other, SOLICITATION, "2001:db8::1", "2001:db8::5"),
    ] {
        send_frame(&machine, &frame);
    }
    send_frame(&machine, &discovery(other, ADVERTISEMENT, "2001:db8::5", "2001:db8::5"));
    assert_eq!(vmm.line(), "conflicts of card 0: 0 macs, 1 addresses");
    // A probe by a machine that is about to take it.
    send_frame(&machine, &discovery(other, SOLICITATION, "::", "2001:db8::6"));
    assert_eq!(vmm.line(), "conflicts of card 0: 0 macs, 2 addresses");
    let text = end(vmm);
    assert_eq!(text.matches("Address conflict").count(), 2, "{text}");
}

fn derived() {
    let (vmm, _guest) = Vmm::start_with_guest("web", "nat=lab,ipv6=on");
    until_claims_are_heard();
    let alias = link("vmtap0")["ifalias"].as_str().unwrap().to_owned();
    let (_, address) = alias.split_once("ip6=").unwrap();
    let (sibling, db) = Vmm::start_with_guest("db", "nat=lab,ipv6=on,antispoof=off");
    send_frame(&db, &discovery([2, 0, 0, 0, 0, 9], ADVERTISEMENT, address, address));
    assert_eq!(vmm.line(), "conflicts of card 0: 0 macs, 1 addresses");
    let expected = format!("{address} is used by 02:00:00:00:00:09 as well");
    let text = end(vmm);
    assert!(text.contains(&expected), "{text}");
    sibling.stop();
}

fn learned() {
    let machine = machine_on_bridge();
    let (vmm, _guest) = Vmm::start_bridged("web", "bridge=br0,mac=52:54:00:00:00:05");
    send_frame(&machine, &announcement(&[0x52, 0x54, 0, 0, 0, 5], [192, 0, 2, 9]));
    assert_eq!(vmm.line(), "conflicts of card 0: 1 macs, 0 addresses");
    let expected =
        "warn: Address conflict of card 0 (52:54:00:00:00:05): its MAC address is used behind port up0 as well\n";
    assert_eq!(end(vmm), expected);
}

fn alone() {
    let machine = machine_on_bridge();
    let (vmm, guest) = Vmm::start_bridged("web", SPEC);
    guest.sh("ip addr add 192.0.2.5/24 dev eth0");
    guest.sh("ping -c 1 -W 5 192.0.2.1");
    machine.sh("ping -c 1 -W 5 192.0.2.5");
    give6(&guest, "2001:db8::5");
    send_frame(&guest, &discovery([0x52, 0x54, 0, 0, 0, 5], SOLICITATION, "::", "2001:db8::5"));
    guest.sh("ping -c 1 -W 5 2001:db8::1");
    machine.sh("ping -c 1 -W 5 2001:db8::5");
    assert_eq!(end(vmm), "");
}
