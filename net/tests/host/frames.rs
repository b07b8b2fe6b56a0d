//! Delivery of hostile frames: DHCP servers on other ports, headers hidden in fragments, switches' own protocols, tags,
//! and other encapsulations.

use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use net::{MacAddr, Policy};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, socket};

use crate::Case;
use crate::guest::{Namespace, ask_tcp, configure, echo, link_address, send_frame};
use crate::lan::{link, sh};
use crate::machine::{give6, mac, machine_on_bridge};
use crate::vmm::{DEADLINE, Vmm};

pub(crate) const CASES: &[Case] = &[
    ("frames_of_a_dhcp_server_are_dropped_from_whatever_port", dhcp_servers),
    ("frames_of_ipv6_without_a_whole_header_pass_no_guard", hidden),
    ("frames_of_a_router_are_dropped_behind_every_header", routers),
    ("frames_without_a_whole_header_pass_no_policy", past_policy),
    ("frames_between_switches_pass_no_tap_and_others_pass_an_open_bridge", between_switches),
    ("frames_in_tags_do_not_reach_the_hosts_loopback", tagged_loopback),
    ("frames_wrapped_otherwise_pass_no_guard", wrapped),
];

/// Cases for kernels whose bridges have VLANs.
pub(crate) const VLAN_CASES: &[Case] = &[("frames_in_two_tags_do_not_change_their_vlan", vlan_hopping)];

const IP4: [u8; 2] = [8, 0];
const IP6: [u8; 2] = [0x86, 0xdd];
const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const ICMP6: u8 = 58;
const OPTIONS: u8 = 60;

fn frame(to: [u8; 6], from: [u8; 6], kind: [u8; 2], body: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from, &kind, body].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// An IPv4 packet from `192.0.2.5` to `192.0.2.1`. `fragment` is the flags and offset of RFC 791.
fn ip4(protocol: u8, fragment: u16, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + body.len()).unwrap().to_be_bytes();
    let fragment = fragment.to_be_bytes();
    let mut header = [0x45, 0, length[0], length[1], 0, 9, fragment[0], fragment[1], 64, protocol, 0, 0];
    let addresses = [192, 0, 2, 5, 192, 0, 2, 1];
    let words = |bytes: &[u8]| bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
    let sum = words(&header) + words(&addresses);
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    header[10..].copy_from_slice(&sum.to_be_bytes());
    [&header[..], &addresses, body].concat()
}

/// An IPv6 packet from `2001:db8::5` to `2001:db8::1`.
fn ip6(next: u8, body: &[u8]) -> Vec<u8> {
    let [from, to] = ["2001:db8::5", "2001:db8::1"].map(|text| text.parse::<Ipv6Addr>().unwrap().octets());
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&[0x60, 0, 0, 0, length[0], length[1], next, 255][..], &from, &to, body].concat()
}

/// A UDP datagram, without a checksum.
fn udp(from: u16, to: u16, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + body.len()).unwrap();
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], body].concat()
}

/// A fragment header (RFC 8200 4.5) at `offset`, with more fragments to follow.
fn fragment(next: u8, offset: u16) -> [u8; 8] {
    let field = (offset | 1).to_be_bytes();
    [next, 0, field[0], field[1], 0, 0, 0, 9]
}

/// An 8-byte extension header with padding, or a routing header of type 0 with no segments left.
fn extension(next: u8) -> [u8; 8] {
    [next, 0, 1, 4, 0, 0, 0, 0]
}

fn own() -> [u8; 6] {
    MacAddr::for_vm("web", 0).octets()
}

/// A socket that hears what arrives at a namespace's card.
struct Listener(OwnedFd);

impl Listener {
    fn on(namespace: &Namespace) -> Self {
        Self(namespace.within(|| {
            let (family, kind) = (AddressFamily::Packet, SockType::Raw);
            let socket = socket(family, kind, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll).unwrap();
            bind(socket.as_raw_fd(), &link_address("eth0", [0; 6])).unwrap();
            socket
        }))
    }

