//! A queue of a tap, as a descriptor that the caller opened.

// The reason for `unsafe` here: the tun ioctls.
#![expect(unsafe_code, reason = "tun ioctls")]

use crate::virtio::iovec::IoVecs;
use crate::virtio::net::offload::Offloads;
use crate::virtio::net::port::FramePort;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

/// One queue of a tap with virtio headers.
pub struct Tap {
    fd: OwnedFd,
    /// A tap made with one queue only has nothing to attach or detach.
    multi_queue: bool,
    /// The state that was last asked for and set; to find out that nothing changes, the kernel takes a lock of the
    /// whole host.
    attached: Mutex<Option<bool>>,
    /// The same for the interface's offloads, which all set through one queue.
    offloads: Mutex<Option<Offloads>>,
    /// The same for the length of its header.
    header_len: Mutex<Option<usize>>,
    /// True if it may have a program.
    steered: Mutex<bool>,
}

impl Tap {
    /// Takes over a queue that was opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR, has 12-byte headers and does not
    /// block.
    ///
    /// # Errors
    /// If the descriptor is not such a queue.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = interface_flags(&fd)?;
        if flags & (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)
            != libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR
        {
            return Err(io::Error::other("it is not a tap with virtio headers (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR)"));
        }
        let multi_queue = flags & libc::IFF_MULTI_QUEUE != 0;
        let (attached, offloads, header_len) = Default::default();
        Ok(Self { fd, multi_queue, attached, offloads, header_len, steered: Mutex::new(true) })
    }
}

impl FramePort for Tap {
    fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn stays_readable(&self) -> bool {
        true
    }

    fn receive(&self, into: &mut IoVecs, spill: &mut [u8]) -> io::Result<usize> {
        into.readv_spilling(self.fd.as_fd(), spill)
    }

    fn transmit(&self, frame: &IoVecs) -> io::Result<usize> {
        frame.write_whole(self.fd.as_fd())
    }

    /// The kernel does not tell what it can do; it refuses what it cannot.
    fn probe_offloads(&self) -> Offloads {
        Offloads::CANDIDATES.into_iter().find(|able| self.set_offloads(*able).is_ok()).unwrap_or(Offloads::NONE)
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let mut before = self.offloads.lock().unwrap_or_else(PoisonError::into_inner);
        if *before != Some(offloads) {
            // Unknown until it is done.
            *before = None;
            set_offloads(&self.fd, offloads)?;
            *before = Some(offloads);
        }
        Ok(())
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        if !self.multi_queue {
            return if attached { Ok(()) } else { Err(io::Error::other("the tap has only one queue")) };
        }
        let mut before = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        if *before == Some(attached) {
            return Ok(());
        }
        let mut request = empty_request();
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = to_short(flag);
        // SAFETY: TUNSETQUEUE reads one ifreq.
        match check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETQUEUE, &request) }) {
            // The queue already is as wanted.
            Err(err) if err.raw_os_error() == Some(libc::EINVAL) => {}
            result => result?,
        }
        *before = Some(attached);
        Ok(())
    }

    fn set_header_len(&self, bytes: usize) -> io::Result<()> {
        let mut before = self.header_len.lock().unwrap_or_else(PoisonError::into_inner);
        if *before != Some(bytes) {
            *before = None;
            let number = libc::c_int::try_from(bytes).map_err(io::Error::other)?;
            // SAFETY: TUNSETVNETHDRSZ reads one int.
            check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &number) })?;
            *before = Some(bytes);
        }
        Ok(())
    }

    fn set_steering(&self, program: Option<BorrowedFd>) -> io::Result<()> {
        let mut steered = self.steered.lock().unwrap_or_else(PoisonError::into_inner);
        if program.is_none() && !*steered {
            return Ok(());
        }
        let number = program.map_or(-1, |program| program.as_raw_fd());
        // SAFETY: TUNSETSTEERINGEBPF reads one int.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETSTEERINGEBPF, &number) })?;
        *steered = program.is_some();
        Ok(())
    }
}

fn set_offloads(fd: &OwnedFd, offloads: Offloads) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads.bits())) })
}

fn interface_flags(fd: &OwnedFd) -> io::Result<libc::c_int> {
    let mut request = empty_request();
    // SAFETY: TUNGETIFF writes one ifreq.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &mut request) })?;
    // SAFETY: TUNGETIFF fills in the flags member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(libc::c_int::from(flags) & 0xffff)
}

fn empty_request() -> libc::ifreq {
    libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_ifindex: 0 } }
}

fn to_short(flag: libc::c_int) -> libc::c_short {
    // The flags that are used here fit: 0x200 and 0x400.
    libc::c_short::try_from(flag).unwrap_or(0)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
