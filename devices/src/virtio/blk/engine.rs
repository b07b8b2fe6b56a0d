//! Serves one request at a time: decides what the driver may have, moves the bytes, answers.
//!
//! | the driver | gets |
//! |---|---|
//! | leaves no room for the status byte | a fault: there is no way to answer |
//! | leaves the disk, or asks for parts of sectors, or sends too little or too much | IOERR |
//! | asks for more than 256 MiB | IOERR |
//! | writes to a read-only disk | IOERR (virtio 1.3 5.2.6.2) |
//! | asks for something unknown, or sets unknown flags | UNSUPP |
//! | meets a host that fails | what the user wants ([`failures`](super::failures)): IOERR, a pause, or the end |

use crate::virtio::blk::DiskSerial;
use crate::virtio::blk::cache::{Cache, WriteMode};
use crate::virtio::blk::config::{MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS, MAX_WRITE_ZEROES_SEGMENTS};
use crate::virtio::blk::disk::{Access, Disk, Extent, SECTOR_BYTES};
use crate::virtio::blk::failures::{Failures, QueueFailures, Verdict};
use crate::virtio::blk::request::{
    Flags, MAX_SEGMENTS, Malformed, Operation, Segment, take_header, take_segments, take_status,
};
use crate::virtio::chain::{BadChain, Buffer, Chain};
use crate::virtio::device::{Counter, Memory};
use crate::virtio::iovec::IoVecs;
use crate::virtio::request_queue::{Answer, Reply};
use crate::virtio::threads::Job;
use crate::virtio::worker::Fault;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};
use vm_memory::Bytes;

/// Bytes of data of a request, at most: each of the segments that a driver may use has 1 MiB. Linux sends a few MiB at
/// once, and a worker that moves more does not look whether it is to stop.
const MAX_DATA_BYTES: u64 = 256 << 20;

/// Counts of served requests. Written by the workers, read for reports, hence relaxed.
#[derive(Default)]
pub(super) struct Counts {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    write_zeroes: AtomicU64,
    refused: AtomicU64,
    unsupported: AtomicU64,
}

impl Counts {
    /// These counts and those of `failures`.
    pub(super) fn report(&self, failures: &Failures) -> Vec<Counter> {
        [
            ("reads", &self.reads),
            ("read_bytes", &self.read_bytes),
            ("writes", &self.writes),
            ("written_bytes", &self.written_bytes),
            ("flushes", &self.flushes),
            ("discards", &self.discards),
            ("write_zeroes", &self.write_zeroes),
            ("refused_requests", &self.refused),
            ("unsupported_requests", &self.unsupported),
        ]
        .into_iter()
        .chain(failures.counts())
        .map(|(name, count)| Counter { name: name.into(), value: count.load(Ordering::Relaxed) })
        .collect()
    }
}

/// Why a request is not served.
enum Failure {
    /// The driver did something wrong.
    Refused,
    /// The device does not know how.
    Unsupported,
    /// The host failed.
    Host(io::Error),
    /// The host failed to make something durable.
    Flush(io::Error),
}

impl From<Malformed> for Failure {
    fn from(_: Malformed) -> Self {
        Self::Refused
    }
}

impl From<BadChain> for Failure {
    fn from(_: BadChain) -> Self {
        Self::Refused
    }
}

impl From<io::Error> for Failure {
    fn from(err: io::Error) -> Self {
        if err.kind() == io::ErrorKind::Unsupported { Self::Unsupported } else { Self::Host(err) }
    }
}

/// A disk, and all it takes to answer requests for it.
pub(super) struct Engine {
    pub(super) disk: Arc<Disk>,
    pub(super) serial: DiskSerial,
    pub(super) cache: Arc<Cache>,
    pub(super) mem: Memory,
    pub(super) vecs: IoVecs,
    pub(super) counts: Arc<Counts>,
    pub(super) failures: QueueFailures,
}

impl Answer for Engine {
    const JOB: Job = Job::Disk;

    fn answer(&mut self, queue: u16, chain: &mut Chain) -> Result<Reply, Fault> {
        self.respond(chain).map_err(|reason| Fault::Guest { queue, reason })
    }

    fn try_again_after(&self) -> Option<Duration> {
        self.failures.disk().retry()
    }
}

