//! The keeper: a small process that applies a plan, looks after it and undoes it. Knows every room but those that only
//! read the host.
//!
//! [`Keeper::start`] forks it and returns at once, so that KVM and the network are set up side by side.
//! [`Keeper::ports`] waits for the descriptors. From then on the keeper holds no descriptor of a tap. Of frames it
//! reads only claims of addresses: the guest's own by duplicate address detection, and those of others by ARP and
//! neighbour discovery. It sleeps until something happens to a tap or the VMM ends. However the VMM ends, the kernel
//! closes its end of the socket, and the keeper undoes every step. If the keeper is killed, taps and nftables still
//! last as long as the VMM, which has descriptors of them, and go with it; a bridge that minivmm made stays, and goes
//! with the next VM on it.

mod addresses;
mod conflict;
mod firewall;
mod gateways;
mod hand_over;
mod links;
mod messages;
mod mirrors;
mod mtu;
mod pace;
mod policy_socket;
mod pollable;
mod process;
mod rest;
mod serve;
mod set_up;
mod upkeep;
mod uplinks;
mod vmm;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, Shutdown, SockFlag, SockType};
use nix::sys::time::TimeVal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::address_listener::AddressListener;
use crate::error::{Error, KeeperError};
use crate::identity::alias::TapAlias;
use crate::identity::mac::MacAddr;
use crate::identity::runtime_dir::NameLock;
use crate::kernel::bpf::Steering;
use crate::kernel::link::LinkState;
use crate::request::Request;
use crate::services::ServiceSpec;
use crate::spec::OffloadList;
use messages::{PortHeader, Reply, ServiceHeader};
pub use messages::{REPLY_TIMEOUT_S, Timing};
use serve::Assignment;

/// Timeout for the keeper's undo, in seconds. Eight cards take 0.2 s; waiting for the lock of other keepers adds up to
/// twenty seconds. A keeper that is left behind goes on undoing.
const STOP_TIMEOUT_S: i64 = 25;

/// Timeout for the exit of a keeper that has nothing left to do.
const EXIT_TIMEOUT: Duration = Duration::from_secs(3);

/// Pauses between two polls for the exit. The keeper usually exits within the first.
const FIRST_PAUSE: Duration = Duration::from_micros(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

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
    /// With `vhost=on` an instance of the kernel's vhost-net for each queue pair, without an owner yet; otherwise none.
    pub vhost: Vec<OwnedFd>,
    /// Listener for the guest's address. None with services, which assign the address, and none where the tap cannot be
    /// listened on: in another namespace, or without CAP_NET_RAW.
    pub address_listener: Option<AddressListener>,
    /// The chains of other programs that have rules for the card as long as the VM runs: `ip filter DOCKER-USER`.
    pub foreign_rules: Vec<String>,
    /// Claim that marks a macvtap as in use. Hold it for as long as the queues.
    pub claim: Option<OwnedFd>,
    /// The guest's address.
    pub mac: MacAddr,
    /// The MTU to tell the guest, in bytes.
    pub mtu: u16,
    /// Offloads that may be left to the tap, as far as it supports them.
    pub offload: OffloadList,
    /// Steering program that can choose between the queues, loaded for this card alone. None with one queue, or if the
    /// kernel refused it.
    pub steering: Option<Steering>,
    /// The services of a minivmm network, which the VMM runs; none on other networks.
    pub services: Option<Services>,
}

/// DHCP and DNS for a card, ready to run (see [`crate::services::run`]).
#[derive(Debug)]
pub struct Services {
    /// The configuration that they announce.
    pub spec: ServiceSpec,
    /// The card and its network.
    pub tap: TapAlias,
    /// Socket on which they receive the guest's requests and answer.
    pub socket: OwnedFd,
}

