//! The backend of a block device: a raw image or a host block device, whatever the caller has opened.
//!
//! Works in sectors of 512 bytes (virtio 1.3 5.2.5.2), whatever the block size that the driver is told: partition
//! tables and file systems count in that one. Nothing here blocks for ever except the host's disk. The file keeps its
//! length: no operation goes past its end.
#![expect(unsafe_code, reason = "ioctl(BLKSSZGET) has no safe wrapper in the crates used here")]

use crate::virtio::blk::topology::Sizes;
use crate::virtio::iovec::IoVecs;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

/// Bytes in a sector.
pub const SECTOR_BYTES: u64 = 512;

/// Zeros per write where the host cannot zero a range by itself.
const ZEROS_BYTES: usize = 64 << 10;
static ZEROS: [u8; ZEROS_BYTES] = [0; ZEROS_BYTES];

/// The largest block that every x86-64 kernel takes: its page (`blk_validate_block_size`, block/bdev.c).
const BLOCK_BYTES_MAX: u32 = 4096;
/// The smallest block: a sector.
const BLOCK_BYTES_MIN: u32 = 512;

/// Bytes of a logical block, the unit in which partition tables count: a power of two from 512 to 4096.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSize(u32);

/// A number that is not a block size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("A block size is 512, 1024, 2048 or 4096")]
pub struct BadBlockSize;

impl Default for BlockSize {
    fn default() -> Self {
        Self(BLOCK_BYTES_MIN)
    }
}

impl TryFrom<u32> for BlockSize {
    type Error = BadBlockSize;

    fn try_from(bytes: u32) -> Result<Self, BadBlockSize> {
        let fits = bytes.is_power_of_two() && (BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&bytes);
        if fits { Ok(Self(bytes)) } else { Err(BadBlockSize) }
    }
}

impl FromStr for BlockSize {
    type Err = BadBlockSize;

    fn from_str(text: &str) -> Result<Self, BadBlockSize> {
        text.parse::<u32>().map_err(|_| BadBlockSize)?.try_into()
    }
}

impl BlockSize {
    /// The size in bytes.
    pub fn bytes(self) -> u32 {
        self.0
    }

    /// The logical block of a host block device (`BLKSSZGET`); 512 bytes for a file. A host whose blocks are larger
    /// than a guest's pages gives the largest there is, as all access goes through the host's page cache.
    ///
    /// # Errors
    /// If the host does not say.
    pub fn of(file: &File) -> io::Result<Self> {
        if !file.metadata()?.file_type().is_block_device() {
            return Ok(Self::default());
        }
        let mut bytes: libc::c_int = 0;
        // SAFETY: the descriptor is open, and BLKSSZGET writes one int to where the pointer leads, which outlives the
        // call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &raw mut bytes) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let bytes = u32::try_from(bytes).unwrap_or_default().clamp(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX);
        Self::try_from(bytes).map_err(io::Error::other)
    }
}

/// `_IO(0x12, 104)`, linux/fs.h.
const BLKSSZGET: libc::Ioctl = 0x1268;

