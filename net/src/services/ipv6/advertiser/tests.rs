//! The times of advertisements, and their contents.

use super::*;
use crate::services::tests::spec;
use proptest::collection::vec;
use proptest::prelude::*;

const GUEST_MAC: Octets = [2, 0, 0, 0, 0, 9];

fn solicitation(source: &str, options: &[u8]) -> Frame {
    let message = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0], options].concat();
    let link = Link { source: GUEST_MAC, destination: [0x33, 0x33, 0, 0, 0, 2] };
    packet(link, source.parse().unwrap(), ALL_ROUTERS.into(), Protocol::Icmpv6, &message).unwrap()
}

fn ask(advertiser: &mut Advertiser, frame: &[u8], now: Instant) -> Option<Option<Frame>> {
    advertiser.on_packet(&spec(), &Packet::parse(frame).unwrap(), now)
}

#[test]
fn guest_with_an_address_is_answered_at_once_and_alone() {
    let now = Instant::now();
    let mut advertiser = Advertiser::new(now);

    let frame = ask(&mut advertiser, &solicitation("fe80::9", &[1, 1, 2, 0, 0, 0, 0, 9]), now).unwrap().unwrap();

    assert_eq!(frame[..6], GUEST_MAC);
    let packet = Packet::parse(&frame).unwrap();
    assert_eq!((packet.source, packet.destination), ("fe80::1".parse().unwrap(), "fe80::9".parse().unwrap()));
    assert_eq!((packet.hops, packet.protocol), (255, Protocol::Icmpv6));
    let expected = [
        &[134, 0][..],
        &packet.payload[2..4],
        &[64, 0x40, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0],
        &[1, 1, 2, 0, 0, 0, 0, 1],
        &[5, 1, 0, 0, 0, 0, 0x05, 0xdc],
        &[3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x07, 0x08, 0, 0, 0, 0],
        &[0xfd, 0, 0, 9, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[25, 3, 0, 0, 0, 0, 0x07, 0x08, 0xfd, 0, 0, 9, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        &[31, 3, 0, 0, 0, 0, 0x07, 0x08],
        b"\x07minivmm\x00\x00\x00\x00\x00\x00\x00\x00",
    ];
    assert_eq!(packet.payload, expected.concat());
    assert_eq!(advertiser.deadline(), now + INITIAL_INTERVAL);
}

#[test]
fn network_without_a_way_out_has_no_router() {
    let spec = ServiceSpec { reach: Reach::HostOnly, ..spec() };
    let now = Instant::now();
    let frame = solicitation("fe80::9", &[]);
    let answer = Advertiser::new(now).on_packet(&spec, &Packet::parse(&frame).unwrap(), now).unwrap().unwrap();

    assert_eq!(Packet::parse(&answer).unwrap().payload[6..8], [0, 0]);
}

#[test]
fn three_come_soon_and_the_others_seldom() {
    let mut now = Instant::now();
    let mut advertiser = Advertiser::new(now);
    let mut times = Vec::new();
    for random in [0, 0, 0, u16::MAX, 0] {
        assert_eq!(advertiser.on_time(&spec(), advertiser.deadline() - Duration::from_millis(1), random), None);
        times.push((advertiser.deadline() - now).as_secs());
        now = advertiser.deadline();
        let frame = advertiser.on_time(&spec(), now, random).unwrap();
        assert_eq!(frame[..6], ALL_NODES_MAC);
        assert_eq!(Packet::parse(&frame).unwrap().destination, ALL_NODES);
    }
    assert_eq!(times, [16, 16, 16, 200, 600]);
}

#[test]
fn guest_without_an_address_is_answered_with_all_but_not_again_and_again() {
    let start = Instant::now();
    let mut advertiser = Advertiser::new(start);
    let frame = solicitation("::", &[]);

    assert_eq!(ask(&mut advertiser, &frame, start), Some(None));
    assert_eq!(advertiser.deadline(), start);
    assert!(advertiser.on_time(&spec(), start, 0).is_some());
    assert_eq!(ask(&mut advertiser, &frame, start), Some(None));
    assert_eq!(advertiser.deadline(), start + DISTANCE_MIN);
}

#[test]
fn solicitation_that_is_forged_or_broken_is_not_answered() {
    let now = Instant::now();
    let good = solicitation("fe80::9", &[]);
    let with = |at: usize, value: u8| {
        let mut bad = good.clone();
        bad[at] = value;
        bad
    };
    let cases = [
        ("forwarded", with(21, 254)),
        ("an advertisement", with(54, ADVERTISEMENT)),
        ("a code", with(55, 1)),
        ("to somebody else", with(53, 9)),
        ("from afar", solicitation("fd00::9", &[])),
        ("an endless option", solicitation("fe80::9", &[1, 0, 0, 0, 0, 0, 0, 0])),
        ("a cut option", solicitation("fe80::9", &[1, 2, 0, 0, 0, 0, 0, 0])),
        ("an address of nobody", solicitation("::", &[1, 1, 2, 0, 0, 0, 0, 9])),
    ];
    for (what, frame) in cases {
        assert_eq!(ask(&mut Advertiser::new(now), &frame, now), None, "{what}");
    }
}

proptest! {
    #[test]
    fn any_options_are_a_solicitation_or_not(options in vec(any::<u8>(), 0..100)) {
        let now = Instant::now();
        let frame = solicitation("fe80::9", &options);
        let answer = ask(&mut Advertiser::new(now), &frame, now).flatten();
        prop_assert!(answer.is_none_or(|frame| frame.len() < 200));
    }
}
