//! The descriptors that the keeper hands over: they carry frames, of new, existing and inherited taps.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use net::{Keeper, Port, Request};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Case;
use crate::lan::{bridge_with_uplink, empty_bridge, exists, link, sh, snapshot};
use crate::vmm::{DEADLINE, Vmm};

pub(crate) const CASES: &[Case] = &[
    ("frames_pass_between_two_ports_of_a_bridge", frames_pass),
    ("frames_pass_through_every_queue", every_queue),
    ("frames_pass_through_every_queue_of_a_macvtap", every_queue_of_a_macvtap),
    ("tap_that_exists_is_opened_and_left_as_it_was", existing_tap),
    ("tap_with_many_queues_is_opened", existing_multi_queue_tap),
    ("tap_on_a_bridge_stays_there", existing_tap_on_a_bridge),
    ("fd_of_an_open_tap_is_taken_over", inherited),
    ("no_cards_need_no_keeper", no_cards),
    ("keeper_lets_go_of_everything_it_does_not_need", keeper_is_detached),
];

/// Bytes before every frame: `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;

fn start(vm_name: &str, cards: &[&str]) -> (Keeper, Vec<Port>) {
    let cards = cards.iter().map(|card| card.parse().unwrap()).collect();
    let mut keeper =
        Keeper::start(&Request { vm_name: vm_name.to_owned(), vcpus: 1, cards, policy: None, steering: None }).unwrap();
    let ports = keeper.ports().unwrap();
    (keeper, ports)
}

/// A broadcast frame of a local experimental type (0x88b5) with a virtio-net header that requests nothing.
fn frame(from: &Port, payload: &str) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend([0xff; 6]);
    frame.extend(from.mac.octets());
    frame.extend([0x88, 0xb5]);
    frame.extend(payload.as_bytes());
    frame.resize(HEADER + 60, 0);
    frame
}

fn file(fd: &OwnedFd) -> File {
    File::from(fd.try_clone().unwrap())
}

