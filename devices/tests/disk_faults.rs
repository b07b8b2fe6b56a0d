//! A disk whose host misbehaves: a file system that is full, blocks that cannot be read, writes that are lost, no
//! descriptors, no threads. The guest is told, waits, or loses its machine, as the user wants; what it was promised is
//! there, or is never promised again.
//!
//! Every case has a thread and a mount namespace of its own, with a small tmpfs that goes with the thread.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![expect(unsafe_code, reason = "mount namespaces, limits and users")]

mod harness;

use devices::virtio::blk::disk::{Access, Disk};
use devices::virtio::blk::{Blk, DiskSerial, OnError, QueueCount, StopMachine};
use devices::virtio::device::{Activation, ActiveQueue, Device, Memory, StartError};
use devices::virtio::interrupt::Interrupts;
use devices::virtio::threads::OwnThreads;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const CASES: [(&str, fn()); 10] = [
    ("full_file_system_is_an_io_error_until_there_is_room", full_reported),
    ("full_file_system_holds_the_guest_until_there_is_room", full_paused),
    ("all_queues_of_a_full_disk_wait_with_one_line", full_paused_in_two_queues),
    ("disk_that_waits_is_reset_at_once", reset_while_paused),
    ("full_file_system_stops_the_machine_once_and_answers_nothing", full_stops),
    ("block_that_cannot_be_read_is_waited_for", unreadable_paused),
    ("flush_that_failed_is_reported_for_ever", flush_failed),
    ("flush_that_failed_is_not_waited_for", flush_failed_while_pausing),
    (NO_DESCRIPTORS, || alone(NO_DESCRIPTORS, no_descriptors)),
    (NO_THREADS, || alone(NO_THREADS, no_threads)),
];

const NO_DESCRIPTORS: &str = "disk_without_descriptors_starts_when_there_are_some";
const NO_THREADS: &str = "disk_without_threads_starts_when_there_are_some";

/// How long something may take to happen.
const DEADLINE: Duration = Duration::from_secs(20);
/// The longest time for a stop, which waits for nothing.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Bytes of the image, which is a hole in the beginning, and of the file system that it is on.
const IMAGE_BYTES: u64 = 8 << 20;
const TMPFS: &str = "size=2m";
/// Bytes of a request's data.
const DATA_BYTES: usize = 64 << 10;
const SECTORS: u64 = (DATA_BYTES / 512) as u64;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNTOUCHED: u8 = 0xee;

/// The lines of all cases; each has a disk with a name of its own.
static LOG: Lines = Lines(Mutex::new(Vec::new()));

struct Lines(Mutex<Vec<String>>);

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }
    fn flush(&self) {}
}

impl Lines {
    /// Those that begin with the name of a disk, without it.
    fn of(&self, disk: &str) -> Vec<String> {
        let lines = self.0.lock().unwrap();
        lines.iter().filter_map(|line| Some(line.strip_prefix(disk)?.strip_prefix(": ")?.to_owned())).collect()
    }
}

fn main() -> ExitCode {
    log::set_logger(&LOG).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    harness::run_cases(&CASES, what_is_missing().as_deref(), own_mounts)
}

/// Why the cases cannot run here.
fn what_is_missing() -> Option<String> {
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Some("needs root, to mount file systems".to_owned());
    }
    let free = Command::new("losetup").arg("--find").output();
    let is_free = free.is_ok_and(|output| output.status.success());
    if is_free { None } else { Some("needs loop devices and losetup".to_owned()) }
}

