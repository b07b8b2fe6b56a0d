//! An empty root folder.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

/// A folder that exists wherever there is KVM, and that is covered in the new mount namespace only.
const MOUNT_POINT: &str = "/dev";

/// Gives the calling process, which is in a mount namespace of its own, an empty root folder that it cannot write to.
/// Open descriptors go on working.
pub(crate) fn empty() -> nix::Result<()> {
    let none = None::<&str>;
    // Nothing that is mounted here may show in the namespace that this one was copied from.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("minivmm"), MOUNT_POINT, Some("tmpfs"), flags, Some("size=4k,nr_inodes=1,mode=0555"))?;
    chdir(MOUNT_POINT)?;
    // The old root is mounted over the new one, and leaves it free when it is unmounted (pivot_root(2)).
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}
