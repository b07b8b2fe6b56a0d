//! How a VM of this user would be confined on this host: found out by confining a process that then ends.

use super::jail::become_user;
use super::landlock::{self, Reach};
use super::report::Report;
use super::seccomp::{Filters, Mode, Vhost};
use crate::{exit, process};
use jail::{Identity, Role};
use nix::unistd::{ForkResult, pipe, write};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

/// Confines a child of this process, which has one thread, and returns what it reports.
///
/// # Errors
/// If the host has no process or descriptor left.
pub(crate) fn rehearse() -> io::Result<Report> {
    let (from_child, to_parent) = pipe()?;
    match process::fork()? {
        ForkResult::Child => {
            drop(from_child);
            tell(&to_parent);
            exit::at_once(0)
        }
        ForkResult::Parent { child } => {
            drop(to_parent);
            let mut text = String::new();
            File::from(from_child).read_to_string(&mut text)?;
            // It has ended.
            let _ = nix::sys::wait::waitpid(child, None);
            Ok(serde_json::from_str(&text)?)
        }
    }
}

fn tell(parent: &OwnedFd) {
    let mut report = Report::default();
    let outer = jail::begin();
    let enclosed = outer.and_then(|_| jail::enclose());
    report.namespaces(enclosed.map_err(|errno| errno.desc().to_owned()), outer.ok());
    // The report has it.
    let _ = become_user(Identity::of_vm(std::process::id(), Role::Vmm), outer.ok(), &mut report);
    // A thread may restrict itself only if it can gain nothing.
    let restricted = jail::capabilities::drop_all().ok().and_then(|()| landlock::restrict(Reach::default()).ok());
    report.landlock(restricted.unwrap_or(landlock::Status::Unavailable));
    match Filters::new(Mode::Kill, Vhost::None) {
        Ok(filters) => report.seccomp(filters.mode()),
        Err(_) => report.missing.push("seccomp".to_owned()),
    }
    let text = serde_json::to_vec(&report).unwrap_or_default();
    // A parent that has ended does not read it; a pipe has room for it.
    let _ = write(parent, &text);
}
