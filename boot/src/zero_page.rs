//! `struct boot_params`, the zero page of the Linux boot protocol.
//!
//! Follows Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst`. A bzImage brings its own setup header;
//! an ELF kernel gets one with the fields that a loader fills in.

use crate::initrd::Initrd;
use crate::memmap::Entry;
use crate::{Error, layout};
use linux_loader::bootparam::{LOADED_HIGH, boot_e820_entry, boot_params, setup_header};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// "A loader without a number of its own".
const LOADER_UNDEFINED: u8 = 0xFF;
const BOOT_FLAG: u16 = 0xAA55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// The version whose fields [`header_for_elf`] fills in.
const PROTOCOL_2_12: u16 = 0x020C;
/// The default of `CONFIG_PHYSICAL_ALIGN`'s upper bound; Linux only passes it on to kexec.
const KERNEL_ALIGNMENT: u32 = 16 << 20;

/// The contents of the zero page, beside the kernel's own header.
pub(crate) struct Params<'a> {
    /// The kernel's setup header, or [`header_for_elf`].
    pub(crate) header: setup_header,
    /// The initrd; above 4 GiB only if the kernel takes it there.
    pub(crate) initrd: Option<Initrd>,
    /// The memory map, at most [`crate::memmap::MAX_ENTRIES`] lines.
    pub(crate) memmap: &'a [Entry],
    /// Guest physical address of the RSDP.
    pub(crate) rsdp_addr: u64,
}

/// The setup header for a kernel that has none.
pub(crate) fn header_for_elf() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: PROTOCOL_2_12,
        loadflags: LOADED_HIGH,
        kernel_alignment: KERNEL_ALIGNMENT,
        ..setup_header::default()
    }
}

/// The low and the high 32 bits, which the zero page has in different places.
#[expect(clippy::cast_possible_truncation, reason = "the halves of 64 bits")]
fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

/// Writes the zero page to [`layout::ZERO_PAGE`]; the command line is at [`layout::CMDLINE`].
pub(crate) fn write(ram: &GuestMemoryMmap, params: &Params<'_>) -> Result<(), Error> {
    let mut page = boot_params { hdr: params.header, acpi_rsdp_addr: params.rsdp_addr, ..boot_params::default() };
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    // A list of further data that a loader may leave; what a file has here would be an address of nothing.
    page.hdr.setup_data = 0;
    page.hdr.cmd_line_ptr = layout::below_4g(layout::CMDLINE.base);
    let (addr, len) = params.initrd.map_or((0, 0), |initrd| (initrd.addr, initrd.len));
    (page.hdr.ramdisk_image, page.ext_ramdisk_image) = halves(addr);
    (page.hdr.ramdisk_size, page.ext_ramdisk_size) = halves(len);
    let mut count = 0;
    for (slot, entry) in page.e820_table.iter_mut().zip(params.memmap) {
        *slot = boot_e820_entry { addr: entry.base, size: entry.size, r#type: entry.kind as u32 };
        count += 1;
    }
    page.e820_entries = count;
    let params = BootParams::new(&page, GuestAddress(layout::ZERO_PAGE.base));
    LinuxBootConfigurator::write_bootparams(&params, ram).map_err(Error::BootParams)
}
