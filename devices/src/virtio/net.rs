//! The network card (virtio 1.3 5.1): N queue pairs, each with a worker thread of its own and a queue of the tap.
//!
//! At reset one pair is attached to the interface; the driver asks for more through the control queue, and the kernel
//! then spreads the flows over those that are attached. A guest that uses fewer pairs than the card has loses nothing.
//!
//! ```text
//!   pair 0   receiveq 0   transmitq 1   controlq 2N (2 if MQ was not negotiated)
//!   pair i   receiveq 2i  transmitq 2i+1
//! ```
//!
//! Each queue can be reset and enabled again by itself (virtio 1.3 2.6.1); whoever does that visits the worker that
//! holds it, so no queue is shared and nothing on the data path is locked.

mod budget;
mod coalesce;
mod config;
mod counters;
mod ctrl;
mod drain;
mod filter;
mod gro;
mod impair;
#[cfg(all(test, loom))]
mod interleavings;
mod lane;
mod limiter;
mod link;
mod observer;
mod offload;
mod pair;
mod port;
mod rss;
mod rx;
mod tap;
mod tx;
mod vhost;

pub use budget::{Budget, HELD_BYTES_MAX, Share};
pub use impair::{Impairment, Rate};
pub use link::{Carrier, Duplex, Link, LinkState};
pub use observer::{Direction, FrameObserver, ObservedPort};
pub use offload::Offloads;
pub use port::FramePort;
pub use rss::{Program, Steering, Toeplitz, program as steering_program};
pub use tap::Tap;
pub use vhost::{Instance, Vhost};

use crate::virtio::alarm::Alarm;
use crate::virtio::device::{Activation, ActiveQueue, Counter, Device, Kind, StartError};
use crate::virtio::interrupt::Interrupts;
use crate::virtio::ring::Ring;
use crate::virtio::worker::Worker;
use coalesce::{Coalescer, Settings};
use config::{Config, MacRegister};
use counters::Counters;
use ctrl::{Control, CtrlQueue, PairSwitch};
use filter::Filter;
use lane::Lane;
use limiter::Limiter;
use link::Driver;
use offload::bit;
use pair::{Pair, Watch};
use rss::{Hasher, Shared};
use rx::{Frames, Gate, Rx};
use std::collections::VecDeque;
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tx::Tx;
use virtio_bindings::virtio_config::VIRTIO_F_RING_RESET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_HASH_REPORT,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_NOTF_COAL, VIRTIO_NET_F_RSS, VIRTIO_NET_F_SPEED_DUPLEX, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_VQ_NOTF_COAL,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Bytes of `struct virtio_net_hdr` with `num_buffers`, which every modern driver uses (virtio 1.3 5.1.6).
const HEADER_LEN: usize = 12;

/// The same with the fields of VIRTIO_NET_F_HASH_REPORT.
const MAX_HEADER_LEN: usize = 20;

/// Ethernet header and one VLAN tag.
const LINK_LEN: usize = 18;

/// The longest frame without the virtio header: 64 KiB of IP in front of which stands the link header.
const MAX_FRAME: usize = LINK_LEN + 65535;

/// Frames that a queue moves before the other sources of its worker get their turn: one ring full.
const BUDGET: u32 = 256;

/// Frames after which the driver is shown what is done, so that one that polls need not wait for the end of a burst.
const PUBLISH_EVERY: u32 = 16;

/// Descriptors of the control queue.
const CTRL_QUEUE_SIZE: u16 = 64;

/// Descriptors that a receive or transmit queue can have. Fewer could not hold the pieces of one frame of a stock
/// driver.
pub const RING_SIZES: RangeInclusive<u16> = 64..=4096;

/// Most queue pairs of a card.
pub const MAX_PAIRS: u16 = 64;

/// How a burst ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// There is nothing left to do until something happens.
    Done,
    /// The budget ran out first.
    More,
}

/// The settings of a card, besides its ports.
#[derive(Clone)]
pub struct NetConfig {
    /// The name of its threads, for example `net0`.
    pub name: String,
    /// The address that the guest is told to use.
    pub mac: [u8; 6],
    /// The MTU in bytes that the guest is told to use.
    pub mtu: u16,
    /// Descriptors of each receive and transmit queue: a power of two in [`RING_SIZES`].
    pub ring: u16,
    /// The offloads that are offered if the ports have them. To be closed under the needs of its members, for example
    /// no TSO4 without CSUM.
    pub offloads: Offloads,
    /// The link, which is set from elsewhere.
    pub link: Link,
}

