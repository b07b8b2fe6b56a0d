//! Counts and a timeline out of the kernel's tracepoints (Documentation/trace/histogram.rst).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

const TRACING: &str = "/sys/kernel/tracing";
const CALLS: &str = "raw_syscalls/sys_enter";
const EXITS: &str = "kvm/kvm_exit";
/// Of the timeline.
const EVENTS: [&str; 3] = ["sched/sched_switch", CALLS, EXITS];
/// Less often than this in a trip is not part of it.
const RARE: f64 = 0.05;

/// The calls and exits of a trip, on average.
pub(super) struct Counted {
    /// System calls of the VMM by name.
    pub(super) calls: Vec<(String, f64)>,
    /// Exits by reason.
    pub(super) exits: Vec<(String, f64)>,
}

/// Counts what happens during `action`, which makes this many trips. Other VMs are idle meanwhile.
///
/// # Errors
/// If the kernel does not trace, or `action` fails.
pub(super) fn count<T>(trips: u32, action: impl FnOnce() -> io::Result<T>) -> io::Result<Counted> {
    mount()?;
    let calls = Histogram::begin(CALLS, "common_pid.execname,id.syscall")?;
    let exits = Histogram::begin(EXITS, "common_pid.execname,exit_reason")?;
    action()?;
    Ok(Counted { calls: calls.end(trips)?, exits: exits.end(trips)? })
}

/// The lines of what VMM, guest and scheduler do during `action`.
///
/// # Errors
/// If the kernel does not trace, or `action` fails.
pub(super) fn timeline<T>(action: impl FnOnce() -> io::Result<T>) -> io::Result<Vec<String>> {
    mount()?;
    let switch = |on: &str| EVENTS.iter().try_for_each(|event| write(&format!("events/{event}/enable"), on));
    write("trace", "")?;
    switch("1")?;
    let done = action();
    switch("0")?;
    done?;
    let text = fs::read_to_string(Path::new(TRACING).join("trace"))?;
    let events: Vec<Event> = text.lines().filter_map(Event::parse).collect();
    let begin = events.first().map_or(0.0, |event| event.us);
    Ok(events.iter().filter_map(|event| event.told(begin)).collect())
}

fn mount() -> io::Result<()> {
    if !Path::new(TRACING).join("events").exists() {
        let status = Command::new("mount").args(["-t", "tracefs", "none", TRACING]).status()?;
        if !status.success() {
            return Err(io::Error::other("the kernel has no tracefs"));
        }
    }
    Ok(())
}

fn write(path: &str, text: &str) -> io::Result<()> {
    fs::write(Path::new(TRACING).join(path), text)
}

/// A tracepoint that is being counted.
struct Histogram {
    event: &'static str,
    trigger: String,
}

impl Histogram {
    fn begin(event: &'static str, keys: &str) -> io::Result<Self> {
        let trigger = format!("hist:keys={keys}:size=4096");
        write(&format!("events/{event}/trigger"), &trigger)?;
        Ok(Self { event, trigger })
    }

    /// The counts by the second key, of the threads of a VMM, most first.
    fn end(self, trips: u32) -> io::Result<Vec<(String, f64)>> {
        let text = fs::read_to_string(Path::new(TRACING).join("events").join(self.event).join("hist"))?;
        write(&format!("events/{}/trigger", self.event), &format!("!{}", self.trigger))?;
        let mut counts: BTreeMap<String, f64> = BTreeMap::new();
        for (thread, key, count) in text.lines().filter_map(entry) {
            if is_vmm(thread) {
                *counts.entry(key.to_owned()).or_default() += count / f64::from(trips);
            }
        }
        let mut counts: Vec<_> = counts.into_iter().filter(|(_, count)| *count >= RARE).collect();
        counts.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(counts)
    }
}

/// An entry, `{ common_pid: net0-0 [123], id: sys_readv [ 19] } hitcount: 200`: thread, second key, count.
fn entry(line: &str) -> Option<(&str, &str, f64)> {
    let (keys, count) = line.strip_prefix('{')?.split_once('}')?;
    let (thread, key) = keys.split_once(',')?;
    let thread = thread.split_once(':')?.1.split('[').next()?.trim();
    let key = key.split_once(':')?.1.split('[').next()?.trim();
    Some((thread, key.trim_start_matches("sys_"), count.split_once(':')?.1.trim().parse().ok()?))
}

