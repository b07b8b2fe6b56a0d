//! Why a guest cannot be booted, in one sentence each, and what to do about it.

use crate::layout;
use linux_loader::configurator;
use std::io;
use std::path::PathBuf;
use thiserror::Error as ThisError;

/// A refusal of [`crate::load`] or [`crate::Cmdline`].
///
/// The text names the file and the reason. [`Error::hint`] adds what the user can do.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum Error {
    /// Reading failed for a reason of the host.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The file as the user named it.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The path names a directory.
    #[error("{} is a directory, not a file", path.display())]
    Directory {
        /// The file as the user named it.
        path: PathBuf,
    },
    /// The file has no content.
    #[error("{} is empty", path.display())]
    Empty {
        /// The file as the user named it.
        path: PathBuf,
    },
    /// The file ends before its own headers say it should.
    #[error("{} is truncated: it has {len} bytes, its headers speak of {needed}", path.display())]
    Truncated {
        /// The file as the user named it.
        path: PathBuf,
        /// Length of the file in bytes.
        len: u64,
        /// Length in bytes that its headers imply.
        needed: u64,
    },
    /// The file is no kernel of any known format.
    #[error("{} is not a Linux kernel but {found}", path.display())]
    NotAKernel {
        /// The file as the user named it.
        path: PathBuf,
        /// The format that its first bytes suggest.
        found: &'static str,
    },
    /// The file is compressed as a whole.
    #[error("{} is compressed with {method}", path.display())]
    Compressed {
        /// The file as the user named it.
        path: PathBuf,
        /// Name of the compression.
        method: &'static str,
        /// The tool that undoes it.
        tool: &'static str,
    },
    /// A 32-bit ELF file.
    #[error("{} is a 32-bit ELF file", path.display())]
    Elf32 {
        /// The file as the user named it.
        path: PathBuf,
    },
    /// An ELF file for another processor.
    #[error("{} is an ELF file for {machine}, not for x86-64", path.display())]
    ForeignMachine {
        /// The file as the user named it.
        path: PathBuf,
        /// Name of the architecture.
        machine: &'static str,
    },
    /// An ELF file of a type that cannot be loaded, such as an object file.
    #[error("{} is an ELF file that cannot be started: {reason}", path.display())]
    BadElf {
        /// The file as the user named it.
        path: PathBuf,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// A bzImage with a boot protocol older than 2.12.
    #[error("{} speaks boot protocol {major}.{minor:02}, older than 2.12", path.display())]
    OldProtocol {
        /// The file as the user named it.
        path: PathBuf,
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },
    /// A bzImage without a 64-bit entry.
    #[error("{} is a kernel for 32-bit x86", path.display())]
    Only32Bit {
        /// The file as the user named it.
        path: PathBuf,
    },
    /// A bzImage header that contradicts itself.
    #[error("{} has a broken Linux boot header: {reason}", path.display())]
    BadBzImage {
        /// The file as the user named it.
        path: PathBuf,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// The kernel needs guest memory that is not there.
    #[error(
        "{} needs guest memory from {start:#x} to {end:#x}, but the guest has RAM from {:#x} to {ram_end:#x} for it",
        path.display(), layout::HIGH_RAM_BASE
    )]
    KernelDoesNotFit {
        /// The file as the user named it.
        path: PathBuf,
        /// First guest physical address that it needs.
        start: u64,
        /// First guest physical address behind what it needs.
        end: u64,
        /// End of the RAM below the device hole.
        ram_end: u64,
    },
    /// The initrd and the kernel do not fit together.
    #[error("{} has {len} bytes, but beside the kernel the guest has room for {room}", path.display())]
    InitrdTooLarge {
        /// The file as the user named it.
        path: PathBuf,
        /// Length of the file in bytes.
        len: u64,
        /// Bytes that are free.
        room: u64,
        /// Memory of a guest that has room for both; none if the kernel takes no such initrd, whatever the memory.
        needed_bytes: Option<u64>,
    },
    /// The command line is longer than the kernel or this crate takes.
    #[error("The kernel command line has {len} bytes, more than the {limit} that the kernel takes")]
    CmdlineTooLong {
        /// Length in bytes.
        len: usize,
        /// Longest length in bytes.
        limit: usize,
    },
    /// The command line has text that cannot be passed on.
    #[error("The kernel command line has the character {character:?}, which is not printable ASCII")]
    CmdlineCharacter {
        /// The first such character.
        character: char,
    },
    /// The guest's memory has no RAM at address 0, or less than the boot data needs.
    #[error("The guest has {bytes} bytes of memory from address 0, too few to boot")]
    NoLowMemory {
        /// Contiguous bytes from address 0.
        bytes: u64,
    },
    /// More separate regions of RAM than the memory map holds.
    #[error("The guest's memory has {count} separate regions, more than the {limit} that its map holds")]
    TooManyRegions {
        /// Entries needed.
        count: usize,
        /// Entries possible.
        limit: usize,
    },
    /// The ACPI tables outgrow their place.
    #[error("The ACPI tables need {bytes} bytes, more than the {room} there are")]
    AcpiTooLarge {
        /// Bytes needed.
        bytes: u64,
        /// Bytes there are.
        room: u64,
    },
    /// The platform has no vCPU.
    #[error("The guest has no vCPU")]
    NoCpu,
    /// linux-loader could not write the boot parameters.
    #[error("Cannot write the boot parameters to guest memory")]
    BootParams(#[source] configurator::Error),
    /// Guest memory refused an access to an address that was checked before.
    #[error("Cannot write {what} to guest memory")]
    GuestMemory {
        /// The object that was being written.
        what: &'static str,
        /// The answer of guest memory.
        source: vm_memory::GuestMemoryError,
    },
}

