//! The services as a whole: frames in, frames and questions out.

use super::frame::{Datagram, Link, Packet, Protocol, packet, udp};
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const GATEWAY: &str = "10.9.8.1:53";
const CLIENT: &str = "10.9.8.7:4711";

/// The card of the VM "web", 10.9.8.7 on 10.9.8.0/24.
pub(super) fn spec() -> ServiceSpec {
    ServiceSpec {
        vm_name: "web".to_owned(),
        mac: "02:00:00:00:00:09".parse().unwrap(),
        gateway_mac: "02:00:00:00:00:01".parse().unwrap(),
        mtu: 1500,
        reach: Reach::Outside,
        ipv4: Ipv4Network { address: [10, 9, 8, 7].into(), gateway: [10, 9, 8, 1].into(), prefix_len: 24 },
        ipv6: Some(Ipv6Network {
            prefix: "fd00:9:8::".parse().unwrap(),
            gateway: "fd00:9:8::1".parse().unwrap(),
            link_local: "fe80::1".parse().unwrap(),
        }),
        search: Search::Only(Vec::new()),
    }
}

/// Two VMs: `web` and `db`.
pub(super) struct Neighbours;

impl Names for Neighbours {
    fn lookup(&mut self, name: &str) -> Vec<IpAddr> {
        match name {
            "web" => vec!["10.9.8.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            "db" => vec!["10.9.8.8".parse().unwrap()],
            _ => Vec::new(),
        }
    }

    fn reverse(&mut self, address: IpAddr) -> Option<String> {
        (address == IpAddr::from([10, 9, 8, 8])).then(|| "db".to_owned())
    }
}

struct Bench {
    responder: Responder,
    now: Instant,
    out: Output,
}

impl Bench {
    fn new(spec: ServiceSpec) -> Self {
        // Four numbers are for the connections.
        let mut next = 0x0ffc;
        let random = Box::new(move || {
            next += 1;
            next
        });
        let now = Instant::now();
        let mut responder = Responder::new(spec, Box::new(Neighbours), random, Box::leak(Box::default()), now);
        responder.set_resolvers(vec!["192.0.2.1:53".parse().unwrap(), "192.0.2.2:53".parse().unwrap()]);
        Self { responder, now, out: Output::default() }
    }

    /// Gives a question from `client` and returns what comes back.
    fn ask_from(&mut self, client: &str, message: &[u8]) -> Output {
        let link = Link { source: spec().mac.octets(), destination: spec().gateway_mac.octets() };
        let frame = udp(link, client.parse().unwrap(), GATEWAY.parse().unwrap(), message).unwrap();
        self.frame(&frame)
    }

    fn ask(&mut self, message: &[u8]) -> Output {
        self.ask_from(CLIENT, message)
    }

    fn frame(&mut self, frame: &[u8]) -> Output {
        self.responder.on_frame(frame, self.now, &mut self.out);
        std::mem::take(&mut self.out)
    }

    fn hear(&mut self, slot: usize, message: &[u8]) -> Output {
        self.responder.on_upstream(slot, message, self.now, &mut self.out);
        std::mem::take(&mut self.out)
    }

    fn wait(&mut self, time: Duration) -> Output {
        self.now += time;
        self.responder.on_time(self.now, &mut self.out);
        std::mem::take(&mut self.out)
    }

    fn count(&self, name: &str) -> u64 {
        self.responder.counters().iter().find(|(found, _)| *found == name).unwrap().1
    }
}

/// The datagram in a frame.
fn datagram(frame: &[u8]) -> Option<Datagram<'_>> {
    Packet::parse(frame).as_ref().and_then(Datagram::parse)
}

/// A network without IPv6, on which nothing happens by itself.
fn quiet() -> ServiceSpec {
    ServiceSpec { ipv6: None, ..spec() }
}

/// A question for the address of `name`.
fn question(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut message = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        message.push(label.len().try_into().unwrap());
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend([0, u8::try_from(kind).unwrap(), 0, 1]);
    message
}

/// The same with an OPT record.
fn edns(mut question: Vec<u8>, udp_bytes: u16) -> Vec<u8> {
    question[11] = 1;
    let [high, low] = udp_bytes.to_be_bytes();
    [&question[..], &[0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]].concat()
}

