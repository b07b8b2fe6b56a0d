//! Exhaustive tests in a small scope: every descriptor table that a driver can write there, against a reference walk.
//!
//! The scope: queues of 1, 2 and 4 descriptors; two regions of a page each that touch, and nothing behind them; buffers
//! that are empty (at an address outside of memory), inside, across the regions, and outside; every combination of the
//! flags NEXT, WRITE and INDIRECT; every `next`, one past the end included; indirect tables of 1 to 5 descriptors, at
//! an odd address, across the regions, outside, empty, and of half a descriptor. Each accepted chain becomes an
//! [`IoVecs`] list, whose bytes and pieces are compared, too.
//!
//! Tables are enumerated lazily: a descriptor gets each of its contents when the reference walk first reads it, and
//! until then holds a poison that makes a walk which reads it differ. So tables that differ only in what nothing reads
//! are tried once.
//!
//! Not shown: longer queues and chains, descriptors that change while they are read, the rings, and the atomicity of
//! the reads.

use crate::virtio::chain::{BadChain, Buffer, Chain};
use crate::virtio::device::Memory;
use crate::virtio::host_map::HostMap;
use crate::virtio::iovec::IoVecs;
use crate::virtio::split::SplitQueue;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const DESCRIPTOR: u64 = 16;
/// Bytes of both regions.
const MEM_BYTES: u64 = 0x2000;
const BOUNDARY: u64 = 0x1000;
const DIRECT_TABLE: u64 = 0x100;
const AVAIL: u64 = 0x200;
const USED: u64 = 0x300;
/// An indirect table that is aligned, and one that is not.
const INDIRECT_TABLE: u64 = 0x400;
const ODD_TABLE: u64 = 0x601;

/// A descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// Breaks every rule.
const POISON: Desc = Desc { addr: u64::MAX, len: u32::MAX, flags: u16::MAX, next: u16::MAX };

/// Buffers that a descriptor can be about.
const PLACES: [(u64, u32); 4] = [(u64::MAX, 0), (0x800, 3), (BOUNDARY - 1, 2), (MEM_BYTES - 1, 2)];

/// Tables that an indirect descriptor can be about, beside those in order.
const BAD_TABLES: [(u64, u32); 4] =
    [(INDIRECT_TABLE, 0), (INDIRECT_TABLE, 24), (BOUNDARY - 16, 32), (MEM_BYTES - 8, 16)];

/// One of the two tables of a case, as far as it is known.
#[derive(Debug, Default, Clone)]
struct Table {
    base: u64,
    known: Vec<Option<Desc>>,
}

impl Table {
    fn new(base: u64, len: usize) -> Self {
        Self { base, known: vec![None; len] }
    }
}

/// A queue, the tables and the memory that they are in.
struct Case {
    mem: Memory,
    queue: SplitQueue,
    head: u16,
    direct: Table,
    indirect: Table,
    chain: Chain,
    list: IoVecs,
    /// The numbers of tables tried, and of chains among them.
    tried: [usize; 2],
}

/// The reference: what a walk from the head gives.
#[derive(Debug, PartialEq, Eq)]
enum Walk {
    /// A descriptor that is not known yet: whether of the indirect table, and which.
    Needs(Which, usize),
    /// A chain: what is readable and what is writable.
    Chain(Vec<(u64, u32)>, Vec<(u64, u32)>),
    /// A refusal for one of these reasons.
    Refused(Vec<BadChain>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Direct,
    Indirect,
}

impl Case {
    fn new(size: u16, head: u16) -> Self {
        let half = usize::try_from(BOUNDARY).unwrap();
        let mem = Memory::from_ranges(&[(GuestAddress(0), half), (GuestAddress(BOUNDARY), half)]).unwrap();
        let pattern: Vec<u8> = (0..MEM_BYTES).map(|at| u8::try_from(at % 251).unwrap()).collect();
        mem.write_slice(&pattern, GuestAddress(0)).unwrap();
        let mut queue = Queue::new(size).unwrap();
        queue.set_desc_table_address(Some(u32::try_from(DIRECT_TABLE).unwrap()), None);
        queue.set_avail_ring_address(Some(u32::try_from(AVAIL).unwrap()), None);
        queue.set_used_ring_address(Some(u32::try_from(USED).unwrap()), None);
        let queue = SplitQueue::new(&queue, HostMap::new(mem.clone())).unwrap();
        let case = Self {
            queue,
            head,
            direct: Table::new(DIRECT_TABLE, size.into()),
            indirect: Table::default(),
            chain: Chain::default(),
            list: IoVecs::new(mem.clone()),
            tried: [0; 2],
            mem,
        };
        (0..usize::from(size)).for_each(|idx| case.put(DIRECT_TABLE, idx, POISON));
        case
    }

