//! The network services of a card: any frames from its guest, any answers from resolvers, in any order and at any time,
//! over datagrams and connections. Each datagram is answered once at most, every answer is whole, and no question waits
//! for ever.
//!
//! ```text
//!   shape u8, then for each event: kind u8, argument u8, length u16, bytes
//! ```

use crate::input::Input;
use net::services::{Counters, Frame, Ipv4Network, Ipv6Network, Names, Output, Reach, Responder, Search, ServiceSpec, UPSTREAM_SLOTS, Upstream};
use std::sync::LazyLock;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// The counters of all runs.
static COUNTERS: LazyLock<Counters> = LazyLock::new(Counters::default);

/// Events of one input, at most.
const EVENTS: u16 = 256;
const BYTES_MAX: usize = 2048;
const MTU: u16 = 1500;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 7);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 1);
const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Kinds of events.
const RAW: u8 = 0;
const DNS: u8 = 1;
const DNS_IPV6: u8 = 2;
const DHCP: u8 = 3;
const DHCPV6: u8 = 4;
const SOLICITATION: u8 = 5;
const SEGMENT: u8 = 6;
const ANSWER: u8 = 7;
const GOOD_ANSWER: u8 = 8;
const FAILURE: u8 = 9;
const WAIT: u8 = 10;
const CONNECT: u8 = 11;
const SAY: u8 = 12;
const OTHERWISE: u8 = 13;
const KINDS: u8 = 14;

/// Connections of the guest, open or not.
const PEERS: usize = 12;

/// Most frames that the connections send at a time: those that answer a segment, and those that answer what it asked.
const SEGMENTS_MAX: usize = 80;

/// Control bits.
const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;

struct Neighbours;

impl Names for Neighbours {
    fn lookup(&mut self, name: &str) -> Vec<IpAddr> {
        if name == "db" { vec![GUEST.into(), GUEST6.into()] } else { Vec::new() }
    }

    fn reverse(&mut self, address: IpAddr) -> Option<String> {
        (address == GUEST).then(|| "db".to_owned())
    }
}

struct Rig {
    responder: Responder,
    now: Instant,
    /// The question that each open socket has sent.
    asked: Vec<Option<Vec<u8>>>,
    /// The guest's end of each connection: what it sends next, and what it has heard.
    peers: [(u32, u32); PEERS],
}

/// Runs the events in `bytes`.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut rig = Rig::new(input.u8());
    for _ in 0..EVENTS {
        if input.is_empty() {
            break;
        }
        let (kind, argument, len) = (input.u8() % KINDS, input.u8(), usize::from(input.u16()) % BYTES_MAX);
        rig.event(kind, argument, input.bytes(len));
    }
    rig.end();
}

impl Rig {
    fn new(shape: u8) -> Self {
        let spec = ServiceSpec {
            vm_name: "web".to_owned(),
            mac: "02:00:00:00:00:09".parse().expect("an address"),
            gateway_mac: "02:00:00:00:00:01".parse().expect("an address"),
            mtu: MTU,
            reach: if shape & 1 == 0 { Reach::Outside } else { Reach::HostOnly },
            ipv4: Ipv4Network { address: GUEST, gateway: GATEWAY, prefix_len: 24 },
            ipv6: (shape & 2 == 0).then_some(Ipv6Network {
                prefix: Ipv6Addr::new(0xfd00, 9, 8, 0, 0, 0, 0, 0),
                gateway: Ipv6Addr::new(0xfd00, 9, 8, 0, 0, 0, 0, 1),
                link_local: GATEWAY6,
            }),
            search: Search::Host(Vec::new()),
        };
        let now = Instant::now();
        let mut number = 0_u16;
        let random = Box::new(move || {
            number = number.wrapping_add(0x5a5b);
            number
        });
        let mut responder = Responder::new(spec, Box::new(Neighbours), random, &COUNTERS, now);
        let resolvers = ["192.0.2.1:53", "[fd00::53]:53", "192.0.2.3:53"];
        responder.set_resolvers(
            resolvers[..usize::from(shape >> 2) % 4].iter().map(|at| at.parse().expect("one")).collect(),
        );
        Self { responder, now, asked: vec![None; UPSTREAM_SLOTS], peers: [(0, 0); PEERS] }
    }

