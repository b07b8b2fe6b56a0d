//! An rtnetlink socket that sends requests in batches.
//!
//! The kernel processes all messages of one `send` before it returns, and its answers then wait in the socket. So
//! nothing blocks, a missing answer is an error, and a killed process has sent a whole batch or nothing. Each message
//! succeeds or fails by itself.

mod messages;

use std::io;

use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::kernel::netlink::{self, Message, Writer};
use messages::{ADDRESS_HEAD_LEN, NDA_IFINDEX, NEIGHBOUR_HEAD_LEN, ROUTE_HEAD_LEN, RTA_OIF};
pub(crate) use messages::{Address, Neighbour, Route};

/// Bytes of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;

/// Receive buffer bytes per message: the kernel charges an answer by its memory.
const ANSWER_BYTES: usize = 1024;

/// Free space that the kernel wants in the send buffer beyond a batch.
const RESERVE_BYTES: usize = 64 * 1024;

/// Attempts to read a list that changes meanwhile.
const DUMP_ATTEMPTS: usize = 10;

/// Most answers read before giving up on the kernel: more than a host with a full internet routing table has.
const ANSWERS_MAX: usize = 1 << 22;

/// A change to addresses, routes or neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Give a link an address, or change the one that it has.
    AddAddress(Address),
    /// Take an address off its link.
    RemoveAddress(Address),
    /// Add a route after those to the same destination.
    AddRoute(Route),
    /// Remove a route.
    RemoveRoute(Route),
    /// Add a neighbour to a link, unless it is known.
    AddNeighbour(Neighbour),
}

impl Change {
    fn encode(&self, seq: u32) -> Vec<u8> {
        let add = libc::NLM_F_CREATE;
        match self {
            Self::AddAddress(address) => encode(libc::RTM_NEWADDR, add | libc::NLM_F_REPLACE, seq, &address.bytes()),
            Self::RemoveAddress(address) => encode(libc::RTM_DELADDR, 0, seq, &address.bytes()),
            Self::AddRoute(route) => encode(libc::RTM_NEWROUTE, add | libc::NLM_F_APPEND, seq, &route.bytes()),
            Self::RemoveRoute(route) => encode(libc::RTM_DELROUTE, 0, seq, &route.bytes()),
            Self::AddNeighbour(neighbour) => encode(libc::RTM_NEWNEIGH, add, seq, &neighbour.bytes()),
        }
    }

    /// True if this answer means that the change is in effect, perhaps already before.
    fn is_done(&self, errno: i32) -> bool {
        match self {
            Self::AddAddress(_) | Self::AddRoute(_) => matches!(errno, 0 | libc::EEXIST),
            Self::RemoveAddress(_) => matches!(errno, 0 | libc::EADDRNOTAVAIL | libc::ENODEV),
            Self::RemoveRoute(_) => matches!(errno, 0 | libc::ESRCH | libc::ENODEV),
            // The host resolves the neighbour if it needs it.
            Self::AddNeighbour(_) => true,
        }
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AddAddress(address) => write!(f, "add address {address}"),
            Self::RemoveAddress(address) => write!(f, "remove address {address}"),
            Self::AddRoute(route) => write!(f, "add route {route}"),
            Self::RemoveRoute(route) => write!(f, "remove route {route}"),
            Self::AddNeighbour(neighbour) => write!(f, "add neighbour {neighbour}"),
        }
    }
}

/// The socket.
pub(crate) struct RouteSocket {
    socket: Socket,
    next_seq: u32,
}

