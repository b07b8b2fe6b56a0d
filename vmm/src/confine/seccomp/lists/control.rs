//! The calls of main once the machine runs, and when its guest has ended: it stops it, builds it anew or undoes it.

use super::{FAILED, INTX, ON_VHOST, PROGRAM, call, request};
use crate::confine::seccomp::ioctls;
use crate::confine::seccomp::rule::Rule;

/// A clone that makes a thread of this process, in the namespaces that it is in.
const THREAD: u32 =
    (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD).unsigned_abs();
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .unsigned_abs();

/// Starts threads.
pub(in crate::confine::seccomp) const STARTS_THREADS: &[Rule] = &[
    call!(SYS_clone).bits(0, THREAD | NAMESPACES, THREAD),
    call!(SYS_clone3),
    call!(SYS_set_robust_list),
    call!(SYS_rseq),
    call!(SYS_sched_getaffinity),
    call!(SYS_prctl).is(0, libc::PR_SET_NAME.unsigned_abs()),
];

/// The calls of threads that give themselves filters of their own.
pub(in crate::confine::seccomp) const INSTALLS_FILTERS: &[Rule] = &[
    call!(SYS_prctl).is(0, libc::PR_SET_NO_NEW_PRIVS.unsigned_abs()),
    call!(SYS_seccomp).is(0, libc::SECCOMP_SET_MODE_FILTER),
];

const REBOOT: &str = "the guest reboots: the next machine is built";
const CALLER: &str = "a caller asks the VM";
const TERMINAL: &str = "a terminal on stdin";
const KEEPER: &str = "a VM with cards: the keeper reports, and undoes their network at the end";
const DEVICE: &str = "a disk on a block device";
const CARD: &str = "a card is built, or reset";
const IMPAIRED: &str = "a card with delays and losses of its own is built";

/// The control loop, the end of a machine, and the next one.
pub(in crate::confine::seccomp) const CONTROL: &[Rule] = &[
    // Events, signals and the console.
    call!(SYS_fcntl).is(1, libc::F_DUPFD_CLOEXEC.unsigned_abs()),
    call!(SYS_tgkill)
        .to_own_thread(libc::SIGUSR1)
        .rare("a vCPU that is in the guest when the machine ends is brought back"),
    request!(TCGETS).rare(TERMINAL),
    request!(TIOCGPGRP).rare(TERMINAL),
    call!(SYS_getpgrp).rare(TERMINAL),
    call!(SYS_prlimit64).is(0, 0).rare("an error of the host is told with the limit that it comes from"),
    // Its supervisor, and the services.
    call!(SYS_recvfrom).rare("a signal arrives"),
    call!(SYS_sendto).null(4).rare("a signal is heard"),
    // Who asks the VM.
    call!(SYS_accept4).rare(CALLER),
    call!(SYS_getsockopt).rare(CALLER),
    request!(FIONBIO).rare(CALLER),
    call!(SYS_geteuid).rare(CALLER),
    // The keeper, and addresses that are heard.
    call!(SYS_recvmsg).rare(KEEPER),
    call!(SYS_setsockopt).is(2, libc::SO_RCVTIMEO.unsigned_abs()).rare(KEEPER),
    call!(SYS_shutdown).rare(KEEPER),
    call!(SYS_wait4).rare(KEEPER),
    // The end of a machine: interrupts and devices are taken back.
    request!(KVM_GET_IRQCHIP).rare("a reset: the state of the interrupt controller tells a reboot from a panic"),
    request!(KVM_IRQFD).rare("a vector that was in use is released"),
    request!(KVM_SET_GSI_ROUTING).rare("a vector that was in use is released"),
    request!(KVM_IRQ_LINE).rare(INTX),
    request!(TUNSETOFFLOAD).rare(CARD),
    request!(TUNSETVNETHDRSZ).rare(CARD),
    request!(TUNSETQUEUE).rare(CARD),
    request!(TUNSETSTEERINGEBPF).rare(PROGRAM),
    // The next machine: KVM,
    request!(KVM_CREATE_VM).rare(REBOOT),
    request!(KVM_CHECK_EXTENSION).rare(REBOOT),
    request!(KVM_GET_VCPU_MMAP_SIZE).rare(REBOOT),
    request!(KVM_SET_USER_MEMORY_REGION).rare(REBOOT),
    request!(KVM_SET_IDENTITY_MAP_ADDR).rare(REBOOT),
    request!(KVM_SET_TSS_ADDR).rare(REBOOT),
    request!(KVM_ENABLE_CAP).rare("a guest with more than 254 vCPUs reboots"),
    request!(KVM_CREATE_IRQCHIP).rare(REBOOT),
    request!(KVM_SET_IRQCHIP).rare(REBOOT),
    request!(KVM_CREATE_VCPU).rare(REBOOT),
    request!(KVM_SET_CPUID2).rare(REBOOT),
    request!(KVM_SET_MSRS).rare(REBOOT),
    request!(KVM_SET_REGS).rare(REBOOT),
    request!(KVM_GET_SREGS).rare(REBOOT),
    request!(KVM_SET_SREGS).rare(REBOOT),
    request!(KVM_SET_LAPIC).rare(REBOOT),
    request!(KVM_GET_LAPIC).rare(REBOOT),
    request!(KVM_GET_REGS).rare(FAILED),
    // its kernel,
    call!(SYS_lseek).rare(REBOOT),
    call!(SYS_pread64).rare(REBOOT),
    call!(SYS_statx).rare(REBOOT),
    // and its devices.
    call!(SYS_eventfd2).rare(REBOOT),
    call!(SYS_epoll_create1).rare(IMPAIRED),
    call!(SYS_epoll_ctl).rare(IMPAIRED),
    call!(SYS_fallocate).rare("a disk is asked whether it has holes"),
    request!(TUNGETIFF).rare(CARD),
    request!(BLKSSZGET).rare(DEVICE),
    request!(BLKPBSZGET).rare(DEVICE),
    request!(BLKALIGNOFF).rare(DEVICE),
    request!(BLKIOMIN).rare(DEVICE),
    request!(BLKIOOPT).rare(DEVICE),
];

/// The other calls of main in a VM with cards on vhost-net.
pub(in crate::confine::seccomp) const VHOST_CONTROL: &[Rule] =
    &[request!(VHOST_GET_FEATURES).rare(ON_VHOST), request!(VHOST_RESET_OWNER).rare(ON_VHOST)];