/// A network card.
pub struct Net {
    name: String,
    config: Config,
    /// The card's address after reset, and as the driver has changed it.
    own_mac: [u8; 6],
    mac: Arc<MacRegister>,
    link: Link,
    mtu: u16,
    ports: Vec<Arc<dyn FramePort>>,
    counters: Vec<Arc<Counters>>,
    /// Those of the latest start, which count for themselves.
    interrupts: Option<Arc<Interrupts>>,
    queue_sizes: Vec<u16>,
    features: u64,
    /// For commands that take locks of the host.
    limiter: Arc<Mutex<Limiter>>,
    steering: Option<Arc<Steering>>,
    /// The memory that frames between queues may take.
    budget: Budget,
    workers: Vec<Worker<Pair>>,
}

impl Net {
    /// A card with one queue pair for each of `ports`, which are queues of one interface.
    ///
    /// # Errors
    /// If there are no ports or too many, the size of the queues is not possible, or the kernel refuses to detach all
    /// but the first port.
    pub fn new(config: NetConfig, ports: Vec<Arc<dyn FramePort>>) -> io::Result<Self> {
        let (pairs, queue_sizes) = queues(&config, ports.len())?;
        let always = [
            VIRTIO_F_RING_RESET,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_CTRL_RX,
            VIRTIO_NET_F_CTRL_RX_EXTRA,
            VIRTIO_NET_F_CTRL_VLAN,
            VIRTIO_NET_F_CTRL_MAC_ADDR,
            VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
            VIRTIO_NET_F_NOTF_COAL,
            VIRTIO_NET_F_VQ_NOTF_COAL,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_SPEED_DUPLEX,
            VIRTIO_NET_F_GUEST_ANNOUNCE,
            VIRTIO_NET_F_HASH_REPORT,
        ];
        let offloads = ports[0].probe_offloads() & config.offloads;
        let mut features = always.iter().fold(0, |bits, feature| bits | bit(*feature)) | offloads.features();
        if pairs > 1 {
            features |= bit(VIRTIO_NET_F_MQ) | bit(VIRTIO_NET_F_RSS);
        }
        let mac = Arc::new(MacRegister::new(config.mac));
        let net = Self {
            name: config.name,
            config: Config::new(mac.clone(), config.link.clone(), pairs, config.mtu),
            own_mac: config.mac,
            mac,
            link: config.link,
            mtu: config.mtu,
            counters: ports.iter().map(|_| Arc::default()).collect(),
            interrupts: None,
            ports,
            queue_sizes,
            features,
            limiter: Arc::new(Mutex::new(Limiter::new(Instant::now()))),
            steering: None,
            budget: Budget::default(),
            workers: Vec::new(),
        };
        net.reset_interface()?;
        Ok(net)
    }

    /// The same with a program for the kernel to choose receive queues by; without, the queues' workers do.
    pub fn with_steering(self, steering: Steering) -> Self {
        Self { steering: Some(Arc::new(steering)), ..self }
    }

    /// The same card, with frames that wait between its queues on account of `budget` instead of one of its own.
    #[must_use]
    pub fn with_budget(self, budget: Budget) -> Self {
        Self { budget, ..self }
    }

    /// The same where frames come for its own address only: the driver is refused another one.
    pub fn with_fixed_address(self) -> Self {
        self.mac.fix();
        self
    }

    /// The interface as after reset, without steering too.
    fn reset_interface(&self) -> io::Result<()> {
        let steering = if self.steering.is_some() { self.ports[0].set_steering(None) } else { Ok(()) };
        steering.and(use_first_port_only(&self.ports))
    }

