//! Users of their own for the processes of a VM.
//!
//! A user id is computed from the number of the process that a VM was started as, so that no two VMs of a host share
//! one and no file remembers it. The range lies above those of distributions, containers and systemd, and below the
//! half that some programs take for negative numbers (systemd's table of user ids, UIDS-GIDS).

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// The first user id that VMs have.
const FIRST: u32 = 1_900_000_000;

/// One more than the largest number of a process (`PID_MAX_LIMIT`, linux/threads.h).
const PROCESSES: u32 = 1 << 22;

/// A process of a VM that has a user of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The VMM and its supervisor.
    Vmm,
    /// The services.
    Services,
}

/// A user and a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub uid: Uid,
    /// The group.
    pub gid: Gid,
}

impl Identity {
    /// That of a process of the VM that was started as `process`.
    #[must_use]
    pub fn of_vm(process: u32, role: Role) -> Self {
        let second = match role {
            Role::Vmm => 0,
            Role::Services => 1,
        };
        let id = FIRST + 2 * (process % PROCESSES) + second;
        Self { uid: Uid::from_raw(id), gid: Gid::from_raw(id) }
    }

    /// Becomes this user for good, without supplementary groups. Capabilities of root are lost by that. The process
    /// must have one thread.
    ///
    /// # Errors
    /// EPERM without CAP_SETUID and CAP_SETGID.
    pub fn assume(self) -> nix::Result<()> {
        setgroups(&[])?;
        setresgid(self.gid, self.gid, self.gid)?;
        setresuid(self.uid, self.uid, self.uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn processes_of_different_vms_have_different_users() {
        let numbers = [1, 2, 3, 4095, PROCESSES - 1];
        let both = numbers.iter().flat_map(|process| [Role::Vmm, Role::Services].map(|role| (*process, role)));
        let users: BTreeSet<u32> = both.map(|(process, role)| Identity::of_vm(process, role).uid.as_raw()).collect();
        assert_eq!(users.len(), 2 * numbers.len());
        assert!(users.iter().all(|user| (1_900_000_000..0x7fff_0000).contains(user)));
    }
}
