//! Reserves the host's ports that lead to a guest: a taken port is reported before the VM starts, and no other program
//! gets a reserved one while the VM runs.
//!
//! Packets to them are translated before they could reach these sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};

use crate::spec::{Forward, Protocol, Switch};

/// Why a port of the host cannot be reserved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    /// Another socket has it.
    #[error("Cannot reserve {} port {port}: another socket has it", .protocol.name())]
    Taken {
        /// Its protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
    },
    /// The host does not have the address.
    #[error("{address} is not an address of this host")]
    NotOurAddress {
        /// The address.
        address: Ipv4Addr,
    },
    /// Anything else.
    #[error("Cannot reserve {} port {port}", .protocol.name())]
    Socket {
        /// Its protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
        /// The kernel's error.
        source: io::Error,
    },
}

/// Takes every port of the host that these name. With `ipv6`, a port of all addresses is taken for IPv6 as well.
pub(crate) fn reserve(forwards: &[Forward], ipv6: Switch) -> Result<Vec<OwnedFd>, PortError> {
    let ports = forwards.iter().flat_map(|forward| forward.pairs().map(|(port, _)| (*forward, port)));
    let each = ports.flat_map(|(forward, port)| {
        let also6 = forward.address.is_none() && ipv6 == Switch::On;
        let ip4 = forward.address.unwrap_or(Ipv4Addr::UNSPECIFIED).into();
        [Some(ip4), also6.then_some(Ipv6Addr::UNSPECIFIED.into())]
            .into_iter()
            .flatten()
            .map(move |ip| (forward, ip, port))
    });
    each.map(|(forward, ip, port)| reserve_one(forward, ip, port)).collect()
}

fn reserve_one(forward: Forward, ip: IpAddr, port: u16) -> Result<OwnedFd, PortError> {
    let Forward { protocol, address, .. } = forward;
    take(protocol, SocketAddr::new(ip, port)).map_err(|source| match source.raw_os_error() {
        Some(libc::EADDRINUSE) => PortError::Taken { protocol, port },
        Some(libc::EADDRNOTAVAIL) => match address {
            Some(address) => PortError::NotOurAddress { address },
            None => PortError::Socket { protocol, port, source },
        },
        _ => PortError::Socket { protocol, port, source },
    })
}

fn take(protocol: Protocol, address: SocketAddr) -> io::Result<OwnedFd> {
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let ipv4 = address.is_ipv4();
    let family = if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if !ipv4 {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    let address = SockaddrStorage::from(address);
    match protocol {
        Protocol::Tcp => {
            // Connections of a server that has ended linger for a minute and do not stand in the way. Listening still
            // makes the port ours alone.
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            bind(socket.as_raw_fd(), &address)?;
            if ipv4 {
                listen(&socket, Backlog::new(1)?)?;
            } else {
                // A client of ::1, which leads nowhere, must be refused at once, so that it tries 127.0.0.1. No socket
                // can listen beside one that does not share its port.
                setsockopt(&socket, sockopt::ReuseAddr, &false)?;
            }
        }
        Protocol::Udp => bind(socket.as_raw_fd(), &address)?,
    }
    Ok(socket)
}