impl RouteSocket {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        // Otherwise the kernel ignores the filter of a dump in silence.
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self { socket, next_seq: 1 })
    }

    /// Makes these changes in order, and returns those that the kernel refused, with its error.
    pub(crate) fn apply(&mut self, changes: &[Change]) -> io::Result<Vec<(Change, io::Error)>> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let first = self.next_seq;
        let seqs = (0..).map(|idx| first.wrapping_add(idx));
        let bytes: Vec<u8> = changes.iter().zip(seqs).flat_map(|(change, seq)| change.encode(seq)).collect();
        self.next_seq = first.wrapping_add(u32::try_from(changes.len()).map_err(io::Error::other)?);
        // Too small a buffer shows as an error below.
        let _ = setsockopt(&self.socket, sockopt::SndBufForce, &(bytes.len() + RESERVE_BYTES));
        let _ = setsockopt(&self.socket, sockopt::RcvBufForce, &(changes.len() * ANSWER_BYTES + RESERVE_BYTES));
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        let mut answered = vec![None; changes.len()];
        for _ in 0..changes.len() {
            let received = self.receive()?;
            for message in netlink::messages(&received) {
                let idx = usize::try_from(message.seq.wrapping_sub(first)).unwrap_or(usize::MAX);
                if let Some(answer) = answered.get_mut(idx) {
                    *answer = errno_of(&message);
                }
            }
            if answered.iter().all(Option::is_some) {
                break;
            }
        }
        let refused = changes.iter().zip(answered).filter_map(|(change, errno)| {
            let errno = errno.unwrap_or(libc::ENOBUFS);
            (!change.is_done(errno)).then(|| (change.clone(), io::Error::from_raw_os_error(errno)))
        });
        Ok(refused.collect())
    }

    /// The addresses of a link.
    pub(crate) fn addresses(&mut self, link: u32) -> io::Result<Vec<Address>> {
        let mut head = [0; ADDRESS_HEAD_LEN];
        head[4..].copy_from_slice(&link.to_ne_bytes());
        self.dump(libc::RTM_GETADDR, &head, Address::parse)
    }

    /// The routes of all tables that lead through a link, also those with other next hops.
    pub(crate) fn routes(&mut self, link: u32) -> io::Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut head = [0; ROUTE_HEAD_LEN];
            head[0] = u8::try_from(family).map_err(io::Error::other)?;
            let mut writer = Writer::default();
            writer.attr(RTA_OIF, &link.to_ne_bytes());
            match self.dump(libc::RTM_GETROUTE, &[&head, writer.bytes()].concat(), Route::parse) {
                // For a family that it does not support, the kernel lists the routes of all families.
                Ok(list) => routes.extend(list.into_iter().filter(|route| route.family() == family)),
                // A kernel without IPv6.
                Err(error) if family == libc::AF_INET6 && error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(routes)
    }

    /// The neighbours of a link.
    pub(crate) fn neighbours(&mut self, link: u32) -> io::Result<Vec<Neighbour>> {
        let mut writer = Writer::default();
        writer.attr(NDA_IFINDEX, &link.to_ne_bytes());
        self.dump(libc::RTM_GETNEIGH, &[&[0; NEIGHBOUR_HEAD_LEN], writer.bytes()].concat(), Neighbour::parse)
    }

    fn dump<T>(&mut self, kind: u16, body: &[u8], each: impl Fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(list) = self.try_dump(kind, body, &each)? {
                return Ok(list);
            }
        }
        Err(io::Error::from_raw_os_error(libc::EINTR))
    }

    /// A list; none if it changed meanwhile.
    fn try_dump<T>(&mut self, kind: u16, body: &[u8], each: impl Fn(&[u8]) -> Option<T>) -> io::Result<Option<Vec<T>>> {
        let seq = self.next_seq;
        self.next_seq = seq.wrapping_add(1);
        self.socket.send_to(&encode(kind, libc::NLM_F_DUMP, seq, body), &SocketAddr::new(0, 0), 0)?;
        let (mut list, mut consistent) = (Vec::new(), true);
        for _ in 0..ANSWERS_MAX {
            let received = self.receive()?;
            for message in netlink::messages(&received).filter(|message| message.seq == seq) {
                consistent &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
                match errno_of(&message) {
                    Some(0) => return Ok(consistent.then_some(list)),
                    Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                    None => list.extend(each(message.body)),
                }
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        loop {
            match self.socket.recv_from_full() {
                // Messages from other senders are ignored.
                Ok((_, sender)) if sender.port_number() != 0 => {}
                Ok((bytes, _)) => return Ok(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn encode(kind: u16, flags: i32, seq: u32, body: &[u8]) -> Vec<u8> {
    // A message with all possible attributes is far below 4 GiB, and all flags are below 16 bits.
    let len = u32::try_from(HEADER_LEN + body.len()).unwrap_or(u32::MAX);
    let acknowledged = if flags == libc::NLM_F_DUMP { 0 } else { libc::NLM_F_ACK };
    let flags = u16::try_from(libc::NLM_F_REQUEST | acknowledged | flags).unwrap_or_default();
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(seq.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The code in an acknowledgement, a refusal or the end of a list, 0 for success; nothing for other messages.
fn errno_of(message: &Message<'_>) -> Option<i32> {
    let kind = i32::from(message.kind);
    if kind != libc::NLMSG_ERROR && kind != libc::NLMSG_DONE {
        return None;
    }
    let code = message.body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
    Some(code.checked_neg().unwrap_or(libc::EIO))
}
