//! The start info of the PVH boot protocol, with its module list and memory map.
//!
//! Follows Xen `include/public/arch-x86/hvm/start_info.h`, version 1. All of it is in one page:
//! start info, then the one module that there may be, then the map.

use crate::initrd::Initrd;
use crate::memmap::{Entry, MAX_ENTRIES};
use crate::{Error, layout};
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const MAGIC: u32 = 0x336E_C578;
const VERSION: u32 = 1;

const MODULES: u64 = layout::PVH_START_INFO.base + size_of::<hvm_start_info>() as u64;
const MEMORY_MAP: u64 = MODULES + size_of::<hvm_modlist_entry>() as u64;

const _: () =
    assert!(MEMORY_MAP + (MAX_ENTRIES * size_of::<hvm_memmap_table_entry>()) as u64 <= layout::PVH_START_INFO.end());

/// Writes the start info to [`layout::PVH_START_INFO`]; the command line is at [`layout::CMDLINE`].
///
/// `memmap` has at most [`MAX_ENTRIES`] lines.
pub(crate) fn write(
    ram: &GuestMemoryMmap,
    initrd: Option<Initrd>,
    memmap: &[Entry],
    rsdp_addr: u64,
) -> Result<(), Error> {
    let modules: Vec<_> = initrd
        .map(|initrd| hvm_modlist_entry { paddr: initrd.addr, size: initrd.len, ..Default::default() })
        .into_iter()
        .collect();
    let memmap: Vec<_> = memmap
        .iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.base,
            size: entry.size,
            type_: entry.kind as u32,
            reserved: 0,
        })
        .collect();
    let start_info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        flags: 0,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { MODULES } else { 0 },
        cmdline_paddr: layout::CMDLINE.base,
        rsdp_paddr: rsdp_addr,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(memmap.len()).unwrap_or(u32::MAX),
        reserved: 0,
    };
    let mut params = BootParams::new(&start_info, GuestAddress(layout::PVH_START_INFO.base));
    params.set_sections(&memmap, GuestAddress(MEMORY_MAP));
    params.set_modules(&modules, GuestAddress(MODULES));
    PvhBootConfigurator::write_bootparams(&params, ram).map_err(Error::BootParams)
}
