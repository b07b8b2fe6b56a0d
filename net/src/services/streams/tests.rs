use super::*;
use crate::services::frame::{Link, Protocol, packet};
use crate::services::tests::spec;
use proptest::collection::vec;
use proptest::prelude::*;

const FIN: u8 = 0x01;
const RST: u8 = 0x04;

/// The resolver's end of connections, whose answers are the questions backwards.
struct Bench {
    streams: Streams,
    now: Instant,
}

/// A guest's end of a connection.
struct Peer {
    port: u16,
    sequence: u32,
    acknowledged: u32,
    heard: Vec<u8>,
    flags: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self { streams: Streams::new(&spec(), 7, now), now }
    }

    fn segment(&mut self, peer: &mut Peer, flags: u8, data: &[u8]) {
        let ports = [peer.port.to_be_bytes(), 53_u16.to_be_bytes()].concat();
        let numbers = [peer.sequence.to_be_bytes(), peer.acknowledged.to_be_bytes()].concat();
        let segment = [&ports[..], &numbers, &[0x50, flags, 0xff, 0xff, 0, 0, 0, 0], data].concat();
        let taken = u32::try_from(data.len()).unwrap() + u32::from(flags & (SYN | FIN) != 0);
        peer.sequence = peer.sequence.wrapping_add(taken);
        let link = Link { source: spec().mac.octets(), destination: spec().gateway_mac.octets() };
        let ends = ["10.9.8.7", "10.9.8.1"].map(|address| address.parse::<IpAddr>().unwrap());
        let frame = packet(link, ends[0], ends[1], Protocol::Tcp, &segment).unwrap();
        let mut out = Vec::new();
        self.streams.on_segment(&Packet::parse(&frame).unwrap(), &frame, self.now, &mut out).unwrap();
        self.serve(&mut out);
        peer.hear(&out);
    }

    fn serve(&mut self, out: &mut Vec<Frame>) {
        for Asked { stream, message, .. } in self.streams.questions(self.now) {
            self.streams.answer(stream, &message.into_iter().rev().collect::<Vec<_>>(), self.now);
        }
        self.streams.turn(self.now, out);
    }

    fn wait(&mut self, peer: &mut Peer, time: Duration) {
        self.now += time;
        let mut out = Vec::new();
        self.serve(&mut out);
        peer.hear(&out);
    }

    fn connect(&mut self, port: u16) -> Peer {
        let mut peer = Peer { port, sequence: 1000, acknowledged: 0, heard: Vec::new(), flags: Vec::new() };
        self.segment(&mut peer, SYN, &[]);
        if peer.flags == [SYN | ACK] {
            self.segment(&mut peer, ACK, &[]);
        }
        peer
    }
}

impl Peer {
    fn hear(&mut self, frames: &[Frame]) {
        for frame in frames {
            let packet = Packet::parse(frame).unwrap();
            assert_eq!(&frame[..6], spec().mac.octets());
            assert_eq!((packet.protocol, be16(packet.payload, 0)), (Protocol::Tcp, Some(53)));
            if be16(packet.payload, 2) != Some(self.port) {
                continue;
            }
            let (flags, data) = (packet.payload[13], &packet.payload[usize::from(packet.payload[12] >> 4) * 4..]);
            let sequence = u32::from_be_bytes(*packet.payload[4..].first_chunk().unwrap());
            let taken = u32::try_from(data.len()).unwrap() + u32::from(flags & (SYN | FIN) != 0);
            self.acknowledged = sequence.wrapping_add(taken);
            self.heard.extend(data);
            self.flags.push(flags & (SYN | FIN | RST | ACK));
        }
    }

    fn was_reset(&self) -> bool {
        self.flags.last().is_some_and(|flags| flags & RST != 0)
    }
}

#[test]
fn questions_are_answered_in_a_row_and_in_parts() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(1053);
    bench.segment(&mut peer, ACK, b"\0\x03abc\0\x02");
    assert_eq!(peer.heard, b"\0\x03cba");
    bench.segment(&mut peer, ACK, b"de");
    assert_eq!(peer.heard, b"\0\x03cba\0\x02ed");
    bench.segment(&mut peer, ACK | FIN, &[]);
    bench.segment(&mut peer, ACK, &[]);
    assert!(bench.streams.connections.is_empty());
    assert_eq!(bench.streams.deadline(), None);
    assert!(!peer.was_reset());
}

