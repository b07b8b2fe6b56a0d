//! A worker on a thread of its own.

use super::guarded::guarded;
use super::{Caller, Fault, Loop, Poll, Service, poll_once};
use crate::virtio::device::StartError;
use crate::virtio::interrupt::Interrupts;
use crate::virtio::payoff::Payoff;
use crate::virtio::threads::{Processors, Threads};
use event_manager::{EventManager, EventOps, SubscriberId, SubscriberOps};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A running worker.
pub struct Worker<S> {
    thread: JoinHandle<()>,
    /// The service, once the thread has ended; not after a panic.
    ended: Receiver<S>,
    caller: Caller<S>,
}

impl<S: Service> Worker<S> {
    /// Has `threads` start one called `name` (at most 15 bytes are visible) that serves `service` until
    /// [`stop`](Self::stop).
    ///
    /// # Errors
    /// If the host has no thread, epoll or event left.
    pub fn spawn(
        name: &str,
        service: S,
        interrupts: Arc<Interrupts>,
        threads: &dyn Threads,
    ) -> Result<Self, StartError> {
        let host = |operation| move |source| StartError::Host { operation, source };
        let (event_loop, caller) = Loop::new(name, service, interrupts.clone())?;
        let manager = EventManager::new().map_err(io::Error::other).map_err(host("create an epoll"))?;
        let (give_back, ended) = mpsc::sync_channel(1);
        let work = move |processors| {
            if let Some(service) = guarded(move || serve_until_stopped(manager, event_loop, processors)) {
                // Whoever has dropped the worker does not want it.
                drop(give_back.send(service));
            } else {
                interrupts.set_needs_reset();
            }
        };
        let thread = threads.spawn(name, S::JOB, Box::new(work)).map_err(host("start a worker thread"))?;
        Ok(Self { thread, ended, caller })
    }

    /// Runs `action` on the worker's thread, between two events, and waits for its result as long as the current event
    /// is being served. `None` if the worker has met a fault, or `action` gives one: then the service rests until it is
    /// stopped. `None`, too, if the worker has panicked, or `action` does.
    pub fn call<R: Send + 'static>(
        &self,
        action: impl FnOnce(&mut S, &mut EventOps) -> Result<R, Fault> + Send + 'static,
    ) -> Option<R> {
        match self.caller.call(action) {
            Ok(result) => result.recv().ok(),
            // It has panicked, and that was reported.
            Err(err) if err.kind() == io::ErrorKind::BrokenPipe => None,
            Err(err) => {
                log::error!("Cannot wake a worker: {err}");
                None
            }
        }
    }

    /// Stops the worker, waits for its thread and returns the service; `None` if the thread panicked, which is a bug
    /// and has been reported by the panic hook.
    pub fn stop(self) -> Option<S> {
        let Caller { calls, wake } = self.caller;
        drop(calls);
        if let Err(err) = wake.write(1) {
            log::error!("Cannot stop a worker: {err}");
        }
        self.thread.join().ok()?;
        self.ended.try_recv().ok()
    }
}

/// Runs a worker's loop to its end. Returns the service.
fn serve_until_stopped<S: Service>(
    mut manager: EventManager<Loop<S>>,
    event_loop: Loop<S>,
    processors: Processors,
) -> S {
    let id = manager.add_subscriber(event_loop);
    run(&mut manager, id, processors);
    match manager.remove_subscriber(id) {
        Ok(ended) => ended.service,
        Err(err) => unreachable!("the subscriber was added above and never removed: {err}"),
    }
}

/// Serves until the worker is stopped.
fn run<S: Service>(manager: &mut EventManager<Loop<S>>, id: SubscriberId, processors: Processors) {
    match processors {
        Processors::One => run_in_turns(manager, id),
        Processors::Several => run_beside_others(manager, id),
    }
}

/// Serves with a processor to spare: polls before a sleep for as long as sleeps have turned out short.
fn run_beside_others<S: Service>(manager: &mut EventManager<Loop<S>>, id: SubscriberId) {
    let mut window = Window::default();
    loop {
        let asleep = Instant::now();
        serve(manager, -1);
        window.learn(asleep.elapsed());
        let mut idle = Instant::now();
        loop {
            let patient = !window.0.is_zero() && idle.elapsed() < window.0;
            match poll_once(manager, id, if patient { S::poll } else { S::before_sleep }) {
                Poll::Found => idle = Instant::now(),
                // Not by giving way: whoever gets the processor then may keep it for milliseconds, and a sleeper is
                // woken sooner.
                Poll::Nothing if patient => std::hint::spin_loop(),
                Poll::Nothing => break,
                Poll::Stopped => return,
            }
            if serve(manager, 0) {
                idle = Instant::now();
            }
        }
    }
}

/// So often in a row the processor may be given away in vain before that is done rarely.
const FAILURES_MAX: u8 = 8;

/// Serves on the only processor: gives way to the guest, which answers what it is woken for, or goes on to fill the
/// ring, and spares an exit and a wake-up for each frame.
fn run_in_turns<S: Service>(manager: &mut EventManager<Loop<S>>, id: SubscriberId) {
    let mut more_after_work = Payoff::new(FAILURES_MAX);
    loop {
        serve(manager, -1);
        let mut worked = 0;
        loop {
            let mut found = poll_once(manager, id, S::poll);
            if found == Poll::Nothing {
                let gives_way = worked == 0 || more_after_work.is_expected();
                if gives_way {
                    thread::yield_now();
                }
                found = poll_once(manager, id, S::before_sleep);
                if worked > 0 {
                    more_after_work.learn(gives_way, found == Poll::Found);
                }
            }
            match found {
                Poll::Found => worked += 1,
                Poll::Nothing => break,
                Poll::Stopped => return,
            }
            // Not after the first: a sleep looks at everything else as well.
            if worked > 1 {
                serve(manager, 0);
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

/// How long to poll before a sleep: longer when sleeps have turned out short, not at all when they are long.
#[derive(Debug, Default)]
struct Window(Duration);

impl Window {
    const SHORTEST: Duration = Duration::from_micros(4);
    const LONGEST: Duration = Duration::from_micros(64);

    /// Learns from a sleep.
    fn learn(&mut self, sleep: Duration) {
        self.0 = if sleep <= Self::LONGEST {
            (self.0 * 2).clamp(Self::SHORTEST, Self::LONGEST)
        } else {
            Some(self.0 / 2).filter(|window| *window >= Self::SHORTEST).unwrap_or_default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_follows_the_length_of_sleeps() {
        let mut window = Window::default();
        let mut windows = Vec::new();
        for sleep in [10, 64, 10, 10, 10, 10, 1000, 65, 65, 65, 65, 10] {
            window.learn(Duration::from_micros(sleep));
            windows.push(window.0.as_micros());
        }
        assert_eq!(windows, [4, 8, 16, 32, 64, 64, 32, 16, 8, 4, 0, 4]);
    }
}
