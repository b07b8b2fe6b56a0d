//! Why a vCPU left the guest, as plain data.

use std::io;

/// One exit of `KVM_RUN`. Slices are the buffers that KVM shares with us; what is written to a read's buffer reaches
/// the guest when the vCPU runs again.
#[derive(Debug)]
pub(crate) enum Exit<'a> {
    /// The guest reads an I/O port; a string instruction reads it several times.
    PortRead {
        /// The port.
        port: u16,
        /// One chunk per access.
        data: std::slice::ChunksExactMut<'a, u8>,
    },
    /// The guest writes an I/O port.
    PortWrite {
        /// The port.
        port: u16,
        /// One chunk per access.
        data: std::slice::ChunksExact<'a, u8>,
    },
    /// The guest reads guest-physical memory that is not RAM.
    MmioRead {
        /// Its address.
        addr: u64,
        /// 1 to 8 bytes.
        data: &'a mut [u8],
    },
    /// The guest writes guest-physical memory that is not RAM.
    MmioWrite {
        /// Its address.
        addr: u64,
        /// 1 to 8 bytes.
        data: &'a [u8],
    },
    /// A signal, or a request to leave. Nothing happened in the guest.
    Interrupted,
    /// The guest's processor shut down: a triple fault.
    Shutdown,
    /// KVM or the guest asks for a change of the system's state.
    SystemEvent(SystemEvent),
    /// KVM cannot go on with this vCPU.
    Failed(Failure),
}

/// `KVM_SYSTEM_EVENT_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SystemEvent {
    /// The guest is off.
    Shutdown,
    /// The guest wants to be reset.
    Reset,
    /// The guest crashed.
    Crash,
}

/// Why KVM cannot go on with a vCPU. A fault of the host or of this program, or a guest that does what KVM cannot
/// emulate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// `KVM_EXIT_FAIL_ENTRY`.
    #[error("The processor refused to enter the guest (hardware reason {reason:#x})")]
    Entry {
        /// The hardware's reason code.
        reason: u64,
    },
    /// `KVM_EXIT_INTERNAL_ERROR`.
    #[error("KVM met an internal error: {}", suberror_name(*.suberror))]
    Internal {
        /// `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
    },
    /// An exit that this program does not know or has not asked for.
    #[error("KVM left the guest for a reason that nothing here handles: {reason}")]
    Unexpected {
        /// `KVM_EXIT_*`.
        reason: u32,
    },
    /// `KVM_EXIT_MEMORY_FAULT`.
    #[error("The host has no memory behind guest address {gpa:#x}")]
    Memory {
        /// Guest-physical address.
        gpa: u64,
    },
    /// The ioctl failed.
    #[error("Cannot run a vCPU")]
    Run(#[source] io::Error),
}

/// `KVM_INTERNAL_ERROR_*` of `include/uapi/linux/kvm.h`.
fn suberror_name(suberror: u32) -> String {
    match suberror {
        1 => "it cannot emulate an instruction of the guest".to_owned(),
        2 => "simultaneous exceptions".to_owned(),
        3 => "an exception while it delivered an event".to_owned(),
        4 => "an exit reason of the processor that it does not know".to_owned(),
        other => format!("code {other}"),
    }
}
