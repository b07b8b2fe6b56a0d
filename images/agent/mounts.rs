//! The kernel's file systems and the writable places, mounted where they are not yet: an agent on a root disk finds
//! some of them moved there by the agent of the initramfs.

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// `RAMFS_MAGIC` (linux/magic.h), which nix does not have.
const RAMFS_MAGIC: u32 = 0x8584_58f6;

/// One mount of the agent's.
struct Place {
    target: &'static str,
    fstype: &'static str,
    options: &'static str,
}

const KERNEL_INTERFACES: [Place; 4] = [
    Place { target: "/proc", fstype: "proc", options: "" },
    Place { target: "/sys", fstype: "sysfs", options: "" },
    Place { target: "/dev", fstype: "devtmpfs", options: "mode=0755" },
    Place { target: "/run", fstype: "tmpfs", options: "mode=0755" },
];

const SCRATCH: [Place; 3] = [
    Place { target: "/dev/pts", fstype: "devpts", options: "mode=0620,ptmxmode=0666" },
    Place { target: "/dev/shm", fstype: "tmpfs", options: "mode=1777" },
    Place { target: "/tmp", fstype: "tmpfs", options: "mode=1777" },
];

/// Mounts what the agent itself needs. Returns sentences about what failed, since there may be no console yet.
pub(crate) fn kernel_interfaces() -> Vec<String> {
    KERNEL_INTERFACES.iter().filter_map(Place::provide).collect()
}

/// Mounts what programs need. Returns sentences about what failed.
pub(crate) fn scratch() -> Vec<String> {
    SCRATCH.iter().filter_map(Place::provide).collect()
}

/// Returns whether the root is the one that the kernel unpacked, to be left for a real one.
pub(crate) fn on_initramfs() -> bool {
    let ramfs = |kind: FsType| u32::try_from(kind.0).is_ok_and(|magic| magic == RAMFS_MAGIC);
    statfs("/").is_ok_and(|root| root.filesystem_type() == TMPFS_MAGIC || ramfs(root.filesystem_type()))
}

impl Place {
    fn provide(&self) -> Option<String> {
        if is_mounted(Path::new(self.target)) {
            return None;
        }
        // The mount below tells better what is wrong with a directory that could not be made.
        let _ = fs::create_dir_all(self.target);
        let flags = if self.fstype == "devtmpfs" { MsFlags::MS_NOSUID } else { MsFlags::MS_NOSUID | MsFlags::MS_NODEV };
        mount(Some(self.fstype), self.target, Some(self.fstype), flags, Some(self.options))
            .err()
            .map(|error| format!("Cannot mount {} on {}: {error}", self.fstype, self.target))
    }
}

/// A mount point is on another device than its parent.
fn is_mounted(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
    device(path).is_some_and(|own| path.parent().and_then(device) != Some(own))
}
