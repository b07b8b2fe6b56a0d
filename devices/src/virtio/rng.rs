//! Entropy device, virtio 1.3 5.4: fills the driver's buffers from a random source of the host.
//!
//! One queue, one worker. The bytes go straight from the host's source into guest memory. There is no rate limit: the
//! source is meant to be `/dev/urandom`, which does not run dry, and a guest that asks for ever burns one thread of its
//! own VM, as one of its vCPUs could.

use crate::virtio::chain::{Buffer, Chain};
use crate::virtio::device::{Activation, Counter, Device, Kind, StartError};
use crate::virtio::iovec::IoVecs;
use crate::virtio::request_queue::{Answer, Reply, RequestService};
use crate::virtio::threads::Job;
use crate::virtio::worker::{Fault, Worker};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes per request at most, whatever the buffers' size: a bound on the time until the worker looks up.
const MAX_REQUEST_BYTES: u32 = 64 << 10;
/// Descriptors in the queue. Linux has one request under way.
const QUEUE_SIZE: u16 = 16;
const QUEUE: u16 = 0;

/// The device.
pub struct Rng {
    name: String,
    source: Arc<File>,
    counts: Arc<Counts>,
    state: State,
}

enum State {
    Idle,
    Running(Worker<RequestService<Filler>>),
}

/// Written by the worker, read for reports.
#[derive(Default)]
struct Counts {
    bytes: AtomicU64,
    refused: AtomicU64,
}

impl Rng {
    /// A device that reads from `source`, with a worker thread called `name` (for example `rng0`).
    pub fn new(name: &str, source: File) -> Self {
        Self { name: name.to_owned(), source: Arc::new(source), counts: Arc::default(), state: State::Idle }
    }
}

impl Device for Rng {
    fn kind(&self) -> Kind {
        Kind::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation { mem, queues, interrupts, threads, .. } = activation;
        let active = queues.into_iter().find(|queue| queue.idx == QUEUE).ok_or(StartError::MissingQueue(QUEUE))?;
        let filler =
            Filler { vecs: IoVecs::new(mem.clone()), source: self.source.clone(), counts: self.counts.clone() };
        let service = RequestService::new(active, mem, interrupts.clone(), filler)?;
        self.state = State::Running(Worker::spawn(&self.name, service, interrupts, &*threads)?);
        Ok(())
    }

    fn stop(&mut self) {
        if let State::Running(worker) = std::mem::replace(&mut self.state, State::Idle) {
            drop(worker.stop());
        }
    }

    fn counters(&self) -> Vec<Counter> {
        [("bytes", &self.counts.bytes), ("refused_requests", &self.counts.refused)]
            .map(|(name, count)| Counter { name: name.into(), value: count.load(Ordering::Relaxed) })
            .into()
    }
}

struct Filler {
    vecs: IoVecs,
    source: Arc<File>,
    counts: Arc<Counts>,
}

impl Answer for Filler {
    const JOB: Job = Job::Entropy;

