//! Block device, virtio 1.3 5.2: queues in front of a [`Disk`], with a worker each.
//!
//! Bytes move in one copy between guest memory and the host's page cache. Requests of a queue are served one after the
//! other in the order the driver made them available, those of several queues side by side. A driver that negotiated
//! FLUSH begins with a write-back cache, any other with a write-through one. Not offered: secure erase, which no host
//! file can promise, zones, lifetime, geometry.

mod cache;
mod config;
pub mod disk;
mod engine;
mod failures;
mod request;
#[cfg(test)]
mod tests;
mod topology;

pub use failures::{OnError, StopMachine};

use crate::virtio::blk::cache::{Cache, WriteMode};
use crate::virtio::blk::config::{Config, WRITEBACK};
use crate::virtio::blk::disk::{Access, Disk};
use crate::virtio::blk::engine::{Counts, Engine};
use crate::virtio::blk::failures::{Failures, QueueFailures};
use crate::virtio::device::{Activation, ActiveQueue, Counter, Device, Kind, Memory, StartError};
use crate::virtio::interrupt::Interrupts;
use crate::virtio::iovec::IoVecs;
use crate::virtio::request_queue::RequestService;
use crate::virtio::threads::Threads;
use crate::virtio::worker::Worker;
use std::str::FromStr;
use std::sync::Arc;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

/// Descriptors in a queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// The queue that every driver enables.
const FIRST_QUEUE: u16 = 0;
/// Length of a serial number (virtio 1.3 5.2.6: GET_ID).
const SERIAL_BYTES: usize = 20;

/// How many queues a disk has: 1 to 16. Each has a thread, so more than a host has processors are of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueCount(u16);

/// A number of queues that a disk cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("A disk has 1 to {} queues", QueueCount::MAX)]
pub struct BadQueueCount;

impl Default for QueueCount {
    fn default() -> Self {
        Self(1)
    }
}

impl TryFrom<u16> for QueueCount {
    type Error = BadQueueCount;

    fn try_from(count: u16) -> Result<Self, BadQueueCount> {
        if (1..=Self::MAX).contains(&count) { Ok(Self(count)) } else { Err(BadQueueCount) }
    }
}

impl FromStr for QueueCount {
    type Err = BadQueueCount;

    fn from_str(text: &str) -> Result<Self, BadQueueCount> {
        text.parse::<u16>().map_err(|_| BadQueueCount)?.try_into()
    }
}

impl QueueCount {
    /// The most that a disk can have.
    pub const MAX: u16 = 16;

    /// Up to so many follow the vCPUs. Each costs the guest's driver an interrupt and the host a thread.
    const MAX_BY_DEFAULT: u16 = 4;

    /// How many a disk has by default in a guest with `cpus` vCPUs.
    pub fn for_cpus(cpus: u32) -> Self {
        Self(u16::try_from(cpus).unwrap_or(u16::MAX).clamp(1, Self::MAX_BY_DEFAULT))
    }
}

/// The disk's serial number as the guest reads it, padded with zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskSerial([u8; SERIAL_BYTES]);

/// A text that cannot be a serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("A disk serial number is at most {SERIAL_BYTES} printable ASCII characters without spaces")]
pub struct BadSerial;

impl TryFrom<&str> for DiskSerial {
    type Error = BadSerial;

    fn try_from(text: &str) -> Result<Self, BadSerial> {
        let mut serial = [0; SERIAL_BYTES];
        let field = serial.get_mut(..text.len()).ok_or(BadSerial)?;
        field.copy_from_slice(text.as_bytes());
        if text.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(Self(serial)) } else { Err(BadSerial) }
    }
}

impl DiskSerial {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The device.
pub struct Blk {
    name: String,
    disk: Arc<Disk>,
    serial: DiskSerial,
    config: Config,
    queue_sizes: Vec<u16>,
    /// The feature bits that the driver has accepted; none before.
    accepted: u64,
    cache: Arc<Cache>,
    counts: Arc<Counts>,
    failures: Arc<Failures>,
    /// One for each queue that the driver has enabled; none while it does not run.
    workers: Vec<Worker<RequestService<Engine>>>,
}

impl Blk {
    /// A device in front of `disk`, with one queue and a worker thread called `name` (for example `blk0`).
    pub fn new(name: &str, disk: Disk, serial: DiskSerial) -> Self {
        Self {
            name: name.to_owned(),
            config: Config::new(&disk, 1),
            disk: Arc::new(disk),
            serial,
            queue_sizes: vec![QUEUE_SIZE],
            accepted: 0,
            cache: Arc::new(Cache::new(WriteMode::Through)),
            counts: Arc::default(),
            failures: Arc::new(Failures::new(name, OnError::Report)),
            workers: Vec::new(),
        }
    }

