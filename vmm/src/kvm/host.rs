//! The host's KVM: opened once, checked once, and kept for every machine that is built on it.

use super::cpuid::{self, Features};
use super::{Error, Vcpu, Vm};
use devices::virtio::device::Memory;
use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};
use std::io;

/// What the machine cannot be built without, and how to say that it is missing.
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
pub(crate) struct Host {
    kvm: Kvm,
    cpuid: CpuId,
    tsc_deadline: bool,
}

impl Host {
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
        let cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::call("list the CPUID leaves it supports"))?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self { kvm, cpuid, tsc_deadline })
    }

    /// The number of physical address bits that a guest sees: leaf 0x8000_0008, or 36 where there is none.
    pub(crate) fn phys_bits(&self) -> u8 {
        cpuid::phys_bits(&self.cpuid)
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
    /// # Errors
    /// If KVM refuses a step.
    pub(crate) fn create(&self, mem: &Memory, cpus: u32) -> Result<(Vm, Vec<Vcpu>), Error> {
        self.check_cpus(cpus)?;
        let vm = Vm::new(&self.kvm, mem, cpus)?;
        let features =
            Features { cpus, tsc_deadline: self.tsc_deadline, extended_destination: vm.has_extended_destination() };
        let vcpus = (0..cpus)
            .map(|id| vm.create_vcpu(id, &cpuid::for_vcpu(&self.cpuid, id, &features)))
            .collect::<Result<_, _>>()?;
        Ok((vm, vcpus))
    }
}
