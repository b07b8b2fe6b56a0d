//! Holds the host's ports that lead to a guest: whoever asks for one that is taken learns it before the VM starts, and nobody
//! else gets it while the VM runs.
//!
//! Packets to them are translated before they could reach these sockets.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket, sockopt,
};

use crate::error::Error;
use crate::refusal::Refusal;
use crate::spec::{Forward, Protocol};

/// Takes every port of the host that these name.
pub(crate) fn hold(forwards: &[Forward]) -> Result<Vec<OwnedFd>, Error> {
    let ports = forwards.iter().flat_map(|forward| forward.pairs().map(|(port, _)| (*forward, port)));
    ports.map(|(forward, port)| hold_one(forward, port)).collect()
}

fn hold_one(forward: Forward, port: u16) -> Result<OwnedFd, Error> {
    let Forward { protocol, address, .. } = forward;
    take(protocol, address.unwrap_or(Ipv4Addr::UNSPECIFIED), port).map_err(|source| match source.raw_os_error() {
        Some(libc::EADDRINUSE) => Refusal::PortTaken { protocol, port }.into(),
        Some(libc::EADDRNOTAVAIL) => match address {
            Some(address) => Refusal::NotOurAddress { address }.into(),
            None => Error::HoldPort { protocol, port, source },
        },
        _ => Error::HoldPort { protocol, port, source },
    })
}

fn take(protocol: Protocol, address: Ipv4Addr, port: u16) -> io::Result<OwnedFd> {
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
    let address = SockaddrIn::from(SocketAddrV4::new(address, port));
    match protocol {
        Protocol::Tcp => {
            // Connections of a server that has ended linger for a minute and do not stand in the way. Listening is what makes
            // the port ours alone all the same.
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            bind(socket.as_raw_fd(), &address)?;
            listen(&socket, Backlog::new(1)?)?;
        }
        Protocol::Udp => bind(socket.as_raw_fd(), &address)?,
    }
    Ok(socket)
}
