//! A driver's requests against an engine on a temporary file, without a thread; and the device with its worker.
//!
//! Where nothing else is said, a request is three buffers: header at `HEADER`, data at `DATA`, status at `STATUS`.

mod device;

use super::cache::Cache;
use super::engine::{Counts, Engine};
use super::*;
use crate::virtio::request_queue::{Answer, RequestQueue};
use crate::virtio::test_driver::{Desc, MEM_BYTES, TestDriver};
use crate::virtio::worker::Fault;
use proptest::prelude::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x9000;
const DATA: u64 = 0x1_0000;
const SECTORS: u64 = 64;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// The status byte before a device writes it.
const UNTOUCHED: u8 = 0xee;

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// A file of `SECTORS` sectors; each is filled with its number.
fn image() -> File {
    let file = tempfile::tempfile().unwrap();
    for sector in 0..SECTORS {
        file.write_all_at(&[u8::try_from(sector).unwrap(); 512], sector * 512).unwrap();
    }
    file
}

fn sector_of(file: &File, sector: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    file.read_exact_at(&mut bytes, sector * 512).unwrap();
    bytes
}

struct Bench {
    driver: TestDriver,
    file: File,
    disk: Arc<Disk>,
    counts: Arc<Counts>,
    failures: Arc<Failures>,
    mode: WriteMode,
}

impl Bench {
    fn new(access: Access) -> Self {
        let file = image();
        let disk = Arc::new(Disk::new(file.try_clone().unwrap(), access).unwrap());
        let failures = Arc::new(Failures::new("blk0", OnError::Report));
        Self { driver: TestDriver::new(), file, disk, counts: Arc::default(), failures, mode: WriteMode::Back }
    }

    /// Serves what is available.
    fn run(&self) -> Result<(), Fault> {
        let (active, mem, interrupts) = self.driver.activate();
        let mut engine = Engine {
            disk: self.disk.clone(),
            serial: DiskSerial::try_from("disk-7").unwrap(),
            cache: Arc::new(Cache::new(self.mode)),
            vecs: IoVecs::new(mem.clone()),
            mem: mem.clone(),
            counts: self.counts.clone(),
            failures: QueueFailures::new(self.failures.clone()),
        };
        let mut queue = RequestQueue::new(active, mem, interrupts).unwrap();
        queue.serve(|chain| engine.answer(FIRST_QUEUE, chain)).map(|_| ())
    }

    /// Serves one chain. Returns the used length.
    fn serve(&mut self, descs: &[Desc]) -> Result<u32, Fault> {
        self.driver.reset();
        self.driver.write(STATUS, &[UNTOUCHED]);
        let head = self.driver.add(descs);
        self.run()?;
        let used = self.driver.used();
        assert_eq!((used.len(), used[0].0), (1, head));
        Ok(used[0].1)
    }

    /// Serves header, data and status. Returns status and used length.
    fn request(&mut self, kind: u32, sector: u64, data: Option<Desc>) -> (u8, u32) {
        self.driver.write(HEADER, &header(kind, sector));
        let mut descs = vec![Desc::readable(HEADER, 16)];
        descs.extend(data);
        descs.push(Desc::writable(STATUS, 1));
        let len = self.serve(&descs).unwrap();
        (self.status(), len)
    }

    fn request_with(&mut self, kind: u32, sector: u64, data: &[u8]) -> (u8, u32) {
        self.driver.write(DATA, data);
        self.request(kind, sector, Some(Desc::readable(DATA, data.len().try_into().unwrap())))
    }

    fn status(&self) -> u8 {
        self.driver.read(STATUS, 1)[0]
    }

    fn count(&self, name: &str) -> u64 {
        self.counts.report(&self.failures).into_iter().find(|counter| counter.name == name).unwrap().value
    }
}

#[test]
fn read_fills_the_data() {
    let mut bench = Bench::new(Access::ReadOnly);

    let answer = bench.request(VIRTIO_BLK_T_IN, 5, Some(Desc::writable(DATA, 1024)));

    assert_eq!(answer, (OK, 1025));
    assert_eq!(bench.driver.read(DATA, 1024), [[5; 512], [6; 512]].concat());
    assert_eq!((bench.count("reads"), bench.count("read_bytes")), (1, 1024));
}

