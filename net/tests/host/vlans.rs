//! Many VLANs on one bridge, for kernels whose bridges have VLANs. On other kernels, a scenario runs these cases in the
//! host VM.

use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt};

use crate::Case;
use crate::guest::{Namespace, ask_udp, echo};
use crate::lan::{names, sh, snapshot};
use crate::vmm::{DEADLINE, Vmm};

pub(crate) const CASES: &[Case] = &[("vlans_by_the_hundred_on_one_bridge_are_kept_apart", hundred)];

/// The VLANs of the trunk.
const VLANS: std::ops::Range<u16> = 100..200;

/// The VLAN with guests of its own.
const OWN: u16 = 150;

/// The port of broadcasts.
const TO_ALL: u16 = 9;

/// True if bridges of this namespace can keep VLANs apart.
pub(crate) fn are_there() -> bool {
    let mut command = Command::new("ip");
    let output = command.args("link add vlans type bridge vlan_filtering 1".split(' ')).output();
    let are_there = output.is_ok_and(|output| output.status.success());
    if are_there {
        sh("ip link del vlans");
    }
    are_there
}

/// The role that reports whether this kernel has them: exit code 0 if it does.
pub(crate) fn probe() -> bool {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    are_there()
}

fn hundred() {
    let before = snapshot();
    let trunk = |name| Vmm::start_bridged(name, "bridge=lan,create=on,trunk=100-199");
    let own = |name, vlan: u16, address: &str| {
        let (vmm, guest) = Vmm::start_bridged(name, &format!("bridge=lan,vlan={vlan}"));
        guest.sh(&format!("ip addr add {address}/24 dev eth0"));
        (vmm, guest)
    };
    let (first, one) = trunk("one");
    let (second, two) = trunk("two");
    for (guest, own) in [(&one, 1), (&two, 2)] {
        let lines = VLANS.map(|vlan| {
            format!(
                "link add link eth0 name v{vlan} type vlan id {vlan}
                 addr add 10.0.{vlan}.{own}/24 dev v{vlan}
                 link set v{vlan} up\n"
            )
        });
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(lines.collect::<String>().as_bytes()).expect("room for it");
        guest.sh(&format!("ip -batch {}", file.path().display()));
    }
    let (third, red) = own("red", OWN, "10.0.150.5");
    let (fourth, pink) = own("pink", OWN, "10.0.150.6");
    let (fifth, blue) = own("blue", OWN + 1, "10.0.150.7");

    // In each VLAN, its two trunk guests reach each other.
    echo(&two, 7);
    for vlan in VLANS {
        let seen = ask_udp(&one, &format!("10.0.{vlan}.2:7"));
        assert_eq!(seen, Some(format!("10.0.{vlan}.1").parse().unwrap()), "VLAN {vlan}");
    }
    // An untagged guest of a VLAN reaches the guests in it.
    echo(&red, 7);
    for (guest, address) in [(&pink, Some("10.0.150.6")), (&one, Some("10.0.150.1")), (&blue, None)] {
        assert_eq!(ask_udp(guest, "10.0.150.5:7"), address.map(|address| address.parse().unwrap()));
    }
    // A broadcast reaches all in its VLAN, tagged on trunks.
    let heard = [&two, &red, &pink, &blue].map(listen);
    for vlan in VLANS {
        tell_all(&one, vlan);
    }
    let [by_two, by_red, by_pink, by_blue] = heard.map(|socket| collect(&socket));
    assert_eq!(by_two, VLANS.collect::<Vec<_>>());
    assert_eq!([by_red, by_pink, by_blue], [[OWN], [OWN], [OWN + 1]]);

    for vmm in [first, second, third, fourth, fifth] {
        vmm.stop();
    }
    assert_eq!(snapshot(), before);
    assert!(names().is_empty());
}

/// A socket for broadcasts.
fn listen(guest: &Namespace) -> UdpSocket {
    guest.within(|| UdpSocket::bind(("0.0.0.0", TO_ALL)).expect("a socket"))
}

/// Broadcasts a VLAN's number in it.
fn tell_all(guest: &Namespace, vlan: u16) {
    let socket = guest.within(|| UdpSocket::bind("0.0.0.0:0").expect("a socket"));
    let device = std::ffi::OsString::from(format!("v{vlan}"));
    setsockopt(&socket, sockopt::BindToDevice, &device).expect("the VLAN's interface");
    socket.set_broadcast(true).expect("a broadcast");
    let all: SocketAddr = ([255; 4], TO_ALL).into();
    socket.send_to(&vlan.to_be_bytes(), all).expect("a datagram that goes");
}

/// The numbers that arrive: the first within the deadline, more until none has come for a while.
fn collect(socket: &UdpSocket) -> Vec<u16> {
    let mut bytes = [0; 2];
    socket.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    let mut heard = Vec::new();
    while socket.recv_from(&mut bytes).is_ok() {
        heard.push(u16::from_be_bytes(bytes));
        socket.set_read_timeout(Some(DEADLINE / 20)).expect("a deadline");
    }
    heard
}
