//! Kernel files: their formats, and refusals of all others.
//!
//! The format is told from the content, never from the name. Three formats boot; each has a variant of
//! [`Kernel`] and a file below `kernel/`.

mod bzimage;
mod elf;

use crate::initrd::Reach;
use crate::source::Source;
use crate::{Error, layout};
use vm_memory::GuestMemoryMmap;

pub(crate) use bzimage::BzImage;
pub(crate) use elf::Elf;

/// A kernel that has been checked against its own headers, but not yet against the guest's memory.
#[derive(Debug)]
pub(crate) enum Kernel {
    /// Linux's own packaging; starts at its 64-bit entry.
    BzImage(BzImage),
    /// ELF with a PVH note; starts in 32-bit protected mode.
    Pvh(Elf),
    /// ELF without such a note; starts in 64-bit mode like a bzImage.
    Elf64(Elf),
}

/// Guest physical addresses that a kernel occupies until it has set up its own memory management.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// First address.
    pub(crate) start: u64,
    /// First address behind it.
    pub(crate) end: u64,
}

impl Kernel {
    /// Tells the format of `source` and checks its headers. Total: any bytes give a kernel or a refusal.
    pub(crate) fn parse(source: &Source<'_>) -> Result<Self, Error> {
        let mut start = [0; SNIFFED_BYTES];
        let len = source.read_start(&mut start)?;
        let start = &start[..len];
        if start.starts_with(b"\x7FELF") {
            let elf = Elf::parse(source)?;
            return Ok(if elf.has_pvh_entry() { Kernel::Pvh(elf) } else { Kernel::Elf64(elf) });
        }
        if bzimage::has_signature(start) {
            return BzImage::parse(source).map(Kernel::BzImage);
        }
        for (magic, method, tool) in COMPRESSIONS {
            if start.starts_with(magic) {
                return Err(Error::Compressed { path: source.path(), method, tool });
            }
        }
        Err(Error::NotAKernel { path: source.path(), found: describe(start) })
    }

    /// Copies the kernel to where it wants to be, if the guest has RAM there.
    ///
    /// `ram_end` is the end of the low RAM.
    pub(crate) fn load(&self, ram: &GuestMemoryMmap, source: &Source<'_>, ram_end: u64) -> Result<(), Error> {
        let Span { start, end } = self.span();
        if start < layout::HIGH_RAM_BASE || end > ram_end {
            return Err(Error::KernelDoesNotFit { path: source.path(), start, end, ram_end });
        }
        match self {
            Kernel::BzImage(kernel) => kernel.load(ram, source),
            Kernel::Pvh(kernel) | Kernel::Elf64(kernel) => kernel.load(ram, source),
        }
    }

    /// The addresses that the kernel occupies; `start < end`.
    pub(crate) fn span(&self) -> Span {
        match self {
            Kernel::BzImage(kernel) => kernel.span(),
            Kernel::Pvh(kernel) | Kernel::Elf64(kernel) => kernel.span(),
        }
    }

    /// Where an initrd may be. Linux keeps 32 bits of the address in a PVH module list
    /// (arch/x86/platform/pvh/enlighten.c), and an ELF file does not say what its kernel takes.
    pub(crate) fn initrd_reach(&self) -> Reach {
        match self {
            Kernel::BzImage(kernel) => kernel.initrd_reach(),
            Kernel::Pvh(_) | Kernel::Elf64(_) => Reach::Below(layout::RAM_BELOW_4G_END),
        }
    }

    /// The longest command line that the kernel takes, in bytes without the terminating zero.
    pub(crate) fn cmdline_limit(&self) -> usize {
        match self {
            Kernel::BzImage(kernel) => kernel.cmdline_limit(),
            Kernel::Pvh(_) | Kernel::Elf64(_) => crate::cmdline::CMDLINE_CAPACITY - 1,
        }
    }
}

/// Bytes that tell the format: the signature of the Linux boot header ends at 0x206.
const SNIFFED_BYTES: usize = 0x206;

/// First bytes of compressed files, the name of the compression, the command that writes the content to its output.
const COMPRESSIONS: [(&[u8], &str, &str); 8] = [
    (b"\x1F\x8B", "gzip", "gzip -dc"),
    (b"\xFD7zXZ\0", "xz", "xz -dc"),
    (b"\x28\xB5\x2F\xFD", "zstd", "zstd -dc"),
    (b"\x04\x22\x4D\x18", "lz4", "lz4 -dc"),
    (b"\x02\x21\x4C\x18", "lz4", "lz4 -dc"),
    (b"BZh", "bzip2", "bzip2 -dc"),
    (b"\x5D\0\0", "lzma", "xz --format=lzma -dc"),
    (b"\x89LZO\0", "lzo", "lzop -dc"),
];

/// First bytes of what people pass by mistake.
const MISTAKES: [(usize, &[u8], &str); 6] = [
    (0, b"070701", "a cpio archive (an initrd?)"),
    (0, b"070702", "a cpio archive (an initrd?)"),
    (0, b"QFI\xFB", "a qcow2 disk image"),
    (0, b"#!", "a script"),
    (0x38, b"ARM\x64", "a kernel image for arm64"),
    (0, b"MZ", "an EFI program without a Linux boot header"),
];

fn describe(start: &[u8]) -> &'static str {
    let is_at = |offset: usize, magic: &[u8]| start.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    let known = MISTAKES.iter().find(|(offset, magic, _)| is_at(*offset, magic));
    known.map_or("something unknown", |(_, _, found)| found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::image;

    fn refusal(bytes: &[u8]) -> Error {
        let image = image(bytes);
        Kernel::parse(&Source::new(&image).unwrap()).unwrap_err()
    }

    #[test]
    fn every_compression_is_named_with_its_tool() {
        for (magic, method, tool) in COMPRESSIONS {
            let error = refusal(&[magic, &[0; 600]].concat());
            assert_eq!(error.to_string(), format!("kernel is compressed with {method}"));
            assert!(error.hint().unwrap().contains(tool));
        }
    }

    #[test]
    fn common_mistakes_are_named() {
        for (offset, magic, found) in MISTAKES {
            let error = refusal(&[&vec![0; offset], magic, &[0; 600]].concat());
            assert_eq!(error.to_string(), format!("kernel is not a Linux kernel but {found}"));
        }
    }

    #[test]
    fn one_byte_is_not_a_kernel() {
        assert!(matches!(refusal(b"x"), Error::NotAKernel { found: "something unknown", .. }));
    }
}