#[test]
fn write_reaches_the_file() {
    let mut bench = Bench::new(Access::ReadWrite);

    let answer = bench.request_with(VIRTIO_BLK_T_OUT, SECTORS - 1, &[0xab; 512]);

    assert_eq!(answer, (OK, 1));
    assert_eq!(sector_of(&bench.file, SECTORS - 1), [0xab; 512]);
    assert_eq!((bench.count("writes"), bench.count("written_bytes")), (1, 512));
}

#[test]
fn request_cut_into_odd_pieces_is_served() {
    let mut bench = Bench::new(Access::ReadWrite);
    bench.driver.write(HEADER, &header(VIRTIO_BLK_T_OUT, 9));
    bench.driver.write(DATA, &[0xcd; 512]);

    // Header in three pieces, the last of them with the first data.
    bench.driver.write(DATA - 5, &header(VIRTIO_BLK_T_OUT, 9)[11..]);
    let len = bench.serve(&[
        Desc::readable(HEADER, 1),
        Desc::readable(HEADER + 1, 10),
        Desc::readable(DATA - 5, 5 + 100),
        Desc::readable(DATA + 100, 412),
        Desc::writable(STATUS, 1),
    ]);

    assert_eq!((len.unwrap(), bench.status()), (1, OK));
    assert_eq!(sector_of(&bench.file, 9), [0xcd; 512]);
}

#[test]
fn status_is_the_last_byte_of_a_buffer_that_also_holds_data() {
    let mut bench = Bench::new(Access::ReadOnly);
    bench.driver.write(HEADER, &header(VIRTIO_BLK_T_IN, 3));

    let len = bench.serve(&[Desc::readable(HEADER, 16), Desc::writable(DATA, 300), Desc::writable(STATUS - 212, 213)]);

    assert_eq!((len.unwrap(), bench.status()), (513, OK));
    assert_eq!(bench.driver.read(STATUS - 212, 212), [3; 212]);
}

#[test]
fn indirect_request_with_as_many_buffers_as_announced_is_served() {
    let mut bench = Bench::new(Access::ReadWrite);
    let table: u64 = 0x20_0000;
    let mut descs = vec![Desc::readable(HEADER, 16)];
    descs.extend((0..252).map(|i| Desc::readable(DATA + i * 256, 128)));
    descs.push(Desc::writable(STATUS, 1));
    bench.driver.write(HEADER, &header(VIRTIO_BLK_T_OUT, 0));
    bench.driver.write(DATA, &[0x77; 0x1_0000]);
    for (i, desc) in (0..).zip(&descs) {
        let has_next = u16::from(i + 1 < descs.len());
        bench.driver.write(table + i as u64 * 16, &desc.addr.to_le_bytes());
        bench.driver.write(table + i as u64 * 16 + 8, &desc.len.to_le_bytes());
        bench.driver.write(table + i as u64 * 16 + 12, &(desc.flags | has_next).to_le_bytes());
        bench.driver.write(table + i as u64 * 16 + 14, &u16::try_from(i + 1).unwrap().to_le_bytes());
    }
    let indirect = Desc { flags: 4, ..Desc::readable(table, u32::try_from(descs.len() * 16).unwrap()) };

    let len = bench.serve(&[indirect]);

    assert_eq!((len.unwrap(), bench.status()), (1, OK));
    assert_eq!(bench.count("written_bytes"), 252 * 128);
    assert_eq!(sector_of(&bench.file, 62), [0x77; 512]);
}

#[test]
fn request_without_room_for_its_status_is_a_fault() {
    let mut bench = Bench::new(Access::ReadWrite);
    bench.driver.write(HEADER, &header(VIRTIO_BLK_T_FLUSH, 0));

    for descs in [&[Desc::readable(HEADER, 16)][..], &[Desc::readable(HEADER, 16), Desc::writable(STATUS, 0)]] {
        let result = bench.serve(descs);
        assert!(matches!(result, Err(Fault::Guest { queue: 0, .. })));
        assert_eq!(bench.driver.used(), []);
    }
}

