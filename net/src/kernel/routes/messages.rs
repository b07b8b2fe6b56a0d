//! Addresses, routes and neighbours as rtnetlink messages, parsed only as far as needed to repeat them for another link
//! (rtnetlink(7), linux/if_addr.h, linux/rtnetlink.h).
//!
//! The kernel takes a route in the form in which it reports it: unknown attributes are carried along unchanged, so that
//! metrics, encapsulations and those of later kernels are kept.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::kernel::netlink::{Attrs, Writer};

/// Bytes of `struct ifaddrmsg` and `struct rtmsg`.
pub(crate) const ADDRESS_HEAD_LEN: usize = 8;
pub(crate) const ROUTE_HEAD_LEN: usize = 12;

/// Attributes of an address.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;

/// Flags of an address: those that can be set, and the one for a failed duplicate address detection.
const IFA_F_NODAD: u32 = 0x02;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_HOMEADDRESS: u32 = 0x10;
const IFA_F_MANAGETEMPADDR: u32 = 0x100;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
const IFA_F_MCAUTOJOIN: u32 = 0x400;
const SETTABLE: u32 = IFA_F_NODAD | IFA_F_HOMEADDRESS | IFA_F_MANAGETEMPADDR | IFA_F_NOPREFIXROUTE | IFA_F_MCAUTOJOIN;

/// A lifetime without end.
const FOREVER: u32 = u32::MAX;

/// Attributes of a route.
pub(crate) const RTA_OIF: u16 = 4;
const RTA_DST: u16 = 1;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_CACHEINFO: u16 = 12;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_EXPIRES: u16 = 23;
const RTA_NH_ID: u16 = 30;

/// The offset in `struct rta_cacheinfo` of a route's remaining lifetime, in ticks of `USER_HZ`.
const EXPIRES_AT: usize = 8;

/// The local table, and the protocol of routes that the kernel adds by itself.
const RT_TABLE_LOCAL: u8 = 255;
const RTPROT_KERNEL: u8 = 2;
const RTN_UNICAST: u8 = 1;

/// The only settable flag of a next hop: its gateway needs no route.
const RTNH_F_ONLINK: u8 = 4;

/// Bytes of `struct rtnexthop`: length, flags, weight, and the link's number.
const HOP_LEN: usize = 8;

/// Bytes of `struct ndmsg`, attributes of a neighbour, its states with a learned address, and the flag of routers
/// (linux/neighbour.h).
pub(crate) const NEIGHBOUR_HEAD_LEN: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
pub(crate) const NDA_IFINDEX: u16 = 8;
const NUD_STALE: u8 = 0x04;
const NUD_LEARNED: u16 = 0x02 | 0x04 | 0x08 | 0x10;
const NTF_ROUTER: u8 = 0x80;

/// A message: its fixed part and its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry<const HEAD: usize> {
    head: [u8; HEAD],
    attrs: Vec<(u16, Vec<u8>)>,
}

impl<const HEAD: usize> Entry<HEAD> {
    fn parse(body: &[u8]) -> Option<Self> {
        let (head, rest) = body.split_first_chunk()?;
        let attrs = Attrs::from(rest).into_iter().map(|(kind, payload)| (kind, payload.to_vec()));
        Some(Self { head: *head, attrs: attrs.collect() })
    }

    fn attr(&self, kind: u16) -> Option<&[u8]> {
        self.attrs.iter().find(|(found, _)| *found == kind).map(|(_, payload)| payload.as_slice())
    }

    fn number(&self, kind: u16) -> Option<u32> {
        self.attr(kind)?.try_into().ok().map(u32::from_ne_bytes)
    }

    fn set(&mut self, kind: u16, payload: &[u8]) {
        self.attrs.retain(|(found, _)| *found != kind);
        self.attrs.push((kind, payload.to_vec()));
    }

    fn remove(&mut self, kind: u16) {
        self.attrs.retain(|(found, _)| *found != kind);
    }

    fn bytes(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        for (kind, payload) in &self.attrs {
            writer.attr(*kind, payload);
        }
        [&self.head, writer.bytes()].concat()
    }

    fn family(&self) -> i32 {
        i32::from(self.head[0])
    }

