//! Kernel notifications about routes and interface settings (netconf), read in bounded batches.
//!
//! An internet router has a million routes, and changes thousands in a second when a neighbour returns. So these have a
//! socket of their own with a small buffer: the reader empties it and then pauses. The kernel drops what does not fit
//! at no further cost, and reports the loss once ([`Heard::lost`]); then the state itself is read.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::kernel::netlink::{Attrs, Message, messages};
use crate::kernel::netlink_filter::{HEAD_LEN, KIND_AT, Line, To, attach};
use crate::kernel::sysctl::Conf;

/// Bits of `struct sockaddr_nl` for `RTNLGRP_IPV4_ROUTE`, `_IPV4_NETCONF` and `_IPV6_NETCONF` (linux/rtnetlink.h). IPv6
/// forwarding is a setting of the whole host, whatever its routes.
const GROUPS: u32 = 1 << (7 - 1) | 1 << (24 - 1) | 1 << (25 - 1);

/// Room for some 200 notifications, each charged by the kernel with about 1 KiB. Changing a setting of all interfaces
/// causes one for each.
const BUFFER_BYTES: usize = 256 * 1024;

/// Most messages of one batch: the full buffer, and those that arrive while it is read.
const HELPING_MAX: usize = 1024;

/// Room for one message.
const MESSAGE_BYTES: usize = 32 * 1024;

/// Messages of rtnetlink (linux/rtnetlink.h) about routes, and about settings.
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNETCONF: u16 = 80;

/// Bytes of `struct rtmsg`, the offsets of the prefix length and the route type in it, the type of unicast routes, and
/// the longest prefix of a default route: half of all addresses, as VPNs use it.
const ROUTE_HEAD_LEN: usize = 12;
const ROUTE_PREFIX_AT: usize = 1;
const ROUTE_TYPE_AT: usize = 7;
const RTN_UNICAST: u8 = 1;
const WIDE: u8 = 1;

/// Attributes of a route, and bytes of `struct rtnexthop`: length, flags, weight, and the link's number.
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
const HOP_LEN: usize = 8;

/// Bytes of `struct netconfmsg` with padding, attributes of a setting, and the indices that stand for all interfaces
/// and for later ones (linux/netconf.h).
const NETCONF_HEAD_LEN: usize = 4;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_PROXY_NEIGH: u16 = 5;
const IFINDEX_ALL: i32 = -1;
const IFINDEX_DEFAULT: i32 = -2;

/// The scope of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// The host.
    All,
    /// Later interfaces.
    Default,
    /// An interface.
    Link(u32),
}

/// A change of forwarding, whichever program made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forwarding {
    pub(crate) conf: Conf,
    pub(crate) scope: Scope,
    pub(crate) on: bool,
}

/// A batch of notifications.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Interfaces of new IPv4 routes to other machines.
    pub(crate) leading: BTreeSet<u32>,
    /// A default route was added or removed.
    pub(crate) ways_out: bool,
    /// Changes of forwarding, in order.
    pub(crate) forwarding: Vec<Forwarding>,
    /// Notifications were lost for lack of room.
    pub(crate) lost: bool,
}

/// The socket.
#[derive(Debug)]
pub(crate) struct Notices {
    /// The netlink socket in a type that tokio can wait for: tokio only asks for readiness, which is the same for all
    /// socket types.
    socket: UnixStream,
}

