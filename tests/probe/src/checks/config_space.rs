//! A virtio device's configuration space: identity, write masks, BARs, capabilities (virtio 1.3 4.1.2 to 4.1.4).

use super::{DeviceCheck, Subject};
use crate::pci::{BARS, command, free_address, reg};
use crate::report::Check;
use crate::virtio::{Device, Kind, Structure, common, status};
use crate::{cpu, fail, require, skip};

/// The checks of this file.
pub(super) const CHECKS: &[(&str, DeviceCheck)] = &[
    ("ids and class are those of its kind", identity),
    ("read-only registers stay", read_only_registers_stay),
    ("command register keeps only its bits", command_register),
    ("status register says capabilities and stays", status_register),
    ("interrupt line is scratch", interrupt_line),
    ("capability list is sound", capability_list),
    ("virtio structures lie inside their bars", structures_lie_in_bars),
    ("virtio capabilities are read-only", capabilities_stay),
    ("bars size and restore", bars_size),
    ("bar moves and the old place is empty", bar_moves),
    ("memory decoding off makes the bar vanish", decoding_off),
    ("configuration window reaches the structures", window_works),
    ("configuration window refuses nonsense", window_refuses),
];

fn identity(s: &Subject) -> Check {
    let f = s.device.function;
    let (revision, class) = (f.read8(reg::REVISION), f.read16(reg::CLASS));
    require!(revision >= 1, "modern devices have revision 1 or higher, not {revision}");
    require!(f.read8(reg::HEADER_TYPE) & 0x7f == 0, "header type {:#x}", f.read8(reg::HEADER_TYPE));
    let base_class = class >> 8;
    match s.device.kind {
        Kind::Net => require!(class == 0x0200, "class {class:#x}"),
        Kind::Block => require!(base_class == 0x01, "class {class:#x}"),
        Kind::Entropy | Kind::Other(_) => require!(class != 0xffff, "class {class:#x}"),
    }
    Ok(())
}

fn read_only_registers_stay(s: &Subject) -> Check {
    let f = s.device.function;
    for offset in [reg::VENDOR, reg::REVISION & !3, reg::SUBSYSTEM, reg::CAPABILITIES] {
        let before = f.read32(offset);
        f.write32(offset, !before);
        require!(f.read32(offset) == before, "{offset:#x} became {:#x} from {before:#x}", f.read32(offset));
        for i in 0..4 {
            f.write8(offset + i, 0xa5);
        }
        f.write16(offset, 0x5a5a);
        require!(
            f.read32(offset) == before,
            "{offset:#x} became {:#x} from {before:#x} by narrow writes",
            f.read32(offset)
        );
    }
    let pin = f.read8(reg::INTERRUPT_PIN);
    f.write8(reg::INTERRUPT_PIN, !pin);
    require!(f.read8(reg::INTERRUPT_PIN) == pin, "interrupt pin became {:#x}", f.read8(reg::INTERRUPT_PIN));
    let header = f.read8(reg::HEADER_TYPE);
    f.write8(reg::HEADER_TYPE, !header);
    require!(f.read8(reg::HEADER_TYPE) == header, "header type became {:#x}", f.read8(reg::HEADER_TYPE));
    Ok(())
}

fn command_register(s: &Subject) -> Check {
    let f = s.device.function;
    let before = f.read16(reg::COMMAND);
    f.write16(reg::COMMAND, u16::MAX);
    let all = f.read16(reg::COMMAND);
    f.write16(reg::COMMAND, 0);
    let none = f.read16(reg::COMMAND);
    f.write16(reg::COMMAND, before);
    let needed = command::MEMORY | command::MASTER | command::INTX_OFF;
    require!(all & needed == needed, "bits missing in {all:#x}");
    require!(all & 0xf800 == 0, "reserved bits in {all:#x}");
    require!(none == 0, "bits left in {none:#x}");
    require!(f.read16(reg::COMMAND) == before, "now {:#x}, was {before:#x}", f.read16(reg::COMMAND));
    Ok(())
}

fn status_register(s: &Subject) -> Check {
    let f = s.device.function;
    let before = f.read16(reg::STATUS);
    require!(before & 0x10 != 0, "no capability list in {before:#x}");
    f.write16(reg::STATUS, u16::MAX);
    f.write16(reg::STATUS, 0);
    require!(f.read16(reg::STATUS) & 0x10 != 0, "capability bit gone: {:#x}", f.read16(reg::STATUS));
    Ok(())
}

