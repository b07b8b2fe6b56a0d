//! A split virtqueue (virtio 1.3 2.7) as it lies in memory: the three parts, field by field.
//!
//! ```text
//! descriptor table   16 bytes each: address u64, length u32, flags u16, next u16
//! available ring     flags u16, idx u16, ring [u16; size], used_event u16
//! used ring          flags u16, idx u16, ring [(id u32, len u32); size], avail_event u16
//! ```
//!
//! The transport has checked where the parts are and how they are aligned; here every index is taken modulo the size of
//! the queue. The driver writes at any time, so every field is read once and by an atomic load.

// The reason for `unsafe` here: atomic access to rings in guest memory, several times for each frame.
#![expect(unsafe_code, reason = "rings are accessed by host address")]

use crate::virtio::chain::{BadChain, Buffer, Chain, MAX_BYTES};
use crate::virtio::host_map::HostMap;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

/// Bytes of a descriptor, of the fields in front of both rings, and of an element of the available and the used ring.
const DESCRIPTOR: usize = 16;
const RING_HEADER: usize = 4;
const AVAIL_ELEMENT: usize = 2;
const USED_ELEMENT: usize = 8;

/// Offset of `flags` and `idx` in both rings.
const FLAGS: usize = 0;
const IDX: usize = 2;

