//! The calls of the workers of devices.

use super::{INTX, ON_VHOST, PROGRAM, call, request};
use crate::confine::seccomp::ioctls;
use crate::confine::seccomp::rule::Rule;

/// The calls of every worker: it waits for events, and interrupts by way of eventfds.
pub(in crate::confine::seccomp) const WORKER: &[Rule] =
    &[call!(SYS_epoll_wait), call!(SYS_epoll_ctl), request!(KVM_IRQ_LINE).rare(INTX)];

/// Moves frames, and obeys the control queue.
pub(in crate::confine::seccomp) const QUEUE_PAIR: &[Rule] = &[
    call!(SYS_readv),
    call!(SYS_writev),
    call!(SYS_timerfd_settime),
    request!(TUNSETOFFLOAD).rare("the driver changes the offloads that it takes"),
    request!(TUNSETQUEUE).rare("the driver uses more queues, or fewer"),
    request!(TUNSETSTEERINGEBPF).rare(PROGRAM),
];

/// Connects vhost-net with the tap, and obeys the control queue.
pub(in crate::confine::seccomp) const VHOST_WORKER: &[Rule] = &[
    request!(VHOST_NET_SET_BACKEND).rare(ON_VHOST),
    request!(TUNSETOFFLOAD).rare(ON_VHOST),
    request!(TUNSETQUEUE).rare(ON_VHOST),
    call!(SYS_timerfd_settime).rare(ON_VHOST),
];

/// Reads and writes a disk, of a size that does not change.
pub(in crate::confine::seccomp) const DISK: &[Rule] = &[
    call!(SYS_preadv),
    call!(SYS_pwritev),
    call!(SYS_pwrite64).rare("a file system that cannot zero a range is written zeros"),
    call!(SYS_fdatasync),
    call!(SYS_fallocate),
    call!(SYS_timerfd_settime).rare("--on-disk-error pause: a request that has failed is tried again"),
];

/// Reads random bytes.
pub(in crate::confine::seccomp) const ENTROPY: &[Rule] = &[call!(SYS_readv)];
