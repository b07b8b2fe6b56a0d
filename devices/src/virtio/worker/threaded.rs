//! A worker on a thread of its own.

use super::{Fault, Loop, Service, State, Visit};
use crate::virtio::device::StartError;
use crate::virtio::interrupt::Interrupts;
use event_manager::{EventManager, EventOps, SubscriberOps};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A running worker.
pub struct Worker<S> {
    thread: JoinHandle<S>,
    /// Closed to stop the worker.
    visits: Sender<Visit<S>>,
    /// Signalled after `visits` was changed.
    wake: EventFd,
}

impl<S: Service> Worker<S> {
    /// Starts a thread called `name` (at most 15 bytes are visible) that serves `service` until [`stop`](Self::stop).
    ///
    /// # Errors
    /// If the host has no thread, epoll or event left.
    pub fn spawn(name: &str, service: S, interrupts: Arc<Interrupts>) -> Result<Self, StartError> {
        let host = |operation| move |source| StartError::Host { operation, source };
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("create an eventfd"))?;
        let own_wake = wake.try_clone().map_err(host("duplicate an eventfd"))?;
        let (visits, own_visits) = mpsc::channel();
        let mut manager = EventManager::new()
            .map_err(|err| StartError::Host { operation: "create an epoll", source: std::io::Error::other(err) })?;
        let thread_name = name.to_owned();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let id = manager.add_subscriber(Loop {
                    sources: service.sources(),
                    service,
                    name: thread_name,
                    visits: own_visits,
                    wake: own_wake,
                    interrupts,
                    state: State::Serving,
                });
                loop {
                    if let Err(err) = manager.run() {
                        log::error!("Event loop failed: {err}");
                    }
                    if manager.subscriber_mut(id).is_ok_and(|l| matches!(l.state, State::Stopped)) {
                        break;
                    }
                }
                match manager.remove_subscriber(id) {
                    Ok(ended) => ended.service,
                    Err(err) => {
                        unreachable!("the subscriber was added above and never removed: {err}")
                    }
                }
            })
            .map_err(host("start a worker thread"))?;
        Ok(Self { thread, visits, wake })
    }

    /// Runs `action` on the worker's thread, between two events, and waits for what it returns: as long as the event lasts that is
    /// being served. `None` if the worker has met a fault, or `action` gives one: then the service rests until it is stopped.
    pub fn visit<R: Send + 'static>(
        &self,
        action: impl FnOnce(&mut S, &mut EventOps) -> Result<R, Fault> + Send + 'static,
    ) -> Option<R> {
        let (answer, answered) = mpsc::sync_channel(1);
        let visit: Visit<S> = Box::new(move |service, events| {
            // The other end waits below.
            let _ = answer.send(action(service, events)?);
            Ok(())
        });
        self.visits.send(visit).ok()?;
        if let Err(err) = self.wake.write(1) {
            log::error!("Failed to wake a worker: {err}");
            return None;
        }
        answered.recv().ok()
    }

    /// Stops the worker, waits for its thread and returns the service; `None` if the thread panicked, which is a bug and has
    /// been reported by the panic hook.
    pub fn stop(self) -> Option<S> {
        drop(self.visits);
        if let Err(err) = self.wake.write(1) {
            log::error!("Failed to stop a worker: {err}");
        }
        self.thread.join().ok()
    }
}
