//! Rules on a tap: they see the guest's frames before the rest of the host does.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use net::nft::{ArpOp, ChainType, EtherAddr, Family, Hook, Match, Rule, Statement, Table, TableName, Test, Verdict};
use net::{Keeper, Port, Request};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::{applied, base, inet, table};
use crate::Case;
use crate::lan::{empty_bridge, link, sh, until};

pub(super) const CASES: &[Case] = &[
    ("nft_ingress_drops_what_a_packet_socket_on_the_tap_has_seen", ingress_drop),
    ("nft_netdev_drops_arp_of_another_sender", arp_spoof),
    ("nft_dup_mirrors_what_a_guest_sends", mirror),
    ("nft_fwd_takes_what_a_guest_sends", forward),
];

/// Bytes before every frame: `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;

struct Vm {
    _keeper: Keeper,
    port: Port,
}

impl Vm {
    fn start() -> Self {
        let cards = vec!["bridge=br0".parse().unwrap()];
        let request = Request { vm_name: "web".to_owned(), vcpus: 1, cards, policy: None, steering: None };
        let mut keeper = Keeper::start(&request).unwrap();
        let port = keeper.ports().unwrap().remove(0);
        Self { _keeper: keeper, port }
    }

    fn tap(&self) -> net::spec::IfName {
        self.port.tap_name.parse().unwrap()
    }

    fn send(&self, frame: &[u8]) {
        let mut tap = File::from(self.port.fds[0].try_clone().unwrap());
        tap.write_all(&[&[0; HEADER], frame].concat()).unwrap();
    }

    fn mac(&self) -> EtherAddr {
        self.port.mac.into()
    }

    /// A broadcast frame of the guest's.
    fn frame(&self, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = [&[0xff; 6], &self.port.mac.octets()[..], &ethertype.to_be_bytes(), payload].concat();
        frame.resize(60, 0);
        frame
    }

    /// A broadcast UDP datagram that fills the shortest frame.
    fn datagram(&self, dport: u16) -> Vec<u8> {
        let [high, low] = dport.to_be_bytes();
        let mut packet = vec![0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255];
        let sum: u32 = packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
        packet.extend([0, 68, high, low, 0, 26, 0, 0]);
        self.frame(0x0800, &packet)
    }

    /// An ARP announcement of this address.
    fn arp(&self, sender: Ipv4Addr) -> Vec<u8> {
        let addr = sender.octets();
        let packet = [&[0, 1, 8, 0, 6, 4, 0, 2], &self.port.mac.octets()[..], &addr, &[0xff; 6], &addr].concat();
        self.frame(0x0806, &packet)
    }
}

/// A capture of everything that comes in, on any interface of the namespace.
pub(crate) struct Sniffer(OwnedFd);

impl Sniffer {
    pub(crate) fn new() -> Self {
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll).unwrap();
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(20)).unwrap();
        Self(fd)
    }

    /// The frames that came in through `interface` up to `last`, and that one.
    pub(crate) fn until(&self, interface: &str, last: &[u8]) -> Vec<Vec<u8>> {
        self.until_that(interface, |frame| frame == last)
    }

    /// The frames that came in through `interface` up to the wanted one, and that one.
    pub(crate) fn until_that(&self, interface: &str, wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let index = usize::try_from(nix::net::if_::if_nametoindex(interface).unwrap()).unwrap();
        let mut frames = Vec::new();
        let mut buffer = vec![0; 70_000];
        loop {
            let (len, from) = recvfrom::<LinkAddr>(self.0.as_raw_fd(), &mut buffer).expect("the last frame in time");
            let from = from.unwrap();
            if from.ifindex() == index && from.pkttype() != libc::PACKET_OUTGOING {
                frames.push(buffer[..len].to_vec());
                if wanted(&buffer[..len]) {
                    return frames;
                }
            }
        }
    }
}

fn netdev(vm: &Vm, rules: Vec<Rule>) -> Table {
    let name = TableName { family: Family::Netdev, name: "x".to_owned() };
    table(name, vec![base("in", ChainType::Filter, Hook::Ingress(vm.tap()), 0, rules)])
}

