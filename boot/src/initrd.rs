//! Where the initrd goes: as high as the kernel allows, page aligned, clear of the kernel.

use vm_memory::GuestMemoryMmap;

use crate::kernel::Span;
use crate::source::Source;
use crate::{Error, layout};

/// An initrd in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Initrd {
    /// Guest physical address.
    pub(crate) addr: u64,
    /// Length in bytes.
    pub(crate) len: u64,
}

/// Copies the initrd below `limit`, beside what the kernel occupies.
///
/// High, because the kernel spreads upwards from its place while it unpacks itself. Below the kernel only if
/// that leaves no room.
pub(crate) fn load(ram: &GuestMemoryMmap, source: &Source<'_>, kernel: Span, limit: u64) -> Result<Initrd, Error> {
    let len = source.len();
    let above = Span { start: kernel.end, end: limit };
    let below = Span { start: layout::HIGH_RAM_BASE, end: kernel.start.min(limit) };
    let Some(addr) = highest_place(above, len).or_else(|| highest_place(below, len)) else {
        let room = free_bytes(above).max(free_bytes(below));
        return Err(Error::InitrdTooLarge { path: source.path(), len, room });
    };
    source.copy_to(ram, addr, 0, len)?;
    Ok(Initrd { addr, len })
}

/// The highest page boundary in `span` with `len` bytes behind it.
fn highest_place(span: Span, len: u64) -> Option<u64> {
    let addr = span.end.checked_sub(len)? / layout::PAGE_SIZE * layout::PAGE_SIZE;
    (addr >= span.start).then_some(addr)
}

fn free_bytes(span: Span) -> u64 {
    span.end.saturating_sub(span.start.next_multiple_of(layout::PAGE_SIZE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::image;
    use vm_memory::{Bytes, GuestAddress};

    const KERNEL: Span = Span { start: 0x40_0000, end: 0x60_0000 };

    fn place(len: usize, limit: u64) -> Result<Initrd, Error> {
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let image = image(&vec![7; len]);
        let initrd = load(&ram, &Source::new(&image).unwrap(), KERNEL, limit)?;
        assert_eq!(ram.read_obj::<u8>(GuestAddress(initrd.addr)).unwrap(), 7);
        assert_eq!(ram.read_obj::<u8>(GuestAddress(initrd.addr + initrd.len - 1)).unwrap(), 7);
        Ok(initrd)
    }

    #[test]
    fn initrd_ends_near_the_limit() {
        assert_eq!(place(5000, 16 << 20).unwrap(), Initrd { addr: 0xFF_E000, len: 5000 });
        assert_eq!(place(4096, 0x80_0800).unwrap(), Initrd { addr: 0x7F_F000, len: 4096 });
    }

    #[test]
    fn initrd_that_fits_exactly_touches_the_kernel() {
        assert_eq!(place(0xA0_0000, 16 << 20).unwrap().addr, KERNEL.end);
    }

    #[test]
    fn initrd_goes_below_the_kernel_when_there_is_no_room_above() {
        assert_eq!(place(0x10_0000, 0x60_0001).unwrap().addr, 0x30_0000);
    }

    #[test]
    fn initrd_without_room_is_refused_with_the_room_there_is() {
        let error = place(0xA0_0001, 16 << 20).unwrap_err();
        assert!(matches!(error, Error::InitrdTooLarge { len: 0xA0_0001, room: 0xA0_0000, .. }));
        assert!(matches!(place(1, 0), Err(Error::InitrdTooLarge { room: 0, .. })));
    }
}
