//! A guest without a VM: a network namespace whose card `eth0` is the other end of a port's tap, with the services that
//! a VMM runs for it; and namespaces for other machines on the network.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use net::services::{MtuSender, Setup, mtu_channel, run};
use net::{Port, Services, Siblings};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, sendto, socket,
};

use crate::lan::until;
use crate::vmm::DEADLINE;

/// How long to wait for a reply that must not come.
const SILENCE: Duration = Duration::from_millis(400);

/// Largest frame with its header.
const FRAME_BYTES: usize = 70 * 1024;

/// Puts guests behind the ports that have services, on threads that end with the process. With `GUESTS=all` in the
/// environment, the other ports get guests, too; with `GUESTS=none`, no port does. Prints a line with the namespace of
/// each. Returns the senders of MTUs to services, by card.
pub(crate) fn put_behind(ports: &mut [Port]) -> BTreeMap<usize, MtuSender> {
    let wanted = std::env::var("GUESTS").unwrap_or_default();
    let mut senders = BTreeMap::new();
    for (card, port) in ports.iter_mut().enumerate() {
        if wanted == "none" || port.services.is_none() && wanted != "all" {
            continue;
        }
        let services = port.services.take();
        senders.extend(services.map(|services| (card, serve(services))));
        let queue = port.fds[0].try_clone().expect("a descriptor");
        let mac = port.mac.to_string();
        let (sender, ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
            let card = open_card();
            ip(&format!("link set eth0 address {mac} up"));
            ip("link set lo up");
            sender.send(nix::unistd::gettid()).expect("somebody who waits");
            pump(&queue, &card);
        });
        println!("guest /proc/{}/task/{}/ns/net", std::process::id(), ready.recv().expect("a guest"));
    }
    senders
}

fn serve(services: Services) -> MtuSender {
    let Services { spec, tap, socket } = services;
    let resolv_conf = std::env::var_os("RESOLV_CONF").unwrap_or_default().into();
    let (names, counters) = (Box::new(Siblings::of(&tap)), Box::leak(Box::default()));
    let (sender, mtu) = mtu_channel().expect("a channel");
    let setup = Setup { spec, socket, names, resolv_conf, counters, mtu };
    std::thread::spawn(move || {
        let (_end, stop) = nix::unistd::pipe().expect("a pipe");
        run(setup, stop.as_fd(), &mut |_| ()).expect("services");
    });
    sender
}

/// A tap called `eth0` with the virtio-net headers of a card's queue.
fn open_card() -> OwnedFd {
    #[repr(C)]
    struct IfReq {
        name: [u8; 16],
        flags: i16,
        rest: [u8; 22],
    }
    let card = File::options().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
    let mut name = [0; 16];
    name[..4].copy_from_slice(b"eth0");
    let flags = nix::libc::IFF_TAP | nix::libc::IFF_NO_PI | nix::libc::IFF_VNET_HDR;
    let mut request = IfReq { name, flags: flags.try_into().unwrap(), rest: [0; 22] };
    let header: i32 = 12;
    #[expect(unsafe_code, reason = "ioctl(2)")]
    // SAFETY: TUNSETIFF takes a struct ifreq; the descriptor is open.
    let attached = unsafe { nix::libc::ioctl(card.as_raw_fd(), nix::libc::TUNSETIFF, &raw mut request) };
    #[expect(unsafe_code, reason = "ioctl(2)")]
    // SAFETY: TUNSETVNETHDRSZ reads an int; the descriptor is open.
    let prepared = unsafe { nix::libc::ioctl(card.as_raw_fd(), nix::libc::TUNSETVNETHDRSZ, &raw const header) };
    assert_eq!([attached, prepared], [0, 0], "a tap in the guest");
    card.into()
}