impl Error {
    /// Advice to the user, as a sentence; `None` where the message is enough.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Compressed { tool, path, .. } => {
                return Some(format!("Decompress it first, for example with `{tool} {} > vmlinux`", path.display()));
            }
            Error::KernelDoesNotFit { end, .. } if *end > layout::RAM_BELOW_4G_END => {
                "Link the kernel below 3 GiB; the addresses behind belong to devices"
            }
            Error::KernelDoesNotFit { end, ram_end, .. } if end > ram_end => {
                let mib = end.div_ceil(1 << 20);
                return Some(format!(
                    "Give the guest more memory (at least {mib} MiB, more to run in), or use another kernel"
                ));
            }
            Error::KernelDoesNotFit { .. } => "Link the kernel at 1 MiB or above; the memory below holds boot data",
            Error::Read { source, .. } if source.kind() == io::ErrorKind::NotSeekable => "Pass a file, not a pipe",
            Error::Empty { .. } | Error::Truncated { .. } => "Fetch or build the file again",
            Error::Directory { .. } => "Pass a file",
            Error::NotAKernel { .. } | Error::BadElf { .. } => {
                "Pass a bzImage (such as /boot/vmlinuz-*) or an uncompressed ELF vmlinux"
            }
            Error::Elf32 { .. } | Error::ForeignMachine { .. } | Error::Only32Bit { .. } => {
                "Use a kernel built for x86-64"
            }
            Error::OldProtocol { .. } => "Use Linux 3.8 or newer",
            Error::BadBzImage { .. } => "Build the kernel again, or use one from a distribution",
            Error::InitrdTooLarge { needed_bytes: Some(bytes), .. } => {
                let mib = bytes.div_ceil(1 << 20);
                return Some(format!(
                    "Give the guest more memory (at least {mib} MiB, more to run in), or use a smaller initrd"
                ));
            }
            Error::InitrdTooLarge { needed_bytes: None, .. } => {
                "More memory does not help, as this kernel takes no initrd above its limit below 4 GiB: use a smaller \
                 initrd, \
                 or a bzImage that can be loaded above 4 GiB (CONFIG_RELOCATABLE), or put the files on a --disk"
            }
            Error::CmdlineTooLong { .. } => "Shorten the kernel command line",
            Error::CmdlineCharacter { .. } => "Use printable ASCII characters only",
            Error::NoLowMemory { .. } => "Give the guest more memory",
            Error::AcpiTooLarge { .. } => "Give the guest fewer vCPUs",
            Error::Read { .. }
            | Error::TooManyRegions { .. }
            | Error::NoCpu
            | Error::BootParams(_)
            | Error::GuestMemory { .. } => return None,
        };
        Some(hint.to_owned())
    }
}
