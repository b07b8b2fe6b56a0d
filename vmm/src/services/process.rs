//! The process of the services: one thread for each card that it serves, and one that listens for addresses.

use super::messages::{FromServices, ToServices};
use super::shared::{Card, Shared};
use super::{Child, Services};
use crate::confine::seccomp::{Filters, Thread};
use crate::confine::{self, Confinement};
use crate::error::Error;
use crate::{event, exit, own_code, process};
use net::alias::TapAlias;
use net::services::{Event, MtuSender, ServiceSpec, Setup, mtu_channel, run};
use net::{AddressListener, Siblings};
use nix::poll::{PollFd, PollFlags};
use nix::unistd::ForkResult;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

/// The process's name in `ps` and `top` (prctl(2) PR_SET_NAME).
const NAME: &std::ffi::CStr = c"services";

/// Who answers for names of the outside.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Stack of a thread in bytes: it holds a few frames, and asks the kernel for links.
const STACK_BYTES: usize = 256 << 10;

/// When the pages of start-up code can go.
const TRIM_DELAY: Duration = Duration::from_millis(500);

/// Forks the services of a VM with so many cards. Returns the VMM's end, and the process.
///
/// # Errors
/// If the host has no room for a process, memory or a descriptor.
pub(crate) fn fork(
    cards: usize,
    confinement: Confinement,
    filters: &Filters,
) -> Result<(Services, Option<Child>), Error> {
    if cards == 0 {
        return Ok((super::none(), None));
    }
    let (services, link) = super::channel(cards)?;
    match process::fork().map_err(Error::host("start a process for DHCP and DNS"))? {
        ForkResult::Parent { child } => {
            let fd = jail::pidfd::open(child).map_err(Error::host("open a descriptor of a process"))?;
            Ok((services, Some(Child { pid: child, fd })))
        }
        ForkResult::Child => {
            let shared = services.shared;
            if let Err(err) = jail::process::detach(NAME) {
                log::warn!("DHCP and DNS cannot release the VMM's stdin and stdout: {err}");
            }
            jail::process::close_all_but(&[link.as_raw_fd()]);
            let code = match serve(&link, shared, (confinement, filters)) {
                Ok(()) => 0,
                Err(err) => {
                    log::error!("The guest gets no more answers from DHCP and DNS: {err}");
                    exit::HOST
                }
            };
            exit::at_once(code)
        }
    }
}

/// The work, until the VMM closes its end or dies.
fn serve(link: &OwnedFd, shared: Shared, (confinement, filters): (Confinement, &Filters)) -> io::Result<()> {
    let (mut wanted, mut listeners) = (Vec::new(), BTreeMap::new());
    // Held until this process ends.
    let _tables = loop {
        match ToServices::receive(link.as_fd()) {
            Ok((ToServices::Serve { card, spec, alias }, Some(socket))) => wanted.push((card, spec, alias, socket)),
            Ok((ToServices::Listen { card }, Some(socket))) => {
                listeners.insert(card, AddressListener::from_socket(socket));
            }
            Ok((ToServices::Begin, tables)) => break tables,
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            // A start that has failed.
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(err) => return Err(err),
        }
    };
    confine::services(confinement).map_err(io::Error::other)?;
    filters.enter(Thread::Services);
    let mut mtus = BTreeMap::new();
    for (card, spec, alias, socket) in wanted {
        let (Some(tap), Some(own)) = (TapAlias::parse(&alias), shared.card(card)) else { continue };
        mtus.insert(card, start(card, *spec, &tap, socket, own, link)?);
    }
    let mut trim = Some(Instant::now() + TRIM_DELAY);
    loop {
        let timeout = trim.map(|at| at.saturating_duration_since(Instant::now()));
        let fds: Vec<BorrowedFd<'_>> =
            std::iter::once(link.as_fd()).chain(listeners.values().map(AsFd::as_fd)).collect();
        let mut fds: Vec<_> = fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // An error is a wake-up for nothing.
        let _ = event::poll(&mut fds, timeout);
        let ready: Vec<bool> = fds.iter().map(event::is_ready).collect();
        if ready.first() == Some(&true) {
            match ToServices::receive(link.as_fd()) {
                Ok((ToServices::Mtu { card, mtu }, None)) => tell_mtu(&mtus, card, mtu),
                // It has ended, or is not itself any more.
                _ => return Ok(()),
            }
        }
        let heard = listeners.iter().zip(ready.iter().skip(1)).filter(|(_, ready)| **ready);
        let heard: Vec<_> = heard.filter_map(|((card, listener), _)| Some((*card, listener.look()?))).collect();
        for (card, ip) in heard {
            // Nothing more is to be heard.
            listeners.remove(&card);
            FromServices::Address { card, ip }.send(link.as_fd())?;
        }
        if trim.is_some_and(|at| Instant::now() >= at) {
            own_code::release();
            trim = None;
        }
    }
}

fn tell_mtu(mtus: &BTreeMap<usize, MtuSender>, card: usize, mtu: u16) {
    let sent = mtus.get(&card).map_or(Ok(()), |sender| sender.send(mtu));
    if let Err(err) = sent {
        log::warn!("The guest behind net{card} is not told of the MTU {mtu}: {err}");
    }
}

/// Starts the services of a card. Returns where they learn of MTUs.
fn start(
    card: usize,
    spec: ServiceSpec,
    tap: &TapAlias,
    socket: OwnedFd,
    own: &'static Card,
    link: &OwnedFd,
) -> io::Result<MtuSender> {
    own.serve();
    let (sender, mtu) = mtu_channel()?;
    let names = Box::new(Siblings::of(tap));
    let setup = Setup { names, spec, socket, resolv_conf: RESOLV_CONF.into(), counters: &own.counters, mtu };
    // Never written to: they run until the process ends.
    let (stop, _stopper) = nix::unistd::pipe()?;
    let link = link.try_clone()?;
    let thread = thread::Builder::new().name(format!("net{card}-services")).stack_size(STACK_BYTES);
    thread.spawn(move || {
        let _stopper = _stopper;
        let mut on_event = |event| {
            note(card, event);
            if let Event::LeaseAcked { ip } = event
                && let Err(err) = (FromServices::Address { card, ip: ip.into() }).send(link.as_fd())
            {
                log::debug!("The VMM is not told of a lease: {err}");
            }
        };
        if let Err(err) = run(setup, stop.as_fd(), &mut on_event) {
            own.fail();
            log::error!("The guest gets no more answers from DHCP and DNS of net{card}: {err}");
        }
    })?;
    Ok(sender)
}

fn note(card: usize, event: Event) {
    match event {
        Event::LeaseDeclined { ip } => {
            log::warn!("The guest says that another host has the address {ip} of net{card}");
        }
        event => log::debug!("net{card}: {event:?}"),
    }
}