/// A descriptor as the driver wrote it.
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn from_words([addr, rest]: [u64; 2]) -> Self {
        let [l0, l1, l2, l3, f0, f1, n0, n1] = rest.to_ne_bytes();
        Self {
            addr: u64::from_le(addr),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    fn has(self, flag: u32) -> bool {
        u32::from(self.flags) & flag != 0
    }
}

/// A split virtqueue in guest memory.
pub(super) struct SplitQueue {
    map: HostMap,
    size: u16,
    /// All three stay mapped as long as `map` lives and are as long as `size` demands.
    descriptors: *mut u8,
    available: *mut u8,
    used: *mut u8,
}

// SAFETY: the addresses belong to `map`, which is Send, and are accessed by atomic loads and stores only.
unsafe impl Send for SplitQueue {}

impl SplitQueue {
    /// The queue that `queue` describes. `None` if it is not valid, or one of its parts is not contiguous in the host.
    pub(super) fn new(queue: &Queue, map: HostMap) -> Option<Self> {
        let size = queue.size();
        let slots = usize::from(size);
        let part = |addr: u64, len: usize, align: usize| {
            map.contiguous(addr, len).filter(|host| host.addr().is_multiple_of(align))
        };
        let descriptors = part(queue.desc_table(), slots * DESCRIPTOR, 16)?;
        let available = part(queue.avail_ring(), RING_HEADER + slots * AVAIL_ELEMENT + 2, 2)?;
        let used = part(queue.used_ring(), RING_HEADER + slots * USED_ELEMENT + 2, 4)?;
        size.is_power_of_two().then_some(Self { map, size, descriptors, available, used })
    }

    /// The host addresses of the descriptor table, the available ring and the used ring.
    pub(super) fn parts(&self) -> [*mut u8; 3] {
        [self.descriptors, self.available, self.used]
    }

    /// Number of descriptors, a power of two.
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Where guest memory is.
    pub(super) fn map(&self) -> &HostMap {
        &self.map
    }

    /// The index behind the last available element. Acquire: the elements before it. Pairs with the driver's write
    /// barrier.
    #[inline]
    pub(super) fn avail_idx(&self) -> u16 {
        self.available_u16(IDX).load(Ordering::Acquire).to_le()
    }

    /// The head of the chain in the available element `at`.
    #[inline]
    pub(super) fn avail_head(&self, at: u16) -> u16 {
        self.available_u16(RING_HEADER + self.slot(at) * AVAIL_ELEMENT).load(Ordering::Relaxed).to_le()
    }

    /// The driver's flags: whether it wants interrupts.
    #[inline]
    pub(super) fn avail_flags(&self) -> u16 {
        self.available_u16(FLAGS).load(Ordering::Relaxed).to_le()
    }

    /// The used index at which the driver wants an interrupt.
    #[inline]
    pub(super) fn used_event(&self) -> u16 {
        self.available_u16(RING_HEADER + usize::from(self.size) * AVAIL_ELEMENT).load(Ordering::Relaxed).to_le()
    }

    /// Writes the used element `at`; the driver looks at it once the index is past it.
    #[inline]
    pub(super) fn set_used(&self, at: u16, head: u16, len: u32) {
        let element = u64::from(head) | u64::from(len) << 32;
        let host = self.used.wrapping_add(RING_HEADER + self.slot(at) * USED_ELEMENT);
        // SAFETY: within the used ring, which `map` keeps mapped. Elements are aligned to 4 bytes only, so there is no
        // atomic type for the whole; the driver does not read it before the index says so.
        unsafe { host.cast::<u64>().write_unaligned(element.to_le()) };
    }

    /// Publishes the used elements before `idx`. Release: the elements. Pairs with the driver's read barrier.
    #[inline]
    pub(super) fn set_used_idx(&self, idx: u16) {
        self.used_u16(IDX).store(idx.to_le(), Ordering::Release);
    }

    /// Our flags: whether we want doorbells.
    #[inline]
    pub(super) fn set_used_flags(&self, flags: u16) {
        self.used_u16(FLAGS).store(flags.to_le(), Ordering::Relaxed);
    }

    /// The available index at which we want a doorbell.
    #[inline]
    pub(super) fn set_avail_event(&self, idx: u16) {
        self.used_u16(RING_HEADER + usize::from(self.size) * USED_ELEMENT).store(idx.to_le(), Ordering::Relaxed);
    }

    /// Reads the chain that begins with descriptor `head` whole into `chain`, replacing what was there. Empty buffers
    /// are dropped.
    ///
    /// # Errors
    /// If the chain breaks a rule; `chain` is then of no use.
    pub(super) fn read_chain(&self, head: u16, chain: &mut Chain) -> Result<(), BadChain> {
        chain.clear();
        let mut table = Table { host: self.descriptors, len: self.size, indirect: false };
        let (mut idx, mut room) = (head, MAX_BYTES);
        // virtio 1.3 2.7.5.3.1: an indirect table is no way around the longest chain.
        for _ in 0..self.size {
            let mut desc = table.read(idx).ok_or(BadChain::Broken)?;
            if desc.has(VRING_DESC_F_INDIRECT) {
                if table.indirect || desc.has(VRING_DESC_F_NEXT) {
                    return Err(BadChain::Broken);
                }
                table = self.indirect(desc)?;
                desc = table.read(0).filter(|first| !first.has(VRING_DESC_F_INDIRECT)).ok_or(BadChain::Broken)?;
            }
            self.push(chain, desc)?;
            room = room.checked_sub(desc.len.into()).ok_or(BadChain::TooLong)?;
            if !desc.has(VRING_DESC_F_NEXT) {
                return Ok(());
            }
            idx = desc.next;
        }
        Err(BadChain::Broken)
    }

    fn indirect(&self, desc: Descriptor) -> Result<Table, BadChain> {
        let (len, rest) = (desc.len as usize / DESCRIPTOR, desc.len as usize % DESCRIPTOR);
        let len = u16::try_from(len).ok().filter(|len| *len > 0 && rest == 0).ok_or(BadChain::Broken)?;
        let host = self.map.contiguous(desc.addr, desc.len as usize).ok_or(BadChain::OutsideMemory)?;
        Ok(Table { host, len, indirect: true })
    }

    #[inline]
    fn push(&self, chain: &mut Chain, desc: Descriptor) -> Result<(), BadChain> {
        let writable = desc.has(VRING_DESC_F_WRITE);
        if !writable && !chain.writable.is_empty() {
            return Err(BadChain::ReadableAfterWritable);
        }
        if desc.len == 0 {
            return Ok(());
        }
        if !self.map.covers(desc.addr, desc.len as usize) {
            return Err(BadChain::OutsideMemory);
        }
        let buffer = Buffer { addr: GuestAddress(desc.addr), len: desc.len };
        if writable {
            chain.writable.push(buffer)
        } else {
            chain.readable.push(buffer)
        }
        Ok(())
    }

    fn slot(&self, at: u16) -> usize {
        usize::from(at & (self.size - 1))
    }

    fn available_u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: callers stay within the available ring, which `map` keeps mapped; it is aligned to 2 bytes and so is
        // `offset`.
        unsafe { AtomicU16::from_ptr(self.available.wrapping_add(offset).cast()) }
    }

    fn used_u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as above, for the used ring.
        unsafe { AtomicU16::from_ptr(self.used.wrapping_add(offset).cast()) }
    }
}

