//! ACPI tables: all that the guest learns about the machine beside its memory map.
//!
//! Hardware-reduced ACPI (ACPI 6.5, 4.1): no PM timer, no SCI, no legacy interrupt controller; events come
//! through a generic event device, power-off through the sleep registers, reset through a register of the machine's
//! own.
//! The tables lie in the BIOS area, the RSDP first, so that a guest which was not told the RSDP's address and
//! scans for it finds it too.

mod dsdt;
mod fadt;
mod madt;

use crate::{Error, Platform, layout};
use acpi_tables::Aml;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const OEM_ID: [u8; 6] = *b"MINVMM";
const OEM_TABLE_ID: [u8; 8] = *b"MINIVMM ";
const OEM_REVISION: u32 = 1;

/// Alignment of each table. ACPI asks for none; this is a cache line.
const TABLE_ALIGN: usize = 64;

/// Guest physical address of the RSDP.
pub(crate) const RSDP_ADDR: u64 = layout::ACPI.base;

/// Writes all tables to [`layout::ACPI`].
///
/// # Errors
/// [`Error::NoCpu`]; [`Error::AcpiTooLarge`] for more vCPUs than there is room for, about 6000.
pub(crate) fn write(ram: &GuestMemoryMmap, platform: &Platform<'_>) -> Result<(), Error> {
    let bytes = build(platform)?;
    ram.write_slice(&bytes, GuestAddress(layout::ACPI.base))
        .map_err(|source| Error::GuestMemory { what: "ACPI tables", source })
}

/// The content of [`layout::ACPI`] from its start.
fn build(platform: &Platform<'_>) -> Result<Vec<u8>, Error> {
    if platform.apic_ids.is_empty() {
        return Err(Error::NoCpu);
    }
    let mut area = vec![0; Rsdp::len()];
    let dsdt_addr = append(&mut area, &dsdt::build(platform));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(append(&mut area, &fadt::build(dsdt_addr)));
    xsdt.add_entry(append(&mut area, &madt::build(platform.apic_ids)));
    xsdt.add_entry(append(&mut area, &mcfg()));
    let xsdt_addr = append(&mut area, &xsdt);
    let mut rsdp = Vec::with_capacity(Rsdp::len());
    Rsdp::new(OEM_ID, xsdt_addr).to_aml_bytes(&mut rsdp);
    area[..rsdp.len()].copy_from_slice(&rsdp);

    let bytes = area.len() as u64;
    if bytes > layout::ACPI.size {
        return Err(Error::AcpiTooLarge { bytes, room: layout::ACPI.size });
    }
    Ok(area)
}

/// Appends a table and returns its guest physical address.
fn append(area: &mut Vec<u8>, table: &dyn Aml) -> u64 {
    area.resize(area.len().next_multiple_of(TABLE_ALIGN), 0);
    let addr = layout::ACPI.base + area.len() as u64;
    table.to_aml_bytes(area);
    addr
}

/// Where the PCI Express configuration space is (PCI Firmware 3.3, 4.1.2).
fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM.base, 0, 0, layout::PCI_LAST_BUS);
    mcfg
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a table is and what it holds.
    pub(super) struct Table {
        pub(super) signature: String,
        pub(super) bytes: Vec<u8>,
    }

    pub(super) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }

    pub(super) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    fn table_at(area: &[u8], addr: u64) -> Table {
        let offset = usize::try_from(addr - layout::ACPI.base).unwrap();
        let len = usize::try_from(u32_at(area, offset + 4)).unwrap();
        let bytes = area[offset..offset + len].to_vec();
        Table { signature: String::from_utf8(bytes[..4].to_vec()).unwrap(), bytes }
    }

    /// Finds all tables as a guest does: RSDP, XSDT, its entries, and the DSDT through the FADT.
    pub(super) fn tables(platform: &Platform<'_>) -> Vec<Table> {
        let area = build(platform).unwrap();
        assert_eq!(&area[..8], b"RSD PTR ");
        assert_eq!(sum(&area[..20]), 0);
        assert_eq!(sum(&area[..36]), 0);
        let xsdt = table_at(&area, u64_at(&area, 24));
        let mut tables: Vec<_> = xsdt.bytes[36..].chunks(8).map(|addr| table_at(&area, u64_at(addr, 0))).collect();
        let fadt = tables.iter().find(|table| table.signature == "FACP").unwrap();
        tables.push(table_at(&area, u64_at(&fadt.bytes, 140)));
        tables.push(xsdt);
        tables
    }

    pub(super) fn table(platform: &Platform<'_>, signature: &str) -> Vec<u8> {
        tables(platform).into_iter().find(|table| table.signature == signature).unwrap().bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    pub(super) const ONE_CPU: Platform<'static> = Platform { apic_ids: &[0], mmio64: None };

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        let tables = tables(&ONE_CPU);
        let names: Vec<_> = tables.iter().map(|table| table.signature.as_str()).collect();
        assert_eq!(names, ["FACP", "APIC", "MCFG", "DSDT", "XSDT"]);
        for table in &tables {
            assert_eq!(sum(&table.bytes), 0, "{}", table.signature);
        }
    }

    #[test]
    fn mcfg_tells_the_ecam_of_the_layout() {
        let mcfg = table(&ONE_CPU, "MCFG");
        assert_eq!(u64_at(&mcfg, 44), layout::ECAM.base);
        assert_eq!((mcfg[54], mcfg[55]), (0, layout::PCI_LAST_BUS));
    }

    #[test]
    fn no_cpu_is_refused() {
        assert!(matches!(build(&Platform { apic_ids: &[], mmio64: None }), Err(Error::NoCpu)));
    }

    #[test]
    fn as_many_cpus_as_kvm_allows_fit_and_absurdly_many_do_not() {
        let apic_ids: Vec<u32> = (0..4096).collect();
        assert!(build(&Platform { apic_ids: &apic_ids, mmio64: None }).is_ok());
        let apic_ids: Vec<u32> = (0..10_000).collect();
        assert!(matches!(build(&Platform { apic_ids: &apic_ids, mmio64: None }), Err(Error::AcpiTooLarge { .. })));
    }
}
