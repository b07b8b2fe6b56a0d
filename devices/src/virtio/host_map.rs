//! Guest memory as host addresses.
//!
//! The data path asks for the place of a guest address several times for each frame. A guest has one or two memory
//! regions, so a walk over a short array is all that takes. No reference into guest memory is ever formed here.

// The reason for `unsafe` here: raw addresses that have to move between threads.
#![expect(unsafe_code, reason = "host addresses are Send and Sync")]

use crate::virtio::device::Memory;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// A guest memory region in the host's address space.
#[derive(Clone, Copy)]
struct Span {
    start: u64,
    len: usize,
    host: *mut u8,
}

/// Where guest memory is in the host's address space. Holds guest memory, so every address it gives stays mapped as
/// long as it lives.
#[derive(Clone)]
pub(super) struct HostMap {
    mem: Memory,
    spans: Vec<Span>,
}

// SAFETY: the addresses belong to `mem`, which is Send and Sync; whoever dereferences them answers for how.
unsafe impl Send for HostMap {}
// SAFETY: as above.
unsafe impl Sync for HostMap {}

impl HostMap {
    /// The regions of `mem`.
    pub(super) fn new(mem: Memory) -> Self {
        let span = |region: &<Memory as GuestMemoryBackend>::R| {
            // A region that has no host address cannot be reached by the guest's devices either.
            let host = region.get_host_address(MemoryRegionAddress(0)).ok()?;
            Some(Span { start: region.start_addr().raw_value(), len: usize::try_from(region.len()).ok()?, host })
        };
        let spans = mem.iter().filter_map(span).collect();
        Self { mem, spans }
    }

    /// Guest memory.
    pub(super) fn mem(&self) -> &Memory {
        &self.mem
    }

    /// The regions: guest address, bytes, host address.
    pub(super) fn regions(&self) -> impl ExactSizeIterator<Item = (u64, usize, *mut u8)> {
        self.spans.iter().map(|span| (span.start, span.len, span.host))
    }

    /// The host address of `addr`, and how many bytes can be reached from there on.
    #[inline]
    pub(super) fn at(&self, addr: u64) -> Option<(*mut u8, usize)> {
        self.spans.iter().find_map(|span| {
            let offset = usize::try_from(addr.wrapping_sub(span.start)).ok()?;
            (offset < span.len).then(|| (span.host.wrapping_add(offset), span.len - offset))
        })
    }

    /// The host address of `len` bytes at `addr` that are in one region.
    #[inline]
    pub(super) fn contiguous(&self, addr: u64, len: usize) -> Option<*mut u8> {
        self.at(addr).filter(|(_, reach)| len <= *reach).map(|(host, _)| host)
    }

    /// Returns whether `len` bytes at `addr` are in guest memory. They may cross from one region into the next.
    #[inline]
    pub(super) fn covers(&self, addr: u64, len: usize) -> bool {
        let (mut addr, mut left) = (addr, len);
        loop {
            let Some((_, reach)) = self.at(addr) else { return false };
            if left <= reach {
                return true;
            }
            // A region ends within the address space, so this does not wrap.
            addr = addr.wrapping_add(u64::try_from(reach).unwrap_or(u64::MAX));
            left -= reach;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    /// Two regions that touch at 0x1000, a hole at 0x2000, and one more page.
    fn map() -> HostMap {
        let ranges = [(0, 0x1000), (0x1000, 0x1000), (0x3000, 0x1000)].map(|(at, len)| (GuestAddress(at), len));
        HostMap::new(Memory::from_ranges(&ranges).unwrap())
    }

    #[test]
    fn addresses_lead_to_the_same_bytes() {
        let map = map();
        map.mem().write_slice(b"x", GuestAddress(0x3123)).unwrap();
        let (host, reach) = map.at(0x3123).unwrap();
        // SAFETY: a byte of guest memory that no other thread has.
        assert_eq!((unsafe { host.read() }, reach), (b'x', 0xedd));
        assert!(map.at(0x2000).is_none() && map.at(u64::MAX).is_none());
    }

    #[test]
    fn ranges_may_cross_regions_but_not_holes() {
        let map = map();
        for (addr, len, covered, contiguous) in [
            (0, 0x1000, true, true),
            (0xfff, 2, true, false),
            (0, 0x2000, true, false),
            (0, 0x2001, false, false),
            (0x1fff, 0x1002, false, false),
            (0x3fff, 1, true, true),
            (0x3fff, 2, false, false),
            (u64::MAX, 2, false, false),
            (0, usize::MAX, false, false),
        ] {
            assert_eq!(map.covers(addr, len), covered, "{addr:#x} {len:#x}");
            assert_eq!(map.contiguous(addr, len).is_some(), contiguous, "{addr:#x} {len:#x}");
        }
    }
}
