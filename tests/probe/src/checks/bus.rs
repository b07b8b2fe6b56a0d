//! Configuration mechanisms themselves: CF8 and ECAM on every function of the bus, and on none.

use crate::acpi::Ecam;
use crate::pci::{Function, Mechanism, reg};
use crate::report::{Check, Report};
use crate::{cpu, pci, require, skip};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// Runs all checks of the bus.
pub(crate) fn run(report: &mut Report, ecam: Option<Ecam>) {
    let functions = || pci::enumerate(None);
    report.check("bus", "something answers", || {
        require!(functions().next().is_some(), "bus 0 is empty");
        Ok(())
    });
    report.check("bus", "cf8 address register reads back", address_reads_back);
    report.check("bus", "cf8 without the enable bit reaches nothing", disabled_address_reaches_nothing);
    report
        .check("bus", "narrow reads by cf8 are parts of the wide one", || functions().try_for_each(narrow_reads_agree));
    report.check("bus", "absent functions read all ones", || absent_reads_ones(ecam));
    report.check("bus", "cf8 and ecam agree", || {
        let Some(ecam) = ecam else { skip!("no MCFG table") };
        functions().try_for_each(|f| mechanisms_agree(f, ecam))
    });
    report.check("bus", "unaligned and extended ecam accesses are harmless", || {
        let Some(ecam) = ecam else { skip!("no MCFG table") };
        functions().try_for_each(|f| odd_ecam_is_harmless(f, ecam))
    });
}

fn address_reads_back() -> Check {
    for value in [1 << 31, 0x8000_f8fc, 0x8000_0000, 0] {
        cpu::out32(CONFIG_ADDRESS, value);
        let read = cpu::in32(CONFIG_ADDRESS);
        require!(read == value, "wrote {value:#x}, read {read:#x}");
    }
    Ok(())
}

fn disabled_address_reaches_nothing() -> Check {
    cpu::out32(CONFIG_ADDRESS, 0);
    let read = cpu::in32(CONFIG_DATA);
    require!(read == u32::MAX, "read {read:#x}");
    Ok(())
}

fn narrow_reads_agree(function: Function) -> Check {
    for offset in (0..0x40).step_by(4) {
        let wide = function.read32(offset);
        let bytes = [0, 1, 2, 3].map(|i| function.read8(offset + i));
        let words = [0, 2].map(|i| function.read16(offset + i).to_le_bytes());
        require!(
            u32::from_le_bytes(bytes) == wide,
            "devfn {:#x} offset {offset:#x}: {wide:#x}, bytes {bytes:x?}",
            function.devfn
        );
        require!(
            words.as_flattened() == wide.to_le_bytes(),
            "devfn {:#x} offset {offset:#x}: {wide:#x}, words {words:x?}",
            function.devfn
        );
    }
    Ok(())
}

fn absent_reads_ones(ecam: Option<Ecam>) -> Check {
    let Some(absent) = (0..=u8::MAX).map(|devfn| Function { devfn, via: Mechanism::Cf8 }).find(|f| !f.present()) else {
        skip!("the bus is full");
    };
    for via in [Some(Mechanism::Cf8), ecam.map(|e| Mechanism::Ecam(e.base))].into_iter().flatten() {
        let absent = absent.through(via);
        absent.write32(reg::BAR0, 0x1234_5678);
        require!(absent.read32(0) == u32::MAX, "devfn {:#x}: {:#x}", absent.devfn, absent.read32(0));
        require!(absent.read16(reg::BAR0) == u16::MAX, "devfn {:#x}: {:#x}", absent.devfn, absent.read16(reg::BAR0));
        require!(absent.read8(0xff) == u8::MAX, "devfn {:#x}: {:#x}", absent.devfn, absent.read8(0xff));
    }
    Ok(())
}

fn mechanisms_agree(function: Function, ecam: Ecam) -> Check {
    let other = function.through(Mechanism::Ecam(ecam.base));
    for offset in (0..0x100).step_by(4) {
        let (by_port, by_memory) = (function.read32(offset), other.read32(offset));
        require!(
            by_port == by_memory,
            "devfn {:#x} offset {offset:#x}: {by_port:#x} and {by_memory:#x}",
            function.devfn
        );
    }
    narrow_reads_agree(other)
}

fn odd_ecam_is_harmless(function: Function, ecam: Ecam) -> Check {
    let page = ecam.base + (u64::from(function.devfn) << 12);
    let before = cpu::read32(page);
    for at in [1, 2, 3, 5, 0x101, 0xffe] {
        cpu::read16(page + at);
        cpu::read32(page + at);
    }
    for at in [0, 4, 8, 0xf8, 0x100, 0xff8] {
        cpu::read64(page + at);
    }
    for at in (0x100..0x1000).step_by(0x100) {
        cpu::read32(page + at);
        cpu::write32(page + at, u32::MAX);
    }
    require!(cpu::read32(page) == before, "devfn {:#x}: ids are now {:#x}", function.devfn, cpu::read32(page));
    Ok(())
}
