//! A working device of any kind with one queue and one harmless request, for checks that need "something happens".

use crate::report::Check;
use crate::virtio::ring::{Ring, Used, flag};
use crate::virtio::{Device, Kind};
use crate::{arena, cpu, fail, require, skip};

const RING_SIZE: u16 = 16;
/// Request type of virtio-blk that returns the serial number (virtio 1.3 5.2.6).
const BLK_GET_ID: u32 = 8;
/// IEEE 802 local experimental EtherType 1, which no stack answers.
pub(super) const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Bytes of the virtio-net header with VERSION_1 (virtio 1.3 5.1.6.1).
pub(super) const NET_HEADER: u64 = 12;
const FRAME: u32 = 60;

/// A device in DRIVER_OK.
pub(super) struct Live {
    /// The queue in use.
    pub(super) ring: Ring,
    /// A card's receive queue, which stays empty.
    pub(super) receive: Option<Ring>,
}

impl Live {
    /// Negotiates nothing but VERSION_1 and goes live without messages.
    pub(super) fn start(device: &Device) -> Check<Self> {
        Self::start_with(device, 0, |_| Ok(()))
    }

    /// As `start`, with more features and a step between FEATURES_OK and DRIVER_OK.
    pub(super) fn start_with(device: &Device, wanted: u64, before_live: impl FnOnce(&Device) -> Check) -> Check<Self> {
        if let Kind::Other(id) = device.kind {
            skip!("device type {id} is not known to the probe");
        }
        device.negotiate(wanted)?;
        let receive = match device.kind {
            Kind::Net => Some(device.enable_queue(0, RING_SIZE)?),
            _ => None,
        };
        let mut ring = device.enable_queue(queue(device.kind), RING_SIZE)?;
        fill_request(device.kind, &mut ring);
        before_live(device)?;
        device.go_live()?;
        Ok(Self { ring, receive })
    }

    /// Publishes the request and notifies.
    pub(super) fn request(&mut self) {
        self.ring.publish(0);
        self.ring.kick();
    }

    /// Waits until the request comes back.
    pub(super) fn finish(&mut self) -> Check<Used> {
        let Some(used) = self.ring.wait_used(cpu::PATIENCE_TICKS) else { fail!("request is not returned") };
        require!(used.id == 0, "used id {} for head 0", used.id);
        Ok(used)
    }

    /// A request from start to end.
    pub(super) fn round_trip(&mut self) -> Check {
        self.request();
        self.finish().map(|_| ())
    }
}

/// The queue that takes requests of the driver.
pub(super) fn queue(kind: Kind) -> u16 {
    u16::from(kind == Kind::Net)
}

fn fill_request(kind: Kind, ring: &mut Ring) {
    match kind {
        Kind::Entropy => ring.chain(&[(arena::take(16, 16), 16, flag::WRITE)]),
        Kind::Block => {
            let header = arena::take(16, 16);
            cpu::write32(header, BLK_GET_ID);
            ring.chain(&[(header, 16, 0), (arena::take(20, 16), 20, flag::WRITE), (arena::take(1, 1), 1, flag::WRITE)]);
        }
        Kind::Net => {
            let frame = arena::take(NET_HEADER + u64::from(FRAME), 16);
            arena::fill(frame + NET_HEADER, 6, 0xff);
            cpu::write16(frame + NET_HEADER + 6, 0x0002);
            cpu::write16(frame + NET_HEADER + 12, u16::from_le_bytes(ETHERTYPE));
            ring.chain(&[(frame, 12 + FRAME, 0)]);
        }
        Kind::Other(_) => {}
    }
}
