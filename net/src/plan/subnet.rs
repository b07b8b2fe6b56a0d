//! The choice of addresses for a network of ours: a private /24 that the host does not know to be in use.
//!
//! The search starts at a place that follows from the network's name. The same network therefore has the same addresses
//! on most starts and hosts, and two networks seldom meet. Addresses beyond a default route cannot be seen: a site
//! behind a router may use the same ones, which is what `subnet=` is for.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::facts::Facts;
use crate::identity::hash;
use crate::spec::{Subnet, mask};

/// The pools for networks: the first /24 and the number of them (RFC 1918). The largest pool comes first: home routers,
/// Docker and libvirt use the others.
const POOLS: [(Ipv4Addr, u32); 3] =
    [(Ipv4Addr::new(10, 0, 0, 0), 65536), (Ipv4Addr::new(172, 16, 0, 0), 4096), (Ipv4Addr::new(192, 168, 0, 0), 256)];

/// Bits of a subnet that we choose.
const PREFIX_LEN: u8 = 24;

/// Routes with shorter prefixes are catch-all routes (VPNs split the default route in two), not addresses in use.
const CATCH_ALL_BITS: u8 = 8;

/// A range of addresses in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    ip: Ipv4Addr,
    prefix_len: u8,
    /// The user, in words.
    by: String,
}

impl Taken {
    /// The range of a planned network.
    pub(crate) fn by_network(subnet: Subnet, bridge: &str) -> Self {
        Self { ip: subnet.network(), prefix_len: subnet.prefix_len(), by: format!("the subnet of {bridge}") }
    }

    fn overlaps(&self, subnet: Subnet) -> bool {
        let mask = mask(self.prefix_len.min(subnet.prefix_len()));
        (self.ip.to_bits() ^ subnet.network().to_bits()) & mask == 0
    }
}

/// All addresses that the host knows to be in use.
pub(crate) fn taken(facts: &Facts) -> Vec<Taken> {
    let addresses = facts.ip.addresses.iter().map(|address| Taken {
        ip: address.ip,
        prefix_len: address.prefix_len,
        by: format!("the network of {}", facts.name_of(address.link)),
    });
    let routes = facts.ip.routes.iter().filter(|route| route.prefix_len >= CATCH_ALL_BITS).map(|route| Taken {
        ip: route.destination,
        prefix_len: route.prefix_len,
        by: match route.link {
            Some(link) => {
                format!("{}/{}, which is behind {}", route.destination, route.prefix_len, facts.name_of(link))
            }
            None => format!("the route to {}/{}", route.destination, route.prefix_len),
        },
    });
    let gateways = facts.ip.routes.iter().filter_map(|route| route.gateway);
    let gateways = gateways.map(|ip| Taken { ip, prefix_len: 32, by: format!("the router {ip}") });
    let resolvers = facts.ip.resolvers.iter();
    let resolvers = resolvers.map(|ip| Taken { ip: *ip, prefix_len: 32, by: format!("the name server {ip}") });
    addresses.chain(routes).chain(gateways).chain(resolvers).collect()
}

/// A free subnet for a bridge's network; `None` if all are taken.
pub(crate) fn choose(bridge: &str, taken: &[Taken]) -> Option<Subnet> {
    let start = hash::of_bytes(bridge.as_bytes().iter());
    POOLS.iter().find_map(|(first, count)| {
        // The remainder is less than a u32.
        let start = u32::try_from(start % u64::from(*count)).unwrap_or(0);
        let candidates = (0..*count).map(|idx| first.to_bits() + (((start + idx) % count) << (32 - PREFIX_LEN)));
        let mut free = candidates
            .filter_map(|bits| Subnet::around(Ipv4Addr::from_bits(bits), PREFIX_LEN))
            .filter(|subnet| overlap(*subnet, taken).is_none());
        free.next()
    })
}

/// The IPv6 prefix of a bridge's network: a unique local one (RFC 4193), whose 40 bits follow from the name.
pub(crate) fn prefix6(bridge: &str) -> Ipv6Addr {
    let [a, b, c, d, e, ..] = hash::of_bytes(bridge.as_bytes().iter()).to_be_bytes();
    Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// The user of the addresses that a subnet overlaps, in words.
pub(crate) fn overlap(subnet: Subnet, taken: &[Taken]) -> Option<&str> {
    taken.iter().find(|taken| taken.overlaps(subnet)).map(|taken| taken.by.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(ip: [u8; 4], prefix_len: u8) -> Taken {
        Taken { ip: ip.into(), prefix_len, by: "somebody".to_owned() }
    }

    #[test]
    fn choice_follows_from_the_name_and_never_changes_between_releases() {
        assert_eq!(choose("mvn-default", &[]).unwrap().to_string(), "10.36.150.0/24");
        assert_ne!(choose("mvn-a", &[]), choose("mvn-b", &[]));
    }

    #[test]
    fn what_is_taken_is_passed_over() {
        let first = choose("mvn-default", &[]).unwrap();
        let second = choose("mvn-default", &[taken(first.network().octets(), 24)]).unwrap();
        assert_eq!(second.network().to_bits(), first.network().to_bits() + 256);
        // One address in use is enough.
        assert_eq!(choose("mvn-default", &[taken(first.guest(7).unwrap().octets(), 32)]), Some(second));
        let third = choose("mvn-default", &[taken([10, 0, 0, 0], 8)]).unwrap();
        assert_eq!(third.network().octets()[0], 172);
        let fourth = choose("mvn-default", &[taken([10, 0, 0, 0], 8), taken([172, 16, 0, 0], 12)]).unwrap();
        assert_eq!(fourth.network().octets()[..2], [192, 168]);
        assert_eq!(choose("mvn-default", &[taken([0, 0, 0, 0], 0)]), None);
    }

    #[test]
    fn overlap_goes_both_ways() {
        let subnet: Subnet = "10.1.2.0/24".parse().unwrap();
        for (other, meets) in [
            (taken([10, 1, 2, 77], 32), true),
            (taken([10, 1, 0, 0], 16), true),
            (taken([10, 1, 3, 0], 24), false),
            (taken([10, 1, 2, 128], 25), true),
        ] {
            assert_eq!(overlap(subnet, std::slice::from_ref(&other)).is_some(), meets, "{other:?}");
        }
    }
}
