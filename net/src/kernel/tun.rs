//! Queues of tun and tap devices, by ioctl on `/dev/net/tun` (Documentation/networking/tuntap.rst), and of macvtaps,
//! which take the same.
//!
//! The kernel offers no other interface for this. Every function takes and gives owned descriptors; callers decide the
//! use of a queue.
#![allow(unsafe_code)] // ioctl(2) takes untyped pointers.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use serde::Serialize;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ref};

/// Name pattern of new taps: the kernel fills in the lowest free number.
pub(crate) const TAP_PATTERN: &str = "vmtap%d";

/// The prefix of such a name.
pub(crate) const TAP_PREFIX: [u8; 5] = *b"vmtap";

/// Bytes before every frame: `struct virtio_net_hdr_v1` (virtio 1.3 5.1.6.1).
const VNET_HEADER_BYTES: libc::c_int = 12;

/// `TUNGETDEVNETNS` (linux/if_tun.h).
const TUNGETDEVNETNS: libc::c_ulong = 0x54e3;

/// Flags with which every tap of a card is opened.
const FRAME_FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// The kind of an inherited descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FdKind {
    /// Not open.
    Closed,
    /// Not a queue of a tun or tap.
    Other,
    /// A queue of a tun or tap.
    Tun {
        /// The interface.
        name: String,
        /// It carries Ethernet frames without the packet-information prefix (`IFF_TAP`, `IFF_NO_PI`).
        frames: bool,
        /// Every frame has a virtio-net header (`IFF_VNET_HDR`).
        vnet_header: bool,
    },
}

/// The driver of a queue's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TapKind {
    /// A tap: the guest's frames come in on it.
    Tap,
    /// A macvtap: the guest's frames go out on it. It takes no steering program.
    Macvtap,
}

/// The device type that `TUNSETIFF` asks for: single-queue or multi-queue. It is fixed at creation, and every later
/// queue has to ask for the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueueMode {
    /// One queue.
    Single,
    /// Up to 256 queues (`IFF_MULTI_QUEUE`).
    Multi,
}

impl QueueMode {
    /// A device for this many queues.
    ///
    /// One queue does without the multi-queue device, for which the kernel allocates 256 queues.
    pub(crate) fn for_queues(queues: u16) -> Self {
        if queues > 1 { Self::Multi } else { Self::Single }
    }

    fn flag(self) -> libc::c_int {
        match self {
            Self::Single => 0,
            Self::Multi => libc::IFF_MULTI_QUEUE,
        }
    }
}

/// `struct ifreq` with the member that `TUNSETIFF` and `TUNGETIFF` use (linux/if.h).
#[repr(C)]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

impl IfReq {
    /// `name` is cut at the length of an interface name.
    fn new(name: &str, flags: libc::c_int) -> io::Result<Self> {
        let mut req = Self { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
        req.flags = u16::try_from(flags).map_err(io::Error::other)?;
        for (to, from) in req.name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
            *to = from;
        }
        Ok(req)
    }

    fn name(&self) -> String {
        let end = self.name.iter().position(|byte| *byte == 0).unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }
}

/// Opens the device that creates taps.
pub(crate) fn open_device() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")
}

/// Creates a tap of this name or name pattern, from one open device per queue. It goes with the last descriptor.
///
/// Returns its name.
pub(crate) fn create(queues: &[File], name: &str, mode: QueueMode) -> io::Result<String> {
    let mut name = name.to_owned();
    for queue in queues {
        name = attach(queue, &name, mode)?;
    }
    Ok(name)
}

/// Makes an open device a queue of the tap called `name`. A macvtap's already is one, and only learns its frame format.
///
/// Returns the tap's name, which differs if `name` is a pattern.
pub(crate) fn attach(queue: &File, name: &str, mode: QueueMode) -> io::Result<String> {
    let mut req = IfReq::new(name, FRAME_FLAGS | mode.flag())?;
    // SAFETY: TUNSETIFF reads and writes one struct ifreq, which `req` is in size and layout; `queue` is open.
    let result = unsafe { ioctl_with_mut_ref(queue, libc::TUNSETIFF, &mut req) };
    check(result)?;
    set_header_size(queue)?;
    Ok(req.name())
}

/// Prepares a queue that another process attached: header size, non-blocking.
pub(crate) fn adopt(queue: &OwnedFd) -> io::Result<()> {
    set_header_size(queue)?;
    // SAFETY: F_GETFL takes no argument and `queue` is open.
    let flags = check(unsafe { libc::fcntl(queue.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: F_SETFL takes an int and `queue` is open.
    check(unsafe { libc::fcntl(queue.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// The kind of an open descriptor.
pub(crate) fn inspect(fd: &OwnedFd) -> FdKind {
    let Ok(mut req) = IfReq::new("", 0) else { return FdKind::Other };
    // SAFETY: TUNGETIFF writes one struct ifreq, which `req` is in size and layout; on a descriptor that is not a tun
    // queue the number is unknown or belongs to no driver that writes more (type 'T', number 210).
    let result = unsafe { ioctl_with_mut_ref(fd, libc::TUNGETIFF, &mut req) };
    if check(result).is_err() {
        return FdKind::Other;
    }
    let flags = libc::c_int::from(req.flags);
    let frame_flags = libc::IFF_TAP | libc::IFF_NO_PI;
    FdKind::Tun {
        name: req.name(),
        frames: flags & frame_flags == frame_flags,
        vnet_header: flags & libc::IFF_VNET_HDR != 0,
    }
}

/// True if the tap of a queue is in this process's network namespace; false if unknown: the kernel tells only processes
/// that may configure the tap's namespace.
pub(crate) fn is_in_our_namespace(queue: &OwnedFd) -> bool {
    // SAFETY: TUNGETDEVNETNS takes no argument and gives a new descriptor.
    let Ok(fd) = check(unsafe { ioctl(queue, TUNGETDEVNETNS) }) else { return false };
    // SAFETY: the kernel has just put this descriptor into our table and no other code knows its number.
    let theirs = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let identity = |file: File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
    match (identity(theirs), File::open("/proc/self/ns/net").and_then(identity)) {
        (Ok(theirs), Ok(ours)) => theirs == ours,
        _ => false,
    }
}

/// Lifts a queue's send limit, as taps have none; the queues of the lower interface have theirs. A macvtap's default is
/// 208 KiB, some three large frames.
pub(crate) fn lift_send_limit(queue: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: TUNSETSNDBUF reads one int; `queue` is open.
    let result = unsafe { ioctl_with_ref(queue, libc::TUNSETSNDBUF, &libc::c_int::MAX) };
    check(result).map(drop)
}

/// Limits the bytes of frames that each queue of a tap takes before the first of them has reached its destination.
pub(crate) fn limit_sending(queue: &OwnedFd, bytes: u64) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: TUNSETSNDBUF reads one int; `queue` is open.
    let result = unsafe { ioctl_with_ref(queue, libc::TUNSETSNDBUF, &bytes) };
    check(result).map(drop)
}

fn set_header_size(queue: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int; `queue` is open.
    let result = unsafe { ioctl_with_ref(queue, libc::TUNSETVNETHDRSZ, &VNET_HEADER_BYTES) };
    check(result).map(drop)
}

/// The result of a system call that is negative on failure.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
