//! Deletes conntrack entries that contradict the rules of a VM when it starts and after it has ended (`ctnetlink`,
//! linux/netfilter/nfnetlink_conntrack.h).
//!
//! The kernel consults the NAT rules at the first packet of a connection only. A client that goes on sending to a port
//! keeps its entry alive, so without this it would never reach a guest that took the port over meanwhile, and its
//! packets would still go to the address of a guest that has gone. TCP connections with packets from both sides are
//! left to their parties, unless the guest itself is one: there the address is that of a guest that begins or has gone.
//!
//! Costs: a walk of the kernel takes 5 ms, as it locks each of a quarter of a million buckets, which all namespaces
//! share. So there is none where the namespace has no connections; with few connections one walk lists them all; with
//! many there is one for each port and address. It runs after the hand-over, so no start waits for it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, sendto, setsockopt, socket,
    sockopt,
};

use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};

use crate::kernel::netlink::{Attrs, Head, Message, Writer, messages};
use crate::kernel::rtnl::Rtnl;
use crate::rules::Member;
use crate::spec::Protocol;

/// `NFNL_SUBSYS_CTNETLINK`.
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
/// `enum cntl_msg_types`.
const IPCTNL_MSG_CT_NEW: u16 = 0;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;

/// `enum ctattr_type`.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
/// `enum ctattr_tuple`, `enum ctattr_ip`, `enum ctattr_l4proto`.
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
/// `enum ctattr_filter` and its flags (net/netfilter/nf_conntrack_netlink.c). A kernel before 5.8 lists everything.
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const FILTER_IP_SRC: u32 = 1;
const FILTER_PROTO_NUM: u32 = 1 << 3;
const FILTER_PROTO_DST_PORT: u32 = 1 << 5;

/// `IPS_SEEN_REPLY` of `enum ip_conntrack_status`.
const IPS_SEEN_REPLY: u32 = 2;

/// Connections that this network namespace has.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
/// More connections than this are not all listed: each costs about 1 µs, here and in the kernel.
const FEW: usize = 4096;

/// Limit of deleted entries of one kind: a table has a quarter of a million on a large host.
const FORGOTTEN_MAX: usize = 1 << 18;
/// More ports than this are looked for in one list of all connections of the protocol.
const PORTS_MAX: usize = 8;
/// Requests in one message to the kernel.
const REQUESTS: usize = 256;
/// Buffer size for one read of answers.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Limit of reads for one list, beyond which the kernel is taken to be broken.
const PIECES_MAX: usize = 1 << 20;

/// When connections are forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The rules have come: a connection that already goes to the guest is as it would be now.
    Start,
    /// The rules have gone.
    End,
}

/// Deletes the connections of a plan's guests, which begin or have gone, and those to ports of the host that lead, or
/// led, to them. A kernel that does not list its connections is left alone.
pub(crate) async fn forget(rtnl: &Rtnl, members: &[&Member], moment: Moment) {
    // If the kernel does not tell the count, assume many.
    let tracked = fs::read_to_string(COUNT).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(usize::MAX);
    if members.is_empty() || tracked == 0 {
        return;
    }
    let result = match local_addresses(rtnl, members).await {
        Ok(local) => forget_of(members, &local, tracked, moment),
        Err(error) => Err(error),
    };
    match result {
        Ok(count) => log::debug!("Forgot {count} connections that rules of this VM decide otherwise"),
        Err(error) => log::debug!("Cannot forget tracked connections: {error}"),
    }
}

/// The host's addresses, if a port of all of them leads to a guest.
async fn local_addresses(rtnl: &Rtnl, members: &[&Member]) -> io::Result<BTreeSet<IpAddr>> {
    let everywhere = |member: &&Member| member.forward.iter().any(|forward| forward.address.is_none());
    if !members.iter().any(everywhere) {
        return Ok(BTreeSet::new());
    }
    // On a point-to-point link the local address is in IFA_LOCAL; IPv6 has IFA_ADDRESS only.
    let address = |message: &AddressMessage| {
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        local.or_else(|| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            })
        })
    };
    Ok(rtnl.addresses().await?.iter().filter_map(address).collect())
}