#[test]
fn short_header_is_an_io_error() {
    let mut bench = Bench::new(Access::ReadWrite);
    bench.driver.write(HEADER, &header(VIRTIO_BLK_T_FLUSH, 0));

    let len = bench.serve(&[Desc::readable(HEADER, 15), Desc::writable(STATUS, 1)]);

    assert_eq!((len.unwrap(), bench.status()), (1, IOERR));
    assert_eq!(bench.count("refused_requests"), 1);
}

#[test]
fn missing_header_is_an_io_error() {
    let mut bench = Bench::new(Access::ReadWrite);

    let len = bench.serve(&[Desc::writable(STATUS, 1)]);

    assert_eq!((len.unwrap(), bench.status()), (1, IOERR));
}

#[test]
fn sectors_behind_the_end_are_an_io_error() {
    let mut bench = Bench::new(Access::ReadWrite);

    for sector in [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512, 1 << 55] {
        let read = bench.request(VIRTIO_BLK_T_IN, sector, Some(Desc::writable(DATA, 1024)));
        let write = bench.request_with(VIRTIO_BLK_T_OUT, sector, &[0; 1024]);
        assert_eq!((read, write), ((IOERR, 0), (IOERR, 1)), "{sector}");
    }

    assert_eq!(bench.count("refused_requests"), 10);
    assert_eq!(bench.file.metadata().unwrap().len(), SECTORS * 512);
}

#[test]
fn request_of_more_than_256_mib_is_an_io_error() {
    let mut bench = Bench::new(Access::ReadOnly);
    let sparse = tempfile::tempfile().unwrap();
    sparse.set_len(1 << 30).unwrap();
    bench.disk = Arc::new(Disk::new(sparse, Access::ReadOnly).unwrap());
    bench.driver.write(HEADER, &header(VIRTIO_BLK_T_IN, 0));
    // The same 1.5 MiB of memory again and again.
    let whole = |count| vec![Desc::writable(0x20_0000, 3 << 19); count];
    let request = |data: Vec<Desc>| [vec![Desc::readable(HEADER, 16)], data, vec![Desc::writable(STATUS, 1)]].concat();

    let most = bench.serve(&request([whole(170), vec![Desc::writable(0x20_0000, 1 << 20)]].concat())).unwrap();
    assert_eq!((most, bench.status()), ((256 << 20) + 1, OK));
    let more = bench.serve(&request(whole(171))).unwrap();

    assert_eq!((more, bench.status(), bench.count("refused_requests")), (0, IOERR, 1));
}

#[test]
fn part_of_a_sector_is_an_io_error() {
    let mut bench = Bench::new(Access::ReadWrite);

    for len in [1, 511, 513] {
        let read = bench.request(VIRTIO_BLK_T_IN, 0, Some(Desc::writable(DATA, len)));
        let write = bench.request(VIRTIO_BLK_T_OUT, 0, Some(Desc::readable(DATA, len)));
        assert_eq!((read, write), ((IOERR, 0), (IOERR, 1)), "{len}");
    }
}

#[test]
fn read_only_disk_refuses_everything_that_writes() {
    let mut bench = Bench::new(Access::ReadOnly);

    let write = bench.request_with(VIRTIO_BLK_T_OUT, 1, &[0; 512]);
    let discard = bench.request_with(VIRTIO_BLK_T_DISCARD, 0, &segment(1, 1, 0));
    let zeroes = bench.request_with(VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(1, 1, 0));

    assert_eq!([write, discard, zeroes], [(IOERR, 1); 3]);
    assert_eq!(sector_of(&bench.file, 1), [1; 512]);
}

#[test]
fn unknown_request_is_unsupported() {
    let mut bench = Bench::new(Access::ReadWrite);

    for kind in [2, 3, 14, 16, 0x8000_0000, u32::MAX] {
        assert_eq!(bench.request(kind, 0, None), (UNSUPP, 1), "{kind}");
    }

    assert_eq!(bench.count("unsupported_requests"), 6);
}

#[test]
fn flush_is_answered() {
    let mut bench = Bench::new(Access::ReadWrite);

    assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, None), (OK, 1));
    assert_eq!(bench.count("flushes"), 1);
}