    fn event(&mut self, kind: u8, argument: u8, bytes: &[u8]) {
        let slot = usize::from(argument) % UPSTREAM_SLOTS;
        let port = 1024 + u16::from(argument);
        match kind {
            RAW => self.frame(bytes),
            DNS => self.frame(&ipv4(UDP, GATEWAY, &datagram(port, 53, bytes))),
            DNS_IPV6 => self.frame(&ipv6(UDP, GATEWAY6, &datagram(port, 53, bytes))),
            DHCP => self.frame(&ipv4(UDP, Ipv4Addr::BROADCAST, &datagram(68, 67, &dhcp(argument, bytes)))),
            DHCPV6 => self.frame(&ipv6(UDP, ALL_SERVERS, &datagram(546, 547, bytes))),
            SOLICITATION => self.frame(&ipv6(ICMPV6, ALL_ROUTERS, &[&[133, 0, 0, 0, 0, 0, 0, 0], bytes].concat())),
            SEGMENT => self.frame(&ipv4(TCP, GATEWAY, bytes)),
            CONNECT => {
                let peer = usize::from(argument) % PEERS;
                self.peers[peer] = (u32::from(argument) << 24, 0);
                self.segment(peer, SYN, &[]);
                self.segment(peer, ACK, &[]);
            }
            SAY => self.segment(usize::from(argument) % PEERS, ACK, bytes),
            OTHERWISE => {
                // What the guest's numbers and flags are off by.
                let (head, data) = bytes.split_at(bytes.len().min(3));
                let at = |idx: usize| head.get(idx).copied().unwrap_or(FIN | ACK);
                let peer = usize::from(argument) % PEERS;
                self.peers[peer].0 = self.peers[peer].0.wrapping_add_signed(i32::from(at(1).cast_signed()));
                self.peers[peer].1 = self.peers[peer].1.wrapping_add_signed(i32::from(at(2).cast_signed()));
                self.segment(peer, at(0), data);
            }
            ANSWER => self.answer(slot, bytes),
            GOOD_ANSWER => {
                let Some(mut message) = self.asked[slot].clone() else { return };
                message[2] |= 0x80;
                message[3] = argument & 0xf;
                message.extend(bytes);
                self.answer(slot, &message);
            }
            FAILURE => {
                let open = self.asked[slot].is_some();
                let mut out = Output::default();
                self.responder.on_upstream_failure(slot, self.now, &mut out);
                assert!(open || out.upstream.is_empty(), "no question was asked");
                self.check(out, SEGMENTS_MAX);
            }
            _ => self.wait(Duration::from_millis(u64::from(argument) * 16)),
        }
    }

    fn frame(&mut self, frame: &[u8]) {
        let mut out = Output::default();
        self.responder.on_frame(frame, self.now, &mut out);
        if frame.get(23) == Some(&TCP) || frame.get(20) == Some(&TCP) {
            return self.check(out, SEGMENTS_MAX);
        }
        // While another resolver is preferred, the first of the list gets a copy of a question now and then.
        let is_copied = out.upstream.len() == 2 && out.frames.is_empty();
        assert!(out.frames.len() + out.upstream.len() <= 1 || is_copied, "one answer or one question");
        self.check(out, 1);
    }

    /// A segment of a connection to the resolver, with the numbers that the connection has come to.
    fn segment(&mut self, peer: usize, flags: u8, data: &[u8]) {
        let (sequence, heard) = self.peers[peer];
        let port = 2000 + u16::try_from(peer).expect("few");
        let head = [&port.to_be_bytes()[..], &[0, 53], &sequence.to_be_bytes(), &heard.to_be_bytes()].concat();
        let taken = u32::try_from(data.len()).expect("short") + u32::from(flags & (SYN | FIN) != 0);
        self.peers[peer].0 = sequence.wrapping_add(taken);
        self.frame(&ipv4(TCP, GATEWAY, &[&head[..], &[0x50, flags, 0x40, 0, 0, 0, 0, 0], data].concat()));
    }

