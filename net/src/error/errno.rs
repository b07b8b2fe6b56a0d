//! Hints for errnos that mean the same whatever the operation: limits of the process and of the host, and privileges.

/// The hint for an errno.
pub(super) fn hint(errno: i32) -> Option<&'static str> {
    let hint = match errno {
        libc::EMFILE => {
            "this process has as many descriptors as it may: raise ulimit -Hn (LimitNOFILE= in a unit), or ask for \
             fewer queues"
        }
        libc::ENFILE => "the host has as many open files as it may: sysctl -w fs.file-max=N with a larger number",
        libc::ENOMEM | libc::ENOBUFS => {
            "the kernel is out of memory for this: free some, or raise the control group's limit"
        }
        libc::EPERM | libc::EACCES => {
            "this needs CAP_NET_ADMIN: run as root, or use --net tap=NAME with a tap that root made for this user"
        }
        _ => return None,
    };
    Some(hint)
}