fn forget_of(members: &[&Member], local: &BTreeSet<IpAddr>, tracked: usize, moment: Moment) -> io::Result<usize> {
    let mut socket = Socket::open()?;
    let all = if tracked <= FEW { Some(socket.list(AF_UNSPEC, Query::All)?) } else { None };
    let mut forgotten = BTreeSet::new();
    for member in members {
        for guest in [Some(IpAddr::V4(member.address)), member.address6.map(IpAddr::V6)].into_iter().flatten() {
            let is_wrong = |entry: &&Entry| {
                entry.original.source.is_ipv4() == guest.is_ipv4()
                    && entry.is_decided_otherwise(member, guest, local)
                    && !(moment == Moment::Start && entry.is_led_to(guest, member, local))
            };
            let mut note = |entries: &[Entry]| {
                let wrong = entries.iter().filter(is_wrong).take(FORGOTTEN_MAX);
                forgotten.extend(wrong.map(|entry| (family_of(guest), entry.id, entry.tuple.clone())));
            };
            match &all {
                Some(entries) => note(entries),
                None => {
                    for query in queries(member, guest) {
                        note(&socket.list(family_of(guest), query)?);
                    }
                }
            }
        }
    }
    socket.delete(&forgotten)?;
    Ok(forgotten.len())
}

/// Which entries the kernel is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Query {
    /// All of them.
    All,
    /// Those that this address began.
    From(IpAddr),
    /// Those that this address answers.
    AnsweredBy(IpAddr),
    /// Those of a protocol to a port.
    To(Protocol, u16),
    /// Those of a protocol.
    Of(Protocol),
}

fn queries(member: &Member, guest: IpAddr) -> Vec<Query> {
    let ports = |protocol| {
        let forwards = member.forward.iter().filter(move |forward| forward.protocol == protocol);
        let forwards = forwards.filter(|forward| guest.is_ipv4() || forward.address.is_none());
        forwards.flat_map(|forward| forward.pairs().map(|(port, _)| port))
    };
    let to_ports = [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(|protocol| {
        if ports(protocol).count() > PORTS_MAX {
            return vec![Query::Of(protocol)];
        }
        ports(protocol).map(|port| Query::To(protocol, port)).collect()
    });
    [Query::From(guest), Query::AnsweredBy(guest)].into_iter().chain(to_ports).collect()
}

impl Query {
    fn write(self, writer: &mut Writer) {
        match self {
            Self::All => {}
            Self::From(ip) => filtered(writer, CTA_TUPLE_ORIG, FILTER_IP_SRC, |tuple| source(tuple, ip)),
            Self::AnsweredBy(ip) => filtered(writer, CTA_TUPLE_REPLY, FILTER_IP_SRC, |tuple| source(tuple, ip)),
            Self::To(protocol, port) => {
                filtered(writer, CTA_TUPLE_ORIG, FILTER_PROTO_NUM | FILTER_PROTO_DST_PORT, |tuple| {
                    tuple.nest(CTA_TUPLE_PROTO, |proto| {
                        proto.attr(CTA_PROTO_NUM, &[protocol.number()]);
                        proto.attr(CTA_PROTO_DST_PORT, &port.to_be_bytes());
                    });
                });
            }
            Self::Of(protocol) => filtered(writer, CTA_TUPLE_ORIG, FILTER_PROTO_NUM, |tuple| {
                tuple.nest(CTA_TUPLE_PROTO, |proto| proto.attr(CTA_PROTO_NUM, &[protocol.number()]));
            }),
        }
    }
}

/// A tuple, and the flags that say which of its parts count.
fn filtered(writer: &mut Writer, tuple: u16, flags: u32, body: impl FnOnce(&mut Writer)) {
    writer.nest(tuple, body);
    let (orig, reply) = if tuple == CTA_TUPLE_ORIG { (flags, 0) } else { (0, flags) };
    writer.nest(CTA_FILTER, |filter| {
        filter.attr(CTA_FILTER_ORIG_FLAGS, &orig.to_ne_bytes());
        filter.attr(CTA_FILTER_REPLY_FLAGS, &reply.to_ne_bytes());
    });
}

fn source(tuple: &mut Writer, ip: IpAddr) {
    tuple.nest(CTA_TUPLE_IP, |writer| match ip {
        IpAddr::V4(ip) => writer.attr(CTA_IP_V4_SRC, &ip.octets()),
        IpAddr::V6(ip) => writer.attr(CTA_IP_V6_SRC, &ip.octets()),
    });
}

/// `AF_UNSPEC` of linux/socket.h: both families.
const AF_UNSPEC: u8 = 0;

fn family_of(ip: IpAddr) -> u8 {
    // AF_INET and AF_INET6 of linux/socket.h.
    if ip.is_ipv4() { 2 } else { 10 }
}

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    destination_port: u16,
}

