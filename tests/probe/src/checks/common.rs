//! The common configuration structure, field by field (virtio 1.3 4.1.4.3), and the notification area (4.1.4.4).

use super::{DeviceCheck, Subject};
use crate::report::Check;
use crate::virtio::{Device, Kind, NO_VECTOR, common, feature, status};
use crate::{arena, cpu, fail, require, skip};

/// The checks of this file.
pub(super) const CHECKS: &[(&str, DeviceCheck)] = &[
    ("device_feature_select reads back and opens two words", device_feature_words),
    ("device_feature is read-only", device_feature_stays),
    ("VERSION_1 is offered", version_1_is_offered),
    ("driver_feature reads back and reset clears it", driver_feature_reads_back),
    ("num_queues fits the kind and is read-only", num_queues),
    ("queue_select reads back, nonexistent queues have size 0", queue_select),
    ("nonexistent queues take writes without effect", nonexistent_queue_is_inert),
    ("queue_size can shrink and reset restores it", queue_size_shrinks),
    ("queue_size refuses what no split ring can have", queue_size_refuses),
    ("queue addresses read back by halves", queue_addresses),
    ("queue_enable is 0, becomes 1, and reset clears it", queue_enable),
    ("queue_enable takes only 1 and cannot be undone", queue_enable_only_one),
    ("queue_notify_off lies inside the notification area", notify_off),
    ("config_msix_vector and queue_msix_vector refuse entries that do not exist", msix_vectors),
    ("config_generation stands still while nothing changes", generation_stands),
    ("device configuration reads the same by any width", device_config_widths),
    ("reads of any width anywhere are harmless", wrong_reads),
    ("writes of a wrong width are harmless", wrong_writes),
    ("doorbells of any queue and value are harmless at any time", doorbells),
];

fn device_feature_words(s: &Subject) -> Check {
    let d = &s.device;
    for select in [0, 1, 2, 3, 31, 32, 63, 64, 0x8000_0000, u32::MAX] {
        d.set32(common::DEVICE_FEATURE_SELECT, select);
        require!(
            d.get32(common::DEVICE_FEATURE_SELECT) == select,
            "select {select:#x} reads {:#x}",
            d.get32(common::DEVICE_FEATURE_SELECT)
        );
        let word = d.get32(common::DEVICE_FEATURE);
        // Bits 64 and above are device-specific (2.2); none of the probe's kinds defines any that devices here would
        // offer.
        require!(select < 2 || word == 0, "word {select:#x} is {word:#x}");
    }
    Ok(())
}

fn device_feature_stays(s: &Subject) -> Check {
    let offered = s.device.offered();
    for select in [0, 1] {
        s.device.set32(common::DEVICE_FEATURE_SELECT, select);
        s.device.set32(common::DEVICE_FEATURE, !s.device.get32(common::DEVICE_FEATURE));
    }
    require!(s.device.offered() == offered, "{offered:#x} became {:#x}", s.device.offered());
    Ok(())
}

fn version_1_is_offered(s: &Subject) -> Check {
    require!(s.device.offered() & feature::VERSION_1 != 0, "offered {:#x}", s.device.offered());
    Ok(())
}

fn driver_feature_reads_back(s: &Subject) -> Check {
    let d = &s.device;
    let read = |select| {
        d.set32(common::DRIVER_FEATURE_SELECT, select);
        d.get32(common::DRIVER_FEATURE)
    };
    d.set_status(status::ACKNOWLEDGE | status::DRIVER);
    let offered = d.offered();
    for accepted in [offered, feature::VERSION_1, 0] {
        d.accept(accepted);
        let seen = u64::from(read(0)) | u64::from(read(1)) << 32;
        require!(seen == accepted, "wrote {accepted:#x}, read {seen:#x}");
    }
    for select in [2, 3, 0x8000_0000, u32::MAX] {
        d.set32(common::DRIVER_FEATURE_SELECT, select);
        d.set32(common::DRIVER_FEATURE, 1);
        require!(d.get32(common::DRIVER_FEATURE_SELECT) == select, "select {select:#x} does not read back");
    }
    require!(read(0) == 0 && read(1) == 0, "writes past word 1 landed in {:#x} {:#x}", read(0), read(1));
    d.accept(feature::VERSION_1);
    d.reset()?;
    require!(!s.terms.strict || read(0) == 0 && read(1) == 0, "after reset {:#x} {:#x}", read(0), read(1));
    Ok(())
}

