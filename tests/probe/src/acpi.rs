//! The ACPI tables as far as the probe needs them: from the root pointer to MCFG (PCI Firmware 3.3, 4.1.2).

use crate::cpu;

const RSDP_SIGNATURE: u64 = u64::from_le_bytes(*b"RSD PTR ");
const HEADER_BYTES: u32 = 36;
/// A bound for tables in a root table; firmware has about ten.
const TABLES_MAX: u32 = 64;

/// One ECAM window.
#[derive(Clone, Copy)]
pub(crate) struct Ecam {
    /// Physical address of bus 0.
    pub(crate) base: u64,
    /// First and last decoded bus.
    pub(crate) buses: (u8, u8),
}

/// Finds the ECAM window of segment 0. `rsdp` 0 means: search the BIOS area.
pub(crate) fn ecam(rsdp: u64) -> Option<Ecam> {
    let mcfg = table(find_rsdp(rsdp)?, *b"MCFG")?;
    (cpu::read32(mcfg + 4) >= 60)
        .then(|| Ecam { base: cpu::read64(mcfg + 44), buses: (cpu::read8(mcfg + 54), cpu::read8(mcfg + 55)) })
}

/// Address of a table by signature.
pub(crate) fn table(rsdp: u64, signature: [u8; 4]) -> Option<u64> {
    let xsdt = if cpu::read8(rsdp + 15) >= 2 { cpu::read64(rsdp + 24) } else { 0 };
    let (root, entry_bytes) = if xsdt == 0 { (u64::from(cpu::read32(rsdp + 16)), 4) } else { (xsdt, 8) };
    let entries = cpu::read32(root + 4).saturating_sub(HEADER_BYTES) / entry_bytes;
    (0..entries.min(TABLES_MAX))
        .map(|i| root + u64::from(HEADER_BYTES + i * entry_bytes))
        .map(|slot| if entry_bytes == 8 { cpu::read64(slot) } else { u64::from(cpu::read32(slot)) })
        .find(|&address| cpu::read32(address) == u32::from_le_bytes(signature))
}

/// Address of the root pointer: the given one or the first in the BIOS area (ACPI 6.5, 5.2.5.1).
pub(crate) fn find_rsdp(given: u64) -> Option<u64> {
    let valid = |address: u64| cpu::read64(address) == RSDP_SIGNATURE;
    if given != 0 && valid(given) {
        return Some(given);
    }
    (0xe_0000..0x10_0000).step_by(16).find(|&address| valid(address))
}
