//! One question to a resolver over TCP (RFC 7766), non-blocking.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use super::frame::be16;

/// Octets of a message and the length before it.
const MESSAGE_MAX_BYTES: usize = 2 + u16::MAX as usize;

/// Octets that are read at a time.
const CHUNK_BYTES: usize = 4096;

/// A connection that carries one question and its answer.
pub(super) struct Exchange {
    stream: TcpStream,
    unsent: Vec<u8>,
    received: Vec<u8>,
}

impl Exchange {
    /// Begins to ask `server`.
    pub(super) fn start(server: SocketAddr, message: &[u8]) -> io::Result<Self> {
        let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(family, SockType::Stream, flags, None)?;
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(server)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(errno.into()),
        }
        let len = u16::try_from(message.len()).map_err(|_| ErrorKind::InvalidInput)?;
        let unsent = [&len.to_be_bytes(), message].concat();
        Ok(Self { stream: socket.into(), unsent, received: Vec::new() })
    }

    /// The poll(2) event that it waits for.
    pub(super) fn wants(&self) -> PollFlags {
        if self.unsent.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLOUT }
    }

    /// Sends and receives as far as possible without blocking. Returns the answer once it is whole.
    pub(super) fn go_on(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.try_go_on() {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            result => result,
        }
    }

    fn try_go_on(&mut self) -> io::Result<Option<Vec<u8>>> {
        while !self.unsent.is_empty() {
            let sent = self.stream.write(&self.unsent)?;
            self.unsent.drain(..sent);
        }
        let mut chunk = [0; CHUNK_BYTES];
        while self.received.len() < MESSAGE_MAX_BYTES {
            let len = self.stream.read(&mut chunk)?;
            if len == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            self.received.extend(chunk.get(..len).unwrap_or(&chunk));
            if let Some(message) = self.whole() {
                return Ok(Some(message));
            }
        }
        Err(ErrorKind::InvalidData.into())
    }

    fn whole(&self) -> Option<Vec<u8>> {
        let len = usize::from(be16(&self.received, 0)?);
        self.received.get(2..2 + len).map(<[u8]>::to_vec)
    }
}

impl AsFd for Exchange {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn answer_comes_in_parts() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut exchange = Exchange::start(listener.local_addr().unwrap(), b"why?").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        assert_eq!(exchange.wants(), PollFlags::POLLOUT);
        assert_eq!(exchange.go_on().unwrap(), None);
        assert_eq!(exchange.wants(), PollFlags::POLLIN);
        let mut question = [0; 6];
        server.read_exact(&mut question).unwrap();
        assert_eq!(&question, b"\0\x04why?");
        let answer = |exchange: &mut Exchange| loop {
            if let Some(answer) = exchange.go_on().unwrap() {
                return answer;
            }
        };
        server.write_all(b"\0\x08be").unwrap();
        assert_eq!(exchange.go_on().unwrap(), None);
        server.write_all(b"cause.").unwrap();
        assert_eq!(answer(&mut exchange), b"because.");
    }

    #[test]
    fn server_that_hangs_up_is_a_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut exchange = Exchange::start(listener.local_addr().unwrap(), b"why?").unwrap();
        drop(listener.accept().unwrap());
        drop(listener);
        let result = loop {
            match exchange.go_on() {
                Ok(None) => {}
                result => break result,
            }
        };
        assert!(result.is_err());
    }
}
