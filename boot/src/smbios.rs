//! SMBIOS tables: what the machine is called, and strings for programs in the guest (DMTF DSP0134, version 3.2).
//!
//! Linux shows them as `/sys/class/dmi/id/*` and `/sys/firmware/dmi/tables`. Without EFI it looks for the entry point
//! on each 16-byte boundary of 0xF_0000 to 0xF_FFFF; that and the structures are in [`layout::SMBIOS`].
//!
//! There is neither a processor nor a memory device in them: a guest has better sources, and nothing here would keep
//! them true.

use crate::{Error, layout};
use thiserror::Error as ThisError;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes of the 64-bit entry point (5.2.2), padded to the boundary that the structures begin at.
const ENTRY_LENGTH: u8 = 24;
const ENTRY_BYTES: usize = ENTRY_LENGTH as usize;
const STRUCTURES_AT: u64 = layout::SMBIOS.base + 32;
const STRUCTURES_MAX_BYTES: u64 = layout::SMBIOS.end() - STRUCTURES_AT;

/// The version that the structures follow.
const VERSION: [u8; 2] = [3, 2];

/// BIOS characteristics (7.1.1): bit 3, "not supported".
const NO_CHARACTERISTICS: u64 = 1 << 3;
/// BIOS characteristics extension byte 2 (7.1.2.2): bit 4, "the table describes a virtual machine".
const VIRTUAL_MACHINE: u8 = 1 << 4;
/// A release that is not told (7.1).
const NO_RELEASE: u8 = 0xFF;
/// Wake-up type (7.2.2): the power switch.
const POWER_SWITCH: u8 = 6;

/// Type, length and handle (6.1.2).
const HEADER_LENGTH: u8 = 4;

/// Structure types (clause 7).
const BIOS_INFORMATION: u8 = 0;
const SYSTEM_INFORMATION: u8 = 1;
const OEM_STRINGS: u8 = 11;
const END_OF_TABLE: u8 = 127;

/// The strings of the system information and the OEM strings. An empty string is not told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemInfo {
    /// Who made it: `sys_vendor`.
    pub vendor: String,
    /// Its kind: `product_name`.
    pub product: String,
    /// Its version: `product_version`.
    pub version: String,
    /// Its serial number: `product_serial`.
    pub serial: String,
    /// Its UUID in the order in which it is written: `product_uuid`.
    pub uuid: [u8; 16],
    /// Its stock-keeping unit: `product_sku`.
    pub sku: String,
    /// Its family: `product_family`.
    pub family: String,
    /// OEM strings, in order.
    pub oem: Vec<String>,
}

/// A machine that cannot be described.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub enum BadSystemInfo {
    /// More than fits.
    #[error("The SMBIOS strings need {bytes} bytes, more than the {STRUCTURES_MAX_BYTES} there are")]
    TooLong {
        /// Bytes needed.
        bytes: usize,
    },
    /// More OEM strings than their number can be told.
    #[error("{count} OEM strings are more than the 255 that a structure has")]
    TooManyStrings {
        /// Their number.
        count: usize,
    },
    /// A string that a structure cannot hold.
    #[error("{text:?} has a control character")]
    Control {
        /// The string.
        text: String,
    },
    /// An OEM string without text would end the list.
    #[error("An OEM string is empty")]
    Empty,
}

/// Tables that fit.
#[derive(Clone, Debug)]
pub struct Smbios {
    structures: Vec<u8>,
}