#[test]
fn more_questions_than_may_wait_are_answered_in_turns() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(1053);
    bench.segment(&mut peer, ACK, &b"\0\x01x".repeat(3 * PIPELINE));
    while bench.streams.deadline().is_some_and(|due| due <= bench.now + BREATH) {
        bench.wait(&mut peer, BREATH);
    }
    assert_eq!(peer.heard, b"\0\x01x".repeat(3 * PIPELINE));
}

#[test]
fn a_long_answer_comes_as_the_guest_takes_it() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(1053);
    let mut out = Vec::new();
    bench.streams.connections[0].waiting = 1;
    let stream = bench.streams.connections[0].id;
    bench.streams.answer(stream, &[7; 60_000], bench.now);
    bench.streams.turn(bench.now, &mut out);
    peer.hear(&out);
    let first = peer.heard.len();
    assert!((1..=SEND_BYTES).contains(&first), "{first}");
    while peer.heard.len() < 60_002 {
        bench.segment(&mut peer, ACK, &[]);
        bench.wait(&mut peer, BREATH);
    }
    assert!(peer.heard[2..].iter().all(|octet| *octet == 7));
}

#[test]
fn one_connection_too_many_is_refused() {
    let mut bench = Bench::new();
    for idx in 0..CONNECTIONS {
        assert!(!bench.connect(1053 + u16::try_from(idx).unwrap()).was_reset());
    }
    assert!(bench.connect(9999).was_reset());
    let mut first = Peer { port: 1053, sequence: 1001, acknowledged: 0, heard: Vec::new(), flags: Vec::new() };
    bench.segment(&mut first, RST, &[]);
    assert!(!bench.connect(9998).was_reset());
}

#[test]
fn nonsense_ends_the_connection() {
    for nonsense in [&b"\0\0"[..], b"\xff\xff"] {
        let mut bench = Bench::new();
        let mut peer = bench.connect(1053);
        bench.segment(&mut peer, ACK, nonsense);
        assert!(peer.was_reset(), "{nonsense:?}");
        assert!(bench.streams.connections.is_empty());
    }
}

#[test]
fn who_says_nothing_whole_in_time_is_cut_off() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(1053);
    for _ in 0..3 {
        bench.wait(&mut peer, IDLE_TIMEOUT / 4);
        bench.segment(&mut peer, ACK, b"\x01");
    }
    assert!(!peer.was_reset());
    bench.wait(&mut peer, IDLE_TIMEOUT / 4);
    assert!(peer.was_reset());
    assert_eq!(bench.streams.deadline(), None);
}

#[test]
fn who_does_not_take_his_answer_is_cut_off() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(1053);
    let stream = bench.streams.connections[0].id;
    bench.streams.answer(stream, &[7; 60_000], bench.now);
    for _ in 0..40 {
        bench.wait(&mut peer, IDLE_TIMEOUT / 20);
    }
    assert!(peer.was_reset());
    assert!(bench.streams.connections.is_empty());
}

#[test]
fn half_a_handshake_is_forgotten() {
    let mut bench = Bench::new();
    let mut peer = Peer { port: 1053, sequence: 0, acknowledged: 0, heard: Vec::new(), flags: Vec::new() };
    bench.segment(&mut peer, SYN, &[]);
    for _ in 0..22 {
        bench.wait(&mut peer, IDLE_TIMEOUT / 20);
    }
    assert!(bench.streams.connections.is_empty());
}

proptest! {
    #[test]
    fn any_segments_are_survived(segments in vec((any::<u8>(), 0_u16..3, any::<u32>(), any::<u32>(), vec(any::<u8>(), 0..64)), 0..40)) {
        let mut bench = Bench::new();
        let mut known = bench.connect(1053);
        for (flags, port, sequence, acknowledged, data) in segments {
            let mut peer = Peer { port: 2000 + port, sequence, acknowledged, heard: Vec::new(), flags: Vec::new() };
            bench.segment(&mut peer, flags, &data);
            // The same near the sequence numbers that the connection expects.
            known.sequence = known.sequence.wrapping_add(sequence % 7);
            known.acknowledged = known.acknowledged.wrapping_sub(acknowledged % 5);
            bench.segment(&mut known, flags, &data);
            bench.now += Duration::from_millis(u64::from(sequence % 3000));
        }
        prop_assert!(bench.streams.connections.len() <= CONNECTIONS);
    }
}
