//! A guest of three instructions: a loop in ring 0, timed.
//!
//! Unsafe, because KVM is handed memory by address: the region must outlive the machine.
#![expect(unsafe_code, reason = "KVM is handed memory by address")]

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// How often the loop runs.
pub(super) const ITERATIONS: u32 = 400_000;
const MEMORY_BYTES: usize = 0x1000;
/// The loop's place in memory: real mode, segment 0.
const ENTRY: u64 = 0;
/// `dec ecx; jnz -4; hlt`, with operand-size prefix: real mode's own size is 16 bits.
const CODE: [u8; 5] = [0x66, 0x49, 0x75, 0xfc, 0xf4];

/// Why the loop did not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("KVM refused")]
    Kvm(#[from] kvm_ioctls::Error),
    #[error("Guest memory could not be mapped")]
    Map(#[from] vm_memory::mmap::FromRangesError),
    #[error("Guest memory could not be reached")]
    Memory(#[from] vm_memory::GuestMemoryError),
    #[error("The guest stopped for another reason than its hlt")]
    Stopped,
}

/// Runs the loop once and says how long it took.
pub(super) fn time_loop(kvm: &Kvm) -> Result<Duration, Error> {
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])?;
    memory.write_slice(&CODE, GuestAddress(ENTRY))?;
    let vm = kvm.create_vm()?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES as u64,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
    };
    // SAFETY: the region is the whole of `memory`, which is declared before `vm` and so unmapped after it is closed.
    unsafe { vm.set_user_memory_region(region) }?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = ENTRY;
    regs.rcx = u64::from(ITERATIONS);
    regs.rflags = 2;
    vcpu.set_regs(&regs)?;
    let start = Instant::now();
    match vcpu.run()? {
        VcpuExit::Hlt => Ok(start.elapsed()),
        _ => Err(Error::Stopped),
    }
}
