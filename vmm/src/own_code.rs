//! Releases the memory of the program's own code and freed heap once a process has started.
//!
//! Most of the program runs once: command line, set-up, tables for the guest, the network plan. Its pages stay mapped,
//! and count, for as long as the VM lives, unless released. Pages needed again come back from the page cache with a
//! minor fault. The VMM does it once its guest runs, and the network keeper, its child, whenever it is idle.
#![expect(unsafe_code, reason = "madvise on the program's own code, and malloc_trim")]

use libc::{PF_W, PT_LOAD, c_int, c_void, dl_phdr_info, size_t};

/// Bytes in a page.
const PAGE_BYTES: usize = 4096;

/// Unmaps the pages of all read-only segments, and the empty pages of the heap: a survey of a host with 64 VMs leaves
/// more than 1 MiB of them behind.
pub(crate) fn release() {
    // SAFETY: it takes no pointer and locks the allocator itself. The result tells if memory was released.
    let _ = unsafe { libc::malloc_trim(0) };
    // SAFETY: the callback gets valid descriptions of loaded objects while this call lasts, and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(release_program), std::ptr::null_mut()) };
}

/// Called with the program itself first; ends the iteration.
unsafe extern "C" fn release_program(info: *mut dl_phdr_info, _: size_t, _: *mut c_void) -> c_int {
    // SAFETY: `dl_iterate_phdr` passes a valid pointer.
    let info = unsafe { &*info };
    for index in 0..usize::from(info.dlpi_phnum) {
        // SAFETY: the index is below the number of headers that are there.
        let header = unsafe { info.dlpi_phdr.add(index) };
        // SAFETY: as above; the headers are mapped for as long as the program is.
        let header = unsafe { &*header };
        if header.p_type == PT_LOAD && header.p_flags & PF_W == 0 {
            let (addr, size) = (info.dlpi_addr.wrapping_add(header.p_vaddr), header.p_memsz);
            release_range(addr, size);
        }
    }
    1
}

/// Unmaps the whole pages of `size` bytes at `addr`, which belong to a segment that is not writable.
fn release_range(addr: u64, size: u64) {
    let (Ok(addr), Ok(size)) = (usize::try_from(addr), usize::try_from(size)) else { return };
    let start = addr.next_multiple_of(PAGE_BYTES);
    let Some(len) = (addr + size).checked_sub(start).map(|len| len - len % PAGE_BYTES) else { return };
    // SAFETY: a private file mapping that was never written to: pages unmapped here read the same when mapped again.
    // Failure costs only the memory that would have been saved.
    unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(start), len, libc::MADV_DONTNEED) };
}
