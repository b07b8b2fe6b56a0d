//! A queue of requests that are answered one after the other, each before the next is looked at: disk and entropy.
//!
//! ```text
//! doorbell -> [doorbell off -> answer until empty -> doorbell on] -> empty: wait
//!                  ^                                   | something came meanwhile
//!                  +-----------------------------------+
//! ```
//! After [`BUDGET`] requests or [`TURN`] the queue rings its own doorbell and returns to the worker's loop, so that a
//! driver that never stops asking, or asks for much, keeps the worker from being stopped for no longer than one request
//! takes.
//!
//! A request that cannot be answered yet stays in the available ring, and those behind it, too. It is read and tried
//! anew after a while, and until then the doorbell means nothing. The worker sleeps meanwhile, so that a reset finds it
//! at once.

use crate::virtio::alarm::Alarm;
use crate::virtio::chain::Chain;
use crate::virtio::device::{ActiveQueue, Memory, StartError};
use crate::virtio::interrupt::Interrupts;
use crate::virtio::ring::Ring;
use crate::virtio::threads::Job;
use crate::virtio::worker::{Fault, Service, Source};
use event_manager::EventOps;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

/// Requests that are answered before the worker looks whether it is to stop.
pub const BUDGET: u32 = 64;

/// Time after which it looks even if the budget is not used up: a single request can move 256 MiB, and a reset waits in
/// a vCPU.
pub const TURN: Duration = Duration::from_millis(10);

/// Requests per interrupt while a burst lasts. The driver can go on with the first while the last are being served.
const NOTIFY_EVERY: u32 = 16;

/// The tokens of a service's sources.
const DOORBELL: u32 = 0;
const ALARM: u32 = 1;

/// The end of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// It is answered, with so many bytes written to the start of the writable part.
    Used(u32),
    /// It is to be tried again later; nothing of it has been answered.
    Later,
}

/// How a queue was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// All that was available is answered, or the doorbell has been rung for the rest.
    Done,
    /// The next request is to be tried again.
    Waits,
}

/// The part of a device that answers the requests of one queue. Called on the queue's worker.
pub trait Answer: Send + 'static {
    /// The job of the queue's thread.
    const JOB: Job;

    /// Answers the request in `chain`, which it may change, of queue `queue`, or has it wait.
    ///
    /// # Errors
    /// If the request cannot be answered at all.
    fn answer(&mut self, queue: u16, chain: &mut Chain) -> Result<Reply, Fault>;

    /// How long after [`Reply::Later`] the request is tried again; `None` if it then waits for a reset.
    fn try_again_after(&self) -> Option<Duration> {
        None
    }
}

/// One request queue of a device, as its worker's service. It holds nothing that the next activation would miss.
pub struct RequestService<A> {
    idx: u16,
    queue: RequestQueue,
    answerer: A,
    /// `None` if no request is ever tried again.
    alarm: Option<Alarm>,
    left: Served,
}

impl<A: Answer> RequestService<A> {
    /// Has `answerer` answer the requests of `active`.
    ///
    /// # Errors
    /// If the rings are not in guest memory, or the host has no timer left.
    pub fn new(active: ActiveQueue, mem: Memory, interrupts: Arc<Interrupts>, answerer: A) -> Result<Self, StartError> {
        let idx = active.idx;
        let queue = RequestQueue::new(active, mem, interrupts)?;
        let alarm = answerer.try_again_after().map(|_| Alarm::new()).transpose();
        let alarm = alarm.map_err(|source| StartError::Host { operation: "create a timer", source })?;
        Ok(Self { idx, queue, answerer, alarm, left: Served::Done })
    }
}

impl<A: Answer> Service for RequestService<A> {
    const JOB: Job = A::JOB;

    fn sources(&self) -> Vec<Source> {
        let alarm = self.alarm.as_ref().map(|alarm| Source::readable(alarm, ALARM));
        [Source::signalled(&self.queue.doorbell, DOORBELL)].into_iter().chain(alarm).collect()
    }

    fn begin(&mut self, events: &mut EventOps) -> Result<(), Fault> {
        self.serve(DOORBELL, events)
    }

    fn serve(&mut self, token: u32, _events: &mut EventOps) -> Result<(), Fault> {
        let Self { idx, queue, answerer, alarm, left } = self;
        let no_timer = |source| Fault::Host { operation: "set a timer", source };
        match (token, alarm.as_mut()) {
            (ALARM, Some(alarm)) => alarm.acknowledge().map_err(no_timer)?,
            _ if *left == Served::Waits => return Ok(()),
            _ => {}
        }
        *left = queue.serve(|chain| answerer.answer(*idx, chain))?;
        match (&left, alarm, answerer.try_again_after()) {
            (Served::Waits, Some(alarm), Some(delay)) => alarm.set(Some(Instant::now() + delay)).map_err(no_timer),
            _ => Ok(()),
        }
    }
}

/// A queue, its doorbell, and the chain that is being served.
pub struct RequestQueue {
    ring: Ring,
    doorbell: EventFd,
    chain: Chain,
}

impl RequestQueue {
    /// Takes over an activated queue.
    ///
    /// # Errors
    /// If its rings are not in guest memory, which the transport has checked.
    pub fn new(active: ActiveQueue, mem: Memory, interrupts: Arc<Interrupts>) -> Result<Self, StartError> {
        let (ring, doorbell) = Ring::new(active, mem, interrupts)?;
        Ok(Self { ring, doorbell, chain: Chain::default() })
    }

