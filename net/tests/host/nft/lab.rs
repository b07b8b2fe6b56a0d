//! Hosts in namespaces of their own around a router: this one.
//!
//! ```text
//! guest a 10.0.0.2 --.
//!                     br0 10.0.0.1 = router = up0 192.0.2.1 (MTU 1400) -- outside 192.0.2.9, no route to 10.0.0.0/24
//! guest b 10.0.0.3 --'
//! ```
//!
//! A namespace belongs to a thread, so nothing of it is left when the case ends.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use crate::lan::{sh, until};
use crate::vmm::DEADLINE;

pub(super) const GUEST_A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub(super) const GUEST_B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
pub(super) const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(super) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

/// How long to wait for a packet that must not come.
pub(super) const QUIET: Duration = Duration::from_millis(300);

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own.
pub(super) struct Host {
    jobs: Sender<Job>,
    tid: i32,
}

impl Host {
    /// A host whose only interface is the other end of `port`.
    fn new(port: &str, addr: Ipv4Addr, gateway: Option<&str>) -> Self {
        let (jobs, orders) = channel::<Job>();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            orders.into_iter().for_each(|job| job());
        });
        let host = Self { jobs, tid: told.recv().unwrap() };
        sh(&format!("ip link add {port} type veth peer name eth0 netns {}", host.tid));
        let gateway = gateway.map(|gateway| format!("ip route add default via {gateway}"));
        host.run(move || {
            sh(&format!("ip addr add {addr}/24 dev eth0"));
            sh("ip link set lo up");
            sh("ip link set eth0 up");
            gateway.iter().for_each(|line| drop(sh(line)));
        });
        host
    }

    /// Runs a job in this host's namespace.
    pub(super) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (give, take) = channel();
        self.jobs.send(Box::new(move || drop(give.send(job())))).unwrap();
        take.recv().expect("the job to end")
    }

    /// A TCP server that answers each connection with the address that it sees, and the largest segment it may send.
    pub(super) fn serve_tcp(&self, ports: impl IntoIterator<Item = u16>) {
        for port in ports {
            let listener = self.run(move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let mss = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::TcpMaxSeg).unwrap();
                    let answer = format!("{} {port} {mss}\n", stream.peer_addr().unwrap().ip().to_canonical());
                    // A client that has gone meanwhile needs no answer.
                    let _ = stream.write_all(answer.as_bytes());
                    std::thread::spawn(move || stream.read(&mut [0; 1]));
                }
            });
        }
    }

    /// A UDP server that answers each datagram with the sender's address, its own port, and the datagram's number.
    pub(super) fn serve_udp(&self, ports: impl IntoIterator<Item = u16>) {
        for port in ports {
            let socket = self.run(move || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
            std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                for count in 1.. {
                    let (_, peer) = socket.recv_from(&mut buffer).unwrap();
                    let _ = socket.send_to(format!("{} {port} {count}", peer.ip()).as_bytes(), peer);
                }
            });
        }
    }

    /// Connects and stays connected.
    pub(super) fn connect(&self, to: impl Into<SocketAddr>) -> io::Result<TcpStream> {
        let to = to.into();
        self.run(move || TcpStream::connect_timeout(&to, DEADLINE))
    }

    /// A TCP server's answer.
    pub(super) fn ask_tcp(&self, to: impl Into<SocketAddr>) -> String {
        let mut stream = self.connect(to).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        line(&mut stream)
    }

    /// True if a TCP connection succeeds. The timeout is short, because it should not.
    pub(super) fn reaches_tcp(&self, to: impl Into<SocketAddr>) -> bool {
        let to = to.into();
        self.run(move || TcpStream::connect_timeout(&to, QUIET).is_ok())
    }

    /// A UDP server's answer to one datagram.
    pub(super) fn ask_udp(&self, to: impl Into<SocketAddr>) -> String {
        let to = to.into();
        self.run(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket.connect(to).unwrap();
            socket.send(b"?").unwrap();
            let mut buffer = [0; 64];
            let len = socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..len].to_vec()).unwrap()
        })
    }

    /// Sends datagrams from one port.
    pub(super) fn send_udp(&self, to: impl Into<SocketAddr>, count: usize) {
        let to = to.into();
        self.run(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            for _ in 0..count {
                socket.send_to(b"!", to).unwrap();
            }
        });
    }
}

/// The first line of an answer.
pub(super) fn line(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    while !text.ends_with('\n') {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "the server hung up");
        text.push(char::from(byte[0]));
    }
    text.trim().to_owned()
}

fn is_up(link: &str) -> bool {
    crate::lan::link(link)["operstate"] == "UP"
}

/// Gives every host of a lab an IPv6 address as well: `fd00:N::` with the last number of its IPv4 address.
pub(super) fn with_ip6(lab: &Lab) {
    const SYSCTL: &str = "/proc/sys/net/ipv6/conf";
    for scope in ["all", "br0", "up0"] {
        std::fs::write(format!("{SYSCTL}/{scope}/disable_ipv6"), "0").unwrap();
    }
    std::fs::write(format!("{SYSCTL}/all/forwarding"), "1").unwrap();
    sh("ip addr add fd00:a::1/64 dev br0 nodad");
    sh("ip addr add fd00:b::1/64 dev up0 nodad");
    lab.a.run(|| {
        sh("ip addr add fd00:a::2/64 dev eth0 nodad");
        sh("ip route add default via fd00:a::1");
    });
    lab.outside.run(|| sh("ip addr add fd00:b::9/64 dev eth0 nodad"));
}

pub(super) struct Lab {
    pub(super) a: Host,
    pub(super) b: Host,
    pub(super) outside: Host,
}

impl Lab {
    pub(super) fn new() -> Self {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        // br_netfilter forwards a translated frame within the bridge, which never returns one to its own port.
        let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
        sh("ip link set lo up");
        sh("ip link add br0 type bridge mcast_snooping 0");
        sh("ip addr add 10.0.0.1/24 dev br0");
        sh("ip link set br0 up");
        let lab = Self {
            a: Host::new("vma", GUEST_A, Some("10.0.0.1")),
            b: Host::new("vmb", GUEST_B, Some("10.0.0.1")),
            outside: Host::new("up0", OUTSIDE, None),
        };
        sh("ip link set vma master br0 up");
        sh("ip link set vmb master br0 up");
        sh("ip addr add 192.0.2.1/24 dev up0");
        sh("ip link set up0 up mtu 1400");
        for link in ["br0", "vma", "vmb", "up0"] {
            until(|| is_up(link));
        }
        for host in [&lab.a, &lab.b, &lab.outside] {
            host.run(|| until(|| is_up("eth0")));
        }
        lab
    }
}