    /// Returns true if `sent`, sent by `from`, arrives. A second frame, which passes every guard, tells when to stop
    /// listening.
    fn hears(&self, from: &Namespace, to: [u8; 6], sent: &[u8]) -> bool {
        let fence = frame(to, own(), IP4, &ip4(UDP, 0, &udp(9, 9, b"that was all")));
        send_frame(from, sent);
        send_frame(from, &fence);
        let mut heard = false;
        loop {
            let mut bytes = [0; 2048];
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&self.0), PollFlags::POLLIN)];
            let left = poll(&mut fds, PollTimeout::try_from(DEADLINE).unwrap()).unwrap();
            assert_eq!(left, 1, "nothing comes any more");
            let len = recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap();
            heard |= bytes[..len].starts_with(unpadded(&sent[..sent.len().min(HEAD_BYTES)]));
            if bytes[..len].starts_with(unpadded(&fence)) {
                return heard;
            }
        }
    }
}

/// Bytes that tell frames apart: the headers of Ethernet, of IPv6, and one more.
const HEAD_BYTES: usize = 62;

/// A frame without the zeros at its end, which a bridge may take away.
fn unpadded(frame: &[u8]) -> &[u8] {
    let len = frame.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &frame[..len]
}

/// Packets that a VM's rules have dropped for a reason.
fn dropped(vm: &str, reason: &str) -> u64 {
    net::inventory::dropped(vm).unwrap().get(reason).copied().unwrap_or_default()
}

/// A guest called `web` with the addresses of these frames.
fn start(spec: &str) -> (Namespace, Vmm, Namespace) {
    let machine = machine_on_bridge();
    let (vmm, guest) = Vmm::start_bridged("web", spec);
    guest.sh("ip addr add 192.0.2.5/24 dev eth0");
    give6(&guest, "2001:db8::5");
    (machine, vmm, guest)
}

const GUARDED: [&str; 2] = ["bridge=br0,antispoof=on", "bridge=br0,antispoof=on,addresses=192.0.2.5+2001:db8::5"];

fn dhcp_servers() {
    let (machine, vmm, guest) = start(GUARDED[1]);
    let (to, listener) = (mac(&machine).octets(), Listener::on(&machine));
    let reply = |from, to| udp(from, to, &[2, 1, 6, 0, 0, 0, 0, 9]);
    let relayed = [13, 0, 0, 0];
    let servers = [
        (IP4, ip4(UDP, 0, &reply(67, 68))),
        (IP4, ip4(UDP, 0, &reply(1067, 68))),
        (IP4, ip4(UDP, 0, &reply(68, 68))),
        (IP4, ip4(UDP, 0x2000, &reply(1067, 68))),
        // To a relay, which would forward it as its own answer.
        (IP4, ip4(UDP, 0, &reply(1067, 67))),
        (IP6, ip6(UDP, &udp(547, 546, &[2, 0, 0, 0]))),
        (IP6, ip6(UDP, &udp(1547, 546, &[2, 0, 0, 0]))),
        (IP6, ip6(OPTIONS, &[&extension(UDP)[..], &udp(1547, 546, &[7, 0, 0, 0])].concat())),
        (IP6, ip6(FRAGMENT, &[&fragment(UDP, 0)[..], &udp(1547, 546, &[7; 24])].concat())),
        (IP6, ip6(UDP, &udp(1547, 547, &relayed))),
    ];
    for (idx, (kind, packet)) in servers.iter().enumerate() {
        assert!(!listener.hears(&guest, to, &frame(to, own(), *kind, packet)), "server {idx}");
    }
    assert_eq!(dropped("web", "rogue-dhcp"), 10);
    let clients = [(IP4, ip4(UDP, 0, &udp(68, 67, &[1, 1, 6, 0]))), (IP6, ip6(UDP, &udp(546, 547, &[1, 0, 0, 0])))];
    for (kind, packet) in clients {
        assert!(listener.hears(&guest, to, &frame(to, own(), kind, &packet)));
    }
    assert_eq!(dropped("web", "rogue-dhcp"), 10);
    vmm.stop();
}

