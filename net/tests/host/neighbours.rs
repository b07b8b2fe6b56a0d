//! A guest's IPv6 addresses: those of its MAC, and those that it has probed for first. Names and forwarded ports follow
//! them.

use std::net::Ipv6Addr;

use net::MacAddr;

use crate::Case;
use crate::guest::{Namespace, ask_tcp, echo, send_frame};
use crate::lan::{link, sh, until};
use crate::machine::machine_on_bridge;
use crate::vmm::Vmm;

pub(crate) const CASES: &[Case] = &[
    ("neighbour_advertised_by_a_sibling_stays_where_it_is", advertised),
    ("neighbour_with_stable_privacy_is_found_by_name_and_by_forwarded_ports", stable),
    ("neighbour_who_asked_first_has_the_address", first),
    ("neighbour_has_no_more_addresses_than_are_meant_for_it", bounded),
    ("neighbour_on_a_bridge_has_no_address_to_which_a_machine_objects", objection),
];

/// Neighbour discovery of this type about `target`, from `source` behind `mac`.
fn discovery(mac: [u8; 6], kind: u8, source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
    // The flags of an advertisement.
    let body = [&[kind, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets(), &[2, 1], &mac].concat();
    let pseudo = [&source.octets()[..], &to, &[0, 0, 0, 32, 0, 0, 0, 58], &body].concat();
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    let mut frame = [&[0x33, 0x33, 0, 0, 0, 1][..], &mac, &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]].concat();
    frame.extend(source.octets());
    frame.extend(to);
    frame.extend(body);
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The address made of a prefix and a MAC.
fn of_mac(prefix: Ipv6Addr, mac: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.octets();
    let identifier = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from_bits(prefix.to_bits() >> 64 << 64 | u128::from(identifier))
}

const LINK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);

/// The addresses of a guest that have passed duplicate address detection, of this scope.
fn addresses(guest: &Namespace, scope: &str) -> Vec<Ipv6Addr> {
    let text = guest.sh(&format!("ip -6 -o addr show dev eth0 scope {scope} -tentative -dadfailed"));
    let words = text.lines().filter_map(|line| line.split_whitespace().nth(3));
    words.map(|word| word.split('/').next().unwrap().parse().unwrap()).collect()
}

/// The IPv6 address known for a tap's guest.
fn known(tap: &str) -> Ipv6Addr {
    let alias = link(tap)["ifalias"].as_str().unwrap().to_owned();
    alias.split(' ').find_map(|word| word.strip_prefix("ip6=")).unwrap().parse().unwrap()
}

fn dropped(vm: &str, reason: &str) -> u64 {
    net::inventory::dropped(vm).unwrap().get(reason).copied().unwrap_or_default()
}

/// The host's neighbour entry for an address on the network.
fn found(address: Ipv6Addr) -> String {
    sh(&format!("ip -6 neigh show {address} dev mvn-default"))
}

/// Turns on stable privacy addresses in a guest, the default of most distributions, and waits for the global one.
fn make_stable(guest: &Namespace, secret: &str) -> Ipv6Addr {
    guest.sh("ip link set eth0 down");
    guest.sh(&format!("sysctl -q net.ipv6.conf.eth0.stable_secret={secret}"));
    guest.sh("ip link set eth0 up");
    until(|| !addresses(guest, "global").is_empty());
    addresses(guest, "global")[0]
}

/// Ends a VM whose log may report addresses that its guest did not get.
fn end(mut vmm: Vmm) {
    assert_eq!(vmm.order("stop"), "stopped");
    let text = vmm.end();
    assert!(text.lines().all(|line| line.contains("may not use")), "{text}");
}

