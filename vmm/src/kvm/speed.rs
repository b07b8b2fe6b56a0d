//! How this host's KVM runs a guest's ring 0: a loop of two instructions, timed.
//!
//! A `/dev/kvm` alone says little. One that emulates ring 0 boots no Linux, however well it runs ring 3.
#![expect(unsafe_code, reason = "KVM is handed memory by address")]

use super::{Error, KvmSystem};
use devices::virtio::device::Memory;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use std::io;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// How often the loop runs. It takes a processor about a millisecond, and an emulator of 1.5 M instructions/s half a
/// second.
const ITERATIONS: u32 = 400_000;

/// A host that is emulated itself, with nested virtualization, stays well under this.
const NATIVE_AT_MOST: Duration = Duration::from_millis(60);

const MEMORY_BYTES: usize = 0x1000;

/// `dec ecx; jnz -4; hlt` in real mode at address 0.
const CODE: [u8; 5] = [0x66, 0x49, 0x75, 0xfc, 0xf4];

/// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 2;

/// The speed of a KVM: with hardware virtualization, or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speed {
    /// Linux runs on it; the loop took so long.
    Native(Duration),
    /// It emulates what Linux does in ring 0.
    Emulated(Duration),
}

impl KvmSystem {
    /// Runs the loop once.
    ///
    /// # Errors
    /// KVM refuses, or does not run it to its end.
    pub(crate) fn speed(&self) -> Result<Speed, Error> {
        let took = time_loop(&self.kvm)?;
        Ok(if took <= NATIVE_AT_MOST { Speed::Native(took) } else { Speed::Emulated(took) })
    }
}

fn time_loop(kvm: &Kvm) -> Result<Duration, Error> {
    const OPERATION: &str = "run a loop of two instructions";
    let failed = |source| Error::Call { operation: OPERATION, source };
    let memory =
        Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).map_err(|err| failed(io::Error::other(err)))?;
    memory.write_slice(&CODE, GuestAddress(0)).map_err(|err| failed(io::Error::other(err)))?;
    let address = memory.get_host_address(GuestAddress(0)).map_err(|err| failed(io::Error::other(err)))?;
    let vm = kvm.create_vm().map_err(Error::call("create a VM"))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES as u64,
        // A pointer has as many bits as an address that KVM takes.
        userspace_addr: address as u64,
    };
    // SAFETY: the region is the whole of `memory`, which is declared before `vm` and so unmapped after it is closed.
    unsafe { vm.set_user_memory_region(region) }.map_err(Error::call("set a memory slot"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(Error::call("create a vCPU"))?;
    let mut sregs = vcpu.get_sregs().map_err(Error::call(OPERATION))?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs).map_err(Error::call(OPERATION))?;
    let mut regs = vcpu.get_regs().map_err(Error::call(OPERATION))?;
    (regs.rip, regs.rcx, regs.rflags) = (0, u64::from(ITERATIONS), RFLAGS);
    vcpu.set_regs(&regs).map_err(Error::call(OPERATION))?;
    let start = Instant::now();
    match vcpu.run().map_err(Error::call(OPERATION))? {
        VcpuExit::Hlt => Ok(start.elapsed()),
        other => Err(failed(io::Error::other(format!("it stopped at {other:?}")))),
    }
}