    fn put(&self, base: u64, idx: usize, desc: Desc) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&desc.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&desc.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&desc.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&desc.next.to_le_bytes());
        let at = base + u64::try_from(idx).unwrap() * DESCRIPTOR;
        self.mem.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Tries every content of the descriptors that the walk reads.
    fn explore(&mut self) {
        match self.walk() {
            Walk::Needs(which, idx) => {
                for desc in self.candidates(which) {
                    self.with(which, idx, desc);
                }
            }
            outcome => self.check(&outcome),
        }
    }

    /// Goes on with descriptor `idx` as `desc`.
    fn with(&mut self, which: Which, idx: usize, desc: Desc) {
        let new_table = which == Which::Direct && desc.flags & INDIRECT != 0;
        if new_table && desc.flags & NEXT == 0 && is_table(desc) {
            let len = usize::try_from(desc.len / 16).unwrap();
            self.indirect = Table::new(desc.addr, len);
            (0..len).for_each(|idx| self.put(desc.addr, idx, POISON));
        }
        let table = self.table(which);
        let base = table.base;
        table.known[idx] = Some(desc);
        self.put(base, idx, desc);
        self.explore();
        self.table(which).known[idx] = None;
        self.put(base, idx, POISON);
    }

    fn table(&mut self, which: Which) -> &mut Table {
        match which {
            Which::Direct => &mut self.direct,
            Which::Indirect => &mut self.indirect,
        }
    }

    /// The contents that a descriptor can have.
    fn candidates(&self, which: Which) -> Vec<Desc> {
        let len = match which {
            Which::Direct => self.direct.known.len(),
            Which::Indirect => self.indirect.known.len(),
        };
        let nexts: Vec<u16> = (0..=u16::try_from(len).unwrap()).collect();
        let mut all = Vec::new();
        for (addr, len) in PLACES {
            for write in [0, WRITE] {
                all.push(Desc { addr, len, flags: write, next: u16::MAX });
                all.extend(nexts.iter().map(|next| Desc { addr, len, flags: NEXT | write, next: *next }));
            }
        }
        if which == Which::Indirect {
            // A table in a table.
            all.extend([0, NEXT, WRITE].map(|flags| Desc {
                addr: INDIRECT_TABLE,
                len: 16,
                flags: INDIRECT | flags,
                next: 0,
            }));
            return all;
        }
        let first = self.direct.known.iter().all(Option::is_none);
        let longest = if first { 5 } else { 3 };
        let tables = (1..=longest).map(|len| (INDIRECT_TABLE, len * 16)).chain([(ODD_TABLE, 32)]).chain(BAD_TABLES);
        for (addr, len) in tables {
            // WRITE means nothing where the table is.
            all.extend([0, WRITE].map(|write| Desc { addr, len, flags: INDIRECT | write, next: u16::MAX }));
        }
        all.push(Desc { addr: INDIRECT_TABLE, len: 16, flags: INDIRECT | NEXT, next: 0 });
        all
    }

    /// The reference walk, in the words of virtio 1.3 2.7.5.
    fn walk(&self) -> Walk {
        let (mut which, mut idx) = (Which::Direct, usize::from(self.head));
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let mut visited = Vec::new();
        let broken = || Walk::Refused(vec![BadChain::Broken]);
        // A chain has at most as many descriptors as the queue, without the one that is about a table.
        let mut left = self.direct.known.len();
        loop {
            if left == 0 {
                return broken();
            }
            let table = if which == Which::Direct { &self.direct } else { &self.indirect };
            if idx >= table.known.len() {
                return broken();
            }
            if visited.contains(&(which == Which::Direct, idx)) {
                // A walk that does not notice goes round until it meets a readable descriptor behind a writable one, or
                // its end.
                return Walk::Refused(vec![BadChain::Broken, BadChain::ReadableAfterWritable]);
            }
            let Some(desc) = table.known[idx] else { return Walk::Needs(which, idx) };
            visited.push((which == Which::Direct, idx));
            if desc.flags & INDIRECT != 0 {
                if which == Which::Indirect || desc.flags & NEXT != 0 || desc.len == 0 || desc.len % 16 != 0 {
                    return broken();
                }
                if !is_table(desc) {
                    return Walk::Refused(vec![BadChain::OutsideMemory]);
                }
                (which, idx) = (Which::Indirect, 0);
                continue;
            }
            left -= 1;
            let is_writable = desc.flags & WRITE != 0;
            if !is_writable && !writable.is_empty() {
                return Walk::Refused(vec![BadChain::ReadableAfterWritable]);
            }
            if desc.len > 0 {
                if u128::from(desc.addr) + u128::from(desc.len) > u128::from(MEM_BYTES) {
                    return Walk::Refused(vec![BadChain::OutsideMemory]);
                }
                if is_writable { &mut writable } else { &mut readable }.push((desc.addr, desc.len));
            }
            if desc.flags & NEXT == 0 {
                return Walk::Chain(readable, writable);
            }
            idx = desc.next.into();
        }
    }

