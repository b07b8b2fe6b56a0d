//! The process that takes packets of guests apart: DHCP, DNS and router advertisements for networks of ours, and the
//! first address of guests on others.
//!
//! ```text
//! supervisor --fork--> services <--sockets, MTUs--- VMM      (the VMM has the sockets until the guest runs)
//!                          '------leases, addresses-->'
//! ```
//!
//! It is forked before there is a VMM, so that it has nothing of the guest's: no memory, no tap. It has a user of its
//! own, and of the file system what names the host's resolvers. Its counters are in memory that it shares with the VMM.
//! It ends with the VMM. If it ends before, the VM runs on, and its guest keeps the address that it has.

mod messages;
mod process;
mod shared;

use crate::error::Error;
use messages::{FromServices, ToServices};
use net::Port;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;
use serde_json::{Map, Value};
use shared::Shared;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(crate) use process::fork;

/// The VMM's end of the services.
pub(crate) struct Services {
    /// None without cards, and once the process has ended.
    link: Option<OwnedFd>,
    shared: Shared,
}

/// An event of a card, by its place on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Its guest has this address.
    Address(usize, IpAddr),
    /// The process has ended.
    Ended,
}

impl Services {
    /// Hands over the sockets of every port that has some. The process may begin: it needs no privilege for them.
    /// `tables` keeps the VM's nftables alive as long as it lives.
    ///
    /// # Errors
    /// If the process has ended.
    pub(crate) fn begin(&self, ports: &mut [Port], tables: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        for (card, port) in ports.iter_mut().enumerate() {
            if let Some(services) = port.services.take() {
                let alias = services.tap.to_string();
                let message = ToServices::Serve { card, spec: Box::new(services.spec), alias };
                message.send(link.as_fd(), Some(services.socket.as_fd()))?;
            }
            if let Some(listener) = port.address_listener.take() {
                ToServices::Listen { card }.send(link.as_fd(), Some(listener.as_fd()))?;
            }
        }
        ToServices::Begin.send(link.as_fd(), tables)
    }

    /// Has those of a card tell its guest another MTU.
    pub(crate) fn tell_mtu(&self, card: usize, mtu: u16) {
        let Some(link) = &self.link else { return };
        if let Err(err) = (ToServices::Mtu { card, mtu }).send(link.as_fd(), None) {
            log::warn!("The guest behind net{card} is not told of the MTU {mtu}: {err}");
        }
    }

    /// The descriptor that is readable when there is an [`event`](Self::event).
    pub(crate) fn source(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_ref().map(AsFd::as_fd)
    }

    /// The next event, if there is one.
    pub(crate) fn event(&mut self) -> Option<Event> {
        match FromServices::receive(self.link.as_ref()?.as_fd()) {
            Ok(Some(FromServices::Address { card, ip })) => Some(Event::Address(card, ip)),
            Ok(None) => None,
            Err(_) => {
                self.link = None;
                Some(Event::Ended)
            }
        }
    }

    /// Adds what they have counted to the counters of their cards.
    pub(crate) fn add_counters(&self, devices: &mut Value) {
        for (index, card) in self.shared.served().enumerate().filter_map(|(index, card)| Some((index, card?))) {
            let Some(device) = devices.get_mut(format!("net{index}")).and_then(Value::as_object_mut) else { continue };
            let counters = card.counters.iter().map(|(name, value)| (format!("services.{name}"), value.into()));
            device.extend(counters.collect::<Map<_, _>>());
            device.insert("services.failures".to_owned(), card.failures().into());
        }
    }
}

/// Makes what the VMM and its services share, for so many cards.
fn channel(cards: usize) -> Result<(Services, OwnedFd), Error> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(Error::host("create a socket"))?;
    let shared = Shared::new(cards).map_err(Error::host("map memory for counters"))?;
    Ok((Services { link: Some(ours), shared }, theirs))
}

/// The services of a VM without cards: none.
pub(crate) fn none() -> Services {
    Services { link: None, shared: Shared::default() }
}

/// A process of services, as its parent sees it.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: Pid,
    /// A descriptor of the process.
    pub(crate) fd: OwnedFd,
}
