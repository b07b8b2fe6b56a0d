//! `mirror=`: copies of a card's frames on another interface.

use std::fs::File;
use std::io::{Read, Write};

use net::{Keeper, Port, Request};

use crate::Case;
use crate::guest::send_out;
use crate::lan::{bridge_with_uplink, exists, link, sh, snapshot, until};
use crate::nft::tap::Sniffer;
use crate::vmm::{DEADLINE, Vmm};

pub(crate) const CASES: &[Case] = &[
    ("mirror_has_what_the_guest_sends_and_gets_whole", both_ways),
    ("mirror_that_goes_leaves_the_card_alone", gone),
    ("mirror_ends_with_the_keeper", ends),
    ("mirror_refusals_say_why", refusals),
];

/// Bytes before every frame: `struct virtio_net_hdr_v1`.
pub(crate) const HEADER: usize = 12;

/// A bridge `br0` with `peer0` behind it, and a pair `mon0`, `mon1` to watch.
fn links() {
    bridge_with_uplink("br0");
    sh("ip link add mon0 type veth peer name mon1");
    sh("ip link set mon0 up");
    sh("ip link set mon1 up");
    until(|| ["mon0", "mon1"].iter().all(|end| link(end)["operstate"] == "UP"));
}

struct Card {
    _keeper: Keeper,
    port: Port,
    queue: File,
}

impl Card {
    fn start() -> Self {
        let cards = vec!["bridge=br0,mac=52:54:00:00:00:01,mirror=mon0".parse().unwrap()];
        let request = Request { vm_name: "web".to_owned(), vcpus: 1, cards, policy: None, steering: None };
        let mut keeper = Keeper::start(&request).unwrap();
        let port = keeper.ports().unwrap().remove(0);
        let queue = File::from(port.fds[0].try_clone().unwrap());
        until(|| link(&port.tap_name)["linkinfo"]["info_slave_data"]["state"] == "forwarding");
        Self { _keeper: keeper, port, queue }
    }

    fn send(&mut self, header: &[u8; HEADER], frame: &[u8]) {
        self.queue.write_all(&[header, frame].concat()).unwrap();
    }

    /// Waits until the guest gets this frame.
    fn gets(&mut self, frame: &[u8]) {
        let start = std::time::Instant::now();
        let mut buffer = vec![0; 70_000];
        loop {
            assert!(start.elapsed() < DEADLINE, "no such frame");
            match self.queue.read(&mut buffer) {
                Ok(len) if buffer[HEADER..len] == *frame => return,
                _ => std::thread::yield_now(),
            }
        }
    }
}

/// A frame of an experimental protocol (IEEE Std 802) from the card, or to it.
pub(crate) fn frame(to: [u8; 6], from: [u8; 6], text: u8) -> Vec<u8> {
    [to.as_slice(), &from, &[0x88, 0xb5], &[text; 100]].concat()
}

const GUEST: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const OUTSIDE: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];

/// A TCP segment of 4000 bytes, to be cut into segments of 1000, with the virtio-net header for it.
pub(crate) fn large() -> ([u8; HEADER], Vec<u8>) {
    // VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, 54 bytes of headers, csum_start 34, csum_offset 16.
    let mut header = [0; HEADER];
    header[..10].copy_from_slice(&[1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0]);
    let mut packet = vec![0x45, 0, 0x0f, 0xc8, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let sum: u32 = packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
    packet.extend([0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend([7; 4000]);
    (header, [OUTSIDE.as_slice(), &GUEST, &[8, 0], &packet].concat())
}

fn counted(name: &str) -> u64 {
    let text = sh("nft -j list counters table netdev minivmm-web/mirror");
    let listed: serde_json::Value = serde_json::from_str(&text).unwrap();
    let counters = listed["nftables"].as_array().unwrap().iter();
    let mut counters = counters.map(|entry| &entry["counter"]).filter(|counter| counter["name"] == name);
    counters.next().unwrap()["packets"].as_u64().unwrap()
}

fn both_ways() {
    links();
    let mut card = Card::start();
    assert_eq!(card.port.tap_name, "vmtap0");
    let (request, reply) = (frame(OUTSIDE, GUEST, 1), frame(GUEST, OUTSIDE, 2));
    let (mirrors, outside) = (Sniffer::new(), Sniffer::new());
    card.send(&[0; HEADER], &request);
    assert_eq!(outside.until("peer0", &request).last(), Some(&request));
    assert_eq!(mirrors.until("mon1", &request).last(), Some(&request));
    send_out("peer0", &reply);
    card.gets(&reply);
    assert_eq!(mirrors.until("mon1", &reply).last(), Some(&reply));
    let (header, segment) = large();
    card.send(&header, &segment);
    let seen = mirrors.until_that("mon1", |frame| frame.len() > 1500).pop().unwrap();
    assert_eq!((seen.len(), &seen[54..]), (segment.len(), &segment[54..]));
    assert!(counted("card0-from-guest") >= 2);
    assert!(counted("card0-to-guest") >= 1);
}

fn gone() {
    links();
    let mut card = Card::start();
    sh("ip link del mon0");
    let (request, reply) = (frame(OUTSIDE, GUEST, 1), frame(GUEST, OUTSIDE, 2));
    let outside = Sniffer::new();
    let before = counted("card0-from-guest");
    card.send(&[0; HEADER], &request);
    assert_eq!(outside.until("peer0", &request).last(), Some(&request));
    send_out("peer0", &reply);
    card.gets(&reply);
    assert_eq!(counted("card0-from-guest"), before + 1);
}

fn ends() {
    links();
    let before = snapshot();
    let flag = "bridge=br0,mirror=mon0";
    let mut vmm = Vmm::start("web", &[flag, flag]);
    assert!(sh("nft list table netdev minivmm-web/mirror").contains("card1-to-guest"));
    vmm.kill_keeper();
    assert_eq!(vmm.line(), "keeper gone");
    // The taps' guards stay with the VMM.
    assert_eq!(sh("nft list tables"), "table netdev minivmm-web\n");
    assert!(exists("vmtap1"));
    vmm.kill();
    assert_eq!(vmm.end(), "");
    Vmm::start("web", &[flag]).stop();
    assert_eq!(sh("nft list tables"), "");
    assert_eq!(snapshot(), before);
}

fn refusals() {
    links();
    sh("ip link set mon1 master br0");
    sh("ip link add down0 type veth peer name down1");
    sh("ip tuntap add tap0 mode tap");
    let loops = "where the card is: copies would be copied for ever | give an interface that does not lead to the card";
    for (name, message) in [
        ("no0", "does not exist | give the name of an interface; `ip link` lists them".to_owned()),
        (
            "tap0",
            "cannot have copies of frames, it is a tap | give an Ethernet card, a bridge, or an end of a veth pair".to_owned(),
        ),
        (
            "lo",
            "cannot have copies of frames, it is the loopback interface | give an Ethernet card, a bridge, or an end of a \
             veth pair"
                .to_owned(),
        ),
        ("br0", format!("leads to bridge br0, {loops}")),
        ("up0", format!("leads to bridge br0, {loops}")),
        ("peer0", format!("leads to bridge br0, {loops}")),
        ("mon0", format!("leads to bridge br0, {loops}")),
        ("down0", "is down | raise it: ip link set down0 up".to_owned()),
    ] {
        let vmm = Vmm::spawn("web", &[&format!("bridge=br0,mirror={name}")]);
        assert_eq!(vmm.line(), format!("failed mirror={name} {message} | usage"));
        assert_eq!(vmm.end(), "");
    }
}
