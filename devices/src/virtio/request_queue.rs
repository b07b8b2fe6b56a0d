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

/// Time after which it looks even if the budget is not used up: a single request can move 4 GiB, and a reset waits in a
/// vCPU.
pub const TURN: Duration = Duration::from_millis(10);

/// Requests per interrupt while a burst lasts. The driver can go on with the first while the last are being served.
const NOTIFY_EVERY: u32 = 16;

/// The token of the doorbell, a service's only source.
const DOORBELL: u32 = 0;

/// The part of a device that answers the requests of one queue. Called on the queue's worker.
pub trait Answer: Send + 'static {
    /// What the queue's thread does.
    const JOB: Job;

    /// Answers the request in `chain`, which it may change, of queue `queue`. Returns the number of bytes that it wrote
    /// to the start of the writable part.
    ///
    /// # Errors
    /// If the request cannot be answered at all.
    fn answer(&mut self, queue: u16, chain: &mut Chain) -> Result<u32, Fault>;
}

/// One request queue of a device, as its worker's service. It holds nothing that the next activation would miss.
pub struct RequestService<A> {
    idx: u16,
    queue: RequestQueue,
    answerer: A,
}

impl<A: Answer> RequestService<A> {
    /// Has `answerer` answer the requests of `active`.
    ///
    /// # Errors
    /// If the rings are not in guest memory.
    pub fn new(active: ActiveQueue, mem: Memory, interrupts: Arc<Interrupts>, answerer: A) -> Result<Self, StartError> {
        let idx = active.idx;
        Ok(Self { idx, queue: RequestQueue::new(active, mem, interrupts)?, answerer })
    }
}

impl<A: Answer> Service for RequestService<A> {
    const JOB: Job = A::JOB;

    fn sources(&self) -> Vec<Source> {
        vec![Source::signalled(&self.queue.doorbell, DOORBELL)]
    }

    fn begin(&mut self, events: &mut EventOps) -> Result<(), Fault> {
        self.serve(DOORBELL, events)
    }

    fn serve(&mut self, _token: u32, _events: &mut EventOps) -> Result<(), Fault> {
        let Self { idx, queue, answerer } = self;
        queue.serve(|chain| answerer.answer(*idx, chain))
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

    /// Answers what is available. `answer` is given each chain, may change it, and returns the bytes that it wrote to
    /// the start of the writable part.
    ///
    /// # Errors
    /// If the ring or a chain is broken, if `answer` fails, or if the doorbell cannot be rung.
    pub fn serve(&mut self, mut answer: impl FnMut(&mut Chain) -> Result<u32, Fault>) -> Result<(), Fault> {
        let begun = Instant::now();
        let is_over = |served| served >= BUDGET || (served > 0 && begun.elapsed() >= TURN);
        let mut served = 0;
        loop {
            self.ring.disable_doorbell();
            while !is_over(served)
                && let Some(head) = self.ring.pop(&mut self.chain)?
            {
                let len = answer(&mut self.chain)?;
                self.ring.push_used(head, len);
                served += 1;
                if served.is_multiple_of(NOTIFY_EVERY) {
                    self.ring.notify();
                }
            }
            self.ring.notify();
            if is_over(served) {
                let ring_again = |source| Fault::Host { operation: "ring a doorbell", source };
                return self.doorbell.write(1).map_err(ring_again);
            }
            if !self.ring.enable_doorbell()? {
                return Ok(());
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

        queue.serve(|chain| Ok(chain.writable[0].len)).unwrap();

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

        queue.serve(|_| Ok(0)).unwrap();
        let after_first = driver.used().len();
        assert_eq!(doorbell.read().unwrap(), 1);
        queue.serve(|_| Ok(0)).unwrap();

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
            Ok(0)
        };

        queue.serve(slowly).unwrap();
        let after_first = driver.used().len();
        assert_eq!(doorbell.read().unwrap(), 1);
        queue.serve(slowly).unwrap();

        assert_eq!((after_first, driver.used().len()), (1, 2));
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
