//! The payload of a bzImage. Follows the x86 boot protocol (kernel: Documentation/arch/x86/boot.rst, fields
//! `setup_sects`, `payload_offset`, `payload_length`, protocol 2.08). Total and pure: any bytes give a payload or a
//! refusal.

use std::fmt;

const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PROTOCOL_VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR_BYTES: usize = 512;
/// `setup_sects` of zero means four, for the oldest loaders' sake.
const DEFAULT_SETUP_SECTS: usize = 4;
/// The first protocol with the payload fields.
const PAYLOAD_PROTOCOL: u16 = 0x0208;

/// Why a file is refused as a bzImage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No `HdrS` where it belongs.
    NoHeader,
    /// A boot protocol before 2.08.
    OldProtocol,
    /// The payload lies outside the file.
    Truncated,
    /// The payload is compressed by something unknown.
    UnknownCompression,
    /// The unpacked payload is not an ELF file of the announced size.
    NotElf,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoHeader => "it has no boot protocol header",
            Self::OldProtocol => "its boot protocol is older than 2.08",
            Self::Truncated => "its payload lies outside the file",
            Self::UnknownCompression => "its payload is compressed by an unknown method",
            Self::NotElf => "its payload is not an ELF file of the announced size",
        })
    }
}

/// How a payload is unpacked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// It is stored as it is.
    Stored,
    /// The command that unpacks it from a pipe with `-dc`.
    Tool(&'static str),
}

/// The compressed kernel in a bzImage.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Payload<'a> {
    /// Its compression.
    pub(crate) method: Method,
    /// The compressed bytes.
    pub(crate) data: &'a [u8],
    /// The announced size of the kernel.
    pub(crate) unpacked_bytes: u32,
}

/// Finds the payload. The kernel's build appends the unpacked size as 32 bits to whatever the compressor gave, except
/// for gzip, whose own last field is just that.
pub(crate) fn payload(image: &[u8]) -> Result<Payload<'_>, Refusal> {
    if image.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
        return Err(Refusal::NoHeader);
    }
    let version = field(image, PROTOCOL_VERSION).map(u16::from_le_bytes).ok_or(Refusal::NoHeader)?;
    if version < PAYLOAD_PROTOCOL {
        return Err(Refusal::OldProtocol);
    }
    let sectors = match image.get(SETUP_SECTS).copied().ok_or(Refusal::NoHeader)? {
        0 => DEFAULT_SETUP_SECTS,
        count => usize::from(count),
    };
    let size_field = |offset| {
        let value = field(image, offset).map(u32::from_le_bytes).ok_or(Refusal::NoHeader)?;
        usize::try_from(value).map_err(|_| Refusal::Truncated)
    };
    let start = ((sectors + 1) * SECTOR_BYTES).checked_add(size_field(PAYLOAD_OFFSET)?).ok_or(Refusal::Truncated)?;
    let end = start.checked_add(size_field(PAYLOAD_LENGTH)?).ok_or(Refusal::Truncated)?;
    let whole = image.get(start..end).ok_or(Refusal::Truncated)?;
    let (data, last) = whole.split_last_chunk::<4>().ok_or(Refusal::Truncated)?;
    let unpacked_bytes = u32::from_le_bytes(*last);

    let appended = |method| Ok(Payload { method, data, unpacked_bytes });
    match whole {
        [0x1f, 0x8b, ..] => Ok(Payload { method: Method::Tool("gzip"), data: whole, unpacked_bytes }),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => appended(Method::Tool("zstd")),
        [0x02, 0x21, 0x4c, 0x18, ..] => appended(Method::Tool("lz4")),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] | [0x5d, 0, 0, ..] => appended(Method::Tool("xz")),
        [b'B', b'Z', b'h', ..] => appended(Method::Tool("bzip2")),
        [0x7f, b'E', b'L', b'F', ..] => appended(Method::Stored),
        _ => Err(Refusal::UnknownCompression),
    }
}

fn field<const N: usize>(image: &[u8], offset: usize) -> Option<[u8; N]> {
    image.get(offset..offset + N)?.try_into().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A bzImage of one setup sector with this payload 16 bytes into the second part.
    pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0_u8; 2 * SECTOR_BYTES + 16];
        image[SETUP_SECTS] = 1;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[PROTOCOL_VERSION..PROTOCOL_VERSION + 2].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        let len = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&len.to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn zstd_payload_loses_the_appended_size() {
        let image = bzimage(&[0x28, 0xb5, 0x2f, 0xfd, 9, 9, 5, 0, 0, 0]);
        let found = payload(&image).unwrap();
        let data: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd, 9, 9];
        assert_eq!(found, Payload { method: Method::Tool("zstd"), data, unpacked_bytes: 5 });
    }

    #[test]
    fn gzip_payload_stays_whole() {
        let image = bzimage(&[0x1f, 0x8b, 8, 7, 0, 0, 0]);
        let found = payload(&image).unwrap();
        assert_eq!((found.data.len(), found.unpacked_bytes), (7, 7));
    }

    #[test]
    fn refusals_name_the_reason() {
        let mut old = bzimage(b"BZh9....");
        old[PROTOCOL_VERSION..PROTOCOL_VERSION + 2].copy_from_slice(&0x0207_u16.to_le_bytes());
        let whole = bzimage(b"BZh9....");
        assert_eq!(payload(b"\x7fELF"), Err(Refusal::NoHeader));
        assert_eq!(payload(&old), Err(Refusal::OldProtocol));
        assert_eq!(payload(&whole[..whole.len() - 1]), Err(Refusal::Truncated));
        assert_eq!(payload(&bzimage(b"????????")), Err(Refusal::UnknownCompression));
        assert_eq!(payload(&bzimage(b"BZ")), Err(Refusal::Truncated));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_a_payload_or_a_refusal(mut image in proptest::collection::vec(0_u8..=255, 0x250..0x900)) {
            image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
            let _ = payload(&image);
        }
    }
}
