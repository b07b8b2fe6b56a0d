//! Lookups of outside names under load, and with broken resolvers.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::Case;
use crate::guest::{Namespace, configure};
use crate::lan::sh;
use crate::nat::{address, gateway};
use crate::services::Resolver;
use crate::vmm::{DEADLINE, Vmm, itself};

pub(crate) const CASES: &[Case] = &[
    ("names_wait_once_for_a_resolver_that_is_dead", dead),
    ("names_asked_a_thousand_at_once_are_all_answered", thousand),
    ("names_asked_on_40_connections_are_all_answered", connections),
    ("names_asked_over_tcp_are_known_to_a_resolver_without_tcp", without_tcp),
];

/// Timeout for a lookup that waits for nothing.
const PROMPT: Duration = Duration::from_millis(1000);

/// A guest whose host asks these resolvers, and its gateway.
fn start(resolvers: &[&str]) -> (Vmm, Namespace, String, tempfile::TempDir) {
    start_with("nat", resolvers)
}

/// The same for any card on a network of ours.
pub(crate) fn start_with(spec: &str, resolvers: &[&str]) -> (Vmm, Namespace, String, tempfile::TempDir) {
    sh("ip link set lo up");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resolv.conf");
    std::fs::write(&path, resolvers.iter().map(|address| format!("nameserver {address}\n")).collect::<String>())
        .unwrap();
    let mut command = itself(&["vmm", "web", spec]);
    command.env("RESOLV_CONF", &path);
    let vmm = Vmm::from_command(command);
    vmm.taps();
    let guest = vmm.guest();
    let own = address("vmtap0");
    configure(&guest, &own, &gateway(&own));
    (vmm, guest, gateway(&own), folder)
}

/// A question for the address of a name under example.org.
pub(crate) fn question(id: u16, host: &str) -> Vec<u8> {
    let mut message = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in [host, "example", "org"] {
        message.push(label.len().try_into().unwrap());
        message.extend(label.as_bytes());
    }
    [&message[..], &[0, 0, 1, 0, 1]].concat()
}

fn dead() {
    let _silent = {
        sh("ip link set lo up");
        UdpSocket::bind("127.0.0.9:53").unwrap()
    };
    let _resolver = Resolver::start("127.0.0.1", "192.0.2.33");
    let (vmm, guest, gateway, _folder) = start(&["127.0.0.9", "127.0.0.1"]);
    let ask = |host: &str| {
        let begin = Instant::now();
        let text = guest.sh(&format!("dig @{gateway} +tries=1 +time=8 +short {host}.example.org"));
        assert_eq!(text.trim(), "192.0.2.33");
        begin.elapsed()
    };
    println!("first lookup {:?}", ask("first"));
    let later: Vec<Duration> = (0..5).map(|idx| ask(&format!("x{idx}"))).collect();
    assert!(later.iter().all(|time| *time < PROMPT), "{later:?}");
    vmm.stop();
}

fn thousand() {
    let _resolver = Resolver::start("127.0.0.1", "192.0.2.33");
    let (vmm, guest, gateway, _folder) = start(&["127.0.0.1"]);
    guest.sh(&format!("ping -c 1 -W 5 {gateway}"));
    // The tap that stands for the guest's card has room for 500 frames; a thread of this test empties it.
    guest.sh("ip link set eth0 txqueuelen 2000");
    let socket = guest.within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.connect(format!("{gateway}:53")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let reader = socket.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = [0; 1500];
        let answers = std::iter::from_fn(|| reader.recv(&mut bytes).ok().map(|_| (bytes[..2].to_vec(), bytes[3] & 15)));
        answers.filter(|(_, code)| *code == 0).map(|(id, _)| id).collect::<BTreeSet<_>>()
    });
    for id in 0..1000 {
        socket.send(&question(id, &format!("x{id}"))).unwrap();
    }
    assert_eq!(reader.join().unwrap().len(), 1000);
    vmm.stop();
}

fn connections() {
    let _resolver = Resolver::start("127.0.0.1", "192.0.2.33");
    let (vmm, guest, gateway, _folder) = start(&["127.0.0.1"]);
    let to = format!("{gateway}:53");
    let connect = || guest.within(|| TcpStream::connect(&to).unwrap());
    let mut streams: Vec<TcpStream> = (0..40).map(|_| connect()).collect();
    for (stream, id) in streams.iter_mut().zip(0..) {
        let message = question(id, &format!("x{id}"));
        let len = u16::try_from(message.len()).unwrap().to_be_bytes();
        stream.write_all(&[&len[..], &message].concat()).unwrap();
    }
    for (stream, id) in streams.iter_mut().zip(0_u16..) {
        stream.set_read_timeout(Some(DEADLINE / 4)).unwrap();
        let mut head = [0; 6];
        stream.read_exact(&mut head).unwrap();
        assert_eq!((&head[2..4], head[5] & 15), (&id.to_be_bytes()[..], 0), "connection {id}");
    }
    vmm.stop();
}

fn without_tcp() {
    sh("ip link set lo up");
    let resolver = UdpSocket::bind("127.0.0.1:53").unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 1500];
        while let Ok((len, from)) = resolver.recv_from(&mut bytes) {
            bytes[2] |= 0x80;
            let _ = resolver.send_to(&bytes[..len], from);
        }
    });
    let (vmm, guest, gateway, _folder) = start(&["127.0.0.1"]);
    let text = guest.sh(&format!("dig @{gateway} +tcp +tries=1 +time=8 example.org"));
    assert!(text.contains("status: NOERROR"), "{text}");
    vmm.stop();
}
