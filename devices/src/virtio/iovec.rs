//! Buffers of guest memory as the kernel wants them: an `iovec` array for `readv` and its relatives.
//!
//! Bytes move between guest memory and a descriptor in one copy, made by the kernel. No reference or slice into guest
//! memory is ever formed. The array is kept between requests, so the data path allocates only until the longest request
//! so far has been seen. A call moves at most what the kernel takes at once ([`MAX_PER_CALL`] pieces); callers that
//! need all of it call [`skip`](IoVecs::skip) and go on. Where all of it has to move in one call, because it is one
//! frame, a list of more pieces costs a copy: only a driver that cuts frames into shreds pays for it.

// The reason for `unsafe` here: the system calls take raw host addresses of guest memory.
#![expect(unsafe_code, reason = "readv and its relatives are called on guest memory")]

use crate::virtio::chain::{BadChain, Buffer};
use crate::virtio::device::Memory;
use crate::virtio::host_map::HostMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Pieces that one system call takes: the kernel's `UIO_MAXIOV`.
pub const MAX_PER_CALL: usize = 1024;

/// A list of pieces of guest memory, in order.
///
/// Holds guest memory itself, so the pieces stay mapped for as long as the list exists.
pub struct IoVecs {
    /// Keeps every address in `vec` mapped. Never replaced while `vec` holds anything.
    map: HostMap,
    vec: Vec<libc::iovec>,
    /// Pieces before this index have been skipped.
    first: usize,
    len_bytes: u64,
    /// Bytes of ours that a piece is about.
    front: Vec<u8>,
}

// SAFETY: the raw addresses in `vec` belong to `map`, which is Send, and are dereferenced only by the kernel.
unsafe impl Send for IoVecs {}

impl IoVecs {
    /// An empty list of pieces of `mem`.
    pub fn new(mem: Memory) -> Self {
        Self { map: HostMap::new(mem), vec: Vec::new(), first: 0, len_bytes: 0, front: Vec::new() }
    }

    /// Forgets all pieces; keeps the allocation.
    pub fn clear(&mut self) {
        self.vec.clear();
        self.first = 0;
        self.len_bytes = 0;
    }

    /// Appends `buffer`, as several pieces where it crosses from one memory region into the next.
    ///
    /// # Errors
    /// If some of it is outside of guest memory; the list is then as it was.
    pub fn push(&mut self, buffer: Buffer) -> Result<(), BadChain> {
        if self.first >= MAX_PER_CALL {
            self.vec.drain(..self.first);
            self.first = 0;
        }
        let pieces_before = self.vec.len();
        let result = self.push_pieces(buffer);
        if result.is_err() {
            self.vec.truncate(pieces_before);
        }
        result
    }

    /// Bytes in the list that have not been skipped.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Returns whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// Drops the first `bytes` bytes, or everything if the list is shorter.
    pub fn skip(&mut self, bytes: u64) {
        let mut left = usize::try_from(bytes.min(self.len_bytes)).unwrap_or(usize::MAX);
        self.len_bytes -= bytes.min(self.len_bytes);
        while let Some(piece) = self.vec.get_mut(self.first) {
            if left < piece.iov_len {
                piece.iov_base = piece.iov_base.wrapping_byte_add(left);
                piece.iov_len -= left;
                return;
            }
            left -= piece.iov_len;
            self.first += 1;
        }
    }

    /// Reads from `fd` into the list. Returns the bytes read; 0 at the end of the file.
    ///
    /// # Errors
    /// As `readv(2)`; an interrupted call is repeated.
    pub fn readv(&self, fd: BorrowedFd) -> io::Result<usize> {
        let (pieces, count) = self.pieces();
        // SAFETY: `pieces` is `count` iovecs, each within memory that `self.map` keeps mapped and that Rust never
        // refers to.
        retry(|| unsafe { libc::readv(fd.as_raw_fd(), pieces, count) })
    }

