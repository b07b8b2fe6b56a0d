//! The lists, by what a thread does.
//!
//! A call that no test sees says why it is there. A call that is gone from the code is to go from here, too: a test
//! compares the lists with what threads do (`vmm/tests/seccomp.rs`).

mod control;
mod others;
mod worker;

use super::ioctls;
use super::rule::Rule;
pub(super) use control::{CONTROL, INSTALLS_FILTERS, STARTS_THREADS, VHOST_CONTROL};
pub(super) use others::{NOT_FOR_THE_KEEPER, SERVICES, SUPERVISOR};
pub(super) use worker::{DISK, ENTROPY, QUEUE_PAIR, VHOST_WORKER, WORKER};

/// The system call of libc's constant of this name.
macro_rules! call {
    ($name:ident) => {
        Rule::new(libc::$name, stringify!($name))
    };
}
use call;

/// The ioctl of this name.
macro_rules! request {
    ($name:ident) => {
        Rule::ioctl(ioctls::$name, stringify!($name))
    };
}
use request;

/// Memory that could be executed.
const EXECUTABLE: u32 = libc::PROT_EXEC.unsigned_abs();

const ABORT: &str = "abort(), by which the C library ends a process whose heap is broken";
const PANIC: &str = "a panic says where it was, and gives the terminal back";
const HEAP: &str = "the heap takes memory from the kernel, and gives it back, when it has to";
const LOG: &str = "a line for the log does not wait for its reader, and for that asks whether stderr is writable";

/// The calls of every thread: it locks, allocates, logs, sleeps, fails and ends.
pub(super) const EVERY_THREAD: &[Rule] = &[
    call!(SYS_read).rare("an eventfd is emptied"),
    call!(SYS_write).rare(LOG),
    call!(SYS_ppoll).rare(LOG),
    call!(SYS_futex).rare("a lock that is held"),
    call!(SYS_close).rare("a descriptor that is dropped"),
    call!(SYS_fcntl)
        .is(1, libc::F_GETFD.unsigned_abs())
        .rare("a build with debug assertions looks at a descriptor that it closes"),
    call!(SYS_brk).rare(HEAP),
    call!(SYS_mmap).without(2, EXECUTABLE).rare(HEAP),
    call!(SYS_mprotect).without(2, EXECUTABLE).rare(HEAP),
    call!(SYS_mremap).rare(HEAP),
    call!(SYS_munmap).rare(HEAP),
    call!(SYS_madvise).rare("a thread that ends gives its stack back"),
    call!(SYS_getrandom).rare("the keys of a thread's first hash map"),
    call!(SYS_clock_gettime).rare("a host whose clock cannot be read in user space"),
    call!(SYS_clock_nanosleep).rare("a pause, for a caller that has to wait"),
    call!(SYS_restart_syscall).rare("a wait goes on after the process was stopped and continued"),
    call!(SYS_sched_yield).rare("std's channels give way before they sleep"),
    call!(SYS_rt_sigreturn).rare("a signal's handler returns"),
    call!(SYS_rt_sigprocmask).rare("a thread that ends blocks all signals"),
    call!(SYS_sigaltstack).rare("a thread that ends gives the stack of its signal handlers back"),
    call!(SYS_getpid).rare(ABORT),
    call!(SYS_gettid).rare(ABORT),
    call!(SYS_tgkill).to_own_thread(libc::SIGABRT).rare(ABORT),
    request!(TCSETS).rare(PANIC),
    call!(SYS_exit).rare("the end of a thread"),
    call!(SYS_exit_group).rare(PANIC),
];

/// Writes frames to files, and moves the contents of a full one to another.
pub(super) const CAPTURE: &[Rule] = &[
    call!(SYS_ftruncate).rare("a file is full"),
    call!(SYS_lseek).rare("a file is full"),
    call!(SYS_fcntl).is(1, libc::F_DUPFD_CLOEXEC.unsigned_abs()).rare("a file is full"),
];

const FAILED: &str = "a vCPU has failed, and its registers are told";
const INTX: &str = "a driver that leaves MSI-X off";
const PROGRAM: &str = "a card with several queues, whose program chooses among them";

/// Runs a vCPU, and answers its register accesses: these start and stop devices, and move their interrupts and
/// doorbells. `KVM_RUN` comes first.
pub(super) const VCPU: &[Rule] = &[
    request!(KVM_RUN),
    request!(KVM_IOEVENTFD),
    request!(KVM_IRQFD),
    request!(KVM_SET_GSI_ROUTING),
    request!(KVM_IRQ_LINE).rare(INTX),
    request!(KVM_GET_MP_STATE).rare("a vCPU that has not been started is woken"),
    request!(KVM_GET_LAPIC).rare("a reset: what it did to its interrupt controller tells a reboot from a panic"),
    request!(KVM_GET_REGS).rare(FAILED),
    request!(KVM_GET_SREGS).rare(FAILED),
    request!(TUNSETOFFLOAD).rare("a card is started or stopped"),
    request!(TUNSETVNETHDRSZ).rare("a driver takes hashes of frames, or no more"),
    request!(TUNSETQUEUE).rare("a card with several queues is stopped"),
    request!(TUNSETSTEERINGEBPF).rare(PROGRAM),
    call!(SYS_fcntl).is(1, libc::F_DUPFD_CLOEXEC.unsigned_abs()),
    call!(SYS_eventfd2),
    call!(SYS_epoll_create1),
    call!(SYS_timerfd_create).rare("a card is started"),
    call!(SYS_epoll_ctl).rare("a card with delays and losses of its own is stopped"),
    call!(SYS_fdatasync).rare("the driver of a disk switches its cache to write-through"),
];

/// The calls of a vCPU in a VM with cards on vhost-net: it hands queues and memory over, and takes them back.
pub(super) const VHOST_VCPU: &[Rule] = &[
    request!(VHOST_SET_OWNER).rare(ON_VHOST),
    request!(VHOST_RESET_OWNER).rare(ON_VHOST),
    request!(VHOST_SET_FEATURES).rare(ON_VHOST),
    request!(VHOST_SET_MEM_TABLE).rare(ON_VHOST),
    request!(VHOST_SET_VRING_NUM).rare(ON_VHOST),
    request!(VHOST_SET_VRING_BASE).rare(ON_VHOST),
    request!(VHOST_SET_VRING_ADDR).rare(ON_VHOST),
    request!(VHOST_SET_VRING_ERR).rare(ON_VHOST),
    request!(VHOST_SET_VRING_CALL).rare(ON_VHOST),
    request!(VHOST_SET_VRING_KICK).rare(ON_VHOST),
];

const ON_VHOST: &str = "a card on vhost-net, which the machines of the tests may lack";
