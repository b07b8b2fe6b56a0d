//! The solicitation for the owner of an IPv6 address (RFC 4861 4.3), and the advertisement that it is taken, as whole
//! frames.

use std::net::Ipv6Addr;

use crate::identity::mac::MacAddr;
use crate::services::Ipv6Network;
use crate::services::frame::{Frame, Link, Protocol, packet};

/// Its ICMPv6 type, and the option with the sender's own MAC address in units of 8 octets.
const NEIGHBOR_SOLICIT: u8 = 135;
const SOURCE_LINK_ADDRESS: [u8; 2] = [1, 1];

/// An advertisement, its override flag, and its option (RFC 4861 4.4).
const NEIGHBOR_ADVERT: u8 = 136;
const OVERRIDE: u8 = 0x20;
const TARGET_LINK_ADDRESS: [u8; 2] = [2, 1];

/// All nodes on the link (RFC 4291 2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The prefix of link-local addresses (RFC 4291 2.5.6).
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);

/// Asks from `mac` for the owner of `target`.
///
/// The sender uses the link-local address that goes with `mac`. The unspecified address would say that the sender is
/// about to take `target` itself (RFC 4862 5.4.3): a guest that gets the frame while it probes for that address would
/// give it up.
pub(crate) fn solicitation(mac: MacAddr, target: Ipv6Addr) -> Option<Frame> {
    let source = Ipv6Network { prefix: LINK_LOCAL, gateway: LINK_LOCAL, link_local: LINK_LOCAL }.address_of(mac);
    let [.., a, b, c] = target.octets();
    // Owners of such an address listen there (RFC 4291 2.7.1, RFC 2464 7).
    let group = Ipv6Addr::from_bits(0xff02_0000_0000_0000_0000_0001_ff00_0000 | (target.to_bits() & 0xff_ffff));
    let link = Link { source: mac.octets(), destination: [0x33, 0x33, 0xff, a, b, c] };
    let message =
        [&[NEIGHBOR_SOLICIT, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &SOURCE_LINK_ADDRESS, &mac.octets()].concat();
    packet(link, source.into(), group.into(), Protocol::Icmpv6, &message)
}

/// Says from `mac` that `target` is taken, to any machine that is about to take it (RFC 4862 5.4.4).
pub(crate) fn advertisement(mac: MacAddr, target: Ipv6Addr) -> Option<Frame> {
    let link = Link { source: mac.octets(), destination: [0x33, 0x33, 0, 0, 0, 1] };
    let option = [TARGET_LINK_ADDRESS.as_slice(), &mac.octets()].concat();
    let message = [&[NEIGHBOR_ADVERT, 0, 0, 0, OVERRIDE, 0, 0, 0][..], &target.octets(), &option].concat();
    packet(link, target.into(), ALL_NODES.into(), Protocol::Icmpv6, &message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::frame::Packet;

    #[test]
    fn solicitation_is_from_an_address_of_the_link_to_the_group_of_its_target() {
        let target: Ipv6Addr = "2001:db8::12:3456".parse().unwrap();

        let frame = solicitation("52:54:00:00:00:01".parse().unwrap(), target).unwrap();

        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        let packet = Packet::parse(&frame).unwrap();
        assert_eq!(packet.source.to_string(), "fe80::5054:ff:fe00:1");
        assert_eq!(packet.destination.to_string(), "ff02::1:ff12:3456");
        assert_eq!((packet.protocol, packet.hops), (Protocol::Icmpv6, 255));
        assert_eq!(packet.payload[0], 135);
        assert_eq!(packet.payload[8..24], target.octets());
        assert_eq!(packet.payload[24..], [1, 1, 0x52, 0x54, 0, 0, 0, 1]);
    }
}