/// Gives this thread, and what it starts, mounts of its own.
fn own_mounts() {
    // SAFETY: no pointer is passed; only this thread is concerned.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    run("mount", &["--make-rprivate", "/"]);
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A file system of 2 MiB with an image of 8.
struct Host {
    folder: TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { folder: tempfile::tempdir().unwrap() };
        run("mount", &["-t", "tmpfs", "-o", TMPFS, "tmpfs", host.folder.path().to_str().unwrap()]);
        File::create(host.image()).unwrap().set_len(IMAGE_BYTES).unwrap();
        host
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// Leaves no room.
    fn fill(&self) {
        let mut file = File::create(self.folder.path().join("filler")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.folder.path().join("filler")).unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Busy as long as a loop device is; then it goes with the thread.
        let _ = Command::new("umount").args(["--lazy".as_ref(), self.folder.path()]).status();
    }
}

/// A loop device on the image of a host: a block device that fails as the file system below it does.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn new(host: &Host) -> Self {
        Self(run("losetup", &["--find", "--show", host.image().to_str().unwrap()]).into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // The last user frees it.
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// Where the driver's things are; the same for each queue, `STRIDE` apart.
const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x3000;
const USED: u64 = 0x4000;
const STRIDE: u64 = 0x1_0000;
const SIZE: u16 = 64;
/// Headers and status bytes of the requests, and their data.
const HEADERS: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;

/// A request: the queue that it is in and its number there.
#[derive(Clone, Copy)]
struct Request {
    queue: u16,
    nth: u16,
}

impl Request {
    /// A slot of its own for each of the first 32 requests in each of two queues.
    fn slot(self) -> u64 {
        u64::from(self.queue) * 32 + u64::from(self.nth)
    }

    fn status_at(self) -> GuestAddress {
        GuestAddress(HEADERS + self.slot() * 64 + 32)
    }

    fn data_at(self) -> GuestAddress {
        GuestAddress(DATA + self.slot() * DATA_BYTES as u64)
    }
}

/// A disk and its driver.
struct Rig {
    name: &'static str,
    blk: Blk,
    mem: Memory,
    interrupts: Arc<Interrupts>,
    doorbells: [EventFd; 2],
    offered: [u16; 2],
}

impl Rig {
    fn new(name: &'static str, path: &Path, on_error: OnError) -> Self {
        Self::on(name, OpenOptions::new().read(true).write(true).open(path).unwrap(), on_error)
    }

    fn on(name: &'static str, file: File, on_error: OnError) -> Self {
        let disk = Disk::new(file, Access::ReadWrite).unwrap();
        let queues = QueueCount::try_from(2).unwrap();
        let mut rig = Self {
            name,
            blk: Blk::new(name, disk, DiskSerial::default()).with_queues(queues).with_on_error(on_error),
            mem: Memory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap(),
            interrupts: Arc::new(Interrupts::new(Vec::new(), 2)),
            doorbells: [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap()),
            offered: [0; 2],
        };
        rig.start();
        rig
    }

    fn start(&mut self) {
        let activation = self.activation();
        self.blk.start(activation).unwrap();
    }

    /// All that the driver does up to DRIVER_OK.
    fn activation(&mut self) -> Activation {
        self.mem.write_slice(&[0; 0x2_0000], GuestAddress(0)).unwrap();
        self.offered = [0; 2];
        let active = |idx: u16| {
            let base = u64::from(idx) * STRIDE;
            let mut queue = Queue::new(SIZE).unwrap();
            queue.try_set_desc_table_address(GuestAddress(base + TABLE)).unwrap();
            queue.try_set_avail_ring_address(GuestAddress(base + AVAIL)).unwrap();
            queue.try_set_used_ring_address(GuestAddress(base + USED)).unwrap();
            queue.set_ready(true);
            ActiveQueue { idx, queue, doorbell: self.doorbells[usize::from(idx)].try_clone().unwrap() }
        };
        let (features, queues) = (self.blk.features(), vec![active(0), active(1)]);
        let (mem, interrupts) = (self.mem.clone(), self.interrupts.clone());
        self.blk.accepted(features);
        Activation { mem, features, queues, interrupts, threads: Arc::new(OwnThreads) }
    }

    /// The driver resets the disk and starts it again.
    fn reset(&mut self) {
        let begun = Instant::now();
        self.blk.stop();
        assert!(begun.elapsed() < AT_ONCE, "the reset took {:?}", begun.elapsed());
        self.start();
    }

    /// Makes a request available whose data is `data`, to be read or written from `sector` on.
    fn offer(&mut self, queue: u16, kind: u32, sector: u64, data: &[u8]) -> Request {
        let nth = self.offered[usize::from(queue)];
        let request = Request { queue, nth };
        let header_at = HEADERS + request.slot() * 64;
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.mem.write_slice(&header, GuestAddress(header_at)).unwrap();
        self.mem.write_obj(UNTOUCHED, request.status_at()).unwrap();
        self.mem.write_slice(data, request.data_at()).unwrap();
        // header -> data, unless it is empty -> status
        let data_flags: u16 = if kind == VIRTIO_BLK_T_IN { 2 } else { 0 };
        let data_len = u32::try_from(data.len()).unwrap();
        let chain = [(header_at, 16, 0), (request.data_at().0, data_len, data_flags), (request.status_at().0, 1, 2)];
        let (base, first) = (u64::from(queue) * STRIDE, nth * 3 % (SIZE - 3));
        for ((addr, len, flags), idx) in chain.into_iter().zip(first..) {
            let at = base + TABLE + 16 * u64::from(idx);
            let next: u16 = if idx == first + 2 { 0 } else { 1 };
            self.mem.write_obj(addr, GuestAddress(at)).unwrap();
            self.mem.write_obj::<u32>(len, GuestAddress(at + 8)).unwrap();
            self.mem.write_obj::<u16>(flags | next, GuestAddress(at + 12)).unwrap();
            self.mem.write_obj(idx + 1, GuestAddress(at + 14)).unwrap();
        }
        self.mem.write_obj(first, GuestAddress(base + AVAIL + 4 + 2 * u64::from(nth % SIZE))).unwrap();
        self.offered[usize::from(queue)] += 1;
        self.mem.store(nth + 1, GuestAddress(base + AVAIL + 2), Ordering::Release).unwrap();
        self.doorbells[usize::from(queue)].write(1).unwrap();
        request
    }

    fn used(&self, queue: u16) -> u16 {
        self.mem.load(GuestAddress(u64::from(queue) * STRIDE + USED + 2), Ordering::Acquire).unwrap()
    }

    fn status(&self, request: Request) -> u8 {
        self.mem.read_obj(request.status_at()).unwrap()
    }

    /// Waits for the answer.
    fn answer(&self, request: Request) -> u8 {
        until("the answer", || self.used(request.queue) > request.nth);
        self.status(request)
    }

    fn data(&self, request: Request) -> Vec<u8> {
        let mut data = vec![0; DATA_BYTES];
        self.mem.read_slice(&mut data, request.data_at()).unwrap();
        data
    }

    fn write(&mut self, sector: u64, value: u8) -> u8 {
        let request = self.offer(0, VIRTIO_BLK_T_OUT, sector, &[value; DATA_BYTES]);
        self.answer(request)
    }

    fn read(&mut self, sector: u64) -> (u8, Vec<u8>) {
        let request = self.offer(0, VIRTIO_BLK_T_IN, sector, &[0; DATA_BYTES]);
        (self.answer(request), self.data(request))
    }

    fn flush(&mut self, queue: u16) -> u8 {
        let request = self.offer(queue, VIRTIO_BLK_T_FLUSH, 0, &[]);
        self.answer(request)
    }

    fn count(&self, name: &str) -> u64 {
        self.blk.counters().into_iter().find(|counter| counter.name == name).unwrap().value
    }

    fn log(&self) -> Vec<String> {
        LOG.of(self.name)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.blk.stop();
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `case` in a process of its own, whose limits it changes.
fn alone(name: &str, case: fn()) {
    const VARIABLE: &str = "DISK_FAULTS_ALONE";
    if std::env::var_os(VARIABLE).is_some() {
        return case();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args([name, "--exact"]).env(VARIABLE, "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Calls `action` with this soft limit.
fn limited<R>(resource: libc::__rlimit_resource_t, soft: u64, action: impl FnOnce() -> R) -> R {
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes to `before`, which outlives the call.
    assert_eq!(unsafe { libc::getrlimit(resource, &raw mut before) }, 0);
    let limit = libc::rlimit { rlim_cur: soft, ..before };
    // SAFETY: the kernel reads `limit`.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0);
    let result = action();
    // SAFETY: the kernel reads `before`.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const before) }, 0);
    result
}

/// A disk on a file without a name, stopped.
fn stopped(name: &'static str) -> Rig {
    let file = tempfile::tempfile().unwrap();
    file.set_len(IMAGE_BYTES).unwrap();
    let mut rig = Rig::on(name, file, OnError::Pause);
    rig.blk.stop();
    rig
}

/// The contents of the image of a host from `sector` on.
fn on_host(host: &Host, sector: u64) -> Vec<u8> {
    let mut bytes = vec![0; DATA_BYTES];
    File::open(host.image()).unwrap().read_exact_at(&mut bytes, sector * 512).unwrap();
    bytes
}

fn full_reported() {
    let host = Host::new();
    let mut rig = Rig::new("reported", &host.image(), OnError::Report);
    assert_eq!(rig.write(0, 1), OK);
    host.fill();

    assert_eq!((rig.write(SECTORS, 2), rig.write(SECTORS, 2)), (IOERR, IOERR));
    assert_eq!((rig.write(0, 3), rig.read(0)), (OK, (OK, vec![3; DATA_BYTES])));
    host.make_room();
    assert_eq!((rig.write(SECTORS, 4), rig.flush(0)), (OK, OK));

    assert_eq!((on_host(&host, 0), on_host(&host, SECTORS)), (vec![3; DATA_BYTES], vec![4; DATA_BYTES]));
    assert_eq!((rig.count("host_errors"), rig.count("pauses")), (2, 0));
    assert_eq!(
        rig.log(),
        ["The disk failed: No space left on device (os error 28); further failures are only counted"]
    );
}

fn full_paused() {
    let host = Host::new();
    let mut rig = Rig::new("paused", &host.image(), OnError::Pause);
    assert_eq!(rig.write(0, 1), OK);
    host.fill();

    let waits = rig.offer(0, VIRTIO_BLK_T_OUT, SECTORS, &[2; DATA_BYTES]);
    until("the pause", || rig.count("pauses") == 1);
    let behind = rig.offer(0, VIRTIO_BLK_T_IN, SECTORS, &[0; DATA_BYTES]);
    // Longer than until the next try.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!((rig.used(0), rig.status(waits), rig.status(behind)), (1, UNTOUCHED, UNTOUCHED));
    host.make_room();

    assert_eq!((rig.answer(waits), rig.answer(behind)), (OK, OK));
    assert_eq!((rig.data(behind), on_host(&host, SECTORS)), (vec![2; DATA_BYTES], vec![2; DATA_BYTES]));
    assert_eq!((rig.count("host_errors"), rig.count("pauses"), rig.count("writes")), (1, 1, 2));
    let expected = [
        "The disk failed: No space left on device (os error 28); the guest waits, and it is tried again",
        "The disk works again, and the guest goes on",
    ];
    assert_eq!(rig.log(), expected);
}

fn full_paused_in_two_queues() {
    let host = Host::new();
    host.fill();
    let mut rig = Rig::new("queues", &host.image(), OnError::Pause);

    let requests = [0, 1].map(|queue| {
        let sector = u64::from(queue) * SECTORS;
        rig.offer(queue, VIRTIO_BLK_T_OUT, sector, &[7; DATA_BYTES])
    });
    until("both pauses", || rig.count("pauses") == 2);
    host.make_room();

    assert_eq!(requests.map(|request| rig.answer(request)), [OK; 2]);
    assert_eq!((on_host(&host, 0), on_host(&host, SECTORS)), (vec![7; DATA_BYTES], vec![7; DATA_BYTES]));
    until("the last line", || rig.log().len() == 2);
}

fn reset_while_paused() {
    let host = Host::new();
    host.fill();
    let mut rig = Rig::new("reset", &host.image(), OnError::Pause);
    let waits = rig.offer(0, VIRTIO_BLK_T_OUT, 0, &[2; DATA_BYTES]);
    until("the pause", || rig.count("pauses") == 1);

    rig.reset();

    assert_eq!(rig.status(waits), UNTOUCHED);
    let again = rig.offer(0, VIRTIO_BLK_T_OUT, 0, &[3; DATA_BYTES]);
    until("the next pause", || rig.count("pauses") == 2);
    host.make_room();
    assert_eq!((rig.answer(again), on_host(&host, 0)), (OK, vec![3; DATA_BYTES]));
}

/// Takes down why the machine is to stop.
#[derive(Default)]
struct Stops(Mutex<Vec<String>>);

impl StopMachine for Stops {
    fn stop(&self, failure: io::Error) {
        self.0.lock().unwrap().push(failure.to_string());
    }
}

fn full_stops() {
    let host = Host::new();
    host.fill();
    let stops = Arc::new(Stops::default());
    let mut rig = Rig::new("stops", &host.image(), OnError::Stop(stops.clone()));

    let request = rig.offer(0, VIRTIO_BLK_T_OUT, 0, &[2; DATA_BYTES]);
    until("the stop", || !stops.0.lock().unwrap().is_empty());
    host.make_room();
    rig.reset();

    assert_eq!(*stops.0.lock().unwrap(), ["No space left on device (os error 28)"]);
    assert_eq!((rig.status(request), on_host(&host, 0)), (UNTOUCHED, vec![0; DATA_BYTES]));
}

fn unreadable_paused() {
    let host = Host::new();
    let device = LoopDevice::new(&host);
    // Behind the end of its file nothing can be read.
    OpenOptions::new().write(true).open(host.image()).unwrap().set_len(IMAGE_BYTES / 2).unwrap();
    let mut rig = Rig::new("unreadable", &device.0, OnError::Pause);

    let request = rig.offer(0, VIRTIO_BLK_T_IN, IMAGE_BYTES / 512 - SECTORS, &[9; DATA_BYTES]);
    until("the pause", || rig.count("pauses") == 1);
    OpenOptions::new().write(true).open(host.image()).unwrap().set_len(IMAGE_BYTES).unwrap();

    assert_eq!((rig.answer(request), rig.data(request)), (OK, vec![0; DATA_BYTES]));
    assert_eq!(rig.log().len(), 2);
    assert!(rig.log()[0].contains("Input/output error (os error 5)"), "{:?}", rig.log());
}

/// Has the host lose a write that the driver was told of: the device's cache takes it, the file below has no room.
fn lose_a_write(host: &Host, rig: &mut Rig) {
    host.fill();
    assert_eq!(rig.write(0, 5), OK);
    assert_eq!(rig.flush(0), IOERR);
}

fn flush_failed() {
    let host = Host::new();
    let device = LoopDevice::new(&host);
    let mut rig = Rig::new("flush", &device.0, OnError::Report);
    lose_a_write(&host, &mut rig);
    host.make_room();

    // The kernel would say that all is well.
    assert_eq!((rig.flush(1), rig.flush(0)), (IOERR, IOERR));
    rig.reset();
    assert_eq!((rig.write(SECTORS, 6), rig.flush(0)), (OK, IOERR));

    assert_eq!((on_host(&host, 0), rig.count("flushes")), (vec![0; DATA_BYTES], 0));
    assert_eq!(rig.log().len(), 1, "{:?}", rig.log());
    assert!(rig.log()[0].contains("every flush fails until the VM starts anew"), "{:?}", rig.log());
}

fn flush_failed_while_pausing() {
    let host = Host::new();
    let device = LoopDevice::new(&host);
    let mut rig = Rig::new("no wait", &device.0, OnError::Pause);

    lose_a_write(&host, &mut rig);

    assert_eq!((rig.count("pauses"), rig.count("host_errors")), (0, 1));
}

/// The error of a start that the host refuses.
fn refusal(result: Result<(), StartError>) -> Option<i32> {
    match result {
        Err(StartError::Host { source, .. }) => source.raw_os_error(),
        Err(StartError::MissingQueue(_)) | Ok(()) => None,
    }
}

fn no_descriptors() {
    let mut rig = stopped("descriptors");
    let mut refused_with = |more| {
        let activation = rig.activation();
        let lowest_free = u64::try_from(File::open("/dev/null").unwrap().as_raw_fd()).unwrap();
        let result = limited(libc::RLIMIT_NOFILE, lowest_free + more, || rig.blk.start(activation));
        matches!(result, Err(StartError::Host { .. }))
    };

    // A queue takes a timer, an epoll and an eventfd twice: the second fails, too.
    let refused: Vec<_> = (0..8).map(&mut refused_with).collect();

    assert_eq!(refused, [true; 8]);
    rig.start();
    assert_eq!(rig.write(0, 1), OK);
}

fn no_threads() {
    let mut rig = stopped("threads");
    // Root has as many as it likes.
    // SAFETY: setresuid takes numbers; all threads of this process are concerned.
    assert_eq!(unsafe { libc::setresuid(65534, 65534, 65534) }, 0);

    let activation = rig.activation();
    let refused = refusal(limited(libc::RLIMIT_NPROC, 0, || rig.blk.start(activation)));

    assert_eq!(refused, Some(libc::EAGAIN));
    rig.start();
    assert_eq!(rig.write(0, 1), OK);
}
