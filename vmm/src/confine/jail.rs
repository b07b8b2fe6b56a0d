//! The VMM's jail: new namespaces, an empty root folder, and a user of its own.
//!
//! | Caller | User | Namespaces |
//! |---|---|---|
//! | root | its own, or that of `--user` | mount, network, IPC, UTS, cgroup and PID |
//! | an ordinary user | the caller's | the same inside a user namespace, where the host allows it |

use super::fences;
use super::landlock::{self, Reach};
use super::report::Report;
use super::seccomp::Filters;
use crate::error::Error;
use crate::signals::Signals;
use crate::supervisor;
use jail::{Identity, Outer, capabilities};
use net::error_chain;
use nix::unistd::geteuid;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

/// The folders that `/etc/resolv.conf` is in, or leads to.
const RESOLVER_FOLDERS: [&str; 2] = ["/etc", "/run"];

/// The port of resolvers.
const DNS_PORT: u16 = 53;

/// How far the processes of a VM are confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Confinement {
    /// As far as the host allows it; root's processes become users of their own.
    Full(Users),
    /// They give up capabilities, and nothing else.
    None,
}

/// The users that processes of root become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Users {
    /// The VMM and its supervisor.
    pub(crate) vmm: Identity,
    /// The services.
    pub(crate) services: Identity,
    /// No other process has them: the VMM's is not one that the caller has named.
    pub(crate) are_own: bool,
}

/// Confines the services, which stay in the network of the host.
///
/// # Errors
/// The kernel does not let them give up their capabilities.
pub(crate) fn services(confinement: Confinement) -> io::Result<()> {
    if let Confinement::Full(users) = confinement {
        let mut report = Report::default();
        if let Err(errno) = jail::isolate() {
            log::debug!("DHCP and DNS have no namespaces of their own: {errno}");
        }
        // Its report says so.
        let _ = become_user(users.services, None, &mut report);
        fences::hide()?;
        let folders: Vec<File> = RESOLVER_FOLDERS.iter().filter_map(|path| File::open(path).ok()).collect();
        let readable: Vec<_> = folders.iter().map(AsFd::as_fd).collect();
        let reach = Reach { readable: &readable, ports: &[DNS_PORT] };
        report.landlock(landlock::restrict(reach).map_err(io::Error::other)?);
        log::debug!("DHCP and DNS are confined by: {report}");
    }
    Ok(capabilities::drop_all()?)
}

/// Confines the keeper, which keeps the network of the host and its user. It may be all that a VM has: it logs what
/// fails.
pub(crate) fn keeper(confinement: Confinement, filters: &Filters) {
    if confinement == Confinement::None {
        return;
    }
    let hidden = fences::hide().map_err(io::Error::from);
    let filtered = hidden.and_then(|()| filters.install_for_keeper().map_err(io::Error::other));
    if let Err(err) = filtered {
        log::warn!("The network keeper keeps system calls that it does not need: {}", error_chain(&err));
    }
}

/// Moves the VMM, which has one thread and has opened all that it needs, into the jail. It is to have `threads` at
/// most.
///
/// # Errors
/// The kernel does not let it give up its capabilities.
pub(crate) fn enter(
    confinement: Confinement,
    signals: &Signals,
    threads: u64,
    report: &mut Report,
) -> Result<(), Error> {
    let supervisor = signals.take_supervisor();
    if let (Confinement::Full(users), Some(supervisor)) = (confinement, &supervisor) {
        let enclosed = signals.await_enclosure();
        let joined = enclosed.and_then(|()| jail::join(supervisor.as_fd()).map_err(|errno| errno.desc().to_owned()));
        report.namespaces(joined, signals.outer());
        let changed = become_user(users.vmm, signals.outer(), report);
        if users.are_own {
            // The supervisor is the user's as well.
            fences::limit_processes(threads + 1).map_err(Error::host("limit its threads"))?;
        } else if geteuid().is_root() {
            changed.map_err(Error::host("become the user that --user names"))?;
        }
        // The change of user has undone it.
        supervisor::die_with(supervisor.as_fd());
        fences::hide().map_err(Error::host("hide its memory"))?;
    }
    signals.joined();
    capabilities::drop_all().map_err(Error::host("give up privileges"))
}

/// Makes the supervisor, which is in the jail that it has made, as powerless as its VMM.
///
/// # Errors
/// If the kernel refuses.
pub(crate) fn follow(confinement: Confinement, outer: Option<Outer>) -> io::Result<()> {
    let Confinement::Full(users) = confinement else { return Ok(capabilities::drop_all()?) };
    // What the host forbids is in the report of the VMM.
    let _ = become_user(users.vmm, outer, &mut Report::default());
    capabilities::drop_all()?;
    fences::hide()?;
    landlock::restrict(Reach::default()).map(drop).map_err(io::Error::other)
}

/// In a user namespace of one's own there is no other user.
pub(super) fn become_user(identity: Identity, outer: Option<Outer>, report: &mut Report) -> nix::Result<()> {
    let changed = if geteuid().is_root() && outer != Some(Outer::Own) { identity.assume() } else { Ok(()) };
    report.user(changed);
    changed
}
