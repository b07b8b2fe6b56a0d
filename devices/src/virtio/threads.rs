//! The role *threads*: where the threads of devices come from.
//!
//! A driver starts a device with a register access, which a vCPU's thread serves. That thread need not be able to start
//! others: whoever builds the machine may have another thread do it, and give each worker only the system calls that
//! its job takes.

use std::io;
use std::thread::{self, JoinHandle};

/// The job of a device's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Job {
    /// Moves the frames of a queue pair between guest memory and a tap, and obeys the card's control queue.
    QueuePair,
    /// The rest of a card whose frames the kernel's vhost-net moves.
    Vhost,
    /// Answers the requests of a disk.
    Disk,
    /// Answers the requests of the entropy device.
    Entropy,
}

/// How many processors the threads of this process may run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processors {
    /// One for all of them.
    One,
    /// More than one.
    Several,
}

impl Processors {
    /// Asks the host; this may read files of its cgroup. Several where it does not say.
    pub fn ask() -> Self {
        if thread::available_parallelism().is_ok_and(|count| count.get() == 1) { Self::One } else { Self::Several }
    }
}

/// The work of a thread.
pub type Work = Box<dyn FnOnce(Processors) + Send>;

/// Starts threads. Called from vCPU threads, under the lock of the device.
pub trait Threads: Send + Sync {
    /// Starts a thread called `name` (at most 15 bytes are visible) that does `work` for `job`. The caller joins it.
    ///
    /// # Errors
    /// If the host has no thread left.
    fn spawn(&self, name: &str, job: Job, work: Work) -> io::Result<JoinHandle<()>>;
}

/// Threads that the calling thread starts, and that may do whatever it may.
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnThreads;

impl Threads for OwnThreads {
    fn spawn(&self, name: &str, _job: Job, work: Work) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name(name.to_owned()).spawn(move || work(Processors::ask()))
    }
}
