//! Huge pages of the host under what is copied into guest memory.
//!
//! A host clears and maps a huge page at once, and 512 small ones one after the other, which takes longer than the
//! copy. Everything there is written, so they cost no memory.

use nix::sys::mman::{MmapAdvise, madvise};
use std::ptr::NonNull;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Bytes of a huge page of x86-64.
const HUGE: usize = 2 << 20;

/// Asks for huge pages where `slice` covers them whole. Only a hint: a host that has none refuses.
#[expect(unsafe_code, reason = "advice on memory that vm-memory has mapped")]
pub(crate) fn ask<B: BitmapSlice>(slice: &VolatileSlice<'_, B>) {
    let guard = slice.ptr_guard_mut();
    let Some((skip, len)) = covered(guard.as_ptr().addr(), slice.len()) else { return };
    let Some(start) = NonNull::new(guard.as_ptr().wrapping_add(skip)) else { return };
    // SAFETY: The range is inside `slice`, which stays mapped meanwhile. The advice changes nothing of its content.
    let _refused = unsafe { madvise(start.cast(), len, MmapAdvise::MADV_HUGEPAGE) };
}

/// The huge pages inside `len` bytes at `addr`: bytes in front of them, and bytes of them.
fn covered(addr: usize, len: usize) -> Option<(usize, usize)> {
    let begin = addr.checked_next_multiple_of(HUGE)?;
    let end = addr.checked_add(len)? / HUGE * HUGE;
    (begin < end).then(|| (begin - addr, end - begin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    #[test]
    fn only_huge_pages_that_are_covered_whole_are_asked_for() {
        assert_eq!(covered(HUGE, 3 * HUGE), Some((0, 3 * HUGE)));
        assert_eq!(covered(HUGE - 4096, 2 * HUGE), Some((4096, HUGE)));
        assert_eq!(covered(HUGE + 1, 2 * HUGE - 2), None);
        assert_eq!(covered(0, 0), None);
        assert_eq!(covered(usize::MAX - 10, 5), None);
    }

    #[test]
    fn advice_reaches_the_kernel() {
        let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4 * HUGE)]).unwrap();
        let slice = ram.get_slice(GuestAddress(0), 4 * HUGE).unwrap();
        ask(&slice);
        let addr = slice.ptr_guard_mut().as_ptr().addr().next_multiple_of(HUGE);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut flags = maps.lines().skip_while(|line| !line.starts_with(&format!("{addr:x}-")));
        let flags = flags.find(|line| line.starts_with("VmFlags:"));
        let supported = std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
        assert_eq!(flags.is_some_and(|flags| flags.split(' ').any(|flag| flag == "hg")), supported);
    }
}