/// Events that the keeper reports while the VM runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A card's link has changed to this state.
    Link {
        /// The card, by its place in the request.
        card: usize,
        /// The link.
        state: LinkState,
    },
    /// Other machines have used addresses of a card's guest; the counts are totals.
    Conflicts {
        /// The card, by its place in the request.
        card: usize,
        /// With its MAC address.
        macs: u64,
        /// With an IP address of it.
        addresses: u64,
    },
    /// The MTU of a card's network has changed: its services should announce this one.
    Mtu {
        /// The card, by its place in the request.
        card: usize,
        /// The MTU in bytes.
        mtu: u16,
    },
    /// All promises that cannot be kept at present. Each is in the log as well.
    NotKept(Vec<NotKept>),
    /// The keeper has ended, or sent a message that cannot be parsed: no tap is re-attached and no link reported from
    /// now on.
    Ended,
}

/// A promise of the plan about a card that the keeper cannot keep at present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotKept {
    /// The card, by its place in the request.
    pub card: usize,
    /// The promise that is not kept, as a sentence.
    pub text: String,
}

/// Code of the VMM that the keeper calls in its own process.
#[derive(Clone, Copy)]
pub struct Callbacks<'a> {
    /// Called when the keeper has been idle for a while: releases memory that an idle process does without, such as
    /// pages of code.
    pub release_memory: fn(),
    /// Called once the network is made, and before the keeper gives up capabilities: gives up what it does not need to
    /// look after a network and to undo it.
    pub confine: &'a dyn Fn(),
}

/// The VMM's side of the keeper.
#[derive(Debug)]
pub struct Keeper {
    /// None for a VM without cards and a name, which needs no keeper.
    process: Option<Process>,
}

#[derive(Debug)]
struct Process {
    pid: Pid,
    /// It has cards to look after, and not only a name.
    has_cards: bool,
    socket: OwnedFd,
    /// Descriptor that keeps the VM's nftables alive without the keeper, if the VM has some.
    tables: Option<OwnedFd>,
}

impl Keeper {
    /// Forks the keeper, which starts at once. Without cards and a lock it forks nothing.
    ///
    /// The child inherits only the logger, stderr and the descriptors that `fd=` names.
    ///
    /// # Errors
    /// The process has more than one thread, or no room for a socket or a process.
    pub fn start(request: &Request) -> Result<Self, Error> {
        Self::launch(request, None, &Callbacks { release_memory: || {}, confine: &|| {} })
    }

    /// [`Keeper::start`], with a descriptor of the lock of the VM's name ([`NameLock`]). The keeper holds it until it
    /// has undone everything, so that the name stays taken while anything of its network is left, however the VMM
    /// ended.
    ///
    /// # Errors
    /// As [`Keeper::start`].
    pub fn start_holding(request: &Request, lock: &NameLock, callbacks: &Callbacks<'_>) -> Result<Self, Error> {
        Self::launch(request, Some(lock), callbacks)
    }