impl Tuple {
    fn read(attrs: Attrs<'_>) -> Option<Self> {
        let (ip, proto) = (attrs.list(CTA_TUPLE_IP), attrs.list(CTA_TUPLE_PROTO));
        let ip4 = |kind| Some(IpAddr::from(Ipv4Addr::from(*ip.find(kind)?.first_chunk::<4>()?)));
        let ip6 = |kind| Some(IpAddr::from(Ipv6Addr::from(*ip.find(kind)?.first_chunk::<16>()?)));
        let port = |kind| proto.find(kind)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
        Some(Self {
            source: ip4(CTA_IP_V4_SRC).or_else(|| ip6(CTA_IP_V6_SRC))?,
            destination: ip4(CTA_IP_V4_DST).or_else(|| ip6(CTA_IP_V6_DST))?,
            protocol: *proto.find(CTA_PROTO_NUM)?.first()?,
            // ICMP has none.
            destination_port: port(CTA_PROTO_DST_PORT).unwrap_or_default(),
        })
    }
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    id: u32,
    /// The tuple of its first packet as the kernel has it.
    tuple: Vec<u8>,
    original: Tuple,
    reply: Tuple,
    status: u32,
}

impl Entry {
    fn read(attrs: Attrs<'_>) -> Option<Self> {
        // Rules of ours are for the zone that everything is in by default.
        let zone = attrs.find(CTA_ZONE).unwrap_or_default();
        zone.iter().all(|byte| *byte == 0).then_some(())?;
        Some(Self {
            id: attrs.be32(CTA_ID)?,
            tuple: attrs.find(CTA_TUPLE_ORIG)?.to_vec(),
            original: Tuple::read(attrs.list(CTA_TUPLE_ORIG))?,
            reply: Tuple::read(attrs.list(CTA_TUPLE_REPLY))?,
            status: attrs.be32(CTA_STATUS)?,
        })
    }

    /// Returns whether the connection would lead elsewhere if it began now, with the rules of `member` there or gone.
    fn is_decided_otherwise(&self, member: &Member, guest: IpAddr, local: &BTreeSet<IpAddr>) -> bool {
        if self.original.source == guest || self.reply.source == guest {
            return true;
        }
        // An established TCP connection is kept: its next packet would go to a guest that knows nothing of it.
        let is_kept = self.original.protocol != Protocol::Udp.number() && self.status & IPS_SEEN_REPLY != 0;
        self.is_to_port_of(member, local) && !is_kept
    }

    /// Returns whether the rules of `member` have led the connection to `guest`.
    fn is_led_to(&self, guest: IpAddr, member: &Member, local: &BTreeSet<IpAddr>) -> bool {
        self.reply.source == guest && self.is_to_port_of(member, local)
    }

    /// Returns whether the connection is to a port of the host that leads to `member`.
    fn is_to_port_of(&self, member: &Member, local: &BTreeSet<IpAddr>) -> bool {
        let Tuple { destination, protocol, destination_port, .. } = self.original;
        member.forward.iter().any(|forward| {
            let here = match forward.address {
                Some(address) => destination == IpAddr::V4(address),
                None => destination.is_loopback() || local.contains(&destination),
            };
            here && protocol == forward.protocol.number() && forward.pairs().any(|(port, _)| port == destination_port)
        })
    }
}

/// A connection to ctnetlink.
struct Socket {
    fd: OwnedFd,
    next_seq: u32,
}