impl Engine {
    /// Serves the request in `chain` and writes its status, unless it is to wait.
    ///
    /// # Errors
    /// The reason, if there is no status byte to write.
    fn respond(&mut self, chain: &mut Chain) -> Result<Reply, &'static str> {
        let status_at = take_status(chain).ok_or("a request has no room for its status")?;
        let room = chain.writable_len();
        let (status, written) = match self.serve(chain) {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(failure) => match self.note(failure) {
                Some(status) => (status, 0),
                None => return Ok(Reply::Later),
            },
        };
        self.failures.answered();
        let [status, ..] = status.to_le_bytes();
        self.mem.write_obj(status, status_at).map_err(|_| "the status of a request is outside of guest memory")?;
        // Used length counts what was written from the start without a gap, so the status counts only behind full data.
        let len = if written == room { written + 1 } else { written };
        // At most the data of a request and the status.
        Ok(Reply::Used(u32::try_from(len).unwrap_or(u32::MAX)))
    }

    /// Serves a request whose status byte has been taken off. Returns the bytes of data written for the driver.
    fn serve(&mut self, chain: &mut Chain) -> Result<u64, Failure> {
        match take_header(chain, &self.mem)? {
            Operation::Read(sector) => self.read(sector, chain),
            Operation::Write(sector) => self.write(sector, chain),
            Operation::Flush => self.flush(),
            Operation::GetId => self.get_id(chain),
            Operation::Discard => self.discard(chain),
            Operation::WriteZeroes => self.write_zeroes(chain),
            Operation::Unknown => Err(Failure::Unsupported),
        }
    }

    fn read(&mut self, sector: u64, chain: &Chain) -> Result<u64, Failure> {
        let bytes = chain.writable_len();
        let extent = self.extent(sector, bytes)?;
        gather(&mut self.vecs, &chain.writable)?;
        self.disk.read(extent, &mut self.vecs)?;
        count(&self.counts.reads, 1);
        count(&self.counts.read_bytes, bytes);
        Ok(bytes)
    }

    fn write(&mut self, sector: u64, chain: &Chain) -> Result<u64, Failure> {
        self.check_writable()?;
        let bytes = chain.readable_len();
        let extent = self.extent(sector, bytes)?;
        gather(&mut self.vecs, &chain.readable)?;
        self.disk.write(extent, &mut self.vecs)?;
        self.write_through()?;
        count(&self.counts.writes, 1);
        count(&self.counts.written_bytes, bytes);
        Ok(0)
    }

    fn flush(&self) -> Result<u64, Failure> {
        self.disk.flush().map_err(Failure::Flush)?;
        count(&self.counts.flushes, 1);
        Ok(0)
    }

    fn get_id(&mut self, chain: &Chain) -> Result<u64, Failure> {
        let mut left = self.serial.bytes();
        for buffer in &chain.writable {
            let room = usize::try_from(buffer.len).unwrap_or(usize::MAX);
            let (part, rest) = left.split_at(room.min(left.len()));
            self.mem.write_slice(part, buffer.addr).map_err(|_| Failure::Refused)?;
            left = rest;
        }
        Ok((self.serial.bytes().len() - left.len()) as u64)
    }

    fn discard(&mut self, chain: &mut Chain) -> Result<u64, Failure> {
        self.check_writable()?;
        if !self.disk.can_discard() {
            return Err(Failure::Unsupported);
        }
        let segments = take_segments(chain, &self.mem, MAX_SEGMENTS)?;
        // All are checked before the first is served. UNMAP has no meaning here (virtio 1.3 5.2.6.2).
        for segment in segments.clone() {
            self.segment(segment, MAX_DISCARD_SECTORS)?;
            if segment.flags != Flags::None {
                return Err(Failure::Unsupported);
            }
        }
        for segment in segments {
            self.disk.discard(self.segment(segment, MAX_DISCARD_SECTORS)?)?;
        }
        self.write_through()?;
        count(&self.counts.discards, 1);
        Ok(0)
    }

    fn write_zeroes(&mut self, chain: &mut Chain) -> Result<u64, Failure> {
        self.check_writable()?;
        for segment in take_segments(chain, &self.mem, MAX_WRITE_ZEROES_SEGMENTS)? {
            let extent = self.segment(segment, MAX_WRITE_ZEROES_SECTORS)?;
            match segment.flags {
                Flags::None => self.disk.zero(extent)?,
                Flags::Unmap => self.disk.zero_and_unmap(extent)?,
                Flags::Unknown => return Err(Failure::Unsupported),
            }
        }
        self.write_through()?;
        count(&self.counts.write_zeroes, 1);
        Ok(0)
    }

    /// Where the data of a read or a write is.
    fn extent(&self, sector: u64, bytes: u64) -> Result<Extent, Failure> {
        Some(bytes)
            .filter(|bytes| *bytes <= MAX_DATA_BYTES)
            .and_then(|bytes| self.disk.extent(sector, bytes))
            .ok_or(Failure::Refused)
    }

    fn segment(&self, segment: Segment, max_sectors: u32) -> Result<Extent, Failure> {
        if segment.sectors > max_sectors {
            return Err(Failure::Refused);
        }
        self.disk.extent(segment.sector, u64::from(segment.sectors) * SECTOR_BYTES).ok_or(Failure::Refused)
    }

    fn check_writable(&self) -> Result<(), Failure> {
        match self.disk.access() {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Failure::Refused),
        }
    }

    fn write_through(&self) -> Result<(), Failure> {
        match self.cache.mode() {
            WriteMode::Back => Ok(()),
            WriteMode::Through => self.flush().map(|_| ()),
        }
    }

    /// Counts a failure and turns it into a status; `None` if the request is to wait.
    fn note(&mut self, failure: Failure) -> Option<u32> {
        let verdict = match failure {
            Failure::Refused => {
                count(&self.counts.refused, 1);
                Verdict::Fail
            }
            Failure::Unsupported => {
                count(&self.counts.unsupported, 1);
                return Some(VIRTIO_BLK_S_UNSUPP);
            }
            Failure::Host(err) => self.failures.failed(err),
            Failure::Flush(err) => self.failures.disk().flush_failed(err),
        };
        match verdict {
            Verdict::Fail => Some(VIRTIO_BLK_S_IOERR),
            Verdict::Wait => None,
        }
    }
}

/// Lists the data of a request for the host.
fn gather(vecs: &mut IoVecs, buffers: &[Buffer]) -> Result<(), BadChain> {
    vecs.clear();
    buffers.iter().try_for_each(|buffer| vecs.push(*buffer))
}

/// Adds to a counter.
fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}