impl Smbios {
    /// The tables for `info`.
    ///
    /// # Errors
    /// If a string has a control character, or they are too many or too long.
    pub fn new(info: &SystemInfo) -> Result<Self, BadSystemInfo> {
        let count =
            u8::try_from(info.oem.len()).map_err(|_| BadSystemInfo::TooManyStrings { count: info.oem.len() })?;
        let mut table = Table::default();
        table.structure(BIOS_INFORMATION, |s| {
            s.string(&info.vendor)?;
            s.string(&info.version)?;
            // Start segment, release date and ROM size: there is no ROM.
            s.bytes(&[0; 4]);
            s.bytes(&NO_CHARACTERISTICS.to_le_bytes());
            s.bytes(&[0, VIRTUAL_MACHINE, NO_RELEASE, NO_RELEASE, NO_RELEASE, NO_RELEASE]);
            Ok(())
        })?;
        table.structure(SYSTEM_INFORMATION, |s| {
            for text in [&info.vendor, &info.product, &info.version, &info.serial] {
                s.string(text)?;
            }
            s.bytes(&wire_order(info.uuid));
            s.bytes(&[POWER_SWITCH]);
            s.string(&info.sku)?;
            s.string(&info.family)
        })?;
        if count > 0 {
            table.structure(OEM_STRINGS, |s| {
                s.bytes(&[count]);
                info.oem
                    .iter()
                    .try_for_each(|text| if text.is_empty() { Err(BadSystemInfo::Empty) } else { s.text(text) })
            })?;
        }
        table.structure(END_OF_TABLE, |_| Ok(()))?;
        let structures = table.0;
        if structures.len() as u64 > STRUCTURES_MAX_BYTES {
            return Err(BadSystemInfo::TooLong { bytes: structures.len() });
        }
        Ok(Self { structures })
    }

    /// Writes the entry point and the structures to [`layout::SMBIOS`].
    pub(crate) fn write(&self, ram: &GuestMemoryMmap) -> Result<(), Error> {
        let failed = |source| Error::GuestMemory { what: "SMBIOS tables", source };
        ram.write_slice(&self.entry_point(), GuestAddress(layout::SMBIOS.base)).map_err(failed)?;
        ram.write_slice(&self.structures, GuestAddress(STRUCTURES_AT)).map_err(failed)
    }

    /// Anchor, checksum, length, version, document revision, entry point revision, a reserved byte, size, address.
    fn entry_point(&self) -> [u8; ENTRY_BYTES] {
        let mut entry = [0; ENTRY_BYTES];
        entry[..5].copy_from_slice(b"_SM3_");
        entry[6..12].copy_from_slice(&[ENTRY_LENGTH, VERSION[0], VERSION[1], 0, 1, 0]);
        entry[12..16].copy_from_slice(&layout::below_4g(self.structures.len() as u64).to_le_bytes());
        entry[16..].copy_from_slice(&STRUCTURES_AT.to_le_bytes());
        entry[5] = entry.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
        entry
    }
}

/// A UUID as SMBIOS has it (7.2.1): the first three fields little-endian.
fn wire_order(uuid: [u8; 16]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = uuid;
    let mut wire = [d, c, b, a, f, e, h, g, 0, 0, 0, 0, 0, 0, 0, 0];
    wire[8..].copy_from_slice(&rest);
    wire
}

/// The structures as bytes. A handle is the number of structures before it.
#[derive(Default)]
struct Table(Vec<u8>, u16);

impl Table {
    fn structure(
        &mut self,
        kind: u8,
        fill: impl FnOnce(&mut Structure) -> Result<(), BadSystemInfo>,
    ) -> Result<(), BadSystemInfo> {
        let mut structure = Structure::default();
        fill(&mut structure)?;
        let Structure { formatted, strings, .. } = structure;
        let Self(bytes, handle) = self;
        // The longest formatted area here has 23 bytes.
        let formatted_length = u8::try_from(formatted.len()).unwrap_or(u8::MAX - HEADER_LENGTH);
        bytes.push(kind);
        bytes.push(HEADER_LENGTH + formatted_length);
        bytes.extend(handle.to_le_bytes());
        bytes.extend(formatted);
        // The set of strings ends with an empty one; without any, that takes two bytes all the same.
        if strings.is_empty() {
            bytes.push(0);
        }
        bytes.extend(strings);
        bytes.push(0);
        *handle += 1;
        Ok(())
    }
}

/// One structure without its header.
#[derive(Default)]
struct Structure {
    formatted: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    fn bytes(&mut self, bytes: &[u8]) {
        self.formatted.extend(bytes);
    }

    /// A field that has the number of a string, or 0 for one that is not told.
    fn string(&mut self, text: &str) -> Result<(), BadSystemInfo> {
        if text.is_empty() {
            self.formatted.push(0);
            return Ok(());
        }
        self.text(text)?;
        self.count += 1;
        self.formatted.push(self.count);
        Ok(())
    }

