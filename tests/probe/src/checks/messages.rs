//! MSI-X: the table as registers, and messages as they arrive (PCI 3.0 6.8.2, virtio 1.3 4.1.5.1.2).

use super::live::{Live, queue};
use super::{DeviceCheck, Subject, messages_for};
use crate::report::Check;
use crate::virtio::msix::{Control, Msix};
use crate::virtio::{Device, NO_VECTOR};
use crate::{cpu, require, skip};

/// How long a message that must not come is waited for.
const SILENCE_TICKS: u64 = cpu::SECOND_TICKS / 400;

/// The checks of this file.
pub(super) const CHECKS: &[(&str, DeviceCheck)] = &[
    ("message control keeps only enable and mask", control_register),
    ("table entries read back, reserved bits aside", table_reads_back),
    ("table takes 64-bit accesses and survives others", table_widths),
    ("pending bits are read-only", pending_is_read_only),
    ("a used buffer sends one message", message_arrives),
    ("without an entry no message is sent", no_vector_is_silent),
    ("a masked entry keeps its message until unmasked", masked_entry),
    ("the function mask keeps messages", masked_function),
    ("a queue moves to another entry while live", entry_moves),
    ("rewriting an entry redirects its messages", entry_rewritten),
    ("after reset no message is sent", silent_after_reset),
];

fn msix(s: &Subject) -> Check<Msix> {
    let Some(msix) = s.device.msix else { skip!("no MSI-X") };
    Ok(msix)
}

fn control_register(s: &Subject) -> Check {
    let (msix, f) = (msix(s)?, s.device.function);
    let at = msix.capability + 2;
    f.write16(at, u16::MAX);
    let all = f.read16(at);
    f.write16(at, 0);
    let none = f.read16(at);
    let size = msix.entries - 1;
    require!(all == 0xc000 | size, "all ones give {all:#x}");
    require!(none == size, "zeroes give {none:#x}");
    for offset in [4, 8] {
        let before = f.read32(msix.capability + offset);
        f.write32(msix.capability + offset, !before);
        let after = f.read32(msix.capability + offset);
        require!(after == before, "register {offset} became {after:#x} from {before:#x}");
    }
    Ok(())
}

fn table_reads_back(s: &Subject) -> Check {
    let msix = msix(s)?;
    msix.control(Control::FunctionMasked);
    for idx in 0..msix.entries.min(64) {
        let entry = msix.entry(idx);
        for (offset, value) in [(0, 0xfee0_1000), (4, 0), (8, 0x41), (0, 0xfee0_0000), (4, 0x1234), (8, 0xffff), (4, 0)]
        {
            cpu::write32(entry + offset, value);
            let read = cpu::read32(entry + offset);
            require!(read == value, "entry {idx} offset {offset}: wrote {value:#x}, read {read:#x}");
        }
        for value in [0, 1] {
            cpu::write32(entry + 12, value);
            let read = cpu::read32(entry + 12);
            require!(read & 1 == value, "entry {idx}: wrote vector control {value}, read {read:#x}");
        }
        if s.terms.strict {
            cpu::write32(entry + 12, u32::MAX);
            let read = cpu::read32(entry + 12);
            require!(read == 1, "entry {idx}: reserved bits of vector control kept: {read:#x}");
        }
    }
    Ok(())
}

fn table_widths(s: &Subject) -> Check {
    let msix = msix(s)?;
    let entry = msix.entry(0);
    cpu::write64(entry, 0x5_fee0_2000);
    let (wide, narrow) = (cpu::read64(entry), cpu::read32(entry));
    require!(wide == 0x5_fee0_2000 && narrow == 0xfee0_2000, "read {wide:#x} and {narrow:#x}");
    for at in entry..entry + 16 {
        cpu::write8(at, 0xff);
        cpu::read8(at);
        cpu::write16(at, 0);
        cpu::read16(at);
        cpu::read32(at);
    }
    for at in [1, 2, 4, 12, 13] {
        cpu::read64(entry + at);
        cpu::write32(entry + 12, 1);
    }
    let last = msix.entry(msix.entries - 1);
    cpu::write32(last + 12, 1);
    for past in [last + 16, last + 14, last + 12] {
        cpu::read64(past);
    }
    cpu::write64(entry, 0);
    require!(cpu::read64(entry) == 0, "entry reads {:#x}", cpu::read64(entry));
    Ok(())
}

fn pending_is_read_only(s: &Subject) -> Check {
    let msix = msix(s)?;
    for at in (msix.pending..msix.pending + 8 * u64::from(msix.entries.div_ceil(64))).step_by(4) {
        cpu::write32(at, u32::MAX);
        require!(cpu::read32(at) == 0, "pending bits {:#x}", cpu::read32(at));
        cpu::read8(at);
        cpu::read16(at + 2);
    }
    require!(cpu::read64(msix.pending) == 0, "pending bits {:#x}", cpu::read64(msix.pending));
    Ok(())
}

