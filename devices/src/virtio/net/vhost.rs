//! The network card with the kernel's data path: vhost-net moves the frames between the guest's rings and the tap, in a
//! thread of the kernel for each queue pair (Linux drivers/vhost/net.c).
//!
//! Faster, because a frame is no business of this process: the driver's doorbells and interrupts are events that KVM
//! and vhost-net pass to each other. Less isolated, because it is the kernel then that reads what a hostile driver
//! writes into its rings. And less able: the frames are not looked at, so there are no receive filters, no hashes, no
//! coalescing, no counters of frames, and queues cannot be reset one by one. What there is: offloads, multiqueue, the
//! link, the address, announcements.
//!
//! The rest is done by one thread of this process, which sleeps most of the time.

mod instance;
mod service;

pub use instance::Instance;

use crate::virtio::device::{Activation, ActiveQueue, Counter, Device, Kind, Memory, StartError};
use crate::virtio::host_map::HostMap;
use crate::virtio::interrupt::Interrupts;
use crate::virtio::net::config::{Config, MacRegister};
use crate::virtio::net::counters::Counters;
use crate::virtio::net::ctrl::{Control, CtrlQueue, PairSwitch};
use crate::virtio::net::filter::{self, Filter};
use crate::virtio::net::lane::Lane;
use crate::virtio::net::limiter::{self, Limiter};
use crate::virtio::net::link::{Driver, Link};
use crate::virtio::net::offload::{Offloads, bit};
use crate::virtio::net::port::FramePort;
use crate::virtio::net::{NetConfig, alarm, clone, event, queues, take, use_first_port_only};
use crate::virtio::ring::Ring;
use crate::virtio::split::SplitQueue;
use crate::virtio::worker::Worker;
use instance::{RingEvents, Side};
use service::{Pair, VhostService};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_SPEED_DUPLEX,
    VIRTIO_NET_F_STATUS,
};
use vmm_sys_util::eventfd::EventFd;

/// The features of every such card.
const FEATURES: [u32; 9] = [
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_SPEED_DUPLEX,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
];

/// A network card on vhost-net.
pub struct Vhost {
    name: String,
    config: Config,
    /// The card's address after reset, and as the driver has changed it.
    own_mac: [u8; 6],
    mac: Arc<MacRegister>,
    link: Link,
    ports: Vec<Arc<dyn FramePort>>,
    instances: Vec<Arc<Instance>>,
    /// Only those of the control queue are used.
    counters: Arc<Counters>,
    queue_sizes: Vec<u16>,
    features: u64,
    limiter: Arc<Mutex<Limiter>>,
    running: Option<Running>,
}

/// A card that a driver uses.
struct Running {
    service: Worker<VhostService>,
    interrupts: Arc<Interrupts>,
    /// Signalled by the kernel in place of an MSI-X vector, by queue; as many as are enabled.
    called: Vec<EventFd>,
    /// The instances have its addresses.
    _mem: Memory,
}

impl Vhost {
    /// A card with one queue pair for each of `ports`, which are queues of one tap; `instances` are as many, and move
    /// their frames.
    ///
    /// # Errors
    /// If there are no ports or too many, or another number of instances, the size of the queues is not possible, or
    /// the kernel refuses to detach all but the first port.
    pub fn new(config: NetConfig, ports: Vec<Arc<dyn FramePort>>, instances: Vec<Instance>) -> io::Result<Self> {
        let (pairs, queue_sizes) = queues(&config, ports.len())?;
        if instances.len() != ports.len() {
            return Err(io::Error::other("a card has an instance of vhost-net for each queue pair"));
        }
        let offloads = ports[0].probe_offloads() & config.offloads;
        let mut features = FEATURES.iter().fold(offloads.features(), |bits, feature| bits | bit(*feature));
        if pairs > 1 {
            features |= bit(VIRTIO_NET_F_MQ);
        }
        use_first_port_only(&ports)?;
        let mac = Arc::new(MacRegister::new(config.mac));
        Ok(Self {
            name: config.name,
            config: Config::new(mac.clone(), config.link.clone(), pairs, config.mtu),
            own_mac: config.mac,
            mac,
            link: config.link,
            ports,
            instances: instances.into_iter().map(Arc::new).collect(),
            counters: Arc::default(),
            queue_sizes,
            features,
            limiter: Arc::new(Mutex::new(Limiter::new(Instant::now()))),
            running: None,
        })
    }

    /// The same where frames come for its own address only: the driver is refused another one.
    pub fn with_fixed_address(self) -> Self {
        self.mac.fix();
        self
    }