    /// Reads from `fd` into the list up to byte [`spill_offset`](Self::spill_offset), and what comes after it into
    /// `spill`. Returns the bytes read, with those in `spill`.
    ///
    /// # Errors
    /// As `readv(2)`; an interrupted call is repeated.
    pub fn readv_spilling(&mut self, fd: BorrowedFd, spill: &mut [u8]) -> io::Result<usize> {
        let last = (self.first + MAX_PER_CALL - 1).min(self.vec.len());
        let spill = libc::iovec { iov_base: spill.as_mut_ptr().cast(), iov_len: spill.len() };
        // If the list has more pieces than the call takes, the spill stands in for the first that is too many.
        let displaced = self.vec.get_mut(last).map(|piece| std::mem::replace(piece, spill));
        if displaced.is_none() {
            self.vec.push(spill);
        }
        let (pieces, count) = self.pieces();
        // SAFETY: as in `readv`; the last piece is the spill, which is borrowed for the length of the call.
        let result = retry(|| unsafe { libc::readv(fd.as_raw_fd(), pieces, count) });
        match displaced {
            Some(piece) => self.vec[last] = piece,
            None => self.vec.truncate(last),
        }
        result
    }

    /// The byte of the list at which [`readv_spilling`](Self::readv_spilling) goes over to the spill: the list's
    /// length, unless it has more pieces than one call takes.
    pub fn spill_offset(&self) -> usize {
        if self.count() < MAX_PER_CALL {
            return usize::try_from(self.len_bytes).unwrap_or(usize::MAX);
        }
        self.vec[self.first..].iter().take(MAX_PER_CALL - 1).map(|piece| piece.iov_len).sum()
    }

    /// Copies `bytes` into the list, `skip` bytes from its start on. What does not fit is left out.
    pub fn copy_in(&self, skip: usize, mut bytes: &[u8]) {
        let mut skip = skip;
        for piece in self.vec.get(self.first..).unwrap_or_default() {
            if bytes.is_empty() {
                break;
            }
            let at = skip.min(piece.iov_len);
            let len = bytes.len().min(piece.iov_len - at);
            let (now, later) = bytes.split_at(len);
            // SAFETY: `at + len` is within the piece, which `self.map` keeps mapped; `now` is host memory and cannot
            // overlap it.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), piece.iov_base.cast::<u8>().wrapping_add(at), len) };
            skip -= at;
            bytes = later;
        }
    }

    /// Copies bytes out of the list into `bytes`, from `skip` bytes after its start on. Where the list ends, `bytes`
    /// stays as it is.
    pub fn copy_out(&self, skip: usize, mut bytes: &mut [u8]) {
        let mut skip = skip;
        for piece in self.vec.get(self.first..).unwrap_or_default() {
            if bytes.is_empty() {
                break;
            }
            let at = skip.min(piece.iov_len);
            let len = bytes.len().min(piece.iov_len - at);
            let (now, later) = bytes.split_at_mut(len);
            let from = piece.iov_base.cast::<u8>().wrapping_add(at);
            // SAFETY: `at + len` is within the piece, which `self.map` keeps mapped; `now` is host memory and cannot
            // overlap it.
            unsafe { std::ptr::copy_nonoverlapping(from, now.as_mut_ptr(), len) };
            skip -= at;
            bytes = later;
        }
    }

    /// Pieces that have not been skipped.
    pub fn count(&self) -> usize {
        self.vec.len() - self.first
    }

    /// Writes the list to `fd`. Returns the bytes written.
    ///
    /// # Errors
    /// As `writev(2)`; an interrupted call is repeated.
    pub fn writev(&self, fd: BorrowedFd) -> io::Result<usize> {
        let (pieces, count) = self.pieces();
        // SAFETY: as in `readv`; the kernel only reads here.
        retry(|| unsafe { libc::writev(fd.as_raw_fd(), pieces, count) })
    }