    /// A string that no field names.
    fn text(&mut self, text: &str) -> Result<(), BadSystemInfo> {
        if text.chars().any(char::is_control) {
            return Err(BadSystemInfo::Control { text: text.to_owned() });
        }
        self.strings.extend(text.as_bytes());
        self.strings.push(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::ram_of;

    fn info() -> SystemInfo {
        SystemInfo {
            vendor: "maker".into(),
            product: "thing".into(),
            version: "1".into(),
            uuid: std::array::from_fn(|i| u8::try_from(i).unwrap()),
            oem: vec!["one".into(), "two=2,3".into()],
            ..Default::default()
        }
    }

    /// Type, formatted area and strings of each structure, read as a guest does from the entry point on.
    fn structures(info: &SystemInfo) -> Vec<(u8, Vec<u8>, Vec<String>)> {
        let ram = ram_of(2 << 20);
        Smbios::new(info).unwrap().write(&ram).unwrap();
        let mut area = vec![0; usize::try_from(0x10_0000 - layout::SMBIOS.base).unwrap()];
        ram.read_slice(&mut area, GuestAddress(layout::SMBIOS.base)).unwrap();
        assert_eq!(&area[..5], b"_SM3_");
        assert_eq!(area[..24].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(u64::from_le_bytes(area[16..24].try_into().unwrap()), layout::SMBIOS.base + 32);
        let len = u32::from_le_bytes(area[12..16].try_into().unwrap()) as usize;
        let mut rest = &area[32..32 + len];
        let mut found = Vec::new();
        while let [kind, length, ..] = *rest {
            let (formatted, behind) = rest.split_at(usize::from(length));
            let end = behind.windows(2).position(|pair| pair == [0, 0]).unwrap();
            let strings = behind[..end].split(|byte| *byte == 0).filter(|text| !text.is_empty());
            let strings = strings.map(|text| String::from_utf8(text.to_vec()).unwrap()).collect();
            found.push((kind, formatted.to_vec(), strings));
            rest = &behind[end + 2..];
        }
        found
    }

    #[test]
    fn system_information_names_its_strings_and_the_uuid_in_wire_order() {
        let found = structures(&info());
        let kinds: Vec<u8> = found.iter().map(|(kind, ..)| *kind).collect();
        assert_eq!(kinds, [0, 1, 11, 127]);
        let (_, system, strings) = &found[1];
        assert_eq!(system.len(), 27);
        assert_eq!(system[4..8], [1, 2, 3, 0]);
        assert_eq!(system[8..24], [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(system[24..], [6, 0, 0]);
        assert_eq!(strings, &["maker", "thing", "1"]);
        assert_eq!((found[0].1.len(), found[0].1[19]), (24, 0x10));
    }

    #[test]
    fn oem_strings_are_kept_as_they_are_and_in_order() {
        let found = structures(&info());
        assert_eq!((&found[2].1[4..], &found[2].2[..]), (&[2][..], &["one".to_owned(), "two=2,3".to_owned()][..]));
        let kinds: Vec<u8> = structures(&SystemInfo { oem: vec![], ..info() }).iter().map(|(kind, ..)| *kind).collect();
        assert_eq!(kinds, [0, 1, 127]);
    }

    #[test]
    fn strings_without_room_too_many_or_with_control_characters_are_refused() {
        let with = |oem: Vec<String>| Smbios::new(&SystemInfo { oem, ..info() }).map(|_| ());
        assert!(with(vec!["x".repeat(32_000)]).is_ok());
        assert!(matches!(with(vec!["x".repeat(33_000)]), Err(BadSystemInfo::TooLong { .. })));
        assert!(with(vec!["x".into(); 255]).is_ok());
        assert_eq!(with(vec!["x".into(); 256]), Err(BadSystemInfo::TooManyStrings { count: 256 }));
        assert_eq!(with(vec![String::new()]), Err(BadSystemInfo::Empty));
        for text in ["a\0b", "a\nb", "\u{7f}"] {
            assert!(matches!(with(vec![text.into()]), Err(BadSystemInfo::Control { .. })), "{text:?}");
        }
    }
}