    fn launch(request: &Request, lock: Option<&NameLock>, callbacks: &Callbacks<'_>) -> Result<Self, Error> {
        if request.cards.is_empty() && lock.is_none() {
            return Ok(Self { process: None });
        }
        let vmm = jail::pidfd::open(Pid::this()).map_err(KeeperError::Socket)?;
        let (ours, theirs) = socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|errno| KeeperError::Socket(errno.into()))?;
        let timeout = TimeVal::new(REPLY_TIMEOUT_S, 0);
        socket::setsockopt(&ours, socket::sockopt::ReceiveTimeout, &timeout)
            .map_err(|errno| KeeperError::Socket(errno.into()))?;
        // In the child `ours` is closed by number, together with everything else that it does not need.
        let pid = process::spawn(|| match (theirs.try_clone(), vmm.try_clone()) {
            (Ok(theirs), Ok(vmm)) => {
                let lock = lock.map(NameLock::as_fd);
                serve::run(theirs, vmm, lock, &Assignment { request, callbacks })
            }
            _ => 1,
        })?;
        // The keeper removes the files of the name when it has undone everything.
        if let Some(lock) = lock {
            lock.leave();
        }
        Ok(Self { process: Some(Process { pid, has_cards: !request.cards.is_empty(), socket: ours, tables: None }) })
    }

    /// Tells the keeper that `vmm`, a descriptor of a process, is the VMM, and not the process that calls this. Once,
    /// from the process that started the keeper.
    ///
    /// # Errors
    /// The host refuses to send it.
    pub fn entrust(&self, vmm: BorrowedFd<'_>) -> io::Result<()> {
        self.process.as_ref().map_or(Ok(()), |process| vmm::entrust(process.socket.as_fd(), vmm))
    }

    /// A descriptor of the keeper's process, for the process that started it; none if there is no keeper, or it has
    /// ended.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn pidfd(&self) -> io::Result<Option<OwnedFd>> {
        let Some(process) = &self.process else { return Ok(None) };
        match jail::pidfd::open(process.pid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Waits until every card is ready and returns the cards in the order of the request. Call it once.
    ///
    /// # Errors
    /// The keeper refuses the request or fails; it has then undone everything.
    pub fn ports(&mut self) -> Result<Vec<Port>, Error> {
        self.ports_timed().map(|(ports, _)| ports)
    }

    /// [`Keeper::ports`], with the time that the keeper took.
    ///
    /// # Errors
    /// As [`Keeper::ports`].
    pub fn ports_timed(&mut self) -> Result<(Vec<Port>, Timing), Error> {
        let mut ports = Vec::new();
        let Some(process) = self.process.as_mut().filter(|process| process.has_cards) else {
            return Ok((ports, Timing::default()));
        };
        loop {
            let (reply, mut fds) = Reply::receive(process.socket.as_fd())?.ok_or(KeeperError::Gone)?;
            match reply {
                Reply::Port(header) => ports.push(port(*header, fds)?),
                Reply::Ready(timing) => {
                    process.tables = fds.pop();
                    return Ok((ports, timing));
                }
                Reply::Failed(report) => return Err(Error::Reported(report)),
                Reply::Link { .. }
                | Reply::Conflicts { .. }
                | Reply::Mtu { .. }
                | Reply::NotKept(_)
                | Reply::Stopped(_) => return Err(KeeperError::Protocol.into()),
            }
        }
    }

    /// The descriptor that keeps the VM's nftables alive, for another process to hold as well.
    pub fn tables(&self) -> Option<BorrowedFd<'_>> {
        self.process.as_ref().and_then(|process| process.tables.as_ref()).map(AsFd::as_fd)
    }

    /// The socket to the keeper, which becomes readable when there are [`news`](Self::news). None without cards.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.process.as_ref().filter(|process| process.has_cards).map(|process| process.socket.as_fd())
    }

    /// The keeper's next event, if there is one. Call it after [`ports`](Self::ports), when the socket is readable.
    ///
    /// The first event of a card comes soon after its port; until then assume that its link is up.
    pub fn news(&self) -> Option<News> {
        match Reply::try_receive(self.socket()?) {
            Ok(Some((Reply::Link { card, state }, _))) => Some(News::Link { card, state }),
            Ok(Some((Reply::Conflicts { card, macs, addresses }, _))) => {
                Some(News::Conflicts { card, macs, addresses })
            }
            Ok(Some((Reply::Mtu { card, mtu }, _))) => Some(News::Mtu { card, mtu }),
            Ok(Some((Reply::NotKept(promises), _))) => Some(News::NotKept(promises)),
            Err(KeeperError::Silent { .. }) => None,
            Ok(_) | Err(_) => Some(News::Ended),
        }
    }

    /// Tells the keeper to undo everything and waits for it. Close the ports first: a tap that is still open is removed
    /// under its owner.
    ///
    /// # Errors
    /// Everything that could not be undone.
    pub fn stop(mut self) -> Result<(), Error> {
        match self.process.take() {
            Some(process) => process.stop(),
            None => Ok(()),
        }
    }
}

