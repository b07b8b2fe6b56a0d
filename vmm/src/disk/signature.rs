//! Files that hold a disk in another form than its sectors: images of other hypervisors, and compressed ones.
//!
//! Told by the signatures that their specifications put at a fixed place. The answer only refuses a start: it never
//! changes how a disk is read, so what a guest writes to its disk cannot have the host read another file than the user
//! named. Not told: LUKS and file systems, which a guest uses on its disk as they are, and formats without a signature,
//! such as LZMA's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes at the start that hold all signatures there.
const START_BYTES: usize = 512;
/// Footers lie in the last sector.
const FOOTER_BYTES: u64 = 512;

/// The disk descriptor that some VMDK images begin with.
const VMDK_DESCRIPTOR: &[u8] = b"# Disk DescriptorFile";
/// Bytes of a name in a tar archive.
const TAR_NAME_BYTES: usize = 100;

/// Where a signature stands.
enum Place {
    /// At this offset.
    At(usize),
    /// At the start of the last sector.
    Footer,
}

/// A form in which a file can hold a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Container {
    /// Its name, with an article.
    pub(super) name: &'static str,
    /// How its disk is had.
    tool: Tool,
}

/// The tool that makes a raw image of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    /// qemu-img, with its name for the format.
    QemuImg(&'static str),
    /// A command that writes to its output.
    Pipe(&'static str),
    /// A command with the names of both files.
    Files(&'static str),
    /// A command that brings images out of it.
    Archive(&'static str),
}

const fn image(name: &'static str, format: &'static str) -> Container {
    Container { name, tool: Tool::QemuImg(format) }
}

const fn packed(name: &'static str, command: &'static str) -> Container {
    Container { name, tool: Tool::Pipe(command) }
}

const BZIP2: Container = packed("compressed with bzip2", "bzip2 -dc <");
const OVA: Container = Container { name: "an OVA archive", tool: Tool::Archive("tar -xf") };

/// All that have a signature of fixed bytes. Sources: QEMU's docs/interop and block drivers, and the specifications of
/// the compressions.
const SIGNATURES: [(Place, &[u8], Container); 23] = [
    (Place::At(0), b"QFI\xfb\0\0\0\x01", image("a qcow image", "qcow")),
    (Place::At(0), b"QFI\xfb", image("a qcow2 image", "qcow2")),
    (Place::At(0), b"QED\0", image("a QED image", "qed")),
    (Place::At(0), b"KDMV", image("a VMDK image", "vmdk")),
    (Place::At(0), b"COWD", image("a VMDK image", "vmdk")),
    (Place::At(0), VMDK_DESCRIPTOR, image("a VMDK image", "vmdk")),
    (Place::At(64), b"\x7f\x10\xda\xbe", image("a VDI image", "vdi")),
    (Place::At(0), b"vhdxfile", image("a VHDX image", "vhdx")),
    (Place::At(0), b"conectix", image("a VHD image", "vpc")),
    (Place::Footer, b"conectix", image("a VHD image", "vpc")),
    (Place::At(0), b"WithoutFreeSpace", image("a Parallels image", "parallels")),
    (Place::At(0), b"WithouFreSpacExt", image("a Parallels image", "parallels")),
    (Place::At(0), b"Bochs Virtual HD Image", image("a Bochs image", "bochs")),
    (Place::Footer, b"koly\0\0\0\x04", image("a DMG image", "dmg")),
    (Place::At(0), b"\x3a\xff\x26\xed", Container { name: "an Android sparse image", tool: Tool::Files("simg2img") }),
    (Place::At(0), b"\x1f\x8b\x08", packed("compressed with gzip", "gzip -dc <")),
    (Place::At(0), b"\xfd7zXZ\0", packed("compressed with xz", "xz -dc <")),
    (Place::At(0), b"\x28\xb5\x2f\xfd", packed("compressed with zstd", "zstd -dc <")),
    (Place::At(0), b"\x04\x22\x4d\x18", packed("compressed with lz4", "lz4 -dc <")),
    (Place::At(0), b"LZIP\x01", packed("compressed with lzip", "lzip -dc <")),
    (Place::At(0), b"\x89LZO\0\r\n\x1a\n", packed("compressed with lzop", "lzop -dc <")),
    (Place::At(0), b"PK\x03\x04", Container { name: "a ZIP archive", tool: Tool::Archive("unzip") }),
    (Place::At(0), b"7z\xbc\xaf\x27\x1c", Container { name: "a 7z archive", tool: Tool::Archive("7z x") }),
];

impl Container {
    /// The commands that make a raw image of the file at `path`.
    pub(super) fn conversion(self, path: &Path) -> String {
        let path = path.display();
        match self.tool {
            Tool::QemuImg(format) => format!("qemu-img convert -f {format} -O raw {path} {path}.raw"),
            Tool::Pipe(command) => format!("{command} {path} > {path}.raw"),
            Tool::Files(command) => format!("{command} {path} {path}.raw"),
            Tool::Archive(command) => format!("{command} {path}, then qemu-img convert -O raw the image in it"),
        }
    }
}

/// The container that the file of `len` bytes is, if it is one.
///
/// # Errors
/// If the host fails to read.
pub(super) fn container(file: &File, len: u64) -> io::Result<Option<Container>> {
    let start = read(file, 0, len)?;
    let footer = read(file, len.saturating_sub(FOOTER_BYTES), len)?;
    let found = SIGNATURES.iter().find(|(place, signature, _)| match place {
        Place::At(at) => start.get(*at..).is_some_and(|rest| rest.starts_with(signature)),
        Place::Footer => footer.starts_with(signature),
    });
    let bzip2 = || is_bzip2(&start).then_some(BZIP2);
    Ok(found.map(|(_, _, container)| *container).or_else(bzip2).or_else(|| is_ova(&start).then_some(OVA)))
}

/// The first bytes from `offset` on, as far as a file of `len` bytes has them.
fn read(file: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let count = usize::try_from(len - offset).unwrap_or(START_BYTES).min(START_BYTES);
    let mut bytes = vec![0; count];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// Its header has a digit for the block size, then the first block's magic number.
fn is_bzip2(start: &[u8]) -> bool {
    let Some([b'B', b'Z', b'h', b'1'..=b'9', block @ ..]) = start.first_chunk::<10>() else { return false };
    block == b"1AY&SY"
}

/// A tar archive whose first file is an OVF descriptor. Any other archive may be what a guest has written to its disk
/// on purpose.
fn is_ova(start: &[u8]) -> bool {
    let name = start.get(..TAR_NAME_BYTES).unwrap_or_default();
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    name.ends_with(b".ovf") && start.get(257..).is_some_and(|rest| rest.starts_with(b"ustar"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn found(bytes: &[u8]) -> Option<&'static str> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        container(&file, bytes.len() as u64).unwrap().map(|container| container.name)
    }

    fn at(offset: usize, signature: &[u8], len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[offset..offset + signature.len()].copy_from_slice(signature);
        bytes
    }

    #[test]
    fn every_signature_is_found_in_a_file_of_whole_sectors_and_in_a_shorter_one() {
        for (place, signature, container) in &SIGNATURES {
            let (offset, footer) = match place {
                Place::At(offset) => (*offset, 0),
                Place::Footer => (4096 - 512, 4096 - 512),
            };
            assert_eq!(found(&at(offset, signature, 4096)), Some(container.name));
            assert_eq!(found(&at(offset - footer, signature, 100)), Some(container.name));
        }
        assert_eq!(found(b"BZh91AY&SY and more"), Some("compressed with bzip2"));
    }

    #[test]
    fn ova_is_told_from_other_archives() {
        let tar = |name: &str| {
            let mut bytes = at(257, b"ustar\x0000", 1024);
            bytes[..name.len()].copy_from_slice(name.as_bytes());
            found(&bytes)
        };
        assert_eq!(tar("vm.ovf"), Some("an OVA archive"));
        assert_eq!(tar("results.xml"), None);
    }

    #[test]
    fn what_a_guest_has_on_its_disk_is_raw() {
        let ext4 = at(1080, b"\x53\xef", 4096);
        let mbr = at(510, b"\x55\xaa", 512);
        for raw in [&at(0, b"LUKS\xba\xbe", 4096), &ext4, &mbr, &vec![0; 512], &vec![0xff; 700], &b"BZh9".to_vec()] {
            assert_eq!(found(raw), None);
        }
        assert_eq!(found(b""), None);
    }

    #[test]
    fn conversion_names_both_files() {
        let text = |signature: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(signature).unwrap();
            let found = container(&file, signature.len() as u64).unwrap().unwrap();
            found.conversion(Path::new("a"))
        };
        assert_eq!(text(b"QFI\xfb\0\0\0\x03"), "qemu-img convert -f qcow2 -O raw a a.raw");
        assert_eq!(text(b"QFI\xfb\0\0\0\x01"), "qemu-img convert -f qcow -O raw a a.raw");
        assert_eq!(text(b"\x1f\x8b\x08\0"), "gzip -dc < a > a.raw");
        assert_eq!(text(b"\x3a\xff\x26\xed"), "simg2img a a.raw");
    }
}
