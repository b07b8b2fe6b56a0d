//! The guest's RAM: anonymous memory that costs the host nothing until the guest touches it.

use crate::cli::{MIB, MemSize};
use crate::confine::fences;
use crate::error::Error;
use crate::limits::cgroup::Cgroups;
use boot::layout;
use devices::virtio::device::Memory;
use nix::sys::sysinfo::sysinfo;
use vm_memory::GuestAddress;

/// Memory that the process takes beside that of its guest, in bytes: its own pages, and the kernel's of KVM and of page
/// tables.
const OWN_BYTES: u64 = 32 << 20;

/// Checks that the host and `cgroups`, which minivmm is in, have `mem` for a guest. One with more would run well until
/// it uses it, and be killed then; saying so before anything is made is kinder.
///
/// # Errors
/// If they do not.
pub(crate) fn check_available(mem: MemSize, cgroups: &Cgroups) -> Result<(), Error> {
    let info = sysinfo().map_err(Error::host("ask for the host's memory"))?;
    let host_bytes = info.ram_total().saturating_add(info.swap_total());
    if mem.bytes() > host_bytes {
        return Err(Error::MemoryBeyondHost { mem, host_mib: host_bytes / MIB });
    }
    let Some(limit) = cgroups.memory_limit(info.swap_total()) else { return Ok(()) };
    if mem.bytes() > limit.bytes {
        return Err(Error::MemoryBeyondCgroup { mem, limit_mib: limit.bytes / MIB, cgroup: limit.cgroup });
    }
    if mem.bytes().saturating_add(OWN_BYTES) > limit.bytes {
        log::warn!(
            "The cgroup {} allows {} MiB of memory: a guest that uses all of its {mem} may be killed",
            limit.cgroup,
            limit.bytes / MIB
        );
    }
    Ok(())
}

/// Maps `mem` in the regions that the guest will see, in no dump of this process.
///
/// # Errors
/// If the host gives no address space for it.
pub(super) fn map(mem: MemSize) -> Result<Memory, Error> {
    let regions: Vec<(GuestAddress, usize)> = layout::ram_regions(mem.bytes())
        .into_iter()
        .map(|(base, len)| usize::try_from(len).map(|len| (base, len)))
        .collect::<Result<_, _>>()
        .map_err(|source| Error::MapMemory { mem, source: source.into() })?;
    let memory = Memory::from_ranges(&regions).map_err(|source| Error::MapMemory { mem, source: source.into() })?;
    fences::leave_out_of_dumps(&memory).map_err(Error::host("leave the guest's memory out of dumps"))?;
    Ok(memory)
}

/// Checks that the guest's processor, which sees `phys_bits` physical address bits, can address `mem`.
///
/// # Errors
/// If it cannot.
pub(super) fn check_addressable(mem: MemSize, phys_bits: u8) -> Result<(), Error> {
    if layout::ram_end(mem.bytes()) > 1u64.checked_shl(phys_bits.into()).unwrap_or(u64::MAX) {
        return Err(Error::MemoryBeyondAddressBits { mem, phys_bits });
    }
    Ok(())
}