    /// Compares what the queue and the list make of the tables with the reference.
    fn check(&mut self, expected: &Walk) {
        self.tried[0] += 1;
        let read = self.queue.read_chain(self.head, &mut self.chain);
        let pairs = |buffers: &[Buffer]| buffers.iter().map(|b| (b.addr.0, b.len)).collect::<Vec<_>>();
        match (expected, read) {
            (Walk::Chain(readable, writable), Ok(())) => {
                assert_eq!(&pairs(&self.chain.readable), readable, "{:?} {:?}", self.direct, self.indirect);
                assert_eq!(&pairs(&self.chain.writable), writable, "{:?} {:?}", self.direct, self.indirect);
                self.tried[1] += 1;
                let buffers = [&self.chain.readable[..], &self.chain.writable[..]].concat();
                self.list.clear();
                buffers.iter().for_each(|buffer| self.list.push(*buffer).unwrap());
                check_list(&self.list, &pairs(&buffers));
            }
            (Walk::Refused(reasons), Err(reason)) if reasons.contains(&reason) => {}
            (_, read) => panic!("{expected:?}, not {read:?}: {:?} {:?} {:?}", self.head, self.direct, self.indirect),
        }
    }
}

/// Returns whether all of the table that `desc` is about is in one region.
fn is_table(desc: Desc) -> bool {
    let end = u128::from(desc.addr) + u128::from(desc.len);
    desc.len > 0
        && desc.len.is_multiple_of(16)
        && end <= u128::from(MEM_BYTES)
        && (desc.addr >= BOUNDARY || end <= u128::from(BOUNDARY))
}

/// Every address of the buffers, in order.
fn addresses(buffers: &[(u64, u32)]) -> Vec<u64> {
    buffers.iter().flat_map(|(addr, len)| (0..u64::from(*len)).map(move |at| addr + at)).collect()
}

/// Compares the list's length, pieces and bytes with those of the buffers. Bytes of buffers are the pattern of
/// [`Case::new`].
fn check_list(list: &IoVecs, buffers: &[(u64, u32)]) {
    let addresses = addresses(buffers);
    let crossing = buffers.iter().filter(|(addr, len)| *addr < BOUNDARY && addr + u64::from(*len) > BOUNDARY).count();
    assert_eq!(list.len_bytes(), u64::try_from(addresses.len()).unwrap());
    assert_eq!(list.count(), buffers.len() + crossing);
    let mut bytes = vec![0xff; addresses.len() + 1];
    list.copy_out(0, &mut bytes);
    let expected = addresses.iter().map(|at| u8::try_from(at % 251).unwrap()).chain([0xff]);
    assert!(bytes.into_iter().eq(expected), "{buffers:?}");
}

/// Tries all tables of a queue of `size`. Returns how many, and how many chains among them.
fn explore(size: u16, heads: &[u16]) -> [usize; 2] {
    heads.iter().fold([0; 2], |[tried, chains], head| {
        let mut case = Case::new(size, *head);
        case.explore();
        [tried + case.tried[0], chains + case.tried[1]]
    })
}

#[test]
fn every_table_of_one_and_two_descriptors_is_read_as_the_reference_reads_it() {
    let counts = [explore(1, &[0, 1]), explore(2, &[0, 1, 2])];
    assert!(counts.iter().all(|[tried, chains]| tried > chains && *chains > 0), "{counts:?}");
}

/// By symmetry of the indices, one head inside the table stands for all four.
#[test]
fn every_table_of_four_descriptors_is_read_as_the_reference_reads_it() {
    let [tried, chains] = explore(4, &[3, 4]);
    assert!(tried > 100_000 && chains > 10_000, "{tried} tables, {chains} chains");
}

/// Buffers of the lists below: one byte, across the regions, and up to the end of memory.
const PIECES: [(u64, u32); 3] = [(0x800, 1), (BOUNDARY - 1, 3), (MEM_BYTES - 2, 2)];

/// Every list of up to four of [`PIECES`].
fn lists() -> Vec<Vec<(u64, u32)>> {
    let mut all = vec![Vec::new()];
    let mut longest = all.clone();
    for _ in 0..4 {
        longest = longest
            .iter()
            .flat_map(|list| PIECES.map(|piece| [&list[..], &[piece]].concat()))
            .collect::<Vec<Vec<(u64, u32)>>>();
        all.extend(longest.clone());
    }
    all
}

