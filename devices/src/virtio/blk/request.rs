//! Requests as the driver lays them out (virtio 1.3 5.2.6): a header and perhaps data to read, perhaps data to write
//! and a status byte. The pieces may be cut into descriptors anywhere.
//!
//! Total: any bytes give a value or a refusal. Every byte of guest memory is read once, and nothing is believed twice.

use crate::virtio::chain::{Buffer, Chain};
use crate::virtio::device::Memory;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Address, Bytes, GuestAddress};

/// `struct virtio_blk_req` up to its data: type, reserved, sector.
const HEADER_BYTES: usize = 16;
/// `struct virtio_blk_discard_write_zeroes`: sector, number of sectors, flags.
const SEGMENT_BYTES: usize = 16;
/// Segments of one discard at most: bounds the work of a request.
pub(super) const MAX_SEGMENTS: usize = 32;

/// The operation that the driver asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// Read from the disk into the data, from this sector on.
    Read(u64),
    /// Write the data to the disk, from this sector on.
    Write(u64),
    /// Make what was written durable.
    Flush,
    /// Tell the serial number.
    GetId,
    /// Discard the segments in the data.
    Discard,
    /// Zero the segments in the data.
    WriteZeroes,
    /// Anything else.
    Unknown,
}

/// One range of a discard or write-zeroes request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) sector: u64,
    pub(super) sectors: u32,
    pub(super) flags: Flags,
}

/// The flags of a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Flags {
    /// None is set.
    #[default]
    None,
    /// The space may be given back.
    Unmap,
    /// A reserved bit is set.
    Unknown,
}

/// The data is not what the operation needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Cuts the status byte off the end of `chain`. Returns its address, or `None` if nothing is writable.
pub(super) fn take_status(chain: &mut Chain) -> Option<GuestAddress> {
    let last = chain.writable.last_mut()?;
    // Chain drops empty buffers, so there is at least this one byte, and it is in guest memory.
    last.len = last.len.checked_sub(1)?;
    let status = last.addr.checked_add(u64::from(last.len))?;
    if last.len == 0 {
        chain.writable.pop();
    }
    Some(status)
}

/// Cuts the header off the start of `chain`.
pub(super) fn take_header(chain: &mut Chain, mem: &Memory) -> Result<Operation, Malformed> {
    let mut header = [0; HEADER_BYTES];
    take(&mut chain.readable, mem, &mut header)?;
    let (kind, sector) = (u32_at(&header, 0), u64_at(&header, 8));
    Ok(match kind {
        VIRTIO_BLK_T_IN => Operation::Read(sector),
        VIRTIO_BLK_T_OUT => Operation::Write(sector),
        VIRTIO_BLK_T_FLUSH => Operation::Flush,
        VIRTIO_BLK_T_GET_ID => Operation::GetId,
        VIRTIO_BLK_T_DISCARD => Operation::Discard,
        VIRTIO_BLK_T_WRITE_ZEROES => Operation::WriteZeroes,
        _ => Operation::Unknown,
    })
}

/// Reads the data of a discard or write-zeroes request: one to `max` segments, with nothing behind them.
pub(super) fn take_segments(
    chain: &mut Chain,
    mem: &Memory,
    max: usize,
) -> Result<impl Iterator<Item = Segment> + Clone + use<>, Malformed> {
    let mut bytes = [0; SEGMENT_BYTES * MAX_SEGMENTS];
    let len = usize::try_from(chain.readable_len()).map_err(|_| Malformed)?;
    let count = len / SEGMENT_BYTES;
    if !len.is_multiple_of(SEGMENT_BYTES) || count == 0 || count > max.min(MAX_SEGMENTS) {
        return Err(Malformed);
    }
    take(&mut chain.readable, mem, &mut bytes[..len])?;
    Ok((0..count).map(move |i| {
        let segment = &bytes[i * SEGMENT_BYTES..][..SEGMENT_BYTES];
        Segment {
            sector: u64_at(segment, 0),
            sectors: u32_at(segment, 8),
            flags: match u32_at(segment, 12) {
                0 => Flags::None,
                VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP => Flags::Unmap,
                _ => Flags::Unknown,
            },
        }
    }))
}

/// Moves the first bytes of `buffers` into `bytes`; there must be enough. What they came from is left empty.
fn take(buffers: &mut [Buffer], mem: &Memory, bytes: &mut [u8]) -> Result<(), Malformed> {
    let mut done = 0;
    for buffer in buffers.iter_mut() {
        let left = &mut bytes[done..];
        if left.is_empty() {
            break;
        }
        let count = u32::try_from(left.len()).map_err(|_| Malformed)?.min(buffer.len);
        let part = &mut left[..count as usize];
        mem.read_slice(part, buffer.addr).map_err(|_| Malformed)?;
        buffer.addr = buffer.addr.checked_add(u64::from(count)).ok_or(Malformed)?;
        buffer.len -= count;
        done += count as usize;
    }
    if done == bytes.len() { Ok(()) } else { Err(Malformed) }
}

/// Little-endian fields of a structure that is known to be long enough.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}