/// The only question that was passed on: slot, server and message.
fn asked(out: &Output) -> (usize, SocketAddr, Vec<u8>) {
    match out.upstream.as_slice() {
        [Upstream::Ask { slot, server, message, .. }] => (*slot, *server, message.clone()),
        other => panic!("one question expected: {other:?}"),
    }
}

/// The DNS message in the only frame.
fn answered(out: &Output) -> Vec<u8> {
    assert_eq!(out.frames.len(), 1, "one answer expected");
    let datagram = datagram(&out.frames[0]).unwrap();
    assert_eq!((datagram.source, datagram.destination), (GATEWAY.parse().unwrap(), CLIENT.parse().unwrap()));
    datagram.payload.to_vec()
}

/// `question` as an answer with this code and these octets behind.
fn answer_to(question: &[u8], code: u8, rest: &[u8]) -> Vec<u8> {
    let mut answer = [question, rest].concat();
    answer[2] |= 0x80;
    answer[3] = 0x80 | code;
    answer
}

fn code(answer: &[u8]) -> u8 {
    answer[3] & 0xf
}

/// A DHCP message of this type from `mac` that asks for the card's address.
fn dhcp(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[28..34].copy_from_slice(&mac);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, kind, 50, 4, 10, 9, 8, 7, 255]);
    let ends = ["0.0.0.0:68", "255.255.255.255:67"].map(|text| text.parse().unwrap());
    udp(Link { source: mac, destination: [0xff; 6] }, ends[0], ends[1], &message).unwrap()
}

#[test]
fn lease_that_is_acknowledged_is_told() {
    let mut bench = Bench::new(spec());

    let out = bench.frame(&dhcp(3, spec().mac.octets()));

    assert_eq!(out.events, [Event::LeaseAcked { ip: [10, 9, 8, 7].into() }]);
    let reply = datagram(&out.frames[0]).unwrap();
    assert_eq!(reply.source_mac, spec().gateway_mac.octets());
    assert_eq!(reply.source, "10.9.8.1:67".parse().unwrap());
    assert_eq!(reply.destination, "10.9.8.7:68".parse().unwrap());
    assert_eq!(out.frames[0][..6], spec().mac.octets());
    assert_eq!(bench.count("dhcp_acks"), 1);
}

#[test]
fn domains_of_the_host_are_told_from_then_on_and_soon_if_the_card_has_none_of_its_own() {
    let of = |text: &str| text.parse().unwrap();
    let advertised = |search: Search, room: Duration| {
        let mut bench = Bench::new(ServiceSpec { search, ..spec() });
        bench.responder.set_search(vec![of("corp.example")], bench.now);
        let out = bench.wait(room);
        out.frames.iter().any(|frame| frame.windows(14).any(|part| part == b"\x04corp\x07example\x00"))
    };
    assert!(advertised(Search::Host(Vec::new()), Duration::ZERO));
    assert!(!advertised(Search::Host(vec![of("corp.example")]), Duration::ZERO));
    assert!(advertised(Search::Host(vec![of("corp.example")]), Duration::from_secs(16)));
    assert!(!advertised(Search::Only(vec![of("lab")]), Duration::from_secs(16)));
}

#[test]
fn address_that_is_given_back_or_declined_is_told() {
    let mut bench = Bench::new(spec());
    for (kind, event) in [(7, Event::LeaseReleased), (4, Event::LeaseDeclined { ip: [10, 9, 8, 7].into() })] {
        let out = bench.frame(&dhcp(kind, spec().mac.octets()));
        assert_eq!((out.events, out.frames.len()), (vec![event], 0));
    }
}

#[test]
fn another_guest_gets_no_lease() {
    let mut bench = Bench::new(spec());
    let out = bench.frame(&dhcp(1, [2, 0, 0, 0, 0, 8]));
    assert!(out.frames.is_empty());
    assert_eq!(bench.count("ignored"), 1);
}