fn advertised() {
    sh("ip link set lo up");
    let (first, web) = Vmm::start_with_guest("web", "nat,ipv6=on");
    let (second, db) = Vmm::start_with_guest("db", "nat,ipv6=on");
    let victim = known("vmtap1");
    until(|| addresses(&db, "global").contains(&victim) && !addresses(&web, "global").is_empty());
    let gateway = Ipv6Addr::from_bits(victim.to_bits() >> 64 << 64 | 1);
    db.sh(&format!("ping -6 -c 1 -W 5 {gateway}"));
    let (own, theirs) = (MacAddr::for_vm("web", 0), MacAddr::for_vm("db", 0));
    until(|| found(victim).contains(&theirs.to_string()));
    let so_far = dropped("web", "spoofed-nd");
    let source = of_mac(LINK, own);
    let targets = [victim, of_mac(LINK, theirs), "fe80::1".parse().unwrap(), gateway];
    for (idx, target) in (1..).zip(targets) {
        send_frame(&web, &discovery(own.octets(), 136, source, target));
        until(|| dropped("web", "spoofed-nd") == so_far + idx);
    }
    // It does not answer for them or probe for them, either.
    let spoofed = dropped("web", "spoofed-ip");
    send_frame(&web, &discovery(own.octets(), 135, victim, gateway));
    until(|| dropped("web", "spoofed-ip") == spoofed + 1);
    send_frame(&web, &discovery(own.octets(), 135, Ipv6Addr::UNSPECIFIED, victim));
    assert!(found(victim).contains(&theirs.to_string()), "{}", found(victim));
    sh(&format!("ping -6 -c 1 -W 5 {victim}"));
    db.sh(&format!("ping -6 -c 1 -W 5 {gateway}"));
    assert!(addresses(&db, "global").contains(&victim));
    end(first);
    second.stop();
}

fn stable() {
    let world = Namespace::behind("up0", "198.51.100.1/24", "198.51.100.2/24");
    sh("ip link set lo up");
    sh("sysctl -q net.ipv6.conf.up0.disable_ipv6=0");
    sh("ip -6 addr add 2001:db8:1::2/64 dev up0 nodad");
    world.sh("ip -6 addr add 2001:db8:1::1/64 dev eth0 nodad");
    let (first, web) = Vmm::start_with_guest("web", "nat,ipv6=on,forward=tcp:8080:80");
    let (second, db) = Vmm::start_with_guest("db", "nat,ipv6=on");
    let guess = known("vmtap0");
    let own = make_stable(&web, "2001:db8::1");
    assert_ne!(own, guess);
    until(|| known("vmtap0") == own);
    echo(&web, 80);
    until(|| db.sh("ip -6 route").contains("default via fe80::1 "));
    // The address is the guest's, its name leads there, and so does the host's port.
    web.sh("ping -6 -c 1 -W 5 fe80::1%eth0");
    let gateway = Ipv6Addr::from_bits(own.to_bits() >> 64 << 64 | 1);
    web.sh(&format!("ping -6 -c 1 -W 5 -I {own} {gateway}"));
    let (ok, text) = db.attempt("dig +short @fe80::1%eth0 web.minivmm AAAA");
    assert_eq!((ok, text.trim().to_owned()), (true, own.to_string()));
    assert!(ask_tcp(&db, &format!("[{own}]:80")).is_some());
    assert_eq!(ask_tcp(&world, "[2001:db8:1::2]:8080"), Some("2001:db8:1::1".parse().unwrap()));
    // The guest boots with other addresses: name and port follow again.
    let next = make_stable(&web, "2001:db8::2");
    assert_ne!(next, own);
    until(|| known("vmtap0") == next);
    assert_eq!(ask_tcp(&world, "[2001:db8:1::2]:8080"), Some("2001:db8:1::1".parse().unwrap()));
    end(first);
    second.stop();
}

fn first() {
    sh("ip link set lo up");
    let (first, web) = Vmm::start_with_guest("web", "nat,ipv6=on");
    let (second, db) = Vmm::start_with_guest("db", "nat,ipv6=on");
    let own = make_stable(&db, "2001:db8::1");
    until(|| known("vmtap1") == own);
    let gateway = Ipv6Addr::from_bits(own.to_bits() >> 64 << 64 | 1);
    // A clone, or an attacker who knows the address, learns that the address is taken.
    until(|| !addresses(&web, "global").is_empty());
    web.sh(&format!("ip -6 addr add {own}/64 dev eth0"));
    until(|| web.sh("ip -6 addr show dev eth0 dadfailed").contains(&own.to_string()));
    web.sh(&format!("ip -6 addr del {own}/64 dev eth0"));
    // Without a probe it does not get it, either.
    web.sh(&format!("ip -6 addr add {own}/64 dev eth0 nodad"));
    let spoofed = dropped("web", "spoofed-ip");
    assert!(!web.attempt(&format!("ping -6 -c 1 -W 1 -I {own} {gateway}")).0);
    assert!(dropped("web", "spoofed-ip") > spoofed);
    web.sh(&format!("ip -6 addr del {own}/64 dev eth0"));
    db.sh(&format!("ping -6 -c 1 -W 5 -I {own} {gateway}"));
    sh(&format!("ping -6 -c 1 -W 5 {own}"));
    // It is free once its guest has gone.
    second.stop();
    web.sh(&format!("ip -6 addr add {own}/64 dev eth0"));
    until(|| addresses(&web, "global").contains(&own));
    until(|| web.attempt(&format!("ping -6 -c 1 -W 1 -I {own} {gateway}")).0);
    end(first);
}

