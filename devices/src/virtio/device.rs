//! The role *device*: what one kind of virtio device does, independent of the transport that carries it.

use crate::virtio::interrupt::Interrupts;
use crate::virtio::threads::Threads;
use std::borrow::Cow;
use std::sync::Arc;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// Guest memory as workers hold it. Cheap to clone: the regions are shared.
pub type Memory = GuestMemoryMmap<()>;

/// A device type (virtio 1.3 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// Network card, 5.1.
    Net = 1,
    /// Block device, 5.2.
    Block = 2,
    /// Entropy source, 5.4.
    Entropy = 4,
}

/// A virtqueue that the driver has enabled, with what its worker needs to serve it.
pub struct ActiveQueue {
    /// The device's index of the queue.
    pub idx: u16,
    /// The ring, checked to lie in guest memory.
    pub queue: Queue,
    /// Signalled when the driver makes buffers available.
    pub doorbell: EventFd,
}

/// A device's environment from the moment the driver sets DRIVER_OK.
pub struct Activation {
    /// Guest memory.
    pub mem: Memory,
    /// The negotiated feature bits.
    pub features: u64,
    /// The queues the driver enabled, by ascending index.
    pub queues: Vec<ActiveQueue>,
    /// Where to report used buffers, configuration changes and failure.
    pub interrupts: Arc<Interrupts>,
    /// Where its threads come from.
    pub threads: Arc<dyn Threads>,
}

/// Why a device cannot start. The transport answers with DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The driver left out a queue that the device cannot do without.
    #[error("The driver did not enable queue {0}")]
    MissingQueue(u16),
    /// The host refused a thread, an event or an ioctl.
    #[error("Cannot {operation}")]
    Host {
        /// The operation, as in "create an eventfd".
        operation: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// A named, monotonic count for metrics and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    /// For example `tx.0.frames`.
    pub name: Cow<'static, str>,
    /// Its value since the device was built.
    pub value: u64,
}

/// One virtio device.
///
/// Owned by its transport, which calls every method under its own lock from a vCPU thread, in this order: `start` once
/// per activation, `stop` once for each successful `start`, configuration accesses at any time. Between the two, and
/// only for a device that offers VIRTIO_F_RING_RESET, `stop_queue` for a queue that is enabled and `restart_queue` for
/// one that was stopped.
pub trait Device: Send {
    /// The device type.
    fn kind(&self) -> Kind;

    /// The feature bits this device can really serve, without those that belong to the transport.
    fn features(&self) -> u64;

    /// Largest size of each virtqueue, in descriptors; its length is the number of queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// The driver has settled the feature bits: when FEATURES_OK sticks, and with none of them when it resets the
    /// device.
    fn accepted(&mut self, _features: u64) {}

    /// Fills `data` from the device configuration space; bytes past its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to the device configuration space; read-only bytes keep their value.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Takes the queues and serves them, on threads of its own, until `stop`.
    ///
    /// # Errors
    /// If it cannot; nothing is left running then.
    fn start(&mut self, activation: Activation) -> Result<(), StartError>;

    /// Stops serving queue `idx` (virtio 1.3 2.6.1). When this returns, the device neither touches the queue nor
    /// interrupts for it; the other queues go on.
    fn stop_queue(&mut self, _idx: u16) {}

    /// Takes the one queue of `activation`, which was stopped and has been enabled again, and serves it.
    fn restart_queue(&mut self, _activation: Activation) {}

    /// The driver has given queue `idx` another interrupt vector, or has switched MSI-X on or off. Only for a device
    /// that interrupts in another way than by [`Interrupts::signal_queue`], between `start` and `stop`.
    fn vector_changed(&mut self, _idx: u16) {}

    /// Stops and joins everything that `start` began. The device is then as it was when built.
    fn stop(&mut self);

    /// Its counters.
    fn counters(&self) -> Vec<Counter>;
}
