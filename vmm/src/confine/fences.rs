//! Fences of the process as a whole: what others may see of it, and how much of the host it may take.

// The reason for `unsafe` here: mallopt, and madvise on guest memory.
#![expect(unsafe_code, reason = "calls that have no safe wrapper in the crates used here")]

use devices::virtio::device::Memory;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Keeps the heap in one piece. To be called before the second thread is started.
///
/// The C library gives threads heaps of their own, and reads `/proc/sys/vm/overcommit_memory` before it gives the end
/// of one back, `/sys` or the affinity before it makes another: calls that no thread is to need. The heap of main grows
/// and shrinks without any. Threads share its lock; what the data path allocates comes from each thread's cache.
pub(crate) fn share_one_heap() {
    // SAFETY: it takes two numbers. It fails for no number above 0.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Makes no core dump: it would have the guest's memory in it.
///
/// # Errors
/// If the host refuses.
pub(crate) fn make_no_core() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
}

/// Lets no process of the same user look into this one: not with ptrace, not through `/proc`, not by its memory.
///
/// # Errors
/// If the host refuses.
pub(crate) fn hide() -> nix::Result<()> {
    prctl::set_dumpable(false)
}

/// Lets this process's user have at most `max` processes and threads. The limit counts all that a user has, so it is
/// one only for a user that has nothing but this VM.
///
/// # Errors
/// If the host refuses.
pub(crate) fn limit_processes(max: u64) -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_NPROC, max, max)
}

/// Leaves guest memory out of what a debugger or the kernel makes a dump of, should there be one in spite of all.
///
/// # Errors
/// If the host refuses.
pub(crate) fn leave_out_of_dumps(mem: &Memory) -> nix::Result<()> {
    for region in mem.iter() {
        let len = usize::try_from(region.len()).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: the range is a mapping of `mem`, which lives meanwhile. The advice changes nothing of its content.
        Errno::result(unsafe { libc::madvise(region.as_ptr().cast(), len, libc::MADV_DONTDUMP) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn guest_memory_is_left_out() {
        let mem = Memory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        leave_out_of_dumps(&mem).unwrap();
        let start = format!("{:x}-", mem.get_host_address(GuestAddress(0)).unwrap().addr());
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let flags = maps.lines().skip_while(|line| !line.starts_with(&start)).find(|line| line.starts_with("VmFlags:"));
        assert!(flags.is_some_and(|flags| flags.split(' ').any(|flag| flag == "dd")), "{flags:?}");
    }
}
