//! Everything that can keep a machine from running, with what to do about it and the exit code it gives.

use crate::cli::MemSize;
use crate::exit;
use crate::guest;
use crate::kvm;
use crate::{console, disk, limits, machine, name};
use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

/// Why there is no machine, or none any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line is wrong.
    #[error("{sentence}")]
    Usage {
        /// What is wrong.
        sentence: String,
        /// What to do.
        hint: String,
    },
    /// No kernel was named and no default guest has been made.
    #[error("No kernel was given, and there is no default guest")]
    NoDefaultGuest,
    /// A kernel or initrd that cannot be opened.
    #[error("Cannot open {what} {}", path.display())]
    OpenImage {
        /// What it was to be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A kernel or initrd that cannot be booted.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// SMBIOS strings that do not fit.
    #[error(transparent)]
    Smbios(#[from] boot::BadSystemInfo),
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
    ReadyFd(#[from] machine::BadReadyFd),
    /// The console cannot be set up.
    #[error(transparent)]
    Console(#[from] console::Error),
    /// The network cannot be set up.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// The keeper of a VM does not do what was asked.
    #[error(transparent)]
    Policy(#[from] net::policy::AskError),
    /// KVM refuses.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// More memory than the guest's processor can address.
    #[error("{mem} of memory do not fit in the {phys_bits} address bits of this host's processor")]
    MemoryBeyondAddressBits {
        /// What was asked for.
        mem: MemSize,
        /// Physical address bits.
        phys_bits: u8,
    },
    /// More memory than the host has.
    #[error("{mem} of memory are more than this host has ({host_mib} MiB with swap)")]
    MemoryBeyondHost {
        /// What was asked for.
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
        /// What was asked for.
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
    #[error("Failed to {operation}")]
    Host {
        /// What was tried.
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
        source: kvm::exit::Failure,
    },
}

/// Operations that wait for the answer of another process.
const ANSWERS: [&str; 2] = ["ask the VM", "connect to the VM"];

impl Error {
    /// For `map_err`: the failure of `operation`.
    pub(crate) fn host<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host { operation, source: source.into() }
    }

    /// The limit of the host that is in the way, if it is one.
    pub(crate) fn hint_of_limit(&self) -> Option<String> {
        match self {
            // A VM that does not answer says EAGAIN, too.
            Self::Host { operation, .. } if ANSWERS.contains(operation) => None,
            Self::Usage { .. } | Self::Policy(_) => None,
            // Its cause is a text by the time it is here.
            Self::MapMemory { .. } => limits::of_errno(libc::ENOMEM),
            error => limits::hint(error),
        }
    }

    /// What the user can do.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { hint, .. } => Some(hint.clone()),
            Self::NoDefaultGuest => {
                Some(format!("Make the default guest ({}), or name a kernel with --kernel", guest::PROVIDE))
            }
            Self::OpenImage { what, source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some(format!("Check the path after --{what}"))
            }
            Self::OpenImage { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("Make it readable for this user; some distributions let only root read kernels".to_owned())
            }
            Self::Boot(err) => err.hint(),
            Self::Smbios(_) => Some("Give fewer or other texts after --smbios".to_owned()),
            Self::Disk(err) => err.hint(),
            Self::Name(name::LockError::Taken(_)) => Some("Stop it, or give this VM another --name".to_owned()),
            Self::Name(name::LockError::Ending(_)) => Some(
                "Its process 'keeper' still takes its network away; try again, or give this VM another --name"
                    .to_owned(),
            ),
            Self::Name(name::LockError::Folder(_)) => Some(
                "Set XDG_RUNTIME_DIR to a folder of this user that only this user can write to, such as /run/user/UID"
                    .to_owned(),
            ),
            Self::ReadyFd(_) => {
                Some("Leave it open across exec, for writing: 7>ready.json with --ready-fd 7".to_owned())
            }
            Self::Net(err) => err.hint(),
            Self::Policy(net::policy::AskError::NoVm(_)) => {
                Some("Give the name that the VM was started with: --name; minivmm net list has them".to_owned())
            }
            Self::Policy(_) => Some("The policy of the VM is as it was; minivmm net policy VM prints it".to_owned()),
            Self::Kvm(err) => err.hint(),
            Self::Vcpu { source: kvm::exit::Failure::Internal { .. }, .. } => Some(
                "The guest did what this host's KVM cannot do; a KVM without hardware virtualization cannot run Linux"
                    .to_owned(),
            ),
            Self::MemoryBeyondCgroup { .. } => {
                Some("Use a smaller --mem, or raise memory.max of the cgroup (MemoryMax= of a unit)".to_owned())
            }
            Self::MemoryBeyondAddressBits { .. } | Self::MemoryBeyondHost { .. } | Self::MapMemory { .. } => {
                Some("Use a smaller --mem".to_owned())
            }
            _ => self.limit_hint().map(str::to_owned),
        }
    }

    /// The hint for a limit of the process or the host, wherever in the chain of causes it stands.
    fn limit_hint(&self) -> Option<&'static str> {
        let mut cause = self.source();
        while let Some(error) = cause {
            match error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
                Some(libc::EMFILE) => {
                    return Some(
                        "This process has as many descriptors as it may: raise ulimit -Hn (LimitNOFILE= in a unit), or \
                         give cards fewer queues",
                    );
                }
                Some(libc::ENFILE) => return Some("The host has as many open files as it may: raise fs.file-max"),
                _ => cause = error.source(),
            }
        }
        None
    }

    /// Its code in the table of [`exit`]: a wish that no host can fulfil is a usage error.
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
            | Self::Smbios(_)
            | Self::NoDefaultGuest
            | Self::OpenImage { .. }
            | Self::Console(console::Error::OpenFile { .. })
            | Self::Disk(_)
            | Self::ReadyFd(_)
            | Self::Policy(
                net::policy::AskError::NoVm(_) | net::policy::AskError::Refused(_) | net::policy::AskError::Stranger,
            )
            | Self::Name(name::LockError::Taken(_)) => exit::USAGE,
            _ => exit::HOST,
        }
    }

    /// The whole chain of causes as one line.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
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
