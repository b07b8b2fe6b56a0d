//! Router advertisements (RFC 4861 6.2): the prefix from which a guest makes its addresses, the MTU, the resolver (RFC
//! 8106), and on a network with a way out the router.
//!
//! A guest that asks from an address is answered at once and alone. The RFC's random delay keeps several routers apart;
//! here is only one.
//!
//! ```text
//!   start --16 s--> [to all] --16 s--> [to all] --16 s--> [to all] --200 to 600 s--> [to all] ...
//!                       ^ sooner for a guest that asks without an address, but 3 s apart
//! ```

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::services::frame::{Frame, Link, Octets, Packet, Protocol, packet};
use crate::services::{Ipv6Network, PREFIX_LEN, Reach, ServiceSpec, search};

/// Message types.
pub(in crate::services) const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;

/// Octets of a solicitation before its options.
const SOLICITATION_BYTES: usize = 8;

/// The hop limit which proves that no router forwarded a message.
const HOPS: u8 = 255;

/// Option types.
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
const PREFIX_INFORMATION: u8 = 3;
const MTU: u8 = 5;
const RECURSIVE_DNS_SERVER: u8 = 25;
const DNS_SEARCH_LIST: u8 = 31;

/// Flags: other configuration by DHCPv6; a prefix that is on the link and from which addresses are made.
const OTHER_CONFIGURATION: u8 = 0x40;
const ON_LINK_AND_AUTONOMOUS: u8 = 0xc0;

/// The hop limit for the guest's packets.
const GUEST_HOPS: u8 = 64;

/// Times between advertisements to all (RFC 4861 6.2.1 and 10): usually, of the first ones, and at least.
const INTERVAL_MIN: Duration = Duration::from_secs(200);
const INTERVAL_MAX: Duration = Duration::from_secs(600);
const INITIAL_INTERVAL: Duration = Duration::from_secs(16);
const INITIAL_COUNT: u8 = 3;
const DISTANCE_MIN: Duration = Duration::from_secs(3);

/// Seconds for which the router, the resolver and addresses are valid: three intervals, and twice that for addresses in
/// use (RFC 9096 3.2).
const LIFETIME_S: u16 = 1800;
const VALID_S: u32 = 3600;

/// All nodes and all routers of a link, and the MAC address of frames to all nodes (RFC 2464 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const ALL_NODES_MAC: Octets = [0x33, 0x33, 0, 0, 0, 1];

/// The schedule of advertisements.
pub(in crate::services) struct Advertiser {
    next: Instant,
    last: Option<Instant>,
    sent: u8,
}

/// The sender of a solicitation.
enum Solicitor {
    /// A guest that has an address.
    At(Octets, Ipv6Addr),
    /// A guest that has none.
    Nameless,
}

impl Advertiser {
    /// A schedule that begins now.
    pub(in crate::services) fn new(now: Instant) -> Self {
        Self { next: now + INITIAL_INTERVAL, last: None, sent: 0 }
    }

    /// The time at which [`on_time`](Self::on_time) is due.
    pub(in crate::services) fn deadline(&self) -> Instant {
        self.next
    }

    /// The advertisement to all, if it is time for it. `random` is any number.
    pub(in crate::services) fn on_time(&mut self, spec: &ServiceSpec, now: Instant, random: u16) -> Option<Frame> {
        let network = spec.ipv6.as_ref().filter(|_| self.next <= now)?;
        self.sent = self.sent.saturating_add(1);
        self.last = Some(now);
        let spread = (INTERVAL_MAX - INTERVAL_MIN) * u32::from(random) / u32::from(u16::MAX);
        self.next = now + if self.sent < INITIAL_COUNT { INITIAL_INTERVAL } else { INTERVAL_MIN + spread };
        advertisement(spec, network, ALL_NODES_MAC, ALL_NODES)
    }

    /// Has the next advertisement to all come as soon as possible.
    pub(in crate::services) fn hurry(&mut self, now: Instant) {
        let soonest = self.last.map_or(now, |last| (last + DISTANCE_MIN).max(now));
        self.next = self.next.min(soonest);
    }

    /// Answers a solicitation: at once, or by advancing the next advertisement to all. None if `packet` is no
    /// solicitation; the inner none if the answer comes later.
    pub(in crate::services) fn on_packet(
        &mut self,
        spec: &ServiceSpec,
        packet: &Packet<'_>,
        now: Instant,
    ) -> Option<Option<Frame>> {
        let network = spec.ipv6.as_ref()?;
        match solicitor(network, packet)? {
            Solicitor::At(mac, address) => Some(advertisement(spec, network, mac, address)),
            Solicitor::Nameless => {
                self.hurry(now);
                Some(None)
            }
        }
    }
}

/// The sender of `packet`, if that is a solicitation (RFC 4861 6.1.1).
fn solicitor(network: &Ipv6Network, packet: &Packet<'_>) -> Option<Solicitor> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) else { return None };
    let ours = [ALL_ROUTERS, ALL_NODES, network.link_local].contains(&destination);
    let head = packet.payload.first_chunk::<SOLICITATION_BYTES>()?;
    if packet.protocol != Protocol::Icmpv6 || packet.hops != HOPS || !ours || head[..2] != [SOLICITATION, 0] {
        return None;
    }
    let mut named = false;
    let mut options = packet.payload.get(SOLICITATION_BYTES..)?;
    while let [kind, units, ..] = *options {
        named |= kind == SOURCE_LINK_LAYER_ADDRESS;
        // An option of no length would go on for ever.
        options = options.get(usize::from(units) * 8..).filter(|_| units != 0)?;
    }
    match source {
        Ipv6Addr::UNSPECIFIED if named => None,
        Ipv6Addr::UNSPECIFIED => Some(Solicitor::Nameless),
        source => source.is_unicast_link_local().then_some(Solicitor::At(packet.source_mac, source)),
    }
}

/// The advertisement of a network.
fn advertisement(spec: &ServiceSpec, network: &Ipv6Network, mac: Octets, destination: Ipv6Addr) -> Option<Frame> {
    let lifetime = u32::from(LIFETIME_S).to_be_bytes();
    let router_s = if spec.reach == Reach::Outside { LIFETIME_S } else { 0 };
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, GUEST_HOPS, OTHER_CONFIGURATION];
    message.extend(router_s.to_be_bytes());
    // Reachable time and retransmission timer: left to the guest.
    message.extend([0; 8]);
    message.extend([SOURCE_LINK_LAYER_ADDRESS, 1]);
    message.extend(spec.gateway_mac.octets());
    message.extend([MTU, 1, 0, 0]);
    message.extend(u32::from(spec.mtu).to_be_bytes());
    message.extend([PREFIX_INFORMATION, 4, PREFIX_LEN, ON_LINK_AND_AUTONOMOUS]);
    message.extend(VALID_S.to_be_bytes());
    message.extend(lifetime);
    message.extend([0; 4]);
    message.extend(network.prefix.octets());
    message.extend([RECURSIVE_DNS_SERVER, 3, 0, 0]);
    message.extend(lifetime);
    message.extend(network.gateway.octets());
    let mut names = search::plain(spec);
    names.resize(names.len().next_multiple_of(8), 0);
    let units = 1 + u8::try_from(names.len() / 8).ok()?;
    message.extend([DNS_SEARCH_LIST, units, 0, 0]);
    message.extend(lifetime);
    message.extend(names);
    let link = Link { source: spec.gateway_mac.octets(), destination: mac };
    packet(link, network.link_local.into(), destination.into(), Protocol::Icmpv6, &message)
}

#[cfg(test)]
mod tests;