/// The number of addresses that a tap's guest has claimed, from the tap's alternative names.
fn claimed(tap: &str) -> usize {
    link(tap)["altnames"].as_array().map_or(0, |names| {
        names.iter().filter(|name| name.as_str().is_some_and(|name| name.starts_with("mv6-"))).count()
    })
}

fn bounded() {
    let (vmm, guest) = Vmm::start_with_guest("web", "nat,ipv6=on");
    let prefix = known("vmtap0").to_bits() >> 64 << 64;
    let own = MacAddr::for_vm("web", 0).octets();
    for identifier in 0..64_u32 {
        let address = Ipv6Addr::from_bits(prefix | 0x1234_5678_0000_0000 | u128::from(identifier));
        send_frame(&guest, &discovery(own, 135, Ipv6Addr::UNSPECIFIED, address));
    }
    // A burst of 16, then one more every second.
    until(|| claimed("vmtap0") >= 16);
    assert!(claimed("vmtap0") <= 20, "{}", claimed("vmtap0"));
    let so_far = claimed("vmtap0");
    // Addresses of other machines, of routers and of other networks are never claimed.
    for text in ["fe80::5054:ff:fe12:3456", "fe80::1", "fe80::"] {
        send_frame(&guest, &discovery(own, 135, Ipv6Addr::UNSPECIFIED, text.parse().unwrap()));
    }
    let foreign = dropped("web", "spoofed-nd");
    send_frame(&guest, &discovery(own, 135, Ipv6Addr::UNSPECIFIED, "2001:db8::1".parse().unwrap()));
    until(|| dropped("web", "spoofed-nd") == foreign + 1);
    assert!(claimed("vmtap0") <= so_far + 2);
    end(vmm);
}

fn objection() {
    let machine = machine_on_bridge();
    let (vmm, guest) = Vmm::start_bridged("web", "bridge=br0,antispoof=on,addresses=192.0.2.5");
    let theirs: Ipv6Addr = "fe80::1234:5678:9abc:def0".parse().unwrap();
    machine.sh(&format!("ip -6 addr add {theirs}/64 dev eth0 nodad"));
    until(|| machine.sh("ip -6 addr show dev eth0 -tentative").contains("fe80::1234"));
    let claim = |address: Ipv6Addr| {
        send_frame(&guest, &discovery(MacAddr::for_vm("web", 0).octets(), 135, Ipv6Addr::UNSPECIFIED, address));
    };
    claim(theirs);
    until(|| claimed("vmtap0") == 1);
    until(|| claimed("vmtap0") == 0);
    // No machine has this address.
    let free: Ipv6Addr = "fe80::1234:5678:9abc:def1".parse().unwrap();
    guest.sh("sysctl -q net.ipv6.conf.eth0.disable_ipv6=0");
    guest.sh(&format!("ip -6 addr add {free}/64 dev eth0"));
    until(|| machine.attempt(&format!("ping -6 -c 1 -W 1 {free}%eth0")).0);
    assert_eq!(claimed("vmtap0"), 1);
    // The machine's address cannot be used without a probe, either.
    let spoofed = dropped("web", "spoofed-nd");
    send_frame(&guest, &discovery(MacAddr::for_vm("web", 0).octets(), 136, free, theirs));
    until(|| dropped("web", "spoofed-nd") == spoofed + 1);
    end(vmm);
}
