//! The kinds of round trips, and their clients.

use crate::bench::guest::{DATAGRAM_PORT, ECHO_PORT, Peer};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn};
use nix::sys::socket::{connect, recv, send, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Serialize;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// A trip that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of an echo request behind its header, as ping(8) sends.
const PING_BYTES: usize = 56;
/// Offset of the sequence number in an ICMP message, and bytes of an IPv4 header without options.
const SEQUENCE_AT: usize = 6;
const IPV4_BYTES: usize = 20;

/// A kind of round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Trip {
    /// An echo request, which the guest's kernel answers.
    Ping,
    /// A datagram of one byte, which a program in the guest sends back.
    Udp,
    /// A byte in a connection, likewise.
    Tcp,
}

impl Trip {
    pub(super) const ALL: [Self; 3] = [Self::Ping, Self::Udp, Self::Tcp];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }

    /// The times of `count` trips, one after the other, in us.
    ///
    /// # Errors
    /// If the guest does not answer.
    pub(super) fn run(self, peer: &Peer, count: u32) -> io::Result<Vec<f64>> {
        match self {
            Self::Ping => ping(peer.address().parse().map_err(io::Error::other)?, count),
            Self::Udp => {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.connect((peer.address(), DATAGRAM_PORT))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                times(count, |_| socket.send(b"x").and_then(|_| socket.recv(&mut [0])).map(drop))
            }
            Self::Tcp => {
                let mut stream = peer.connect(ECHO_PORT)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                times(count, |_| stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0])))
            }
        }
    }
}

fn ping(address: Ipv4Addr, count: u32) -> io::Result<Vec<f64>> {
    let icmp = Some(SockProtocol::Icmp);
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, icmp)?;
    let timeout = TimeVal::seconds(i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX));
    setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(address, 0)))?;
    times(count, |number| {
        let sequence = u16::try_from(number % 0x1_0000).unwrap_or(0).to_be_bytes();
        send(socket.as_raw_fd(), &echo_request(sequence), MsgFlags::empty())?;
        loop {
            let mut answer = [0; IPV4_BYTES + 8 + PING_BYTES];
            let bytes = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            let message = answer.get(IPV4_BYTES..bytes).unwrap_or_default();
            if message.first() == Some(&0) && message.get(SEQUENCE_AT..SEQUENCE_AT + 2) == Some(&sequence) {
                return Ok(());
            }
        }
    })
}

/// An ICMP echo request (RFC 792).
fn echo_request(sequence: [u8; 2]) -> Vec<u8> {
    let mut message = vec![b'x'; 8 + PING_BYTES];
    message[..SEQUENCE_AT].copy_from_slice(&[8, 0, 0, 0, b'm', b'v']);
    message[SEQUENCE_AT..SEQUENCE_AT + 2].copy_from_slice(&sequence);
    let mut sum: u32 = message.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).unwrap_or(0);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}

fn times(count: u32, mut trip: impl FnMut(u32) -> io::Result<()>) -> io::Result<Vec<f64>> {
    let mut times = Vec::new();
    for number in 0..count {
        let begin = Instant::now();
        trip(number)?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}
