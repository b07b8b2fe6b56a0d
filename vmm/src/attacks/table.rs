//! The attacks, as data: read by the fault point in the process, and by the test that expects it to be killed.

use std::ffi::CStr;

/// A system call that no thread needs.
pub(crate) struct Attack {
    /// Its name on the command line of the test.
    pub(crate) name: &'static str,
    /// The call.
    pub(crate) number: libc::c_long,
    pub(crate) args: &'static [Arg],
    /// The kinds of threads that it does not kill, with the kernel's answer: their list has a call of this shape.
    pub(crate) survivors: &'static [(&'static str, i32)],
}

/// An argument. They are real, so that an attack would do something where nothing stops it, but no harm.
#[derive(Clone, Copy)]
pub(crate) enum Arg {
    /// A number.
    Number(i64),
    /// A text.
    Text(&'static CStr),
    /// The process that started this one.
    Parent,
    /// A page of zeros.
    Page,
}

use Arg::{Number as N, Page, Parent, Text as T};

const fn attack(name: &'static str, number: libc::c_long, args: &'static [Arg]) -> Attack {
    Attack { name, number, args, survivors: &[] }
}

const fn survived(
    name: &'static str,
    number: libc::c_long,
    args: &'static [Arg],
    survivors: &'static [(&'static str, i32)],
) -> Attack {
    Attack { name, number, args, survivors }
}

/// `AT_FDCWD`.
const HERE: Arg = N(libc::AT_FDCWD as i64);
/// No descriptor.
const NONE: Arg = N(-1);
const FILE: Arg = T(c"/etc/passwd");
const NOWHERE: Arg = T(c"/nonexistent/file");

const fn ioctl(name: &'static str, args: &'static [Arg]) -> Attack {
    attack(name, libc::SYS_ioctl, args)
}