    fn ip(&self, kind: u16) -> Option<IpAddr> {
        ip(self.attr(kind)?)
    }
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(|octets| Ipv4Addr::from(octets).into());
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(|octets| Ipv6Addr::from(octets).into())).ok()
}

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address(Entry<ADDRESS_HEAD_LEN>);

impl Address {
    /// Parses the bytes after a message header.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        Entry::parse(body).map(Self)
    }

    /// The host's own address.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.0.ip(IFA_LOCAL).or_else(|| self.0.ip(IFA_ADDRESS))
    }

    /// The link's number.
    pub(crate) fn link(&self) -> u32 {
        let [.., a, b, c, d] = self.0.head;
        u32::from_ne_bytes([a, b, c, d])
    }

    /// True for an IPv6 link-local address, which the kernel gives every link.
    pub(crate) fn is_link_local(&self) -> bool {
        matches!(self.ip(), Some(IpAddr::V6(ip)) if ip.is_unicast_link_local())
    }

    /// True if duplicate address detection found another machine with it.
    pub(crate) fn is_refuted(&self) -> bool {
        self.flags() & IFA_F_DADFAILED != 0
    }

    /// The remaining lifetime in seconds; none for ever.
    pub(crate) fn lifetime_s(&self) -> Option<u32> {
        let valid = self.0.attr(IFA_CACHEINFO)?.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)?;
        (valid != FOREVER).then_some(valid)
    }

    fn flags(&self) -> u32 {
        self.0.number(IFA_FLAGS).unwrap_or_else(|| self.0.head[2].into())
    }

    /// The same address on another link. A label that is the old link's name becomes the new link's name.
    pub(crate) fn on(&self, link: u32, name_before: &str) -> Self {
        let mut other = self.0.clone();
        other.head[2] = 0;
        other.head[4..].copy_from_slice(&link.to_ne_bytes());
        other.set(IFA_FLAGS, &(self.flags() & SETTABLE).to_ne_bytes());
        let label = other.attr(IFA_LABEL).map(|label| label.split(|byte| *byte == 0).next().unwrap_or_default());
        if label == Some(name_before.as_bytes()) {
            other.remove(IFA_LABEL);
        }
        Self(other)
    }

    /// The same without duplicate address detection: this host had the address all the time. None for IPv4, which has
    /// none.
    pub(crate) fn without_detection(&self) -> Option<Self> {
        if self.0.family() != libc::AF_INET6 {
            return None;
        }
        let mut other = self.0.clone();
        other.set(IFA_FLAGS, &(self.flags() | IFA_F_NODAD).to_ne_bytes());
        Some(Self(other))
    }

    /// The bytes after a message header.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.bytes()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip() {
            Some(ip) => write!(f, "{ip}/{}", self.0.head[1]),
            None => f.write_str("an address of another family"),
        }
    }
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route(Entry<ROUTE_HEAD_LEN>);