fn ingress_drop() {
    empty_bridge("br0");
    let vm = Vm::start();
    let dhcp = Match::UdpDport(Test::is(67));
    let rule = Rule::new().with(Match::EtherSaddr(Test::is(vm.mac()))).with(dhcp).with(Statement::Counter);
    let rules = vec![rule.with(Verdict::Drop)];
    let mut nft = applied(&table(inet("x"), vec![base("in", ChainType::Filter, Hook::Ingress(vm.tap()), 0, rules)]));
    let (taps, bridges) = (Sniffer::new(), Sniffer::new());
    let (dropped, passed) = (vm.datagram(67), vm.datagram(68));
    vm.send(&dropped);
    vm.send(&passed);
    assert_eq!(taps.until(&vm.port.tap_name, &passed), [dropped, passed.clone()]);
    assert_eq!(bridges.until("br0", &passed), [passed]);
    assert_eq!(nft.rule_counters(&inet("x")).unwrap()[0].counts.packets, 1);
}

fn arp_spoof() {
    empty_bridge("br0");
    let vm = Vm::start();
    let own = Ipv4Addr::new(10, 0, 0, 2);
    let spoofed = Rule::new()
        .with(Match::ArpOp(Test::any([ArpOp::REQUEST, ArpOp::REPLY])))
        .with(Match::ArpSenderIp(Test::is_not(own)))
        .with(Statement::Counter);
    let foreign = Rule::new().with(Match::ArpSender(Test::is_not(vm.mac()))).with(Statement::Counter);
    let table = netdev(&vm, vec![spoofed.with(Verdict::Drop), foreign.with(Verdict::Drop)]);
    let mut nft = applied(&table);
    let bridges = Sniffer::new();
    let mut foreign = vm.arp(own);
    foreign[22] ^= 2;
    vm.send(&vm.arp(Ipv4Addr::new(10, 0, 0, 1)));
    vm.send(&foreign);
    vm.send(&vm.arp(own));
    assert_eq!(bridges.until("br0", &vm.arp(own)), [vm.arp(own)]);
    let counted = nft.rule_counters(&table.name).unwrap();
    assert_eq!(counted.iter().map(|rule| rule.counts.packets).collect::<Vec<_>>(), [1, 1]);
}

fn veth(a: &str, b: &str) {
    sh(&format!("ip link add {a} type veth peer name {b}"));
    sh(&format!("ip link set {a} up"));
    sh(&format!("ip link set {b} up"));
    // Frames pass once the kernel has reported the carriers, from a work queue.
    until(|| [a, b].iter().all(|end| link(end)["operstate"] == "UP"));
}

fn mirror() {
    empty_bridge("br0");
    veth("mir0", "mir1");
    let vm = Vm::start();
    let _nft = applied(&netdev(&vm, vec![Rule::new().with(Statement::Dup("mir0".parse().unwrap()))]));
    let (mirrors, bridges) = (Sniffer::new(), Sniffer::new());
    vm.send(&vm.datagram(9));
    assert_eq!(mirrors.until("mir1", &vm.datagram(9)), [vm.datagram(9)]);
    assert_eq!(bridges.until("br0", &vm.datagram(9)), [vm.datagram(9)]);
}

fn forward() {
    empty_bridge("br0");
    veth("mir0", "mir1");
    let vm = Vm::start();
    let to_nine = Rule::new().with(Match::UdpDport(Test::is(9))).with(Statement::Fwd("mir0".parse().unwrap()));
    let _nft = applied(&netdev(&vm, vec![to_nine]));
    let (mirrors, bridges) = (Sniffer::new(), Sniffer::new());
    vm.send(&vm.datagram(9));
    vm.send(&vm.datagram(10));
    assert_eq!(mirrors.until("mir1", &vm.datagram(9)), [vm.datagram(9)]);
    assert_eq!(bridges.until("br0", &vm.datagram(10)), [vm.datagram(10)]);
}