    /// Writes the list to `fd` in one call, as one frame. Returns the bytes written. The caller bounds the list's
    /// length: what the kernel does not take as pieces is copied.
    ///
    /// # Errors
    /// As `writev(2)`; an interrupted call is repeated.
    pub fn write_whole(&self, fd: BorrowedFd) -> io::Result<usize> {
        if self.count() <= MAX_PER_CALL {
            return self.writev(fd);
        }
        let mut bytes = vec![0; usize::try_from(self.len_bytes).map_err(io::Error::other)?];
        self.copy_out(0, &mut bytes);
        // SAFETY: `bytes` is that long, and the kernel only reads it.
        retry(|| unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
    }

    /// Puts a copy of `bytes` in front of the list. Once only, until the list is emptied.
    pub fn put_in_front(&mut self, bytes: &[u8]) {
        self.front.clear();
        self.front.extend_from_slice(bytes);
        // `front` is not changed again before the list is emptied, so its bytes stay where they are.
        let piece = libc::iovec { iov_base: self.front.as_mut_ptr().cast(), iov_len: self.front.len() };
        self.vec.insert(self.first, piece);
        self.len_bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    }

    /// Makes this list equal to `other`, a list of the same memory, except that a copy of `start` replaces as many
    /// bytes at its beginning. `other` has at least that many bytes.
    pub fn replace_start(&mut self, other: &Self, start: &[u8]) {
        self.clear();
        self.vec.extend_from_slice(other.vec.get(other.first..).unwrap_or_default());
        self.len_bytes = other.len_bytes;
        self.skip(u64::try_from(start.len()).unwrap_or(u64::MAX));
        self.put_in_front(start);
    }

    /// The bytes of ours in front of the list, as the last call has left them.
    pub fn front(&self) -> &[u8] {
        &self.front
    }

    /// Moves all pieces of `other`, which is of the same memory, to the end of the list.
    pub fn append(&mut self, other: &mut Self) {
        self.vec.extend_from_slice(other.vec.get(other.first..).unwrap_or_default());
        self.len_bytes += other.len_bytes;
        other.clear();
    }

    /// Reads from `fd` at byte `offset` into the list. Returns the bytes read; 0 at the end of the file.
    ///
    /// # Errors
    /// As `preadv(2)`, or `InvalidInput` if the offset does not fit; an interrupted call is repeated.
    pub fn preadv(&self, fd: BorrowedFd, offset: u64) -> io::Result<usize> {
        let (pieces, count) = self.pieces();
        let offset = file_offset(offset)?;
        // SAFETY: as in `readv`.
        retry(|| unsafe { libc::preadv(fd.as_raw_fd(), pieces, count, offset) })
    }

    /// Writes the list to `fd` at byte `offset`. Returns the bytes written.
    ///
    /// # Errors
    /// As `pwritev(2)`, or `InvalidInput` if the offset does not fit; an interrupted call is repeated.
    pub fn pwritev(&self, fd: BorrowedFd, offset: u64) -> io::Result<usize> {
        let (pieces, count) = self.pieces();
        let offset = file_offset(offset)?;
        // SAFETY: as in `readv`; the kernel only reads here.
        retry(|| unsafe { libc::pwritev(fd.as_raw_fd(), pieces, count, offset) })
    }

    fn push_pieces(&mut self, buffer: Buffer) -> Result<(), BadChain> {
        let mut left = usize::try_from(buffer.len).map_err(|_| BadChain::OutsideMemory)?;
        let mut addr = buffer.addr.0;
        while left > 0 {
            let (host, reach) = self.map.at(addr).ok_or(BadChain::OutsideMemory)?;
            let len = left.min(reach);
            self.vec.push(libc::iovec { iov_base: host.cast(), iov_len: len });
            addr = addr.wrapping_add(u64::try_from(len).unwrap_or(u64::MAX));
            left -= len;
        }
        self.len_bytes += u64::from(buffer.len);
        Ok(())
    }

    /// The first pieces that are left, at most what one call takes.
    fn pieces(&self) -> (*const libc::iovec, libc::c_int) {
        let left = self.vec.get(self.first..).unwrap_or_default();
        let count = left.len().min(MAX_PER_CALL);
        // MAX_PER_CALL fits into any integer.
        (left.as_ptr(), libc::c_int::try_from(count).unwrap_or(0))
    }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        if let Ok(bytes) = usize::try_from(call()) {
            return Ok(bytes);
        }
        let err = io::Error::last_os_error();
        if err.kind() != io::ErrorKind::Interrupted {
            return Err(err);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};
    use std::os::fd::AsFd;
    use vm_memory::{Bytes, GuestAddress};

    /// Two regions that touch at 0x1000, and a hole behind 0x2000.
    fn memory() -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)]).unwrap()
    }

    fn buffer(addr: u64, len: u32) -> Buffer {
        Buffer { addr: GuestAddress(addr), len }
    }

    #[test]
    fn pieces_are_written_in_order_across_regions() {
        let mem = memory();
        mem.write_slice(b"world", GuestAddress(0xffe)).unwrap();
        mem.write_slice(b"hello ", GuestAddress(0x100)).unwrap();
        let mut vecs = IoVecs::new(mem);
        let mut file = tempfile::tempfile().unwrap();

        vecs.push(buffer(0x100, 6)).unwrap();
        vecs.push(buffer(0xffe, 5)).unwrap();
        let written = vecs.writev(file.as_fd()).unwrap();

        file.rewind().unwrap();
        assert_eq!((written, vecs.len_bytes()), (11, 11));
        assert_eq!(std::io::read_to_string(file).unwrap(), "hello world");
    }

    #[test]
    fn read_goes_on_where_skip_left_it() {
        let mem = memory();
        let mut vecs = IoVecs::new(mem.clone());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abcdefgh").unwrap();

        vecs.push(buffer(0xffe, 4)).unwrap();
        vecs.push(buffer(0x200, 4)).unwrap();
        vecs.skip(3);
        let read = vecs.preadv(file.as_fd(), 3).unwrap();

        let (mut crossing, mut second) = ([0; 4], [0; 4]);
        mem.read_slice(&mut crossing, GuestAddress(0xffe)).unwrap();
        mem.read_slice(&mut second, GuestAddress(0x200)).unwrap();
        assert_eq!((read, vecs.len_bytes()), (5, 5));
        assert_eq!((&crossing, &second), (b"\0\0\0d", b"efgh"));
    }

    #[test]
    fn skip_beyond_the_end_leaves_nothing() {
        let mut vecs = IoVecs::new(memory());
        let file = tempfile::tempfile().unwrap();

        vecs.push(buffer(0, 4)).unwrap();
        vecs.skip(u64::MAX);

        assert!(vecs.is_empty());
        assert_eq!(vecs.pwritev(file.as_fd(), 0).unwrap(), 0);
    }

    #[test]
    fn more_pieces_than_the_kernel_takes_are_a_partial_write() {
        let mut vecs = IoVecs::new(memory());
        let file = tempfile::tempfile().unwrap();

        for addr in 0..2000 {
            vecs.push(buffer(addr, 1)).unwrap();
        }

        assert_eq!(vecs.pwritev(file.as_fd(), 0).unwrap(), MAX_PER_CALL);
        vecs.skip(1024);
        assert_eq!(vecs.pwritev(file.as_fd(), 1024).unwrap(), 2000 - 1024);
    }

    #[test]
    fn frame_of_more_pieces_than_the_kernel_takes_is_written_whole() {
        let mem = memory();
        mem.write_slice(b"abc", GuestAddress(1998)).unwrap();
        let mut vecs = IoVecs::new(mem);
        let (socket, wire) = std::os::unix::net::UnixDatagram::pair().unwrap();

        for addr in 0..2000 {
            vecs.push(buffer(addr, 1)).unwrap();
        }

        assert_eq!(vecs.write_whole(socket.as_fd()).unwrap(), 2000);
        let mut frame = [0; 3000];
        assert_eq!(wire.recv(&mut frame).unwrap(), 2000);
        assert_eq!(&frame[1996..2000], b"\0\0ab");
    }

    #[test]
    fn start_that_is_replaced_is_ours_and_the_rest_the_guests() {
        let mem = memory();
        mem.write_slice(b"abcdefgh", GuestAddress(0x100)).unwrap();
        let (mut guests, mut list) = (IoVecs::new(mem.clone()), IoVecs::new(mem.clone()));
        guests.push(buffer(0x100, 3)).unwrap();
        guests.push(buffer(0x103, 5)).unwrap();
        let (socket, wire) = std::os::unix::net::UnixDatagram::pair().unwrap();

        list.replace_start(&guests, b"WXYZ");
        mem.write_slice(b"....", GuestAddress(0x100)).unwrap();
        assert_eq!(list.write_whole(socket.as_fd()).unwrap(), 8);
        let mut frame = [0; 8];
        wire.recv(&mut frame).unwrap();
        assert_eq!(&frame, b"WXYZefgh");

        list.replace_start(&guests, &[0; 4]);
        wire.send(b"12345678").unwrap();
        assert_eq!(list.readv_spilling(socket.as_fd(), &mut [0; 8]).unwrap(), 8);
        mem.read_slice(&mut frame, GuestAddress(0x100)).unwrap();
        assert_eq!((list.front(), &frame), (&b"1234"[..], b"....5678"));
    }

    #[test]
    fn read_into_more_pieces_than_the_kernel_takes_goes_over_to_the_spill() {
        for (pieces, offset) in [(MAX_PER_CALL - 1, 1023), (MAX_PER_CALL, 1023), (2000, 1023), (3, 3)] {
            let mem = memory();
            let mut vecs = IoVecs::new(mem.clone());
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[7; 1500]).unwrap();
            file.rewind().unwrap();
            for addr in 0..u64::try_from(pieces).unwrap() {
                vecs.push(buffer(addr, 1)).unwrap();
            }
            let mut spill = [0; 4000];

            assert_eq!(vecs.spill_offset(), offset);
            assert_eq!(vecs.readv_spilling(file.as_fd(), &mut spill).unwrap(), 1500);

            assert_eq!(spill.iter().filter(|byte| **byte == 7).count(), 1500 - offset);
            assert_eq!((vecs.count(), vecs.len_bytes()), (pieces, u64::try_from(pieces).unwrap()));
            let mut bytes = vec![0; pieces];
            mem.read_slice(&mut bytes, GuestAddress(0)).unwrap();
            assert_eq!(bytes.iter().filter(|byte| **byte == 7).count(), offset);
            vecs.copy_in(offset, &spill[..1500 - offset]);
            mem.read_slice(&mut bytes, GuestAddress(0)).unwrap();
            assert_eq!(bytes.iter().filter(|byte| **byte == 7).count(), pieces.min(1500));
        }
    }

    #[test]
    fn buffer_that_leaves_memory_is_refused() {
        for (addr, len) in [(0x1fff, 2), (0x2000, 1), (u64::MAX, 1), (0, u32::MAX)] {
            let mut vecs = IoVecs::new(memory());

            let result = vecs.push(buffer(addr, len));

            assert_eq!(result, Err(BadChain::OutsideMemory), "{addr:#x}");
            assert!(vecs.is_empty());
        }
    }

    #[test]
    fn offset_beyond_the_host_is_refused() {
        let mut vecs = IoVecs::new(memory());
        let file = tempfile::tempfile().unwrap();

        vecs.push(buffer(0, 1)).unwrap();

        let err = vecs.preadv(file.as_fd(), u64::MAX).unwrap_err();
        assert_eq!(err.kind(), std::io::ErrorKind::InvalidInput);
    }
}
