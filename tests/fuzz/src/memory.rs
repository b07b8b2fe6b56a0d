//! Guest memory between pages without access: whoever leaves it is caught, be it this process (SIGSEGV) or the
//! kernel on its behalf (EFAULT, see [`crate::port`]).

use devices::virtio::device::Memory;
use std::sync::OnceLock;
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap, MmapRegion};

/// Guest-physical start and size of each region: two that touch, a hole, and a third.
pub const REGIONS: [(u64, usize); 3] = [(0, 0x2_0000), (0x2_0000, 0x1_0000), (0x4_0000, 0x1_0000)];

/// Unmapped bytes before and behind each region.
const GUARD: usize = 0x10_0000;

/// All regions are multiples of it.
static ZEROS: [u8; 0x1_0000] = [0; 0x1_0000];

/// The one guest memory of this process, filled with zeros.
pub fn fresh() -> Memory {
    static MEMORY: OnceLock<Memory> = OnceLock::new();
    let mem = MEMORY.get_or_init(map).clone();
    for (start, len) in REGIONS {
        for at in (0..len).step_by(ZEROS.len()) {
            mem.write_slice(&ZEROS, GuestAddress(start + at as u64)).expect("the region is that long");
        }
    }
    mem
}

fn map() -> Memory {
    let regions = REGIONS.map(|(start, len)| {
        GuestRegionMmap::new(guarded(len), GuestAddress(start)).expect("the region ends below 2^64")
    });
    Memory::from_regions(regions.into()).expect("the regions do not overlap")
}

fn guarded(len: usize) -> MmapRegion<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, which replaces nothing.
    let all = unsafe { libc::mmap(std::ptr::null_mut(), len + 2 * GUARD, libc::PROT_NONE, flags, -1, 0) };
    assert_ne!(all, libc::MAP_FAILED, "there is address space");
    let start = all.cast::<u8>().wrapping_add(GUARD);
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the range is inside of the mapping above, and is not in use yet.
    let result = unsafe { libc::mprotect(start.cast(), len, access) };
    assert_eq!(result, 0, "the middle of it can be opened");
    // SAFETY: the mapping is `len` bytes long, has that access, and is never unmapped.
    unsafe { MmapRegion::build_raw(start, len, access, flags) }.expect("the mapping is usable")
}