    /// Builds the workers' services: the pairs whose both queues are enabled, up to the first that is not.
    fn pairs(&self, activation: Activation) -> Result<Vec<Pair>, StartError> {
        let Activation { mem, features, queues, interrupts, .. } = activation;
        let mut queues = VecDeque::from(queues);
        let multi_queue = features & (bit(VIRTIO_NET_F_MQ) | bit(VIRTIO_NET_F_RSS)) != 0;
        let most = if multi_queue { self.ports.len() } else { 1 };
        let ctrl_idx = u16::try_from(most * 2).unwrap_or(u16::MAX);
        let ring = |active: ActiveQueue| Ring::new(active, mem.clone(), interrupts.clone());
        let (header_len, mergeable) = (header_len(features), features & bit(VIRTIO_NET_F_MRG_RXBUF) != 0);
        let frames = Frames { mergeable, longest: header_len + self.longest_frame(features), header_len };
        let filter = Filter::new(self.own_mac, features & bit(VIRTIO_NET_F_CTRL_VLAN) != 0);
        let filter = Arc::new(filter::Shared::new(filter));
        let coalescing = Arc::new(Settings::new(self.ports.len() * 2));
        let receiving = Arc::new(Shared::default());
        let mut hashers = self.hashers(&receiving, features, most)?.into_iter();
        let mut pairs = Vec::new();
        for ((idx, port), counters) in (0..).step_by(2).zip(&self.ports).zip(&self.counters).take(most) {
            let (Some(rx), Some(tx)) = (take(&mut queues, idx), take(&mut queues, idx + 1)) else { break };
            let ((rx, rx_doorbell), (tx, tx_doorbell)) = (ring(rx)?, ring(tx)?);
            let hasher = hashers.next();
            let inbox = hasher.as_ref().and_then(Hasher::inbox_filled);
            let gate = Gate { link: self.link.clone(), filter: filter.clone() };
            let rx = Rx::new(rx, port.clone(), counters.clone(), gate, frames);
            let tx = Tx::new(tx, port.clone(), counters.clone(), self.link.clone());
            let rx = rx.coalesced_by(Coalescer::new(coalescing.clone(), idx)).with_hasher(hasher);
            let tx =
                tx.coalesced_by(Coalescer::new(coalescing.clone(), idx + 1).sparing()).joining(self.joins_datagrams());
            let tx = tx.with_header(header_len).with_first_port(&self.ports[0]);
            pairs.push(Pair {
                inbox,
                rx: Lane::new(idx, rx, rx_doorbell),
                tx: Lane::new(idx + 1, tx, tx_doorbell),
                counters: counters.clone(),
                port: port.clone(),
                changed: event()?,
                drain: Arc::default(),
                alarm: alarm()?,
                ctrl: None,
                watch: Watch::Edge(0),
            });
        }
        let ctrl = take(&mut queues, ctrl_idx).filter(|_| features & bit(VIRTIO_NET_F_CTRL_VQ) != 0);
        if let Some(ctrl) = ctrl.map(ring).transpose()? {
            let control = Control {
                pairs: switches(&pairs)?,
                active: 1,
                features,
                filter,
                mac: self.mac.clone(),
                link: self.link.clone(),
                offloads: Offloads::for_guest(features),
                coalescing,
                limiter: self.limiter.clone(),
                receiving,
                steering: self.steering.clone(),
                program: filter::Switch::Off,
            };
            let queue = CtrlQueue::new(ctrl.0, control, self.counters[0].clone());
            let first = pairs.first_mut().ok_or(StartError::MissingQueue(0))?;
            first.ctrl = Some(Lane::new(ctrl_idx, queue, ctrl.1));
        }
        if pairs.is_empty() { Err(StartError::MissingQueue(0)) } else { Ok(pairs) }
    }

    /// The hashers of receive queues, for hashes, steering, or frames of each other: one for each of `queues`, or none.
    fn hashers(&self, receiving: &Arc<Shared>, features: u64, queues: usize) -> Result<Vec<Hasher>, StartError> {
        let reports = features & bit(VIRTIO_NET_F_HASH_REPORT) != 0;
        let header_len = header_len(features);
        match (queues, reports) {
            (2.., _) => Hasher::steering(receiving, header_len, queues, &self.budget)
                .map_err(|source| StartError::Host { operation: "create an eventfd", source }),
            (_, true) => Ok((0..queues).map(|_| Hasher::reporting(receiving.clone(), header_len)).collect()),
            (_, false) => Ok(Vec::new()),
        }
    }

    /// The worker that serves queue `idx`: the pair's own, the first for the control queue.
    fn worker(&self, idx: u16) -> Option<&Worker<Pair>> {
        self.workers.get(usize::from(idx / 2)).or(self.workers.first())
    }

    /// Returns whether datagrams may be joined: if the tap takes UDP to be segmented. Whether the driver knows of that
    /// does not matter.
    fn joins_datagrams(&self) -> bool {
        self.features & bit(VIRTIO_NET_F_HOST_USO) != 0
    }

    /// The longest frame, without its header, that the tap may hand out under `features`.
    fn longest_frame(&self, features: u64) -> usize {
        if Offloads::for_guest(features).large_frames() { MAX_FRAME } else { LINK_LEN + usize::from(self.mtu) }
    }
}

