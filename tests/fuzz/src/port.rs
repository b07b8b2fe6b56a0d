//! A port over a socket pair, and the host's failures.

use devices::virtio::iovec::IoVecs;
use devices::virtio::net::{FramePort, Offloads};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An operation on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Hand out a frame.
    Receive,
    /// Take a frame.
    Transmit,
    /// Change offloads.
    Offloads,
    /// Attach or detach.
    Attach,
    /// Change the length of the header.
    Header,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Receive, Self::Transmit, Self::Offloads, Self::Attach, Self::Header];
}

/// A host's answers, besides success.
const ERRORS: [i32; 8] = [
    libc::EIO,
    libc::ENOBUFS,
    libc::EINVAL,
    libc::ENOMEM,
    libc::EBADFD,
    libc::EPERM,
    libc::EMSGSIZE,
    // Transmit only: a queue that is empty says so, and then tells when it is not.
    libc::EAGAIN,
];

struct State {
    attached: bool,
    offloads: Offloads,
    header_len: usize,
    /// The next failures of each operation.
    failures: [VecDeque<i32>; Operation::ALL.len()],
    /// The last frame found no room.
    full: bool,
}

/// A queue of an interface that exists only here.
pub struct Port {
    socket: UnixDatagram,
    state: Mutex<State>,
}

impl Port {
    /// A port and the wire at its other end. Neither blocks.
    pub fn new() -> (Arc<Self>, UnixDatagram) {
        let (socket, wire) = UnixDatagram::pair().expect("there are descriptors left");
        for end in [&socket, &wire] {
            end.set_nonblocking(true).expect("a socket can be told not to block");
        }
        let state = State { attached: true, offloads: Offloads::NONE, header_len: 0, failures: Default::default(), full: false };
        (Arc::new(Self { socket, state: Mutex::new(state) }), wire)
    }

    /// Lets `operation` fail the next `times` times with the error that `kind` stands for.
    pub fn fail(&self, operation: Operation, kind: u8, times: u8) {
        let kinds = if operation == Operation::Transmit { ERRORS.len() } else { ERRORS.len() - 1 };
        let error = ERRORS[usize::from(kind) % kinds];
        self.lock().failures[operation as usize].extend((0..times % 8).map(|_| error));
    }

    /// The host works again.
    pub fn heal(&self) {
        self.lock().failures = Default::default();
    }

    /// Drops what waits to be received.
    pub fn forget_frames(&self) {
        while self.socket.recv(&mut [0; 1]).is_ok() {}
    }

    /// Returns whether the interface uses this queue.
    pub fn attached(&self) -> bool {
        self.lock().attached
    }

    /// Which frames it may hand out.
    pub fn offloads(&self) -> Offloads {
        self.lock().offloads
    }

    /// Bytes of the header in front of each frame.
    pub fn header_len(&self) -> usize {
        self.lock().header_len
    }

    /// Returns whether the last frame found no room.
    pub fn full(&self) -> bool {
        self.lock().full
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self, operation: Operation) -> io::Result<()> {
        self.lock().failures[operation as usize]
            .pop_front()
            .map_or(Ok(()), |error| Err(io::Error::from_raw_os_error(error)))
    }

    /// As a tap's queue that is detached.
    fn usable(&self) -> io::Result<()> {
        if self.attached() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EBADFD)) }
    }
}

/// The kernel says EFAULT where it was sent outside of guest memory.
fn inside(result: io::Result<usize>) -> io::Result<usize> {
    let outside = result.as_ref().err().and_then(io::Error::raw_os_error) == Some(libc::EFAULT);
    assert!(!outside, "a frame's pieces are not in guest memory");
    result
}

impl FramePort for Port {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn receive(&self, into: &mut IoVecs, spill: &mut [u8]) -> io::Result<usize> {
        self.usable()?;
        self.failure(Operation::Receive)?;
        inside(into.readv_spilling(self.socket.as_fd(), spill))
    }

    fn transmit(&self, frame: &IoVecs) -> io::Result<usize> {
        self.usable()?;
        let result = self.failure(Operation::Transmit).and_then(|()| inside(frame.writev(self.socket.as_fd())));
        self.lock().full = result.as_ref().is_err_and(|err| err.kind() == io::ErrorKind::WouldBlock);
        result
    }

    fn probe_offloads(&self) -> Offloads {
        Offloads::CANDIDATES[0]
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.failure(Operation::Offloads)?;
        // As tun_set_offload of the kernel.
        let ok = offloads.has(Offloads::CSUM) || offloads == Offloads::NONE;
        assert!(ok, "the kernel refuses offloads without checksums: {offloads:?}");
        self.lock().offloads = offloads;
        Ok(())
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        self.failure(Operation::Attach)?;
        self.lock().attached = attached;
        Ok(())
    }

    fn set_header_len(&self, bytes: usize) -> io::Result<()> {
        self.failure(Operation::Header)?;
        self.lock().header_len = bytes;
        Ok(())
    }

    fn set_steering(&self, _program: Option<BorrowedFd>) -> io::Result<()> {
        unreachable!("a card without a program attaches and detaches none");
    }
}
