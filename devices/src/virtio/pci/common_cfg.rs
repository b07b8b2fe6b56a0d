//! The common configuration structure as data (virtio 1.3 4.1.4.3).
//!
//! A read may have any width and offset: it copies from an image of all registers. A write must be of a field's own
//! width, or of 32-bit halves for the 64-bit addresses; any other write is dropped.

use crate::virtio::interrupt::{Interrupts, NO_VECTOR};
use crate::virtio::transport::{RingPart, Transport};

/// Bytes of the structure, up to the admin queue fields. These and queue_notif_config_data read as zero since the
/// features they belong to are not offered, queue_reset since a reset is over when its write is.
pub(super) const LEN: u64 = 64;

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_VECTOR: u64 = 0x10;
const NUM_QUEUES: u64 = 0x12;
const STATUS: u64 = 0x14;
const CONFIG_GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: u64 = 0x1e;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;
const QUEUE_RESET: u64 = 0x3a;

/// Reads any bytes of the structure.
pub(super) fn read(transport: &Transport, interrupts: &Interrupts, offset: u64, data: &mut [u8]) {
    let image = image(transport, interrupts);
    let bytes = usize::try_from(offset).ok().and_then(|start| image.get(start..)).unwrap_or(&[]);
    let len = data.len().min(bytes.len());
    data[..len].copy_from_slice(&bytes[..len]);
    data[len..].fill(0);
}

/// Writes one field.
pub(super) fn write(transport: &mut Transport, interrupts: &Interrupts, offset: u64, data: &[u8]) {
    match *data {
        [value] if offset == STATUS => transport.set_status(value),
        [a, b] => write_u16(transport, interrupts, offset, u16::from_le_bytes([a, b])),
        [a, b, c, d] => write_u32(transport, offset, u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] if (QUEUE_DESC..QUEUE_DEVICE + 8).contains(&offset) => {
            write_u32(transport, offset, u32::from_le_bytes([a, b, c, d]));
            write_u32(transport, offset + 4, u32::from_le_bytes([e, f, g, h]));
        }
        _ => {}
    }
}

fn write_u16(transport: &mut Transport, interrupts: &Interrupts, offset: u64, value: u16) {
    match offset {
        CONFIG_VECTOR => interrupts.set_config_vector(value),
        QUEUE_SELECT => transport.select_queue(value),
        QUEUE_SIZE => transport.set_queue_size(value),
        QUEUE_VECTOR => transport.set_queue_vector(value),
        QUEUE_ENABLE if value == 1 => transport.enable_queue(),
        QUEUE_RESET if value == 1 => transport.reset_queue(),
        _ => {}
    }
}

fn write_u32(transport: &mut Transport, offset: u64, value: u32) {
    match offset {
        DEVICE_FEATURE_SELECT => transport.select_device_feature(value),
        DRIVER_FEATURE_SELECT => transport.select_driver_feature(value),
        DRIVER_FEATURE => transport.set_driver_feature(value),
        _ => {
            let half = offset & 4;
            let part = match offset - half {
                QUEUE_DESC => RingPart::Descriptors,
                QUEUE_DRIVER => RingPart::Available,
                QUEUE_DEVICE => RingPart::Used,
                _ => return,
            };
            let old = transport.ring_address(part);
            let shift = half * 8;
            let kept = old & !(0xffff_ffff << shift);
            transport.set_ring_address(part, kept | u64::from(value) << shift);
        }
    }
}

fn image(transport: &Transport, interrupts: &Interrupts) -> [u8; 64] {
    let mut image = [0; 64];
    let mut put = |at: u64, bytes: &[u8]| {
        for (slot, byte) in image.iter_mut().skip(usize::try_from(at).unwrap_or(usize::MAX)).zip(bytes) {
            *slot = *byte;
        }
    };
    let queue = transport.queue_select();
    let exists = queue < transport.num_queues();
    put(DEVICE_FEATURE_SELECT, &transport.device_feature_select().to_le_bytes());
    put(DEVICE_FEATURE, &transport.device_feature().to_le_bytes());
    put(DRIVER_FEATURE_SELECT, &transport.driver_feature_select().to_le_bytes());
    put(DRIVER_FEATURE, &transport.driver_feature().to_le_bytes());
    put(CONFIG_VECTOR, &interrupts.config_vector().to_le_bytes());
    put(NUM_QUEUES, &transport.num_queues().to_le_bytes());
    put(STATUS, &[transport.status()]);
    put(CONFIG_GENERATION, &[interrupts.config_generation()]);
    put(QUEUE_SELECT, &queue.to_le_bytes());
    put(QUEUE_SIZE, &transport.queue_size().to_le_bytes());
    put(QUEUE_VECTOR, &if exists { interrupts.queue_vector(queue) } else { NO_VECTOR }.to_le_bytes());
    put(QUEUE_ENABLE, &u16::from(transport.queue_enabled()).to_le_bytes());
    put(QUEUE_NOTIFY_OFF, &if exists { queue } else { 0 }.to_le_bytes());
    put(QUEUE_DESC, &transport.ring_address(RingPart::Descriptors).to_le_bytes());
    put(QUEUE_DRIVER, &transport.ring_address(RingPart::Available).to_le_bytes());
    put(QUEUE_DEVICE, &transport.ring_address(RingPart::Used).to_le_bytes());
    image
}
