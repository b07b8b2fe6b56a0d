//! The keeper: a small process that makes the cards' network, looks after it and takes it away.
//!
//! [`Keeper::start`] forks it and returns at once, so that KVM and the network are set up side by side.
//! [`Keeper::ports`] waits for the descriptors. From then on the keeper holds no descriptor of a tap and reads nothing
//! that a guest can write; it sleeps until a tap loses its bridge or the VMM ends. However the VMM ends, the kernel
//! closes its end of the socket, and the keeper undoes every step. If the keeper is killed, the taps still go with the
//! VMM; a bridge that minivmm made stays, and goes with the next VM on it.

mod child;
mod process;
mod watch;
mod wire;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{self, AddressFamily, Shutdown, SockFlag, SockType};
use nix::sys::time::TimeVal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::error::Error;
use crate::mac::MacAddr;
use crate::spec::NetSpec;
pub use wire::{PATIENCE_S, Timing};
use wire::{PortHeader, Reply};

/// The cards of a VM.
#[derive(Clone, Debug)]
pub struct Request {
    /// The VM's name. Addresses that are not given are derived from it.
    pub vm_name: String,
    /// One spec for each card.
    pub cards: Vec<NetSpec>,
}

/// A card's way to the host's network, ready for frames.
#[derive(Debug)]
#[non_exhaustive]
pub struct Port {
    /// The interface on the host.
    pub tap_name: String,
    /// The bridge it is on, if minivmm put it there.
    pub bridge: Option<String>,
    /// One tap descriptor for each queue pair: non-blocking, with 12-byte virtio-net headers. With one queue pair the
    /// tap is a single-queue device, on which `TUNSETQUEUE` fails.
    pub fds: Vec<OwnedFd>,
    /// The guest's address.
    pub mac: MacAddr,
    /// The MTU to tell the guest, in bytes.
    pub mtu: u16,
}

/// The VMM's side of the keeper.
#[derive(Debug)]
pub struct Keeper {
    /// None for a VM without cards, which needs no keeper.
    process: Option<Process>,
}

#[derive(Debug)]
struct Process {
    pid: Pid,
    socket: OwnedFd,
}

impl Keeper {
    /// Forks the keeper, which begins at once. Without cards nothing is forked.
    ///
    /// The child inherits the logger, and nothing else of the process but stderr and the descriptors that `fd=` names.
    ///
    /// # Errors
    /// The process has more than one thread, or no room for a socket or a process.
    pub fn start(request: &Request) -> Result<Self, Error> {
        if request.cards.is_empty() {
            return Ok(Self { process: None });
        }
        let (ours, theirs) = socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|errno| Error::Socket(errno.into()))?;
        let patience = TimeVal::new(PATIENCE_S, 0);
        socket::setsockopt(&ours, socket::sockopt::ReceiveTimeout, &patience)
            .map_err(|errno| Error::Socket(errno.into()))?;
        // In the child `ours` is closed by number, together with everything else that it does not need.
        let pid = process::spawn(|| match theirs.try_clone() {
            Ok(theirs) => child::run(theirs, request),
            Err(_) => 1,
        })?;
        Ok(Self { process: Some(Process { pid, socket: ours }) })
    }

    /// Waits until every card is ready and returns the cards in the order of the request. To be called once.
    ///
    /// # Errors
    /// What the keeper refuses or fails at; it has then undone everything.
    pub fn ports(&mut self) -> Result<Vec<Port>, Error> {
        self.ports_timed().map(|(ports, _)| ports)
    }

    /// [`Keeper::ports`], with the time that the keeper took.
    ///
    /// # Errors
    /// As [`Keeper::ports`].
    pub fn ports_timed(&mut self) -> Result<(Vec<Port>, Timing), Error> {
        let mut ports = Vec::new();
        let Some(process) = &self.process else { return Ok((ports, Timing::default())) };
        loop {
            let (reply, fds) = Reply::receive(process.socket.as_fd())?.ok_or(Error::Gone)?;
            match reply {
                Reply::Port(PortHeader { tap_name, bridge, mac, mtu }) => {
                    ports.push(Port { tap_name, bridge, fds, mac, mtu });
                }
                Reply::Ready(timing) => return Ok((ports, timing)),
                Reply::Failed(report) => return Err(Error::Keeper(report)),
                Reply::Stopped(_) => return Err(Error::Protocol),
            }
        }
    }

    /// The keeper's end: becomes readable when it has died, which is worth a warning and nothing else. None without
    /// cards.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.process.as_ref().map(|process| process.socket.as_fd())
    }

    /// Has everything undone and waits for it. Close the ports first: a tap that is still open is removed under its
    /// owner.
    ///
    /// # Errors
    /// All that could not be undone.
    pub fn stop(mut self) -> Result<(), Error> {
        match self.process.take() {
            Some(process) => process.stop(),
            None => Ok(()),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(process) = self.process.take()
            && let Err(error) = process.stop()
        {
            log::error!("{}", error.report().message);
        }
    }
}

impl Process {
    fn stop(self) -> Result<(), Error> {
        let result = self.await_stopped();
        // Both ends are closed or idle by now; an error here means that somebody else has reaped it.
        drop(self.socket);
        let _ = waitpid(self.pid, None);
        result
    }

    fn await_stopped(&self) -> Result<(), Error> {
        socket::shutdown(self.socket.as_raw_fd(), Shutdown::Write).map_err(|errno| Error::Talk(errno.into()))?;
        loop {
            match Reply::receive(self.socket.as_fd())? {
                Some((Reply::Stopped(reports), _)) if reports.is_empty() => return Ok(()),
                Some((Reply::Stopped(reports), _)) => return Err(Error::Teardown(reports)),
                // The set-up failed, and the one who asked for the ports knows.
                Some((Reply::Failed(_), _)) => return Ok(()),
                // Ports that nobody asked for are closed here.
                Some((Reply::Port(_) | Reply::Ready(_), _)) => {}
                None => return Ok(()),
            }
        }
    }
}

impl Request {
    /// The descriptors that the cards name.
    fn inherited_fds(&self) -> Vec<RawFd> {
        let fds = self.cards.iter().filter_map(|card| match card {
            NetSpec::Fd(spec) => Some(spec.fd.as_slice()),
            _ => None,
        });
        fds.flatten().copied().collect()
    }
}