#[test]
fn names_of_the_network_are_answered_here() {
    let mut bench = Bench::new(spec());
    let cases: [(&str, u16, u8, &[u8]); 9] = [
        ("web.minivmm", 1, 0, &[10, 9, 8, 7]),
        ("WEB.MiniVMM", 1, 0, &[10, 9, 8, 7]),
        ("web.minivmm", 28, 0, &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]),
        ("db.minivmm", 28, 0, &[]),
        ("nobody.minivmm", 1, 3, &[]),
        ("minivmm", 1, 0, &[]),
        ("8.8.9.10.in-addr.arpa", 12, 0, b"\x02db\x07minivmm\x00"),
        ("9.8.9.10.in-addr.arpa", 12, 3, &[]),
        ("web.minivmm", 16, 0, &[]),
    ];
    for (name, kind, expected, value) in cases {
        let question = question(7, name, kind);
        let out = bench.ask(&question);
        let answer = answered(&out);
        assert!(out.upstream.is_empty(), "{name}: never asked elsewhere");
        assert_eq!(answer[..2], [0, 7]);
        assert_eq!((code(&answer), answer[2] & 0x84), (expected, 0x84), "{name} {kind}");
        assert_eq!(answer[7], u8::from(!value.is_empty()), "{name} {kind}");
        assert!(answer.ends_with(value), "{name} {kind}");
    }
}

#[test]
fn question_is_passed_on_and_its_answer_comes_back() {
    let mut bench = Bench::new(quiet());
    let question = question(7, "example.org", 1);

    let (slot, server, passed) = asked(&bench.ask(&question));
    assert_eq!(server, "192.0.2.1:53".parse().unwrap());
    assert_eq!(passed[..2], [0x10, 0x01]);
    assert_eq!(passed[2..], question[2..]);
    let out = bench.hear(slot, &answer_to(&passed, 0, b"records"));

    assert_eq!(answered(&out), answer_to(&question, 0, b"records"));
    assert_eq!(out.upstream, [Upstream::Forget { slot }]);
    assert_eq!(bench.responder.next_deadline(), None);
}

#[test]
fn what_does_not_answer_the_question_is_not_believed() {
    let mut bench = Bench::new(spec());
    let (slot, _, passed) = asked(&bench.ask(&question(7, "example.org", 1)));
    let good = answer_to(&passed, 0, &[]);
    let mut other_id = good.clone();
    other_id[1] ^= 1;
    let mut other_name = good.clone();
    other_name[14] = b'z';
    for forged in [&other_id, &other_name, &passed, &good[..11], &good[..20], &[][..]] {
        let out = bench.hear(slot, forged);
        assert!(out.frames.is_empty() && out.upstream.is_empty());
    }
    assert_eq!(code(&answered(&bench.hear(slot, &good))), 0);
}

#[test]
fn repeated_question_is_asked_once() {
    let mut bench = Bench::new(spec());
    let question = question(7, "example.org", 1);
    asked(&bench.ask(&question));
    let out = bench.ask(&question);
    assert!(out.frames.is_empty() && out.upstream.is_empty());
}

#[test]
fn silent_servers_are_asked_in_turns_and_then_the_question_fails() {
    let mut bench = Bench::new(quiet());
    let (slot, first, _) = asked(&bench.ask(&question(7, "example.org", 1)));
    let timeout = bench.responder.next_deadline().unwrap() - bench.now;

    let (_, second, passed) = asked(&bench.wait(timeout));
    let (_, third, _) = asked(&bench.wait(timeout));
    assert_eq!(
        [first, second, third].map(|server| server.to_string()),
        ["192.0.2.1:53", "192.0.2.2:53", "192.0.2.1:53"]
    );
    assert_eq!(passed[..2], [0x10, 0x02]);
    let out = bench.wait(timeout);

    assert_eq!(code(&answered(&out)), 2);
    assert_eq!(out.upstream, [Upstream::Forget { slot }]);
}

#[test]
fn failing_server_is_followed_by_the_next_at_once() {
    let mut bench = Bench::new(spec());
    let (slot, _, passed) = asked(&bench.ask(&question(7, "example.org", 1)));

    let (_, second, again) = asked(&bench.hear(slot, &answer_to(&passed, 5, &[])));
    assert_eq!(second, "192.0.2.2:53".parse().unwrap());
    let out = bench.hear(slot, &answer_to(&again, 5, &[]));

    assert_eq!(code(&answered(&out)), 5);
}

