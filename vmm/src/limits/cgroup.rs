//! Limits of the cgroups of this process (cgroups(7)): the version 2 hierarchy, and the memory controller of version 1.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the hierarchies are mounted, by convention.
const MOUNT: &str = "/sys/fs/cgroup";

/// From this number of bytes on version 1 means that there is no limit.
const UNLIMITED: u64 = 1 << 62;

/// How many cgroups are looked at, from that of the process up.
const DEPTH_MAX: usize = 32;

/// The memory that the strictest cgroup allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryLimit {
    /// Its path in the hierarchy.
    pub(crate) cgroup: String,
    /// RAM and swap in bytes.
    pub(crate) bytes: u64,
}

/// The cgroups of this process as the kernel lists them; none on a kernel without.
pub(crate) struct Cgroups(String);

impl Cgroups {
    /// Asks the kernel.
    pub(crate) fn of_this_process() -> Self {
        Self(fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
    }

    /// The strictest limit of memory, with the swap that may be used besides, of which the host has `host_swap` bytes.
    pub(crate) fn memory_limit(&self, host_swap: u64) -> Option<MemoryLimit> {
        limit_in(Path::new(MOUNT), &self.0, host_swap)
    }

    /// The strictest limit of processes.
    pub(crate) fn pids_max(&self) -> Option<u64> {
        let (folder, levels) = hierarchy(Path::new(MOUNT), &self.0, "pids")?;
        levels.iter().filter_map(|level| number(&folder.join(level).join("pids.max"))).min()
    }
}

fn limit_in(mount: &Path, own: &str, host_swap: u64) -> Option<MemoryLimit> {
    let (folder, levels) = hierarchy(mount, own, "memory")?;
    let files = if folder == mount { ["memory.max", "memory.swap.max"] } else { ["memory.limit_in_bytes", ""] };
    let limit = |level: &String| {
        let cgroup = folder.join(level);
        let memory = number(&cgroup.join(files[0])).filter(|bytes| *bytes < UNLIMITED)?;
        let swap = number(&cgroup.join(files[1])).unwrap_or(host_swap).min(host_swap);
        Some(MemoryLimit { cgroup: format!("/{level}"), bytes: memory.saturating_add(swap) })
    };
    levels.iter().filter_map(limit).min_by_key(|limit| limit.bytes)
}

/// The folder of the hierarchy that has a controller, and the cgroups in it that this process is in: version 2 has one
/// for all.
fn hierarchy(mount: &Path, own: &str, controller: &str) -> Option<(PathBuf, Vec<String>)> {
    let own_of = |prefix: &str| own.lines().find_map(|line| Some(line.split_once(prefix)?.1));
    if mount.join("cgroup.controllers").exists() {
        return Some((mount.to_owned(), levels(own.lines().find_map(|line| line.strip_prefix("0::"))?)));
    }
    Some((mount.join(controller), levels(own_of(&format!(":{controller}:"))?)))
}

/// A cgroup and those it is in, as paths without the slash in front; the root is the last.
fn levels(path: &str) -> Vec<String> {
    let path = Path::new(path.trim_start_matches('/'));
    path.ancestors().take(DEPTH_MAX).map(|level| level.to_string_lossy().into_owned()).collect()
}

/// The number in a file; none if it is `max`, or there is no such file.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn strictest_cgroup_above_the_process_counts() {
        let mount = tempfile::tempdir().unwrap();
        write(
            mount.path(),
            &[
                ("cgroup.controllers", "memory pids\n"),
                ("a/memory.max", "1000\n"),
                ("a/memory.swap.max", "50\n"),
                ("a/b/memory.max", "max\n"),
                ("a/b/c/memory.max", "2000\n"),
                ("a/b/c/memory.swap.max", "max\n"),
            ],
        );
        let limit = |swap| limit_in(mount.path(), "0::/a/b/c\n", swap).unwrap();
        assert_eq!(limit(0), MemoryLimit { cgroup: "/a".to_owned(), bytes: 1000 });
        assert_eq!(limit(500), MemoryLimit { cgroup: "/a".to_owned(), bytes: 1050 });
        assert_eq!(limit_in(mount.path(), "0::/a2\n", 0), None);
        assert_eq!(limit_in(mount.path(), "", 0), None);
    }

    #[test]
    fn limit_of_version_1_is_found_and_a_huge_one_is_none() {
        let mount = tempfile::tempdir().unwrap();
        let file = "memory/a/memory.limit_in_bytes";
        let own = "3:cpu,cpuacct:/x\n2:memory:/a\n";
        write(mount.path(), &[(file, "4096\n")]);
        assert_eq!(limit_in(mount.path(), own, 1).unwrap().bytes, 4097);
        write(mount.path(), &[(file, "9223372036854771712\n")]);
        assert_eq!(limit_in(mount.path(), own, 1), None);
    }
}