fn list_of(mem: &Memory, buffers: &[(u64, u32)]) -> IoVecs {
    let mut list = IoVecs::new(mem.clone());
    buffers.iter().for_each(|(addr, len)| list.push(Buffer { addr: GuestAddress(*addr), len: *len }).unwrap());
    list
}

fn bytes_at(mem: &Memory, addresses: &[u64]) -> Vec<u8> {
    addresses.iter().map(|at| mem.read_obj(GuestAddress(*at)).unwrap()).collect()
}

/// Every list, every number of skipped bytes, every range that is copied in and out.
#[test]
fn every_skip_and_copy_is_that_of_the_reference() {
    let mem = Case::new(1, 0).mem;
    for buffers in lists() {
        let all = addresses(&buffers);
        for skip in 0..=all.len() + 1 {
            let mut list = list_of(&mem, &buffers);
            list.skip(u64::try_from(skip).unwrap());
            let left = all.get(skip..).unwrap_or_default();
            assert_eq!(list.len_bytes(), u64::try_from(left.len()).unwrap());
            assert_eq!(list.spill_offset(), left.len());
            for from in 0..=left.len() {
                let mut out = vec![0xff; left.len() + 1];
                list.copy_out(from, &mut out);
                let copied = bytes_at(&mem, &left[from..]);
                assert_eq!(out[..copied.len()], copied);
                assert!(out[copied.len()..].iter().all(|byte| *byte == 0xff));
            }
            copy_in_everywhere(&mem, &list, left);
        }
    }
}

/// Writes every range of the list, one byte longer than it at most, and expects nothing else to change.
fn copy_in_everywhere(mem: &Memory, list: &IoVecs, left: &[u64]) {
    for from in 0..=left.len() {
        for len in 0..=left.len() - from + 1 {
            let new: Vec<u8> = (100..).take(len).collect();
            // The list may have an address twice: the later byte stays.
            let mut written: Vec<(u64, u8)> = left[from..].iter().copied().zip(new.iter().copied()).collect();
            let before = bytes_at(mem, left);
            list.copy_in(from, &new);
            written.reverse();
            for (at, old) in left.iter().zip(&before) {
                let expected = written.iter().find(|(addr, _)| addr == at).map_or(*old, |(_, byte)| *byte);
                assert_eq!(bytes_at(mem, &[*at]), [expected]);
            }
            left.iter().zip(&before).for_each(|(at, old)| mem.write_obj(*old, GuestAddress(*at)).unwrap());
        }
    }
}

/// Every list with every start replaced, written to a file and read back with a spill.
#[test]
fn every_system_call_moves_the_bytes_of_the_reference() {
    let mem = Case::new(1, 0).mem;
    let mut file = tempfile::tempfile().unwrap();
    for buffers in lists() {
        let all = addresses(&buffers);
        let guests = list_of(&mem, &buffers);
        for start in 0..=all.len() {
            let ours: Vec<u8> = (200..).take(start).collect();
            let mut list = IoVecs::new(mem.clone());
            list.replace_start(&guests, &ours);
            let expected = [&ours[..], &bytes_at(&mem, &all[start..])].concat();
            assert_eq!(list.pwritev(file.as_fd(), 0).unwrap(), expected.len());
            let mut written = vec![0; expected.len()];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut written, 0).unwrap();
            assert_eq!(written, expected);

            let before = bytes_at(&mem, &all);
            file.set_len(0).unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            let new: Vec<u8> = (50..).take(all.len() + 2).collect();
            file.write_all(&new).unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            let mut spill = [0; 3];
            assert_eq!(list.readv_spilling(file.as_fd(), &mut spill).unwrap(), new.len());
            assert_eq!((list.front(), &spill[..2]), (&new[..start], &new[all.len()..]));
            let last = |at: u64| all.iter().enumerate().skip(start).rev().find(|(_, addr)| **addr == at);
            for (at, old) in all.iter().zip(&before) {
                assert_eq!(bytes_at(&mem, &[*at]), [last(*at).map_or(*old, |(idx, _)| new[idx])]);
            }
            all.iter().zip(&before).for_each(|(at, old)| mem.write_obj(*old, GuestAddress(*at)).unwrap());
        }
    }
}

#[test]
fn buffer_outside_of_memory_leaves_every_list_as_it_was() {
    let mem = Case::new(1, 0).mem;
    for buffers in lists() {
        let mut list = list_of(&mem, &buffers);
        for (addr, len) in [(MEM_BYTES - 1, 2), (BOUNDARY - 1, 0x1002), (MEM_BYTES, 1), (u64::MAX, 2)] {
            let pushed = list.push(Buffer { addr: GuestAddress(addr), len });
            assert_eq!(pushed, Err(BadChain::OutsideMemory));
            check_list(&list, &buffers);
        }
    }
}
