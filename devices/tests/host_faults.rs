//! The card on real taps whose host misbehaves: an interface that is down, deleted, of another MTU, out of its bridge,
//! out of memory. The card counts, goes on, and works again when the host does.
//!
//! Every case has a thread and a network namespace of its own, which goes with the thread.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![expect(unsafe_code, reason = "namespaces, and the ioctl that makes taps")]

mod harness;

use devices::virtio::device::{Activation, ActiveQueue, Device, Memory};
use devices::virtio::interrupt::Interrupts;
use devices::virtio::iovec::IoVecs;
use devices::virtio::net::{FramePort, Link, Net, NetConfig, Offloads, Tap};
use devices::virtio::threads::OwnThreads;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MRG_RXBUF};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const CASES: [(&str, fn()); 9] = [
    ("tap_that_is_down_loses_frames_and_passes_them_when_it_is_up_again", down),
    ("tap_that_goes_down_and_up_under_load_stops_nothing", down_under_load),
    ("deleted_tap_costs_frames_but_neither_the_card_nor_a_processor", deleted),
    ("host_without_memory_loses_the_frame_and_not_the_card", no_memory),
    ("worker_that_panics_costs_the_card_until_its_reset", panics),
    ("larger_mtu_lets_larger_frames_in", larger_mtu),
    ("frame_larger_than_the_buffers_after_an_mtu_change_is_dropped_alone", larger_mtu_without_merging),
    ("smaller_mtu_and_back_stops_nothing", smaller_mtu),
    ("tap_out_of_its_bridge_sends_again_when_it_is_back", out_of_the_bridge),
];

/// How long something may take to happen.
const DEADLINE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    harness::run_cases(&CASES, what_is_missing().as_deref(), own_network)
}

/// Why the cases cannot run here.
fn what_is_missing() -> Option<String> {
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Some("needs root, to make network namespaces".to_owned());
    }
    if let Err(error) = File::open("/dev/net/tun") {
        return Some(format!("needs /dev/net/tun: {error}"));
    }
    Command::new("ip").arg("-V").output().err().map(|error| format!("needs the command ip: {error}"))
}

/// Gives this thread, and what it starts, a network namespace.
fn own_network() {
    // SAFETY: no pointer is passed; only this thread is concerned.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    // Reports of the host's own would be frames that no case sent.
    for scope in ["all", "default"] {
        // Without IPv6 there are none.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
    }
}

fn ip(line: &str) -> String {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A tap called `tap0` that is up, with the address 10.0.0.1, behind which 10.0.0.2 is supposed to be.
fn tap() -> Tap {
    let fd = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun").unwrap();
    let mut request = [0_u8; 40];
    request[..4].copy_from_slice(b"tap0");
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request[16..18].copy_from_slice(&u16::try_from(flags).unwrap().to_le_bytes());
    // SAFETY: `request` has the size and the layout of struct ifreq: a name of 16 bytes, then the flags.
    let made = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(made, 0, "{}", io::Error::last_os_error());
    let header: libc::c_int = 12;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    let sized = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) };
    assert_eq!(sized, 0, "{}", io::Error::last_os_error());
    Tap::new(fd.into()).unwrap()
}

fn routed() -> Tap {
    let tap = tap();
    ip("link set lo up");
    route();
    tap
}

/// Makes the addresses and routes that an interface forgets when it goes down.
fn route() {
    ip("link set tap0 up");
    ip("addr replace 10.0.0.1/24 dev tap0");
    ip("neigh replace 10.0.0.2 lladdr 02:00:00:00:00:01 dev tap0");
}

/// Where the driver's things are; the same for both queues, 0x1_0000 apart.
const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x3000;
const USED: u64 = 0x4000;
const STRIDE: u64 = 0x1_0000;
const BUFFERS: u64 = 0x10_0000;
const SIZE: u16 = 256;
const RX: u64 = 0;
const TX: u64 = 1;
/// An Ethernet frame and its header.
const FRAME: u32 = 12 + 60;

