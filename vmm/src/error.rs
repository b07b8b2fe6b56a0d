//! Everything that can keep a machine from running, with what to do about it and the exit code it gives.

use crate::cli::MemSize;
use crate::confine::seccomp;
use crate::exit;
use crate::guest;
use crate::kvm::{self, exit::Failure};
use crate::ready_channel::BadReadyFd;
use crate::{console, disk, limits, name};
use net::policy::AskError;
use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

/// Why there is no machine, or none any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line is wrong.
    #[error("{sentence}")]
    Usage {
        /// The mistake.
        sentence: String,
        /// Advice.
        hint: String,
    },
    /// A guest that cannot be opened.
    #[error(transparent)]
    Guest(#[from] guest::Error),
    /// A kernel or initrd that cannot be booted.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// A disk that cannot be used.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// A capture that cannot be written.
    #[error(transparent)]
    Capture(#[from] crate::capture::Error),
    /// A name that cannot be had.
    #[error(transparent)]
    Name(#[from] name::LockError),
    /// The descriptor for the ready line cannot be used.
    #[error(transparent)]
    ReadyFd(#[from] BadReadyFd),
    /// The console cannot be set up.
    #[error(transparent)]
    Console(#[from] console::Error),
    /// The network cannot be set up.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// The keeper of a VM does not do what was asked.
    #[error(transparent)]
    Policy(#[from] AskError),
    /// System calls cannot be filtered.
    #[error(transparent)]
    Seccomp(#[from] seccomp::Error),
    /// KVM refuses.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// More memory than the guest's processor can address.
    #[error("{mem} of memory do not fit in the {phys_bits} address bits of this host's processor")]
    MemoryBeyondAddressBits {
        /// The size asked for.
        mem: MemSize,
        /// Physical address bits.
        phys_bits: u8,
    },
    /// More memory than the host has.
    #[error("{mem} of memory are more than this host has ({host_mib} MiB with swap)")]
    MemoryBeyondHost {
        /// The size asked for.
        mem: MemSize,
        /// RAM and swap of the host.
        host_mib: u64,
    },
    /// More memory than the cgroup of this process allows.
    #[error("{mem} of memory are more than the cgroup {cgroup} allows ({limit_mib} MiB with swap)")]
    MemoryBeyondCgroup {
        /// The memory that was asked for.
        mem: MemSize,
        /// The memory that is allowed.
        limit_mib: u64,
        /// By which cgroup.
        cgroup: String,
    },
    /// The host gives no address space for it.
    #[error("Cannot map {mem} of memory for the guest")]
    MapMemory {
        /// The size asked for.
        mem: MemSize,
        /// Why.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A device does not fit in the machine.
    #[error("Cannot add {device} to the machine")]
    AddDevice {
        /// Which.
        device: String,
        /// Why.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The host refuses something that it should not.
    #[error("Cannot {operation}")]
    Host {
        /// The operation, as in "create an eventfd".
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Asked to end before there was a guest.
    #[error("Stopped by signal {0} before the guest was started")]
    Signal(u8),
    /// A vCPU that KVM cannot run on.
    #[error("vCPU {id} failed")]
    Vcpu {
        /// Which.
        id: u32,
        /// Why.
        source: Failure,
    },
    /// A disk failed, and the user wants that to be the end.
    #[error("Disk {} failed", path.display())]
    DiskFailed {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Operations that wait for the answer of another process.
const ANSWERS: [&str; 2] = ["ask the VM", "connect to the VM"];

impl Error {
    /// For `map_err`: the failure of `operation`.
    pub(crate) fn host<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host { operation, source: source.into() }
    }

    /// Advice to the user: how to raise the limit that is in the way, or else how to correct the request.
    pub(crate) fn hint(&self) -> Option<String> {
        self.hint_of_limit().or_else(|| self.own_hint())
    }

    /// How to raise the limit of the host that is in the way, if one is.
    fn hint_of_limit(&self) -> Option<String> {
        match self {
            // A VM that does not answer says EAGAIN, too.
            Self::Host { operation, .. } if ANSWERS.contains(operation) => None,
            Self::Usage { .. } | Self::Policy(_) => None,
            // Its cause is a text by the time it is here.
            Self::MapMemory { .. } => limits::of_errno(libc::ENOMEM),
            error => limits::hint(error),
        }
    }

    fn own_hint(&self) -> Option<String> {
        let hint = match self {
            Self::Usage { hint, .. } => hint,
            Self::Guest(err) => return err.hint(),
            Self::Boot(err) => return err.hint(),
            Self::Disk(err) => return err.hint(),
            Self::Name(err) => return err.hint(),
            Self::ReadyFd(err) => return Some(err.hint()),
            Self::Net(err) => return err.hint(),
            Self::Kvm(err) => return err.hint(),
            Self::Seccomp(_) => "--seccomp off starts it without; a guest that takes minivmm over can then do more",
            Self::Policy(AskError::NoVm(_)) => {
                "Give the name that the VM was started with: --name; minivmm net list has them"
            }
            Self::Policy(_) => "The policy of the VM is as it was; minivmm net policy VM prints it",
            Self::Vcpu { source: Failure::Internal { .. }, .. } => {
                "The guest did what this host's KVM cannot do; a KVM without hardware virtualization cannot run Linux"
            }
            Self::DiskFailed { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "Make room on the host; with --on-disk-error pause the guest waits for it"
                }
                _ => "See the host's kernel log; with --on-disk-error report the guest is told and runs on",
            },
            Self::MemoryBeyondCgroup { .. } => {
                "Use a smaller --mem, or raise memory.max of the cgroup (MemoryMax= of a unit)"
            }
            Self::MemoryBeyondAddressBits { .. } | Self::MemoryBeyondHost { .. } | Self::MapMemory { .. } => {
                "Use a smaller --mem"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// Its code in the table of [`exit`]: a request that no host can serve is a usage error.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage { .. } => exit::USAGE,
            Self::Signal(signal) => exit::Outcome::Killed(*signal).code(),
            Self::Net(err) if err.is_usage() => exit::USAGE,
            Self::Boot(boot::Error::Read { .. }) => exit::HOST,
            Self::Kvm(kvm::Error::TooManyCpus { .. })
            | Self::MemoryBeyondAddressBits { .. }
            | Self::MemoryBeyondHost { .. }
            | Self::MemoryBeyondCgroup { .. }
            | Self::Boot(_)
            | Self::Guest(_)
            | Self::Console(console::Error::OpenFile { .. })
            | Self::Disk(_)
            | Self::ReadyFd(_)
            | Self::Policy(AskError::NoVm(_) | AskError::Refused(_) | AskError::NotPermitted)
            | Self::Name(name::LockError::Taken(_)) => exit::USAGE,
            _ => exit::HOST,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_of_descriptors_is_named_wherever_it_is_met() {
        let source = || io::Error::from_raw_os_error(libc::EMFILE);
        let device = Error::AddDevice { device: "net0".to_owned(), source: Box::new(source()) };
        for error in [device, Error::Host { operation: "create an eventfd", source: source() }] {
            assert!(error.hint().is_some_and(|hint| hint.contains("ulimit -Hn")), "{error}");
        }
    }
}
