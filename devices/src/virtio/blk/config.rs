//! The device configuration space of a block device, virtio 1.3 5.2.4. All of it but `writeback` is read-only.

use crate::virtio::blk::QUEUE_SIZE;
use crate::virtio::blk::disk::Disk;
use crate::virtio::blk::request::MAX_SEGMENTS;
use crate::virtio::blk::topology::Topology;
use std::mem::offset_of;
use virtio_bindings::virtio_blk::virtio_blk_config;

/// Sectors of one discard segment: 1 GiB, which a file system drops at once.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Sectors of one write-zeroes segment: 64 MiB, because a host that cannot zero a range has to write it.
pub(super) const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 17;
/// Segments of one write-zeroes request, for the same reason.
pub(super) const MAX_WRITE_ZEROES_SEGMENTS: usize = 1;
/// Discards are best aligned to 4 KiB, the block size of the file systems that images lie on.
const DISCARD_ALIGNMENT_SECTORS: u32 = 8;

/// Offset of the cache mode: 0 write-through, 1 write-back.
pub(super) const WRITEBACK: usize = offset_of!(virtio_blk_config, wce);

/// Up to the last field that the offered features define.
const LEN: usize = offset_of!(virtio_blk_config, unused1);

/// The bytes that the driver reads.
pub(super) struct Config([u8; LEN]);

impl Config {
    /// For a device with `queues` queues in front of `disk`.
    #[expect(clippy::cast_possible_truncation, reason = "constants that fit into 32 bits")]
    pub(super) fn new(disk: &Disk, queues: u16) -> Self {
        let topology = Topology::new(disk.sizes(), disk.block_size());
        let mut config = Self([0; LEN]);
        let mut put = |at: usize, value: &[u8]| config.0[at..at + value.len()].copy_from_slice(value);
        put(offset_of!(virtio_blk_config, capacity), &disk.sectors().to_le_bytes());
        // The header and the status byte take a descriptor each.
        put(offset_of!(virtio_blk_config, seg_max), &(u32::from(QUEUE_SIZE) - 2).to_le_bytes());
        put(offset_of!(virtio_blk_config, blk_size), &disk.block_size().bytes().to_le_bytes());
        put(offset_of!(virtio_blk_config, physical_block_exp), &[topology.physical_block_exp]);
        put(offset_of!(virtio_blk_config, alignment_offset), &[topology.alignment_offset]);
        put(offset_of!(virtio_blk_config, min_io_size), &topology.min_io_size.to_le_bytes());
        put(offset_of!(virtio_blk_config, opt_io_size), &topology.opt_io_size.to_le_bytes());
        put(offset_of!(virtio_blk_config, num_queues), &queues.to_le_bytes());
        put(offset_of!(virtio_blk_config, max_discard_sectors), &MAX_DISCARD_SECTORS.to_le_bytes());
        put(offset_of!(virtio_blk_config, max_discard_seg), &(MAX_SEGMENTS as u32).to_le_bytes());
        put(offset_of!(virtio_blk_config, discard_sector_alignment), &DISCARD_ALIGNMENT_SECTORS.to_le_bytes());
        put(offset_of!(virtio_blk_config, max_write_zeroes_sectors), &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
        put(offset_of!(virtio_blk_config, max_write_zeroes_seg), &(MAX_WRITE_ZEROES_SEGMENTS as u32).to_le_bytes());
        put(offset_of!(virtio_blk_config, write_zeroes_may_unmap), &[1]);
        config
    }

    /// Fills `data` from `offset` on, with `writeback` as it is now; zeros behind the end.
    pub(super) fn read(&self, offset: u64, data: &mut [u8], writeback: u8) {
        let mut bytes = self.0;
        bytes[WRITEBACK] = writeback;
        let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(rest) {
            *byte = *value;
        }
    }
}