fn interrupt_line(s: &Subject) -> Check {
    let f = s.device.function;
    let before = f.read8(reg::INTERRUPT_LINE);
    for value in [0xa5, 0x5a] {
        f.write8(reg::INTERRUPT_LINE, value);
        require!(f.read8(reg::INTERRUPT_LINE) == value, "wrote {value:#x}, read {:#x}", f.read8(reg::INTERRUPT_LINE));
    }
    f.write8(reg::INTERRUPT_LINE, before);
    Ok(())
}

fn capability_list(s: &Subject) -> Check {
    let f = s.device.function;
    let mut count = 0;
    let mut last = 0;
    for (id, at) in f.capabilities() {
        require!((0x40..=0xfc).contains(&at), "capability {id:#x} at {at:#x}");
        count += 1;
        last = at;
    }
    require!(count > 0, "list is empty");
    require!(f.read8(last + 1) == 0, "list does not end within {count} entries");
    let device = &s.device;
    for (name, structure) in
        [("common", device.common), ("notify", device.notify), ("isr", device.isr), ("window", device.window)]
    {
        require!(structure.capability != 0, "no capability for {name}");
        let len = f.read8(structure.capability + 2);
        require!(len >= 16, "capability of {name} is {len} bytes");
    }
    require!(device.msix.is_some(), "no MSI-X capability");
    require!(
        device.kind == Kind::Entropy || device.config.capability != 0,
        "no capability for the device configuration"
    );
    require!(f.read8(device.notify.capability + 2) >= 20, "notify capability without multiplier");
    require!(f.read8(device.window.capability + 2) >= 20, "window capability without data register");
    Ok(())
}

fn structures_lie_in_bars(s: &Subject) -> Check {
    let device = &s.device;
    let check = |name: &str, bar: u8, offset: u32, len: u64, align: u32| -> Check {
        let Some(found) = device.function.bar(bar) else {
            fail!("{name} is in BAR {bar}, which does not exist");
        };
        let end = u64::from(offset) + len;
        require!(end <= found.size, "{name} ends at {end:#x} of {:#x} bytes", found.size);
        require!(offset.is_multiple_of(align), "{name} at {offset:#x} is not aligned to {align}");
        Ok(())
    };
    let structure = |name: &str, s: Structure, align: u32, least: u64| -> Check {
        require!(s.len >= least, "{name} has only {} bytes", s.len);
        check(name, s.bar, s.offset, s.len, align)
    };
    structure("common", device.common, 4, common::BYTES)?;
    structure("notify", device.notify, 2, 2)?;
    structure("isr", device.isr, 1, 1)?;
    if device.config.capability != 0 {
        structure("device configuration", device.config, 4, 1)?;
    }
    let multiplier = device.notify_multiplier;
    require!(multiplier == 0 || multiplier.is_power_of_two() && multiplier >= 2, "notify_off_multiplier {multiplier}");
    if let Some(msix) = device.msix {
        check("MSI-X table", msix.table_bar, msix.table_offset, 16 * u64::from(msix.entries), 8)?;
        check("pending bits", msix.pending_bar, msix.pending_offset, 8 * u64::from(msix.entries.div_ceil(64)), 8)?;
    }
    Ok(())
}

fn capabilities_stay(s: &Subject) -> Check {
    let f = s.device.function;
    for structure in [s.device.common, s.device.notify, s.device.isr, s.device.config] {
        if structure.capability == 0 {
            continue;
        }
        for at in (structure.capability..structure.capability + 16).step_by(4) {
            let before = f.read32(at);
            f.write32(at, !before);
            require!(f.read32(at) == before, "{at:#x} became {:#x} from {before:#x}", f.read32(at));
        }
    }
    Ok(())
}

fn bars_size(s: &Subject) -> Check {
    let f = s.device.function;
    let mut idx = 0;
    while idx < BARS {
        let before = f.bar_address(idx);
        let Some(bar) = f.bar(idx) else {
            idx += 1;
            continue;
        };
        require!(bar.size.is_power_of_two() && bar.size >= 16, "BAR {idx} has {:#x} bytes", bar.size);
        require!(f.bar_address(idx) == before, "BAR {idx} is now at {:#x}", f.bar_address(idx));
        require!(bar.address.is_multiple_of(bar.size), "BAR {idx} at {:#x}, size {:#x}", bar.address, bar.size);
        require!(bar.mask | (bar.size - 1) == u64::MAX || !bar.wide, "BAR {idx} mask {:#x}", bar.mask);
        idx += if bar.wide { 2 } else { 1 };
    }
    Ok(())
}