/// A card with one pair and its driver.
struct Rig {
    net: Net,
    mem: Memory,
    interrupts: Arc<Interrupts>,
    doorbells: [EventFd; 2],
    offered: [u16; 2],
}

impl Rig {
    fn new(port: Arc<dyn FramePort>, without: u64) -> Self {
        Self::named("net0", port, without)
    }

    /// A card that offers its driver all but `without`, and has a worker called `name`-0.
    fn named(name: &str, port: Arc<dyn FramePort>, without: u64) -> Self {
        let config = NetConfig {
            name: name.into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            ring: SIZE,
            offloads: Offloads::NONE,
            link: Link::default(),
        };
        let mem = Memory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let interrupts = Arc::new(Interrupts::new(Vec::new(), 3));
        let doorbells = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        let mut rig = Self { net: Net::new(config, vec![port]).unwrap(), mem, interrupts, doorbells, offered: [0; 2] };
        rig.start(without);
        rig
    }

    fn start(&mut self, without: u64) {
        self.mem.write_slice(&[0; 0x2_0000], GuestAddress(0)).unwrap();
        self.offered = [0; 2];
        let active = |idx: u16, base: u64| {
            let mut queue = Queue::new(SIZE).unwrap();
            queue.try_set_desc_table_address(GuestAddress(base + TABLE)).unwrap();
            queue.try_set_avail_ring_address(GuestAddress(base + AVAIL)).unwrap();
            queue.try_set_used_ring_address(GuestAddress(base + USED)).unwrap();
            queue.set_ready(true);
            ActiveQueue { idx, queue, doorbell: self.doorbells[usize::from(idx)].try_clone().unwrap() }
        };
        let queues = vec![active(0, 0), active(1, STRIDE)];
        // The short header.
        let without = without | 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_HASH_REPORT;
        let features = self.net.features() & !without;
        let (mem, interrupts) = (self.mem.clone(), self.interrupts.clone());
        let threads = Arc::new(OwnThreads);
        self.net.start(Activation { mem, features, queues, interrupts, threads }).unwrap();
    }

    /// The driver resets the card and starts it again.
    fn reset(&mut self) {
        self.net.stop();
        self.interrupts = Arc::new(Interrupts::new(Vec::new(), 3));
        self.start(0);
    }

    /// Makes one buffer available.
    fn offer(&mut self, queue: u64, len: u32) {
        let (base, nth) = (queue * STRIDE, &mut self.offered[usize::try_from(queue).unwrap()]);
        let slot = u64::from(*nth % SIZE);
        *nth = nth.wrapping_add(1);
        let address = BUFFERS + queue * 0x40_0000 + slot * 0x2000;
        let flags: u16 = if queue == RX { 2 } else { 0 };
        self.mem.write_obj(address, GuestAddress(base + TABLE + 16 * slot)).unwrap();
        self.mem.write_obj(len, GuestAddress(base + TABLE + 16 * slot + 8)).unwrap();
        self.mem.write_obj(flags, GuestAddress(base + TABLE + 16 * slot + 12)).unwrap();
        self.mem.write_obj(u16::try_from(slot).unwrap(), GuestAddress(base + AVAIL + 4 + 2 * slot)).unwrap();
        self.mem.store(*nth, GuestAddress(base + AVAIL + 2), Ordering::Release).unwrap();
    }

    fn used(&self, queue: u64) -> u16 {
        self.mem.load(GuestAddress(queue * STRIDE + USED + 2), Ordering::Acquire).unwrap()
    }

    /// Bytes of the `nth` used buffer.
    fn used_len(&self, queue: u64, nth: u16) -> u32 {
        let at = queue * STRIDE + USED + 4 + 8 * u64::from(nth % SIZE);
        self.mem.read_obj(GuestAddress(at + 4)).unwrap()
    }

    fn ring(&self, queue: u64) {
        self.doorbells[usize::try_from(queue).unwrap()].write(1).unwrap();
    }

    fn post(&mut self, count: u16, len: u32) {
        (0..count).for_each(|_| self.offer(RX, len));
        self.ring(RX);
    }

