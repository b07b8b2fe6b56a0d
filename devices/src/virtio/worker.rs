//! A thread that serves queues: an epoll loop around one [`Service`], and what happens when it fails.
//!
//! ```text
//!   serve what is announced -> poll for what is not, as long as that has paid lately -> ask for announcements -> sleep
//!          ^                           | found something                                       | woken
//!          +---------------------------+-------------------------------------------------------+
//! ```
//! A doorbell costs the guest an exit and the worker a wake-up, so a service may leave doorbells off while it is
//! polled. Where there is only one processor the vCPU gets it between two looks, and goes on to fill the ring.
//!
//! A worker that fails raises DEVICE_NEEDS_RESET, logs one line and then waits to be stopped. It never takes the VM
//! down and never dies silently. Whoever spawned it joins it and gets the service back.
//!
//! A worker that panics, which is a bug of ours, does the same, but its service is lost and its thread ends
//! (`guarded.rs`).
//!
//! The feature `inline-workers` is for fuzz targets: there workers have no threads and run when they are told to, so
//! that the same input always does the same.

mod guarded;
#[cfg(feature = "inline-workers")]
pub mod inline;
#[cfg(not(feature = "inline-workers"))]
mod threaded;

pub use guarded::catches_panic;
#[cfg(feature = "inline-workers")]
pub use inline::Worker;
#[cfg(not(feature = "inline-workers"))]
pub use threaded::Worker;

use crate::virtio::device::StartError;
use crate::virtio::interrupt::Interrupts;
use crate::virtio::threads::Job;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why a worker cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The driver broke the ring; only a reset can bring it back.
    #[error("Driver broke queue {queue}: {reason}")]
    Guest {
        /// Index of the virtqueue.
        queue: u16,
        /// The broken rule.
        reason: &'static str,
    },
    /// The host refused something the worker cannot do without.
    #[error("Cannot {operation}")]
    Host {
        /// The operation, as in "watch a descriptor".
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// A descriptor that a service waits for.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// The descriptor; it lives as long as the service.
    pub fd: RawFd,
    /// The service's name for it; any value but [`WAKE`].
    pub token: u32,
    /// The events to wait for.
    pub events: EventSet,
}

impl Source {
    /// Waits until `fd` is readable.
    pub fn readable(fd: &impl AsRawFd, token: u32) -> Self {
        Self { fd: fd.as_raw_fd(), token, events: EventSet::IN }
    }

    /// Waits for each signal of the eventfd `fd`, which need not be read: its count would overflow after centuries.
    pub fn signalled(fd: &EventFd, token: u32) -> Self {
        Self { fd: fd.as_raw_fd(), token, events: EventSet::IN | EventSet::EDGE_TRIGGERED }
    }
}

/// The work of a worker thread. All methods are called on that thread.
pub trait Service: Send + 'static {
    /// The job of its thread.
    const JOB: Job;

    /// The descriptors to wait for.
    fn sources(&self) -> Vec<Source>;

    /// A descriptor that the service itself adds and removes while it runs, so that the worker can stop watching it
    /// after a fault.
    fn watched_later(&self) -> Option<RawFd> {
        None
    }

    /// Called once before the first wait: the driver may have filled the rings before DRIVER_OK.
    ///
    /// # Errors
    /// If the service cannot go on.
    fn begin(&mut self, events: &mut EventOps) -> Result<(), Fault>;

    /// Called when a source is ready. `events` can change what is waited for.
    ///
    /// # Errors
    /// If the service cannot go on.
    fn serve(&mut self, token: u32, events: &mut EventOps) -> Result<(), Fault>;

    /// Looks for work whose announcement the service has switched off, and does it. Returns whether there was some.
    ///
    /// # Errors
    /// If the service cannot go on.
    fn poll(&mut self) -> Result<bool, Fault> {
        Ok(false)
    }

    /// Switches all announcements on, because the worker is going to sleep, and does what came up before that. Returns
    /// whether there was some.
    ///
    /// # Errors
    /// If the service cannot go on.
    fn before_sleep(&mut self) -> Result<bool, Fault> {
        Ok(false)
    }
}

/// The token that the worker itself uses.
pub const WAKE: u32 = u32::MAX;

/// An action of another thread with the service, to be run on the worker's thread.
type Call<S> = Box<dyn FnOnce(&mut S, &mut EventOps) -> Result<(), Fault> + Send>;

