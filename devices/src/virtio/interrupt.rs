//! Interrupts from a virtio device to its driver, and the one status bit that a device may set by itself.
//!
//! Shared by the transport (which changes the routing) and the workers (which signal). No lock with MSI-X: a worker
//! sees either the old or the new vector of a queue, as on hardware. Without it the ISR status decides about the
//! function's pin, and a lock keeps the two in step:
//!
//! ```text
//!   used buffers, configuration --> ISR status --> Interrupt Status bit ---- unless disabled ----> INTA#
//!                                       ^ 0 by reading, by reset
//! ```

use crate::irq::{IntxPin, Level, MsiVector};
use crate::pci::config::COMMAND_INTX_DISABLE;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};
use std::sync::{Arc, PoisonError};
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use vmm_sys_util::eventfd::EventFd;

/// virtio 1.3 4.1.4.3: no MSI-X vector is mapped.
pub const NO_VECTOR: u16 = 0xffff;

/// ISR status bit 0: a used buffer notification (virtio 1.3 4.1.4.5).
pub const ISR_QUEUE: u8 = 1;
/// ISR status bit 1: a configuration change.
pub const ISR_CONFIG: u8 = 2;

/// The numbers of notifications of used buffers of one queue.
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

/// How the pin is driven.
struct Drive {
    /// The Interrupt Disable bit of the command register.
    disabled: bool,
    level: Level,
}

/// The device side of interrupt delivery.
pub struct Interrupts {
    vectors: Vec<Arc<dyn MsiVector>>,
    /// True while MSI-X is enabled; without it the device interrupts by its pin. Relaxed: the guest orders its own
    /// MSI-X enable against DRIVER_OK.
    enabled: AtomicBool,
    /// The pin; a device without one only sets ISR bits.
    pin: Option<Arc<dyn IntxPin>>,
    drive: Mutex<Drive>,
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
            pin: None,
            drive: Mutex::new(Drive { disabled: false, level: Level::Idle }),
            config_vector: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| QueueSide::default()).collect(),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            status: AtomicU8::new(0),
        }
    }

    /// The same with an interrupt pin, for drivers that leave MSI-X off.
    #[must_use]
    pub fn with_pin(self, pin: Arc<dyn IntxPin>) -> Self {
        Self { pin: Some(pin), ..self }
    }

    /// Tells the driver that `queue` has used buffers. Only the worker of the queue calls it, once per batch, after
    /// EVENT_IDX has been consulted. The ISR status says so only where MSI-X is off (virtio 1.3 4.1.4.5.1).
    pub fn signal_queue(&self, queue: u16) {
        if let Some(side) = self.queues.get(usize::from(queue)) {
            increment(&side.sent);
            if self.is_enabled() {
                self.send(side.vector.load(Ordering::Relaxed));
            } else {
                self.raise_isr(ISR_QUEUE);
            }
        }
    }

    /// Takes note that the driver did not want to be told of a batch of `queue`. From the same thread.
    pub fn spare_queue(&self, queue: u16) {
        if let Some(side) = self.queues.get(usize::from(queue)) {
            increment(&side.suppressed);
        }
    }

    /// The event by which a backend in the kernel interrupts for `queue`, until the driver gives the queue another
    /// vector. `None` if the queue has no vector, or a vector without an event. What it signals is not counted.
    pub fn event_of_queue(&self, queue: u16) -> Option<&EventFd> {
        self.vectors.get(usize::from(self.queue_vector(queue)))?.event()
    }

    /// The numbers of notifications of `queue`.
    pub fn of_queue(&self, queue: u16) -> Notifications {
        self.queues.get(usize::from(queue)).map_or(Notifications::default(), |side| Notifications {
            sent: side.sent.load(Ordering::Relaxed),
            suppressed: side.suppressed.load(Ordering::Relaxed),
        })
    }

    /// Tells the driver that the device configuration changed.
    pub fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::Release);
        self.raise_isr(ISR_CONFIG);
        if self.is_enabled() {
            self.send(self.config_vector.load(Ordering::Relaxed));
        }
    }

    /// Sets DEVICE_NEEDS_RESET and tells the driver (virtio 1.3 2.1.2). Returns whether this call was the one that set
    /// it.
    pub fn set_needs_reset(&self) -> bool {
        let old = self.status.fetch_or(NEEDS_RESET, Ordering::AcqRel);
        let first = old & NEEDS_RESET == 0;
        if first {
            self.signal_config();
        }
        first
    }

    /// Sets DEVICE_NEEDS_RESET without telling the driver, which has stopped the function. What it was to be told
    /// before is forgotten: the next kernel would find a line asserted for which it has no driver yet.
    pub(crate) fn set_needs_reset_silently(&self) {
        self.status.fetch_or(NEEDS_RESET, Ordering::AcqRel);
        self.take_isr();
    }

    /// Returns whether the device waits for a reset.
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
        self.take_isr();
        self.status.store(0, Ordering::Release);
    }

    /// Reads the ISR status; reading clears it, and the pin is let go of.
    pub(crate) fn take_isr(&self) -> u8 {
        let isr = self.isr.swap(0, Ordering::AcqRel);
        self.drive_pin();
        isr
    }

    /// Returns whether the Interrupt Status bit of the status register is set: the OR of all ISR bits while MSI-X is
    /// off (virtio 1.3 4.1.4.5.1).
    pub(crate) fn wants_pin(&self) -> bool {
        !self.is_enabled() && self.isr.load(Ordering::Acquire) != 0
    }

    pub(crate) fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Relaxed);
        self.drive_pin();
    }

    /// Takes note of what the driver has written to the command register.
    pub(crate) fn follow_command(&self, command: u16) {
        let disabled = command & COMMAND_INTX_DISABLE != 0;
        if std::mem::replace(&mut self.lock_drive().disabled, disabled) != disabled {
            self.drive_pin();
        }
    }

    /// Returns whether MSI-X is enabled.
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
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

    /// Sets bits of the ISR status. What the driver is to find when it reads them has been written before.
    fn raise_isr(&self, bits: u8) {
        self.isr.fetch_or(bits, Ordering::Release);
        if !self.is_enabled() {
            self.drive_pin();
        }
    }

    /// Makes the pin what the ISR status, the command register and MSI-X say now. Whoever changes one of them calls
    /// this afterwards, so that the last one in the lock has seen all changes.
    #[cold]
    fn drive_pin(&self) {
        let Some(pin) = &self.pin else { return };
        let mut drive = self.lock_drive();
        let level = if self.wants_pin() && !drive.disabled { Level::Asserted } else { Level::Idle };
        if level == drive.level {
            return;
        }
        match pin.drive(level) {
            Ok(()) => drive.level = level,
            Err(err) => log::debug!("Cannot drive an interrupt pin: {err}"),
        }
    }

    fn lock_drive(&self) -> MutexGuard<'_, Drive> {
        self.drive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, vector: u16) {
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