    /// The guest takes note of what it has heard on its connections.
    fn hear(&mut self, frame: &Frame) {
        if frame[12..14] != [8, 0] || frame[23] != TCP {
            return;
        }
        let segment = &frame[34..];
        let peer = usize::from(u16::from_be_bytes([segment[2], segment[3]])).wrapping_sub(2000);
        let Some((_, heard)) = self.peers.get_mut(peer) else { return };
        let len = u32::try_from(segment.len() - usize::from(segment[12] >> 4) * 4).expect("short");
        let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
        *heard = sequence.wrapping_add(len + u32::from(segment[13] & (SYN | FIN) != 0));
    }

    fn answer(&mut self, slot: usize, bytes: &[u8]) {
        let open = self.asked[slot].is_some();
        let mut out = Output::default();
        self.responder.on_upstream(slot, bytes, self.now, &mut out);
        assert!(open || out.upstream.is_empty(), "no question was asked");
        self.check(out, SEGMENTS_MAX);
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        let mut out = Output::default();
        self.responder.on_time(self.now, &mut out);
        assert!(self.responder.next_deadline().is_none_or(|due| due > self.now), "what is due is done");
        self.check(out, UPSTREAM_SLOTS + 1 + SEGMENTS_MAX);
    }

    /// Follows the orders for sockets, and looks at the frames.
    fn check(&mut self, out: Output, frames_max: usize) {
        assert!(out.frames.len() <= frames_max, "no more frames than causes");
        for order in out.upstream {
            match order {
                Upstream::Ask { slot, message, .. } => self.asked[slot] = Some(message),
                Upstream::Forget { slot } => assert!(self.asked[slot].take().is_some(), "only what is open is closed"),
            }
        }
        for frame in &out.frames {
            check_frame(frame);
            self.hear(frame);
        }
    }

    /// Whatever was asked has its answer some time.
    fn end(&mut self) {
        for _ in 0..10 {
            self.wait(Duration::from_secs(2));
        }
        assert!(self.asked.iter().all(Option::is_none), "no question waits for ever");
    }
}

/// A frame of ours is as long as it says, and its checksums are right.
fn check_frame(frame: &Frame) {
    assert!(frame.len() <= usize::from(MTU) + 14);
    assert_eq!(frame[6..12], [2, 0, 0, 0, 0, 1]);
    let (addresses, protocol, payload) = match frame[12..14] {
        [8, 0] => {
            assert_eq!(sum(&frame[14..34]), u16::MAX);
            assert_eq!(usize::from(u16::from_be_bytes([frame[16], frame[17]])), frame.len() - 14);
            (&frame[26..34], frame[23], &frame[34..])
        }
        _ => {
            assert_eq!(usize::from(u16::from_be_bytes([frame[18], frame[19]])), frame.len() - 54);
            (&frame[22..54], frame[20], &frame[54..])
        }
    };
    let len = u16::try_from(payload.len()).expect("no longer than a packet");
    assert_eq!(sum(&[addresses, &[0, protocol], &len.to_be_bytes(), payload].concat()), u16::MAX);
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let total: u32 = words.sum();
    let folded = (total & 0xffff) + (total >> 16);
    u16::try_from((folded & 0xffff) + (folded >> 16)).expect("16 bits")
}

fn datagram(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len() + 8).expect("short");
    [&source.to_be_bytes()[..], &destination.to_be_bytes(), &len.to_be_bytes(), &[0, 0], payload].concat()
}

