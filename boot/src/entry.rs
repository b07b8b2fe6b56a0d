//! The state in which the boot vCPU starts, as plain register values, and the tables that they point to.
//!
//! `vmm` copies the values into KVM's register structures; nothing here knows of KVM. All other vCPUs start
//! in the state after INIT, which KVM gives them.

use crate::{Error, layout};
use std::fmt;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux boot protocol of a bzImage, 64-bit entry; `rsi` has the zero page.
    BzImage,
    /// ELF entry in 64-bit mode; `rsi` has the zero page.
    Elf64,
    /// PVH entry in 32-bit protected mode without paging; `rbx` has the start info.
    Pvh,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::BzImage => "bzImage, 64-bit entry",
            Protocol::Elf64 => "ELF, 64-bit entry",
            Protocol::Pvh => "ELF, PVH entry",
        })
    }
}

/// A segment register with its hidden part, in the terms of the processor manuals (AMD64 APM 2, 4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Base address.
    pub base: u64,
    /// Last valid offset in bytes.
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// Type field, 4 bits.
    pub kind: u8,
    /// Present.
    pub p: u8,
    /// Privilege level, 2 bits.
    pub dpl: u8,
    /// 32-bit default size.
    pub db: u8,
    /// Code or data segment; 0 is a system segment.
    pub s: u8,
    /// 64-bit code.
    pub l: u8,
    /// Granularity: the limit was counted in pages.
    pub g: u8,
    /// Available to software.
    pub avl: u8,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Guest physical address.
    pub base: u64,
    /// Last valid offset in bytes.
    pub limit: u16,
}

/// Registers of the boot vCPU at reset. What is not here is zero, or as KVM sets it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryState {
    /// How the kernel is entered.
    pub protocol: Protocol,
    /// Entry point, guest physical.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Zero page, or 0 for PVH.
    pub rsi: u64,
    /// PVH start info, or 0.
    pub rbx: u64,
    /// Flags: interrupts are off.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// GDTR.
    pub gdt: DescriptorTable,
    /// IDTR: empty, any exception before the kernel has its own is a triple fault.
    pub idt: DescriptorTable,
    /// CS.
    pub code: Segment,
    /// DS, ES, FS, GS and SS.
    pub data: Segment,
    /// TR. Processors want a busy task state segment before they run a guest.
    pub task: Segment,
}

const RFLAGS_RESERVED: u64 = 1 << 1;
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Descriptors, flat, ring 0, already marked as accessed.
const CODE_32: u64 = 0x00CF_9B00_0000_FFFF;
const CODE_64: u64 = 0x00AF_9B00_0000_FFFF;
const DATA: u64 = 0x00CF_9300_0000_FFFF;
/// A busy 32-bit or 64-bit task state segment at 0 with the limit that the PVH protocol names.
const TASK: u64 = 0x0000_8B00_0000_0067;

/// Linux wants its `__BOOT_CS` and `__BOOT_DS` here (Linux `arch/x86/include/asm/segment.h`); PVH does not care.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// Last offset in the GDT: two empty entries, code, data, and a task segment that is 16 bytes long in 64-bit mode.
const GDT_LIMIT: u16 = 6 * 8 - 1;
const GDT_BYTES: usize = GDT_LIMIT as usize + 1;

const _: () = assert!(GDT_BYTES as u64 <= layout::GDT.size);

/// Present, writable.
const TABLE: u64 = 0b11;
/// Present, writable, maps a page of 2 MiB.
const PAGE_2MIB: u64 = 0b1000_0011;
/// Page directories, each for 1 GiB.
const PAGE_DIRECTORIES: usize = 4;
const TABLE_ENTRIES: usize = 512;

const _: () = assert!(layout::PAGE_TABLES.size == (2 + PAGE_DIRECTORIES as u64) * layout::PAGE_SIZE);

