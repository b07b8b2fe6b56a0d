//! The guest's RAM: anonymous memory that costs the host nothing until the guest touches it.

use crate::cli::{MIB, MemSize};
use crate::error::Error;
use boot::layout;
use devices::virtio::device::Memory;
use vm_memory::GuestAddress;

/// Maps `mem` in the regions that the guest will see.
///
/// # Errors
/// If the host does not have it. A guest with more memory than the host would run well until
/// it uses it, and be killed then; saying so at the start is kinder.
pub(super) fn map(mem: MemSize) -> Result<Memory, Error> {
    let host_bytes = host_bytes();
    if mem.bytes() > host_bytes {
        return Err(Error::MemoryBeyondHost { mem, host_mib: host_bytes / MIB });
    }
    let regions: Vec<(GuestAddress, usize)> = layout::ram_regions(mem.bytes())
        .into_iter()
        .map(|(base, len)| usize::try_from(len).map(|len| (base, len)))
        .collect::<Result<_, _>>()
        .map_err(|source| Error::MapMemory { mem, source: source.into() })?;
    Memory::from_ranges(&regions).map_err(|source| Error::MapMemory { mem, source: source.into() })
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

/// RAM and swap of the host.
fn host_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_add(info.totalswap).saturating_mul(info.mem_unit.into())
}
