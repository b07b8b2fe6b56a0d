//! A worker on a thread of its own.

use super::{Caller, Fault, Loop, Poll, Service, poll_once};
use crate::virtio::device::StartError;
use crate::virtio::interrupt::Interrupts;
use event_manager::{EventManager, EventOps, SubscriberId, SubscriberOps};
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A running worker.
pub struct Worker<S> {
    thread: JoinHandle<S>,
    caller: Caller<S>,
}

impl<S: Service> Worker<S> {
    /// Starts a thread called `name` (at most 15 bytes are visible) that serves `service` until [`stop`](Self::stop).
    ///
    /// # Errors
    /// If the host has no thread, epoll or event left.
    pub fn spawn(name: &str, service: S, interrupts: Arc<Interrupts>) -> Result<Self, StartError> {
        let host = |operation| move |source| StartError::Host { operation, source };
        let (event_loop, caller) = Loop::new(name, service, interrupts)?;
        let mut manager = EventManager::new().map_err(io::Error::other).map_err(host("create an epoll"))?;
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let id = manager.add_subscriber(event_loop);
                run(&mut manager, id);
                match manager.remove_subscriber(id) {
                    Ok(ended) => ended.service,
                    Err(err) => {
                        unreachable!("the subscriber was added above and never removed: {err}")
                    }
                }
            })
            .map_err(host("start a worker thread"))?;
        Ok(Self { thread, caller })
    }

    /// Runs `action` on the worker's thread, between two events, and waits for its result as long as the current event
    /// is being served. `None` if the worker has met a fault, or `action` gives one: then the service rests until it is
    /// stopped.
    pub fn call<R: Send + 'static>(
        &self,
        action: impl FnOnce(&mut S, &mut EventOps) -> Result<R, Fault> + Send + 'static,
    ) -> Option<R> {
        let result = self.caller.call(action).inspect_err(|err| log::error!("Cannot wake a worker: {err}"));
        result.ok()?.recv().ok()
    }

    /// Stops the worker, waits for its thread and returns the service; `None` if the thread panicked, which is a bug
    /// and has been reported by the panic hook.
    pub fn stop(self) -> Option<S> {
        let Caller { calls, wake } = self.caller;
        drop(calls);
        if let Err(err) = wake.write(1) {
            log::error!("Cannot stop a worker: {err}");
        }
        self.thread.join().ok()
    }
}

/// Serves until the worker is stopped.
fn run<S: Service>(manager: &mut EventManager<Loop<S>>, id: SubscriberId) {
    let mut polling = Polling::new();
    loop {
        let asleep = Instant::now();
        serve(manager, -1);
        polling.woken_after(asleep.elapsed());
        let mut idle = Idle::begin();
        loop {
            let patient = polling.is_patient(&idle);
            match poll_once(manager, id, if patient { S::poll } else { S::before_sleep }) {
                Poll::Found => idle = Idle::begin(),
                Poll::Nothing if patient => polling.pause(&mut idle),
                Poll::Nothing => break,
                Poll::Stopped => return,
            }
            if serve(manager, 0) {
                idle = Idle::begin();
            }
        }
    }
}

/// Serves what is announced within `milliseconds`, or ever if that is -1. Returns whether there was something.
fn serve<S: Service>(manager: &mut EventManager<Loop<S>>, milliseconds: i32) -> bool {
    manager.run_with_timeout(milliseconds).map(|events| events > 0).unwrap_or_else(|err| {
        log::error!("Event loop failed: {err}");
        false
    })
}

/// Time without work.
struct Idle {
    since: Instant,
    pauses: u32,
}

impl Idle {
    fn begin() -> Self {
        Self { since: Instant::now(), pauses: 0 }
    }
}

/// How long to poll before a sleep.
#[derive(Debug)]
enum Polling {
    /// With a processor to spare: for this long. Longer when sleeps have turned out short, not at all when they are
    /// long.
    For(Duration),
    /// On the only processor: as long as there is something after the others had their turn.
    InTurns,
}

impl Polling {
    const SHORTEST: Duration = Duration::from_micros(4);
    const LONGEST: Duration = Duration::from_micros(64);

    fn new() -> Self {
        match thread::available_parallelism() {
            Ok(processors) if processors.get() == 1 => Self::InTurns,
            _ => Self::For(Duration::ZERO),
        }
    }

    fn is_patient(&self, idle: &Idle) -> bool {
        match self {
            Self::For(window) => !window.is_zero() && idle.since.elapsed() < *window,
            Self::InTurns => idle.pauses == 0,
        }
    }

    fn pause(&self, idle: &mut Idle) {
        idle.pauses += 1;
        match self {
            // Not by giving way: whoever gets the processor then may keep it for milliseconds, and a sleeper is woken
            // sooner.
            Self::For(_) => std::hint::spin_loop(),
            Self::InTurns => thread::yield_now(),
        }
    }

    /// Learns from a sleep.
    fn woken_after(&mut self, sleep: Duration) {
        if let Self::For(window) = self {
            *window = if sleep <= Self::LONGEST {
                (*window * 2).clamp(Self::SHORTEST, Self::LONGEST)
            } else {
                Some(*window / 2).filter(|window| *window >= Self::SHORTEST).unwrap_or_default()
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_follows_the_length_of_sleeps() {
        let mut polling = Polling::For(Duration::ZERO);
        let mut windows = Vec::new();
        for sleep in [10, 64, 10, 10, 10, 10, 1000, 65, 65, 65, 65, 10] {
            polling.woken_after(Duration::from_micros(sleep));
            let Polling::For(window) = polling else { unreachable!() };
            windows.push(window.as_micros());
        }
        assert_eq!(windows, [4, 8, 16, 32, 64, 64, 32, 16, 8, 4, 0, 4]);
    }

    #[test]
    fn on_the_only_processor_others_have_one_turn() {
        let mut idle = Idle::begin();
        let polling = Polling::InTurns;
        assert!(polling.is_patient(&idle));
        polling.pause(&mut idle);
        assert!(!polling.is_patient(&idle));
    }
}
