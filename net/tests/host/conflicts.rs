//! Other machines with an address of a guest: told once, with both parties, and counted.

use crate::Case;
use crate::guest::send_frame;
use crate::machine::{mac, machine_on_bridge};
use crate::vmm::Vmm;

pub(crate) const CASES: &[Case] = &[
    ("conflict_of_ip_addresses_is_found_by_the_probe_of_the_start", probed),
    ("conflict_of_ip_addresses_is_heard_while_the_vm_runs", claimed),
    ("conflict_of_mac_addresses_is_seen_by_the_bridge", learned),
    ("conflict_is_not_what_the_guest_itself_says", alone),
];

const SPEC: &str = "bridge=br0,antispoof=on,mac=52:54:00:00:00:05,addresses=192.0.2.5";

/// An ARP announcement.
fn announcement(mac: &[u8], ip: [u8; 4]) -> Vec<u8> {
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], mac, &ip, &[0; 6], &ip].concat();
    let mut frame = [&[0xff; 6][..], mac, &[8, 6], &arp].concat();
    frame.resize(60, 0);
    frame
}

/// Ends a VM and returns what was logged.
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
        format!("warn: The guest of card 0 (52:54:00:00:00:05) is not alone: 192.0.2.5 is used by {other} as well\n");
    assert_eq!(end(vmm), expected);
}

fn claimed() {
    let machine = machine_on_bridge();
    let (vmm, _guest) = Vmm::start_bridged("web", SPEC);
    let other = mac(&machine).octets();
    // What is nobody's business, then the same claim twice.
    send_frame(&machine, &announcement(&other, [192, 0, 2, 6]));
    send_frame(&machine, &announcement(&other, [192, 0, 2, 5]));
    assert_eq!(vmm.line(), "conflicts of card 0: 0 macs, 1 addresses");
    send_frame(&machine, &announcement(&other, [192, 0, 2, 5]));
    assert_eq!(vmm.line(), "conflicts of card 0: 0 macs, 2 addresses");
    assert_eq!(end(vmm).matches("is not alone").count(), 1);
}

fn learned() {
    let machine = machine_on_bridge();
    let (vmm, _guest) = Vmm::start_bridged("web", "bridge=br0,mac=52:54:00:00:00:05");
    send_frame(&machine, &announcement(&[0x52, 0x54, 0, 0, 0, 5], [192, 0, 2, 9]));
    assert_eq!(vmm.line(), "conflicts of card 0: 1 macs, 0 addresses");
    let expected =
        "warn: The guest of card 0 (52:54:00:00:00:05) is not alone: its MAC address is used behind port up0 as well\n";
    assert_eq!(end(vmm), expected);
}

fn alone() {
    let machine = machine_on_bridge();
    let (vmm, guest) = Vmm::start_bridged("web", SPEC);
    guest.sh("ip addr add 192.0.2.5/24 dev eth0");
    guest.sh("ping -c 1 -W 5 192.0.2.1");
    machine.sh("ping -c 1 -W 5 192.0.2.5");
    assert_eq!(end(vmm), "");
}
