//! The host's KVM: opened once, checked once, and kept for every machine that is built on it.

use super::cpuid::{self, Features};
use super::{Error, Vcpu, Vm};
use devices::virtio::device::Memory;
use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};
use std::io;
use std::panic::resume_unwind;
use std::sync::OnceLock;
use std::thread;

/// The capabilities that the machine needs, and their names for an error.
const REQUIRED: [(Cap, &str); 7] = [
    (Cap::UserMemory, "user memory slots"),
    (Cap::Irqchip, "in-kernel interrupt controller"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::IoeventfdNoLength, "ioeventfd of any width"),
    (Cap::ImmediateExit, "immediate exit"),
    (Cap::SetTssAddr, "settable TSS address"),
];

/// An open `/dev/kvm` and the CPUID it can give to a guest.
pub(crate) struct KvmSystem {
    pub(super) kvm: Kvm,
    /// Listed while the first VM is created, and kept for those after it.
    cpuid: OnceLock<CpuId>,
    tsc_deadline: bool,
}

impl KvmSystem {
    /// Opens `/dev/kvm` and checks that it can do what is needed.
    ///
    /// # Errors
    /// If it is missing, may not be opened, or lacks something.
    pub(crate) fn open() -> Result<Self, Error> {
        let kvm = Kvm::new().map_err(|errno| match errno.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => Error::Missing,
            libc::EACCES | libc::EPERM => Error::Permission,
            _ => Error::Open(errno.into()),
        })?;
        match kvm.get_api_version() {
            -1 => return Err(Error::NotKvm(io::Error::last_os_error())),
            version if u32::try_from(version) != Ok(KVM_API_VERSION) => {
                return Err(Error::ApiVersion(version));
            }
            _ => {}
        }
        for (cap, name) in REQUIRED {
            if !kvm.check_extension(cap) {
                return Err(Error::Capability(name));
            }
        }
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self { kvm, cpuid: OnceLock::new(), tsc_deadline })
    }

    /// Checks a number of vCPUs.
    ///
    /// # Errors
    /// If KVM allows fewer.
    pub(crate) fn check_cpus(&self, cpus: u32) -> Result<(), Error> {
        let max = u32::try_from(self.kvm.get_max_vcpus()).unwrap_or(u32::MAX);
        if cpus > max {
            return Err(Error::TooManyCpus { asked: cpus, max });
        }
        Ok(())
    }

    /// Creates a VM with `mem` as its RAM and `cpus` vCPUs that stand at reset.
    ///
    /// Listing the CPUID leaves costs as much as all the rest where the host is a virtual machine itself (each leaf is
    /// an exit there: 1.1 ms were measured), so for the first VM both are done side by side.
    ///
    /// # Errors
    /// If KVM refuses a step.
    pub(crate) fn create(&self, mem: &Memory, cpus: u32) -> Result<Created, Error> {
        self.check_cpus(cpus)?;
        let (vm, fds, supported) = thread::scope(|scope| {
            let supported =
                thread::Builder::new().spawn_scoped(scope, || self.supported_cpuid()).map_err(|source| {
                    Error::Call { operation: "list the CPUID leaves: there is no thread for it", source }
                })?;
            let vm = Vm::new(&self.kvm, mem, cpus)?;
            let fds = (0..cpus).map(|id| vm.create_vcpu(id)).collect::<Result<Vec<_>, _>>()?;
            let supported = supported.join().unwrap_or_else(|panic| resume_unwind(panic))?;
            Ok((vm, fds, supported))
        })?;
        let features =
            Features { cpus, tsc_deadline: self.tsc_deadline, extended_destination: vm.has_extended_destination() };
        let vcpus = (0..cpus)
            .zip(fds)
            .map(|(id, fd)| Vcpu::new(fd, id, &cpuid::for_vcpu(supported, id, &features)?))
            .collect::<Result<_, _>>()?;
        Ok(Created { vm, vcpus, phys_bits: cpuid::phys_bits(supported) })
    }

    fn supported_cpuid(&self) -> Result<&CpuId, Error> {
        if let Some(known) = self.cpuid.get() {
            return Ok(known);
        }
        let listed = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let listed = listed.map_err(Error::call("list the CPUID leaves it supports"))?;
        Ok(self.cpuid.get_or_init(|| listed))
    }
}

/// A VM whose vCPUs stand at reset.
pub(crate) struct Created {
    /// The VM.
    pub(crate) vm: Vm,
    /// Its vCPUs, by number.
    pub(crate) vcpus: Vec<Vcpu>,
    /// The number of physical address bits that the guest sees: leaf 0x8000_0008, or 36 where there is none.
    pub(crate) phys_bits: u8,
}
