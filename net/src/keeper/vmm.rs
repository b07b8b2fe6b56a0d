//! The VMM as its keeper sees it: a process that is alive or not, and a socket on which it says nothing but that it
//! stops.
//!
//! Alive is what the kernel says of the process. A VMM that its guest has taken over may close the socket and run on,
//! so a closed socket is only a wish to stop; and one that speaks breaks the rule, and is ended.
#![allow(unsafe_code)] // Received descriptors come as numbers.

use std::io::{self, ErrorKind, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::PollTimeout;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The one message that the keeper takes: the descriptor of the process to watch comes along.
const ENTRUST: &[u8] = b"vmm";

/// How long a process may take to end once it was killed.
const KILL_TIMEOUT_MS: u16 = 2_000;

/// How a VMM has ended for its keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The process is gone.
    Died,
    /// It has closed its end of the socket, and lives.
    Stopped,
    /// It has sent something.
    Violated,
}

/// A VMM.
pub(super) struct Vmm<'a> {
    socket: AsyncFd<BorrowedFd<'a>>,
    /// The process: that which forked the keeper, until it names another.
    process: AsyncFd<OwnedFd>,
    entrusted: bool,
}

/// Names the process that the keeper at the other end of `socket` is to watch. Once, from the process that forked it.
pub(super) fn entrust(socket: BorrowedFd<'_>, process: BorrowedFd<'_>) -> io::Result<()> {
    let (text, fds) = ([io::IoSlice::new(ENTRUST)], [process.as_raw_fd()]);
    let rights = [ControlMessage::ScmRights(&fds)];
    match sendmsg::<UnixAddr>(socket.as_raw_fd(), &text, &rights, MsgFlags::MSG_NOSIGNAL, None) {
        // A keeper that has ended has said why, and the VMM reads it.
        Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
        result => Ok(result.map(drop)?),
    }
}

impl<'a> Vmm<'a> {
    /// The VMM behind `socket`, whose process is `process`.
    ///
    /// # Errors
    /// If the host cannot wait for it.
    pub(super) fn new(socket: &'a OwnedFd, process: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: watched(socket.as_fd())?, process: watched(process)?, entrusted: false })
    }

    /// Waits until it has ended, in one way or another.
    pub(super) async fn ended(&mut self) -> Ending {
        loop {
            tokio::select! {
                biased;
                // An error is no sign of life, either.
                _ = self.process.readable() => return Ending::Died,
                ready = self.socket.readable() => match ready {
                    Err(_) => return Ending::Stopped,
                    Ok(mut ready) => match receive(*ready.get_inner()) {
                        Err(error) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
                        Err(_) => return Ending::Stopped,
                        Ok(Received::End) => return Ending::Stopped,
                        Ok(Received::Process(process)) if !self.entrusted => {
                            self.entrusted = true;
                            match watched(process) {
                                Ok(process) => self.process = process,
                                Err(error) => log::error!("The keeper cannot watch the VMM: {error}"),
                            }
                        }
                        Ok(Received::Process(_) | Received::Other) => return Ending::Violated,
                    },
                },
            }
        }
    }

    /// Ends the process.
    pub(super) fn kill(&self) {
        let process = self.process.get_ref().as_fd();
        let killed = jail::pidfd::signal(process, Signal::SIGKILL);
        if !matches!(killed, Ok(()) | Err(Errno::ESRCH))
            || jail::pidfd::has_ended(process, PollTimeout::from(KILL_TIMEOUT_MS)) != Ok(true)
        {
            log::error!("The VMM does not end: its taps are down");
        }
    }
}

/// A descriptor that the runtime watches for being readable.
fn watched<T: AsRawFd>(fd: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: both types that this is called for give the same open descriptor for as long as they live.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
}

/// Arrivals on the socket.
enum Received {
    End,
    Process(OwnedFd),
    Other,
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Received> {
    let mut text = [0; 16];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut slices = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        let ControlMessageOwned::ScmRights(numbers) = part else { continue };
        for number in numbers {
            // SAFETY: the kernel has just put this descriptor into our table and no other code knows its number.
            fds.push(unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
    let bytes = message.bytes;
    Ok(match (&text[..bytes], fds.pop()) {
        ([], None) => Received::End,
        (ENTRUST, Some(process)) => Received::Process(process),
        _ => Received::Other,
    })
}
