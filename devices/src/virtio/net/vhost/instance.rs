//! One instance of the kernel's vhost-net: a thread of the kernel that moves the frames of one queue pair between its
//! rings and a tap, as a descriptor that the caller opened (linux/vhost.h, drivers/vhost/net.c).
//!
//! ```text
//!            claim            set_memory, set_ring               attach
//!   [free] --------> [owned] ---------------------> [prepared] <--------> [moving frames]
//!      ^----------------+-----------------release---------+-------detach---------'
//! ```

// The reason for `unsafe` here: the vhost ioctls.
#![expect(unsafe_code, reason = "vhost ioctls")]

use crate::virtio::host_map::HostMap;
use crate::virtio::split::SplitQueue;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use virtio_bindings::virtio_config::{VIRTIO_F_ANY_LAYOUT, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr};

/// The ioctls' type.
const VHOST_VIRTIO: libc::c_uint = 0xaf;

ioctl_ior_nr!(VHOST_GET_FEATURES, VHOST_VIRTIO, 0x00, u64);
ioctl_iow_nr!(VHOST_SET_FEATURES, VHOST_VIRTIO, 0x00, u64);
ioctl_io_nr!(VHOST_SET_OWNER, VHOST_VIRTIO, 0x01);
ioctl_io_nr!(VHOST_RESET_OWNER, VHOST_VIRTIO, 0x02);
ioctl_iow_nr!(VHOST_SET_MEM_TABLE, VHOST_VIRTIO, 0x03, MemoryHeader);
ioctl_iow_nr!(VHOST_SET_VRING_NUM, VHOST_VIRTIO, 0x10, VringState);
ioctl_iow_nr!(VHOST_SET_VRING_ADDR, VHOST_VIRTIO, 0x11, VringAddr);
ioctl_iow_nr!(VHOST_SET_VRING_BASE, VHOST_VIRTIO, 0x12, VringState);
ioctl_iow_nr!(VHOST_SET_VRING_KICK, VHOST_VIRTIO, 0x20, VringFile);
ioctl_iow_nr!(VHOST_SET_VRING_CALL, VHOST_VIRTIO, 0x21, VringFile);
ioctl_iow_nr!(VHOST_SET_VRING_ERR, VHOST_VIRTIO, 0x22, VringFile);
ioctl_iow_nr!(VHOST_NET_SET_BACKEND, VHOST_VIRTIO, 0x30, VringFile);

/// The feature bits that vhost-net gets to hear: those of the rings, and of what is in them. Bit 27 is left out, which
/// is VHOST_NET_F_VIRTIO_NET_HDR there: the tap has the header.
const RING_FEATURES: u64 = (1 << VIRTIO_F_VERSION_1)
    | (1 << VIRTIO_RING_F_EVENT_IDX)
    | (1 << VIRTIO_RING_F_INDIRECT_DESC)
    | (1 << VIRTIO_NET_F_MRG_RXBUF);
const _: () = assert!(RING_FEATURES & 1 << VIRTIO_F_ANY_LAYOUT == 0);

/// Memory regions that vhost takes unless its module was loaded with another number (`max_mem_regions`).
const REGIONS_MAX: usize = 64;

/// `struct vhost_memory` without its regions.
#[repr(C)]
struct MemoryHeader {
    count: u32,
    padding: u32,
}

/// `struct vhost_memory_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MemoryRegion {
    guest: u64,
    bytes: u64,
    host: u64,
    padding: u64,
}

/// `struct vhost_memory` with room for as many regions as there can be.
#[repr(C)]
struct MemoryTable {
    header: MemoryHeader,
    regions: [MemoryRegion; REGIONS_MAX],
}

/// `struct vhost_vring_state`.
#[repr(C)]
struct VringState {
    ring: u32,
    value: u32,
}

/// `struct vhost_vring_addr`, with addresses of the host.
#[repr(C)]
struct VringAddr {
    ring: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// `struct vhost_vring_file`.
#[repr(C)]
struct VringFile {
    ring: u32,
    fd: RawFd,
}

/// A ring of the pair, by its number in vhost-net.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Side {
    /// Receive.
    Rx = 0,
    /// Transmit.
    Tx = 1,
}

impl Side {
    /// Both.
    pub(super) const BOTH: [Self; 2] = [Self::Rx, Self::Tx];

    /// The side of the device's queue `idx`.
    pub(super) fn of(idx: u16) -> Self {
        if idx.is_multiple_of(2) { Self::Rx } else { Self::Tx }
    }
}