    /// Prepares everything for the thread; nothing moves yet. The pairs are those whose both queues are enabled, up to
    /// the first that is not.
    fn service(&self, activation: Activation) -> Result<VhostService, StartError> {
        let Activation { mem, features, queues, interrupts, .. } = activation;
        let mut queues = VecDeque::from(queues);
        let most = if features & bit(VIRTIO_NET_F_MQ) != 0 { self.ports.len() } else { 1 };
        let ctrl_idx = u16::try_from(most * 2).unwrap_or(u16::MAX);
        let map = HostMap::new(mem.clone());
        let mut pairs = Vec::new();
        for ((idx, port), instance) in (0..).step_by(2).zip(&self.ports).zip(&self.instances).take(most) {
            let (Some(rx), Some(tx)) = (take(&mut queues, idx), take(&mut queues, idx + 1)) else { break };
            instance.claim().map_err(host("start a thread of vhost-net"))?;
            instance.set_memory(&map, features).map_err(host("give guest memory to vhost-net"))?;
            let called = [event()?, event()?];
            let broken = [
                set_ring(instance, &map, &rx, call(&interrupts, idx, &called[0]))?,
                set_ring(instance, &map, &tx, call(&interrupts, idx + 1, &called[1]))?,
            ];
            pairs.push(Pair { instance: instance.clone(), port: port.clone(), broken, called, moves: false });
        }
        if pairs.is_empty() {
            return Err(StartError::MissingQueue(0));
        }
        let changed = event()?;
        let wants_ctrl = features & bit(VIRTIO_NET_F_CTRL_VQ) != 0;
        let ctrl = match take(&mut queues, ctrl_idx).filter(|_| wants_ctrl) {
            Some(active) => {
                let (ring, doorbell) = Ring::new(active, mem, interrupts.clone())?;
                let control = self.control(&pairs, features, &changed)?;
                Some(Lane::new(ctrl_idx, CtrlQueue::new(ring, control, self.counters.clone()), doorbell))
            }
            None => None,
        };
        let (link, counters) = (self.link.clone(), self.counters.clone());
        Ok(VhostService { pairs, interrupts, link, changed, alarm: alarm()?, ctrl, counters })
    }

    fn control(&self, pairs: &[Pair], features: u64, changed: &EventFd) -> Result<Control, StartError> {
        let switch = |(idx, pair): (usize, &Pair)| {
            Ok(PairSwitch { port: pair.port.clone(), changed: clone(changed)?, drain: None, attached: idx == 0 })
        };
        Ok(Control {
            pairs: pairs.iter().enumerate().map(switch).collect::<Result<_, StartError>>()?,
            active: 1,
            features,
            // These three are never asked: no feature is offered whose commands would change them.
            filter: Arc::new(filter::Shared::new(Filter::new(self.own_mac, false))),
            coalescing: Arc::default(),
            receiving: Arc::default(),
            steering: None,
            program: filter::Switch::Off,
            mac: self.mac.clone(),
            link: self.link.clone(),
            offloads: Offloads::for_guest(features),
            limiter: self.limiter.clone(),
        })
    }

    fn try_start(&mut self, activation: Activation) -> Result<Running, StartError> {
        let (features, interrupts, mem) = (activation.features, activation.interrupts.clone(), activation.mem.clone());
        let threads = activation.threads.clone();
        // A start sets offloads and makes threads of the kernel, and the reset takes them back.
        limiter::wait_for(2, &self.limiter);
        let service = self.service(activation)?;
        let offloads = self.ports[0].set_offloads(Offloads::for_guest(features));
        offloads.map_err(host("set the offloads of the tap"))?;
        let called = service.pairs.iter().flat_map(|pair| &pair.called).map(clone).collect::<Result<_, _>>()?;
        let workers = vec![clone(&service.changed)?];
        self.link.start(Driver { interrupts: interrupts.clone(), features, workers });
        let service = Worker::spawn(&format!("{}-vhost", self.name), service, interrupts.clone(), &*threads)?;
        Ok(Running { service, interrupts, called, _mem: mem })
    }

    /// Everything as it was when the card was built.
    fn reset(&self) {
        self.link.stop();
        for instance in &self.instances {
            if let Err(err) = instance.release() {
                log::error!("{}: failed to stop vhost-net: {err}", self.name);
            }
        }
        self.mac.set(self.own_mac);
        if let Err(err) = use_first_port_only(&self.ports) {
            log::warn!("{}: failed to reset the tap: {err}", self.name);
        }
    }
}

impl Device for Vhost {
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
        let running = self.try_start(activation).inspect_err(|_| self.reset())?;
        self.running = Some(running);
        Ok(())
    }

    fn vector_changed(&mut self, idx: u16) {
        let Some(running) = &self.running else { return };
        if let Some(called) = running.called.get(usize::from(idx))
            && let Some(instance) = self.instances.get(usize::from(idx / 2))
            && let Err(err) = instance.set_call(Side::of(idx), call(&running.interrupts, idx, called))
        {
            log::error!("{}: failed to change the interrupt of queue {idx}: {err}", self.name);
            running.interrupts.set_needs_reset();
        }
    }

    fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.service.stop();
            self.reset();
        }
    }

    fn counters(&self) -> Vec<Counter> {
        self.counters.report_ctrl().collect()
    }
}

/// Hands a queue to vhost-net. Returns the event that tells that the driver has broken it.
fn set_ring(
    instance: &Instance,
    map: &HostMap,
    active: &ActiveQueue,
    call: Option<&EventFd>,
) -> Result<EventFd, StartError> {
    let queue = SplitQueue::new(&active.queue, map.clone()).ok_or(StartError::MissingQueue(active.idx))?;
    let broken = event()?;
    let events = RingEvents { kick: &active.doorbell, call, broken: &broken };
    instance.set_ring(Side::of(active.idx), &queue, &events).map_err(host("give a queue to vhost-net"))?;
    Ok(broken)
}

/// By which event the kernel interrupts for queue `idx`: its MSI-X vector's, or, for a driver that leaves MSI-X off,
/// `called`, by way of the service.
fn call<'a>(interrupts: &'a Interrupts, idx: u16, called: &'a EventFd) -> Option<&'a EventFd> {
    if interrupts.is_enabled() { interrupts.event_of_queue(idx) } else { Some(called) }
}

fn host(operation: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Host { operation, source }
}
