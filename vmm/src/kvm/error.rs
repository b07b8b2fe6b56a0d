//! Errors of KVM, with advice to the user.

use std::io;

/// A refusal of the host's KVM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The device node does not exist.
    #[error("/dev/kvm does not exist")]
    Missing,
    /// The user may not open it.
    #[error("No permission to open /dev/kvm")]
    Permission,
    /// It could not be opened for another reason.
    #[error("Cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// It opens, but no KVM answers.
    #[error("/dev/kvm is not the KVM device")]
    NotKvm(#[source] io::Error),
    /// It speaks an interface that was never stable.
    #[error("/dev/kvm speaks API version {0}, not 12")]
    ApiVersion(i32),
    /// A capability that nothing works without.
    #[error("This host's KVM has no {0}")]
    Capability(&'static str),
    /// More vCPUs than KVM takes.
    #[error("{asked} vCPUs are more than this host's KVM allows ({max})")]
    TooManyCpus {
        /// The number asked for.
        asked: u32,
        /// `KVM_CAP_MAX_VCPUS`.
        max: u32,
    },
    /// More CPUID leaves than a list can hold.
    #[error("This host's processor has more CPUID leaves ({leaves}) than fit in a list for KVM ({max})")]
    TooManyLeaves {
        /// Leaves that a guest would see.
        leaves: usize,
        /// Room for them.
        max: usize,
    },
    /// An ioctl failed.
    #[error("Cannot {operation}")]
    Call {
        /// The operation, as in "create a vCPU".
        operation: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: the failure of `operation`.
    pub(super) fn call(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |errno| Self::Call { operation, source: errno.into() }
    }

    /// Advice to the user.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Missing => {
                "Load the module (modprobe kvm-intel or kvm-amd), or enable virtualization in the firmware or the \
                 outer VM"
            }
            Self::Permission => "Run as root, or join the group that owns it (usermod -aG kvm USER, then log in again)",
            Self::NotKvm(_) => "Remove the file and load the KVM module again",
            Self::ApiVersion(_) | Self::Capability(_) => "Use Linux 5.10 or newer on the host",
            Self::TooManyCpus { max, .. } => return Some(format!("Use --cpus {max} or less")),
            Self::Call { source, .. } if source.raw_os_error() == Some(libc::EBUSY) => {
                "Another hypervisor may be using the processor's virtualization"
            }
            Self::Open(_) | Self::TooManyLeaves { .. } | Self::Call { .. } => return None,
        };
        Some(hint.to_owned())
    }
}