/// The events of a ring. The kernel keeps them itself.
pub(super) struct RingEvents<'a> {
    /// Signalled when the driver makes buffers available.
    pub(super) kick: &'a EventFd,
    /// To be signalled when the driver is to be interrupted; never without one.
    pub(super) call: Option<&'a EventFd>,
    /// To be signalled when the driver has broken the ring.
    pub(super) broken: &'a EventFd,
}

/// An instance.
pub struct Instance {
    fd: OwnedFd,
}

impl Instance {
    /// Takes over an opened `/dev/vhost-net` without an owner, and that no other process uses.
    ///
    /// # Errors
    /// If the descriptor is something else, or the kernel's vhost-net lacks features that every kernel has had since
    /// Linux 4.0.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut features = 0_u64;
        // SAFETY: VHOST_GET_FEATURES writes one u64; the descriptor is open.
        check(unsafe { ioctl_with_mut_ref(&fd, VHOST_GET_FEATURES(), &mut features) })?;
        if features & RING_FEATURES == RING_FEATURES {
            Ok(Self { fd })
        } else {
            Err(io::Error::other(format!("the kernel's vhost-net can only do {features:#x}")))
        }
    }

    /// Makes this process the owner, whose addresses vhost-net uses, and starts its thread.
    ///
    /// # Errors
    /// As the kernel says; if it has an owner, `EBUSY`.
    pub(super) fn claim(&self) -> io::Result<()> {
        // SAFETY: VHOST_SET_OWNER takes no argument.
        check(unsafe { ioctl(&self.fd, VHOST_SET_OWNER()) })
    }

    /// Ends its thread and everything that was set; it touches neither rings nor memory from here on. Without effect on
    /// an instance without an owner.
    ///
    /// # Errors
    /// As the kernel says.
    pub(super) fn release(&self) -> io::Result<()> {
        // SAFETY: VHOST_RESET_OWNER takes no argument.
        match check(unsafe { ioctl(&self.fd, VHOST_RESET_OWNER()) }) {
            // It was not claimed.
            Err(err) if err.raw_os_error() == Some(libc::EPERM) => Ok(()),
            result => result,
        }
    }

    /// Has it work on guest memory `map`, with what the driver has negotiated. The caller keeps the memory mapped until
    /// [`release`](Self::release).
    ///
    /// # Errors
    /// As the kernel says, or if memory has more regions than vhost takes.
    pub(super) fn set_memory(&self, map: &HostMap, negotiated: u64) -> io::Result<()> {
        let features = negotiated & RING_FEATURES;
        // SAFETY: VHOST_SET_FEATURES reads one u64.
        check(unsafe { ioctl_with_ref(&self.fd, VHOST_SET_FEATURES(), &features) })?;
        let count = u32::try_from(map.regions().len()).map_err(io::Error::other)?;
        if map.regions().len() > REGIONS_MAX {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        let header = MemoryHeader { count, padding: 0 };
        let mut table = MemoryTable { header, regions: [MemoryRegion::default(); REGIONS_MAX] };
        for (region, (guest, bytes, host)) in table.regions.iter_mut().zip(map.regions()) {
            let bytes = u64::try_from(bytes).map_err(io::Error::other)?;
            *region = MemoryRegion { guest, bytes, host: address(host)?, padding: 0 };
        }
        // SAFETY: VHOST_SET_MEM_TABLE reads a header and as many regions as it says, which `table` has. What vhost does
        // with the addresses is what the guest's own devices may do, and the caller keeps them mapped.
        check(unsafe { ioctl_with_ptr(&self.fd, VHOST_SET_MEM_TABLE(), &raw const table) })
    }

    /// Has it work on a ring that nothing has been taken from.
    ///
    /// # Errors
    /// As the kernel says.
    pub(super) fn set_ring(&self, side: Side, queue: &SplitQueue, events: &RingEvents<'_>) -> io::Result<()> {
        let ring = side as u32;
        let size = VringState { ring, value: queue.size().into() };
        // SAFETY: VHOST_SET_VRING_NUM reads one struct vhost_vring_state.
        check(unsafe { ioctl_with_ref(&self.fd, VHOST_SET_VRING_NUM(), &size) })?;
        let base = VringState { ring, value: 0 };
        // SAFETY: VHOST_SET_VRING_BASE reads one struct vhost_vring_state.
        check(unsafe { ioctl_with_ref(&self.fd, VHOST_SET_VRING_BASE(), &base) })?;
        let [descriptors, available, used] = queue.parts().map(address);
        let (descriptors, available, used) = (descriptors?, available?, used?);
        let addresses = VringAddr { ring, flags: 0, descriptors, used, available, log: 0 };
        // SAFETY: VHOST_SET_VRING_ADDR reads one struct vhost_vring_addr. The rings are in guest memory, which
        // `set_memory` has set.
        check(unsafe { ioctl_with_ref(&self.fd, VHOST_SET_VRING_ADDR(), &addresses) })?;
        let broken = VringFile { ring, fd: events.broken.as_raw_fd() };
        // SAFETY: VHOST_SET_VRING_ERR reads one struct vhost_vring_file.
        check(unsafe { ioctl_with_ref(&self.fd, VHOST_SET_VRING_ERR(), &broken) })?;
        self.set_call(side, events.call)?;
        let kick = VringFile { ring, fd: events.kick.as_raw_fd() };
        // SAFETY: VHOST_SET_VRING_KICK reads one struct vhost_vring_file.
        check(unsafe { ioctl_with_ref(&self.fd, VHOST_SET_VRING_KICK(), &kick) })
    }

    /// Has it interrupt by signalling `call` from now on, or not at all.
    ///
    /// # Errors
    /// As the kernel says.
    pub(super) fn set_call(&self, side: Side, call: Option<&EventFd>) -> io::Result<()> {
        let call = VringFile { ring: side as u32, fd: call.map_or(NO_FD, AsRawFd::as_raw_fd) };
        // SAFETY: VHOST_SET_VRING_CALL reads one struct vhost_vring_file.
        check(unsafe { ioctl_with_ref(&self.fd, VHOST_SET_VRING_CALL(), &call) })
    }

    /// Moves frames between both rings and the tap from now on. The tap's queue is attached to its interface.
    ///
    /// # Errors
    /// As the kernel says; no frames are moved then.
    pub(super) fn attach(&self, tap: RawFd) -> io::Result<()> {
        let attached = Side::BOTH.iter().try_for_each(|side| self.set_backend(*side, tap));
        // A ring without the other is of no use; the error that is told is the first.
        attached.inspect_err(|_| _ = self.detach())
    }

    /// Moves no frames from now on; the rings stay as they are.
    ///
    /// # Errors
    /// As the kernel says.
    pub(super) fn detach(&self) -> io::Result<()> {
        // Both, also when one fails.
        Side::BOTH.iter().map(|side| self.set_backend(*side, NO_FD)).fold(Ok(()), io::Result::and)
    }

    fn set_backend(&self, side: Side, fd: RawFd) -> io::Result<()> {
        let backend = VringFile { ring: side as u32, fd };
        // SAFETY: VHOST_NET_SET_BACKEND reads one struct vhost_vring_file.
        check(unsafe { ioctl_with_ref(&self.fd, VHOST_NET_SET_BACKEND(), &backend) })
    }
}

