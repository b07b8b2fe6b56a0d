//! Clients' messages, and the answers that they get.

use super::*;
use crate::services::tests::spec;
use crate::services::{Reach, Search};
use proptest::collection::vec;
use proptest::prelude::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// A client's message with these options after its type.
fn message(kind: Kind, client_address: &str, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&[0xa, 0xb, 0xc, 0xd]);
    bytes[12..16].copy_from_slice(&client_address.parse::<Ipv4Addr>().unwrap().octets());
    bytes[28..34].copy_from_slice(&MAC);
    bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
    bytes.extend([53, 1, kind as u8]);
    for (code, value) in options {
        bytes.extend([*code, value.len().try_into().unwrap()]);
        bytes.extend(*value);
    }
    bytes.push(255);
    bytes
}

fn answer(bytes: &[u8]) -> Option<Reply> {
    reply(&spec(), &Message::parse(bytes).unwrap())
}

fn option_of(reply: &Reply, code: u8) -> Option<&[u8]> {
    message::find(&reply.bytes[240..], code)
}

#[test]
fn discover_is_offered_the_address_and_all_about_the_network() {
    let offer = answer(&message(Kind::Discover, "0.0.0.0", &[])).unwrap();

    assert_eq!(offer.kind, Kind::Offer);
    assert_eq!(offer.destination, Ipv4Addr::new(10, 9, 8, 7));
    assert_eq!(offer.bytes[..8], [2, 1, 6, 0, 0xa, 0xb, 0xc, 0xd]);
    assert_eq!(offer.bytes[16..20], [10, 9, 8, 7]);
    assert_eq!(offer.bytes[28..34], MAC);
    let gateway: &[u8] = &[10, 9, 8, 1];
    let expected: [(u8, &[u8]); 12] = [
        (53, &[2]),
        (54, gateway),
        (51, &[0, 0, 0x0e, 0x10]),
        (58, &[0, 0, 0x07, 0x08]),
        (59, &[0, 0, 0x0c, 0x4e]),
        (1, &[255, 255, 255, 0]),
        (3, gateway),
        (6, gateway),
        (26, &[0x05, 0xdc]),
        (15, b"minivmm"),
        (12, b"web"),
        (28, &[10, 9, 8, 255]),
    ];
    for (code, value) in expected {
        assert_eq!(option_of(&offer, code), Some(value), "option {code}");
    }
    assert_eq!(option_of(&offer, 61), None);
    assert!(offer.bytes.len() >= 300);
}

/// The search domains that a client with room for so many octets is told: the parts one behind the other, and how many.
fn domains(names: &[&str], room: u16) -> (Vec<u8>, usize) {
    let search = Search::Host(names.iter().map(|name| name.parse().unwrap()).collect());
    let bytes = message(Kind::Discover, "0.0.0.0", &[(57, &room.to_be_bytes())]);
    let offer = reply(&ServiceSpec { search, ..spec() }, &Message::parse(&bytes).unwrap()).unwrap();
    assert!(offer.bytes.len() + 28 <= usize::from(room.max(576)));
    let (mut rest, mut list, mut parts) = (&offer.bytes[240..], Vec::new(), 0);
    while let [code, len, others @ ..] = rest
        && *code != 255
    {
        let (value, others) = others.split_at(usize::from(*len));
        if *code == 119 {
            list.extend(value);
            parts += 1;
        }
        rest = others;
    }
    (list, parts)
}

#[test]
fn domains_are_told_with_pointers_and_in_two_options_if_they_are_many() {
    assert_eq!(domains(&[], 1500), (Vec::new(), 0));
    let (list, parts) = domains(&["corp.example", "lab.corp.example"], 0);
    assert_eq!((&list[..], parts), (&b"\x07minivmm\x00\x04corp\x07example\x00\x03lab\xc0\x09"[..], 1));
    let long = [["x"; 60].concat(), ["y"; 60].concat(), ["z"; 60].concat()].join(".");
    let other = ["w"; 63].concat();
    let (list, parts) = domains(&[&long, &other], 1500);
    assert_eq!((list.len(), parts), (9 + 184 + 65, 2));
    // The last ones are left out where there is no room.
    let (list, parts) = domains(&[&long, &other], 576);
    assert_eq!((list.len(), parts), (9 + 184, 1));
}

#[test]
fn host_only_network_has_no_router() {
    let mut spec = spec();
    spec.reach = Reach::HostOnly;
    let bytes = message(Kind::Discover, "0.0.0.0", &[]);
    let offer = reply(&spec, &Message::parse(&bytes).unwrap()).unwrap();

    assert_eq!(option_of(&offer, 3), None);
    assert_eq!(option_of(&offer, 6), Some(&[10, 9, 8, 1][..]));
}

