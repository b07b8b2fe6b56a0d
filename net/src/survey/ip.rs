//! IP as far as networks of ours depend on it: addresses, routes, and forwarding.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};

use crate::facts::{Address, IpFacts, Link, Route, Settings};
use crate::kernel::rtnl::Rtnl;
use crate::kernel::sysctl::{self, Conf};
use crate::survey::docker;

/// The file that names the host's name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Settings of IPv6; absent without it.
const IPV6_SETTINGS: &str = "/proc/sys/net/ipv6/conf/all";

/// The setting that sends bridged frames through the rules of iptables; absent without `br_netfilter`.
const BRIDGE_NF: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// The limit on tracked connections; absent without `nf_conntrack`.
const CONNECTIONS_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// Reads all but [`advertised`]. A host with the routes of the whole Internet has a million, and a start there takes a
/// second.
pub(crate) async fn survey(rtnl: &Rtnl, links: &[Link]) -> io::Result<IpFacts> {
    let addresses = rtnl.addresses().await?.iter().filter_map(address).collect();
    let routes: Vec<Route> = rtnl.routes(AddressFamily::Inet).await?.iter().flat_map(routes_of).collect();
    let users: BTreeSet<u32> = routes.iter().filter_map(|route| route.link).collect();
    let forwards = |link: &&Link| sysctl::forwards(&link.name);
    let forwarding = links.iter().filter(|link| users.contains(&link.index)).filter(forwards);
    let forwarding = forwarding.map(|link| link.index).collect();
    let lacks_ipv6 = !Path::new(IPV6_SETTINGS).exists();
    let forwards6 = sysctl::forwards6();
    let settings = settings();
    let docker = docker::survey();
    let bridged_as_routed = bridged_as_routed();
    let connections_max = fs::read_to_string(CONNECTIONS_MAX).ok().and_then(|text| text.trim().parse().ok());
    let resolvers = resolvers();
    Ok(IpFacts {
        addresses,
        routes,
        forwarding,
        lacks_ipv6,
        forwards6,
        settings,
        advertised6: BTreeSet::new(),
        docker,
        bridged_as_routed,
        connections_max,
        resolvers,
    })
}

/// Settings that apply to a new network.
fn settings() -> Settings {
    let without_ipv6 = sysctl::read(Conf::Ipv6, "default", "disable_ipv6").map_or(true, |value| value == "1");
    Settings { locked: sysctl::are_locked(), forwarding: sysctl::forwards("default"), without_ipv6 }
}

/// True if bridged frames pass the rules for routed packets.
pub(crate) fn bridged_as_routed() -> bool {
    fs::read_to_string(BRIDGE_NF).is_ok_and(|value| value.trim() == "1")
}

/// The links that lead to all of IPv4, or to a half of it, as VPNs do.
pub(crate) async fn ways_out(rtnl: &Rtnl) -> io::Result<BTreeSet<u32>> {
    let routes = rtnl.routes(AddressFamily::Inet).await?;
    let wide = routes.iter().filter(|route| route.header.destination_prefix_length <= 1);
    Ok(wide.flat_map(routes_of).filter(|route| route.unicast).filter_map(|route| route.link).collect())
}

/// The links that lead to all of IPv6 and learn that from router advertisements.
pub(crate) async fn advertised(rtnl: &Rtnl, links: &[Link]) -> io::Result<BTreeSet<u32>> {
    let routes = rtnl.routes(AddressFamily::Inet6).await?;
    let routes: Vec<Route> = routes.iter().flat_map(routes_of).filter(|route| route.unicast).collect();
    let defaults: BTreeSet<u32> =
        routes.iter().filter(|route| route.prefix_len == 0).filter_map(|route| route.link).collect();
    let learns = |link: &&Link| sysctl::is(Conf::Ipv6, &link.name, "accept_ra", "1");
    Ok(links.iter().filter(|link| defaults.contains(&link.index)).filter(learns).map(|link| link.index).collect())
}

/// The IPv4 name servers of resolv.conf(5); a host without the file has none.
fn resolvers() -> Vec<Ipv4Addr> {
    let text = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let servers = text.lines().filter_map(|line| line.trim_start().strip_prefix("nameserver"));
    servers.filter_map(|rest| rest.trim().parse().ok()).collect()
}

fn address(message: &AddressMessage) -> Option<Address> {
    // On a point-to-point link `Address` is the other end's.
    let ips = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(ip)) => Some(*ip),
        _ => None,
    };
    let ip = message.attributes.iter().find_map(ips)?;
    Some(Address { ip, prefix_len: message.header.prefix_len, link: message.header.index })
}

/// A route for each link that it leads to. Routes of other types (such as blackhole) conflict with no network.
fn routes_of(message: &RouteMessage) -> Vec<Route> {
    if !matches!(message.header.kind, RouteType::Unicast | RouteType::Local | RouteType::Anycast) {
        return Vec::new();
    }
    let base = Route {
        destination: Ipv4Addr::UNSPECIFIED,
        prefix_len: message.header.destination_prefix_length,
        gateway: None,
        link: None,
        unicast: message.header.kind == RouteType::Unicast,
    };
    let mut routes = vec![read(&message.attributes, base)];
    for hops in message.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    }) {
        let base = read(&message.attributes, base);
        routes =
            hops.iter().map(|hop| read(&hop.attributes, Route { link: Some(hop.interface_index), ..base })).collect();
    }
    routes
}

/// `base` with the values of these attributes.
fn read(attributes: &[RouteAttribute], base: Route) -> Route {
    let mut route = base;
    for attribute in attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => route.destination = *ip,
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => route.gateway = Some(*ip),
            RouteAttribute::Oif(index) => route.link = Some(*index),
            _ => {}
        }
    }
    route
}
