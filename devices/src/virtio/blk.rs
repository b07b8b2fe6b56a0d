//! Block device, virtio 1.3 5.2: one queue and one worker in front of a [`Disk`].
//!
//! Bytes move in one copy between guest memory and the host's page cache. Requests are served one after the other in the order
//! the driver made them available. A driver that negotiated FLUSH gets a write-back cache, any other a write-through one.
//! Not offered: several queues, switching the cache mode, secure erase, zones, geometry.

mod config;
pub mod disk;
mod engine;
mod request;
#[cfg(test)]
mod tests;

use crate::virtio::blk::config::Config;
use crate::virtio::blk::disk::{Access, Disk};
use crate::virtio::blk::engine::{Counts, Engine, WriteMode};
use crate::virtio::device::{Activation, Counter, Device, Kind, StartError};
use crate::virtio::iovec::IoVecs;
use crate::virtio::request_queue::RequestQueue;
use crate::virtio::worker::{Fault, Service, Source, Worker};
use event_manager::EventOps;
use std::sync::Arc;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

/// Descriptors in the queue.
pub(super) const QUEUE_SIZE: u16 = 256;
const QUEUE: u16 = 0;
const DOORBELL: u32 = 0;
/// Length of a serial number (virtio 1.3 5.2.6: GET_ID).
const SERIAL_BYTES: usize = 20;

/// What the guest reads as the disk's serial number, padded with zeros.
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
    counts: Arc<Counts>,
    state: State,
}

enum State {
    Idle,
    Running(Worker<BlkService>),
}

impl Blk {
    /// A device in front of `disk`, with a worker thread called `name` (for example `blk0`).
    pub fn new(name: &str, disk: Disk, serial: DiskSerial) -> Self {
        Self {
            name: name.to_owned(),
            config: Config::new(&disk),
            disk: Arc::new(disk),
            serial,
            counts: Arc::default(),
            state: State::Idle,
        }
    }
}

impl Device for Blk {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        let always = bit(VIRTIO_BLK_F_SEG_MAX) | bit(VIRTIO_BLK_F_BLK_SIZE) | bit(VIRTIO_BLK_F_FLUSH);
        let discard = if self.disk.can_discard() { bit(VIRTIO_BLK_F_DISCARD) } else { 0 };
        match self.disk.access() {
            Access::ReadOnly => always | bit(VIRTIO_BLK_F_RO),
            Access::ReadWrite => always | bit(VIRTIO_BLK_F_WRITE_ZEROES) | discard,
        }
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation { mem, features, queues, interrupts } = activation;
        let active = queues.into_iter().find(|queue| queue.idx == QUEUE).ok_or(StartError::MissingQueue(QUEUE))?;
        let engine = Engine {
            name: self.name.clone(),
            disk: self.disk.clone(),
            serial: self.serial,
            mode: if features & bit(VIRTIO_BLK_F_FLUSH) != 0 { WriteMode::Back } else { WriteMode::Through },
            vecs: IoVecs::new(mem.clone()),
            mem: mem.clone(),
            counts: self.counts.clone(),
        };
        let service = BlkService { queue: RequestQueue::new(active, mem, interrupts.clone())?, engine };
        self.state = State::Running(Worker::spawn(&self.name, service, interrupts)?);
        Ok(())
    }

    fn stop(&mut self) {
        if let State::Running(worker) = std::mem::replace(&mut self.state, State::Idle) {
            // The service holds nothing that the next activation would miss.
            drop(worker.stop());
        }
    }

    fn counters(&self) -> Vec<Counter> {
        self.counts.report()
    }
}

struct BlkService {
    queue: RequestQueue,
    engine: Engine,
}

impl Service for BlkService {
    fn sources(&self) -> Vec<Source> {
        vec![self.queue.source(DOORBELL)]
    }

    fn begin(&mut self, events: &mut EventOps) -> Result<(), Fault> {
        self.serve(DOORBELL, events)
    }

    fn serve(&mut self, _token: u32, _events: &mut EventOps) -> Result<(), Fault> {
        let engine = &mut self.engine;
        self.queue.serve(|chain| engine.answer(chain).map_err(|reason| Fault::Guest { queue: QUEUE, reason }))
    }
}

fn bit(feature: u32) -> u64 {
    1 << feature
}
