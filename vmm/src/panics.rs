//! Panics, which are bugs of ours.
//!
//! A device's worker catches its panic: the log says it, the device waits for a reset, and the VM lives on. A panic of
//! any other thread ends the process with one sentence and a code of its own, with the terminal as it was: a machine
//! must not run on without a part of it. The kernel and the keeper clean up.

use crate::console::terminal;
use crate::exit;
use crate::logger;
use devices::virtio::worker;
use std::panic;
use std::process;
use std::thread;

/// Takes over the report of panics. Called once, before any thread.
pub(crate) fn install_hook() {
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let text = info.payload_as_str().unwrap_or("no message");
        if worker::catches_panic() {
            // Through the log, whose lines are limited: a guest that knows the bug can repeat it.
            let thread = thread::current();
            let name = thread.name().unwrap_or("a worker");
            log::error!(
                "{name}: Internal error: {text} ({place}); the device waits for a reset; this is a bug in minivmm: \
                 please report this line and the command"
            );
            return;
        }
        terminal::restore();
        logger::tell(&format!("minivmm: Internal error: {text} ({place})"));
        logger::tell("hint: This is a bug in minivmm; please report this line and the command");
        process::exit(exit::INTERNAL.into());
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::virtio::interrupt::Interrupts;
    use devices::virtio::threads::{Job, OwnThreads};
    use devices::virtio::worker::{Fault, Service, Source, Worker};
    use event_manager::EventOps;
    use std::process::{Command, Output};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    /// Set in the process that is to panic.
    const VARIABLE: &str = "MINIVMM_TEST_PANIC";
    const GOES_ON: i32 = 42;

    /// Panics when its worker begins.
    struct Buggy;

    impl Service for Buggy {
        const JOB: Job = Job::Disk;

        fn sources(&self) -> Vec<Source> {
            Vec::new()
        }
        fn begin(&mut self, _events: &mut EventOps) -> Result<(), Fault> {
            panic!("a test")
        }
        fn serve(&mut self, _token: u32, _events: &mut EventOps) -> Result<(), Fault> {
            Ok(())
        }
    }

    /// Runs the test called `name` in a process of its own, which is told so.
    fn in_a_process(name: &str) -> Output {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &format!("panics::tests::{name}"), "--nocapture"]).env(VARIABLE, "1").output().unwrap()
    }

    /// Has a worker panic and ends with [`GOES_ON`] after it.
    fn panic_in_a_worker() -> ! {
        logger::init(log::LevelFilter::Warn);
        install_hook();
        let interrupts = Arc::new(Interrupts::new(Vec::new(), 1));
        let worker = Worker::spawn("blk7", Buggy, interrupts.clone(), &OwnThreads).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !interrupts.needs_reset() {
            assert!(Instant::now() < deadline, "The device does not wait for a reset");
            thread::yield_now();
        }
        assert!(worker.stop().is_none());
        process::exit(GOES_ON)
    }

    #[test]
    fn panic_of_a_worker_is_one_line_and_the_process_goes_on() {
        if std::env::var_os(VARIABLE).is_some() {
            panic_in_a_worker();
        }

        let output = in_a_process("panic_of_a_worker_is_one_line_and_the_process_goes_on");

        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(GOES_ON), "{said}");
        assert!(said.starts_with("minivmm: error: blk7: Internal error: a test (vmm/src/panics.rs:"), "{said}");
        assert!(said.contains("please report") && said.lines().count() == 1, "{said}");
    }

    #[test]
    fn panic_of_another_thread_ends_the_process_with_70() {
        if std::env::var_os(VARIABLE).is_some() {
            install_hook();
            panic!("a test");
        }

        let output = in_a_process("panic_of_another_thread_ends_the_process_with_70");

        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(i32::from(exit::INTERNAL)), "{said}");
        assert!(said.starts_with("minivmm: Internal error: a test (vmm/src/panics.rs:"), "{said}");
        assert!(said.contains("\nhint: This is a bug in minivmm; please report"), "{said}");
    }
}
