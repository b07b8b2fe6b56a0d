//! The backend of a block device: a raw image or a host block device, whatever the caller has opened.
//!
//! Works in sectors of 512 bytes (virtio 1.3 5.2.5.2). Nothing here blocks for ever except the host's disk. The file keeps its
//! length: no operation goes past its end.

use crate::virtio::iovec::IoVecs;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

/// Bytes in a sector.
pub const SECTOR_BYTES: u64 = 512;

/// Zeros per write where the host cannot zero a range by itself.
const ZEROS_BYTES: usize = 64 << 10;
static ZEROS: [u8; ZEROS_BYTES] = [0; ZEROS_BYTES];

/// What the guest may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read, write and discard.
    ReadWrite,
}

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The host does not tell what the file is.
    #[error("Failed to read the type and size of the disk")]
    Inspect(#[source] io::Error),
    /// It is a directory, a pipe, a character device.
    #[error("A disk must be a regular file or a block device")]
    NotADisk,
    /// There is not a single sector in it.
    #[error("The disk is empty")]
    Empty,
    /// The last sector would be cut short.
    #[error("The size of the disk is {bytes} bytes, which is not a multiple of {SECTOR_BYTES}")]
    Unaligned {
        /// Size of the file.
        bytes: u64,
    },
}

/// Sectors in a row, checked to lie on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    offset: u64,
    bytes: u64,
}

/// An open disk. All methods take `&self`: the file's position is never used after opening.
#[derive(Debug)]
pub struct Disk {
    file: File,
    sectors: u64,
    access: Access,
    can_discard: bool,
}

impl Disk {
    /// Takes an open file as a disk. Its size now is the disk's capacity for ever.
    ///
    /// The caller has locked it against a second VM, and opened it without `O_DIRECT` (the guest's buffers are aligned to
    /// nothing) and without `O_APPEND` (which makes Linux ignore where a write is meant to go).
    ///
    /// # Errors
    /// If the file is not a disk.
    pub fn new(mut file: File, access: Access) -> Result<Self, DiskError> {
        let kind = file.metadata().map_err(DiskError::Inspect)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::NotADisk);
        }
        // The metadata of a block device has no size; seeking works for both.
        let bytes = file.seek(SeekFrom::End(0)).map_err(DiskError::Inspect)?;
        if !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(DiskError::Unaligned { bytes });
        }
        if bytes == 0 {
            return Err(DiskError::Empty);
        }
        // A hole behind the end of a regular file changes nothing, and shows whether its file system has holes. Behind the end of
        // a block device everything is refused, so there the first discard of the guest shows it.
        let can_discard = access == Access::ReadWrite
            && (kind.is_block_device()
                || fallocate(&file, FallocateMode::PunchHole, true, bytes, SECTOR_BYTES).is_ok());
        Ok(Self { file, sectors: bytes / SECTOR_BYTES, access, can_discard })
    }

    /// Capacity in sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// What the guest may do.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Whether discarding gives space back to the host.
    pub fn can_discard(&self) -> bool {
        self.can_discard
    }

    /// The extent of `bytes` bytes from `sector` on; `None` unless it is whole sectors of this disk.
    pub fn extent(&self, sector: u64, bytes: u64) -> Option<Extent> {
        let end = sector.checked_add(bytes / SECTOR_BYTES)?;
        let fits = bytes.is_multiple_of(SECTOR_BYTES) && end <= self.sectors;
        fits.then(|| Extent { offset: sector * SECTOR_BYTES, bytes })
    }

    /// Fills `vecs` from `sector` on; they are left empty.
    ///
    /// # Errors
    /// If the host fails to read, or the file has become shorter.
    pub(super) fn read(&self, extent: Extent, vecs: &mut IoVecs) -> io::Result<()> {
        let eof = io::ErrorKind::UnexpectedEof;
        transfer(extent, vecs, eof, |vecs, offset| vecs.preadv(self.file.as_fd(), offset))
    }

    /// Writes `vecs` from `sector` on; they are left empty.
    ///
    /// # Errors
    /// If the host fails to write.
    pub(super) fn write(&self, extent: Extent, vecs: &mut IoVecs) -> io::Result<()> {
        let eof = io::ErrorKind::WriteZero;
        transfer(extent, vecs, eof, |vecs, offset| vecs.pwritev(self.file.as_fd(), offset))
    }

    /// Makes everything written so far survive a crash of the host.
    ///
    /// # Errors
    /// If the host fails to.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives the extent's space back to the host. What it reads as afterwards is up to the host.
    ///
    /// # Errors
    /// If the host fails to; `Unsupported` if it cannot at all.
    pub(super) fn discard(&self, extent: Extent) -> io::Result<()> {
        self.fallocate(FallocateMode::PunchHole, extent)
    }

    /// Makes the extent read as zeros, keeping its space.
    ///
    /// # Errors
    /// If the host fails to write.
    pub(super) fn zero(&self, extent: Extent) -> io::Result<()> {
        match self.fallocate(FallocateMode::ZeroRange, extent) {
            Err(err) if err.kind() == io::ErrorKind::Unsupported => self.write_zeros(extent),
            done => done,
        }
    }

    /// Makes the extent read as zeros, giving its space back where the host can.
    ///
    /// # Errors
    /// If the host fails to write.
    pub(super) fn zero_and_unmap(&self, extent: Extent) -> io::Result<()> {
        match self.fallocate(FallocateMode::PunchHole, extent) {
            Err(err) if err.kind() == io::ErrorKind::Unsupported => self.zero(extent),
            done => done,
        }
    }

    fn fallocate(&self, mode: FallocateMode, extent: Extent) -> io::Result<()> {
        if extent.bytes == 0 {
            return Ok(());
        }
        // KEEP_SIZE, because the host refuses to punch holes without it.
        fallocate(&self.file, mode, true, extent.offset, extent.bytes).map_err(io::Error::from)
    }

    fn write_zeros(&self, extent: Extent) -> io::Result<()> {
        let (mut offset, mut left) = (extent.offset, extent.bytes);
        while left > 0 {
            let count = usize::try_from(left).unwrap_or(ZEROS_BYTES).min(ZEROS_BYTES);
            self.file.write_all_at(&ZEROS[..count], offset)?;
            offset += count as u64;
            left -= count as u64;
        }
        Ok(())
    }
}

