//! Signals that mean that the process cannot go on: the terminal is restored, and the cause is said if it is the
//! host's.
//!
//! SIGBUS comes when the host has no memory behind an address (a page that went bad, a file that was cut), SIGSYS when
//! a filter of system calls around minivmm forbids one: both end the process with the code of a failing host. minivmm's
//! own filters kill the process and call no handler (see [`crate::confine::seccomp`]). The others are bugs; they end
//! the process as they would anyway.
#![expect(unsafe_code, reason = "signal handlers have no safe wrapper in the crates used here")]

use crate::console::terminal;
use crate::exit;
use std::mem::MaybeUninit;

/// The host's faults, and what is said of them.
const HOSTS: [(i32, &str); 2] = [
    (
        libc::SIGBUS,
        "minivmm: The host has no memory behind an address that minivmm uses (SIGBUS)\r\n\
         hint: See the host's kernel log\r\n",
    ),
    (
        libc::SIGSYS,
        "minivmm: A filter of this host forbids a system call that minivmm needs (SIGSYS)\r\n\
         hint: Start it without that filter, or allow the call that the host's audit log names\r\n",
    ),
];

/// Bugs of ours.
const BUGS: [i32; 5] = [libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP];

/// Takes over these signals. Called once, before any thread.
pub(crate) fn install_handlers() {
    for (signal, _) in HOSTS {
        handle(signal, end);
    }
    for signal in BUGS {
        // Keeps the runtime's word on a stack that overflows: what was there before comes afterwards.
        handle(signal, tidy_up);
    }
}

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

fn handle(signal: i32, handler: Handler) {
    // SAFETY: all zeros is a valid sigaction.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler as libc::sighandler_t;
    // Once only: a fault that is repeated meets the default action.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND;
    // SAFETY: the action is initialized, and its handlers do nothing that a handler must not do; the old one is not
    // asked for. It fails for no signal of these.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
}

/// Says that the host has failed, and ends.
extern "C" fn end(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    terminal::restore_in_handler();
    if let Some((_, text)) = HOSTS.iter().find(|(number, _)| *number == signal) {
        // SAFETY: the text is that long, and the kernel only reads it.
        unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    }
    exit::at_once(exit::HOST);
}

/// Leaves the terminal as it was. The instruction is repeated afterwards and ends the process, as does a signal that
/// was sent.
extern "C" fn tidy_up(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    terminal::restore_in_handler();
    // SAFETY: the kernel has given the handler a siginfo.
    let sent = unsafe { (*info).si_code } <= 0;
    if sent {
        // The first process of a PID namespace survives a signal of its own without a handler.
        exit::at_once(exit::SIGNAL_BASE.saturating_add(u8::try_from(signal).unwrap_or_default()));
    }
}