/// First fragments, and whole packets, in which the upper-layer header is missing or truncated.
fn without_header() -> Vec<Vec<u8>> {
    let options = |next| [&fragment(OPTIONS, 0)[..], &extension(next)].concat();
    vec![
        ip6(FRAGMENT, &options(ICMP6)),
        ip6(FRAGMENT, &options(TCP)),
        ip6(FRAGMENT, &options(UDP)),
        // An options header that continues in the next fragment.
        ip6(FRAGMENT, &[&fragment(OPTIONS, 0)[..], &[ICMP6, 1, 1, 4, 0, 0, 0, 0]].concat()),
        ip6(0, &[&extension(FRAGMENT)[..], &options(UDP)].concat()),
        // The ports, and no more of the TCP header.
        ip6(FRAGMENT, &[&fragment(TCP, 0)[..], &[0, 9, 0, 22, 0, 0, 0, 0]].concat()),
        ip6(FRAGMENT, &fragment(ICMP6, 0)),
        ip6(OPTIONS, &extension(UDP)),
        ip6(ICMP6, &[134, 0, 0, 0]),
        // A second header in the frame, behind the end of the packet.
        [ip6(FRAGMENT, &options(UDP)), udp(9, 9, &[7; 40])].concat(),
        [ip6(FRAGMENT, &fragment(TCP, 0)), vec![7; 40]].concat(),
        [ip6(0, &[extension(FRAGMENT), fragment(UDP, 0)].concat()), udp(9, 9, &[7; 40])].concat(),
        // A valid packet that looks the same.
        ip6(FRAGMENT, &[&options(UDP)[..], &udp(9, 9, &[7; 40])].concat()),
    ]
}

fn hidden() {
    let (machine, vmm, guest) = start(GUARDED[0]);
    let (to, listener) = (mac(&machine).octets(), Listener::on(&machine));
    let packets = without_header();
    for (idx, packet) in packets.iter().enumerate() {
        // The shortest router message is recognised by its type.
        assert!(!listener.hears(&guest, to, &frame(to, own(), IP6, packet)), "packet {idx}");
    }
    let seen = dropped("web", "malformed") + dropped("web", "rogue-router");
    assert_eq!(seen, u64::try_from(packets.len()).unwrap());
    // Properly fragmented packets pass, and are reassembled.
    guest.sh("ping -6 -c 1 -W 5 -s 4000 2001:db8::1");
    guest.sh("ping -c 1 -W 5 -s 4000 192.0.2.1");
    for (next, body) in [
        (FRAGMENT, [&fragment(UDP, 0)[..], &udp(9, 9, &[7; 40])].concat()),
        (FRAGMENT, [&fragment(UDP, 8)[..], b"12345678"].concat()),
        // Data of later fragments is no header, whatever it looks like.
        (FRAGMENT, [&fragment(UDP, 1448)[..], &udp(547, 546, b"12345678")].concat()),
        (FRAGMENT, [&fragment(ICMP6, 1448)[..], &[134; 40]].concat()),
        (OPTIONS, [&extension(UDP)[..], &udp(9, 9, b"")].concat()),
        // No next header; a protocol that no rule looks into.
        (59, Vec::new()),
        (132, vec![0; 12]),
    ] {
        assert!(listener.hears(&guest, to, &frame(to, own(), IP6, &ip6(next, &body))), "{next}");
    }
    vmm.stop();
}