#[test]
fn answer_that_the_client_cannot_take_is_cut() {
    let mut bench = Bench::new(spec());
    let plain = question(7, "example.org", 16);
    let long = [b'x'; 700];

    let (slot, _, passed) = asked(&bench.ask(&plain));
    let cut = answered(&bench.hear(slot, &answer_to(&passed, 0, &long)));
    assert_eq!(cut.len(), plain.len());
    assert_eq!(cut[2] & 2, 2);

    let roomy = edns(plain, 1232);
    let (slot, _, passed) = asked(&bench.ask(&roomy));
    let whole = answered(&bench.hear(slot, &answer_to(&passed, 0, &long)));
    assert_eq!(whole.len(), roomy.len() + long.len());
    assert_eq!(whole[2] & 2, 0);

    let (slot, _, passed) = asked(&bench.ask(&roomy));
    let cut = answered(&bench.hear(slot, &answer_to(&passed, 0, &[b'x'; 1400])));
    assert_eq!((cut[2] & 2, cut.len()), (2, roomy.len()));
}

#[test]
fn host_only_network_passes_nothing_on() {
    let mut bench = Bench::new(ServiceSpec { reach: Reach::HostOnly, ..spec() });
    let out = bench.ask(&question(7, "example.org", 1));
    assert_eq!(code(&answered(&out)), 5);
    assert!(out.upstream.is_empty());
    assert_eq!(code(&answered(&bench.ask(&question(8, "db.minivmm", 1)))), 0);
}

#[test]
fn questions_beyond_the_slots_wait_for_their_turn_and_no_longer_than_clients_do() {
    let mut bench = Bench::new(quiet());
    let (slot, _, passed) = asked(&bench.ask(&question(0, "example.org", 1)));
    for id in 1..UPSTREAM_SLOTS {
        asked(&bench.ask(&question(id.try_into().unwrap(), "example.org", 1)));
    }
    // The queue is bounded, and questions beyond it get no answer that a client would believe.
    for id in 0..3000 {
        let out = bench.ask(&question(1000 + id, "example.org", 1));
        assert_eq!((out.frames.len(), out.upstream.len()), (0, 0), "{id}");
    }
    let out = bench.hear(slot, &answer_to(&passed, 0, &[]));
    assert_eq!(out.frames.len(), 1);
    assert!(matches!(out.upstream.as_slice(), [Upstream::Forget { .. }, Upstream::Ask { .. }]), "{:?}", out.upstream);
    let mut all = 0;
    for _ in 0..100 {
        all += bench.wait(Duration::from_secs(1)).frames.len();
    }
    // Those that were asked and never answered. The others were forgotten, and no deadline is left.
    assert!((UPSTREAM_SLOTS..10 * UPSTREAM_SLOTS).contains(&all), "{all}");
    assert_eq!(bench.responder.next_deadline(), None);
}

#[test]
fn server_that_is_dead_costs_one_wait_until_it_is_back() {
    let servers: Vec<SocketAddr> = vec!["192.0.2.1:53".parse().unwrap(), "192.0.2.2:53".parse().unwrap()];
    let mut bench = Bench::new(quiet());
    bench.responder.set_resolvers(servers.clone());
    let server_of = |out: &Output| match out.upstream.as_slice() {
        [.., Upstream::Ask { slot, server, message, .. }] => (*slot, *server, message.clone()),
        other => panic!("{other:?}"),
    };
    let (_, first, _) = server_of(&bench.ask(&question(1, "example.org", 1)));
    let (slot, second, passed) = server_of(&bench.wait(Duration::from_millis(1500)));
    assert_eq!([first, second], servers[..]);
    bench.hear(slot, &answer_to(&passed, 0, &[]));
    // From now on the other is asked, and the dead one gets a copy first.
    let out = bench.ask(&question(2, "example.org", 1));
    assert_eq!(out.upstream.len(), 2);
    let (slot, server, passed) = server_of(&out);
    assert_eq!(server, servers[1]);
    bench.hear(slot, &answer_to(&passed, 0, &[]));
    let out = bench.ask(&question(3, "example.org", 1));
    assert_eq!((out.upstream.len(), server_of(&out).1), (1, servers[1]));
    // The client is not told that the copy got no answer.
    assert!(bench.wait(Duration::from_millis(1400)).frames.is_empty());
    bench.wait(Duration::from_secs(20));
    let out = bench.ask(&question(4, "example.org", 1));
    let [Upstream::Ask { slot, server, message, .. }, _] = out.upstream.as_slice() else { panic!("{out:?}") };
    assert_eq!(*server, servers[0]);
    assert!(bench.hear(*slot, &answer_to(message, 0, &[])).frames.is_empty());
    assert_eq!(server_of(&bench.ask(&question(5, "example.org", 1))).1, servers[0]);
}

