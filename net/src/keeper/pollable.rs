//! Descriptors that the event loop can wait for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::net::UnixStream;

/// A duplicate of the socket that tokio can wait for. tokio only asks for readiness, which does not differ by socket
/// type.
pub(super) fn pollable(socket: &OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(socket.try_clone()?);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
