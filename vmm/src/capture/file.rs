//! A pcapng file (draft-ietf-opsawg-pcapng) that begins anew when it is full.

use super::{Seen, since_epoch};
use crate::folder::Folder;
use devices::virtio::net::Direction;
use pcap_file::DataLink;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::{PcapNgBlock, PcapNgWriter};
use pcap_file::{PcapError, PcapResult};
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Times are in nanoseconds: 10 to the power of minus this (`if_tsresol`).
const NANOSECONDS: u8 = 9;

/// Bytes that are copied at a time.
const COPY_BYTES: usize = 128 << 10;

/// Which direction a frame went (`epb_flags`, bits 0 and 1), as the guest sees it.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Counts what is written.
struct Counted {
    file: BufWriter<File>,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.bytes += u64::try_from(count).unwrap_or(0);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The file of a card.
pub(super) struct CaptureFile {
    path: PathBuf,
    /// The same file, and the older one; none for what is no regular file.
    older: Option<Older>,
    card: String,
    snap: u32,
    size: u64,
    writer: PcapNgWriter<Counted>,
}

/// The file that takes the contents of a full one. Both are open from the start: the VMM has no folder to make files in
/// later.
struct Older {
    full: File,
    older: File,
}

impl CaptureFile {
    /// Makes the file, or empties it. Frames are cut after `snap` bytes; after about `size` bytes it begins anew.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn create(path: &Path, card: &str, snap: u32, size: u64) -> io::Result<Self> {
        let (folder, name) = Folder::of(path)?;
        let file = folder.create(&name)?;
        let older = if file.metadata()?.is_file() {
            let full = folder.open(&name)?;
            let mut older = name;
            older.push(".1");
            Some(Older { full, older: folder.create(&older)? })
        } else {
            None
        };
        let writer = begin(file, card, snap)?;
        Ok(Self { path: path.to_owned(), older, card: card.to_owned(), snap, size, writer })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write(&mut self, seen: &Seen) -> io::Result<()> {
        if self.writer.get_ref().bytes >= self.size {
            self.begin_anew()?;
        }
        let direction = match seen.direction {
            Direction::ToGuest => INBOUND,
            Direction::FromGuest => OUTBOUND,
        };
        let mut options = vec![EnhancedPacketOption::Flags(direction)];
        if seen.missed > 0 {
            options.push(EnhancedPacketOption::DropCount(seen.missed));
        }
        let block = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: since_epoch(seen.at),
            original_len: u32::try_from(seen.len).unwrap_or(u32::MAX),
            data: Cow::Borrowed(&seen.start),
            options,
        };
        unwrapped(self.writer.write_block(&block.into_block()))
    }

    /// Has everything in the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.writer.get_mut().flush()
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        self.flush()?;
        let Some(Older { full, older }) = &mut self.older else { return Ok(()) };
        older.set_len(0)?;
        older.rewind()?;
        full.rewind()?;
        copy(full, older)?;
        let mut file = self.writer.get_ref().file.get_ref().try_clone()?;
        file.set_len(0)?;
        file.rewind()?;
        self.writer = begin(file, &self.card, self.snap)?;
        Ok(())
    }
}

/// Copies what is left of a file with no other calls than reads and writes, which are all that this thread may make.
fn copy(from: &mut File, to: &mut File) -> io::Result<()> {
    let mut bytes = vec![0; COPY_BYTES];
    loop {
        match from.read(&mut bytes)? {
            0 => return Ok(()),
            count => to.write_all(bytes.get(..count).unwrap_or_default())?,
        }
    }
}

fn begin(file: File, card: &str, snap: u32) -> io::Result<PcapNgWriter<Counted>> {
    let file = BufWriter::new(file);
    let mut writer = PcapNgWriter::new(Counted { file, bytes: 0 }).map_err(io_error)?;
    let interface = InterfaceDescriptionBlock {
        linktype: DataLink::ETHERNET,
        snaplen: snap,
        options: vec![
            InterfaceDescriptionOption::IfName(Cow::Borrowed(card)),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ],
    };
    unwrapped(writer.write_block(&interface.into_block()))?;
    writer.get_mut().flush()?;
    Ok(writer)
}

