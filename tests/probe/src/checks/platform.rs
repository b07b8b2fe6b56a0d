//! The platform without PCI: start info, ACPI, clock, keyboard controller, panic port.

use super::Terms;
use crate::report::{Check, Report};
use crate::start_info::StartInfo;
use crate::{acpi, cpu, require, skip};

const RTC_INDEX: u16 = 0x70;
const RTC_DATA: u16 = 0x71;
const RTC_UPDATING: u8 = 0x80;
const RTC_BINARY: u8 = 4;
const KEYBOARD_STATUS: u16 = 0x64;
const PVPANIC: u16 = 0x505;
const COM1: u16 = 0x3f8;

/// Runs all checks of the platform.
pub(crate) fn run(report: &mut Report, start: &StartInfo, terms: Terms) {
    report.check("platform", "acpi root pointer and tables have right checksums", || acpi_sound(start));
    report.check("platform", "clock says a plausible date", clock);
    report.check("platform", "clock seconds advance or stand, never leave 0..59", clock_seconds);
    report.check("platform", "keyboard controller is ready for the reset command", keyboard);
    report.check("platform", "panic port says what it supports", || pvpanic(terms));
    report.check("platform", "serial port keeps its scratch register", serial_scratch);
    report.check("platform", "absent ports read all ones", || absent_ports(terms));
    report.check("platform", "absent memory reads all ones", || absent_memory(terms));
}

fn sum(at: u64, len: u64) -> u8 {
    (at..at + len).fold(0u8, |sum, at| sum.wrapping_add(cpu::read8(at)))
}

fn acpi_sound(start: &StartInfo) -> Check {
    let Some(rsdp) = acpi::find_rsdp(start.rsdp) else { skip!("no ACPI") };
    require!(sum(rsdp, 20) == 0, "RSDP at {rsdp:#x}");
    require!(cpu::read8(rsdp + 15) < 2 || sum(rsdp, 36) == 0, "extended RSDP at {rsdp:#x}");
    for signature in [*b"FACP", *b"APIC", *b"MCFG"] {
        let Some(table) = acpi::table(rsdp, signature) else { continue };
        let len = cpu::read32(table + 4).min(0x1_0000);
        require!(
            sum(table, len.into()) == 0,
            "table {} at {table:#x}",
            core::str::from_utf8(&signature).unwrap_or_default()
        );
    }
    require!(acpi::table(rsdp, *b"FACP").is_some(), "no FADT");
    require!(acpi::table(rsdp, *b"APIC").is_some(), "no MADT");
    Ok(())
}

fn rtc(index: u8) -> u8 {
    cpu::out8(RTC_INDEX, index);
    cpu::in8(RTC_DATA)
}

fn rtc_number(index: u8) -> u32 {
    let raw = rtc(index);
    u32::from(if rtc(0x0b) & RTC_BINARY != 0 { raw } else { (raw >> 4) * 10 + (raw & 0xf) })
}

fn has_clock() -> Check {
    if rtc(0x0a) == 0xff {
        skip!("no clock");
    }
    require!(cpu::wait(cpu::PATIENCE_TICKS, || rtc(0x0a) & RTC_UPDATING == 0), "update in progress for ever");
    Ok(())
}

fn clock() -> Check {
    has_clock()?;
    let [day, month, year] = [7, 8, 9].map(rtc_number);
    let [hour, minute] = [4, 2].map(rtc_number);
    require!((1..=31).contains(&day) && (1..=12).contains(&month), "day {day}, month {month}");
    require!((24..=99).contains(&year), "year {year}");
    require!(hour <= 23 && minute <= 59, "{hour}:{minute}");
    require!(rtc(0x0d) & 0x80 != 0, "register D says the battery is dead");
    Ok(())
}

fn clock_seconds() -> Check {
    has_clock()?;
    for _ in 0..64 {
        let seconds = rtc_number(0);
        require!(seconds <= 59, "{seconds} seconds");
    }
    Ok(())
}

fn keyboard() -> Check {
    let status = cpu::in8(KEYBOARD_STATUS);
    if status == 0xff {
        skip!("no keyboard controller");
    }
    require!(status & 2 == 0, "input buffer is full: {status:#x}");
    Ok(())
}

fn pvpanic(terms: Terms) -> Check {
    let events = cpu::in8(PVPANIC);
    if events == 0xff && !terms.strict {
        skip!("no pvpanic");
    }
    require!(events & 1 == 1 && events & 0xf0 == 0, "events {events:#x}");
    Ok(())
}

fn serial_scratch() -> Check {
    for value in [0xa5, 0x5a] {
        cpu::out8(COM1 + 7, value);
        require!(cpu::in8(COM1 + 7) == value, "wrote {value:#x}, read {:#x}", cpu::in8(COM1 + 7));
    }
    Ok(())
}

fn absent_ports(terms: Terms) -> Check {
    if !terms.strict {
        skip!("chipsets differ");
    }
    for port in [0x2f8, 0x3e8, 0x1234, 0xfff0] {
        cpu::out8(port, 0);
        cpu::out32(port, 0);
        let (byte, word, dword) = (cpu::in8(port), cpu::in16(port), cpu::in32(port));
        require!(byte == 0xff && word == 0xffff && dword == u32::MAX, "port {port:#x}: {byte:#x} {word:#x} {dword:#x}");
    }
    Ok(())
}

fn absent_memory(terms: Terms) -> Check {
    if !terms.strict {
        skip!("chipsets differ");
    }
    for address in [0xdfff_f000, 0xf000_0000, 0xfd00_0000] {
        cpu::write32(address, 0);
        let (byte, dword, qword) = (cpu::read8(address), cpu::read32(address), cpu::read64(address));
        require!(
            byte == 0xff && dword == u32::MAX && qword == u64::MAX,
            "{address:#x}: {byte:#x} {dword:#x} {qword:#x}"
        );
    }
    Ok(())
}
