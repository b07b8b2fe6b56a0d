//! Cards on taps that another program made, by name or by descriptor.

use super::*;

#[test]
fn a_tap_that_is_down_is_raised_for_as_long_as_the_vm_runs() {
    let facts = with(host(), Link { up: false, mtu: 1400, ..tap(9, "tap0") });
    assert_eq!(
        text(&["tap=tap0,mac=52:54:00:12:34:56"], &facts),
        "card 0: mac 52:54:00:12:34:56, mtu 1400, 1 queue pairs\n\
         1. open tap tap0 with 1 queue pairs for card 0; at the end: close it\n\
         2. raise tap0; at the end: lower tap0\n"
    );
}

#[test]
fn descriptors_are_taken_over_with_the_mtu_of_their_tap() {
    let mut facts = with(host(), Link { mtu: 1400, ..tap(9, "tap0") });
    let kind = FdKind::Tun { name: "tap0".to_owned(), frames: true, vnet_header: true };
    facts.fds = vec![FdFact { fd: 3, kind: kind.clone() }, FdFact { fd: 4, kind }];
    assert_eq!(
        text(&["fd=3:4,mac=52:54:00:12:34:56"], &facts),
        "card 0: mac 52:54:00:12:34:56, mtu 1400, 2 queue pairs\n\
         1. take over tap tap0 through 2 descriptors for card 0; at the end: close it\n"
    );
    assert_eq!(refusal(&["fd=3", "fd=3"], &facts), "fd=3 belongs to another card of this VM");
}

#[test]
fn descriptors_of_other_things_are_refused() {
    let tun = |frames, vnet_header, name: &str| FdKind::Tun { name: name.to_owned(), frames, vnet_header };
    let kinds =
        [FdKind::Other, tun(false, true, "a"), tun(true, false, "a"), tun(true, true, "a"), tun(true, true, "b")];
    let fds = (4..).zip(kinds).map(|(fd, kind)| FdFact { fd, kind }).collect();
    let facts = Facts { fds, ..host() };
    assert_eq!(refusal(&["fd=3"], &facts), "fd=3 is not open in this process");
    assert_eq!(refusal(&["fd=4"], &facts), "fd=4 is not a tap");
    assert_eq!(refusal(&["fd=5"], &facts), "fd=5 does not carry plain Ethernet frames");
    assert_eq!(refusal(&["fd=6"], &facts), "fd=6 is a tap without virtio-net headers");
    assert_eq!(refusal(&["fd=7:8"], &facts), "fd= mixes queues of the taps a and b");
}

#[test]
fn names_of_other_things_are_refused() {
    let layer3 = Link { tun: Some(TunFact::default()), ..link(8, "tun0", Some("tun")) };
    let facts = with(with(host(), tap(9, "tap0")), layer3);
    assert_eq!(refusal(&["bridge=nope"], &facts), "Bridge nope does not exist");
    assert_eq!(refusal(&["bridge=eth0"], &facts), "eth0 is not a bridge, it is a network card");
    assert_eq!(refusal(&["bridge=tap0,create=on"], &facts), "tap0 is not a bridge, it is a tap");
    assert_eq!(refusal(&["bridge=lo"], &facts), "lo is not a bridge, it is the loopback interface");
    assert_eq!(refusal(&["tap=nope"], &facts), "Tap nope does not exist");
    assert_eq!(refusal(&["tap=br0"], &facts), "br0 is not a tap, it is a bridge");
    assert_eq!(refusal(&["tap=tun0"], &facts), "tun0 is not a tap, it is a tun device (layer 3)");
}

#[test]
fn a_tap_has_one_user_and_its_own_number_of_queues() {
    let mut facts = with(host(), tap(9, "tap0"));
    assert_eq!(refusal(&["tap=tap0,queues=2"], &facts), "Tap tap0 has one queue, and queues=2 needs more");
    assert_eq!(refusal(&["tap=tap0", "tap=tap0"], &facts), "Tap tap0 is held by another process or card");
    facts.links[4].tun = Some(TunFact { tap: true, multi_queue: true, queues_open: 1 });
    assert_eq!(refusal(&["tap=tap0"], &facts), "Tap tap0 is held by another process or card");
}
