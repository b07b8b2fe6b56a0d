//! Properties of the lists, whatever is in them.

use super::*;

const ALL_VHOST: [Vhost; 2] = [Vhost::None, Vhost::Some];

/// The calls that no thread of a VM may make, whatever its kind, [`NEEDED`] apart.
const NEVER: [libc::c_long; 34] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_open,
    libc::SYS_openat2,
    libc::SYS_open_by_handle_at,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_sendmsg,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_setuid,
    libc::SYS_memfd_create,
    libc::SYS_pkey_mprotect,
    libc::SYS_personality,
    libc::SYS_rt_sigqueueinfo,
];

/// The calls that only main, the spawner and the thread of a capture may make.
const NEVER_FOR_THE_GUEST: [libc::c_long; 10] = [
    libc::SYS_openat,
    libc::SYS_renameat,
    libc::SYS_unlinkat,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_sendto,
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_prctl,
    libc::SYS_seccomp,
];

/// Those of them that a process beside the VMM has to make, with arguments that a filter sees or the kernel checks
/// again.
const NEEDED: [(Thread, libc::c_long); 5] = [
    (Thread::Supervisor, libc::SYS_pidfd_send_signal),
    (Thread::Services, libc::SYS_socket),
    (Thread::Services, libc::SYS_socketpair),
    (Thread::Services, libc::SYS_bind),
    (Thread::Services, libc::SYS_connect),
];

fn rules(thread: Thread) -> impl Iterator<Item = Rule> {
    ALL_VHOST.into_iter().flat_map(move |vhost| thread.lists(vhost)).flatten().copied()
}

fn is_for_the_guest(thread: Thread) -> bool {
    matches!(thread, Thread::Vcpu | Thread::Worker(_))
}

#[test]
fn names_and_places_of_threads_differ() {
    for (index, thread) in Thread::ALL.into_iter().enumerate() {
        assert_eq!(thread.index(), index);
        assert!(Thread::ALL.iter().all(|other| *other == thread || other.name() != thread.name()));
    }
}

#[test]
fn no_list_has_what_only_an_attacker_needs() {
    for thread in Thread::ALL {
        for rule in rules(thread) {
            let is_refused = NEVER.contains(&rule.number) && !NEEDED.contains(&(thread, rule.number));
            assert!(!is_refused, "{}: {}", thread.name(), rule.name);
            assert!(!is_for_the_guest(thread) || !NEVER_FOR_THE_GUEST.contains(&rule.number), "{}", rule.name);
        }
    }
}

#[test]
fn nobody_makes_memory_executable() {
    for rule in Thread::ALL.into_iter().flat_map(rules) {
        if [libc::SYS_mmap, libc::SYS_mprotect].contains(&rule.number) {
            assert_eq!(rule.args, Args::Bits { index: 2, mask: 4, value: 0 }, "{}", rule.name);
        }
    }
}

#[test]
fn calls_of_the_data_path_are_allowed_whatever_their_arguments() {
    let path = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_preadv,
        libc::SYS_pwritev,
        libc::SYS_epoll_wait,
        libc::SYS_futex,
        libc::SYS_timerfd_settime,
        libc::SYS_sched_yield,
    ];
    for rule in Thread::ALL.into_iter().flat_map(rules).filter(|rule| path.contains(&rule.number)) {
        assert_eq!(rule.args, Args::Any, "{}", rule.name);
    }
}

#[test]
fn first_ioctl_of_a_vcpu_is_the_one_that_runs_it() {
    // Its filter and that of main, which it has inherited.
    for thread in [Thread::Vcpu, Thread::Control] {
        let first = rules(thread).find(|rule| rule.number == libc::SYS_ioctl);
        assert_eq!(first.map(|rule| rule.name), Some("KVM_RUN"), "{}", thread.name());
    }
}

#[test]
fn filters_compile_and_are_short() {
    for (thread, vhost) in Thread::ALL.into_iter().flat_map(|thread| ALL_VHOST.map(|vhost| (thread, vhost))) {
        let program = program::allowing(&thread.lists(vhost), libc::SECCOMP_RET_KILL_PROCESS);
        assert!(program.len() < 700, "{}: {} instructions", thread.name(), program.len());
    }
}

#[test]
fn tap_is_asked_only_what_a_card_needs() {
    // SIOCSIFHWADDR, TUNSETIFF, TUNSETPERSIST, TUNSETOWNER, TUNSETGROUP, TUNSETCARRIER, TUNATTACHFILTER.
    let refused = [0x8924, 0x4004_54ca, 0x4004_54cb, 0x4004_54cc, 0x4004_54ce, 0x4004_54e2, 0x4010_54d5];
    for rule in Thread::ALL.into_iter().flat_map(rules) {
        for request in refused {
            assert_ne!(rule.args, Args::Is { index: 1, value: request }, "{}", rule.name);
        }
        assert!(rule.number != libc::SYS_ioctl || matches!(rule.args, Args::Is { index: 1, .. }), "{}", rule.name);
    }
}