fn num_queues(s: &Subject) -> Check {
    let queues = s.device.get16(common::NUM_QUEUES);
    let least = if s.device.kind == Kind::Net { 2 } else { 1 };
    require!(queues >= least, "{queues} queues");
    s.device.set16(common::NUM_QUEUES, !queues);
    require!(s.device.get16(common::NUM_QUEUES) == queues, "now {}", s.device.get16(common::NUM_QUEUES));
    for queue in 0..queues.min(64) {
        let size = s.device.queue_max(queue);
        require!(size.is_power_of_two() && size <= 32768, "queue {queue} has size {size}");
    }
    Ok(())
}

/// Indices of queues that do not exist. QEMU ignores a selection past its own maximum, so far ones are for strict
/// terms.
fn past_the_end(s: &Subject) -> impl Iterator<Item = u16> {
    let far = if s.terms.strict { &[0x400, 0x7fff, 0x8000, 0xffff][..] } else { &[] };
    [s.device.get16(common::NUM_QUEUES)].into_iter().chain(far.iter().copied())
}

fn queue_select(s: &Subject) -> Check {
    let d = &s.device;
    for queue in [0].into_iter().chain(past_the_end(s)) {
        d.set16(common::QUEUE_SELECT, queue);
        require!(d.get16(common::QUEUE_SELECT) == queue, "select {queue} reads {}", d.get16(common::QUEUE_SELECT));
    }
    for queue in past_the_end(s) {
        require!(d.queue_max(queue) == 0, "queue {queue} has size {}", d.queue_max(queue));
    }
    Ok(())
}

fn nonexistent_queue_is_inert(s: &Subject) -> Check {
    let d = &s.device;
    for queue in past_the_end(s) {
        d.set16(common::QUEUE_SELECT, queue);
        d.set16(common::QUEUE_SIZE, 8);
        d.set16(common::QUEUE_MSIX_VECTOR, 0);
        d.set64(common::QUEUE_DESC, arena::START);
        d.set64(common::QUEUE_DRIVER, arena::START);
        d.set64(common::QUEUE_DEVICE, arena::START);
        d.set16(common::QUEUE_ENABLE, 1);
        require!(d.get16(common::QUEUE_SIZE) == 0, "queue {queue} now has size {}", d.get16(common::QUEUE_SIZE));
        require!(!s.terms.strict || d.get16(common::QUEUE_ENABLE) == 0, "queue {queue} is enabled");
    }
    d.reset()?;
    super::live::Live::start(d)?.round_trip()
}

fn queue_size_shrinks(s: &Subject) -> Check {
    let d = &s.device;
    let max = d.queue_max(0);
    let mut size = max / 2;
    while size >= 1 {
        d.set16(common::QUEUE_SIZE, size);
        require!(d.get16(common::QUEUE_SIZE) == size, "wrote {size}, read {}", d.get16(common::QUEUE_SIZE));
        size /= 2;
    }
    d.reset()?;
    require!(d.queue_max(0) == max, "after reset {}, was {max}", d.queue_max(0));
    Ok(())
}

fn queue_size_refuses(s: &Subject) -> Check {
    if !s.terms.strict {
        skip!("the specification leaves it open");
    }
    let d = &s.device;
    let max = d.queue_max(0);
    for size in [0, 3, max - 1, max.saturating_add(1), max.saturating_mul(2), 0x8001, 0xffff] {
        if size == max || size.is_power_of_two() && size < max {
            continue;
        }
        d.set16(common::QUEUE_SIZE, size);
        require!(d.get16(common::QUEUE_SIZE) == max, "wrote {size}, read {}, was {max}", d.get16(common::QUEUE_SIZE));
    }
    Ok(())
}