#[test]
fn driver_that_cannot_flush_gets_every_write_flushed() {
    let mut bench = Bench::new(Access::ReadWrite);

    bench.request_with(VIRTIO_BLK_T_OUT, 0, &[0; 512]);
    let with_cache = bench.count("flushes");
    bench.mode = WriteMode::Through;
    bench.request_with(VIRTIO_BLK_T_OUT, 0, &[0; 512]);
    bench.request_with(VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(0, 1, 0));

    assert_eq!((with_cache, bench.count("flushes")), (0, 2));
}

#[test]
fn serial_number_is_padded_or_cut_to_the_buffer() {
    let mut bench = Bench::new(Access::ReadOnly);

    let whole = bench.request(VIRTIO_BLK_T_GET_ID, 0, Some(Desc::writable(DATA, 20)));
    assert_eq!(bench.driver.read(DATA, 20), b"disk-7\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let short = bench.request(VIRTIO_BLK_T_GET_ID, 0, Some(Desc::writable(DATA, 4)));
    let long = bench.request(VIRTIO_BLK_T_GET_ID, 0, Some(Desc::writable(DATA, 64)));

    // A gap between data and status ends the used length.
    assert_eq!([whole, short, long], [(OK, 21), (OK, 5), (OK, 20)]);
}

#[test]
fn serial_number_must_be_short_and_printable() {
    for bad in ["123456789012345678901", "a b", "gr\u{fc}n", "a\0"] {
        assert_eq!(DiskSerial::try_from(bad), Err(BadSerial), "{bad:?}");
    }
    assert!(DiskSerial::try_from("12345678901234567890").is_ok());
}

#[test]
fn write_zeroes_with_and_without_unmap_zeroes() {
    let mut bench = Bench::new(Access::ReadWrite);

    for (sector, flags) in [(4, 0), (8, 1)] {
        let answer = bench.request_with(VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(sector, 2, flags));
        assert_eq!(answer, (OK, 1));
        assert_eq!(sector_of(&bench.file, sector - 1), [u8::try_from(sector - 1).unwrap(); 512]);
        assert_eq!(sector_of(&bench.file, sector), [0; 512]);
        assert_eq!(sector_of(&bench.file, sector + 1), [0; 512]);
        assert_eq!(sector_of(&bench.file, sector + 2), [u8::try_from(sector + 2).unwrap(); 512]);
    }

    assert_eq!(bench.count("write_zeroes"), 2);
}

#[test]
fn discard_of_several_segments_is_served_where_the_host_can() {
    let mut bench = Bench::new(Access::ReadWrite);
    let expected = if bench.disk.can_discard() { OK } else { UNSUPP };

    let answer = bench.request_with(VIRTIO_BLK_T_DISCARD, 0, &[segment(0, 8, 0), segment(56, 8, 0)].concat());

    assert_eq!(answer, (expected, 1));
    assert_eq!(sector_of(&bench.file, 8), [8; 512]);
}

#[test]
fn segments_that_break_a_limit_are_refused_and_none_is_served() {
    let mut bench = Bench::new(Access::ReadWrite);
    let good = segment(0, 1, 0);
    let bad = [
        vec![],
        good[..15].to_vec(),
        [&good[..], &[0]].concat(),
        good.repeat(33),
        [good.clone(), segment(SECTORS, 1, 0)].concat(),
        [good.clone(), segment(u64::MAX, 1, 0)].concat(),
        [good.clone(), segment(0, u32::MAX, 0)].concat(),
    ];

    for data in &bad {
        let zeroes = bench.request_with(VIRTIO_BLK_T_WRITE_ZEROES, 0, data);
        assert_eq!(zeroes, (IOERR, 1), "{data:?}");
    }
    assert_eq!(bench.count("refused_requests"), 7);
    if bench.disk.can_discard() {
        for data in &bad {
            let discard = bench.request_with(VIRTIO_BLK_T_DISCARD, 0, data);
            assert_eq!(discard, (IOERR, 1), "{data:?}");
        }
    }
    assert_eq!(sector_of(&bench.file, 0), [0; 512]);
}

#[test]
fn segment_longer_than_announced_is_refused() {
    let mut bench = Bench::new(Access::ReadWrite);
    let sparse = tempfile::tempfile().unwrap();
    sparse.set_len(4 << 30).unwrap();
    bench.disk = Arc::new(Disk::new(sparse, Access::ReadWrite).unwrap());
    let refused = if bench.disk.can_discard() { IOERR } else { UNSUPP };

    let zeroes = bench.request_with(VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(0, (1 << 17) + 1, 0));
    let discard = bench.request_with(VIRTIO_BLK_T_DISCARD, 0, &segment(0, (1 << 21) + 1, 0));

    assert_eq!([zeroes, discard], [(IOERR, 1), (refused, 1)]);
}

#[test]
fn unknown_flags_and_unmap_of_a_discard_are_unsupported() {
    let mut bench = Bench::new(Access::ReadWrite);

    let zeroes = bench.request_with(VIRTIO_BLK_T_WRITE_ZEROES, 0, &segment(1, 1, 2));
    let discard = bench.request_with(VIRTIO_BLK_T_DISCARD, 0, &segment(1, 1, 1));

    assert_eq!([zeroes, discard], [(UNSUPP, 1); 2]);
    assert_eq!(sector_of(&bench.file, 1), [1; 512]);
}

#[test]
fn file_that_became_shorter_is_an_io_error_and_counted() {
    let mut bench = Bench::new(Access::ReadOnly);
    bench.file.set_len(512).unwrap();

    let answer = bench.request(VIRTIO_BLK_T_IN, 0, Some(Desc::writable(DATA, 1024)));

    assert_eq!(answer, (IOERR, 0));
    assert_eq!(bench.count("host_errors"), 1);
}

#[test]
fn host_that_cannot_write_is_an_io_error_and_counted() {
    let mut bench = Bench::new(Access::ReadWrite);
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(SECTORS * 512).unwrap();
    let unwritable = File::open(named.path()).unwrap();
    bench.disk = Arc::new(Disk::new(unwritable, Access::ReadWrite).unwrap());

    let answer = bench.request_with(VIRTIO_BLK_T_OUT, 0, &[0; 512]);

    assert_eq!(answer, (IOERR, 1));
    assert_eq!(bench.count("host_errors"), 1);
}

fn device(file: &File, access: Access) -> Blk {
    let disk = Disk::new(file.try_clone().unwrap(), access).unwrap();
    Blk::new("blk0", disk, DiskSerial::default())
}

#[test]
fn configuration_has_the_fields_of_the_specification() {
    let blk = device(&image(), Access::ReadWrite);
    let field = |offset, len| {
        let mut data = vec![0xee; len];
        blk.read_config(offset, &mut data);
        data
    };

    assert_eq!(field(0, 8), SECTORS.to_le_bytes());
    assert_eq!(field(12, 4), 254u32.to_le_bytes());
    assert_eq!(field(20, 4), 512u32.to_le_bytes());
    assert_eq!(field(36, 4), (1u32 << 21).to_le_bytes());
    assert_eq!(field(40, 4), 32u32.to_le_bytes());
    assert_eq!(field(48, 4), (1u32 << 17).to_le_bytes());
    assert_eq!(field(52, 4), 1u32.to_le_bytes());
    assert_eq!(field(56, 4), [1, 0, 0, 0]);
    assert_eq!(field(u64::MAX, 8), [0; 8]);
}

#[test]
fn block_size_is_in_the_configuration_and_sectors_stay_512_bytes() {
    let disk = Disk::new(image(), Access::ReadWrite).unwrap().with_block_size(4096.try_into().unwrap()).unwrap();
    let blk = Blk::new("blk0", disk, DiskSerial::default());
    let (mut capacity, mut block_size) = ([0; 8], [0; 4]);

    blk.read_config(0, &mut capacity);
    blk.read_config(20, &mut block_size);

    assert_eq!((u64::from_le_bytes(capacity), u32::from_le_bytes(block_size)), (SECTORS, 4096));
}

#[test]
fn read_only_disk_offers_nothing_that_writes() {
    let blk = device(&image(), Access::ReadOnly);

    let features = blk.features();

    assert_ne!(features & bit(VIRTIO_BLK_F_RO), 0);
    assert_eq!(features & (bit(VIRTIO_BLK_F_DISCARD) | bit(VIRTIO_BLK_F_WRITE_ZEROES)), 0);
}

#[test]
fn device_comes_back_after_a_reset_in_the_middle_of_a_burst() {
    let file = image();
    let mut blk = device(&file, Access::ReadWrite);
    let mut driver = TestDriver::new();
    driver.write(HEADER, &header(VIRTIO_BLK_T_OUT, 7));
    let write = [Desc::readable(HEADER, 16), Desc::readable(DATA, 512), Desc::writable(STATUS, 1)];

    for value in 1..=10 {
        driver.reset();
        driver.write(DATA, &[value; 512]);
        for _ in 0..80 {
            driver.add(&write);
        }
        blk.start(driver.activation(blk.features())).unwrap();
        driver.wait_until(|driver| !driver.used().is_empty());
        blk.stop();
        assert_eq!(sector_of(&file, 7), [value; 512]);
    }

    assert!(!driver.interrupts.needs_reset());
}

#[test]
fn broken_chain_makes_the_device_wait_for_a_reset() {
    let mut blk = device(&image(), Access::ReadWrite);
    let mut driver = TestDriver::new();
    blk.start(driver.activation(blk.features())).unwrap();

    // A descriptor that is its own successor.
    driver.write_desc(0, Desc { flags: 1, ..Desc::readable(HEADER, 16) });
    driver.offer(0);
    driver.doorbell.write(1).unwrap();

    driver.wait_until(|driver| driver.interrupts.needs_reset());
    blk.stop();
    assert_eq!(driver.used(), []);
}

#[test]
fn missing_queue_is_refused() {
    let driver = TestDriver::new();
    let mut blk = device(&image(), Access::ReadWrite);

    let result = blk.start(Activation { queues: vec![], ..driver.activation(0) });

    assert!(matches!(result, Err(StartError::MissingQueue(0))));
}

/// Addresses in and around guest memory, and lengths from nothing to too much.
fn any_desc() -> impl Strategy<Value = Desc> {
    let memory = MEM_BYTES as u64;
    let addr = prop_oneof![4 => 0x8000..memory, 1 => memory - 64..memory + 64, 1 => any::<u64>()];
    let len = prop_oneof![2 => 0..32u32, 4 => (0..9u32).prop_map(|n| n * 512), 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0..4u16, 1 => any::<u16>()];
    (addr, len, flags, 0..6u16).prop_map(|(addr, len, flags, next)| Desc { addr, len, flags, next })
}

fn any_kind() -> impl Strategy<Value = u32> {
    prop_oneof![4 => prop::sample::select(vec![0u32, 1, 4, 8, 11, 13]), 1 => any::<u32>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_chain_is_answered_or_a_fault(
        kind in any_kind(),
        sector in prop_oneof![0..SECTORS + 2, any::<u64>()],
        descs in prop::collection::vec(any_desc(), 0..6),
    ) {
        let mut bench = Bench::new(Access::ReadWrite);
        bench.driver.write(HEADER, &header(kind, sector));
        // The first descriptor is a header, the others are linked as they happen to be.
        bench.driver.write_desc(0, Desc { flags: 1, next: 1, ..Desc::readable(HEADER, 16) });
        for (i, desc) in (1..).zip(&descs) {
            bench.driver.write_desc(i, *desc);
        }
        bench.driver.offer(0);

        let result = bench.run();

        prop_assert_eq!(result.is_ok(), bench.driver.used().len() == 1);
        prop_assert_eq!(bench.file.metadata().unwrap().len(), SECTORS * 512);
    }

    #[test]
    fn any_request_of_three_buffers_is_answered(
        kind in any_kind(),
        sector in prop_oneof![0..SECTORS + 2, any::<u64>()],
        data in prop::collection::vec(any::<u8>(), 0..2048),
    ) {
        let mut bench = Bench::new(Access::ReadWrite);
        let (status, len) = bench.request_with(kind, sector, &data);
        prop_assert!(status <= UNSUPP);
        prop_assert!(len <= 1);
    }
}