/// A live device whose request queue uses entry `entry`, messages on.
fn live(device: &Device, msix: &Msix, entry: u16) -> Check<Live> {
    for idx in 0..msix.entries.min(2) {
        msix.route(idx, idx.into());
    }
    msix.control(Control::On);
    Live::start_with(device, 0, |d| {
        let accepted = d.set_queue_vector(queue(d.kind), entry);
        require!(accepted == entry, "entry {entry:#x} for the queue became {accepted:#x}");
        Ok(())
    })
}

fn expect(entry: u16, before: u32, messages: u32) -> Check {
    let arrived = || messages_for(entry).wrapping_sub(before);
    if messages > 0 {
        cpu::wait(cpu::PATIENCE_TICKS, || arrived() >= messages);
    }
    cpu::wait(SILENCE_TICKS, || false);
    require!(arrived() == messages, "{} messages for entry {entry}, expected {messages}", arrived());
    Ok(())
}

fn message_arrives(s: &Subject) -> Check {
    let msix = msix(s)?;
    let mut live = live(&s.device, &msix, 0)?;
    for _ in 0..4 {
        let before = messages_for(0);
        live.round_trip()?;
        expect(0, before, 1)?;
    }
    Ok(())
}

fn no_vector_is_silent(s: &Subject) -> Check {
    let msix = msix(s)?;
    let before = messages_for(0);
    live(&s.device, &msix, NO_VECTOR)?.round_trip()?;
    expect(0, before, 0)
}

fn masked_entry(s: &Subject) -> Check {
    let msix = msix(s)?;
    let mut live = live(&s.device, &msix, 0)?;
    for _ in 0..3 {
        let before = messages_for(0);
        msix.mask(0);
        live.round_trip()?;
        expect(0, before, 0)?;
        require!(cpu::wait(cpu::PATIENCE_TICKS, || msix.is_pending(0)), "pending bit is not set");
        msix.unmask(0);
        expect(0, before, 1)?;
        require!(!msix.is_pending(0), "pending bit stays after delivery");
        msix.mask(0);
        msix.unmask(0);
        expect(0, before, 1)?;
        live.round_trip()?;
        expect(0, before, 2)?;
    }
    Ok(())
}

fn masked_function(s: &Subject) -> Check {
    let msix = msix(s)?;
    let mut live = live(&s.device, &msix, 0)?;
    let before = messages_for(0);
    msix.control(Control::FunctionMasked);
    live.round_trip()?;
    expect(0, before, 0)?;
    require!(cpu::wait(cpu::PATIENCE_TICKS, || msix.is_pending(0)), "pending bit is not set");
    msix.control(Control::On);
    expect(0, before, 1)?;
    require!(!msix.is_pending(0), "pending bit stays after delivery");
    live.round_trip()?;
    expect(0, before, 2)
}

fn entry_moves(s: &Subject) -> Check {
    if !s.terms.strict {
        skip!("QEMU before 9.0 forgets the move when it uses irqfd");
    }
    let msix = msix(s)?;
    if msix.entries < 2 {
        skip!("only one entry");
    }
    let mut live = live(&s.device, &msix, 0)?;
    let before = (messages_for(0), messages_for(1));
    live.round_trip()?;
    expect(0, before.0, 1)?;
    let accepted = s.device.set_queue_vector(queue(s.device.kind), 1);
    require!(accepted == 1, "entry 1 became {accepted:#x}");
    live.round_trip()?;
    expect(1, before.1, 1)?;
    expect(0, before.0, 1)
}

fn entry_rewritten(s: &Subject) -> Check {
    let msix = msix(s)?;
    let mut live = live(&s.device, &msix, 0)?;
    live.round_trip()?;
    cpu::wait(SILENCE_TICKS, || false);
    let before = (messages_for(0), messages_for(5));
    msix.route(0, 5);
    live.round_trip()?;
    expect(5, before.1, 1)?;
    expect(0, before.0, 0)
}

fn silent_after_reset(s: &Subject) -> Check {
    let msix = msix(s)?;
    let mut live = live(&s.device, &msix, 0)?;
    live.round_trip()?;
    cpu::wait(SILENCE_TICKS, || false);
    s.device.reset()?;
    let before = messages_for(0);
    live.request();
    expect(0, before, 0)?;
    let again = self::live(&s.device, &msix, 0)?.round_trip();
    again.and_then(|()| expect(0, before, 1))
}