/// The other threads' end of a worker. The worker stops when it is dropped and the worker is woken.
struct Caller<S> {
    calls: Sender<Call<S>>,
    /// Signalled after `calls` was changed.
    wake: EventFd,
}

impl<S: Service> Caller<S> {
    /// Queues `action` and wakes the worker. Returns where the result arrives; nothing arrives after a fault.
    ///
    /// # Errors
    /// If the worker has ended or cannot be woken.
    fn call<R: Send + 'static>(
        &self,
        action: impl FnOnce(&mut S, &mut EventOps) -> Result<R, Fault> + Send + 'static,
    ) -> io::Result<Receiver<R>> {
        let (result, results) = mpsc::sync_channel(1);
        let call: Call<S> = Box::new(move |service, events| {
            // A caller that does not wait for the result has dropped the other end.
            let _ = result.send(action(service, events)?);
            Ok(())
        });
        self.calls.send(call).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        self.wake.write(1)?;
        Ok(results)
    }
}

enum State {
    Serving,
    Faulted,
    Stopped,
}

struct Loop<S> {
    service: S,
    name: String,
    sources: Vec<Source>,
    calls: Receiver<Call<S>>,
    wake: EventFd,
    interrupts: Arc<Interrupts>,
    state: State,
}

impl<S: Service> Loop<S> {
    /// A loop around `service` for a worker called `name`, and the end by which others reach it.
    fn new(name: &str, service: S, interrupts: Arc<Interrupts>) -> Result<(Self, Caller<S>), StartError> {
        let host = |operation| move |source| StartError::Host { operation, source };
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("create an eventfd"))?;
        let own_wake = wake.try_clone().map_err(host("duplicate an eventfd"))?;
        let (calls, own_calls) = mpsc::channel();
        let event_loop = Self {
            sources: service.sources(),
            service,
            name: name.to_owned(),
            calls: own_calls,
            wake: own_wake,
            interrupts,
            state: State::Serving,
        };
        Ok((event_loop, Caller { calls, wake }))
    }

    /// Runs the calls that have come, and stops when there can be no more. After a fault it drops them.
    fn run_calls(&mut self, ops: &mut EventOps) {
        // Empty when it was read together with an earlier call.
        let _ = self.wake.read();
        loop {
            match self.calls.try_recv() {
                Ok(call) => {
                    if matches!(self.state, State::Serving)
                        && let Err(fault) = call(&mut self.service, ops)
                    {
                        forget(self.fail(&fault), ops);
                    }
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.state = State::Stopped;
                    return;
                }
            }
        }
    }

    /// Reports the fault and stops serving. Returns the descriptors that the service does not watch any more.
    fn fail(&mut self, fault: &Fault) -> Vec<RawFd> {
        if self.interrupts.set_needs_reset() {
            match fault {
                Fault::Guest { .. } => {
                    log::warn!("{}: {fault}; the device waits for a reset", self.name)
                }
                Fault::Host { source, .. } => {
                    log::error!("{}: {fault}: {source}; the device waits for a reset", self.name);
                }
            }
        }
        self.state = State::Faulted;
        self.sources.iter().map(|source| source.fd).chain(self.service.watched_later()).collect()
    }
}

fn forget(fds: Vec<RawFd>, ops: &mut EventOps) {
    for fd in fds {
        // A service may have removed it itself; then there is nothing left to do.
        let _ = ops.remove(Events::empty_raw(fd));
    }
}

/// The result of a poll for unannounced work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Poll {
    /// There was some, and it is done.
    Found,
    /// There is none.
    Nothing,
    /// The worker is to end.
    Stopped,
}

/// Has the service poll for work with `find`.
fn poll_once<S: Service>(
    manager: &mut EventManager<Loop<S>>,
    id: SubscriberId,
    find: fn(&mut S) -> Result<bool, Fault>,
) -> Poll {
    let Ok(own) = manager.subscriber_mut(id) else { return Poll::Stopped };
    let found = match own.state {
        State::Serving => find(&mut own.service),
        State::Faulted => Ok(false),
        State::Stopped => return Poll::Stopped,
    };
    match found {
        Ok(true) => Poll::Found,
        Ok(false) => Poll::Nothing,
        Err(fault) => {
            let fds = own.fail(&fault);
            if let Ok(mut ops) = manager.event_ops(id) {
                forget(fds, &mut ops);
            }
            Poll::Nothing
        }
    }
}