fn routers() {
    let machine = machine_on_bridge();
    for spec in GUARDED {
        let (vmm, guest) = Vmm::start_bridged("web", spec);
        guest.sh("ip addr add 192.0.2.5/24 dev eth0");
        let (to, listener) = (mac(&machine).octets(), Listener::on(&machine));
        let advertisement = [&[134, 0, 0, 0, 64, 0, 7, 8][..], &[0; 8]].concat();
        let behind = |headers: &[u8]| {
            let mut chain = Vec::new();
            for (idx, _) in headers.iter().enumerate() {
                let next = headers.get(idx + 1).copied().unwrap_or(ICMP6);
                // The fragment header of a whole packet has offset 0 and no more fragments (RFC 6946).
                let whole = [next, 0, 0, 0, 0, 0, 0, 9];
                chain.extend(if headers[idx] == FRAGMENT { whole } else { extension(next) });
            }
            ip6(headers.first().copied().unwrap_or(ICMP6), &[chain, advertisement.clone()].concat())
        };
        let chains: [&[u8]; 8] = [
            &[],
            &[0],
            &[43],
            &[OPTIONS],
            &[FRAGMENT],
            &[0, 43, OPTIONS],
            &[0, OPTIONS, 43, FRAGMENT, OPTIONS],
            &[OPTIONS; 16],
        ];
        for headers in chains {
            assert!(!listener.hears(&guest, to, &frame(to, own(), IP6, &behind(headers))), "{spec} {headers:?}");
        }
        // As a first fragment, which holds the type of the message.
        let first = ip6(FRAGMENT, &[&fragment(ICMP6, 0)[..], &advertisement, &[0; 8]].concat());
        assert!(!listener.hears(&guest, to, &frame(to, own(), IP6, &first)));
        assert_eq!(dropped("web", "rogue-router"), 9);
        vmm.stop();
    }
}

fn past_policy() {
    let machine = machine_on_bridge();
    let text = r#"{"default": {"egress": "accept"}, "egress": [{"protocol": "tcp", "ports": [22], "action": "drop"}]}"#;
    let policy: Policy = serde_json::from_str(text).unwrap();
    let (vmm, guest) = Vmm::start_with_policy("web", "bridge=br0", &policy);
    let (to, listener) = (mac(&machine).octets(), Listener::on(&machine));
    for (idx, packet) in without_header().iter().enumerate() {
        assert!(!listener.hears(&guest, to, &frame(to, own(), IP6, packet)), "packet {idx}");
    }
    // The flags of TCP, and other ports over those already accepted, come in a second fragment of IPv4.
    let second = ip4(TCP, 1, &[0, 0, 0, 0, 0x50, 2, 0, 0]);
    let first = ip4(TCP, 0x2000, &[&[0, 9, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2][..], &[0; 10]].concat());
    let third = ip4(TCP, 3, &[0; 16]);
    for (packet, passes) in [(first, true), (second, false), (third, true)] {
        assert_eq!(listener.hears(&guest, to, &frame(to, own(), IP4, &packet)), passes, "{packet:?}");
    }
    vmm.stop();
}