    /// Answers what is available, up to a request that waits. `answer` is given each chain and may change it.
    ///
    /// # Errors
    /// If the ring or a chain is broken, if `answer` fails, or if the doorbell cannot be rung.
    pub fn serve(&mut self, mut answer: impl FnMut(&mut Chain) -> Result<Reply, Fault>) -> Result<Served, Fault> {
        let begun = Instant::now();
        let is_over = |served| served >= BUDGET || (served > 0 && begun.elapsed() >= TURN);
        let mut served = 0;
        loop {
            self.ring.disable_doorbell();
            while !is_over(served)
                && let Some(head) = self.ring.pop(&mut self.chain)?
            {
                let Reply::Used(len) = answer(&mut self.chain)? else {
                    self.ring.put_back();
                    self.ring.notify();
                    return Ok(Served::Waits);
                };
                self.ring.push_used(head, len);
                served += 1;
                if served.is_multiple_of(NOTIFY_EVERY) {
                    self.ring.notify();
                }
            }
            self.ring.notify();
            if is_over(served) {
                let ring_again = |source| Fault::Host { operation: "ring a doorbell", source };
                return self.doorbell.write(1).map(|()| Served::Done).map_err(ring_again);
            }
            if !self.ring.enable_doorbell()? {
                return Ok(Served::Done);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::test_driver::{Desc, TestDriver};

    #[test]
    fn requests_are_answered_in_order() {
        let mut driver = TestDriver::new();
        let heads = [driver.add(&[Desc::writable(0x8000, 1)]), driver.add(&[Desc::writable(0x8001, 2)])];
        let (active, mem, interrupts) = driver.activate();
        let mut queue = RequestQueue::new(active, mem, interrupts).unwrap();

        queue.serve(|chain| Ok(Reply::Used(chain.writable[0].len))).unwrap();

        assert_eq!(driver.used(), [(heads[0], 1), (heads[1], 2)]);
        assert_eq!(driver.interrupts_seen(), 1);
    }

    #[test]
    fn a_driver_that_never_stops_is_served_one_budget_at_a_time() {
        let mut driver = TestDriver::new();
        for _ in 0..=BUDGET {
            driver.add(&[Desc::writable(0x8000, 1)]);
        }
        let (active, mem, interrupts) = driver.activate();
        let doorbell = active.doorbell.try_clone().unwrap();
        let mut queue = RequestQueue::new(active, mem, interrupts).unwrap();

        queue.serve(|_| Ok(Reply::Used(0))).unwrap();
        let after_first = driver.used().len();
        assert_eq!(doorbell.read().unwrap(), 1);
        queue.serve(|_| Ok(Reply::Used(0))).unwrap();

        assert_eq!((after_first, driver.used().len()), (64, 65));
    }

    #[test]
    fn slow_requests_are_served_one_at_a_time() {
        let mut driver = TestDriver::new();
        for _ in 0..2 {
            driver.add(&[Desc::writable(0x8000, 1)]);
        }
        let (active, mem, interrupts) = driver.activate();
        let doorbell = active.doorbell.try_clone().unwrap();
        let mut queue = RequestQueue::new(active, mem, interrupts).unwrap();
        let slowly = |_: &mut Chain| {
            let begun = Instant::now();
            while begun.elapsed() < TURN {
                std::hint::spin_loop();
            }
            Ok(Reply::Used(0))
        };

        queue.serve(slowly).unwrap();
        let after_first = driver.used().len();
        assert_eq!(doorbell.read().unwrap(), 1);
        queue.serve(slowly).unwrap();

        assert_eq!((after_first, driver.used().len()), (1, 2));
    }

    #[test]
    fn request_that_waits_is_read_again_and_those_behind_it_wait_too() {
        let mut driver = TestDriver::new();
        let heads: Vec<_> = (1..=3).map(|len| driver.add(&[Desc::writable(0x8000, len)])).collect();
        let (active, mem, interrupts) = driver.activate();
        let mut queue = RequestQueue::new(active, mem, interrupts).unwrap();
        let up_to = |most| {
            move |chain: &mut Chain| {
                let len = chain.writable.pop().map_or(0, |buffer| buffer.len);
                Ok(if len <= most { Reply::Used(len) } else { Reply::Later })
            }
        };

        let left = [queue.serve(up_to(1)).unwrap(), queue.serve(up_to(1)).unwrap()];
        assert_eq!((left, driver.used()), ([Served::Waits; 2], vec![(heads[0], 1)]));
        assert_eq!(driver.interrupts_seen(), 1);

        assert_eq!(queue.serve(up_to(9)).unwrap(), Served::Done);
        assert_eq!(driver.used(), [(heads[0], 1), (heads[1], 2), (heads[2], 3)]);
    }

    #[test]
    fn failing_answer_ends_service() {
        let mut driver = TestDriver::new();
        driver.add(&[Desc::writable(0x8000, 1)]);
        let (active, mem, interrupts) = driver.activate();
        let mut queue = RequestQueue::new(active, mem, interrupts).unwrap();

        let result = queue.serve(|_| Err(Fault::Guest { queue: 0, reason: "a test" }));

        assert!(matches!(result, Err(Fault::Guest { .. })));
        assert_eq!(driver.used(), []);
    }
}
