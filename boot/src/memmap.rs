//! The map of the guest's memory that the kernel is told: one source for the zero page and for PVH.
//!
//! It is made from the RAM that is really there. The numbers of the kinds are the same in the E820 map
//! (Linux `arch/x86/include/asm/e820/types.h`) and in the PVH map (Xen `arch-x86/hvm/start_info.h`).

use crate::kernel::Span;
use crate::{Error, layout};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Entries that fit into the zero page; the page for the PVH start info holds more.
pub(crate) const MAX_ENTRIES: usize = linux_loader::bootparam::E820_MAX_ENTRIES_ZEROPAGE;

/// The use of a span of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// Free to use.
    Ram = 1,
    /// Not to be touched. Linux uses ECAM only if it finds it reserved.
    Reserved = 2,
    /// ACPI tables.
    Acpi = 3,
}

/// One line of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// First address.
    pub(crate) base: u64,
    /// Length in bytes.
    pub(crate) size: u64,
    /// Its use.
    pub(crate) kind: Kind,
}

/// The end of the RAM that begins at address 0 and has no gap, at most the device hole.
///
/// # Errors
/// [`Error::NoLowMemory`] unless there is RAM behind the first MiB.
pub(crate) fn low_ram_end(ram: &GuestMemoryMmap) -> Result<u64, Error> {
    let mut end = 0;
    for region in ram.iter().filter(|region| region.len() > 0) {
        if region.start_addr().raw_value() != end {
            break;
        }
        end += region.len();
    }
    if end <= layout::HIGH_RAM_BASE {
        return Err(Error::NoLowMemory { bytes: end });
    }
    Ok(end.min(layout::RAM_BELOW_4G_END))
}

/// The largest run of RAM above 4 GiB.
pub(crate) fn high_ram(ram: &GuestMemoryMmap) -> Option<Span> {
    let spans = ram.iter().map(|region| {
        let start = region.start_addr().raw_value();
        Span { start, end: start.saturating_add(region.len()) }
    });
    spans.filter(|span| span.start >= layout::RAM_ABOVE_4G_BASE).max_by_key(|span| span.end - span.start)
}

/// The map, sorted by address.
///
/// # Errors
/// [`Error::TooManyRegions`] beyond [`MAX_ENTRIES`].
pub(crate) fn entries(ram: &GuestMemoryMmap) -> Result<Vec<Entry>, Error> {
    let mut entries = vec![
        Entry { base: layout::LOW_RAM.base, size: layout::LOW_RAM.size, kind: Kind::Ram },
        Entry { base: layout::ACPI.base, size: layout::ACPI.size, kind: Kind::Acpi },
        Entry { base: layout::BIOS.base, size: layout::BIOS.size, kind: Kind::Reserved },
        Entry { base: layout::ECAM.base, size: layout::ECAM.size, kind: Kind::Reserved },
    ];
    for region in ram.iter() {
        let start = region.start_addr().raw_value();
        let end = start.saturating_add(region.len());
        let start = start.max(layout::HIGH_RAM_BASE);
        if start < end {
            entries.push(Entry { base: start, size: end - start, kind: Kind::Ram });
        }
    }
    if entries.len() > MAX_ENTRIES {
        return Err(Error::TooManyRegions { count: entries.len(), limit: MAX_ENTRIES });
    }
    entries.sort_by_key(|entry| entry.base);
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::ram_of;
    use vm_memory::GuestAddress;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn ram_entries(mem_bytes: u64) -> Vec<(u64, u64)> {
        let entries = entries(&ram_of(mem_bytes)).unwrap();
        entries.iter().filter(|entry| entry.kind == Kind::Ram).map(|entry| (entry.base, entry.size)).collect()
    }

    #[test]
    fn map_of_64_mib() {
        assert_eq!(ram_entries(64 * MIB), [(0, 640 << 10), (MIB, 63 * MIB)]);
    }

    #[test]
    fn map_of_3_gib_ends_at_the_hole() {
        assert_eq!(ram_entries(3 * GIB), [(0, 640 << 10), (MIB, 3 * GIB - MIB)]);
    }

    #[test]
    fn map_of_4_gib_continues_behind_the_hole() {
        assert_eq!(ram_entries(4 * GIB), [(0, 640 << 10), (MIB, 3 * GIB - MIB), (4 * GIB, GIB)]);
    }

    #[test]
    fn map_of_6_gib_is_sorted_and_reserves_ecam() {
        let entries = entries(&ram_of(6 * GIB)).unwrap();
        assert!(entries.is_sorted_by_key(|entry| entry.base));
        assert_eq!(ram_entries(6 * GIB), [(0, 640 << 10), (MIB, 3 * GIB - MIB), (4 * GIB, 3 * GIB)]);
        let others: Vec<_> = entries.iter().filter(|entry| entry.kind != Kind::Ram).collect();
        assert_eq!(
            others,
            [
                &Entry { base: 0xE_0000, size: 0x1_8000, kind: Kind::Acpi },
                &Entry { base: 0xF_8000, size: 0x8000, kind: Kind::Reserved },
                &Entry { base: 0xE000_0000, size: MIB, kind: Kind::Reserved },
            ]
        );
    }

    #[test]
    fn ram_above_4_gib_is_there_from_3_gib_on() {
        assert_eq!(high_ram(&ram_of(3 * GIB)), None);
        assert_eq!(high_ram(&ram_of(6 * GIB)), Some(Span { start: 4 * GIB, end: 7 * GIB }));
    }

    #[test]
    fn adjacent_regions_count_as_one_run_of_low_ram() {
        let ranges = [(GuestAddress(0), 2 << 20), (GuestAddress(2 << 20), 2 << 20), (GuestAddress(8 << 20), 1 << 20)];
        let ram = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        assert_eq!(low_ram_end(&ram).unwrap(), 4 * MIB);
    }

    #[test]
    fn memory_of_one_mib_or_not_at_zero_is_refused() {
        let small = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        assert!(matches!(low_ram_end(&small), Err(Error::NoLowMemory { bytes: MIB })));
        let elsewhere = GuestMemoryMmap::from_ranges(&[(GuestAddress(MIB), 1 << 20)]).unwrap();
        assert!(matches!(low_ram_end(&elsewhere), Err(Error::NoLowMemory { bytes: 0 })));
    }

    #[test]
    fn too_many_regions_are_refused() {
        let ranges: Vec<_> = (0..200).map(|i| (GuestAddress(i * 4 * MIB), 2 << 20)).collect();
        let ram = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        assert!(matches!(entries(&ram), Err(Error::TooManyRegions { count: 204, limit: MAX_ENTRIES })));
    }
}
