//! The role *transport*: how a driver and a device agree (virtio 1.3 chapters 2 and 3), shared by whatever carries the
//! registers.
//!
//! ```text
//!             ACKNOWLEDGE, DRIVER          FEATURES_OK              DRIVER_OK
//!   reset ------------------------> known -------------> negotiated ----------> running
//!     ^                               | features refused: bit does not stick       |
//!     +--------- 0 written at any time: workers joined, queues forgotten ----------+
//! ```
//!
//! A status write that skips a step or clears a bit changes nothing. What the driver sets up for a queue is fixed once
//! the queue is enabled, and checked at that moment: a queue whose rings are not in guest memory does not become
//! enabled.
//!
//! With VIRTIO_F_RING_RESET, which a device offers if it can do it, a single queue goes back and forth while the device
//! runs:
//!
//! ```text
//!   enabled ---- 1 written to queue_reset: device.stop_queue, set-up and vector forgotten ----> reset
//!      ^                                                                                         |
//!      +---- set up anew, 1 written to queue_enable: device.restart_queue -----------------------+
//! ```

use crate::virtio::device::{Activation, ActiveQueue, Device, Memory, StartError};
use crate::virtio::interrupt::{Interrupts, NO_VECTOR};
use crate::virtio::threads::Threads;
use std::io;
use std::sync::Arc;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Status bits as the byte they are in (virtio 1.3 2.1).
#[expect(clippy::cast_possible_truncation, reason = "all bits are below 0x100")]
mod status {
    use super::*;
    pub(super) const ACKNOWLEDGE: u8 = VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
    pub(super) const DRIVER: u8 = VIRTIO_CONFIG_S_DRIVER as u8;
    pub(super) const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
    pub(super) const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
    pub(super) const FAILED: u8 = VIRTIO_CONFIG_S_FAILED as u8;
}

/// Every modern driver must accept this one.
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const RING_RESET: u64 = 1 << VIRTIO_F_RING_RESET;

/// The features of the rings themselves, whatever the device.
const RING_FEATURES: u64 = VERSION_1 | EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// One of the three parts of a split virtqueue (virtio 1.3 2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingPart {
    /// The descriptor table.
    Descriptors,
    /// The available ring.
    Available,
    /// The used ring.
    Used,
}

/// Where a queue is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Never enabled since the device was reset.
    Fresh,
    /// Enabled; its set-up is fixed.
    Enabled,
    /// Reset by itself: it may be enabled again while the device runs.
    Reset,
}

/// The driver's setup of one queue.
#[derive(Debug, Clone, Copy)]
struct QueueSetup {
    max_size: u16,
    size: u16,
    stage: Stage,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl QueueSetup {
    fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size, stage: Stage::Fresh, descriptors: 0, available: 0, used: 0 }
    }

    fn part(&mut self, part: RingPart) -> &mut u64 {
        match part {
            RingPart::Descriptors => &mut self.descriptors,
            RingPart::Available => &mut self.available,
            RingPart::Used => &mut self.used,
        }
    }

    /// The queue as workers use it; `None` if it is not usable (address 0 is where a driver that set nothing points).
    fn build(&self, mem: &Memory, event_idx: bool) -> Option<Queue> {
        if [self.descriptors, self.available, self.used].contains(&0) {
            return None;
        }
        let mut queue = Queue::new(self.max_size).ok()?;
        queue.try_set_size(self.size).ok()?;
        queue.try_set_desc_table_address(vm_memory::GuestAddress(self.descriptors)).ok()?;
        queue.try_set_avail_ring_address(vm_memory::GuestAddress(self.available)).ok()?;
        queue.try_set_used_ring_address(vm_memory::GuestAddress(self.used)).ok()?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue.is_valid(mem).then_some(queue)
    }
}

/// The state that a driver negotiates, and the device behind it.
pub struct Transport {
    device: Box<dyn Device>,
    mem: Memory,
    interrupts: Arc<Interrupts>,
    threads: Arc<dyn Threads>,
    doorbells: Vec<EventFd>,
    offered: u64,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    queues: Vec<QueueSetup>,
    running: bool,
}

