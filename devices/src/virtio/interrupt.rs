//! Interrupts from a virtio device to its driver, and the one status bit that a device may set by itself.
//!
//! Shared by the transport (which changes the routing) and the workers (which signal). No lock: a worker sees either the old or
//! the new vector of a queue, as on hardware.

use crate::irq::MsiVector;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use vmm_sys_util::eventfd::EventFd;

/// virtio 1.3 4.1.4.3: no MSI-X vector is mapped.
pub const NO_VECTOR: u16 = 0xffff;

/// ISR status bit 0: a used buffer notification (virtio 1.3 4.1.4.5).
pub const ISR_QUEUE: u8 = 1;
/// ISR status bit 1: a configuration change.
pub const ISR_CONFIG: u8 = 2;

/// What became of the notifications of used buffers of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Notifications {
    /// Interrupts sent.
    pub sent: u64,
    /// Batches of which the driver did not want to be told.
    pub suppressed: u64,
}

/// Interrupts of one queue, on cache lines of their own: the counts are written for every batch.
#[repr(align(128))]
struct QueueSide {
    vector: AtomicU16,
    sent: AtomicU64,
    suppressed: AtomicU64,
}

impl Default for QueueSide {
    fn default() -> Self {
        Self { vector: AtomicU16::new(NO_VECTOR), sent: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }
}

/// The device side of interrupt delivery.
pub struct Interrupts {
    vectors: Vec<Arc<dyn MsiVector>>,
    /// Whether MSI-X is enabled; without it the device has no way to interrupt and only the ISR bit is set. Relaxed: the guest
    /// orders its own MSI-X enable against DRIVER_OK.
    enabled: AtomicBool,
    config_vector: AtomicU16,
    queues: Vec<QueueSide>,
    isr: AtomicU8,
    /// Changes with the device configuration (virtio 1.3 4.1.4.3.1). Wraps.
    generation: AtomicU8,
    /// The driver's status and the device's NEEDS_RESET. Pairs with the transport's reads.
    status: AtomicU8,
}

impl Interrupts {
    /// For a device with `queues` virtqueues; `vectors` are what its MSI-X table offers.
    pub fn new(vectors: Vec<Arc<dyn MsiVector>>, queues: usize) -> Self {
        Self {
            vectors,
            enabled: AtomicBool::new(false),
            config_vector: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| QueueSide::default()).collect(),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            status: AtomicU8::new(0),
        }
    }

    /// Tells the driver that `queue` has used buffers. The worker of the queue, and nobody else, calls it once per batch, after
    /// EVENT_IDX has been consulted.
    pub fn signal_queue(&self, queue: u16) {
        self.isr.fetch_or(ISR_QUEUE, Ordering::Relaxed);
        if let Some(side) = self.queues.get(usize::from(queue)) {
            increment(&side.sent);
            self.signal(side.vector.load(Ordering::Relaxed));
        }
    }

    /// Takes note that the driver did not want to be told of a batch of `queue`. From the same thread.
    pub fn spare_queue(&self, queue: u16) {
        if let Some(side) = self.queues.get(usize::from(queue)) {
            increment(&side.suppressed);
        }
    }

    /// The event by which a backend in the kernel interrupts for `queue`, until the driver gives the queue another vector. `None` if the
    /// queue has no vector, or a vector without an event. What it signals is not counted, and leaves the ISR status alone, which only a
    /// driver without MSI-X would read.
    pub fn event_of_queue(&self, queue: u16) -> Option<&EventFd> {
        self.vectors.get(usize::from(self.queue_vector(queue)))?.event()
    }

    /// What became of the notifications of `queue`.
    pub fn of_queue(&self, queue: u16) -> Notifications {
        self.queues.get(usize::from(queue)).map_or(Notifications::default(), |side| Notifications {
            sent: side.sent.load(Ordering::Relaxed),
            suppressed: side.suppressed.load(Ordering::Relaxed),
        })
    }

    /// Tells the driver that the device configuration changed.
    pub fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::Release);
        self.isr.fetch_or(ISR_CONFIG, Ordering::Relaxed);
        self.signal(self.config_vector.load(Ordering::Relaxed));
    }

    /// Sets DEVICE_NEEDS_RESET and tells the driver (virtio 1.3 2.1.2). Returns whether this call was the one that set it.
    pub fn set_needs_reset(&self) -> bool {
        let old = self.status.fetch_or(NEEDS_RESET, Ordering::AcqRel);
        let first = old & NEEDS_RESET == 0;
        if first {
            self.signal_config();
        }
        first
    }

    /// Sets DEVICE_NEEDS_RESET without telling the driver, which has forbidden interrupts.
    pub(crate) fn set_needs_reset_silently(&self) {
        self.status.fetch_or(NEEDS_RESET, Ordering::AcqRel);
    }

    /// Whether the device waits for a reset.
    pub fn needs_reset(&self) -> bool {
        self.status.load(Ordering::Acquire) & NEEDS_RESET != 0
    }

    pub(crate) fn status(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    /// Adds status bits of the driver; NEEDS_RESET that a worker set meanwhile stays.
    pub(crate) fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits & !NEEDS_RESET, Ordering::AcqRel);
    }

    /// Everything back to the state after reset. The caller has stopped the workers.
    pub(crate) fn reset(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::Relaxed);
        for side in &self.queues {
            side.vector.store(NO_VECTOR, Ordering::Relaxed);
        }
        self.isr.store(0, Ordering::Relaxed);
        self.status.store(0, Ordering::Release);
    }

    /// Reads the ISR status; reading clears it.
    pub(crate) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    pub(crate) fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Relaxed);
    }

    pub(crate) fn config_generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Relaxed)
    }

    pub(crate) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.checked(vector), Ordering::Relaxed);
    }

    pub(crate) fn queue_vector(&self, queue: u16) -> u16 {
        self.queues.get(usize::from(queue)).map_or(NO_VECTOR, |side| side.vector.load(Ordering::Relaxed))
    }

    pub(crate) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(side) = self.queues.get(usize::from(queue)) {
            side.vector.store(self.checked(vector), Ordering::Relaxed);
        }
    }

    /// virtio 1.3 4.1.5.1.2.1: a vector that cannot be mapped reads back as NO_VECTOR.
    fn checked(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.vectors.len() { vector } else { NO_VECTOR }
    }

    fn signal(&self, vector: u16) {
        if !self.enabled.load(Ordering::Relaxed) {
            return;
        }
        if let Some(vector) = self.vectors.get(usize::from(vector))
            && let Err(err) = vector.signal()
        {
            log::debug!("Lost an interrupt: {err}");
        }
    }
}

/// Adds one to a count that only the calling thread writes.
fn increment(count: &AtomicU64) {
    count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// The status bit as the byte it is in.
#[expect(clippy::cast_possible_truncation, reason = "the constant is 0x40")]
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
