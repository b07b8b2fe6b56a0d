//! bzImage: the Linux boot protocol, entered at the 64-bit entry point.
//!
//! Follows Linux `Documentation/arch/x86/boot.rst`. The kernel unpacks itself, so any compression works. The
//! image is placed at the address it prefers: the kernel would move itself there anyway before it unpacks, and
//! placing it lower would not help a small guest, because a 64-bit kernel never unpacks below that address.
//!
//! linux-loader reads the same files, but hides the cause of a failed read and takes the whole rest of the
//! file for the kernel without looking at the sizes in the header; here only its structures are used.

use super::Span;
use crate::Error;
use crate::initrd::Reach;
use crate::source::Source;
use linux_loader::bootparam::{self, setup_header};
use vm_memory::{ByteValued, GuestMemoryMmap};

/// Where the setup header lies in the file, and in the zero page too.
const HEADER_OFFSET: usize = 0x1F1;
/// Where `HdrS` stands.
const SIGNATURE_OFFSET: usize = 0x202;
const SIGNATURE: [u8; 4] = *b"HdrS";
/// 2.12 brought `xloadflags`, which tell whether there is a 64-bit entry.
const OLDEST_PROTOCOL: u16 = 0x020C;
/// Distance of the 64-bit entry from the start of the protected-mode code.
const ENTRY_64_OFFSET: u64 = 0x200;
/// Bytes in a sector of the setup code.
const SECTOR: u64 = 512;
/// `setup_sects` means this when it is 0.
const DEFAULT_SETUP_SECTORS: u8 = 4;

/// A bzImage with a consistent header.
#[derive(Debug)]
pub(crate) struct BzImage {
    header: setup_header,
    /// Where the protected-mode code starts in the file.
    code_offset: u64,
    code_len: u64,
    load_addr: u64,
    end: u64,
}

/// Returns whether the first bytes of a file carry the Linux boot header.
pub(super) fn has_signature(start: &[u8]) -> bool {
    start.get(SIGNATURE_OFFSET..).is_some_and(|rest| rest.starts_with(&SIGNATURE))
}

impl BzImage {
    /// Checks the header. `source` has passed [`has_signature`].
    pub(super) fn parse(source: &Source<'_>) -> Result<Self, Error> {
        let header = read_header(source)?;
        let version = header.version;
        if version < OLDEST_PROTOCOL {
            let [minor, major] = version.to_le_bytes();
            return Err(Error::OldProtocol { path: source.path(), major, minor });
        }
        if header.xloadflags & bootparam::XLF_KERNEL_64 == 0 {
            return Err(Error::Only32Bit { path: source.path() });
        }
        if header.loadflags & bootparam::LOADED_HIGH == 0 {
            return Err(Error::BadBzImage { path: source.path(), reason: "it is not to be loaded high" });
        }
        let sectors = if header.setup_sects == 0 { DEFAULT_SETUP_SECTORS } else { header.setup_sects };
        let code_offset = (u64::from(sectors) + 1) * SECTOR;
        let code_len = u64::from(header.syssize) * 16;
        if code_len <= ENTRY_64_OFFSET {
            return Err(Error::BadBzImage { path: source.path(), reason: "it has no code" });
        }
        // What follows, such as the signature for secure boot, is no business of the guest's.
        source.check_len(code_offset + code_len)?;
        let load_addr = header.pref_address;
        let occupied = code_len.max(u64::from(header.init_size));
        let Some(end) = load_addr.checked_add(occupied) else {
            return Err(Error::BadBzImage { path: source.path(), reason: "its address is beyond all memory" });
        };
        Ok(Self { header, code_offset, code_len, load_addr, end })
    }

    pub(super) fn load(&self, ram: &GuestMemoryMmap, source: &Source<'_>) -> Result<(), Error> {
        source.copy_to(ram, self.load_addr, self.code_offset, self.code_len)
    }

    pub(super) fn span(&self) -> Span {
        Span { start: self.load_addr, end: self.end }
    }

    pub(super) fn initrd_reach(&self) -> Reach {
        let limit = u64::from(self.header.initrd_addr_max) + 1;
        let flags = self.header.xloadflags;
        if flags & bootparam::XLF_CAN_BE_LOADED_ABOVE_4G == 0 {
            Reach::Below(limit)
        } else {
            Reach::Anywhere { preferred: limit }
        }
    }

    pub(super) fn cmdline_limit(&self) -> usize {
        usize::try_from(self.header.cmdline_size).unwrap_or(usize::MAX)
    }

    /// The setup header as the file has it, for the zero page.
    pub(crate) fn header(&self) -> setup_header {
        self.header
    }

