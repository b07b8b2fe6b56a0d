//! Workers without threads, for fuzz targets: they serve what is ready when [`turn`] is called, on the caller's thread.

use super::{Caller, Fault, Loop, Poll, Service, poll_once};
use crate::virtio::device::StartError;
use crate::virtio::interrupt::Interrupts;
use crate::virtio::threads::Threads;
use event_manager::{EventManager, EventOps, SubscriberId, SubscriberOps};
use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Events of one turn, at most: what a queue pair waits for.
const EVENTS: usize = 8;

thread_local! {
    static RUNNING: RefCell<Vec<Weak<Mutex<dyn Turn>>>> = RefCell::default();
}

/// Lets every worker that this thread has spawned, and not stopped, handle the events that are ready. Returns how many
/// there were: at 0 nothing happens any more until the caller acts.
pub fn turn() -> usize {
    let workers: Vec<_> = RUNNING.with_borrow_mut(|running| {
        running.retain(|worker| worker.strong_count() > 0);
        running.iter().filter_map(Weak::upgrade).collect()
    });
    workers.iter().map(|worker| worker.lock().unwrap_or_else(PoisonError::into_inner).turn()).sum()
}

trait Turn {
    fn turn(&mut self) -> usize;
}

/// An event loop and the worker in it.
struct InlineLoop<S> {
    manager: EventManager<Loop<S>>,
    id: SubscriberId,
}

impl<S: Service> Turn for InlineLoop<S> {
    fn turn(&mut self) -> usize {
        match self.manager.run_with_timeout(0).unwrap_or(0) {
            0 => usize::from(poll_once(&mut self.manager, self.id, S::before_sleep) == Poll::Found),
            events => events,
        }
    }
}

/// A worker that runs in [`turn`].
pub struct Worker<S> {
    inner: Arc<Mutex<InlineLoop<S>>>,
    caller: Caller<S>,
}

impl<S: Service> Worker<S> {
    /// Begins to serve `service`.
    ///
    /// # Errors
    /// If the host has no epoll or event left.
    pub fn spawn(
        name: &str,
        service: S,
        interrupts: Arc<Interrupts>,
        _threads: &dyn Threads,
    ) -> Result<Self, StartError> {
        let host = |operation| move |source| StartError::Host { operation, source };
        let (event_loop, caller) = Loop::new(name, service, interrupts)?;
        let manager = EventManager::new_with_capacity(EVENTS);
        let mut manager = manager.map_err(io::Error::other).map_err(host("create an epoll"))?;
        let id = manager.add_subscriber(event_loop);
        let inner = Arc::new(Mutex::new(InlineLoop { manager, id }));
        let running: Arc<Mutex<dyn Turn>> = inner.clone();
        RUNNING.with_borrow_mut(|all| all.push(Arc::downgrade(&running)));
        Ok(Self { inner, caller })
    }

    /// Runs `action` between two events and returns its result; `None` if the worker has met a fault, or `action` gives
    /// one.
    pub fn call<R: Send + 'static>(
        &self,
        action: impl FnOnce(&mut S, &mut EventOps) -> Result<R, Fault> + Send + 'static,
    ) -> Option<R> {
        let result = self.caller.call(action).ok()?;
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).turn();
        result.try_recv().ok()
    }

    /// Stops the worker and returns the service.
    pub fn stop(self) -> Option<S> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let id = inner.id;
        inner.manager.remove_subscriber(id).ok().map(|ended| ended.service)
    }
}
