//! A guest's memory, touched from inside: each page gets a number of its own, and all are read again. Two guest
//! addresses that lead to one page of the host, or to none, show. `/proc/self/pagemap` tells which are above 4 GiB.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

/// Left to the guest's kernel and its other programs.
const LEFT_KIB: u64 = 48 << 10;
const PAGE_BYTES: usize = 4096;
const WORDS: usize = PAGE_BYTES / size_of::<u64>();
const PAGES_PER_MIB: u64 = (1 << 20) / PAGE_BYTES as u64;
/// In an entry of pagemap: the page is there; the bits of its frame number (kernel:
/// Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;
/// The first frame above 4 GiB.
const FRAME_4G: u64 = 1 << 20;
/// Entries of pagemap that are read at once.
const ENTRIES: usize = 1 << 15;

/// Touches all memory that is available and says so, as `touched_mib=`, `above_4g_mib=` and `wrong_pages=`.
///
/// # Errors
/// If `/proc` does not say what is available.
pub fn all() -> io::Result<String> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let available = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = available.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    let kib = kib.ok_or(io::ErrorKind::InvalidData)?.saturating_sub(LEFT_KIB);
    let count = usize::try_from(kib * 1024).unwrap_or(usize::MAX) / PAGE_BYTES;
    let mut pages = vec![[0u64; WORDS]; count];
    for (number, page) in (1u64..).zip(&mut pages) {
        page[0] = number;
    }
    let wrong = (1u64..).zip(&pages).filter(|(number, page)| page[0] != *number).count();
    let above = frames_above_4g(pages.as_ptr().addr() / PAGE_BYTES, count)?;
    Ok(format!(
        "touched_mib={}\nabove_4g_mib={}\nwrong_pages={wrong}",
        count as u64 / PAGES_PER_MIB,
        above / PAGES_PER_MIB
    ))
}

/// How many of `count` pages from `first` on are above 4 GiB.
fn frames_above_4g(first: usize, count: usize) -> io::Result<u64> {
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut above = 0;
    let mut entries = vec![0; ENTRIES * size_of::<u64>()];
    for start in (0..count).step_by(ENTRIES) {
        let part = &mut entries[..(count - start).min(ENTRIES) * size_of::<u64>()];
        pagemap.read_exact_at(part, ((first + start) * size_of::<u64>()) as u64)?;
        let (numbers, _) = part.as_chunks::<{ size_of::<u64>() }>();
        let high = |entry: &u64| entry & PRESENT != 0 && entry & FRAME >= FRAME_4G;
        above += numbers.iter().map(|bytes| u64::from_le_bytes(*bytes)).filter(high).count() as u64;
    }
    Ok(above)
}