fn pump(queue: &OwnedFd, card: &OwnedFd) {
    let mut frame = vec![0; FRAME_BYTES];
    let ways = [(queue, card), (card, queue)];
    loop {
        let mut fds = ways.map(|(from, _)| PollFd::new(from.as_fd(), PollFlags::POLLIN));
        poll(&mut fds, PollTimeout::NONE).expect("poll");
        for (way, (from, to)) in ways.iter().enumerate() {
            if fds[way].any() == Some(true)
                && let Ok(len) = nix::unistd::read(from, &mut frame)
            {
                let _ = nix::unistd::write(to, &frame[..len]);
            }
        }
    }
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().expect("ip");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A network namespace.
pub(crate) struct Namespace {
    path: String,
    /// The process that keeps it, if it has one of its own.
    holder: Option<Child>,
}

impl Namespace {
    /// The namespace at this path.
    pub(crate) fn at(path: &str) -> Self {
        Self { path: path.to_owned(), holder: None }
    }

    /// A new one, behind the host's interface `uplink`, where it has `address` and the host `host_address`.
    pub(crate) fn behind(uplink: &str, address: &str, host_address: &str) -> Self {
        let mut command = Command::new("unshare");
        let holder = command.args(["--net", "sleep", "3600"]).stdin(Stdio::null()).spawn().expect("unshare");
        let path = format!("/proc/{}/ns/net", holder.id());
        let own = std::fs::read_link("/proc/self/ns/net").expect("a namespace");
        until(|| std::fs::read_link(&path).is_ok_and(|theirs| theirs != own));
        let namespace = Self { path, holder: Some(holder) };
        let pid = namespace.holder.as_ref().unwrap().id();
        ip(&format!("link add {uplink} type veth peer name eth0 netns {pid}"));
        ip(&format!("addr add {host_address} dev {uplink}"));
        ip(&format!("link set {uplink} up"));
        namespace.sh("ip link set lo up");
        namespace.sh(&format!("ip addr add {address} dev eth0"));
        namespace.sh("ip link set eth0 up");
        namespace
    }

    /// Runs a command line of words in it, and returns its output.
    pub(crate) fn sh(&self, line: &str) -> String {
        let (ok, text) = self.attempt(line);
        assert!(ok, "{line}: {text}");
        text
    }

    /// The path of the namespace.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// A command line to run in it.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path)).args(line.split(' '));
        command
    }

    /// True if a command line succeeds in it, and its output.
    pub(crate) fn attempt(&self, line: &str) -> (bool, String) {
        let output = self.command(line).output().expect("nsenter");
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    /// Runs `action` on a thread in it.
    pub(crate) fn within<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let file = File::open(&self.path).expect("a namespace");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET).expect("to enter a namespace");
                action()
            });
            thread.join().expect("no panic")
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Some(holder) = &mut self.holder {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

/// Configures the address of a guest's lease, as DHCP would.
pub(crate) fn configure(guest: &Namespace, address: &str, gateway: &str) {
    guest.sh(&format!("ip addr add {address}/24 dev eth0"));
    guest.sh(&format!("ip route add default via {gateway}"));
}

/// Answers on TCP and UDP `port` of a namespace with the client's address, for as long as it lives.
pub(crate) fn echo(namespace: &Namespace, port: u16) {
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let (tcp, udp) =
        namespace.within(|| (TcpListener::bind(any).expect("a TCP port"), UdpSocket::bind(any).expect("a UDP port")));
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = tcp.accept() {
            let _ = stream.write_all(peer.ip().to_canonical().to_string().as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((_, peer)) = udp.recv_from(&mut bytes) {
            let _ = udp.send_to(peer.ip().to_canonical().to_string().as_bytes(), peer);
        }
    });
}

/// The source address that an echo server at that address sees, over TCP.
pub(crate) fn ask_tcp(namespace: &Namespace, address: &str) -> Option<IpAddr> {
    let address: SocketAddr = address.parse().expect("an address");
    namespace.within(|| {
        let mut stream = TcpStream::connect_timeout(&address, DEADLINE / 4).ok()?;
        stream.set_read_timeout(Some(DEADLINE / 4)).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.parse().ok()
    })
}

/// The same over UDP.
pub(crate) fn ask_udp(namespace: &Namespace, address: &str) -> Option<IpAddr> {
    let address: SocketAddr = address.parse().expect("an address");
    namespace.within(|| {
        let any = if address.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(address).ok()?;
        socket.set_read_timeout(Some(SILENCE)).ok()?;
        let mut bytes = [0; 64];
        // The first datagram may have to wait for ARP.
        for _ in 0..5 {
            if socket.send(b"?").is_ok()
                && let Ok(len) = socket.recv(&mut bytes)
            {
                return std::str::from_utf8(&bytes[..len]).ok()?.parse().ok();
            }
        }
        None
    })
}

/// True if a TCP connection there fails.
pub(crate) fn is_silent(namespace: &Namespace, address: &str) -> bool {
    let address: SocketAddr = address.parse().expect("an address");
    namespace.within(|| TcpStream::connect_timeout(&address, SILENCE).is_err())
}

/// Sends a frame unchanged out of a namespace's card.
pub(crate) fn send_frame(namespace: &Namespace, frame: &[u8]) {
    namespace.within(|| send_out("eth0", frame));
}

/// Sends a frame unchanged out of an interface of this namespace.
pub(crate) fn send_out(interface: &str, frame: &[u8]) {
    let (family, kind) = (AddressFamily::Packet, SockType::Raw);
    let socket = socket(family, kind, SockFlag::empty(), SockProtocol::EthAll).expect("a packet socket");
    let to = frame[..6].try_into().unwrap();
    let address = link_address(interface, to);
    sendto(socket.as_raw_fd(), frame, &address, MsgFlags::empty()).expect("a frame that goes");
}

/// A link-layer address reached through an interface of this namespace.
pub(crate) fn link_address(interface: &str, to: [u8; 6]) -> LinkAddr {
    let index = nix::net::if_::if_nametoindex(interface).expect("an interface");
    let mut address = nix::libc::sockaddr_ll {
        sll_family: nix::libc::AF_PACKET.try_into().unwrap(),
        sll_protocol: 0,
        sll_ifindex: index.try_into().unwrap(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    address.sll_addr[..6].copy_from_slice(&to);
    let len = size_of_val(&address).try_into().unwrap();
    #[expect(unsafe_code, reason = "an address of this family has no constructor")]
    // SAFETY: a sockaddr_ll of its own length, which lives through the call.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(len)) };
    address.expect("an address")
}