fn ipv4(protocol: u8, destination: Ipv4Addr, payload: &[u8]) -> Frame {
    let len = u16::try_from(payload.len() + 20).expect("short").to_be_bytes();
    let mut header =
        [&[0x45, 0], &len[..], &[0, 0, 0, 0, 64, protocol, 0, 0], &GUEST.octets(), &destination.octets()].concat();
    let checksum = !sum(&header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    [&[0xff; 6][..], &GUEST_MAC, &[8, 0], &header, payload].concat()
}

fn ipv6(protocol: u8, destination: Ipv6Addr, payload: &[u8]) -> Frame {
    let len = u16::try_from(payload.len()).expect("short").to_be_bytes();
    let header = [&[0x60, 0, 0, 0], &len[..], &[protocol, 255], &GUEST6.octets(), &destination.octets()].concat();
    [&[0xff; 6][..], &GUEST_MAC, &[0x86, 0xdd], &header, payload].concat()
}

/// A message of the guest's client with these options.
fn dhcp(kind: u8, options: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[28..34].copy_from_slice(&GUEST_MAC);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, kind]);
    message.extend(options);
    message
}

/// Every service asked once, with answers, failures and silence.
pub fn seeds() -> Vec<Vec<u8>> {
    let event = |kind: u8, argument: u8, bytes: &[u8]| {
        let len = u16::try_from(bytes.len()).expect("short").to_le_bytes();
        [&[kind, argument], &len[..], bytes].concat()
    };
    let question = |name: &[u8], kind: u8| [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1], name, &[0, kind, 0, 1]].concat();
    let opt = [0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0];
    let outside = [question(b"\x07example\x03org\x00", 16), opt.to_vec()].concat();
    let local = [question(b"\x02db\x07minivmm\x00", 28), opt.to_vec()].concat();
    let pointer = [question(b"\x017\x018\x019\x0210\x07in-addr\x04arpa\x00", 12), opt.to_vec()].concat();
    let prefixed = |message: &[u8]| [&u16::try_from(message.len()).expect("short").to_be_bytes()[..], message].concat();
    let mut events: Vec<Vec<u8>> = vec![
        event(DNS, 1, &outside),
        event(GOOD_ANSWER, 0, &[7; 600]),
        event(DNS, 2, &outside),
        event(GOOD_ANSWER, 0, &[7; 1400]),
        event(DNS_IPV6, 3, &outside),
        event(ANSWER, 0, &outside),
        event(FAILURE, 0, &[]),
        event(WAIT, 100, &[]),
        event(GOOD_ANSWER, 0, &[]),
        event(DNS, 4, &local),
        event(DNS_IPV6, 4, &pointer),
        event(DHCP, 1, &[61, 7, 1, 2, 0, 0, 0, 0, 9, 57, 2, 5, 0xdc, 55, 3, 1, 3, 6, 255]),
        event(DHCP, 3, &[54, 4, 10, 9, 8, 1, 50, 4, 10, 9, 8, 7, 255]),
        event(DHCP, 3, &[50, 4, 10, 9, 8, 8, 255]),
        event(DHCP, 7, &[255]),
        event(DHCPV6, 0, &[11, 1, 2, 3, 0, 1, 0, 2, 9, 9, 0, 6, 0, 4, 0, 23, 0, 24]),
        event(SOLICITATION, 0, &[1, 1, 2, 0, 0, 0, 0, 9]),
        event(SEGMENT, 0, &[0x12, 0x34, 0, 53, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 1, 0, 0, 0, 0, 0]),
        event(CONNECT, 1, &[]),
        event(SAY, 1, &prefixed(&local)),
        event(SAY, 1, &[prefixed(&outside), prefixed(&pointer)].concat()),
        event(GOOD_ANSWER, 0, &[7; 2000]),
        event(SAY, 1, &prefixed(&outside)[..9]),
        event(WAIT, 200, &[]),
        event(OTHERWISE, 1, &[FIN | ACK, 0, 0]),
        event(CONNECT, 2, &[]),
        event(SAY, 2, &[0, 0]),
        event(WAIT, 255, &[]),
        event(RAW, 0, &ipv4(UDP, GATEWAY, &datagram(9, 53, &local))),
    ];
    let all = events.concat();
    events.iter_mut().for_each(|event| event.insert(0, 0x0c));
    events.extend([0x0c, 0x0d, 0x0e, 0x00, 0x04].map(|shape| [&[shape], &all[..]].concat()));
    events
}