/// Reads frames from any of a port's queues until `wanted` comes.
fn expect_frame(port: &Port, wanted: &[u8]) {
    let end = Instant::now() + DEADLINE;
    let mut buffer = [0; 2048];
    while Instant::now() < end {
        let mut fds: Vec<PollFd<'_>> = port.fds.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut fds, PollTimeout::from(1000u16)).unwrap();
        for fd in &port.fds {
            match file(fd).read(&mut buffer) {
                // The receiver's header counts buffers (num_buffers); the frame itself is unchanged.
                Ok(length) if buffer[HEADER..length] == wanted[HEADER..] => return,
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
    }
    panic!("the frame did not arrive");
}

fn frames_pass() {
    empty_bridge("br0");
    let (keeper, ports) = start("web", &["bridge=br0", "bridge=br0"]);
    for (from, to) in [(0, 1), (1, 0)] {
        let frame = frame(&ports[from], "hello");
        file(&ports[from].fds[0]).write_all(&frame).unwrap();
        expect_frame(&ports[to], &frame);
    }
    drop(ports);
    keeper.stop().unwrap();
}

fn every_queue() {
    empty_bridge("br0");
    through_every_queue("bridge=br0,queues=4");
}

fn every_queue_of_a_macvtap() {
    bridge_with_uplink("br0");
    through_every_queue("macvtap=peer0,queues=4");
}

fn through_every_queue(spec: &str) {
    let (keeper, ports) = start("web", &[spec, spec]);
    for (queue, fd) in ports[0].fds.iter().enumerate() {
        let frame = frame(&ports[0], &format!("queue {queue}"));
        file(fd).write_all(&frame).unwrap();
        expect_frame(&ports[1], &frame);
    }
    drop(ports);
    keeper.stop().unwrap();
}

fn existing_tap() {
    sh("ip tuntap add tap0 mode tap");
    sh("ip link set tap0 mtu 1400");
    let before = link("tap0");
    let (keeper, ports) = start("web", &["tap=tap0,mac=52:54:00:00:00:01"]);
    assert_eq!(ports[0].tap_name, "tap0");
    assert_eq!(ports[0].bridge, None);
    assert_eq!(ports[0].mtu, 1400);
    assert!(link("tap0")["flags"].as_array().unwrap().contains(&"UP".into()));
    file(&ports[0].fds[0]).write_all(&frame(&ports[0], "hello")).unwrap();
    drop(ports);
    keeper.stop().unwrap();
    assert_eq!(link("tap0")["flags"], before["flags"]);
    assert_eq!(link("tap0")["address"], before["address"]);
}

fn existing_multi_queue_tap() {
    sh("ip tuntap add tap0 mode tap multi_queue");
    let (keeper, ports) = start("web", &["tap=tap0,queues=3"]);
    assert_eq!(ports[0].fds.len(), 3);
    assert_eq!(link("tap0")["linkinfo"]["info_data"]["numqueues"], 3);
    drop(ports);
    keeper.stop().unwrap();
    let (keeper, ports) = start("web", &["tap=tap0"]);
    assert_eq!(ports[0].fds.len(), 1);
    drop(ports);
    keeper.stop().unwrap();
    assert!(exists("tap0"));
}

fn existing_tap_on_a_bridge() {
    bridge_with_uplink("br0");
    sh("ip tuntap add tap0 mode tap");
    sh("ip link set tap0 master br0 up");
    let (keeper, ports) = start("web", &["tap=tap0"]);
    drop(ports);
    keeper.stop().unwrap();
    assert_eq!(link("tap0")["master"], "br0");
}

fn inherited() {
    empty_bridge("br0");
    let (keeper, ports) = start("maker", &["bridge=br0", "bridge=br0,queues=2"]);
    let numbers: Vec<String> = ports[1].fds.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
    let (adopter, adopted) = start("user", &[&format!("fd={}", numbers.join(":"))]);
    assert_eq!(adopted[0].tap_name, ports[1].tap_name);
    assert_eq!(adopted[0].fds.len(), 2);
    let frame = frame(&adopted[0], "hello");
    file(&adopted[0].fds[1]).write_all(&frame).unwrap();
    expect_frame(&ports[0], &frame);
    drop(adopted);
    adopter.stop().unwrap();
    assert!(exists(&ports[1].tap_name));
    drop(ports);
    keeper.stop().unwrap();
}

fn no_cards() {
    let (keeper, ports) = start("web", &[]);
    assert!(ports.is_empty());
    assert!(keeper.socket().is_none());
    keeper.stop().unwrap();
}

fn keeper_is_detached() {
    bridge_with_uplink("br0");
    let before = snapshot();
    let vmm = Vmm::start("web", &["bridge=br0,queues=2"]);
    let keeper = format!("/proc/{}", vmm.keeper());
    let targets = std::fs::read_dir(format!("{keeper}/fd")).unwrap().flatten();
    let targets: Vec<String> =
        targets.map(|fd| std::fs::read_link(fd.path()).unwrap().to_string_lossy().into_owned()).collect();
    assert!(!targets.iter().any(|target| target.contains("tun")), "{targets:?}");
    assert_eq!(targets.iter().filter(|target| *target == "/dev/null").count(), 2, "{targets:?}");
    assert_eq!(targets.iter().filter(|target| target.starts_with("pipe:")).count(), 1, "{targets:?}");
    let status = std::fs::read_to_string(format!("{keeper}/status")).unwrap();
    assert!(status.contains("\nThreads:\t1\n"));
    let stat = std::fs::read_to_string(format!("{keeper}/stat")).unwrap();
    let group = stat.rsplit_once(") ").unwrap().1.split(' ').nth(2).unwrap().to_owned();
    assert_eq!(group, vmm.keeper().to_string());
    for signal in ["INT", "TERM", "HUP", "QUIT", "TSTP"] {
        sh(&format!("kill -s {signal} {}", vmm.keeper()));
    }
    vmm.stop();
    assert_eq!(snapshot(), before);
}