/// The guest's access.
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
    #[error("Cannot read the type and size of the disk")]
    Inspect(#[source] io::Error),
    /// It is a directory, a pipe, a character device.
    #[error("A disk must be a regular file or a block device")]
    NotADisk,
    /// There is not a single sector in it.
    #[error("The disk is empty")]
    Empty,
    /// The last sector would be cut short.
    #[error("The size of the disk is {bytes} bytes, which is not a multiple of {block_bytes}")]
    Unaligned {
        /// Size of the file.
        bytes: u64,
        /// Bytes of a block.
        block_bytes: u32,
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
    block_size: BlockSize,
    sizes: Sizes,
    access: Access,
    can_discard: bool,
    /// The error of the flush that has failed. Held by whoever flushes.
    flush_failed: Mutex<Option<i32>>,
}

impl Disk {
    /// Takes an open file as a disk. Its size now is the disk's capacity for ever. The block size is that of the host's
    /// block device, or 512 bytes for a file.
    ///
    /// The caller has locked it against a second VM, and opened it without `O_DIRECT` (the guest's buffers are aligned
    /// to nothing) and without `O_APPEND` (which makes Linux ignore where a write is meant to go).
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
        let block_size = BlockSize::of(&file).map_err(DiskError::Inspect)?;
        let sizes = Sizes::of(&file).map_err(DiskError::Inspect)?;
        if bytes == 0 {
            return Err(DiskError::Empty);
        }
        // A hole behind the end of a regular file changes nothing, and shows whether its file system has holes. Behind
        // the end of a block device everything is refused, so there the first discard of the guest shows it.
        let can_discard = access == Access::ReadWrite
            && (kind.is_block_device()
                || fallocate(&file, FallocateMode::PunchHole, true, bytes, SECTOR_BYTES).is_ok());
        let sectors = bytes / SECTOR_BYTES;
        let flush_failed = Mutex::new(None);
        let disk = Self { file, sectors, block_size, sizes, access, can_discard, flush_failed };
        check_size(bytes, block_size).map(|()| disk)
    }

    /// The disk with blocks of another size, in which the partition table of an image counts.
    ///
    /// # Errors
    /// If its size is not whole blocks.
    pub fn with_block_size(self, block_size: BlockSize) -> Result<Self, DiskError> {
        check_size(self.sectors * SECTOR_BYTES, block_size)?;
        Ok(Self { block_size, ..self })
    }

    /// Bytes of a logical block.
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The sizes that suit it.
    pub(super) fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Capacity in sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The guest's access.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Returns whether discarding gives space back to the host.
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
    /// The kernel tells of a write that has failed once, to whoever flushes next, and takes its pages for clean: the
    /// same call would succeed the next time, without the data (fsync(2), and QEMU's `page_cache_inconsistent`). So a
    /// disk of which one flush has failed fails them all. Flushes take turns, or one that runs beside the failing one
    /// would succeed for writes that are lost.
    ///
    /// # Errors
    /// If the host fails to, or did before.
    pub(super) fn flush(&self) -> io::Result<()> {
        let mut failed = self.flush_failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(errno) = *failed {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.file.sync_data().inspect_err(|err| *failed = Some(err.raw_os_error().unwrap_or(libc::EIO)))
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

/// Refuses a disk whose last block would be cut short.
fn check_size(bytes: u64, block_size: BlockSize) -> Result<(), DiskError> {
    let block_bytes = block_size.bytes();
    if bytes.is_multiple_of(block_bytes.into()) { Ok(()) } else { Err(DiskError::Unaligned { bytes, block_bytes }) }
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

        assert!(matches!(open(odd), DiskError::Unaligned { bytes: 513, block_bytes: 512 }));
        assert!(matches!(open(directory), DiskError::NotADisk));
        assert!(matches!(open(empty), DiskError::Empty));
    }

    #[test]
    fn blocks_are_powers_of_two_up_to_a_page() {
        for bytes in [512, 1024, 2048, 4096] {
            assert_eq!(bytes.to_string().parse().map(BlockSize::bytes), Ok(bytes));
        }
        for bad in ["", "0", "256", "513", "8192", "-512", "4k"] {
            assert_eq!(bad.parse::<BlockSize>(), Err(BadBlockSize), "{bad}");
        }
    }

    #[test]
    fn file_has_blocks_of_512_bytes_and_takes_larger_ones_that_it_is_a_multiple_of() {
        let large = BlockSize(4096);

        assert_eq!(disk(8).block_size(), BlockSize(512));
        assert_eq!(disk(8).with_block_size(large).unwrap().block_size(), large);
        let refused = disk(9).with_block_size(large).unwrap_err();
        assert!(matches!(refused, DiskError::Unaligned { bytes: 4608, block_bytes: 4096 }));
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
