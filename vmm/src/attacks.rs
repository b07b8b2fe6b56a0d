//! A fault point, in builds for tests only (the feature `attacks`): a thread makes a system call that it does not need,
//! as a guest would have it do that has taken the process over.
//!
//! `MINIVMM_ATTACK=THREAD:ATTACK` names the kind of the thread and the call, which it makes as soon as it has its
//! filter. A process that lives to tell prints the kernel's answer and exits with [`SURVIVED`].
//! `MINIVMM_ATTACK=lists` prints what each kind of thread may do, one line a rule.

#![expect(unsafe_code, reason = "system calls by number")]

#[expect(dead_code, reason = "the answers are the test's")]
mod table;

use crate::confine::seccomp::{Args, Filters, Thread, Vhost};
use crate::{exit, logger};
use std::env;
use std::io;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;
use table::{ATTACKS, Arg, Attack};

/// The variable.
const VARIABLE: &str = "MINIVMM_ATTACK";
/// The exit code of a process that an attack has not killed.
const SURVIVED: u8 = 42;
/// How long main waits for another thread to end the process.
const PATIENCE: Duration = Duration::from_secs(30);

/// The process that has started this one: the VMM has no number for it.
static STARTER: AtomicU32 = AtomicU32::new(0);

/// Prints the lists and exits, if that is asked for. To be called first thing.
pub(crate) fn list_if_asked() {
    STARTER.store(std::os::unix::process::parent_id(), Ordering::Relaxed);
    if env::var(VARIABLE).as_deref() != Ok("lists") {
        return;
    }
    for thread in Thread::ALL {
        for rule in thread.own_lists(Vhost::Some).into_iter().flatten() {
            let call = rule.name.trim_start_matches("SYS_");
            let request = match rule.args {
                Args::Is { index: 1, value } if rule.number == libc::SYS_ioctl => format!("{value:#x}"),
                _ => "-".to_owned(),
            };
            println!("{}\t{call}\t{request}\t{}", thread.name(), rule.rare.unwrap_or_default());
        }
    }
    process::exit(0);
}

/// Carries out the attack that `thread`, which has its filter, is to carry out, if there is one.
pub(crate) fn carry_out(thread: Thread) {
    let Some(attack) = wanted(thread) else { return };
    let mut args = [0; 6];
    for (value, arg) in args.iter_mut().zip(attack.args) {
        *value = resolve(*arg);
    }
    let [a, b, c, d, e, f] = args;
    // SAFETY: the table's calls write to their page alone, if the kernel carries them out at all, and the process ends
    // right after.
    let result = unsafe { libc::syscall(attack.number, a, b, c, d, e, f) };
    let errno = if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 };
    logger::tell(&format!("attack {} in {}: errno {errno}", attack.name, thread.name()));
    exit::at_once(SURVIVED);
}

/// Starts a worker if one is to carry out an attack: the guests of the test start none.
pub(crate) fn provoke_worker(filters: &Arc<Filters>) {
    for thread in Thread::ALL.into_iter().filter(|thread| matches!(thread, Thread::Worker(_))) {
        if wanted(thread).is_some() {
            let filters = filters.clone();
            // It ends the process.
            let _ = thread::spawn(move || filters.enter(thread)).join();
        }
    }
}

/// Starts the thread of a capture if that is to carry out an attack.
pub(crate) fn provoke_capture(filters: &Arc<Filters>) {
    if wanted(Thread::Capture).is_some() {
        let filters = filters.clone();
        // As above.
        let _ = thread::spawn(move || filters.enter(Thread::Capture)).join();
    }
}

/// Called by main, which has its filter: starts the watchdog if that is to carry out an attack, and waits for a thread
/// that is there already and is to, so that it need not hurry.
pub(crate) fn give_way(filters: &Arc<Filters>) {
    if wanted(Thread::Watchdog).is_some() {
        let filters = filters.clone();
        // As above.
        let _ = thread::spawn(move || filters.enter(Thread::Watchdog)).join();
    }
    let is_other =
        |thread: &Thread| matches!(thread, Thread::Control | Thread::Vcpu | Thread::Supervisor | Thread::Services);
    if Thread::ALL.into_iter().filter(|thread| !is_other(thread)).any(|thread| wanted(thread).is_some()) {
        thread::sleep(PATIENCE);
    }
}

/// The attack that `thread` is to carry out.
fn wanted(thread: Thread) -> Option<&'static Attack> {
    let wish = env::var(VARIABLE).ok()?;
    let (kind, name) = wish.split_once(':')?;
    ATTACKS.iter().find(|attack| kind == thread.name() && attack.name == name)
}

fn resolve(arg: Arg) -> i64 {
    let address = |pointer: *const u8| i64::try_from(pointer.expose_provenance()).unwrap_or(0);
    match arg {
        Arg::Number(number) => number,
        Arg::Text(text) => address(text.as_ptr().cast()),
        Arg::Parent => STARTER.load(Ordering::Relaxed).into(),
        Arg::Page => address((&raw const *Box::leak(Box::new(Page { _bytes: [0; 4096] }))).cast()),
    }
}

/// A page that a call may write to.
#[repr(align(4096))]
struct Page {
    _bytes: [u8; 4096],
}