fn queue_addresses(s: &Subject) -> Check {
    let d = &s.device;
    d.set16(common::QUEUE_SELECT, 0);
    for field in [common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE] {
        require!(d.get64(field) == 0, "field {field:#x} is {:#x} after reset", d.get64(field));
        for value in [0x1_2345_6000, 0xdead_beef_0000_1000, 0x1000, !0xfff] {
            d.set64(field, value);
            require!(d.get64(field) == value, "field {field:#x}: wrote {value:#x}, read {:#x}", d.get64(field));
        }
        d.set32(field + 4, 0x77);
        let halves = (d.get32(field), d.get32(field + 4));
        require!(halves == (0xffff_f000, 0x77), "field {field:#x}: halves are {halves:x?}");
    }
    d.reset()?;
    d.set16(common::QUEUE_SELECT, 0);
    for field in [common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE] {
        require!(d.get64(field) == 0, "field {field:#x} is {:#x} after the second reset", d.get64(field));
    }
    Ok(())
}

fn queue_enable(s: &Subject) -> Check {
    let d = &s.device;
    d.set16(common::QUEUE_SELECT, 0);
    require!(d.get16(common::QUEUE_ENABLE) == 0, "enabled after reset: {:#x}", d.get16(common::QUEUE_ENABLE));
    d.negotiate(0)?;
    d.enable_queue(0, 8)?;
    d.reset()?;
    d.set16(common::QUEUE_SELECT, 0);
    require!(d.get16(common::QUEUE_ENABLE) == 0, "still enabled after reset: {:#x}", d.get16(common::QUEUE_ENABLE));
    Ok(())
}

fn queue_enable_only_one(s: &Subject) -> Check {
    let d = &s.device;
    d.negotiate(0)?;
    d.set16(common::QUEUE_SELECT, 0);
    for value in [2, 0xff, 0x100, 0xffff] {
        d.set16(common::QUEUE_ENABLE, value);
        require!(d.get16(common::QUEUE_ENABLE) == 0, "{value:#x} enabled the queue");
    }
    if !s.terms.strict {
        return d.reset();
    }
    d.enable_queue(0, 8)?;
    d.set16(common::QUEUE_ENABLE, 0);
    require!(d.get16(common::QUEUE_ENABLE) == 1, "0 disabled the queue");
    Ok(())
}

fn notify_off(s: &Subject) -> Check {
    let d = &s.device;
    for queue in 0..d.get16(common::NUM_QUEUES).min(64) {
        let at = d.doorbell(queue) - d.notify.address;
        require!(at + 2 <= d.notify.len, "doorbell of queue {queue} at {at:#x} of {:#x} bytes", d.notify.len);
        let off = d.get16(common::QUEUE_NOTIFY_OFF);
        d.set16(common::QUEUE_NOTIFY_OFF, !off);
        require!(d.get16(common::QUEUE_NOTIFY_OFF) == off, "queue_notify_off can be written");
    }
    Ok(())
}

fn msix_vectors(s: &Subject) -> Check {
    let d = &s.device;
    let Some(msix) = d.msix else { skip!("no MSI-X") };
    d.set16(common::QUEUE_SELECT, 0);
    for field in [common::CONFIG_MSIX_VECTOR, common::QUEUE_MSIX_VECTOR] {
        require!(d.get16(field) == NO_VECTOR, "field {field:#x} is {:#x} after reset", d.get16(field));
        for entry in [0, msix.entries - 1, NO_VECTOR] {
            d.set16(field, entry);
            require!(d.get16(field) == entry, "field {field:#x}: wrote {entry:#x}, read {:#x}", d.get16(field));
        }
        for entry in [msix.entries, 0x7ff, 0x8000, 0xfffe] {
            if entry < msix.entries {
                continue;
            }
            d.set16(field, 0);
            d.set16(field, entry);
            require!(d.get16(field) == NO_VECTOR, "field {field:#x}: wrote {entry:#x}, read {:#x}", d.get16(field));
        }
        d.set16(field, 0);
    }
    d.reset()?;
    d.set16(common::QUEUE_SELECT, 0);
    for field in [common::CONFIG_MSIX_VECTOR, common::QUEUE_MSIX_VECTOR] {
        require!(d.get16(field) == NO_VECTOR, "field {field:#x} survives reset as {:#x}", d.get16(field));
    }
    Ok(())
}