/// The table that a chain's descriptors are in.
struct Table {
    host: *mut u8,
    len: u16,
    indirect: bool,
}

impl Table {
    #[inline]
    fn read(&self, idx: u16) -> Option<Descriptor> {
        if idx >= self.len {
            return None;
        }
        let at = self.host.wrapping_add(usize::from(idx) * DESCRIPTOR).cast::<u64>();
        let words = if at.is_aligned() {
            // SAFETY: both words are within the table, which the queue's map keeps mapped, and aligned.
            [at, at.wrapping_add(1)].map(|word| unsafe { AtomicU64::from_ptr(word) }.load(Ordering::Relaxed))
        } else {
            // SAFETY: within the table; an indirect table may lie anywhere.
            [at, at.wrapping_add(1)].map(|word| unsafe { word.read_unaligned() })
        };
        Some(Descriptor::from_words(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::device::Memory;
    use vm_memory::Bytes;

    const SIZE: u16 = 4;
    const TABLE: u64 = 0x1000;
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;

    fn queue() -> (SplitQueue, Memory) {
        let mem = Memory::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap();
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(0x1000), None);
        queue.set_avail_ring_address(Some(0x2000), None);
        queue.set_used_ring_address(Some(0x3000), None);
        (SplitQueue::new(&queue, HostMap::new(mem.clone())).unwrap(), mem)
    }

    fn describe(mem: &Memory, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        mem.write_obj(addr, GuestAddress(at)).unwrap();
        mem.write_obj(len, GuestAddress(at + 8)).unwrap();
        mem.write_obj(flags, GuestAddress(at + 12)).unwrap();
        mem.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    fn lengths(queue: &SplitQueue) -> Result<(Vec<u32>, Vec<u32>), BadChain> {
        let mut chain = Chain::default();
        queue.read_chain(0, &mut chain)?;
        let lengths = |buffers: &[Buffer]| buffers.iter().map(|buffer| buffer.len).collect();
        Ok((lengths(&chain.readable), lengths(&chain.writable)))
    }

    #[test]
    fn indirect_table_may_lie_at_any_address_and_be_as_long_as_the_queue() {
        for table in [0x4000, 0x4001, 0x4004] {
            let (queue, mem) = queue();
            describe(&mem, TABLE, table, 4 * 16, INDIRECT, 0);
            for i in 0..4_u16 {
                let flags = if i < 3 { NEXT } else { WRITE };
                describe(&mem, table + u64::from(i) * 16, 0x5000, 10 + u32::from(i), flags, i + 1);
            }
            assert_eq!(lengths(&queue), Ok((vec![10, 11, 12], vec![13])), "{table:#x}");
        }
    }

    #[test]
    fn indirect_table_that_breaks_a_rule_is_refused() {
        type Fill = dyn Fn(&Memory);
        let cases: [(&str, u32, u16, &Fill); 6] = [
            ("longer than the queue", 5 * 16, INDIRECT, &|mem| {
                (0..5).for_each(|i| {
                    describe(mem, 0x4000 + u64::from(i) * 16, 0x5000, 1, if i < 4 { NEXT } else { 0 }, i + 1)
                });
            }),
            ("nested", 16, INDIRECT, &|mem| describe(mem, 0x4000, 0x4000, 16, INDIRECT, 0)),
            ("with a successor", 16, INDIRECT | NEXT, &|mem| describe(mem, 0x4000, 0x5000, 1, 0, 0)),
            ("empty", 0, INDIRECT, &|_| {}),
            ("not of whole descriptors", 17, INDIRECT, &|mem| describe(mem, 0x4000, 0x5000, 1, 0, 0)),
            ("left by its own link", 16, INDIRECT, &|mem| describe(mem, 0x4000, 0x5000, 1, NEXT, 1)),
        ];
        for (name, len, flags, fill) in cases {
            let (queue, mem) = queue();
            describe(&mem, TABLE, 0x4000, len, flags, 1);
            fill(&mem);
            assert_eq!(lengths(&queue), Err(BadChain::Broken), "{name}");
        }
        let (queue, mem) = queue();
        describe(&mem, TABLE, 0x7ff8, 16, INDIRECT, 0);
        assert_eq!(lengths(&queue), Err(BadChain::OutsideMemory));
    }

    #[test]
    fn chain_of_more_than_4_gib_is_refused_and_one_of_4_gib_is_not() {
        // Of the same memory, of which nothing is touched.
        const GIB: u32 = 1 << 30;
        let mem = Memory::from_ranges(&[(GuestAddress(0), GIB as usize + 0x1000)]).unwrap();
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(0x1000), None);
        queue.set_avail_ring_address(Some(0x2000), None);
        queue.set_used_ring_address(Some(0x3000), None);
        let queue = SplitQueue::new(&queue, HostMap::new(mem.clone())).unwrap();
        for (last, expected) in [(GIB, Ok((vec![GIB; 2], vec![GIB; 2]))), (GIB + 1, Err(BadChain::TooLong))] {
            for table in [TABLE, 0x4000] {
                describe(&mem, TABLE, 0x4000, 4 * 16, INDIRECT, 0);
                for (i, flags) in (0..).zip([NEXT, NEXT, NEXT | WRITE, WRITE]) {
                    let len = if i == 3 { last } else { GIB };
                    describe(&mem, table + u64::from(i) * 16, 0, len, flags, i + 1);
                }
                assert_eq!(lengths(&queue), expected, "{table:#x}");
            }
        }
    }

    #[test]
    fn chain_rules_are_held() {
        for (second, expected) in [
            ((0x5000, 0, 0, 0), Ok((vec![1], vec![]))),
            ((0x5000, 1, WRITE, 0), Ok((vec![1], vec![1]))),
            ((0x5000, 1, NEXT, SIZE), Err(BadChain::Broken)),
            ((0x5000, 1, NEXT, 0), Err(BadChain::Broken)),
            ((0x7fff, 2, 0, 0), Err(BadChain::OutsideMemory)),
            ((u64::MAX, 2, 0, 0), Err(BadChain::OutsideMemory)),
        ] {
            let (queue, mem) = queue();
            describe(&mem, TABLE, 0x5000, 1, NEXT, 1);
            let (addr, len, flags, next) = second;
            describe(&mem, TABLE + 16, addr, len, flags, next);
            assert_eq!(lengths(&queue), expected, "{second:x?}");
        }
        let (queue, mem) = queue();
        describe(&mem, TABLE, 0x5000, 1, NEXT | WRITE, 1);
        describe(&mem, TABLE + 16, 0x5000, 1, 0, 0);
        assert_eq!(lengths(&queue), Err(BadChain::ReadableAfterWritable));
    }
}
