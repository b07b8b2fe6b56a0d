//! Identity pages above the first 4 GiB, added on demand for BARs that lie there.
//!
//! The tables are ordinary memory to ring 3, and going from not-present to present needs no TLB flush (Intel SDM 3A,
//! 4.10.4.3).

use core::sync::atomic::{AtomicUsize, Ordering};
use crate::cpu;
use crate::entry::PAGE_TABLE_POOL;

const ENTRIES: u64 = 512;
const GIB: u64 = 1 << 30;
const PRESENT_USER_WRITE: u64 = 7;
const LARGE: u64 = 0x80;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

static USED: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    static pml4: u8;
    static page_table_pool: u8;
}

/// Makes the GiB around `address` accessible.
pub(crate) fn map(address: u64) {
    if address < 4 * GIB {
        return;
    }
    let pdpt = descend((&raw const pml4).addr() as u64, address >> 39);
    let slot = pdpt + 8 * (address >> 30 & (ENTRIES - 1));
    if cpu::read64(slot) & 1 != 0 {
        return;
    }
    let directory = take_table();
    let base = address & !(GIB - 1);
    for page in 0..ENTRIES {
        cpu::write64(directory + 8 * page, (base + (page << 21)) | PRESENT_USER_WRITE | LARGE);
    }
    cpu::write64(slot, directory | PRESENT_USER_WRITE);
}

fn descend(table: u64, idx: u64) -> u64 {
    let slot = table + 8 * (idx & (ENTRIES - 1));
    let entry = cpu::read64(slot);
    if entry & 1 != 0 {
        return entry & ADDRESS;
    }
    let next = take_table();
    cpu::write64(slot, next | PRESENT_USER_WRITE);
    next
}

fn take_table() -> u64 {
    let idx = USED.fetch_add(1, Ordering::Relaxed);
    assert!(idx < PAGE_TABLE_POOL, "page tables used up");
    (&raw const page_table_pool).addr() as u64 + 4096 * idx as u64
}
