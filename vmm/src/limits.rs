//! Limits of the process and of its cgroup: raised where it may, told where they are in the way.

pub(crate) mod cgroup;

use cgroup::Cgroups;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use std::error::Error as StdError;
use std::io;
use std::sync::OnceLock;

/// Raises the soft limit of open descriptors to the hard one. The soft one, 1024 almost everywhere, protects programs
/// that use `select`; a machine with many vCPUs and cards with many queues needs more: each queue has a tap, doorbell
/// and interrupt.
///
/// # Errors
/// If the host refuses.
pub(crate) fn raise_descriptors() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// The limit of processes of the cgroup, as it was at the start: later there is no file that could be read.
static PIDS_MAX: OnceLock<Option<u64>> = OnceLock::new();

/// Takes note of the limits of `cgroups`, for hints.
pub(crate) fn remember(cgroups: &Cgroups) {
    PIDS_MAX.get_or_init(|| cgroups.pids_max());
}

/// The limit that an error comes from, and how to raise it; none if it comes from another cause.
pub(crate) fn hint(error: &(dyn StdError + 'static)) -> Option<String> {
    errno_of(error).and_then(of_errno)
}

/// The number of the host's error behind `error`.
fn errno_of(error: &(dyn StdError + 'static)) -> Option<i32> {
    let host = error.downcast_ref::<io::Error>();
    // The source of an error that wraps another is the source of that one.
    let wrapped = || host?.get_ref().and_then(|inner| errno_of(inner));
    host.and_then(io::Error::raw_os_error).or_else(wrapped).or_else(|| errno_of(error.source()?))
}

/// The limit that the host answers with this error for.
pub(crate) fn of_errno(errno: i32) -> Option<String> {
    let limited = |resource| getrlimit(resource).ok().map(|(soft, _)| soft).filter(|soft| *soft != RLIM_INFINITY);
    match errno {
        libc::EAGAIN => {
            let user =
                limited(Resource::RLIMIT_NPROC).map(|limit| format!("this user's processes to {limit} (ulimit -u)"));
            let pids_max = PIDS_MAX.get().copied().flatten();
            let cgroup = pids_max.map(|limit| format!("its cgroup's to {limit} (pids.max; TasksMax= of a unit)"));
            let limits: Vec<String> = user.into_iter().chain(cgroup).collect();
            let limits = if limits.is_empty() { "them (kernel.threads-max)".to_owned() } else { limits.join(", ") };
            Some(format!("The host has no process or thread for it; it limits {limits}"))
        }
        libc::EMFILE => {
            let limit = limited(Resource::RLIMIT_NOFILE).map(|limit| limit.to_string()).unwrap_or_default();
            Some(format!("Raise the hard limit of open files (ulimit -Hn, LimitNOFILE= of a unit), which is {limit}"))
        }
        libc::ENFILE => Some("Raise the host's limit of open files: sysctl fs.file-max".to_owned()),
        libc::ENOMEM => {
            let space = [(Resource::RLIMIT_AS, "ulimit -v"), (Resource::RLIMIT_DATA, "ulimit -d")];
            let limits = space.into_iter().filter_map(|(resource, command)| Some((limited(resource)?, command)));
            let (bytes, command) = limits.min()?;
            Some(format!("Raise the limit of address space ({command}), which is {} KiB", bytes >> 10))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_found_behind_whatever_wraps_it() {
        let wrapped = io::Error::other(io::Error::from_raw_os_error(libc::EMFILE));
        assert!(hint(&wrapped).unwrap().contains("ulimit -Hn"));
        assert!(
            hint(&io::Error::from_raw_os_error(libc::EAGAIN)).unwrap().starts_with("The host has no process or thread")
        );
        assert_eq!(hint(&io::Error::from_raw_os_error(libc::EIO)), None);
        assert_eq!(hint(&io::Error::other("text")), None);
    }
}