    /// Fills the writable part of `chain`. A chain without one is refused.
    fn answer(&mut self, queue: u16, chain: &mut Chain) -> Result<Reply, Fault> {
        self.vecs.clear();
        let mut room = MAX_REQUEST_BYTES;
        for buffer in &chain.writable {
            let len = buffer.len.min(room);
            if len == 0 {
                break;
            }
            room -= len;
            let part = Buffer { len, ..*buffer };
            self.vecs.push(part).map_err(|bad| Fault::Guest { queue, reason: bad.reason() })?;
        }
        if self.vecs.is_empty() {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
            return Ok(Reply::Used(0));
        }
        let failed = |source| Fault::Host { operation: "read random bytes", source };
        let filled = self.vecs.readv(self.source.as_fd()).map_err(failed)?;
        match u32::try_from(filled) {
            Ok(len) if len > 0 => {
                self.counts.bytes.fetch_add(u64::from(len), Ordering::Relaxed);
                Ok(Reply::Used(len))
            }
            // A driver must get at least one byte (virtio 1.3 5.4.6.2), so a source that has ended is a failure.
            _ => Err(failed(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::request_queue::{RequestQueue, Served};
    use crate::virtio::test_driver::{Desc, TestDriver};
    use std::io::Write;

    /// A source that holds `bytes` and then ends. The worker's reads and the test share its position.
    fn source(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file
    }

    /// Serves what `driver` has made available, without a thread.
    fn serve(driver: &TestDriver, source: File) -> (Result<Served, Fault>, Arc<Counts>) {
        let (active, mem, interrupts) = driver.activate();
        let counts = Arc::<Counts>::default();
        let mut filler = Filler { vecs: IoVecs::new(mem.clone()), source: Arc::new(source), counts: counts.clone() };
        (RequestQueue::new(active, mem, interrupts).unwrap().serve(|chain| filler.answer(QUEUE, chain)), counts)
    }

    #[test]
    fn buffers_are_filled_in_order() {
        let mut driver = TestDriver::new();
        let head = driver.add(&[Desc::writable(0x8000, 3), Desc::writable(0x9000, 2)]);

        serve(&driver, source(b"abcdef")).0.unwrap();

        assert_eq!((driver.read(0x8000, 4), driver.read(0x9000, 3)), (b"abc\0".to_vec(), b"de\0".to_vec()));
        assert_eq!(driver.used(), [(head, 5)]);
    }

    #[test]
    fn large_request_is_cut_at_64_kib() {
        let mut driver = TestDriver::new();
        let head = driver.add(&[Desc::writable(0x8000, 0xffff), Desc::writable(0x10_0000, 0x10_0000)]);

        serve(&driver, source(&[7; 0x2_0000])).0.unwrap();

        assert_eq!(driver.used(), [(head, 0x1_0000)]);
        assert_eq!(driver.read(0x10_0000, 2), [7, 0]);
    }

    #[test]
    fn chain_without_a_writable_buffer_is_refused_and_counted() {
        let mut driver = TestDriver::new();
        let head = driver.add(&[Desc::readable(0x8000, 8)]);

        let (result, counts) = serve(&driver, source(b"abc"));

        result.unwrap();
        assert_eq!(driver.used(), [(head, 0)]);
        assert_eq!(counts.refused.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn source_that_has_ended_is_a_host_fault() {
        let mut driver = TestDriver::new();
        driver.add(&[Desc::writable(0x8000, 8)]);

        let (result, _) = serve(&driver, source(b""));

        assert!(matches!(result, Err(Fault::Host { .. })));
    }

    #[test]
    fn device_comes_back_after_a_reset() {
        let mut driver = TestDriver::new();
        let mut rng = Rng::new("rng0", source(b"abcdefgh"));

        for round in 1..=3 {
            driver.reset();
            let head = driver.add(&[Desc::writable(0x8000, 2)]);
            rng.start(driver.activation(0)).unwrap();
            driver.wait_until(|driver| driver.used() == [(head, 2)]);
            rng.stop();
            assert_eq!(rng.counters()[0].value, 2 * round);
        }

        assert_eq!(driver.read(0x8000, 2), b"ef");
    }

    #[test]
    fn doorbell_wakes_the_worker() {
        let mut driver = TestDriver::new();
        let mut rng = Rng::new("rng0", source(b"abc"));
        rng.start(driver.activation(0)).unwrap();

        let head = driver.add(&[Desc::writable(0x8000, 1)]);
        driver.doorbell.write(1).unwrap();

        driver.wait_until(|driver| driver.used() == [(head, 1)]);
        rng.stop();
        assert!(driver.interrupts_seen() >= 1);
    }

    #[test]
    fn missing_queue_is_refused() {
        let driver = TestDriver::new();
        let mut rng = Rng::new("rng0", source(b""));

        let result = rng.start(Activation { queues: vec![], ..driver.activation(0) });

        assert!(matches!(result, Err(StartError::MissingQueue(0))));
    }
}