#[test]
fn guest_has_the_host_ask_so_many_questions_in_a_second() {
    let mut bench = Bench::new(quiet());
    let mut passed = 0;
    for id in 0..10_000_u16 {
        let out = bench.ask(&question(id, "example.org", 1));
        for order in out.upstream {
            let Upstream::Ask { slot, message, .. } = order else { continue };
            passed += 1;
            let mut out = bench.hear(slot, &answer_to(&message, 0, &[]));
            assert!(out.upstream.drain(..).all(|order| matches!(order, Upstream::Forget { .. })));
        }
    }
    assert_eq!(passed, 2000);
    assert!(!bench.wait(Duration::from_millis(2)).upstream.is_empty());
}

#[test]
fn without_resolvers_questions_fail_at_once() {
    let mut bench = Bench::new(spec());
    bench.responder.set_resolvers(Vec::new());
    assert_eq!(code(&answered(&bench.ask(&question(7, "example.org", 1)))), 2);
}

#[test]
fn what_is_no_question_is_told_so() {
    let mut bench = Bench::new(spec());
    let good = question(7, "web.minivmm", 1);
    let with = |at: usize, value: u8| {
        let mut bad = good.clone();
        bad[at] = value;
        bad
    };
    let mut version = edns(good.clone(), 1232);
    let at = version.len() - 5;
    version[at] = 1;
    let cases = [
        ("two questions", with(5, 2), 1),
        ("none", with(5, 0), 1),
        ("a pointer", with(12, 0xc0), 1),
        ("a record that is not there", with(7, 1), 1),
        ("cut", good[..20].to_vec(), 1),
        ("an update", with(2, 0x28), 4),
        ("another version of EDNS", version, 0),
    ];
    for (what, message, expected) in cases {
        let answer = answered(&bench.ask(&message));
        assert_eq!(code(&answer), expected, "{what}");
    }
    let mut answer = good.clone();
    answer[2] |= 0x80;
    for silent in [&answer[..], &good[..11]] {
        assert!(bench.ask(silent).frames.is_empty());
    }
}

#[test]
fn only_guests_of_the_network_are_answered_and_no_servers() {
    let mut bench = Bench::new(spec());
    let message = question(7, "web.minivmm", 1);
    for client in ["10.9.8.7:53", "10.9.7.7:4711", "10.9.8.1:4711", "10.9.8.7:0"] {
        assert!(bench.ask_from(client, &message).frames.is_empty(), "{client}");
    }
}

#[test]
fn guests_ask_over_ipv6_as_well() {
    let mut bench = Bench::new(spec());
    let message = question(7, "db.minivmm", 1);
    let link = Link { source: spec().mac.octets(), destination: spec().gateway_mac.octets() };
    for (client, server, heard) in [
        ("[fe80::9]:4711", "[fe80::1]:53", true),
        ("[fd00:9:8::9]:4711", "[fd00:9:8::1]:53", true),
        ("[fd00:9:9::9]:4711", "[fd00:9:8::1]:53", false),
    ] {
        let out = bench.frame(&udp(link, client.parse().unwrap(), server.parse().unwrap(), &message).unwrap());
        let ends: Vec<_> = out.frames.iter().map(|frame| datagram(frame).unwrap()).collect();
        let ends: Vec<_> = ends.iter().map(|answer| (answer.source, answer.destination)).collect();
        let expected = (server.parse().unwrap(), client.parse().unwrap());
        assert_eq!(ends, if heard { vec![expected] } else { vec![] });
    }
}

#[test]
fn network_without_ipv6_is_silent_about_it() {
    let mut bench = Bench::new(quiet());
    assert_eq!(bench.responder.next_deadline(), None);
}