/// Calls `once` until `vecs`, which hold as many bytes as `extent`, are used up.
fn transfer(
    extent: Extent,
    vecs: &mut IoVecs,
    no_progress: io::ErrorKind,
    mut once: impl FnMut(&IoVecs, u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut offset = extent.offset;
    while !vecs.is_empty() {
        let moved = match once(vecs, offset)? {
            0 => return Err(no_progress.into()),
            bytes => bytes as u64,
        };
        vecs.skip(moved);
        offset += moved;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn disk(sectors: u64) -> Disk {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![0xaa; usize::try_from(sectors * SECTOR_BYTES).unwrap()], 0).unwrap();
        Disk::new(file, Access::ReadWrite).unwrap()
    }

    fn contents(disk: &Disk) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(disk.sectors * SECTOR_BYTES).unwrap()];
        disk.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn odd_size_directory_and_empty_file_are_refused() {
        let odd = tempfile::tempfile().unwrap();
        odd.set_len(513).unwrap();
        let directory = File::open(std::env::temp_dir()).unwrap();
        let empty = tempfile::tempfile().unwrap();

        let open = |file| Disk::new(file, Access::ReadOnly).unwrap_err();

        assert!(matches!(open(odd), DiskError::Unaligned { bytes: 513 }));
        assert!(matches!(open(directory), DiskError::NotADisk));
        assert!(matches!(open(empty), DiskError::Empty));
    }

    #[test]
    fn opening_does_not_change_the_file() {
        let disk = disk(16);

        assert_eq!(disk.file.metadata().unwrap().len(), 16 * SECTOR_BYTES);
        assert_eq!(contents(&disk), [0xaa; 16 * 512]);
    }

    #[test]
    fn extent_must_be_whole_sectors_of_the_disk() {
        let disk = disk(8);

        assert_eq!(disk.extent(7, 512), Some(Extent { offset: 7 * 512, bytes: 512 }));
        assert_eq!(disk.extent(8, 0), Some(Extent { offset: 8 * 512, bytes: 0 }));
        for (sector, bytes) in [(0, 511), (8, 512), (7, 1024), (u64::MAX, 512), (u64::MAX, 0), (0, u64::MAX)] {
            assert_eq!(disk.extent(sector, bytes), None, "{sector} {bytes}");
        }
    }

    #[test]
    fn zeroed_extents_read_as_zeros_and_their_neighbours_stay() {
        type Zero = fn(&Disk, Extent) -> io::Result<()>;
        for zero in [Disk::zero as Zero, Disk::zero_and_unmap, Disk::write_zeros] {
            let disk = disk(300);

            zero(&disk, disk.extent(3, 290 * 512).unwrap()).unwrap();

            let bytes = contents(&disk);
            assert!(bytes[3 * 512..293 * 512].iter().all(|byte| *byte == 0));
            assert!(bytes[..3 * 512].iter().chain(&bytes[293 * 512..]).all(|byte| *byte == 0xaa));
        }
    }

    #[test]
    fn discard_gives_space_back_where_the_file_system_can() {
        let disk = disk(256);
        let before = disk.file.metadata().unwrap().blocks();

        let result = disk.discard(disk.extent(0, 256 * 512).unwrap());

        let after = disk.file.metadata().unwrap();
        assert_eq!(result.is_ok(), disk.can_discard());
        assert_eq!(after.blocks() < before, disk.can_discard());
        assert_eq!(after.len(), 256 * 512);
    }

    #[test]
    fn read_only_disk_cannot_discard() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(512).unwrap();

        assert!(!Disk::new(file, Access::ReadOnly).unwrap().can_discard());
    }
}