/// All of them.
pub(crate) const ATTACKS: &[Attack] = &[
    // Files.
    attack("open", libc::SYS_open, &[FILE, N(0)]),
    survived("openat", libc::SYS_openat, &[HERE, FILE, N(0)], &[("services", 0)]),
    attack("openat-write", libc::SYS_openat, &[HERE, FILE, N(libc::O_WRONLY as i64)]),
    attack("openat2", libc::SYS_openat2, &[HERE, FILE, Page, N(24)]),
    attack("open_by_handle_at", libc::SYS_open_by_handle_at, &[HERE, Page, N(0)]),
    attack("creat", libc::SYS_creat, &[NOWHERE, N(0)]),
    attack("unlink", libc::SYS_unlink, &[NOWHERE]),
    attack("unlinkat", libc::SYS_unlinkat, &[HERE, NOWHERE, N(0)]),
    attack("rename", libc::SYS_rename, &[NOWHERE, NOWHERE]),
    attack("renameat", libc::SYS_renameat, &[HERE, NOWHERE, HERE, NOWHERE]),
    attack("link", libc::SYS_link, &[NOWHERE, NOWHERE]),
    attack("symlink", libc::SYS_symlink, &[NOWHERE, NOWHERE]),
    attack("mkdir", libc::SYS_mkdir, &[NOWHERE, N(0)]),
    attack("mknod", libc::SYS_mknod, &[NOWHERE, N(0), N(0)]),
    attack("chmod", libc::SYS_chmod, &[NOWHERE, N(0)]),
    attack("chown", libc::SYS_chown, &[NOWHERE, N(0), N(0)]),
    attack("truncate", libc::SYS_truncate, &[NOWHERE, N(0)]),
    attack("readlink", libc::SYS_readlink, &[T(c"/proc/self/exe"), Page, N(64)]),
    attack("getdents64", libc::SYS_getdents64, &[NONE, Page, N(64)]),
    attack("memfd_create", libc::SYS_memfd_create, &[T(c"x"), N(0)]),
    attack("inotify_init1", libc::SYS_inotify_init1, &[N(0)]),
    attack("fanotify_init", libc::SYS_fanotify_init, &[N(0), N(0)]),
    // Programs and processes.
    attack("execve", libc::SYS_execve, &[T(c"/bin/true"), N(0), N(0)]),
    attack("execveat", libc::SYS_execveat, &[HERE, T(c"/bin/true"), N(0), N(0), N(0)]),
    attack("fork", libc::SYS_fork, &[]),
    attack("vfork", libc::SYS_vfork, &[]),
    attack("clone-process", libc::SYS_clone, &[N(libc::SIGCHLD as i64), N(0), N(0), N(0), N(0)]),
    attack("clone-namespace", libc::SYS_clone, &[N(0x1000_0000 | libc::SIGCHLD as i64), N(0), N(0), N(0), N(0)]),
    survived(
        "clone3",
        libc::SYS_clone3,
        &[Page, N(88)],
        &[("control", libc::ENOSYS), ("spawner", libc::ENOSYS), ("services", libc::ENOSYS)],
    ),
    attack("kill", libc::SYS_kill, &[Parent, N(0)]),
    attack("tkill", libc::SYS_tkill, &[Parent, N(0)]),
    attack("tgkill", libc::SYS_tgkill, &[Parent, Parent, N(0)]),
    attack("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, &[Parent, N(0), Page]),
    attack("pidfd_open", libc::SYS_pidfd_open, &[Parent, N(0)]),
    attack("pidfd_getfd", libc::SYS_pidfd_getfd, &[NONE, N(0), N(0)]),
    attack("pidfd_send_signal", libc::SYS_pidfd_send_signal, &[NONE, N(0), N(0), N(0)]),
    attack("ptrace", libc::SYS_ptrace, &[N(0x4206), Parent, N(0), N(0)]),
    attack("process_vm_readv", libc::SYS_process_vm_readv, &[Parent, Page, N(0), Page, N(0), N(0)]),
    attack("process_vm_writev", libc::SYS_process_vm_writev, &[Parent, Page, N(0), Page, N(0), N(0)]),
    attack("process_madvise", libc::SYS_process_madvise, &[NONE, Page, N(0), N(0), N(0)]),
    attack("kcmp", libc::SYS_kcmp, &[Parent, Parent, N(0), N(0), N(0)]),
    attack("prlimit64", libc::SYS_prlimit64, &[Parent, N(7), N(0), Page]),
    attack("sched_setaffinity", libc::SYS_sched_setaffinity, &[N(0), N(0), Page]),
    attack("setpriority", libc::SYS_setpriority, &[N(0), N(0), N(19)]),
    // Sockets.
    attack("socket-unix", libc::SYS_socket, &[N(1), N(1), N(0)]),
    survived("socket-inet", libc::SYS_socket, &[N(2), N(1), N(0)], &[("services", 0)]),
    survived("socket-inet6", libc::SYS_socket, &[N(10), N(2), N(0)], &[("services", 0)]),
    survived("socket-netlink", libc::SYS_socket, &[N(16), N(3), N(0)], &[("services", 0)]),
    attack("socket-packet", libc::SYS_socket, &[N(17), N(3), N(0)]),
    attack("socket-vsock", libc::SYS_socket, &[N(40), N(1), N(0)]),
    survived("socketpair", libc::SYS_socketpair, &[N(1), N(1), N(0), Page], &[("services", 0)]),
    attack("bind", libc::SYS_bind, &[NONE, Page, N(16)]),
    attack("listen", libc::SYS_listen, &[NONE, N(1)]),
    survived("connect", libc::SYS_connect, &[NONE, Page, N(16)], &[("services", libc::EBADF)]),
    attack("sendto-address", libc::SYS_sendto, &[NONE, Page, N(1), N(0), Page, N(16)]),
    attack("sendmsg", libc::SYS_sendmsg, &[NONE, Page, N(0)]),
    attack("sendmmsg", libc::SYS_sendmmsg, &[NONE, Page, N(1), N(0)]),
    attack("setsockopt-filter", libc::SYS_setsockopt, &[NONE, N(1), N(27), Page, N(4)]),
    // Namespaces, mounts, users.
    attack("unshare", libc::SYS_unshare, &[N(0x1000_0000)]),
    attack("setns", libc::SYS_setns, &[NONE, N(0)]),
    attack("mount", libc::SYS_mount, &[NOWHERE, NOWHERE, T(c"tmpfs"), N(0), N(0)]),
    attack("umount2", libc::SYS_umount2, &[NOWHERE, N(0)]),
    attack("fsopen", libc::SYS_fsopen, &[T(c"tmpfs"), N(0)]),
    attack("open_tree", libc::SYS_open_tree, &[HERE, T(c"/"), N(1)]),
    attack("chroot", libc::SYS_chroot, &[T(c"/")]),
    attack("chdir", libc::SYS_chdir, &[T(c"/")]),
    attack("pivot_root", libc::SYS_pivot_root, &[NOWHERE, NOWHERE]),
    attack("setuid", libc::SYS_setuid, &[N(0)]),
    attack("setresuid", libc::SYS_setresuid, &[N(0), N(0), N(0)]),
    attack("setgid", libc::SYS_setgid, &[N(0)]),
    attack("setgroups", libc::SYS_setgroups, &[N(0), N(0)]),
    attack("capset", libc::SYS_capset, &[Page, Page]),
    attack("prctl-dumpable", libc::SYS_prctl, &[N(libc::PR_SET_DUMPABLE as i64), N(1)]),
    attack("prctl-ptracer", libc::SYS_prctl, &[N(0x5961_6d61), N(-1)]),
    attack("seccomp-notify", libc::SYS_seccomp, &[N(2), N(0), Page]),
    attack("keyctl", libc::SYS_keyctl, &[N(0), N(-3), N(1)]),
    attack("add_key", libc::SYS_add_key, &[T(c"user"), T(c"x"), Page, N(1), N(-3)]),
    attack("request_key", libc::SYS_request_key, &[T(c"user"), T(c"x"), N(0), N(0)]),
    // Memory that could be executed.
    attack("mmap-exec", libc::SYS_mmap, &[N(0), N(4096), N(5), N(0x22), NONE, N(0)]),
    attack("mprotect-exec", libc::SYS_mprotect, &[Page, N(4096), N(5)]),
    attack("pkey_mprotect", libc::SYS_pkey_mprotect, &[Page, N(4096), N(5), NONE]),
    attack("remap_file_pages", libc::SYS_remap_file_pages, &[Page, N(4096), N(0), N(0), N(0)]),
    attack("personality", libc::SYS_personality, &[N(0x40_0000)]),
    attack("shmget", libc::SYS_shmget, &[N(0), N(4096), N(0)]),
    attack("shmat", libc::SYS_shmat, &[NONE, N(0), N(0)]),
    // The kernel's large surfaces.
    attack("bpf", libc::SYS_bpf, &[N(0), Page, N(64)]),
    attack("perf_event_open", libc::SYS_perf_event_open, &[Page, N(0), NONE, NONE, N(0)]),
    attack("userfaultfd", libc::SYS_userfaultfd, &[N(1)]),
    attack("io_uring_setup", libc::SYS_io_uring_setup, &[N(1), Page]),
    attack("io_setup", libc::SYS_io_setup, &[N(1), Page]),
    attack("vmsplice", libc::SYS_vmsplice, &[NONE, Page, N(0), N(0)]),
    attack("init_module", libc::SYS_init_module, &[Page, N(0), Page]),
    attack("finit_module", libc::SYS_finit_module, &[NONE, Page, N(0)]),
    attack("kexec_load", libc::SYS_kexec_load, &[N(0), N(0), N(0), N(0)]),
    attack("reboot", libc::SYS_reboot, &[N(0), N(0), N(0), N(0)]),
    attack("swapon", libc::SYS_swapon, &[NOWHERE, N(0)]),
    attack("acct", libc::SYS_acct, &[NOWHERE]),
    attack("syslog", libc::SYS_syslog, &[N(10), N(0), N(0)]),
    attack("settimeofday", libc::SYS_settimeofday, &[N(0), N(0)]),
    attack("sethostname", libc::SYS_sethostname, &[Page, N(0)]),
    attack("iopl", libc::SYS_iopl, &[N(3)]),
    attack("ioperm", libc::SYS_ioperm, &[N(0), N(1), N(1)]),
    attack("modify_ldt", libc::SYS_modify_ldt, &[N(0), Page, N(16)]),
    // Calls of the 32-bit interface and of x32 have other numbers.
    attack("x32-open", 0x4000_0000 | libc::SYS_open, &[FILE, N(0)]),
    // Descriptors that the process has.
    ioctl("ioctl-SIOCSIFHWADDR", &[NONE, N(0x8924), Page]),
    ioctl("ioctl-SIOCSIFFLAGS", &[NONE, N(0x8914), Page]),
    ioctl("ioctl-TUNSETIFF", &[NONE, N(0x4004_54ca), Page]),
    ioctl("ioctl-TUNSETPERSIST", &[NONE, N(0x4004_54cb), N(1)]),
    ioctl("ioctl-TUNSETOWNER", &[NONE, N(0x4004_54cc), N(0)]),
    ioctl("ioctl-TUNSETCARRIER", &[NONE, N(0x4004_54e2), Page]),
    ioctl("ioctl-TUNATTACHFILTER", &[NONE, N(0x4010_54d5), Page]),
    survived("ioctl-KVM_CREATE_VM", libc::SYS_ioctl, &[NONE, N(0xae01), N(0)], &[("control", libc::EBADF)]),
    survived("ioctl-KVM_CREATE_VCPU", libc::SYS_ioctl, &[NONE, N(0xae41), N(0)], &[("control", libc::EBADF)]),
    survived(
        "ioctl-KVM_SET_USER_MEMORY_REGION",
        libc::SYS_ioctl,
        &[NONE, N(0x4020_ae46), Page],
        &[("control", libc::EBADF)],
    ),
    ioctl("ioctl-KVM_CREATE_DEVICE", &[NONE, N(0xc00c_aee0), Page]),
    ioctl("ioctl-KVM_GET_DIRTY_LOG", &[NONE, N(0x4010_ae42), Page]),
    ioctl("ioctl-KVM_SET_GUEST_DEBUG", &[NONE, N(0x4048_ae9b), Page]),
    ioctl("ioctl-VHOST_SET_OWNER", &[NONE, N(0xaf01), N(0)]),
    ioctl("ioctl-VHOST_SET_MEM_TABLE", &[NONE, N(0x4008_af03), Page]),
    ioctl("ioctl-TIOCSTI", &[NONE, N(0x5412), Page]),
    ioctl("ioctl-TIOCLINUX", &[NONE, N(0x541c), Page]),
    ioctl("ioctl-BLKDISCARD", &[NONE, N(0x1277), Page]),
    ioctl("ioctl-SG_IO", &[NONE, N(0x2285), Page]),
    ioctl("ioctl-FS_IOC_SETFLAGS", &[NONE, N(0x4008_6602), Page]),
];
