//! The calls of the processes beside the VMM: its supervisor and the services; and those that the keeper may not make.

use super::{call, request};
use crate::confine::seccomp::ioctls;
use crate::confine::seccomp::rule::Rule;

const JOB: &str = "a job is suspended and continued by its shell";
const END: &str = "the VMM has ended";
const RESOLVER: &str = "a guest asks for a name of the outside";
const LINKS: &str = "a guest asks for the name of another VM: the links of the host tell it";

/// Passes signals on to the VMM, and waits for its end.
pub(in crate::confine::seccomp) const SUPERVISOR: &[Rule] = &[
    call!(SYS_recvfrom).rare("the VMM has heard of a signal"),
    call!(SYS_sendto).null(4).rare("a signal is passed on"),
    call!(SYS_pidfd_send_signal).is(1, libc::SIGSTOP.unsigned_abs()).rare(JOB),
    call!(SYS_pidfd_send_signal).is(1, libc::SIGCONT.unsigned_abs()).rare(JOB),
    call!(SYS_pidfd_send_signal).is(1, libc::SIGKILL.unsigned_abs()).rare("the VMM does not take a signal"),
    call!(SYS_tgkill).to_own_thread(libc::SIGTSTP).rare(JOB),
    call!(SYS_poll).rare(END),
    call!(SYS_wait4).rare(END),
    call!(SYS_getpgrp).rare(END),
    request!(TIOCGPGRP).rare(END),
    request!(TCGETS).rare(END),
];

/// Answers guests on packet sockets that are bound and whose filters are locked, asks the host's resolvers, and reads
/// the links of the host.
///
/// A packet socket must not be turned to another interface: `bind` and `sendto` take the 12 bytes of a netlink address,
/// and an address of a packet socket has 20. `sendmsg`, whose address no filter sees, is not here.
pub(in crate::confine::seccomp) const SERVICES: &[Rule] = &[
    call!(SYS_rt_sigaction).rare("the C library takes over a signal before the first thread"),
    call!(SYS_poll),
    call!(SYS_recvfrom).rare("a guest asks"),
    call!(SYS_recvmsg),
    call!(SYS_sendto).null(4),
    call!(SYS_sendto).is(5, NETLINK_ADDRESS_BYTES).rare(LINKS),
    call!(SYS_socket).is(0, libc::AF_INET.unsigned_abs()).rare(RESOLVER),
    call!(SYS_socket).is(0, libc::AF_INET6.unsigned_abs()).rare(RESOLVER),
    call!(SYS_socket).is(0, libc::AF_NETLINK.unsigned_abs()).rare(LINKS),
    call!(SYS_socketpair).is(0, libc::AF_UNIX.unsigned_abs()),
    call!(SYS_bind).is(2, NETLINK_ADDRESS_BYTES).rare(LINKS),
    call!(SYS_connect).rare(RESOLVER),
    call!(SYS_getsockname).rare(LINKS),
    call!(SYS_getsockopt).rare(RESOLVER),
    call!(SYS_setsockopt).is(1, libc::SOL_NETLINK.unsigned_abs()).rare(LINKS),
    request!(FIONBIO).rare(RESOLVER),
    request!(SIOCGIFINDEX).rare("a resolver with a link-local address"),
    call!(SYS_fcntl),
    call!(SYS_pipe2),
    call!(SYS_eventfd2).rare(LINKS),
    call!(SYS_epoll_create1).rare(LINKS),
    call!(SYS_epoll_ctl).rare(LINKS),
    call!(SYS_epoll_wait).rare(LINKS),
    call!(SYS_openat).bits(2, WRITING, 0),
    call!(SYS_statx),
];

/// Bytes of `struct sockaddr_nl`.
const NETLINK_ADDRESS_BYTES: u32 = 12;
const _: () = assert!(size_of::<libc::sockaddr_nl>() == 12 && size_of::<libc::sockaddr_ll>() == 20);

/// Flags that open a file to change it.
const WRITING: u32 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND).unsigned_abs();

/// The calls that the keeper may not make once it has made a network: to look into processes, to mount, to leave a
/// namespace, to load programs into the kernel, to become another user, to change the host's clock, name or modules.
pub(in crate::confine::seccomp) const NOT_FOR_THE_KEEPER: &[Rule] = &[
    call!(SYS_ptrace),
    call!(SYS_process_vm_readv),
    call!(SYS_process_vm_writev),
    call!(SYS_process_madvise),
    call!(SYS_pidfd_getfd),
    call!(SYS_kcmp),
    call!(SYS_mount),
    call!(SYS_umount2),
    call!(SYS_move_mount),
    call!(SYS_open_tree),
    call!(SYS_fsopen),
    call!(SYS_fsconfig),
    call!(SYS_fsmount),
    call!(SYS_fspick),
    call!(SYS_mount_setattr),
    call!(SYS_pivot_root),
    call!(SYS_chroot),
    call!(SYS_unshare),
    call!(SYS_setns),
    call!(SYS_open_by_handle_at),
    call!(SYS_name_to_handle_at),
    call!(SYS_bpf),
    call!(SYS_perf_event_open),
    call!(SYS_userfaultfd),
    call!(SYS_io_uring_setup),
    call!(SYS_io_uring_enter),
    call!(SYS_io_uring_register),
    call!(SYS_keyctl),
    call!(SYS_add_key),
    call!(SYS_request_key),
    call!(SYS_init_module),
    call!(SYS_finit_module),
    call!(SYS_delete_module),
    call!(SYS_kexec_load),
    call!(SYS_kexec_file_load),
    call!(SYS_reboot),
    call!(SYS_swapon),
    call!(SYS_swapoff),
    call!(SYS_acct),
    call!(SYS_quotactl),
    call!(SYS_settimeofday),
    call!(SYS_clock_settime),
    call!(SYS_clock_adjtime),
    call!(SYS_adjtimex),
    call!(SYS_sethostname),
    call!(SYS_setdomainname),
    call!(SYS_iopl),
    call!(SYS_ioperm),
    call!(SYS_modify_ldt),
    call!(SYS_personality),
    call!(SYS_lookup_dcookie),
    call!(SYS_vhangup),
    call!(SYS_setuid),
    call!(SYS_setgid),
    call!(SYS_setreuid),
    call!(SYS_setregid),
    call!(SYS_setresuid),
    call!(SYS_setresgid),
    call!(SYS_setgroups),
    call!(SYS_setfsuid),
    call!(SYS_setfsgid),
    call!(SYS_mknod),
    call!(SYS_mknodat),
    call!(SYS_memfd_create),
    call!(SYS_memfd_secret),
    call!(SYS_move_pages),
    call!(SYS_migrate_pages),
    call!(SYS_mbind),
    call!(SYS_syslog),
    call!(SYS_landlock_create_ruleset),
    call!(SYS_fanotify_init),
];