/// Writes GDT and identity page tables for 4 GiB and returns the state for the 64-bit entry at `rip`.
///
/// Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol".
pub(crate) fn long_mode(ram: &GuestMemoryMmap, protocol: Protocol, rip: u64) -> Result<EntryState, Error> {
    write_page_tables(ram).map_err(|source| Error::GuestMemory { what: "page tables", source })?;
    let gdt = write_gdt(ram, CODE_64)?;
    Ok(EntryState {
        protocol,
        rip,
        rsp: layout::BOOT_STACK.end(),
        rsi: layout::ZERO_PAGE.base,
        rbx: 0,
        rflags: RFLAGS_RESERVED,
        cr0: CR0_PE | CR0_ET | CR0_PG,
        cr3: layout::PAGE_TABLES.base,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA,
        gdt,
        idt: DescriptorTable { base: 0, limit: 0 },
        code: Segment::from_descriptor(CODE_SELECTOR, CODE_64),
        data: Segment::from_descriptor(DATA_SELECTOR, DATA),
        task: Segment::from_descriptor(TASK_SELECTOR, TASK),
    })
}

/// Writes a GDT and returns the state for the PVH entry at `rip`.
///
/// Xen `docs/misc/pvh.pandoc`.
pub(crate) fn protected_mode(ram: &GuestMemoryMmap, rip: u64) -> Result<EntryState, Error> {
    let gdt = write_gdt(ram, CODE_32)?;
    Ok(EntryState {
        protocol: Protocol::Pvh,
        rip,
        rsp: layout::BOOT_STACK.end(),
        rsi: 0,
        rbx: layout::PVH_START_INFO.base,
        rflags: RFLAGS_RESERVED,
        cr0: CR0_PE | CR0_ET,
        cr3: 0,
        cr4: 0,
        efer: 0,
        gdt,
        idt: DescriptorTable { base: 0, limit: 0 },
        code: Segment::from_descriptor(CODE_SELECTOR, CODE_32),
        data: Segment::from_descriptor(DATA_SELECTOR, DATA),
        task: Segment::from_descriptor(TASK_SELECTOR, TASK),
    })
}

impl Segment {
    /// The segment that the processor would load for `selector` from this descriptor.
    const fn from_descriptor(selector: u16, descriptor: u64) -> Self {
        let g = bits(descriptor, 55, 1);
        // Every cast below is of a value that was masked to fewer bits than the target has.
        let limit = (descriptor & 0xFFFF) as u32 | ((descriptor >> 32) & 0xF_0000) as u32;
        Self {
            base: ((descriptor >> 16) & 0xFF_FFFF) | ((descriptor >> 32) & 0xFF00_0000),
            limit: if g == 1 { (limit << 12) | 0xFFF } else { limit },
            selector,
            kind: bits(descriptor, 40, 4),
            p: bits(descriptor, 47, 1),
            dpl: bits(descriptor, 45, 2),
            db: bits(descriptor, 54, 1),
            s: bits(descriptor, 44, 1),
            l: bits(descriptor, 53, 1),
            g,
            avl: bits(descriptor, 52, 1),
        }
    }
}

/// `count` bits, at most 8, of `value` from bit `first`.
#[expect(clippy::cast_possible_truncation, reason = "masked to at most 8 bits")]
const fn bits(value: u64, first: u32, count: u32) -> u8 {
    ((value >> first) & ((1 << count) - 1)) as u8
}

fn write_gdt(ram: &GuestMemoryMmap, code: u64) -> Result<DescriptorTable, Error> {
    let mut bytes = [0; GDT_BYTES];
    for (selector, descriptor) in [(CODE_SELECTOR, code), (DATA_SELECTOR, DATA), (TASK_SELECTOR, TASK)] {
        bytes[usize::from(selector)..][..8].copy_from_slice(&descriptor.to_le_bytes());
    }
    ram.write_slice(&bytes, GuestAddress(layout::GDT.base))
        .map_err(|source| Error::GuestMemory { what: "the GDT", source })?;
    Ok(DescriptorTable { base: layout::GDT.base, limit: GDT_LIMIT })
}