    /// Sends `count` frames and waits until they have come back, sent or not.
    fn send(&mut self, count: u16) {
        let mut frame = [0_u8; FRAME as usize];
        frame[12..18].fill(0xff);
        frame[18..26].copy_from_slice(&[2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
        for _ in 0..count {
            let slot = u64::from(self.offered[1] % SIZE);
            self.mem.write_slice(&frame, GuestAddress(BUFFERS + 0x40_0000 + slot * 0x2000)).unwrap();
            self.offer(TX, FRAME);
        }
        self.ring(TX);
        until("every frame comes back", || self.used(TX) == self.offered[1]);
    }

    fn count(&self, name: &str) -> u64 {
        self.net.counters().into_iter().find(|counter| counter.name == name).unwrap().value
    }

    fn healthy(&self) {
        assert!(!self.interrupts.needs_reset(), "a fault of the host is none of the driver's");
    }

    /// Frames pass in both directions.
    fn works(&mut self) {
        self.healthy();
        let (sent, seen) = (self.count("tx.0.frames"), arrived("tap0"));
        self.send(3);
        assert_eq!(self.count("tx.0.frames"), sent + 3);
        assert!(arrived("tap0") >= seen + 3);
        let received = self.count("rx.0.frames");
        self.post(8, 2048);
        let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
        until("a frame is received", || {
            // Lost where the interface has just come up.
            let _ = socket.send_to(b"hello", "10.0.0.2:9");
            self.count("rx.0.frames") > received
        });
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.net.stop();
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Frames that an interface has received: for a tap, those that the card has sent.
fn arrived(link: &str) -> u64 {
    let text = ip(&format!("-s link show dev {link}"));
    let values = text.lines().skip_while(|line| !line.trim_start().starts_with("RX:")).nth(1).unwrap();
    values.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn down() {
    let mut rig = Rig::new(Arc::new(routed()), 0);
    rig.works();
    ip("link set tap0 down");
    rig.send(200);
    assert_eq!(rig.count("tx.0.port_down"), 200);
    rig.healthy();
    route();
    rig.works();
}

fn down_under_load() {
    let mut rig = Rig::new(Arc::new(routed()), 0);
    for _ in 0..20 {
        ip("link set tap0 down");
        rig.send(64);
        ip("link set tap0 up");
        rig.send(64);
    }
    assert_eq!(rig.count("tx.0.frames") + rig.count("tx.0.port_down"), 20 * 128);
    route();
    rig.works();
}

/// Processor time of the thread called `name`, in clock ticks of 10 ms (proc_pid_stat(5)).
fn processor_ticks(name: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // A thread of another case may end meanwhile.
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).ok());
    let stat = stats.into_iter().find(|stat| stat.contains(&format!("({name})"))).unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1.split(' ');
    fields.skip(14 - 3).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
}

fn deleted() {
    let mut rig = Rig::named("gone", Arc::new(routed()), 0);
    rig.post(8, 2048);
    rig.works();
    ip("link del tap0");
    rig.send(200);
    assert_eq!(rig.count("tx.0.port_gone"), 200);
    rig.healthy();
    // The descriptor of a tap that is gone is ready for ever.
    let before = processor_ticks("gone-0");
    std::thread::sleep(Duration::from_millis(500));
    assert!(processor_ticks("gone-0") - before < 10, "the worker asks it again and again");
    rig.send(1);
    rig.net.stop();
}

/// A tap that refuses the first frames, each in a way of its own.
struct Bad {
    tap: Tap,
    frames: AtomicU32,
    /// The answer for the frame after which there are so many left.
    refuse: fn(left: u32) -> io::Error,
}

impl Bad {
    fn new(frames: u32, refuse: fn(u32) -> io::Error) -> Arc<Self> {
        Arc::new(Self { tap: routed(), frames: AtomicU32::new(frames), refuse })
    }
}

impl FramePort for Bad {
    fn fd(&self) -> RawFd {
        self.tap.fd()
    }
    fn receive(&self, into: &mut IoVecs, spill: &mut [u8]) -> io::Result<usize> {
        self.tap.receive(into, spill)
    }
    fn transmit(&self, frame: &IoVecs) -> io::Result<usize> {
        let left = self.frames.load(Ordering::Relaxed);
        if left == 0 {
            return self.tap.transmit(frame);
        }
        self.frames.store(left - 1, Ordering::Relaxed);
        Err((self.refuse)(left))
    }
    fn probe_offloads(&self) -> Offloads {
        self.tap.probe_offloads()
    }
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.tap.set_offloads(offloads)
    }
    fn set_attached(&self, attached: bool) -> io::Result<()> {
        self.tap.set_attached(attached)
    }
    fn set_header_len(&self, bytes: usize) -> io::Result<()> {
        self.tap.set_header_len(bytes)
    }
    fn set_steering(&self, program: Option<BorrowedFd>) -> io::Result<()> {
        self.tap.set_steering(program)
    }
}

fn no_memory() {
    let refuse =
        |left: u32| io::Error::from_raw_os_error(if left.is_multiple_of(2) { libc::ENOBUFS } else { libc::ENOMEM });
    let mut rig = Rig::new(Bad::new(100, refuse), 0);
    rig.send(120);
    assert_eq!((rig.count("tx.0.no_memory"), rig.count("tx.0.frames")), (100, 20));
    rig.works();
}

fn panics() {
    let mut rig = Rig::new(Bad::new(2, |left| panic!("bug {left} of a test")), 0);

    for _ in 0..2 {
        rig.offer(TX, FRAME);
        rig.ring(TX);
        until("the card waits for a reset", || rig.interrupts.needs_reset());
        assert_eq!(rig.used(TX), 0);
        rig.reset();
    }

    rig.works();
}

/// Sends a datagram of `len` bytes to the card.
fn datagram(len: usize) {
    let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
    assert_eq!(socket.send_to(&vec![7; len], "10.0.0.2:9").unwrap(), len);
}

fn larger_mtu() {
    let mut rig = Rig::new(Arc::new(routed()), 0);
    ip("link set tap0 mtu 9000");
    rig.post(32, 2048);
    datagram(8900);
    until("all of the frame is received", || rig.count("rx.0.bytes") == 14 + 20 + 8 + 8900);
    rig.works();
}

fn larger_mtu_without_merging() {
    let mut rig = Rig::new(Arc::new(routed()), 1 << VIRTIO_NET_F_MRG_RXBUF);
    ip("link set tap0 mtu 9000");
    rig.post(32, 2048);
    datagram(8900);
    until("the frame is dropped", || rig.count("rx.0.too_long") == 1);
    let used = rig.used(RX);
    datagram(100);
    until("the next one is received", || rig.used(RX) > used);
    assert_eq!(rig.used_len(RX, used), 12 + 14 + 20 + 8 + 100);
    rig.works();
}

fn smaller_mtu() {
    let mut rig = Rig::new(Arc::new(routed()), 0);
    for mtu in [576, 68, 1500, 65521, 1500] {
        ip(&format!("link set tap0 mtu {mtu}"));
        // Below 1280 the kernel forgets IPv6, below 68 there is no IPv4.
        route();
        rig.works();
    }
}

fn out_of_the_bridge() {
    let port = tap();
    for line in [
        "link add br0 type bridge mcast_snooping 0",
        "link add peer0 type veth peer name port0",
        "link set port0 master br0 up",
        "link set peer0 up",
        "link set tap0 master br0 up",
        "link set br0 up",
    ] {
        ip(line);
    }
    let mut rig = Rig::new(Arc::new(port), 0);
    let mut passes = |wanted: bool| {
        let before = arrived("peer0");
        rig.send(10);
        if wanted {
            // The kernel lets a port forward a moment after it came up.
            let start = Instant::now();
            while arrived("peer0") < before + 10 {
                assert!(start.elapsed() < DEADLINE, "frames reach the bridge");
                rig.send(1);
            }
        } else {
            assert!(arrived("peer0") < before + 10, "frames pass without a bridge");
        }
        rig.healthy();
    };
    for _ in 0..3 {
        passes(true);
        ip("link set tap0 nomaster");
        passes(false);
        ip("link set tap0 master br0");
    }
    passes(true);
}