impl Route {
    /// Parses the bytes after a message header.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        Entry::parse(body).map(Self)
    }

    /// `AF_INET` or `AF_INET6`.
    pub(crate) fn family(&self) -> i32 {
        self.0.family()
    }

    fn destination_len(&self) -> u8 {
        self.0.head[1]
    }

    /// True if the kernel adds and removes it together with an address or a link.
    pub(crate) fn is_the_kernels(&self) -> bool {
        let [_, _, _, _, table, protocol, ..] = self.0.head;
        let link_local =
            matches!(self.0.ip(RTA_DST), Some(IpAddr::V6(ip)) if ip.is_unicast_link_local() || ip.is_multicast());
        protocol == RTPROT_KERNEL && (table == RT_TABLE_LOCAL || link_local)
    }

    /// True for a default route.
    pub(crate) fn is_default(&self) -> bool {
        self.destination_len() == 0 && self.0.head[7] == RTN_UNICAST
    }

    /// True if this route makes the address local to the host.
    pub(crate) fn is_local_for(&self, ip: IpAddr) -> bool {
        self.0.head[4] == RT_TABLE_LOCAL && self.0.ip(RTA_DST) == Some(ip)
    }

    /// True if its next hop is a separate object (`ip nexthop`), which cannot be moved with it.
    pub(crate) fn has_nexthop_object(&self) -> bool {
        self.0.attr(RTA_NH_ID).is_some()
    }

    /// True if it leads to a gateway, which needs a route of its own.
    pub(crate) fn has_gateway(&self) -> bool {
        [RTA_GATEWAY, RTA_VIA, RTA_MULTIPATH].into_iter().any(|kind| self.0.attr(kind).is_some())
    }

    /// Its parts that lead through `link`. An IPv4 multipath route is one; IPv6 adds and removes each hop alone.
    pub(crate) fn parts_through(&self, link: u32) -> Vec<Self> {
        let Some(hops) = self.0.attr(RTA_MULTIPATH) else {
            return if self.0.number(RTA_OIF) == Some(link) { vec![self.clone()] } else { Vec::new() };
        };
        let hops: Vec<&[u8]> = hops_of(hops).filter(|hop| hop_link(hop) == Some(link)).collect();
        if hops.is_empty() {
            return Vec::new();
        }
        if self.0.family() != libc::AF_INET6 {
            return vec![self.clone()];
        }
        let part = |hop: &[u8]| {
            let mut part = self.0.clone();
            part.set(RTA_MULTIPATH, hop);
            Self(part)
        };
        hops.into_iter().map(part).collect()
    }

    /// The same route, in the form that the kernel takes.
    pub(crate) fn again(&self) -> Self {
        let mut route = self.0.clone();
        // The kernel reports more flags than it takes.
        route.head[8..].copy_from_slice(&[self.0.head[8] & RTNH_F_ONLINK, 0, 0, 0]);
        if let Some(hops) = self.0.attr(RTA_MULTIPATH) {
            let mut hops = hops.to_vec();
            for_each_hop(&mut hops, |hop| hop[2] &= RTNH_F_ONLINK);
            route.set(RTA_MULTIPATH, &hops);
        }
        route.remove(RTA_CACHEINFO);
        let ticks = self.0.attr(RTA_CACHEINFO).and_then(|info| info.get(EXPIRES_AT..EXPIRES_AT + 4)?.try_into().ok());
        let seconds = ticks.map_or(0, u32::from_ne_bytes) / crate::kernel::rtnl::USER_HZ;
        if seconds > 0 && self.0.family() == libc::AF_INET6 {
            route.set(RTA_EXPIRES, &seconds.to_ne_bytes());
        }
        Self(route)
    }

    /// The same route with `to` for `from` in all its hops.
    pub(crate) fn through(&self, from: u32, to: u32) -> Self {
        let mut route = self.0.clone();
        if route.number(RTA_OIF) == Some(from) {
            route.set(RTA_OIF, &to.to_ne_bytes());
        }
        if let Some(hops) = self.0.attr(RTA_MULTIPATH) {
            let mut hops = hops.to_vec();
            for_each_hop(&mut hops, |hop| {
                if hop_link(hop) == Some(from) {
                    hop[4..HOP_LEN].copy_from_slice(&to.to_ne_bytes());
                }
            });
            route.set(RTA_MULTIPATH, &hops);
        }
        Self(route)
    }

    /// The bytes after a message header.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.bytes()
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.ip(RTA_DST) {
            _ if self.destination_len() == 0 => f.write_str("default")?,
            Some(ip) => write!(f, "{ip}/{}", self.destination_len())?,
            None => f.write_str("of another family")?,
        }
        if let Some(gateway) = self.0.ip(RTA_GATEWAY) {
            write!(f, " via {gateway}")?;
        }
        match self.0.number(RTA_TABLE) {
            Some(table) if table != u32::from(libc::RT_TABLE_MAIN) => write!(f, " in table {table}"),
            _ => Ok(()),
        }
    }
}

/// A machine beside this host, as in the kernel's neighbour table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour(Entry<NEIGHBOUR_HEAD_LEN>);

