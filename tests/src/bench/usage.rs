//! The present usage of a VM's processes: processor time, memory, threads.
//!
//! The VM is everything in this process namespace except the benchmark itself, so that a child which left its parent
//! counts as well. A process that ends while it is looked at counts as nothing.

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use std::fs;
use std::io;
use std::time::Duration;

/// Sums over all processes of a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time since their start, user and kernel.
    pub cpu: Duration,
    /// Proportional set size without the guest's memory, in KiB.
    pub pss_kib: u64,
    /// Threads.
    pub threads: u32,
    /// Processes.
    pub processes: u32,
}

/// Processor time of all other processes of this namespace. Quick, so that it can be taken first.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn cpu_time() -> io::Result<Duration> {
    Ok(others()?.into_iter().map(cpu_of).sum())
}

/// Memory, threads and processes of all other processes of this namespace, for a guest with `mem_kib` of memory.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn footprint(mem_kib: u64) -> io::Result<Usage> {
    let mut sum = Usage::default();
    for pid in others()? {
        // An ended process that was not waited for has no mappings.
        let Ok(maps) = fs::read_to_string(format!("/proc/{pid}/smaps")) else { continue };
        if maps.is_empty() {
            continue;
        }
        sum.processes += 1;
        sum.pss_kib += memory_without_guest(&maps, mem_kib).pss_kib;
        let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        sum.threads += u32::try_from(threads).unwrap_or(u32::MAX);
    }
    Ok(sum)
}

/// Memory of one process, without the guest's, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Proportional set size.
    pub pss_kib: u64,
    /// Pages that no other process has.
    pub private_kib: u64,
}

/// Name and memory of each other process of this namespace, for guests with `mem_kib` of memory.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn memory_of_each(mem_kib: u64) -> io::Result<Vec<(String, Memory)>> {
    let memory_of = |pid: u32| {
        let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).ok().filter(|maps| !maps.is_empty())?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some((name.trim_end().to_owned(), memory_without_guest(&maps, mem_kib)))
    };
    Ok(others()?.into_iter().filter_map(memory_of).collect())
}

/// All processes of this namespace but this one.
fn others() -> io::Result<Vec<u32>> {
    let own = std::process::id();
    let names = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(names.filter(|&pid| pid != own).collect())
}

/// The time on a process's clock; `/proc` only has ticks of 10 ms.
fn cpu_of(pid: u32) -> Duration {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed()));
    clock.and_then(clock_gettime).map(Duration::from).unwrap_or_default()
}

/// Sums smaps (proc_pid_smaps(5)) over all mappings smaller than the guest's memory.
fn memory_without_guest(smaps: &str, mem_kib: u64) -> Memory {
    let kib = |line: &str, key: &str| -> Option<u64> {
        line.strip_prefix(key)?.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let mut is_guest = false;
    let mut memory = Memory::default();
    for line in smaps.lines() {
        if let Some(size) = kib(line, "Size:") {
            is_guest = size >= mem_kib;
        }
        if is_guest {
            continue;
        }
        memory.pss_kib += kib(line, "Pss:").unwrap_or(0);
        memory.private_kib += kib(line, "Private_Clean:").or_else(|| kib(line, "Private_Dirty:")).unwrap_or(0);
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_does_not_count() {
        let smaps = "00400000-00500000 r-xp\nSize:  1024 kB\nPss:  100 kB\nPrivate_Dirty: 7 kB\n\
                     7f00-7f01 rw-p\nSize: 131072 kB\nPss: 5000 kB\nPss_Dirty: 9 kB\n\
                     7f02-7f03 rw-p\nSize: 8 kB\nPss: 8 kB\nPrivate_Clean: 5 kB\n";
        assert_eq!(memory_without_guest(smaps, 131_072), Memory { pss_kib: 108, private_kib: 12 });
        assert_eq!(memory_without_guest(smaps, 262_144).pss_kib, 5108);
    }

    #[test]
    fn own_clock_runs() {
        assert!(cpu_of(std::process::id()) > Duration::ZERO);
    }
}