    /// The same with `count` queues and as many threads.
    #[must_use]
    pub fn with_queues(self, QueueCount(count): QueueCount) -> Self {
        Self { config: Config::new(&self.disk, count), queue_sizes: vec![QUEUE_SIZE; count.into()], ..self }
    }

    /// The same, with failures of the host that do what `on_error` says; without, the guest is told of them.
    #[must_use]
    pub fn with_on_error(self, on_error: OnError) -> Self {
        Self { failures: Arc::new(Failures::new(&self.name, on_error)), ..self }
    }

    fn has(&self, feature: u32) -> bool {
        self.accepted & bit(feature) != 0
    }

    /// The driver sets the cache mode. Before it is told that its writes are durable, those that it has not flushed are
    /// made so.
    fn set_writeback(&self, value: u8) {
        match value {
            0 => {
                self.cache.set(WriteMode::Through);
                if let Err(err) = self.disk.flush() {
                    // The driver reads back that its cache is what it was.
                    self.cache.set(WriteMode::Back);
                    // That is the answer, whatever is done with a request.
                    self.failures.flush_failed(err);
                }
            }
            1 => self.cache.set(WriteMode::Back),
            _ => {}
        }
    }

    fn spawn(
        &self,
        active: ActiveQueue,
        mem: &Memory,
        interrupts: &Arc<Interrupts>,
        threads: &dyn Threads,
    ) -> Result<Worker<RequestService<Engine>>, StartError> {
        let idx = active.idx;
        let name = if self.queue_sizes.len() == 1 { self.name.clone() } else { format!("{}-{idx}", self.name) };
        let engine = Engine {
            disk: self.disk.clone(),
            serial: self.serial,
            cache: self.cache.clone(),
            vecs: IoVecs::new(mem.clone()),
            mem: mem.clone(),
            counts: self.counts.clone(),
            failures: QueueFailures::new(self.failures.clone()),
        };
        let service = RequestService::new(active, mem.clone(), interrupts.clone(), engine)?;
        Worker::spawn(&name, service, interrupts.clone(), threads)
    }
}

impl Device for Blk {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        let queues = if self.queue_sizes.len() > 1 { bit(VIRTIO_BLK_F_MQ) } else { 0 };
        let sizes = bit(VIRTIO_BLK_F_SEG_MAX) | bit(VIRTIO_BLK_F_BLK_SIZE) | bit(VIRTIO_BLK_F_TOPOLOGY);
        let always = sizes | bit(VIRTIO_BLK_F_FLUSH) | queues;
        let write = bit(VIRTIO_BLK_F_WRITE_ZEROES) | bit(VIRTIO_BLK_F_CONFIG_WCE);
        let discard = if self.disk.can_discard() { bit(VIRTIO_BLK_F_DISCARD) } else { 0 };
        match self.disk.access() {
            Access::ReadOnly => always | bit(VIRTIO_BLK_F_RO),
            Access::ReadWrite => always | write | discard,
        }
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn accepted(&mut self, features: u64) {
        self.accepted = features;
        // A driver that cannot flush must not have to (virtio 1.3 5.2.5.2).
        let mode = if self.has(VIRTIO_BLK_F_FLUSH) { WriteMode::Back } else { WriteMode::Through };
        self.cache.set(mode);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data, u8::from(self.cache.mode() == WriteMode::Back));
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let [value] = *data
            && usize::try_from(offset) == Ok(WRITEBACK)
            && self.has(VIRTIO_BLK_F_CONFIG_WCE)
        {
            self.set_writeback(value);
        }
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation { mem, features, queues, interrupts, threads } = activation;
        let most = if features & bit(VIRTIO_BLK_F_MQ) != 0 { self.queue_sizes.len() } else { 1 };
        let queues: Vec<_> = queues.into_iter().filter(|queue| usize::from(queue.idx) < most).collect();
        if queues.first().is_none_or(|queue| queue.idx != FIRST_QUEUE) {
            return Err(StartError::MissingQueue(FIRST_QUEUE));
        }
        for active in queues {
            let worker = self.spawn(active, &mem, &interrupts, &*threads);
            let worker = worker.inspect_err(|_| self.workers.drain(..).for_each(end))?;
            self.workers.push(worker);
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.workers.drain(..).for_each(end);
    }

    fn counters(&self) -> Vec<Counter> {
        self.counts.report(&self.failures)
    }
}

/// Stops a worker.
fn end(worker: Worker<RequestService<Engine>>) {
    drop(worker.stop());
}

fn bit(feature: u32) -> u64 {
    1 << feature
}
