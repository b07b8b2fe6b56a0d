//! One vCPU: set up at reset, run, and asked for its registers when it has failed.

use super::Error;
use super::exit::{Exit, Failure, SystemEvent};
use super::kick::Kick;
use super::registers;
use boot::EntryState;
use kvm_bindings::{
    CpuId, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_MMIO,
    KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, KVM_MP_STATE_RUNNABLE, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
    kvm_run, kvm_run__bindgen_ty_1__bindgen_ty_4,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::{ptr, slice};

/// A guest's doing to the local APIC of a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LocalApic {
    /// Shut it down, as Linux does before a reboot.
    ShutDown,
    /// Left it as it was, at work or never touched.
    Left,
}

/// A vCPU, owned by the thread that runs it.
pub(crate) struct Vcpu {
    fd: VcpuFd,
    id: u32,
    /// How often in a row KVM has refused to run it, though it has been started.
    refusals: u32,
}

/// How often in a row that may be: one that has just been started is refused once.
const REFUSALS_MAX: u32 = 3;

impl Vcpu {
    pub(super) fn new(fd: VcpuFd, id: u32, cpuid: &CpuId) -> Result<Self, Error> {
        fd.set_cpuid2(cpuid).map_err(Error::call("set the CPUID of a vCPU"))?;
        registers::set_msrs(&fd)?;
        Ok(Self { fd, id, refusals: 0 })
    }

    /// The vCPU's number, which is its APIC id.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Makes this the vCPU that boots: the others wait until it starts them.
    ///
    /// # Errors
    /// If KVM refuses a register.
    pub(crate) fn enter_at(&self, entry: &EntryState) -> Result<(), Error> {
        registers::set_entry(&self.fd, entry)
    }

    /// How to interrupt this vCPU.
    pub(crate) fn kick_handle(&mut self) -> Kick {
        Kick::new(&mut self.fd)
    }

    /// Runs the guest until it needs something.
    pub(crate) fn run(&mut self) -> Exit<'_> {
        match self.fd.run() {
            Ok(VcpuExit::MemoryFault { gpa, .. }) => Exit::Failed(Failure::Memory { gpa }),
            Ok(_) => {
                self.refusals = 0;
                exit_of(self.fd.get_kvm_run())
            }
            Err(errno) => self.refused(errno),
        }
    }

    /// The state of its local APIC.
    pub(crate) fn local_apic(&self) -> LocalApic {
        registers::local_apic(&self.fd)
    }

    /// True where it stands at the first instruction after an INIT: there is no firmware, so it cannot go on.
    pub(crate) fn is_at_reset(&self) -> bool {
        registers::is_at_reset(&self.fd)
    }

    fn refused(&mut self, errno: kvm_ioctls::Error) -> Exit<'static> {
        match errno.errno() {
            libc::EINTR => Exit::Interrupted,
            libc::EAGAIN if self.may_be_refused() => Exit::Interrupted,
            _ => Exit::Failed(Failure::Run(errno.into())),
        }
    }

    /// Returns whether EAGAIN is no failure: a vCPU that has not been started was woken for nothing, or it has just
    /// been started. Otherwise KVM cannot have a thread of its own that it needs.
    fn may_be_refused(&mut self) -> bool {
        let waits = self.fd.get_mp_state().is_ok_and(|state| state.mp_state != KVM_MP_STATE_RUNNABLE);
        self.refusals = if waits { 0 } else { self.refusals + 1 };
        self.refusals < REFUSALS_MAX
    }

    /// The registers as text, for the log of a failure.
    pub(crate) fn describe(&self) -> String {
        registers::describe(&self.fd)
    }
}

/// Reads the exit that KVM left in `run`. kvm-ioctls has a reader of its own, but it leaves out how wide each access of
/// a string instruction is, and which internal error it was.
#[expect(unsafe_code, reason = "the members of a union that KVM filled, and a buffer behind it")]
fn exit_of(run: &mut kvm_run) -> Exit<'_> {
    match run.exit_reason {
        KVM_EXIT_IO => {
            // SAFETY: the exit reason tells that KVM filled this member. It is plain data.
            let io = unsafe { run.__bindgen_anon_1.io };
            port_exit(run, io)
        }
        KVM_EXIT_MMIO => {
            // SAFETY: as above.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            let len = usize::try_from(mmio.len).unwrap_or(usize::MAX).min(mmio.data.len());
            let (addr, data) = (mmio.phys_addr, &mut mmio.data[..len]);
            if mmio.is_write == 0 { Exit::MmioRead { addr, data } } else { Exit::MmioWrite { addr, data } }
        }
        KVM_EXIT_INTR => Exit::Interrupted,
        KVM_EXIT_SHUTDOWN => Exit::Shutdown,
        KVM_EXIT_SYSTEM_EVENT => {
            // SAFETY: as above.
            match unsafe { run.__bindgen_anon_1.system_event.type_ } {
                KVM_SYSTEM_EVENT_SHUTDOWN => Exit::SystemEvent(SystemEvent::Shutdown),
                KVM_SYSTEM_EVENT_RESET => Exit::SystemEvent(SystemEvent::Reset),
                _ => Exit::SystemEvent(SystemEvent::Crash),
            }
        }
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: as above.
            let reason = unsafe { run.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason };
            Exit::Failed(Failure::Entry { reason })
        }
        KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: as above.
            let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
            Exit::Failed(Failure::Internal { suberror })
        }
        reason => Exit::Failed(Failure::Unexpected { reason }),
    }
}

#[expect(unsafe_code, reason = "the data of a port exit lies behind kvm_run in the same mapping")]
fn port_exit(run: &mut kvm_run, io: kvm_run__bindgen_ty_1__bindgen_ty_4) -> Exit<'_> {
    let width = usize::from(io.size).max(1);
    let len = width.saturating_mul(usize::try_from(io.count).unwrap_or(0));
    let offset = usize::try_from(io.data_offset).unwrap_or(0);
    // SAFETY: KVM places the data `data_offset` bytes from the start of the structure, inside the mapping of
    // KVM_GET_VCPU_MMAP_SIZE bytes that `run` is the start of.
    let data = unsafe { ptr::from_mut(run).cast::<u8>().add(offset) };
    // SAFETY: `size * count` bytes are there, initialized, by the contract of KVM_EXIT_IO. The result borrows the vCPU
    // mutably, so nothing else touches them until it runs again.
    let data = unsafe { slice::from_raw_parts_mut(data, len) };
    if u32::from(io.direction) == KVM_EXIT_IO_IN {
        Exit::PortRead { port: io.port, data: data.chunks_exact_mut(width) }
    } else {
        Exit::PortWrite { port: io.port, data: data.chunks_exact(width) }
    }
}
