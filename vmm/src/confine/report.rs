//! How a VM is confined, in words for its log and `minivmm doctor`.

use super::{landlock, seccomp};
use jail::Outer;
use nix::errno::Errno;
use nix::unistd::getuid;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The parts of a VMM's confinement, in the order in which they are entered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The parts that hold: `pid and net namespaces`.
    pub(crate) holds: Vec<String>,
    /// The parts that the host forbids, with its answer.
    pub(crate) missing: Vec<String>,
}

impl Report {
    /// Adds whether the namespaces could be joined.
    pub(super) fn namespaces(&mut self, joined: Result<(), String>, outer: Option<Outer>) {
        match joined {
            Ok(()) => {
                let user = if outer == Some(Outer::Own) { "user, " } else { "" };
                self.holds.push(format!("{user}pid, mount, net, ipc, uts and cgroup namespaces"));
                self.holds.push("empty root".to_owned());
            }
            Err(why) => self.missing.push(format!("namespaces ({why})")),
        }
    }

    /// Adds what Landlock holds.
    pub(crate) fn landlock(&mut self, status: landlock::Status) {
        match status {
            landlock::Status::Enforced { .. } => self.holds.push(status.to_string()),
            landlock::Status::Unavailable => self.missing.push("Landlock".to_owned()),
        }
    }

    /// Adds what becomes of a system call that is not needed.
    pub(crate) fn seccomp(&mut self, mode: seccomp::Mode) {
        if mode != seccomp::Mode::Off {
            self.holds.push(format!("seccomp {mode}"));
        }
    }

    /// Adds the user that the VMM is now, and whether it could become another.
    pub(super) fn user(&mut self, changed: Result<(), Errno>) {
        self.holds.insert(0, format!("uid {}", getuid()));
        if let Err(errno) = changed {
            self.missing.push(format!("a user of its own ({})", errno.desc()));
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.holds.is_empty() {
            return f.write_str("not confined");
        }
        f.write_str(&self.holds.join(", "))?;
        if self.missing.is_empty() { Ok(()) } else { write!(f, "; the host forbids {}", self.missing.join(" and ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_says_what_holds_and_what_the_host_forbids() {
        let mut report = Report::default();
        assert_eq!(report.to_string(), "not confined");
        report.namespaces(Err("Operation not permitted".to_owned()), None);
        report.user(Ok(()));
        let text = format!("uid {}; the host forbids namespaces (Operation not permitted)", getuid());
        assert_eq!(report.to_string(), text);
        let mut report = Report::default();
        report.namespaces(Ok(()), Some(Outer::Callers));
        assert_eq!(report.to_string(), "pid, mount, net, ipc, uts and cgroup namespaces, empty root");
    }
}