fn unwrapped(written: PcapResult<usize>) -> io::Result<()> {
    written.map(|_| ()).map_err(io_error)
}

fn io_error(err: PcapError) -> io::Error {
    match err {
        PcapError::IoError(err) => err,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Capture;
    use super::*;
    use crate::confine::seccomp::{Filters, Mode, Vhost};
    use devices::virtio::net::Budget;
    use pcap_file::pcapng::{Block, PcapNgReader};
    use std::sync::Arc;

    /// The packets of a file: direction, missed before it, length, first byte.
    fn packets(path: &Path) -> Vec<(u32, u64, u32, u8)> {
        let Ok(mut reader) = PcapNgReader::new(File::open(path).unwrap()) else { return Vec::new() };
        let mut packets = Vec::new();
        // The last block may be half written.
        while let Some(Ok(block)) = reader.next_block() {
            if let Block::EnhancedPacket(packet) = block.into_owned() {
                let (mut direction, mut missed) = (0, 0);
                for option in &packet.options {
                    match option {
                        EnhancedPacketOption::Flags(flags) => direction = *flags,
                        EnhancedPacketOption::DropCount(count) => missed = *count,
                        _ => {}
                    }
                }
                packets.push((direction, missed, packet.original_len, packet.data[0]));
            }
        }
        packets
    }

    /// Without filters, which would stay with the process of the tests.
    fn unfiltered() -> Arc<Filters> {
        Arc::new(Filters::new(Mode::Off, Vhost::None).unwrap())
    }

    fn capture(path: &Path, text: &str) -> Capture {
        let spec: net::NetSpec = format!("tap=t0,capture={}{text}", path.display()).parse().unwrap();
        Capture::open("net0", &spec.card().capture, &Budget::default()).unwrap().unwrap()
    }

    #[test]
    fn frames_are_in_the_file_in_order_with_their_way_and_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pcapng");
        let capture = capture(&path, ",snaplen=64");
        assert_eq!(capture.snap(), 64);
        capture.start(&unfiltered()).unwrap();
        let observer = capture.observer();
        observer.observe(Direction::FromGuest, vec![1; 64], 65_000);
        observer.observe(Direction::ToGuest, vec![2; 42], 42);
        drop(observer);
        capture.finish();
        assert_eq!(packets(&path), [(OUTBOUND, 0, 65_000, 1), (INBOUND, 0, 42, 2)]);
    }

    #[test]
    fn frames_that_find_no_room_are_counted_at_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pcapng");
        let capture = capture(&path, "");
        let observer = capture.observer();
        // No thread writes yet.
        for _ in 0..1030 {
            observer.observe(Direction::ToGuest, vec![1; 60], 60);
        }
        capture.start(&unfiltered()).unwrap();
        while packets(&path).len() < 1024 {
            std::thread::yield_now();
        }
        observer.observe(Direction::ToGuest, vec![2; 60], 60);
        drop(observer);
        capture.finish();
        assert_eq!(packets(&path).last(), Some(&(INBOUND, 6, 60, 2)));
    }

    #[test]
    fn full_file_becomes_the_older_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pcapng");
        let capture = capture(&path, ",capture-size=64K");
        capture.start(&unfiltered()).unwrap();
        let observer = capture.observer();
        for number in 0..100 {
            observer.observe(Direction::ToGuest, vec![number; 1500], 1500);
        }
        drop(observer);
        capture.finish();
        let older = packets(&folder.path().join("a.pcapng.1"));
        let both = [older.clone(), packets(&path)].concat();
        assert_eq!(both.last().unwrap().3, 99);
        assert!(both.windows(2).all(|pair| pair[1].3 == pair[0].3 + 1), "nothing between the two is missing");
        assert!((40..46).contains(&older.len()), "{}", older.len());
    }

    #[test]
    fn file_that_cannot_be_made_is_refused() {
        let spec: net::NetSpec = "tap=t0,capture=/proc/nowhere/a.pcapng".parse().unwrap();
        let error = Capture::open("net0", &spec.card().capture, &Budget::default()).err().unwrap();
        assert_eq!(error.to_string(), "Cannot write the capture /proc/nowhere/a.pcapng");
    }
}
