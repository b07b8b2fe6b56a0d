//! The guest's address, as heard on its tap.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;

use net::{AddressListener, Keeper, Port, Request};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Case;
use crate::lan::{empty_bridge, sh};

pub(crate) const CASES: &[Case] = &[
    ("address_is_heard_in_the_first_arp_with_one", first_arp),
    ("address_is_heard_in_ip_of_both_versions", ip),
    ("address_of_another_machine_on_the_bridge_is_not_heard", other_direction),
    ("address_of_a_tap_that_exists_is_heard", existing_tap),
];

/// The card of a VM that has one, with its keeper.
struct Card {
    _keeper: Keeper,
    port: Port,
    tap: File,
}

impl Card {
    fn start(spec: &str) -> Self {
        let cards = vec![spec.parse().unwrap()];
        let mut keeper =
            Keeper::start(&Request { vm_name: "web".to_owned(), vcpus: 1, cards, policy: None, steering: None })
                .unwrap();
        let port = keeper.ports().unwrap().remove(0);
        let tap = File::from(port.fds[0].try_clone().unwrap());
        Self { _keeper: keeper, port, tap }
    }

    fn address_listener(&self) -> &AddressListener {
        self.port.address_listener.as_ref().expect("an address listener")
    }

    /// The guest sends a frame.
    fn send(&mut self, ether_type: u16, at: usize, bytes: &[u8]) {
        // A virtio-net header, then the frame, in which `bytes` start at `at`.
        let mut frame = vec![0; 12 + 64];
        frame[12..18].fill(0xff);
        frame[18..24].copy_from_slice(&self.port.mac.octets());
        frame[24..26].copy_from_slice(&ether_type.to_be_bytes());
        frame[12 + at..12 + at + bytes.len()].copy_from_slice(bytes);
        self.tap.write_all(&frame).unwrap();
    }

    fn send_arp(&mut self, sender: [u8; 4]) {
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1];
        arp.extend(sender);
        self.send(0x0806, 14, &arp);
    }

    /// The address heard within half a second; `None` if the socket does not become readable.
    fn heard(&self) -> Option<IpAddr> {
        readable(self.address_listener(), 500).then(|| self.address_listener().look()).flatten()
    }

    /// The next address heard, which must come.
    fn hears(&self) -> Option<IpAddr> {
        assert!(readable(self.address_listener(), 20_000), "nothing is heard");
        self.address_listener().look()
    }
}

fn readable(source: &impl AsFd, millis: u16) -> bool {
    let mut fds = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(millis)).unwrap() == 1
}

fn first_arp() {
    empty_bridge("br0");
    let mut card = Card::start("bridge=br0");
    // Address probes, and a self-assigned address.
    card.send_arp([0; 4]);
    card.send_arp([169, 254, 1, 1]);
    card.send(0x88cc, 26, &[10, 0, 0, 1]);
    assert_eq!(card.heard(), None);

    card.send_arp([10, 0, 0, 5]);

    assert_eq!(card.hears(), Some([10, 0, 0, 5].into()));
}

fn ip() {
    empty_bridge("br0");
    let mut card = Card::start("bridge=br0");
    let six = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap();
    card.send(0x0800, 26, &[0; 4]);
    card.send(0x86dd, 22, &six("::").octets());
    card.send(0x86dd, 22, &six("fe80::5").octets());
    assert_eq!(card.heard(), None);

    card.send(0x86dd, 22, &six("fd00::5").octets());
    assert_eq!(card.hears(), Some(six("fd00::5").into()));
    card.send(0x0800, 26, &[10, 0, 0, 6]);
    assert_eq!(card.hears(), Some([10, 0, 0, 6].into()));
}

fn other_direction() {
    empty_bridge("br0");
    sh("ip address add 10.0.0.1/24 dev br0");
    let mut card = Card::start("bridge=br0");

    // The host sends ARP for the guest through the bridge.
    UdpSocket::bind("10.0.0.1:0").unwrap().send_to(b"x", "10.0.0.9:9").unwrap();

    let mut frame = [0; 2048];
    loop {
        assert!(readable(&card.tap, 20_000), "the guest is not asked");
        let bytes = card.tap.read(&mut frame).unwrap();
        if bytes > 44 && frame[24..26] == [8, 6] {
            break;
        }
    }
    assert_eq!(card.heard(), None);
}

fn existing_tap() {
    sh("ip tuntap add tap0 mode tap multi_queue");
    let mut card = Card::start("tap=tap0,queues=1");

    card.send_arp([10, 0, 0, 5]);

    assert_eq!(card.hears(), Some([10, 0, 0, 5].into()));
}
