//! Taps of the benchmark itself: ports of the bridge behind which frames begin, end, or turn around.
//!
//! Unsafe, because a tap is made by ioctl on `/dev/net/tun` (Documentation/networking/tuntap.rst) and no safe crate
//! here does that.
#![expect(unsafe_code, reason = "the ioctl that makes taps takes untyped pointers")]

use crate::lan::sh;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// `struct virtio_net_hdr_v1`, as in front of every frame of a card.
pub(super) const HEADER_BYTES: usize = 12;
const FRAME_FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
/// The offloads of a guest: unfinished checksums and TCP super-frames.
const OFFLOADS: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;

/// `struct ifreq` with the member that `TUNSETIFF` uses (linux/if.h).
#[repr(C)]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

/// A tap with one queue, non-blocking; it goes when this is dropped.
#[derive(Debug)]
pub(super) struct Tap {
    name: String,
    /// Frames, each with its header in front.
    pub(super) queue: File,
}

impl Tap {
    /// Makes a tap on a bridge.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub(super) fn new(name: &str, bridge: &str) -> io::Result<Self> {
        let queue = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        let mut req = IfReq {
            name: [0; libc::IFNAMSIZ],
            flags: u16::try_from(FRAME_FLAGS).map_err(io::Error::other)?,
            rest: [0; 22],
        };
        for (to, from) in req.name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
            *to = from;
        }
        // SAFETY: TUNSETIFF reads and writes one struct ifreq, which `req` is in size and layout; it lives through the
        // call.
        check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF, &raw mut req) })?;
        let header = libc::c_int::try_from(HEADER_BYTES).map_err(io::Error::other)?;
        // SAFETY: TUNSETVNETHDRSZ reads one int, which lives through the call.
        check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) })?;
        // SAFETY: TUNSETOFFLOAD takes its bits by value.
        check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(OFFLOADS)) })?;
        sh(&format!("ip link set {name} master {bridge} up"));
        Ok(Self { name: name.to_owned(), queue })
    }

    /// Makes its queue, which drops what does not fit, that long.
    pub(super) fn set_depth(&self, frames: u64) {
        set_depth(&self.name, frames);
    }

    /// Frames that the kernel has handed to the tap: those that were read, and those that met a full queue.
    pub(super) fn arrived(&self) -> u64 {
        statistic(&self.name, "tx_packets") + statistic(&self.name, "tx_dropped")
    }
}

/// Makes the queue of a tap that long, in frames.
pub(super) fn set_depth(tap: &str, frames: u64) {
    sh(&format!("ip link set {tap} txqueuelen {frames}"));
}

/// A counter of an interface; 0 if the interface is gone.
pub(super) fn statistic(interface: &str, counter: &str) -> u64 {
    let text = fs::read_to_string(format!("/sys/class/net/{interface}/statistics/{counter}"));
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
