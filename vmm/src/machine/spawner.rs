//! The thread that starts the devices' workers.
//!
//! ```text
//!   vCPU --order--> spawner --clone--> worker
//!    ^                 |
//!    '---- its handle -'
//! ```
//!
//! The driver starts a device with a register access, so it is a vCPU's thread that wants workers. A vCPU runs the
//! guest, and its thread is to be able to do little else: so another starts threads for it. It costs an activation two
//! wake-ups for each worker. Workers that wait from the start would spare them, and cost a VM a thread for each queue
//! that its guest never uses.
//!
//! The spawner lives as long as the process: it outlives a reboot of the guest.

use crate::confine::seccomp::{Filters, Thread};
use devices::virtio::threads::{Job, Processors, Threads, Work};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Stack of the thread in bytes: it formats a name.
const STACK_BYTES: usize = 128 << 10;

/// A worker that is wanted.
struct Order {
    name: String,
    job: Job,
    work: Work,
    /// Where its handle goes.
    started: SyncSender<io::Result<JoinHandle<()>>>,
}

/// The other threads' end of the spawner, which ends when this is dropped.
pub(super) struct Spawner {
    orders: Sender<Order>,
    idle: Mutex<Option<Idle>>,
}

/// The end of a spawner that has no thread yet.
struct Idle {
    orders: Receiver<Order>,
    processors: Processors,
}

impl Spawner {
    /// A spawner that takes orders, and carries them out once it is [started](Self::start).
    pub(super) fn new() -> Self {
        let (sender, orders) = mpsc::channel();
        // Once, and here, because this reads files of the cgroup.
        let idle = Idle { orders, processors: Processors::ask() };
        Self { orders: sender, idle: Mutex::new(Some(idle)) }
    }

    /// Starts the thread, in a process that is in its jail. It, and those that it starts, have filters of `filters`.
    /// Once.
    ///
    /// # Errors
    /// If the host has no thread left.
    pub(super) fn start(&self, filters: &Arc<Filters>) -> io::Result<()> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Idle { orders, processors }) = idle else { return Ok(()) };
        // Not joined: it ends as soon as the other end is dropped, or with the process.
        let thread = thread::Builder::new().name("spawner".to_owned()).stack_size(STACK_BYTES);
        let filters = filters.clone();
        thread.spawn(move || serve(&orders, processors, &filters)).map(drop)
    }
}

impl Threads for Spawner {
    fn spawn(&self, name: &str, job: Job, work: Work) -> io::Result<JoinHandle<()>> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let (started, handle) = mpsc::sync_channel(1);
        self.orders.send(Order { name: name.to_owned(), job, work, started }).map_err(|_| gone())?;
        handle.recv().map_err(|_| gone())?
    }
}

fn serve(orders: &Receiver<Order>, processors: Processors, filters: &Arc<Filters>) {
    filters.enter(Thread::Spawner);
    #[cfg(feature = "attacks")]
    crate::attacks::provoke_worker(filters);
    while let Ok(Order { name, job, work, started }) = orders.recv() {
        let filters = filters.clone();
        let thread = thread::Builder::new().name(name).spawn(move || {
            filters.enter(Thread::Worker(job));
            work(processors);
        });
        // Whoever ordered it waits for the answer.
        let _ = started.send(thread);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confine::seccomp::{Mode, Vhost};

    #[test]
    fn worker_runs_under_its_name_until_it_is_joined() {
        let spawner = Spawner::new();
        spawner.start(&Arc::new(Filters::new(Mode::Off, Vhost::None).unwrap())).unwrap();
        let (sender, received) = mpsc::channel();

        let work = Box::new(move |_| sender.send(thread::current().name().map(str::to_owned)).unwrap());
        let worker = spawner.spawn("net0-0", Job::QueuePair, work).unwrap();

        worker.join().unwrap();
        assert_eq!(received.recv().unwrap().as_deref(), Some("net0-0"));
    }
}