/// True for the threads of VMMs and of vhost-net.
fn is_vmm(thread: &str) -> bool {
    ["net", "vcpu", "qemu", "CPU ", "vhost"].iter().any(|start| thread.starts_with(start))
}

/// A line of the trace.
struct Event<'a> {
    thread: &'a str,
    us: f64,
    name: &'a str,
    rest: &'a str,
}

impl<'a> Event<'a> {
    /// Parses `  net0-0-123  [000] d..2.  12.345678: sched_switch: ...`.
    fn parse(line: &'a str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (head, tail) = line.split_once(": ")?;
        let (name, rest) = tail.split_once(": ").or_else(|| tail.split_once(' '))?;
        let (thread, head) = head.split_once(" [")?;
        let thread = thread.trim().rsplit_once('-')?.0;
        let seconds: f64 = head.split_whitespace().last()?.parse().ok()?;
        Some(Self { thread, us: seconds * 1e6, name, rest })
    }

    /// A line for people, if it is one that matters.
    fn told(&self, begin: f64) -> Option<String> {
        let what = match self.name {
            "sched_switch" => {
                let next = self.rest.split("next_comm=").nth(1)?.split(" next_pid").next()?;
                format!("-> {next}")
            }
            _ if !is_vmm(self.thread) => return None,
            "kvm_exit" => {
                let reason = self.rest.split("reason ").nth(1)?;
                format!("exit {}", reason.split_whitespace().next()?)
            }
            _ => call_name(self.rest.strip_prefix("NR ")?.split_whitespace().next()?.parse().ok()?),
        };
        Some(format!("{:>9.0}  {:16} {what}", self.us - begin, self.thread))
    }
}

fn call_name(number: i64) -> String {
    let name = match number {
        libc::SYS_read => "read",
        libc::SYS_write => "write",
        libc::SYS_readv => "readv",
        libc::SYS_writev => "writev",
        libc::SYS_ppoll => "ppoll",
        libc::SYS_ioctl => "ioctl",
        libc::SYS_sched_yield => "sched_yield",
        libc::SYS_epoll_wait => "epoll_wait",
        libc::SYS_epoll_ctl => "epoll_ctl",
        libc::SYS_futex => "futex",
        _ => return format!("system call {number}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_of_a_histogram_is_read() {
        let line =
            "{ common_pid: net0-0          [      1234], id: sys_readv                 [ 19] } hitcount:        200";
        assert_eq!(entry(line), Some(("net0-0", "readv", 200.0)));
        let line = "{ common_pid: vcpu0           [      1236], exit_reason:        120 } hitcount:         99";
        assert_eq!(entry(line), Some(("vcpu0", "120", 99.0)));
        assert_eq!(entry("Totals:"), None);
    }

    #[test]
    fn line_of_a_trace_is_told() {
        let call = "          net0-0-1234    [000] .....    12.345678: sys_enter: NR 19 (5, 7f, 1, 0, 0, 0)";
        let event = Event::parse(call).unwrap();
        assert_eq!(event.told(12_345_600.0).unwrap(), "       78  net0-0           readv");
        let switch = "          <idle>-0       [000] d..2.    12.345700: sched_switch: prev_comm=swapper/0 prev_pid=0 \
                      prev_prio=120 prev_state=R ==> next_comm=vcpu0 next_pid=1236 next_prio=120";
        assert_eq!(Event::parse(switch).unwrap().told(12_345_600.0).unwrap(), "      100  <idle>           -> vcpu0");
        let exit = "           vcpu0-1236    [000] d....    12.345700: kvm_exit: vcpu 0 reason hlt rip 0x1 info1 0x0";
        assert_eq!(Event::parse(exit).unwrap().told(12_345_600.0).unwrap(), "      100  vcpu0            exit hlt");
        assert!(Event::parse("# tracer: nop").is_none());
    }
}
