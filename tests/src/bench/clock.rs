//! Two clocks: the time stamp counter, which guest and host may share, and the processor time of another process's
//! threads.
//!
//! Unsafe, because the counter has no safe intrinsic.
#![expect(unsafe_code, reason = "the counter has no safe intrinsic")]

use crate::vm::vmm_of;
use nix::time::{ClockId, clock_gettime};
use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// How long the counter's frequency is measured.
const CALIBRATION: Duration = Duration::from_millis(100);

/// The time stamp counter.
pub(super) fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Ticks of the counter in a second.
pub(super) fn ticks_per_second() -> f64 {
    let (time, begin) = (Instant::now(), ticks());
    thread::sleep(CALIBRATION);
    let (elapsed, ticks) = (time.elapsed(), ticks() - begin);
    // Far below 2^52.
    ticks as f64 / elapsed.as_secs_f64()
}

/// Processor time of a process, split by what its threads are.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ThreadTimes {
    /// Threads that run a virtual processor.
    pub(super) vcpu: Duration,
    /// All others.
    pub(super) other: Duration,
}

/// Reads the processor times of a VMM's threads, which the kernel keeps up to date to a scheduler tick.
///
/// # Errors
/// If the process is gone or its kernel keeps no such times (`CONFIG_SCHED_INFO`).
pub(super) fn thread_times(pid: u32) -> io::Result<ThreadTimes> {
    let mut times = ThreadTimes::default();
    for task in tasks(pid)? {
        // A thread that has ended meanwhile counts as nothing.
        let Ok(text) = fs::read_to_string(format!("{task}/schedstat")) else { continue };
        let nanos = text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
        let name = fs::read_to_string(format!("{task}/comm")).unwrap_or_default();
        let is_vcpu = name.starts_with("vcpu") || name.starts_with("CPU ");
        *(if is_vcpu { &mut times.vcpu } else { &mut times.other }) += Duration::from_nanos(nanos);
    }
    Ok(times)
}

/// How often the threads of a process have gone to sleep, which is how often they have been woken.
///
/// # Errors
/// If the process is gone.
pub(super) fn sleeps(pid: u32) -> io::Result<u64> {
    let statuses = tasks(pid)?.into_iter().filter_map(|task| fs::read_to_string(format!("{task}/status")).ok());
    let of = |status: String| -> u64 {
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    };
    Ok(statuses.map(of).sum())
}

/// Processor time of the calling thread.
pub(super) fn own_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// The threads of a process, and of the VMM among its children if it supervises one.
fn tasks(pid: u32) -> io::Result<Vec<String>> {
    let mut tasks = Vec::new();
    for process in std::iter::once(pid).chain(vmm_of(pid)) {
        let entries = fs::read_dir(format!("/proc/{process}/task"))?;
        tasks.extend(entries.filter_map(|entry| entry.ok()?.path().to_str().map(str::to_owned)));
    }
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_threads_have_times_and_sleeps() {
        thread::sleep(Duration::from_millis(1));
        assert!(thread_times(std::process::id()).unwrap().other > Duration::ZERO);
        assert!(sleeps(std::process::id()).unwrap() > 0);
    }
}