/// Builds a port from the keeper's header and the descriptors that came with it.
fn port(header: PortHeader, mut fds: Vec<OwnedFd>) -> Result<Port, Error> {
    let PortHeader {
        tap_name,
        bridge,
        mac,
        mtu,
        offload,
        foreign_rules,
        queues,
        vhosts,
        address_listeners,
        claims,
        service,
    } = header;
    if queues.saturating_add(vhosts).saturating_add(address_listeners).saturating_add(claims) > fds.len() {
        return Err(KeeperError::Protocol.into());
    }
    let mut vhost = fds.split_off(queues);
    let mut address_listener = vhost.split_off(vhosts);
    let mut claim = address_listener.split_off(address_listeners);
    let mut rest = claim.split_off(claims);
    let (claim, address_listener) = (claim.pop(), address_listener.pop().map(AddressListener::from_socket));
    let services = match service {
        Some(ServiceHeader { spec, alias }) if !rest.is_empty() => {
            let tap = TapAlias::parse(&alias).ok_or(KeeperError::Protocol)?;
            Some(Services { spec, tap, socket: rest.remove(0) })
        }
        Some(_) => return Err(KeeperError::Protocol.into()),
        None => None,
    };
    let steering = match <[OwnedFd; 2]>::try_from(rest) {
        Ok([program, map]) => Some(Steering { program, map }),
        Err(rest) if rest.is_empty() => None,
        Err(_) => return Err(KeeperError::Protocol.into()),
    };
    Ok(Port {
        tap_name,
        bridge,
        fds,
        vhost,
        address_listener,
        foreign_rules,
        claim,
        mac,
        mtu,
        offload,
        steering,
        services,
    })
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
        drop(self.socket);
        if !reaped(self.pid, EXIT_TIMEOUT) {
            log::warn!(
                "The network keeper (process {}) does not end and is left behind: it is stuck in the kernel",
                self.pid
            );
        }
        result
    }

    fn await_stopped(&self) -> Result<(), Error> {
        let timeout = TimeVal::new(STOP_TIMEOUT_S, 0);
        socket::setsockopt(&self.socket, socket::sockopt::ReceiveTimeout, &timeout)
            .map_err(|errno| KeeperError::Exchange(errno.into()))?;
        socket::shutdown(self.socket.as_raw_fd(), Shutdown::Write)
            .map_err(|errno| KeeperError::Exchange(errno.into()))?;
        loop {
            let reply = Reply::receive(self.socket.as_fd()).map_err(|error| match error {
                KeeperError::Silent { .. } => KeeperError::Silent { seconds: STOP_TIMEOUT_S },
                error => error,
            })?;
            match reply {
                Some((Reply::Stopped(reports), _)) if reports.is_empty() => return Ok(()),
                Some((Reply::Stopped(reports), _)) => return Err(Error::Teardown(reports)),
                // The set-up failed, which `ports` has reported.
                Some((Reply::Failed(_), _)) => return Ok(()),
                // Also ports that were never received, which are closed here.
                Some(_) => {}
                None => return Ok(()),
            }
        }
    }
}

/// Waits at most `timeout` for the child `pid` to exit, and reaps it. Returns false on timeout.
fn reaped(pid: Pid, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    let mut pause = FIRST_PAUSE;
    // An error means that other code has reaped it.
    while waitpid(pid, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive) {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(pause);
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn sleeper(seconds: &str) -> (std::process::Child, Pid) {
        let child = Command::new("sleep").arg(seconds).spawn().unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        (child, pid)
    }

    #[test]
    fn child_that_ends_is_reaped() {
        let (_child, pid) = sleeper("0");

        assert!(reaped(pid, Duration::from_secs(30)));
    }

    #[test]
    fn child_that_does_not_end_is_left() {
        let (mut child, pid) = sleeper("3600");

        assert!(!reaped(pid, Duration::from_millis(5)));

        child.kill().unwrap();
        child.wait().unwrap();
    }
}