impl Neighbour {
    /// Parses the bytes after a message header.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        Entry::parse(body).map(Self)
    }

    fn state(&self) -> u16 {
        u16::from_ne_bytes([self.0.head[8], self.0.head[9]])
    }

    /// The link's number.
    pub(crate) fn link(&self) -> u32 {
        u32::from_ne_bytes([self.0.head[4], self.0.head[5], self.0.head[6], self.0.head[7]])
    }

    /// True if the host has learned its address and uses it. An entry set by the admin belongs to the link.
    pub(crate) fn is_learned(&self) -> bool {
        self.state() & NUD_LEARNED != 0 && self.0.attr(NDA_LLADDR).is_some()
    }

    /// A rough age since it was last heard: the most recent first.
    pub(crate) fn age(&self) -> u16 {
        self.state()
    }

    /// The same machine beside another link, stale: to be probed when used.
    pub(crate) fn on(&self, link: u32) -> Self {
        let mut other = self.0.clone();
        other.head[4..8].copy_from_slice(&link.to_ne_bytes());
        other.head[8..].copy_from_slice(&[NUD_STALE, 0, self.0.head[10] & NTF_ROUTER, 0]);
        other.attrs.retain(|(kind, _)| [NDA_DST, NDA_LLADDR].contains(kind));
        Self(other)
    }

    /// The bytes after a message header.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.bytes()
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.ip(NDA_DST) {
            Some(ip) => ip.fmt(f),
            None => f.write_str("of another family"),
        }
    }
}

/// The length of the first hop in these bytes; none at the end of the list.
fn hop_len(bytes: &[u8]) -> Option<usize> {
    let len = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    (len >= HOP_LEN && len <= bytes.len()).then_some(len)
}

fn hops_of(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let hop = bytes.get(..hop_len(bytes)?)?;
        bytes = bytes.get(hop.len().next_multiple_of(4)..).unwrap_or_default();
        Some(hop)
    })
}

fn for_each_hop(mut bytes: &mut [u8], action: impl Fn(&mut [u8])) {
    while let Some(len) = hop_len(bytes) {
        action(&mut bytes[..len]);
        let next = len.next_multiple_of(4).min(bytes.len());
        bytes = &mut bytes[next..];
    }
}