impl<S: Service> MutEventSubscriber for Loop<S> {
    fn init(&mut self, ops: &mut EventOps) {
        let wake = Events::with_data(&self.wake, WAKE, EventSet::IN);
        let watched = self
            .sources
            .iter()
            .map(|s| Events::with_data_raw(s.fd, s.token, s.events))
            .chain([wake])
            .try_for_each(|events| ops.add(events));
        let begun = match watched {
            Ok(()) => self.service.begin(ops),
            Err(err) => Err(Fault::Host { operation: "watch a descriptor", source: io::Error::other(err) }),
        };
        if let Err(fault) = begun {
            forget(self.fail(&fault), ops);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.data() == WAKE {
            self.run_calls(ops);
        } else if matches!(self.state, State::Serving)
            && let Err(fault) = self.service.serve(events.data(), ops)
        {
            forget(self.fail(&fault), ops);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::threads::OwnThreads;
    use std::thread;
    use std::time::{Duration, Instant};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    /// Fails when its event is signalled; counts its calls.
    struct Fragile {
        event: EventFd,
        calls: u32,
        /// Shared with whoever looks whether the service is gone.
        #[cfg_attr(feature = "inline-workers", expect(dead_code, reason = "no panic is caught there"))]
        alive: Arc<()>,
    }

    impl Service for Fragile {
        const JOB: Job = Job::Entropy;

        fn sources(&self) -> Vec<Source> {
            vec![Source::readable(&self.event, 0)]
        }
        fn begin(&mut self, _events: &mut EventOps) -> Result<(), Fault> {
            Ok(())
        }
        fn serve(&mut self, _token: u32, _events: &mut EventOps) -> Result<(), Fault> {
            Err(BROKEN)
        }
    }

    const BROKEN: Fault = Fault::Guest { queue: 0, reason: "a test" };

    fn spawn() -> (Worker<Fragile>, EventFd, Arc<Interrupts>) {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let interrupts = Arc::new(Interrupts::new(Vec::new(), 1));
        let service = Fragile { event: event.try_clone().unwrap(), calls: 0, alive: Arc::default() };
        (Worker::spawn("test", service, interrupts.clone(), &OwnThreads).unwrap(), event, interrupts)
    }

    fn wait_for_fault(interrupts: &Interrupts) {
        let begun = Instant::now();
        while !interrupts.needs_reset() {
            assert!(begun.elapsed() < Duration::from_secs(10), "There is no fault");
            thread::yield_now();
        }
    }

    fn count(fragile: &mut Fragile, _: &mut EventOps) -> Result<u32, Fault> {
        fragile.calls += 1;
        Ok(fragile.calls)
    }

    #[test]
    fn calls_see_the_service_one_after_the_other() {
        let (worker, ..) = spawn();
        assert_eq!((worker.call(count), worker.call(count)), (Some(1), Some(2)));
        assert_eq!(worker.stop().unwrap().calls, 2);
    }

    #[test]
    fn after_a_fault_there_are_no_calls() {
        let (worker, event, interrupts) = spawn();
        event.write(1).unwrap();
        wait_for_fault(&interrupts);
        assert_eq!(worker.call(count), None);
        assert_eq!(worker.stop().unwrap().calls, 0);
    }

    #[cfg(not(feature = "inline-workers"))]
    #[test]
    fn panic_costs_the_device_and_neither_its_callers_nor_the_process() {
        let (worker, _event, interrupts) = spawn();
        let alive = worker.call(|fragile, _| Ok(Arc::downgrade(&fragile.alive))).unwrap();

        assert_eq!(worker.call(|_, _| -> Result<(), Fault> { panic!("a test") }), None);
        wait_for_fault(&interrupts);

        assert_eq!(alive.strong_count(), 0);
        assert_eq!(worker.call(count), None);
        assert!(worker.stop().is_none());
    }

    #[cfg(not(feature = "inline-workers"))]
    #[test]
    fn hook_is_told_once_that_a_panic_is_caught() {
        let (worker, ..) = spawn();

        let told = worker.call(|_, _| Ok([catches_panic(), catches_panic()]));

        assert_eq!((told, catches_panic()), (Some([true, false]), false));
    }

    #[test]
    fn call_that_fails_is_a_fault() {
        let (worker, _event, interrupts) = spawn();
        assert_eq!(worker.call(|_, _| Err::<(), _>(BROKEN)), None);
        wait_for_fault(&interrupts);
        worker.stop().unwrap();
    }
}
