//! State of other programs that a VM's rules meet: connections that the host tracks, and ports that foreign rules
//! translate.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::Case;
use crate::guest::{Namespace, configure, echo};
use crate::lan::sh;
use crate::nat::{address, gateway, stop, world};
use crate::vmm::{DEADLINE, Vmm};

pub(crate) const CASES: &[Case] = &[
    ("forward_takes_over_from_a_client_that_keeps_sending", takes_over),
    ("forward_gives_back_to_the_host_when_a_client_keeps_sending", gives_back),
    ("forward_of_a_port_that_nftables_of_others_translate_is_refused", translated_by_nftables),
    ("forward_of_a_port_that_iptables_translates_is_refused", translated_by_iptables),
];

/// How long a client waits before it sends again, so that its conntrack entry never expires.
const PAUSE: Duration = Duration::from_millis(20);

/// A client that sends from one port all the time.
struct Client(UdpSocket);

impl Client {
    fn new(namespace: &Namespace, to: &str) -> Self {
        let to: SocketAddr = to.parse().unwrap();
        Self(namespace.within(|| {
            let socket = UdpSocket::bind("0.0.0.0:4000").unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(PAUSE)).unwrap();
            socket
        }))
    }

    /// Sends once; the answer, if one comes.
    fn ask(&self) -> Option<String> {
        let mut bytes = [0; 64];
        // If no process listens, the next call returns the error.
        let _ = self.0.send(b"?");
        let len = self.0.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..len]).into_owned())
    }

    /// Sends until `wanted` answers.
    fn ask_until(&self, wanted: &str) {
        let start = Instant::now();
        let mut asked = 0;
        loop {
            let answer = self.ask();
            asked += 1;
            if answer.as_deref() == Some(wanted) {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "0 of {asked} answers of {wanted}, the last one is {answer:?}");
        }
    }
}

/// Starts a server that answers each datagram with a word.
fn answer_with(namespace: &Namespace, at: &str, word: &'static str) -> UdpSocket {
    let socket = namespace.within(|| UdpSocket::bind(at).unwrap());
    let serving = socket.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((len, peer)) = serving.recv_from(&mut bytes) {
            if &bytes[..len] == b"end" {
                return;
            }
            let _ = serving.send_to(word.as_bytes(), peer);
        }
    });
    socket
}

fn takes_over() {
    let world = world();
    let client = Client::new(&world, "198.51.100.2:5300");
    // Connection tracking starts with the first network.
    let (first, _) = Vmm::start_with_guest("db", "nat");
    assert!((0..5).all(|_| client.ask().is_none()));

    let (vmm, guest) = Vmm::start_with_guest("web", "nat,forward=udp:5300:53");
    let address = address("vmtap1");
    configure(&guest, &address, &gateway(&address));
    echo(&guest, 53);

    client.ask_until("198.51.100.1");
    vmm.stop();
    first.stop();
}

fn gives_back() {
    let world = world();
    let host = Namespace::at("/proc/self/ns/net");
    let client = Client::new(&world, "198.51.100.2:5300");
    let (first, _) = Vmm::start_with_guest("db", "nat");
    let (vmm, guest) = Vmm::start_with_guest("web", "nat,forward=udp:5300:53");
    let address = address("vmtap1");
    configure(&guest, &address, &gateway(&address));
    echo(&guest, 53);
    client.ask_until("198.51.100.1");

    vmm.stop();
    let server = answer_with(&host, "0.0.0.0:5300", "host");

    client.ask_until("host");
    server.send_to(b"end", "127.0.0.1:5300").unwrap();
    first.stop();
}

/// The refusal of a start with this card; none if it starts.
fn refusal(spec: &str) -> Option<String> {
    let vmm = Vmm::spawn("web", &[spec]);
    let line = vmm.line();
    match line.strip_prefix("failed ") {
        Some(refusal) => {
            assert_eq!(vmm.end(), "");
            Some(refusal.to_owned())
        }
        None => {
            stop(vmm);
            None
        }
    }
}

fn translated_by_nftables() {
    let _world = world();
    sh("nft add table ip web");
    sh("nft add chain ip web pre { type nat hook prerouting priority dstnat; }");
    sh("nft add chain ip web published");
    sh("nft add rule ip web pre fib daddr type local jump published");
    sh("nft add rule ip web published tcp dport 8080 dnat to 192.0.2.7:80 comment \"container web\"");
    sh("nft add rule ip web published ip daddr 127.0.0.1 udp dport 5300-5310 dnat to 192.0.2.7:53");
    sh("nft add rule ip web published tcp dport { 9000, 9010-9012 } redirect to :80");
    sh("nft add rule ip web published dnat to tcp dport map { 7000 : 192.0.2.7 }");
    let refused = refusal("nat,forward=tcp:8080:80").unwrap();
    assert_eq!(
        refused,
        "tcp port 8080 of this host is translated by a rule in chain published of table ip web (handle 4, \"container \
         web\") \
         | forward another port, or remove the rule (docker ps shows published ports); nft -a list chain ip web \
         published \
         shows it | usage"
    );
    for spec in [
        "nat,forward=tcp:198.51.100.2:8080:80",
        "nat,forward=tcp:8070-8090:70-90",
        "nat,forward=udp:5305:53",
        "nat,forward=udp:127.0.0.1:5305:53",
        "nat,forward=tcp:9000:80",
        "nat,forward=tcp:9011:80",
        "nat,forward=tcp:7000:80",
    ] {
        assert!(refusal(spec).is_some_and(|text| text.contains("in chain published of table ip web")), "{spec}");
    }
    for spec in [
        "nat,forward=udp:8080:80",
        "nat,forward=tcp:8081:80",
        "nat,forward=udp:198.51.100.2:5305:53",
        "nat,forward=tcp:9001:80",
        "nat,forward=tcp:9013:80",
    ] {
        assert_eq!(refusal(spec), None, "{spec}");
    }
}

fn translated_by_iptables() {
    let _world = world();
    sh("iptables-nft -t nat -N DOCKER");
    sh("iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER");
    sh("iptables-nft -t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80");
    sh("iptables-nft -t nat -A DOCKER -p udp -m multiport --dports 5300,6000:6010 -j REDIRECT --to-ports 53");
    sh("iptables-nft -t nat -A DOCKER -d 127.0.0.0/8 -p tcp -m tcp --dport 9000:9010 -j DNAT --to-destination \
         172.17.0.2:80");
    for spec in [
        "nat,forward=tcp:8080:80",
        "nat,forward=udp:5300:53",
        "nat,forward=udp:6005:53",
        "nat,forward=tcp:9005:80",
        "nat,forward=tcp:127.0.0.1:9005:80",
    ] {
        assert!(refusal(spec).is_some_and(|text| text.contains("in chain DOCKER of table ip nat")), "{spec}");
    }
    for spec in ["nat,forward=udp:8080:80", "nat,forward=udp:6011:80", "nat,forward=tcp:198.51.100.2:9005:80"] {
        assert_eq!(refusal(spec), None, "{spec}");
    }
}