fn between_switches() {
    let (machine, vmm, guest) = start("bridge=br0");
    let (to, listener) = (mac(&machine).octets(), Listener::on(&machine));
    let spanning_tree = [&[0x42, 0x42, 3][..], &[0; 35]].concat();
    let snap = |code: u8| [&[0xaa, 0xaa, 3, 0, 0, 0x0c, code, 0x0b][..], &[0; 30]].concat();
    for (group, kind, body) in [
        ([0x01, 0x80, 0xc2, 0, 0, 0x00], [0, 38], spanning_tree.clone()),
        ([0x01, 0x80, 0xc2, 0, 0, 0x08], [0, 38], spanning_tree.clone()),
        ([0x01, 0x80, 0xc2, 0, 0, 0x21], [0x88, 0xf5], vec![0; 46]),
        ([0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd], [0, 38], snap(1)),
        ([0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcc], [0, 38], snap(0x20)),
        // Frames that the bridge keeps to itself: LACP, 802.1X, LLDP.
        ([0x01, 0x80, 0xc2, 0, 0, 0x02], [0x88, 0x09], vec![1; 46]),
        ([0x01, 0x80, 0xc2, 0, 0, 0x03], [0x88, 0x8e], vec![1; 46]),
        ([0x01, 0x80, 0xc2, 0, 0, 0x0e], [0x88, 0xcc], vec![1; 46]),
    ] {
        assert!(!listener.hears(&guest, to, &frame(group, own(), kind, &body)), "{group:?}");
    }
    assert_eq!(dropped("web", "bpdu"), 5);
    // Without a guard a guest may be a server and a router, as documented.
    let advertisement = [&[134, 0, 0, 0, 64, 0, 7, 8][..], &[0; 8]].concat();
    for (kind, packet) in [(IP4, ip4(UDP, 0, &udp(67, 68, &[2; 8]))), (IP6, ip6(ICMP6, &advertisement))] {
        assert!(listener.hears(&guest, to, &frame(to, own(), kind, &packet)));
    }
    // It keeps its port.
    guest.sh("ping -c 1 -W 5 192.0.2.1");
    vmm.stop();
    for spec in ["bridge=br0,antispoof=on", "bridge=br0,isolate=on"] {
        let (vmm, guest) = Vmm::start_bridged("web", spec);
        guest.sh("ip addr add 192.0.2.5/24 dev eth0");
        let group = [0x01, 0x80, 0xc2, 0, 0, 0];
        assert!(!listener.hears(&guest, to, &frame(group, own(), [0, 38], &spanning_tree)), "{spec}");
        vmm.stop();
    }
    assert_eq!(sh("nft list ruleset"), "");
}

fn tagged_loopback() {
    sh("ip link set lo up");
    let host = UdpSocket::bind("127.0.0.1:7777").unwrap();
    let open = UdpSocket::bind("0.0.0.0:7778").unwrap();
    host.set_nonblocking(true).unwrap();
    open.set_read_timeout(Some(DEADLINE)).unwrap();
    // With every other address of the host in reach.
    for spec in ["nat,antispoof=off,", "nat,"].map(|spec| format!("{spec}reach=host,forward=udp:8080:80")) {
        let (vmm, guest) = Vmm::start_with_guest("web", &spec);
        let lease = link("vmtap0")["ifalias"].as_str().unwrap().to_owned();
        let lease = lease.split("ip4=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        let gateway = format!("{}.1", lease.rsplit_once('.').unwrap().0);
        configure(&guest, &lease, &gateway);
        guest.sh(&format!("ping -c 1 -W 5 {gateway}"));
        let bridge: MacAddr = link("mvn-default")["address"].as_str().unwrap().parse().unwrap();
        let source: std::net::Ipv4Addr = lease.parse().unwrap();
        let packet = {
            let mut packet = ip4(UDP, 0, &udp(9, 7777, b"secret"));
            packet[10..12].fill(0);
            packet[12..16].copy_from_slice(&source.octets());
            packet[16..20].copy_from_slice(&[127, 0, 0, 1]);
            let sum: u32 = packet[..20].chunks(2).map(|it| u32::from(it[0]) << 8 | u32::from(it[1])).sum();
            let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            packet
        };
        let tag = |kind: [u8; 2]| [&kind[..], &[0, 0]].concat();
        let (customer, provider) = (tag([0x81, 0]), tag([0x88, 0xa8]));
        let tags: [&[&Vec<u8>]; 6] = [
            &[],
            &[&customer],
            &[&customer, &customer],
            &[&customer, &customer, &customer],
            &[&provider, &customer],
            &[&provider, &provider],
        ];
        for tags in tags {
            let tags: Vec<u8> = tags.iter().flat_map(|tag| tag.iter().copied()).collect();
            let frame = [&bridge.octets()[..], &own(), &tags, &IP4, &packet].concat();
            send_frame(&guest, &frame);
            // A later datagram shows that the frame has been processed.
            guest.within(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"?", format!("{gateway}:7778")).unwrap());
            open.recv(&mut [0; 8]).unwrap();
            assert!(host.recv(&mut [0; 8]).is_err(), "{spec}: {tags:?}");
        }
        vmm.stop();
    }
}