/// Returns whether a read found nothing. A master abort reads all ones; some VMMs read zero, which no structure here
/// starts with.
fn vacant(s: &Subject, value: u32) -> bool {
    value == u32::MAX || value == 0 && !s.terms.strict
}

fn bar_moves(s: &Subject) -> Check {
    let f = s.device.function;
    let Some(bar) = f.bar(s.device.common.bar) else { skip!("no memory BAR") };
    let new = free_address(bar.size);
    let queues = s.device.get16(common::NUM_QUEUES);
    for (from, to) in [(bar.address, new), (new, bar.address)] {
        f.move_bar(bar, to);
        let moved = Device::probe(f).unwrap_or(s.device);
        let seen = moved.get16(common::NUM_QUEUES);
        require!(
            moved.common.address == to + u64::from(moved.common.offset),
            "register still says {:#x}",
            moved.common.address
        );
        require!(seen == queues, "{seen:#x} queues at the new place {to:#x}, {queues} before");
        let old = cpu::read32(from + u64::from(moved.common.offset) + common::NUM_QUEUES - 2);
        require!(vacant(s, old), "{old:#x} at the old place {from:#x}");
    }
    super::live::Live::start(&s.device)?.round_trip()
}

fn decoding_off(s: &Subject) -> Check {
    let device = &s.device;
    device.set_status(status::ACKNOWLEDGE);
    let (read, whole) = device.function.without_command(command::MEMORY, || {
        device.set_status(status::ACKNOWLEDGE | status::DRIVER);
        (device.get32(common::CONFIG_MSIX_VECTOR), device.get32(common::DEVICE_STATUS))
    });
    require!(vacant(s, read) && vacant(s, whole), "read {read:#x} and {whole:#x} with decoding off");
    require!(device.status() == status::ACKNOWLEDGE, "a write got through: status {:#x}", device.status());
    Ok(())
}

/// Registers of the window capability (4.1.4.9), relative to it.
mod window {
    pub(super) const BAR: u16 = 4;
    pub(super) const OFFSET: u16 = 8;
    pub(super) const LENGTH: u16 = 12;
    pub(super) const DATA: u16 = 16;
}

fn aim(device: &Device, bar: u8, offset: u32, len: u32) -> u16 {
    let at = device.window.capability;
    device.function.write8(at + window::BAR, bar);
    device.function.write32(at + window::OFFSET, offset);
    device.function.write32(at + window::LENGTH, len);
    at + window::DATA
}

fn window_works(s: &Subject) -> Check {
    let (device, f) = (&s.device, s.device.function);
    let common_at = |field: u64| device.common.offset + u32::try_from(field).unwrap_or(0);
    let data = aim(device, device.common.bar, common_at(common::NUM_QUEUES), 2);
    let (by_window, direct) = (f.read16(data), device.get16(common::NUM_QUEUES));
    require!(by_window == direct, "num_queues {by_window:#x} by window, {direct:#x} directly");

    let data = aim(device, device.common.bar, common_at(common::DEVICE_STATUS), 1);
    f.write8(data, status::ACKNOWLEDGE);
    require!(device.status() == status::ACKNOWLEDGE, "status {:#x} after a write by window", device.status());
    require!(f.read8(data) == status::ACKNOWLEDGE, "status reads {:#x} by window", f.read8(data));

    let data = aim(device, device.common.bar, common_at(common::DEVICE_FEATURE_SELECT), 4);
    f.write32(data, 1);
    require!(device.get32(common::DEVICE_FEATURE_SELECT) == 1, "32-bit write by window did not arrive");
    let offset = f.read32(device.window.capability + window::OFFSET);
    require!(offset == common_at(common::DEVICE_FEATURE_SELECT), "window offset reads back {offset:#x}");
    Ok(())
}

fn window_refuses(s: &Subject) -> Check {
    let (device, f) = (&s.device, s.device.function);
    for (bar, offset, len) in [
        (7, 0, 4),
        (0xff, 0, 4),
        (device.common.bar, 0, 0),
        (device.common.bar, 0, 3),
        (device.common.bar, 0, 8),
        (device.common.bar, 1, 4),
        (device.common.bar, u32::MAX, 4),
        (device.common.bar, u32::MAX - 3, 4),
        (device.common.bar, 0, u32::MAX),
    ] {
        let data = aim(device, bar, offset, len);
        f.read32(data);
        f.write32(data, u32::MAX);
        f.read8(data + 3);
    }
    aim(device, device.common.bar, 0, 4);
    device.reset()?;
    super::live::Live::start(device)?.round_trip()
}