impl Device for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let (features, interrupts) = (activation.features, activation.interrupts.clone());
        let threads = activation.threads.clone();
        let pairs = self.pairs(activation)?;
        let offloads = Offloads::for_guest(features);
        // A start sets offloads or the header, and the reset takes them back.
        if offloads != Offloads::NONE {
            limiter::wait_for(2, &self.limiter);
        }
        if header_len(features) != HEADER_LEN {
            limiter::wait_for(2, &self.limiter);
        }
        self.ports[0]
            .set_offloads(offloads)
            .map_err(|source| StartError::Host { operation: "set the offloads of the tap", source })?;
        self.ports[0]
            .set_header_len(header_len(features))
            .map_err(|source| StartError::Host { operation: "set the header length of the tap", source })?;
        let workers = pairs.iter().map(|pair| clone(&pair.changed)).collect::<Result<_, _>>()?;
        self.interrupts = Some(interrupts.clone());
        self.link.start(Driver { interrupts: interrupts.clone(), features, workers });
        for (idx, pair) in pairs.into_iter().enumerate() {
            let name = format!("{}-{idx}", self.name);
            match Worker::spawn(&name, pair, interrupts.clone(), &*threads) {
                Ok(worker) => self.workers.push(worker),
                Err(err) => {
                    self.stop();
                    return Err(err);
                }
            }
        }
        Ok(())
    }

    fn stop_queue(&mut self, idx: u16) {
        if let Some(worker) = self.worker(idx) {
            // Without an answer the worker has met a fault, and rests.
            let _ = worker.call(move |pair, _| {
                pair.stop_queue(idx);
                Ok(())
            });
        }
    }

    fn restart_queue(&mut self, activation: Activation) {
        let idx = activation.queues.first().map(|queue| queue.idx);
        if let Some(worker) = idx.and_then(|idx| self.worker(idx)) {
            // As above.
            let _ = worker.call(move |pair, events| pair.restart_queue(activation, events));
        }
    }

    fn stop(&mut self) {
        self.link.stop();
        for worker in self.workers.drain(..) {
            worker.stop();
        }
        self.mac.set(self.own_mac);
        if let Err(err) = self.reset_interface() {
            log::warn!("{}: failed to reset the tap: {err}", self.name);
        }
    }

    fn counters(&self) -> Vec<Counter> {
        let interrupts = self.interrupts.as_deref();
        (0..).zip(&self.counters).flat_map(|(idx, counters)| counters.report(idx, interrupts)).collect()
    }
}

/// Bytes of the header in front of each frame under `features`.
fn header_len(features: u64) -> usize {
    if features & bit(VIRTIO_NET_F_HASH_REPORT) == 0 { HEADER_LEN } else { MAX_HEADER_LEN }
}

/// The number of queue pairs of a card on that many ports, and the sizes of its queues, the control queue's last.
fn queues(config: &NetConfig, ports: usize) -> io::Result<(u16, Vec<u16>)> {
    let pairs = u16::try_from(ports).ok().filter(|pairs| (1..=MAX_PAIRS).contains(pairs));
    let pairs = pairs.ok_or_else(|| io::Error::other(format!("a card has 1 to {MAX_PAIRS} queue pairs")))?;
    if !RING_SIZES.contains(&config.ring) || !config.ring.is_power_of_two() {
        return Err(io::Error::other("a queue has 64 to 4096 descriptors, a power of two"));
    }
    let mut sizes = vec![config.ring; usize::from(pairs) * 2];
    sizes.push(CTRL_QUEUE_SIZE);
    Ok((pairs, sizes))
}

/// The interface as after reset: one queue, no offloads, the short header.
fn use_first_port_only(ports: &[Arc<dyn FramePort>]) -> io::Result<()> {
    let settings = ports[0].set_header_len(HEADER_LEN).and(ports[0].set_offloads(Offloads::NONE));
    // All of them, also when one fails: a flow on a queue without a worker would be lost.
    ports[1..].iter().map(|port| port.set_attached(false)).fold(settings, io::Result::and)
}

/// Takes the queue `idx` out of `queues`, which are sorted, and drops those before it.
fn take(queues: &mut VecDeque<ActiveQueue>, idx: u16) -> Option<ActiveQueue> {
    while queues.front().is_some_and(|queue| queue.idx < idx) {
        queues.pop_front();
    }
    queues.pop_front_if(|queue| queue.idx == idx)
}

fn switches(pairs: &[Pair]) -> Result<Vec<PairSwitch>, StartError> {
    let switch = |(idx, pair): (usize, &Pair)| {
        let changed = clone(&pair.changed)?;
        let drain = Some(pair.drain.clone());
        Ok(PairSwitch { port: pair.port.clone(), changed, drain, attached: idx == 0 })
    };
    pairs.iter().enumerate().map(switch).collect()
}

fn alarm() -> Result<Alarm, StartError> {
    Alarm::new().map_err(|source| StartError::Host { operation: "create a timer", source })
}

fn clone(event: &EventFd) -> Result<EventFd, StartError> {
    event.try_clone().map_err(|source| StartError::Host { operation: "duplicate an eventfd", source })
}

fn event() -> Result<EventFd, StartError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
        .map_err(|source| StartError::Host { operation: "create an eventfd", source })
}

#[cfg(test)]
mod tests;