/// PML4 and PDPT, then the directories. 2 MiB pages rather than 1 GiB ones, which not every virtual CPU has.
fn write_page_tables(ram: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let pml4 = layout::PAGE_TABLES.base;
    let pdpt = pml4 + layout::PAGE_SIZE;
    let first_directory = pdpt + layout::PAGE_SIZE;
    ram.write_obj(pdpt | TABLE, GuestAddress(pml4))?;
    let mut page = 0u64;
    for i in 0..PAGE_DIRECTORIES as u64 {
        let directory = first_directory + i * layout::PAGE_SIZE;
        ram.write_obj(directory | TABLE, GuestAddress(pdpt + i * 8))?;
        let mut entries = [0; TABLE_ENTRIES * 8];
        for entry in entries.chunks_exact_mut(8) {
            entry.copy_from_slice(&(page | PAGE_2MIB).to_le_bytes());
            page += 2 << 20;
        }
        ram.write_slice(&entries, GuestAddress(directory))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::ram_of;

    /// Walks the page tables in guest memory as the processor does.
    fn translate(ram: &GuestMemoryMmap, cr3: u64, addr: u64) -> Option<u64> {
        let entry = |table: u64, shift: u32| -> u64 {
            ram.read_obj(GuestAddress((table & !0xFFF) + ((addr >> shift) & 0x1FF) * 8)).unwrap()
        };
        let pml4e = entry(cr3, 39);
        let pdpte = (pml4e & 1 == 1).then(|| entry(pml4e, 30))?;
        let pde = (pdpte & 1 == 1).then(|| entry(pdpte, 21))?;
        (pde & 0x81 == 0x81).then_some((pde & !0x1F_FFFF) | (addr & 0x1F_FFFF))
    }

    #[test]
    fn long_mode_maps_four_gib_one_to_one_and_nothing_else() {
        let ram = ram_of(16 << 20);
        let state = long_mode(&ram, Protocol::BzImage, 0x100_0200).unwrap();
        for addr in [0, 0x7000, 0x100_0200, 0xBFFF_FFFF, 0xFEE0_0000, 0xFFFF_FFFF] {
            assert_eq!(translate(&ram, state.cr3, addr), Some(addr));
        }
        assert_eq!(translate(&ram, state.cr3, 1 << 32), None);
        assert_eq!(translate(&ram, state.cr3, 1 << 39), None);
    }

    #[test]
    fn long_mode_state_follows_the_boot_protocol() {
        let state = long_mode(&ram_of(16 << 20), Protocol::Elf64, 0x100_0200).unwrap();
        assert_eq!((state.rip, state.rsi, state.rbx), (0x100_0200, 0x7000, 0));
        assert_eq!((state.cr0, state.cr4, state.efer), (0x8000_0011, 0x20, 0x500));
        assert_eq!((state.code.selector, state.data.selector), (0x10, 0x18));
        assert_eq!((state.code.l, state.code.db, state.code.s, state.code.kind), (1, 0, 1, 0xB));
        assert_eq!((state.data.limit, state.data.kind, state.data.g), (0xFFFF_FFFF, 3, 1));
        assert_eq!(state.rflags & 0x200, 0);
    }

    #[test]
    fn protected_mode_state_follows_the_pvh_protocol() {
        let state = protected_mode(&ram_of(16 << 20), 0x20_0000).unwrap();
        assert_eq!((state.rip, state.rsi, state.rbx), (0x20_0000, 0, 0x6000));
        assert_eq!((state.cr0, state.cr3, state.cr4, state.efer), (0x11, 0, 0, 0));
        assert_eq!((state.code.l, state.code.db, state.code.limit), (0, 1, 0xFFFF_FFFF));
        assert_eq!((state.task.s, state.task.kind, state.task.limit, state.task.g), (0, 0xB, 0x67, 0));
    }

    #[test]
    fn gdt_in_memory_holds_what_the_registers_say() {
        let ram = ram_of(16 << 20);
        let state = protected_mode(&ram, 0x20_0000).unwrap();
        assert_eq!(state.gdt, DescriptorTable { base: 0x500, limit: 47 });
        for segment in [state.code, state.data, state.task] {
            let descriptor = ram.read_obj(GuestAddress(0x500 + u64::from(segment.selector))).unwrap();
            assert_eq!(Segment::from_descriptor(segment.selector, descriptor), segment);
        }
    }
}