impl Notices {
    /// Listens from now on. Inside a tokio runtime.
    pub(crate) fn subscribe() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        // A smaller buffer only loses notifications sooner.
        let _ = setsockopt(&fd, sockopt::RcvBuf, &BUFFER_BYTES);
        if let Err(error) = attach(&fd, &program()) {
            log::debug!("Notifications about new interfaces are not filtered: {error}");
        }
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        Ok(Self { socket: UnixStream::from_std(fd.into())? })
    }

    /// Waits until there is something to read.
    pub(crate) async fn ready(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Reads the pending notifications, without waiting for more.
    pub(crate) fn read(&self) -> io::Result<Heard> {
        let mut heard = Heard::default();
        let mut buffer = vec![0; MESSAGE_BYTES];
        for _ in 0..HELPING_MAX {
            let receive = || Ok(recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?);
            match self.socket.try_io(Interest::READABLE, receive) {
                Ok(len) => messages(buffer.get(..len).unwrap_or_default()).for_each(|message| heard.note(&message)),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    heard.lost = true;
                    heard.ways_out = true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // No more messages.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(heard)
    }
}

impl Heard {
    fn note(&mut self, message: &Message<'_>) {
        self.ways_out |= matches!(message.kind, RTM_NEWROUTE | RTM_DELROUTE) && is_wide(message.body);
        match message.kind {
            RTM_NEWROUTE => self.leading.extend(links_of_route(message.body).into_iter().flatten()),
            RTM_NEWNETCONF => self.forwarding.extend(forwarding(message.body)),
            _ => {}
        }
    }
}

/// Keeps routes to other machines, and changes of forwarding. A new interface's report of all settings, proxying among
/// them, is dropped: every tap sends one, and other interfaces announce themselves by their link.
fn program() -> Vec<Line> {
    let [attrs, route_type] = [NETCONF_HEAD_LEN, ROUTE_TYPE_AT].map(|len| HEAD_LEN + u32::try_from(len).unwrap_or(0));
    vec![
        Line::Half(KIND_AT),
        Line::IfHalf(RTM_NEWROUTE, To::Label("route"), To::Next),
        Line::IfHalf(RTM_DELROUTE, To::Label("route"), To::Next),
        Line::IfHalf(RTM_NEWNETCONF, To::Next, To::Drop),
        Line::Attr(attrs, NETCONFA_FORWARDING),
        Line::IfOctet(0, To::Drop, To::Next),
        Line::Attr(attrs, NETCONFA_PROXY_NEIGH),
        Line::IfOctet(0, To::Accept, To::Drop),
        Line::Label("route"),
        Line::Octet(route_type),
        Line::IfOctet(RTN_UNICAST, To::Accept, To::Drop),
    ]
}

/// True if an IPv4 route leads to all other machines, or to half of them.
fn is_wide(body: &[u8]) -> bool {
    let Some(head) = body.first_chunk::<ROUTE_HEAD_LEN>() else { return false };
    i32::from(head[0]) == libc::AF_INET && head[ROUTE_TYPE_AT] == RTN_UNICAST && head[ROUTE_PREFIX_AT] <= WIDE
}

/// The links by which an IPv4 route leads to other machines.
fn links_of_route(body: &[u8]) -> Option<Vec<u32>> {
    let (head, rest) = body.split_at_checked(ROUTE_HEAD_LEN)?;
    if head.first().copied().map(i32::from) != Some(libc::AF_INET) || head.get(ROUTE_TYPE_AT) != Some(&RTN_UNICAST) {
        return None;
    }
    let mut links = Vec::new();
    for (kind, payload) in Attrs::from(rest) {
        match kind {
            RTA_OIF => links.extend(number(payload)),
            RTA_MULTIPATH => links.extend(hops(payload)),
            _ => {}
        }
    }
    Some(links)
}

/// The links of a list of `struct rtnexthop`, each with attributes of its own.
fn hops(mut list: &[u8]) -> Vec<u32> {
    let mut links = Vec::new();
    while let Some(&[l0, l1, _, _, a, b, c, d]) = list.first_chunk::<HOP_LEN>() {
        links.push(u32::from_ne_bytes([a, b, c, d]));
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        if len < HOP_LEN {
            break;
        }
        list = list.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    links
}

fn forwarding(body: &[u8]) -> Option<Forwarding> {
    let (head, rest) = body.split_at_checked(NETCONF_HEAD_LEN)?;
    let conf = match head.first().copied().map(i32::from)? {
        libc::AF_INET => Conf::Ipv4,
        libc::AF_INET6 => Conf::Ipv6,
        _ => return None,
    };
    let (mut scope, mut on) = (None, None);
    for (kind, payload) in Attrs::from(rest) {
        match kind {
            NETCONFA_IFINDEX => scope = number(payload).map(u32::cast_signed),
            NETCONFA_FORWARDING => on = number(payload).map(|value| value != 0),
            _ => {}
        }
    }
    let scope = match scope? {
        IFINDEX_ALL => Scope::All,
        IFINDEX_DEFAULT => Scope::Default,
        link => Scope::Link(u32::try_from(link).ok()?),
    };
    Some(Forwarding { conf, scope, on: on? })
}

fn number(payload: &[u8]) -> Option<u32> {
    payload.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::Writer;

    fn heard(kind: u16, head: &[u8], attrs: impl FnOnce(&mut Writer)) -> Heard {
        let mut writer = Writer::default();
        attrs(&mut writer);
        let body = [head, writer.bytes()].concat();
        let mut heard = Heard::default();
        heard.note(&Message { kind, flags: 0, seq: 0, body: &body });
        heard
    }

    /// The fixed part of a route.
    fn route(family: u8, kind: u8) -> [u8; ROUTE_HEAD_LEN] {
        [family, 0, 0, 0, 254, 3, 0, kind, 0, 0, 0, 0]
    }

    #[test]
    fn way_out_is_a_route_to_all_or_to_half_of_all_that_comes_or_goes() {
        let is_way_out = |kind, head: &[u8]| heard(kind, head, |_| {}).ways_out;
        let to = |len| [2, len, 0, 0, 254, 3, 0, RTN_UNICAST, 0, 0, 0, 0];
        assert!(is_way_out(RTM_NEWROUTE, &to(0)) && is_way_out(RTM_DELROUTE, &to(1)));
        assert!(!is_way_out(RTM_NEWROUTE, &to(8)) && !is_way_out(RTM_NEWNETCONF, &to(0)));
    }

    #[test]
    fn links_of_a_new_route_lead_to_other_machines() {
        let plain = heard(RTM_NEWROUTE, &route(2, 1), |attrs| attrs.attr(RTA_OIF, &7_u32.to_ne_bytes()));
        assert_eq!(plain.leading, [7].into());

        let hop = |link: u32, more: &[u8]| {
            let len = u16::try_from(HOP_LEN + more.len()).unwrap().to_ne_bytes();
            [&len[..], &[0, 0], &link.to_ne_bytes(), more].concat()
        };
        let hops = [hop(3, &[8, 0, 5, 0, 10, 0, 0, 1]), hop(4, &[])].concat();
        let many = heard(RTM_NEWROUTE, &route(2, 1), |attrs| attrs.attr(RTA_MULTIPATH, &hops));
        assert_eq!(many.leading, [3, 4].into());
    }

    #[test]
    fn routes_to_this_host_and_of_ipv6_lead_to_nobody() {
        for head in [route(2, 2), route(10, 1)] {
            let none = heard(RTM_NEWROUTE, &head, |attrs| attrs.attr(RTA_OIF, &7_u32.to_ne_bytes()));
            assert_eq!(none, Heard::default());
        }
    }

    #[test]
    fn settings_are_of_all_of_later_ones_or_of_a_link() {
        for (number, scope) in [(-1_i32, Scope::All), (-2, Scope::Default), (9, Scope::Link(9))] {
            let set = heard(RTM_NEWNETCONF, &[10, 0, 0, 0], |attrs| {
                attrs.attr(NETCONFA_IFINDEX, &number.to_ne_bytes());
                attrs.attr(NETCONFA_FORWARDING, &1_i32.to_ne_bytes());
            });
            assert_eq!(set.forwarding, [Forwarding { conf: Conf::Ipv6, scope, on: true }]);
        }
    }

    #[test]
    fn cut_off_messages_say_nothing() {
        for len in 0..ROUTE_HEAD_LEN {
            assert_eq!(heard(RTM_NEWROUTE, &route(2, 1)[..len], |_| {}), Heard::default());
        }
        let hop = heard(RTM_NEWROUTE, &route(2, 1), |attrs| attrs.attr(RTA_MULTIPATH, &[3, 0, 0, 0, 9, 0, 0, 0]));
        assert_eq!(hop.leading, [9].into());
        assert_eq!(heard(RTM_NEWNETCONF, &[2], |_| {}), Heard::default());
    }
}