impl Transport {
    /// A device in its state after reset, whose workers run on `threads`.
    ///
    /// # Errors
    /// If the host has no eventfd left.
    pub fn new(
        device: Box<dyn Device>,
        mem: Memory,
        interrupts: Arc<Interrupts>,
        threads: Arc<dyn Threads>,
    ) -> io::Result<Self> {
        let sizes = device.queue_max_sizes();
        let doorbells = sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)).collect::<io::Result<_>>()?;
        let queues = sizes.iter().copied().map(QueueSetup::new).collect();
        let offered = device.features() | RING_FEATURES;
        Ok(Self {
            device,
            mem,
            interrupts,
            threads,
            doorbells,
            offered,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            queues,
            running: false,
        })
    }

    /// The device.
    pub fn device(&self) -> &dyn Device {
        self.device.as_ref()
    }

    /// The device, for writes to its configuration.
    pub fn device_mut(&mut self) -> &mut dyn Device {
        self.device.as_mut()
    }

    /// One event per queue, signalled when the driver notifies that queue.
    pub fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    /// Returns whether the driver has the device running, that is whether doorbells mean something.
    pub fn running(&self) -> bool {
        self.running
    }

    /// The device status byte.
    pub fn status(&self) -> u8 {
        self.interrupts.status()
    }

    /// A write to the device status: a reset, a legal step forward, or nothing.
    pub fn set_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        let old = self.status();
        if value & status::FAILED != 0 {
            self.interrupts.add_status(status::FAILED);
        }
        let steps = [
            (status::ACKNOWLEDGE, 0),
            (status::DRIVER, status::ACKNOWLEDGE),
            (status::FEATURES_OK, status::ACKNOWLEDGE | status::DRIVER),
            (status::DRIVER_OK, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK),
        ];
        for (bit, before) in steps {
            let now = self.status();
            if value & bit == 0 || now & bit != 0 {
                continue;
            }
            // A driver keeps the bits it has set when it sets the next one (virtio 1.3 2.1.1).
            if now & before != before || value & old & before != old & before {
                log::debug!("Refused the status {value:#x} after {old:#x}");
                return;
            }
            if bit == status::FEATURES_OK && !self.features_are_legal() {
                return;
            }
            if bit == status::FEATURES_OK {
                self.device.accepted(self.accepted);
            }
            self.interrupts.add_status(bit);
            if bit == status::DRIVER_OK {
                self.start();
            }
        }
    }

    /// Stops the device and forgets all that was negotiated (virtio 1.3 2.4).
    pub fn reset(&mut self) {
        if self.running {
            self.device.stop();
            self.running = false;
        }
        self.interrupts.reset();
        for doorbell in &self.doorbells {
            // Empty when it was not rung; a later start must not see an old ring.
            let _ = doorbell.read();
        }
        self.accepted = 0;
        self.device.accepted(0);
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            *queue = QueueSetup::new(queue.max_size);
        }
    }

    /// Stops a running device where it is: it touches neither rings nor buffers any more and waits for a reset.
    pub fn halt(&mut self) {
        if self.running {
            self.device.stop();
            self.running = false;
            self.interrupts.set_needs_reset_silently();
        }
    }

    /// The driver has switched MSI-X on or off: every queue interrupts in another way now.
    pub fn interrupts_moved(&mut self) {
        if self.running {
            (0..self.num_queues()).for_each(|idx| self.device.vector_changed(idx));
        }
    }

    /// The device_feature_select register.
    pub fn device_feature_select(&self) -> u32 {
        self.device_feature_select
    }

    /// Selects which 32 offered bits [`device_feature`](Self::device_feature) shows.
    pub fn select_device_feature(&mut self, select: u32) {
        self.device_feature_select = select;
    }

    /// The selected 32 offered feature bits.
    pub fn device_feature(&self) -> u32 {
        half(self.offered, self.device_feature_select)
    }

    /// The driver_feature_select register.
    pub fn driver_feature_select(&self) -> u32 {
        self.driver_feature_select
    }

    /// Selects which 32 accepted bits [`driver_feature`](Self::driver_feature) shows.
    pub fn select_driver_feature(&mut self, select: u32) {
        self.driver_feature_select = select;
    }

    /// The selected 32 feature bits that the driver has accepted.
    pub fn driver_feature(&self) -> u32 {
        half(self.accepted, self.driver_feature_select)
    }

    /// Sets the selected 32 accepted bits; fixed once FEATURES_OK is set.
    pub fn set_driver_feature(&mut self, bits: u32) {
        if self.status() & status::FEATURES_OK != 0 {
            return;
        }
        match self.driver_feature_select {
            0 => self.accepted = self.accepted & !0xffff_ffff | u64::from(bits),
            1 => self.accepted = self.accepted & 0xffff_ffff | u64::from(bits) << 32,
            _ => {}
        }
    }

    /// The number of queues.
    pub fn num_queues(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// The queue_select register.
    pub fn queue_select(&self) -> u16 {
        self.queue_select
    }

    /// Selects the queue that the methods below mean. One that does not exist has size 0.
    pub fn select_queue(&mut self, queue: u16) {
        self.queue_select = queue;
    }

    /// Size of the selected queue in descriptors.
    pub fn queue_size(&self) -> u16 {
        self.selected().map_or(0, |q| q.size)
    }

    /// Sets the size; one that is not a power of two, or above the largest, is ignored.
    pub fn set_queue_size(&mut self, size: u16) {
        if let Some(queue) = self.selected_for_setup()
            && size.is_power_of_two()
            && size <= queue.max_size
        {
            queue.size = size;
        }
    }

    /// Returns whether the selected queue is enabled.
    pub fn queue_enabled(&self) -> bool {
        self.selected().is_some_and(|q| q.stage == Stage::Enabled)
    }

    /// Enables the selected queue if its rings lie in guest memory and are aligned (virtio 1.3 2.7).
    pub fn enable_queue(&mut self) {
        let (mem, event_idx) = (self.mem.clone(), self.accepted & EVENT_IDX != 0);
        let idx = self.queue_select;
        let Some(setup) = self.selected_for_setup() else { return };
        let Some(queue) = setup.build(&mem, event_idx) else {
            log::debug!("Refused to enable queue {idx}: its rings are not in guest memory");
            return;
        };
        setup.stage = Stage::Enabled;
        if self.running {
            match self.doorbell(idx) {
                Ok(doorbell) => {
                    self.device.restart_queue(self.activation_of(vec![ActiveQueue { idx, queue, doorbell }]))
                }
                Err(err) => self.refuse(&err),
            }
        }
    }

    /// Resets the selected queue (virtio 1.3 2.6.1), so that it can be enabled again. It is done when this returns: a
    /// driver that waits for queue_reset to become 0 has never to wait.
    pub fn reset_queue(&mut self) {
        let idx = self.queue_select;
        let negotiated = self.status() & status::FEATURES_OK != 0 && self.accepted & RING_RESET != 0;
        let Some(setup) = self.queues.get_mut(usize::from(idx)).filter(|_| negotiated) else { return };
        let stage = match setup.stage {
            Stage::Enabled if self.running => {
                self.device.stop_queue(idx);
                Stage::Reset
            }
            Stage::Reset => Stage::Reset,
            Stage::Enabled | Stage::Fresh => Stage::Fresh,
        };
        *setup = QueueSetup { stage, ..QueueSetup::new(setup.max_size) };
        self.interrupts.set_queue_vector(idx, NO_VECTOR);
    }

    /// Gives the selected queue an interrupt vector.
    pub fn set_queue_vector(&mut self, vector: u16) {
        self.interrupts.set_queue_vector(self.queue_select, vector);
        if self.running {
            self.device.vector_changed(self.queue_select);
        }
    }

    /// Guest-physical address of a part of the selected queue.
    pub fn ring_address(&self, part: RingPart) -> u64 {
        self.selected().map_or(0, |mut q| *q.part(part))
    }

    /// Sets that address.
    pub fn set_ring_address(&mut self, part: RingPart, address: u64) {
        if let Some(queue) = self.selected_for_setup() {
            *queue.part(part) = address;
        }
    }

    /// The driver notified `queue`, by a way that did not end in the doorbell already.
    pub fn notify(&self, queue: u16) {
        if let Some(doorbell) = self.doorbells.get(usize::from(queue))
            && self.running
            && let Err(err) = doorbell.write(1)
        {
            log::debug!("Lost a notification of queue {queue}: {err}");
        }
    }

    fn selected(&self) -> Option<QueueSetup> {
        self.queues.get(usize::from(self.queue_select)).copied()
    }

    /// The selected queue, if the driver may still change it.
    fn selected_for_setup(&mut self) -> Option<&mut QueueSetup> {
        let running = self.running;
        self.queues.get_mut(usize::from(self.queue_select)).filter(|q| match q.stage {
            Stage::Fresh => !running,
            Stage::Enabled => false,
            Stage::Reset => true,
        })
    }

    fn features_are_legal(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & VERSION_1 != 0
    }

    fn start(&mut self) {
        let result = self.activation().and_then(|activation| self.device.start(activation));
        match result {
            Ok(()) => self.running = true,
            Err(err) => self.refuse(&err),
        }
    }

    /// Has the driver reset a device that cannot start.
    fn refuse(&self, err: &StartError) {
        let kind = self.device.kind();
        match err {
            StartError::MissingQueue(_) => log::warn!("{kind:?} device cannot start: {err}"),
            StartError::Host { source, .. } => log::error!("{kind:?} device cannot start: {err}: {source}"),
        }
        self.interrupts.set_needs_reset();
    }

    fn activation(&self) -> Result<Activation, StartError> {
        let event_idx = self.accepted & EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (idx, setup) in (0..).zip(&self.queues) {
            if setup.stage != Stage::Enabled {
                continue;
            }
            let doorbell = self.doorbell(idx)?;
            let queue = setup.build(&self.mem, event_idx).ok_or(StartError::MissingQueue(idx))?;
            queues.push(ActiveQueue { idx, queue, doorbell });
        }
        Ok(self.activation_of(queues))
    }

    fn activation_of(&self, queues: Vec<ActiveQueue>) -> Activation {
        let (mem, interrupts, threads) = (self.mem.clone(), self.interrupts.clone(), self.threads.clone());
        Activation { mem, features: self.accepted, queues, interrupts, threads }
    }

    /// The doorbell of queue `idx`, for the device.
    fn doorbell(&self, idx: u16) -> Result<EventFd, StartError> {
        let doorbell = self.doorbells.get(usize::from(idx)).ok_or(StartError::MissingQueue(idx))?;
        doorbell.try_clone().map_err(|source| StartError::Host { operation: "duplicate a doorbell", source })
    }
}

/// The lower or upper 32 of 64 feature bits; a driver may select further ones, which are all zero.
fn half(bits: u64, select: u32) -> u32 {
    let [b0, b1, b2, b3, b4, b5, b6, b7] = bits.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([b0, b1, b2, b3]),
        1 => u32::from_le_bytes([b4, b5, b6, b7]),
        _ => 0,
    }
}
