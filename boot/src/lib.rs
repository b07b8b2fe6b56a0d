//! Everything that lies in guest memory at reset, and the state of the first vCPU.
//!
//! [`load`] takes the guest's memory, the files and the command line of the user, and what `vmm` built; it leaves
//! a kernel, an initrd, boot parameters and ACPI tables in guest memory, and returns the registers with which
//! the boot vCPU enters the kernel. It is a function: it opens no file, keeps no copy of the kernel, knows
//! nothing of KVM.
//!
//! Three formats boot, told apart by content:
//!
//! | Format | Entry | Told by |
//! |---|---|---|
//! | bzImage, boot protocol 2.12 or newer | 64-bit, `rsi` = zero page | `HdrS` at 0x202 |
//! | ELF64 with a Xen `PHYS32_ENTRY` note | PVH: 32-bit, `rbx` = start info | the note |
//! | ELF64 without it | 64-bit, `rsi` = zero page | ELF magic |
//!
//! # Threats
//!
//! The kernel and the initrd are untrusted: a CI system boots what others have built.
//!
//! | Threat | Answer |
//! |---|---|
//! | Headers with offsets, lengths or addresses that wrap or lie outside | Checked arithmetic; parsers are total, with a property test on arbitrary bytes |
//! | A kernel that overwrites boot data or ACPI tables while it is loaded | Nothing is loaded below 1 MiB, where all of that lies |
//! | A file that costs host memory or time | Headers are bounded by constants; content is read once, into guest memory |
//! | A file that shrinks while it is read, a pipe, a directory | A refusal that names the file |
//! | Boot data that the guest changes later | It is never read back |
//!
//! # Not supported
//!
//! Firmware, 16-bit and 32-bit entries of a bzImage, kernels below 1 MiB or above the device hole, compressed ELF
//! files, multiboot, more than one PVH module, setup data, device trees, ACPI sleep other than soft-off, vCPU or
//! memory hot-plug, NUMA.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that cannot go on panics"))]

mod acpi;
mod cmdline;
mod entry;
mod error;
mod huge_pages;
mod initrd;
mod kernel;
pub mod layout;
mod memmap;
mod platform;
mod pvh;
mod reset;
mod smbios;
mod source;
mod zero_page;

#[cfg(test)]
mod tests;

use vm_memory::GuestMemoryMmap;

pub use crate::cmdline::{CMDLINE_CAPACITY, Cmdline};
pub use crate::entry::{DescriptorTable, EntryState, Protocol, Segment};
pub use crate::error::Error;
pub use crate::platform::Platform;
pub use crate::smbios::{BadSystemInfo, Smbios, SystemInfo};
pub use crate::source::Image;

use crate::initrd::{Initrd, Room};
use crate::kernel::Kernel;
use crate::memmap::Entry;
use crate::source::Source;
use crate::zero_page::Params;

/// The files and texts to boot from.
#[derive(Debug)]
pub struct BootSpec {
    /// The kernel.
    pub kernel: Image,
    /// The initial RAM disk, passed on as it is.
    pub initrd: Option<Image>,
    /// The complete kernel command line.
    pub cmdline: Cmdline,
    /// The machine's names.
    pub smbios: Smbios,
}

/// Puts everything that `spec` names into `ram` and returns how the boot vCPU starts.
///
/// `ram` is zero throughout and has the regions of [`layout::ram_regions`]; other regions are accepted as long as the
/// first begins at address 0. After an error its content is undefined.
///
/// # Errors
/// A refusal of the kernel, the initrd or the command line, each with a [hint](Error::hint); or a failed read.
pub fn load(ram: &GuestMemoryMmap, spec: &BootSpec, platform: &Platform<'_>) -> Result<EntryState, Error> {
    let ram_end = memmap::low_ram_end(ram)?;
    let memmap = memmap::entries(ram)?;

    let source = Source::new(&spec.kernel)?;
    let kernel = Kernel::parse(&source)?;
    kernel.load(ram, &source, ram_end)?;

    let initrd = match &spec.initrd {
        Some(image) => {
            let room = Room { low_end: ram_end, high: memmap::high_ram(ram) };
            Some(initrd::load(ram, &Source::new(image)?, kernel.span(), kernel.initrd_reach(), room)?)
        }
        None => None,
    };
    spec.cmdline.write(ram, kernel.cmdline_limit())?;
    acpi::write(ram, platform)?;
    spec.smbios.write(ram)?;
    reset::write(ram)?;
    enter(ram, &kernel, initrd, &memmap)
}

/// Writes the boot parameters of the kernel's protocol and the tables for its entry.
fn enter(
    ram: &GuestMemoryMmap,
    kernel: &Kernel,
    initrd: Option<Initrd>,
    memmap: &[Entry],
) -> Result<EntryState, Error> {
    let (header, protocol, rip) = match kernel {
        Kernel::BzImage(kernel) => (kernel.header(), Protocol::BzImage, kernel.entry()),
        Kernel::Elf64(kernel) => (zero_page::header_for_elf(), Protocol::Elf64, kernel.entry()),
        Kernel::Pvh(kernel) => {
            pvh::write(ram, initrd, memmap, acpi::RSDP_ADDR)?;
            return entry::protected_mode(ram, kernel.entry());
        }
    };
    let params = Params { header, initrd, memmap, rsdp_addr: acpi::RSDP_ADDR };
    zero_page::write(ram, &params)?;
    entry::long_mode(ram, protocol, rip)
}