fn wrapped() {
    let (machine, vmm, guest) = start(GUARDED[1]);
    echo(&machine, 7);
    let (to, listener) = (mac(&machine).octets(), Listener::on(&machine));
    let packet = ip4(UDP, 0, &udp(9, 9, b"12345678"));
    let snap = |kind: [u8; 2], body: &[u8]| [&[0xaa, 0xaa, 3, 0, 0, 0][..], &kind, body].concat();
    let length = |body: &[u8]| u16::try_from(body.len()).unwrap().to_be_bytes();
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &own(), &[192, 0, 2, 1], &to, &[192, 0, 2, 1]].concat();
    let (ip_in_snap, arp_in_snap) = (snap(IP4, &packet), snap([8, 6], &arp));
    let wrapped = [
        // LLC with SNAP (RFC 1042), which Linux does not take for IP, but others do.
        (length(&ip_in_snap), ip_in_snap),
        (length(&arp_in_snap), arp_in_snap),
        // PPPoE, a network service header, MACsec, 802.1ah, RARP, an experiment, and a protocol that was before IPv6.
        ([0x88, 0x64], packet.clone()),
        ([0x88, 0x63], vec![0x11; 46]),
        ([0x89, 0x4f], packet.clone()),
        ([0x88, 0xe5], packet.clone()),
        ([0x88, 0xe7], packet.clone()),
        ([0x80, 0x35], arp.clone()),
        ([0x88, 0xb5], packet.clone()),
        ([0x90, 0x00], vec![0; 46]),
    ];
    for (kind, body) in &wrapped {
        assert!(!listener.hears(&guest, to, &frame(to, own(), *kind, body)), "{kind:?}");
    }
    assert_eq!(dropped("web", "other-protocol"), u64::try_from(wrapped.len()).unwrap());
    // No machine on a link uses the host's loopback addresses, whatever the kernel would do with them.
    for protocol in [UDP, TCP] {
        let mut packet = ip4(protocol, 0, &udp(9, 9, b"12345678"));
        packet[16..20].copy_from_slice(&[127, 0, 0, 1]);
        assert!(!listener.hears(&guest, to, &frame(to, own(), IP4, &packet)));
    }
    assert_eq!(dropped("web", "loopback"), 2);
    assert!(ask_tcp(&guest, "192.0.2.1:7").is_some());
    vmm.stop();
}

fn vlan_hopping() {
    let (vmm, guest) = Vmm::start_bridged("web", "bridge=lan,create=on,vlan=10");
    let (other, peer) = Vmm::start_bridged("db", "bridge=lan,vlan=10");
    guest.sh("ip addr add 192.0.2.5/24 dev eth0");
    peer.sh("ip addr add 192.0.2.1/24 dev eth0");
    guest.sh("ping -c 1 -W 5 192.0.2.1");
    let (to, listener) = (mac(&peer).octets(), Listener::on(&peer));
    let packet = ip4(UDP, 0, &udp(9, 9, b"12345678"));
    for outer in [[0x81, 0, 0, 0], [0x81, 0, 0, 10], [0x88, 0xa8, 0, 0]] {
        let tagged = [&to[..], &own(), &outer, &[0x81, 0, 0, 20], &IP4, &packet].concat();
        let inner = [&to[..], &own(), &[0x81, 0, 0, 20], &IP4, &packet].concat();
        // A socket gets frames without the tag that the kernel took off, so any of these shows it.
        let bare = frame(to, own(), IP4, &packet);
        assert!(!listener.hears(&guest, to, &tagged), "{outer:?}");
        assert!(!listener.hears(&guest, to, &inner), "{outer:?}");
        assert!(listener.hears(&guest, to, &bare));
    }
    assert_eq!(dropped("web", "tagged"), 3);
    vmm.stop();
    other.stop();
}