/// In place of a descriptor: none.
const NO_FD: RawFd = -1;

/// An address of this process, for the kernel.
fn address(host: *mut u8) -> io::Result<u64> {
    u64::try_from(host.expose_provenance()).map_err(io::Error::other)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn ioctls_have_the_numbers_of_the_kernel() {
        assert_eq!(
            [VHOST_GET_FEATURES(), VHOST_SET_FEATURES(), VHOST_SET_OWNER(), VHOST_RESET_OWNER(), VHOST_SET_MEM_TABLE()],
            [0x8008_af00, 0x4008_af00, 0xaf01, 0xaf02, 0x4008_af03]
        );
        assert_eq!(
            [VHOST_SET_VRING_NUM(), VHOST_SET_VRING_ADDR(), VHOST_SET_VRING_BASE(), VHOST_NET_SET_BACKEND()],
            [0x4008_af10, 0x4028_af11, 0x4008_af12, 0x4008_af30]
        );
        assert_eq!(
            [VHOST_SET_VRING_KICK(), VHOST_SET_VRING_CALL(), VHOST_SET_VRING_ERR()],
            [0x4008_af20, 0x4008_af21, 0x4008_af22]
        );
    }

    #[test]
    fn memory_table_has_the_layout_of_the_kernel() {
        assert_eq!((size_of::<MemoryRegion>(), std::mem::offset_of!(MemoryTable, regions)), (32, 8));
    }

    #[test]
    fn descriptor_of_something_else_is_refused() {
        let null = File::open("/dev/null").unwrap();

        assert!(Instance::new(null.into()).is_err());
    }
}
