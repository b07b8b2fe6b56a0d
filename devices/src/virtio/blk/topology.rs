//! The sizes that suit the host's disk, as the guest is told them (virtio 1.3 5.2.4, the fields of `topology`). They
//! are advice: a request of any whole sectors is served.
#![expect(unsafe_code, reason = "the ioctls of block devices have no safe wrapper in the crates used here")]

use crate::virtio::blk::disk::BlockSize;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;

/// Bytes of the pages in which the host caches a file: writing less than one makes it read the rest first.
const CACHE_PAGE_BYTES: u32 = 4096;
/// No physical block is larger; a host that says so is not believed.
const PHYSICAL_BYTES_MAX: u32 = 1 << 20;

/// `_IO(0x12, 120)` to `_IO(0x12, 123)`, linux/fs.h. Each writes one int.
const BLKIOMIN: libc::Ioctl = 0x1278;
const BLKIOOPT: libc::Ioctl = 0x1279;
const BLKALIGNOFF: libc::Ioctl = 0x127a;
const BLKPBSZGET: libc::Ioctl = 0x127b;

/// Sizes in bytes, as the host has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Bytes that the disk writes at once.
    pub(super) physical: u32,
    /// Where the first whole physical block begins.
    pub(super) aligned_at: u32,
    /// The smallest request that is worth its while, 0 if nothing is known.
    pub(super) min_io: u32,
    /// The size that requests have best, 0 if nothing is known.
    pub(super) opt_io: u32,
}

impl Sizes {
    /// Those of an open disk: a file's are those of the cache in front of it, a block device's are what the host tells
    /// of it.
    ///
    /// # Errors
    /// If the host does not say what the file is.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let page = Self { physical: CACHE_PAGE_BYTES, aligned_at: 0, min_io: CACHE_PAGE_BYTES, opt_io: 0 };
        if !file.metadata()?.file_type().is_block_device() {
            return Ok(page);
        }
        // Every block device answers; what does not is taken for a file.
        let size =
            |request, unknown| ask(file, request).ok().and_then(|value| u32::try_from(value).ok()).unwrap_or(unknown);
        Ok(Self {
            physical: size(BLKPBSZGET, page.physical),
            // -1 is said of a partition that no block size can align.
            aligned_at: size(BLKALIGNOFF, 0),
            min_io: size(BLKIOMIN, 0),
            opt_io: size(BLKIOOPT, 0),
        })
    }
}

fn ask(file: &File, request: libc::Ioctl) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    // SAFETY: the descriptor is open, and each of the requests above writes one int to where the pointer leads, which
    // outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut value) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// The fields as the driver reads them, counted in logical blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Topology {
    /// Logical blocks of a physical one, as a power of two.
    pub(super) physical_block_exp: u8,
    /// The first logical block at which a physical one begins.
    pub(super) alignment_offset: u8,
    /// The smallest request that is worth its while.
    pub(super) min_io_size: u16,
    /// The size that requests have best; 0 if nothing is known.
    pub(super) opt_io_size: u32,
}

impl Topology {
    /// For a disk with these sizes and logical blocks of `block` bytes.
    pub(super) fn new(sizes: Sizes, block: BlockSize) -> Self {
        let block = block.bytes();
        let usable = sizes.physical.is_power_of_two() && (block..=PHYSICAL_BYTES_MAX).contains(&sizes.physical);
        let physical = if usable { sizes.physical } else { block };
        let aligned_at = if sizes.aligned_at < physical { sizes.aligned_at / block } else { 0 };
        let min_io = sizes.min_io.max(physical) / block;
        Self {
            physical_block_exp: u8::try_from((physical / block).ilog2()).unwrap_or(0),
            alignment_offset: u8::try_from(aligned_at).unwrap_or(0),
            min_io_size: u16::try_from(min_io).unwrap_or(u16::MAX),
            opt_io_size: sizes.opt_io / block,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(bytes: u32) -> BlockSize {
        bytes.try_into().unwrap()
    }

    #[test]
    fn file_has_the_pages_of_the_cache() {
        let sizes = Sizes::of(&tempfile::tempfile().unwrap()).unwrap();

        let small = Topology::new(sizes, block(512));
        let large = Topology::new(sizes, block(4096));

        let wanted =
            |exp, min| Topology { physical_block_exp: exp, alignment_offset: 0, min_io_size: min, opt_io_size: 0 };
        assert_eq!((small, large), (wanted(3, 8), wanted(0, 1)));
    }

    #[test]
    fn sizes_of_a_device_are_counted_in_its_blocks() {
        let sizes = Sizes { physical: 4096, aligned_at: 3584, min_io: 65536, opt_io: 1 << 20 };

        let topology = Topology::new(sizes, block(512));

        let wanted = Topology { physical_block_exp: 3, alignment_offset: 7, min_io_size: 128, opt_io_size: 2048 };
        assert_eq!(topology, wanted);
    }

    #[test]
    fn sizes_that_make_no_sense_are_left_out() {
        for physical in [0, 256, 1000, 3 << 10, 2 << 20, u32::MAX] {
            let sizes = Sizes { physical, aligned_at: u32::MAX, min_io: u32::MAX, opt_io: 1 };

            let topology = Topology::new(sizes, block(512));

            let wanted = Topology { physical_block_exp: 0, alignment_offset: 0, min_io_size: u16::MAX, opt_io_size: 0 };
            assert_eq!(topology, wanted, "{physical}");
        }
    }
}