fn hop_link(hop: &[u8]) -> Option<u32> {
    hop.get(4..HOP_LEN)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message of this header and these attributes.
    fn message(head: &[u8], attrs: &[(u16, &[u8])]) -> Vec<u8> {
        let mut writer = Writer::default();
        for (kind, payload) in attrs {
            writer.attr(*kind, payload);
        }
        [head, writer.bytes()].concat()
    }

    fn address(head: [u8; 4], attrs: &[(u16, &[u8])]) -> Address {
        Address::parse(&message(&[head.as_slice(), &7u32.to_ne_bytes()].concat(), attrs)).unwrap()
    }

    fn route(family: u8, len: u8, attrs: &[(u16, &[u8])]) -> Route {
        Route::parse(&message(&[family, len, 0, 0, 254, 3, 0, 1, 0x14, 0, 0, 0], attrs)).unwrap()
    }

    fn hop(flags: u8, weight: u8, link: u32, gateway: [u8; 4]) -> Vec<u8> {
        let attr = [8u16.to_ne_bytes(), RTA_GATEWAY.to_ne_bytes()].concat();
        let head = [16u16.to_ne_bytes().as_slice(), &[flags, weight], &link.to_ne_bytes()].concat();
        [head, attr, gateway.to_vec()].concat()
    }

    #[test]
    fn address_on_another_link_keeps_all_but_the_links_name_and_what_the_kernel_says_of_its_state() {
        let flags = (0x80u32 | IFA_F_NOPREFIXROUTE).to_ne_bytes();
        let attrs: &[(u16, &[u8])] = &[(IFA_LOCAL, &[10, 0, 0, 1]), (IFA_LABEL, b"eth1\0"), (IFA_FLAGS, &flags)];
        let there = address([2, 24, 0x80, 0], attrs).on(9, "eth1");
        assert_eq!((there.to_string().as_str(), there.link()), ("10.0.0.1/24", 9));
        assert_eq!(there.0.attr(IFA_LABEL), None);
        assert_eq!(there.flags(), IFA_F_NOPREFIXROUTE);
        let named = address([2, 24, 0x80, 0], &[(IFA_LOCAL, &[10, 0, 0, 1]), (IFA_LABEL, b"eth1:0\0")]);
        assert_eq!(named.on(9, "eth1").0.attr(IFA_LABEL), Some(b"eth1:0\0".as_slice()));
    }

    #[test]
    fn detection_is_left_out_for_ipv6_alone() {
        let six = address([10, 64, 0, 0], &[(IFA_ADDRESS, &[0xfd; 16])]).without_detection().unwrap();
        assert_eq!(six.flags(), IFA_F_NODAD);
        assert_eq!(address([2, 24, 0, 0], &[(IFA_LOCAL, &[10, 0, 0, 1])]).without_detection(), None);
    }

    #[test]
    fn route_goes_through_the_other_link_with_its_metrics_and_without_the_kernels_flags() {
        let oif = 7u32.to_ne_bytes();
        let mut info = [0; 32];
        info[EXPIRES_AT..EXPIRES_AT + 4].copy_from_slice(&180_000u32.to_ne_bytes());
        let attrs: &[(u16, &[u8])] = &[(RTA_OIF, &oif), (8, b"metrics."), (RTA_CACHEINFO, &info), (99, b"later...")];
        let there = route(10, 0, attrs).again().through(7, 9);
        assert_eq!(there.0.number(RTA_OIF), Some(9));
        assert_eq!(there.0.number(RTA_EXPIRES), Some(1800));
        assert_eq!(there.0.head[8..], [RTNH_F_ONLINK, 0, 0, 0]);
        assert_eq!((there.0.attr(8), there.0.attr(99)), (Some(b"metrics.".as_slice()), Some(b"later...".as_slice())));
        assert!(there.is_default() && there.0.attr(RTA_CACHEINFO).is_none());
    }

    #[test]
    fn several_ways_are_one_route_of_ipv4_and_several_of_ipv6() {
        let hops = [hop(0x10, 1, 7, [10, 0, 0, 1]), hop(4, 2, 8, [10, 0, 0, 2]), hop(4, 3, 7, [10, 0, 0, 3])].concat();
        let four = route(2, 0, &[(RTA_MULTIPATH, &hops)]).parts_through(7);
        assert_eq!(four.len(), 1);
        let moved = four[0].again().through(7, 9);
        let expected = [hop(0, 1, 9, [10, 0, 0, 1]), hop(4, 2, 8, [10, 0, 0, 2]), hop(4, 3, 9, [10, 0, 0, 3])].concat();
        assert_eq!(moved.0.attr(RTA_MULTIPATH), Some(expected.as_slice()));
        let six = route(10, 0, &[(RTA_MULTIPATH, &hops)]).parts_through(7);
        assert_eq!(six.len(), 2);
        assert_eq!(six[1].0.attr(RTA_MULTIPATH), Some(hop(4, 3, 7, [10, 0, 0, 3]).as_slice()));
        assert!(route(10, 0, &[(RTA_MULTIPATH, &hops)]).parts_through(6).is_empty());
    }

    #[test]
    fn learned_neighbours_are_stale_on_the_other_link_and_others_stay() {
        let neighbour = |state: u8| {
            let head = [2, 0, 0, 0, 7, 0, 0, 0, state, 0, 0x80 | 0x10, 1];
            Neighbour::parse(&message(&head, &[(NDA_DST, &[10, 0, 0, 1]), (NDA_LLADDR, &[2; 6]), (3, &[0; 16])]))
                .unwrap()
        };
        let there = neighbour(2).on(9);
        assert_eq!(there.0.head, [2, 0, 0, 0, 9, 0, 0, 0, NUD_STALE, 0, NTF_ROUTER, 0]);
        assert_eq!((there.0.attrs.len(), there.to_string().as_str()), (2, "10.0.0.1"));
        let learned = [0x01, 0x02, 0x04, 0x20, 0x40, 0x80].map(|state| neighbour(state).is_learned());
        assert_eq!(learned, [false, true, true, false, false, false]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(address) = Address::parse(&bytes) {
                let _ = (address.on(1, "eth0").bytes(), address.to_string(), address.lifetime_s());
            }
            if let Some(neighbour) = Neighbour::parse(&bytes) {
                let _ = (neighbour.on(1).bytes(), neighbour.is_learned(), neighbour.to_string());
            }
            if let Some(route) = Route::parse(&bytes) {
                let _ = (route.again().through(1, 2).bytes(), route.parts_through(1), route.to_string());
            }
        }
    }
}