    /// Guest physical address of the 64-bit entry.
    pub(crate) fn entry(&self) -> u64 {
        self.load_addr + ENTRY_64_OFFSET
    }
}

/// Reads the setup header; fields that this kernel's version does not have are zero.
fn read_header(source: &Source<'_>) -> Result<setup_header, Error> {
    let mut header = setup_header::default();
    let bytes = header.as_mut_slice();
    source.read_at(bytes, HEADER_OFFSET as u64)?;
    // The second byte of the jump instruction at 0x200 is the distance from 0x202 to the end of the header.
    let header_len = SIGNATURE_OFFSET + usize::from(bytes[0x201 - HEADER_OFFSET]) - HEADER_OFFSET;
    if let Some(beyond) = bytes.get_mut(header_len..) {
        beyond.fill(0);
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::super::Kernel;
    use super::*;
    use crate::tests::{BzImageBuilder, image};

    fn parse(bytes: &[u8]) -> Result<BzImage, Error> {
        let image = image(bytes);
        match Kernel::parse(&Source::new(&image).unwrap())? {
            Kernel::BzImage(kernel) => Ok(kernel),
            other => panic!("not a bzImage: {other:?}"),
        }
    }

    #[test]
    fn good_image_is_placed_at_its_preferred_address() {
        let kernel = parse(&BzImageBuilder::default().build()).unwrap();
        assert_eq!(kernel.span(), Span { start: 0x100_0000, end: 0x180_0000 });
        assert_eq!(kernel.entry(), 0x100_0200);
        assert_eq!(kernel.initrd_reach(), Reach::Below(0x8000_0000));
        assert_eq!(kernel.cmdline_limit(), 2047);
    }

    #[test]
    fn initrd_may_be_anywhere_if_the_kernel_says_so() {
        let builder = BzImageBuilder { xloadflags: 3, ..Default::default() };
        assert_eq!(parse(&builder.build()).unwrap().initrd_reach(), Reach::Anywhere { preferred: 0x8000_0000 });
    }

    #[test]
    fn signature_behind_the_code_does_not_disturb() {
        let mut bytes = BzImageBuilder::default().build();
        bytes.extend_from_slice(&[0xAA; 3000]);
        assert_eq!(parse(&bytes).unwrap().code_len, 0x1000);
    }

    #[test]
    fn setup_sectors_of_zero_mean_four() {
        let builder = BzImageBuilder { setup_sects: 0, ..Default::default() };
        assert_eq!(parse(&builder.build()).unwrap().code_offset, 5 * 512);
    }

    #[test]
    fn header_fields_of_later_versions_are_cleared() {
        let builder = BzImageBuilder { header_end: 0x264, ..Default::default() };
        let mut bytes = builder.build();
        bytes[0x264..0x26C].fill(0xCC);
        let handover_offset = parse(&bytes).unwrap().header().handover_offset;
        assert_eq!(handover_offset, 0);
    }

    #[test]
    fn old_protocol_is_refused() {
        let error = parse(&BzImageBuilder { version: 0x020A, ..Default::default() }.build()).unwrap_err();
        assert_eq!(error.to_string(), "kernel speaks boot protocol 2.10, older than 2.12");
    }

    #[test]
    fn kernel_without_64_bit_entry_is_refused() {
        let error = parse(&BzImageBuilder { xloadflags: 0, ..Default::default() }.build()).unwrap_err();
        assert!(matches!(error, Error::Only32Bit { .. }));
    }

    #[test]
    fn zimage_is_refused() {
        let error = parse(&BzImageBuilder { loadflags: 0, ..Default::default() }.build()).unwrap_err();
        assert!(matches!(error, Error::BadBzImage { .. }));
    }

    #[test]
    fn image_without_code_is_refused() {
        let error = parse(&BzImageBuilder { syssize: 0, ..Default::default() }.build()).unwrap_err();
        assert!(matches!(error, Error::BadBzImage { .. }));
    }

    #[test]
    fn preferred_address_that_wraps_is_refused() {
        let error = parse(&BzImageBuilder { pref_address: u64::MAX, ..Default::default() }.build()).unwrap_err();
        assert!(matches!(error, Error::BadBzImage { .. }));
    }

    #[test]
    fn truncated_image_is_refused_at_any_length() {
        let bytes = BzImageBuilder::default().build();
        for len in [0x206, 0x250, 0x400, 0x401, bytes.len() - 1] {
            assert!(matches!(parse(&bytes[..len]), Err(Error::Truncated { .. })), "length {len:#x}");
        }
    }
}