impl Socket {
    fn open() -> io::Result<Self> {
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK);
        let fd = socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkNetFilter)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // A smaller one works as well.
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &(8 * RECEIVE_BYTES));
        Ok(Self { fd, next_seq: 1 })
    }

    fn list(&mut self, family: u8, query: Query) -> io::Result<Vec<Entry>> {
        let seq = self.next_seq;
        self.next_seq = seq.wrapping_add(1);
        let flags = u16::try_from(libc::NLM_F_DUMP).unwrap_or_default();
        let mut writer = Writer::default();
        writer.message(head(IPCTNL_MSG_CT_GET, flags, seq, family), |writer| query.write(writer));
        self.send(&writer)?;
        let (mut entries, mut buffer) = (Vec::new(), vec![0; RECEIVE_BYTES]);
        for _ in 0..PIECES_MAX {
            let received = match recvfrom::<NetlinkAddr>(self.fd.as_raw_fd(), &mut buffer) {
                // Messages of other senders are ignored.
                Ok((_, Some(sender))) if sender.pid() != 0 => continue,
                Ok((len, _)) => buffer.get(..len).unwrap_or_default(),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for message in messages(received).filter(|message| message.seq == seq) {
                match end_of(&message) {
                    Some(0) => return Ok(entries),
                    Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                    None if message.kind == NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW => {
                        entries.extend(Entry::read(message.attrs()));
                    }
                    None => {}
                }
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Deletes entries. Those that have gone by themselves meanwhile are not missed.
    fn delete(&mut self, entries: &BTreeSet<(u8, u32, Vec<u8>)>) -> io::Result<()> {
        let entries: Vec<_> = entries.iter().collect();
        for some in entries.chunks(REQUESTS) {
            let mut writer = Writer::default();
            for (family, id, tuple) in some {
                writer.message(head(IPCTNL_MSG_CT_DELETE, 0, self.next_seq, *family), |writer| {
                    writer.nest(CTA_TUPLE_ORIG, |nest| nest.raw(tuple));
                    writer.be32(CTA_ID, *id);
                });
            }
            self.send(&writer)?;
            // Drain the answers: they only say that an entry has gone already.
            let mut buffer = vec![0; RECEIVE_BYTES];
            while recvfrom::<NetlinkAddr>(self.fd.as_raw_fd(), &mut buffer).is_ok() {}
        }
        Ok(())
    }

    fn send(&self, writer: &Writer) -> io::Result<()> {
        writer.check().map_err(io::Error::other)?;
        sendto(self.fd.as_raw_fd(), writer.bytes(), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }
}

fn head(kind: u16, flags: u16, seq: u32, family: u8) -> Head {
    Head { kind: NFNL_SUBSYS_CTNETLINK << 8 | kind, flags, seq, family, res_id: 0 }
}

/// The code in a refusal or at the end of a list, 0 for success; nothing for an entry.
fn end_of(message: &Message<'_>) -> Option<i32> {
    match i32::from(message.kind) {
        libc::NLMSG_DONE => Some(0),
        libc::NLMSG_ERROR => {
            let code = message.body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
            Some(code.checked_neg().unwrap_or(libc::EIO))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::alias::Mode;
    use crate::spec::{LimitSpec, ReachList, Switch};

    const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3));
    const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2));
    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));

    fn member(forward: &str) -> Member {
        Member {
            card: 0,
            mode: Mode::Nat,
            bridge: "mvn-default".parse().unwrap(),
            mac: "52:54:00:00:00:01".parse().unwrap(),
            address: [10, 1, 2, 3].into(),
            address6: None,
            gateway_mac: "02:00:00:00:00:01".parse().unwrap(),
            subnet: "10.1.2.0/24".parse().unwrap(),
            ipv6: None,
            forward: vec![forward.parse().unwrap()],
            reach: ReachList::NONE,
            metadata: Switch::Off,
            antispoof: Switch::On,
            isolate: Switch::Off,
            hairpin: Switch::Off,
            limits: LimitSpec::default(),
        }
    }

    /// From the client to a port of `to`, and answered by `by`.
    fn entry(protocol: Protocol, to: (IpAddr, u16), by: IpAddr, status: u32) -> Entry {
        let tuple = |source, destination, destination_port| Tuple {
            source,
            destination,
            protocol: protocol.number(),
            destination_port,
        };
        let (original, reply) = (tuple(CLIENT, to.0, to.1), tuple(by, CLIENT, 40000));
        Entry { id: 1, tuple: Vec::new(), original, reply, status }
    }

    fn is_forgotten(forward: &str, entry: &Entry) -> bool {
        entry.is_decided_otherwise(&member(forward), GUEST, &BTreeSet::from([HOST]))
    }

    #[test]
    fn datagrams_to_a_port_that_leads_to_the_guest_are_forgotten() {
        let to = |address, port| entry(Protocol::Udp, (address, port), HOST, IPS_SEEN_REPLY);
        assert!(is_forgotten("udp:5300:53", &to(HOST, 5300)));
        assert!(is_forgotten("udp:5300:53", &to([127, 0, 0, 1].into(), 5300)));
        assert!(is_forgotten("udp:198.51.100.2:5300:53", &to(HOST, 5300)));
        for (forward, address, port) in [
            ("udp:5300:53", HOST, 53),
            ("udp:5300:53", IpAddr::from([192, 0, 2, 1]), 5300),
            ("tcp:5300:53", HOST, 5300),
            ("udp:127.0.0.1:5300:53", HOST, 5300),
        ] {
            assert!(!is_forgotten(forward, &to(address, port)), "{forward} {address}:{port}");
        }
    }

    #[test]
    fn connection_of_tcp_that_was_answered_is_its_owners_and_one_of_the_guest_is_not() {
        let to_host = |status| entry(Protocol::Tcp, (HOST, 8080), HOST, status);
        assert!(is_forgotten("tcp:8080:80", &to_host(0)));
        assert!(!is_forgotten("tcp:8080:80", &to_host(IPS_SEEN_REPLY)));
        assert!(is_forgotten("tcp:8080:80", &entry(Protocol::Tcp, (HOST, 80), GUEST, IPS_SEEN_REPLY)));
    }

    #[test]
    fn connection_that_the_rules_have_led_to_the_guest_is_known_as_theirs() {
        let local = BTreeSet::from([HOST]);
        let is_theirs = |entry: &Entry| entry.is_led_to(GUEST, &member("udp:5300:53"), &local);
        assert!(is_theirs(&entry(Protocol::Udp, (HOST, 5300), GUEST, 0)));
        assert!(!is_theirs(&entry(Protocol::Udp, (HOST, 5300), HOST, 0)));
        assert!(!is_theirs(&entry(Protocol::Udp, (HOST, 5301), GUEST, 0)));
    }

    #[test]
    fn many_ports_are_asked_for_at_once() {
        let few = queries(&member("udp:5300-5301:53-54"), GUEST);
        let ports = [Query::To(Protocol::Udp, 5300), Query::To(Protocol::Udp, 5301)];
        assert_eq!(few, [&[Query::From(GUEST), Query::AnsweredBy(GUEST)][..], &ports].concat());
        let many = queries(&member("udp:5300-5320:5300-5320"), GUEST);
        assert_eq!(many, [Query::From(GUEST), Query::AnsweredBy(GUEST), Query::Of(Protocol::Udp)]);
    }

    #[test]
    fn entries_are_read_from_attributes_and_others_zones_left_alone() {
        let write = |zone: Option<u16>| {
            let mut writer = Writer::default();
            for (kind, from, to) in [(CTA_TUPLE_ORIG, CLIENT, HOST), (CTA_TUPLE_REPLY, HOST, CLIENT)] {
                writer.nest(kind, |tuple| {
                    tuple.nest(CTA_TUPLE_IP, |ip| {
                        for (kind, address) in [(CTA_IP_V4_SRC, from), (CTA_IP_V4_DST, to)] {
                            let IpAddr::V4(address) = address else { return };
                            ip.attr(kind, &address.octets());
                        }
                    });
                    tuple.nest(CTA_TUPLE_PROTO, |proto| {
                        proto.attr(CTA_PROTO_NUM, &[17]);
                        proto.attr(CTA_PROTO_DST_PORT, &5300_u16.to_be_bytes());
                    });
                });
            }
            writer.be32(CTA_STATUS, 2);
            writer.be32(CTA_ID, 7);
            if let Some(zone) = zone {
                writer.attr(CTA_ZONE, &zone.to_be_bytes());
            }
            Entry::read(Attrs::from(writer.bytes()))
        };
        let read = write(None).unwrap();
        assert_eq!((read.id, read.status, read.original.source, read.original.destination), (7, 2, CLIENT, HOST));
        assert_eq!((read.original.protocol, read.original.destination_port, read.reply.source), (17, 5300, HOST));
        assert_eq!(write(Some(3)), None);
    }
}
