//! A program and its map that a privileged process has loaded: from here the program is attached to the tap, and
//! the map written by plain stores.

// The reason for `unsafe` here: the map is memory that is shared with the kernel.
#![expect(unsafe_code, reason = "a map is memory-mapped")]

use super::dissect::Types;
use super::program::layout;
use super::settings::RssSettings;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

const WORDS: usize = layout::BYTES / 4;

/// The kernel's program for one card, see [`program`](super::program()).
pub struct Steering {
    program: OwnedFd,
    /// The map's element: `WORDS` words, mapped until this is dropped.
    words: NonNull<AtomicU32>,
}

// SAFETY: the mapping belongs to this value and is reached only as atomics.
unsafe impl Send for Steering {}
// SAFETY: as above.
unsafe impl Sync for Steering {}

impl Steering {
    /// Takes over a program and maps its map, an array of one element with BPF_F_MMAPABLE.
    ///
    /// # Errors
    /// If the map cannot be mapped.
    pub fn new(program: OwnedFd, map: &OwnedFd) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), layout::BYTES, access, libc::MAP_SHARED, map.as_raw_fd(), 0) };
        let words = if at == libc::MAP_FAILED { None } else { NonNull::new(at.cast()) };
        Ok(Self { program, words: words.ok_or_else(io::Error::last_os_error)? })
    }

    /// The program, to attach.
    pub(in crate::virtio::net) fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    /// Returns whether the program can serve the driver's settings: it does not look for addresses in extension
    /// headers.
    pub(in crate::virtio::net) fn serves(&self, rss: &RssSettings) -> bool {
        !rss.hash.types.has_any(Types::EXTENDED)
    }

    /// Lets the program do what the driver asks for.
    pub(in crate::virtio::net) fn set(&self, rss: &RssSettings) {
        let words = self.words();
        let (types, rest) = (&words[layout::TYPES / 4], &words[layout::MASK / 4..]);
        // While the rest changes no frame is hashed, since half a key would lead to any queue.
        types.store(Types::NONE.bits(), Ordering::SeqCst);
        let table = rss.indirection.table().iter().map(|queue| u32::from(*queue));
        let table = table.chain(std::iter::repeat(0)).take((layout::ADDED - layout::TABLE) / 4);
        let head = [rss.indirection.mask(), rss.indirection.unclassified().into()];
        for (word, value) in rest.iter().zip(head.into_iter().chain(table).chain(rss.hash.toeplitz.words())) {
            word.store(value, Ordering::Relaxed);
        }
        types.store(rss.hash.types.bits(), Ordering::SeqCst);
    }

    /// Lets the program lead all frames to the first queue.
    pub(in crate::virtio::net) fn gather(&self) {
        let words = self.words();
        words[layout::TYPES / 4].store(Types::NONE.bits(), Ordering::SeqCst);
        words[layout::UNCLASSIFIED / 4].store(0, Ordering::SeqCst);
    }

    fn words(&self) -> &[AtomicU32] {
        // SAFETY: `words` points to `WORDS` words that stay mapped for as long as `self` lives; the kernel only reads
        // them.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), WORDS) }
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), layout::BYTES) };
    }
}