fn generation_stands(s: &Subject) -> Check {
    let d = &s.device;
    let first = d.get8(common::CONFIG_GENERATION);
    for _ in 0..16 {
        require!(d.get8(common::CONFIG_GENERATION) == first, "{first} became {}", d.get8(common::CONFIG_GENERATION));
        d.set8(common::CONFIG_GENERATION, !first);
    }
    Ok(())
}

fn device_config_widths(s: &Subject) -> Check {
    let config = s.device.config;
    if config.capability == 0 {
        skip!("no device configuration");
    }
    for at in (config.address..config.address + (config.len & !3).min(32)).step_by(4) {
        let wide = cpu::read32(at);
        let bytes = [0, 1, 2, 3].map(|i| cpu::read8(at + i));
        require!(u32::from_le_bytes(bytes) == wide, "{:#x}: {wide:#x}, bytes {bytes:x?}", at - config.address);
    }
    Ok(())
}

fn wrong_reads(s: &Subject) -> Check {
    let d = &s.device;
    let before = (d.offered(), d.get16(common::NUM_QUEUES));
    for structure in [d.common, d.notify, d.isr, d.config] {
        for at in structure.address..structure.address + structure.len.min(0x48) {
            cpu::read8(at);
            cpu::read16(at);
            cpu::read32(at);
            cpu::read64(at);
        }
    }
    let after = (d.offered(), d.get16(common::NUM_QUEUES));
    require!(after == before, "{before:x?} became {after:x?}");
    require!(d.status() == 0, "status became {:#x}", d.status());
    super::live::Live::start(d)?.round_trip()
}

fn wrong_writes(s: &Subject) -> Check {
    let d = &s.device;
    let before = (d.offered(), d.get16(common::NUM_QUEUES), d.queue_max(0));
    // Ones only and without VERSION_1 negotiated: no width and no offset may make a device of this that touches memory.
    for at in 0..common::BYTES {
        let address = d.common.address + at;
        cpu::write8(address, 0xff);
        d.reset()?;
        cpu::write16(address, 0xffff);
        d.reset()?;
        cpu::write32(address, u32::MAX);
        d.reset()?;
        cpu::write64(address, u64::MAX);
        d.reset()?;
    }
    for at in d.isr.address..d.isr.address + d.isr.len.min(8) {
        cpu::write8(at, 0xff);
        cpu::write32(at, u32::MAX);
    }
    let after = (d.offered(), d.get16(common::NUM_QUEUES), d.queue_max(0));
    require!(after == before, "{before:x?} became {after:x?}");
    super::live::Live::start(d)?.round_trip()
}

fn doorbells(s: &Subject) -> Check {
    let d = &s.device;
    ring_everything(d);
    d.negotiate(0)?;
    ring_everything(d);
    let mut live = super::live::Live::start(d)?;
    ring_everything(d);
    live.round_trip()?;
    require!(d.status() & status::NEEDS_RESET == 0, "the device gave up, status {:#x}", d.status());
    if live.ring.take_used().is_some() {
        fail!("a doorbell alone returned a buffer");
    }
    d.reset()?;
    ring_everything(d);
    Ok(())
}

fn ring_everything(d: &Device) {
    let step = u64::from(d.notify_multiplier.max(2));
    let slots = d.notify.len / step;
    for slot in (0..slots).take(16).chain(slots.saturating_sub(2)..slots) {
        let at = d.notify.address + slot * step;
        for value in [0, 1, 2, 3, d.get16(common::NUM_QUEUES), 0x7fff, 0xffff] {
            cpu::write16(at, value);
        }
        cpu::write32(at, u32::MAX);
        cpu::write8(at, 0xff);
        cpu::read16(at);
    }
}