#[test]
fn requests_are_answered_by_the_state_of_the_client() {
    let ours: &[u8] = &[10, 9, 8, 7];
    let other: &[u8] = &[10, 9, 8, 8];
    let gateway: &[u8] = &[10, 9, 8, 1];
    let foreign: &[u8] = &[192, 168, 0, 1];
    type Options<'a> = &'a [(u8, &'a [u8])];
    let cases: [(&str, &str, Options<'_>, Option<Kind>); 9] = [
        ("selecting us", "0.0.0.0", &[(54, gateway), (50, ours)], Some(Kind::Ack)),
        ("selecting us, not our offer", "0.0.0.0", &[(54, gateway), (50, other)], Some(Kind::Nak)),
        ("selecting another", "0.0.0.0", &[(54, foreign), (50, ours)], None),
        ("init-reboot", "0.0.0.0", &[(50, ours)], Some(Kind::Ack)),
        ("init-reboot elsewhere before", "0.0.0.0", &[(50, foreign)], Some(Kind::Nak)),
        ("renewing or rebinding", "10.9.8.7", &[], Some(Kind::Ack)),
        ("renewing what was never given", "10.9.8.8", &[], Some(Kind::Nak)),
        ("asking for nothing", "0.0.0.0", &[], None),
        ("asking for half an address", "0.0.0.0", &[(50, &[10, 9])], None),
    ];
    for (state, client_address, options, kind) in cases {
        let reply = answer(&message(Kind::Request, client_address, options));
        assert_eq!(reply.map(|reply| reply.kind), kind, "{state}");
    }
}

#[test]
fn refusal_is_broadcast_and_gives_nothing() {
    let nak = answer(&message(Kind::Request, "10.9.8.8", &[])).unwrap();

    assert_eq!(nak.destination, Ipv4Addr::BROADCAST);
    assert_eq!(nak.bytes[12..20], [0; 8]);
    for code in [1, 3, 6, 51] {
        assert_eq!(option_of(&nak, code), None, "option {code}");
    }
}

#[test]
fn inform_is_told_the_network_but_gets_no_lease() {
    let ack = answer(&message(Kind::Inform, "10.9.8.77", &[])).unwrap();

    assert_eq!((ack.kind, ack.destination), (Kind::Ack, Ipv4Addr::new(10, 9, 8, 77)));
    assert_eq!(ack.bytes[12..20], [10, 9, 8, 77, 0, 0, 0, 0]);
    assert_eq!(option_of(&ack, 51), None);
    assert_eq!(option_of(&ack, 6), Some(&[10, 9, 8, 1][..]));
}

#[test]
fn release_and_decline_are_not_answered() {
    assert_eq!(answer(&message(Kind::Release, "10.9.8.7", &[])), None);
    assert_eq!(answer(&message(Kind::Decline, "0.0.0.0", &[(50, &[10, 9, 8, 7])])), None);
}

#[test]
fn server_messages_are_not_answered() {
    for kind in [Kind::Offer, Kind::Ack, Kind::Nak] {
        assert_eq!(answer(&message(kind, "0.0.0.0", &[])), None);
    }
}

#[test]
fn client_that_needs_a_broadcast_gets_one() {
    let mut bytes = message(Kind::Discover, "0.0.0.0", &[]);
    bytes[10] = 0x80;

    let offer = answer(&bytes).unwrap();

    assert_eq!(offer.destination, Ipv4Addr::BROADCAST);
    assert_eq!(offer.bytes[10..12], [0x80, 0]);
}

#[test]
fn client_identifier_is_echoed_in_every_answer() {
    let id: &[u8] = &[1, 2, 0, 0, 0, 0, 9];
    for (kind, client_address) in
        [(Kind::Discover, "0.0.0.0"), (Kind::Request, "10.9.8.7"), (Kind::Request, "10.9.8.8")]
    {
        let reply = answer(&message(kind, client_address, &[(61, id)])).unwrap();
        assert_eq!(option_of(&reply, 61), Some(id));
    }
}

#[test]
fn long_identifier_leaves_out_what_matters_least() {
    let offer = answer(&message(Kind::Discover, "0.0.0.0", &[(61, &[7; 255])])).unwrap();

    assert!(offer.bytes.len() <= 548);
    assert_eq!(option_of(&offer, 61), Some(&[7; 255][..]));
    assert_eq!(option_of(&offer, 3), Some(&[10, 9, 8, 1][..]));
    assert_eq!(option_of(&offer, 28), None);
}

#[test]
fn relayed_message_is_none() {
    let mut bytes = message(Kind::Discover, "0.0.0.0", &[]);
    bytes[24] = 10;
    assert_eq!(Message::parse(&bytes), None);
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_not(bytes in vec(any::<u8>(), 0..400)) {
        let _ = Message::parse(&bytes);
    }

    #[test]
    fn any_options_get_an_answer_that_parses_and_fits(
        kind in prop_oneof![Just(Kind::Discover), Just(Kind::Request), Just(Kind::Inform)],
        options in vec(any::<u8>(), 0..300),
        client_address in any::<[u8; 4]>(),
    ) {
        let mut bytes = message(kind, "0.0.0.0", &[]);
        bytes[12..16].copy_from_slice(&client_address);
        bytes.truncate(243);
        bytes.extend(options);
        let message = Message::parse(&bytes).unwrap();
        if let Some(reply) = reply(&spec(), &message) {
            prop_assert_eq!(option_of(&reply, 53), Some(&[reply.kind as u8][..]));
            prop_assert_eq!(option_of(&reply, 54), Some(&[10, 9, 8, 1][..]));
            prop_assert!(reply.bytes.len() <= 1472.max(message::find(&bytes[240..], 57).map_or(0, |_| usize::from(u16::MAX))));
        }
    }
}