#[test]
fn advertisements_come_by_themselves() {
    let mut bench = Bench::new(spec());
    for _ in 0..3 {
        let due = bench.responder.next_deadline().unwrap() - bench.now;
        assert_eq!(bench.wait(due).frames.len(), 1);
    }
    assert_eq!(bench.count("advertisements"), 3);
}

#[test]
fn only_guests_of_the_network_connect_to_the_resolver() {
    let mut bench = Bench::new(spec());
    let segment = [0x12, 0x34, 0, 53, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 1, 0, 0, 0, 0, 0];
    let link = Link { source: spec().mac.octets(), destination: spec().gateway_mac.octets() };
    let mut connect = |from: &str| {
        let ends = [from, "10.9.8.1"].map(|address| address.parse::<IpAddr>().unwrap());
        bench.frame(&packet(link, ends[0], ends[1], Protocol::Tcp, &segment).unwrap()).frames
    };

    assert_eq!(connect("192.0.2.1"), Vec::<Frame>::new());
    let frames = connect("10.9.8.7");

    let answer = Packet::parse(&frames[0]).unwrap();
    // SYN and ACK.
    assert_eq!((answer.protocol, answer.payload[13]), (Protocol::Tcp, 0x12));
}

#[test]
fn spec_survives_the_way_to_the_vmm() {
    let text = serde_json::to_string(&spec()).unwrap();
    assert_eq!(serde_json::from_str::<ServiceSpec>(&text).unwrap(), spec());
}

#[test]
fn masks_of_all_lengths() {
    for (prefix_len, mask) in
        [(0, "0.0.0.0"), (8, "255.0.0.0"), (24, "255.255.255.0"), (32, "255.255.255.255"), (99, "255.255.255.255")]
    {
        assert_eq!(Ipv4Network { prefix_len, ..spec().ipv4 }.mask(), mask.parse::<Ipv4Addr>().unwrap());
    }
}

proptest! {
    /// Neither a panic nor more than one frame, and every frame is well-formed and no longer than the network allows.
    #[test]
    fn any_payload_gets_one_good_answer_at_most(
        payload in vec(any::<u8>(), 0..300),
        port in prop_oneof![Just(53_u16), Just(67), Just(547)],
        host_only in any::<bool>(),
    ) {
        let reach = if host_only { Reach::HostOnly } else { Reach::Outside };
        let mut bench = Bench::new(ServiceSpec { reach, ..spec() });
        let link = Link { source: spec().mac.octets(), destination: spec().gateway_mac.octets() };
        let to = SocketAddr::new(GATEWAY.parse::<SocketAddr>().unwrap().ip(), port);
        let out = bench.frame(&udp(link, CLIENT.parse().unwrap(), to, &payload).unwrap());
        prop_assert!(out.frames.len() + out.upstream.len() <= 1);
        for frame in &out.frames {
            prop_assert!(datagram(frame).is_some());
            prop_assert!(frame.len() <= 1514);
        }
    }

    /// Questions that are nearly right reach deeper.
    #[test]
    fn any_damaged_question_gets_one_good_answer_at_most(
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        name in prop_oneof![Just("web.minivmm"), Just("example.org"), Just("8.8.9.10.in-addr.arpa")],
        answer in vec(any::<u8>(), 0..100),
    ) {
        let mut bench = Bench::new(spec());
        let mut message = edns(question(7, name, 1), 1232);
        for (at, value) in damage {
            let at = at.index(message.len());
            message[at] = value;
        }
        let out = bench.ask(&message);
        prop_assert!(out.frames.len() + out.upstream.len() <= 1);
        if let [Upstream::Ask { slot, message, .. }] = out.upstream.as_slice() {
            bench.hear(*slot, &answer);
            let out = bench.hear(*slot, &answer_to(message, 0, &answer));
            prop_assert_eq!(out.frames.len(), 1);
        }
        for frame in &out.frames {
            prop_assert!(datagram(frame).is_some());
        }
    }

    #[test]
    fn any_frame_is_answered_once_at_most(frame in vec(any::<u8>(), 0..100)) {
        let out = Bench::new(spec()).frame(&frame);
        prop_assert!(out.frames.len() <= 1);
    }
}
