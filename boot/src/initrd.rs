//! Where the initrd goes: as high as the kernel allows, page aligned, clear of the kernel.

use crate::kernel::Span;
use crate::source::Source;
use crate::{Error, layout};
use vm_memory::GuestMemoryMmap;

/// An initrd in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Initrd {
    /// Guest physical address.
    pub(crate) addr: u64,
    /// Length in bytes.
    pub(crate) len: u64,
}

/// Where a kernel takes an initrd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Below this address.
    Below(u64),
    /// Anywhere; below this address if there is room.
    Anywhere {
        /// The address.
        preferred: u64,
    },
}

/// Guest memory that an initrd can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// The end of the RAM below the device hole.
    pub(crate) low_end: u64,
    /// The RAM above 4 GiB.
    pub(crate) high: Option<Span>,
}

/// Copies the initrd to where the kernel takes it, beside what the kernel occupies.
///
/// High, because the kernel spreads upwards from its place while it unpacks itself. Below the kernel only if
/// that leaves no room, and above 4 GiB only if there is none at all, which a kernel has to know
/// (`XLF_CAN_BE_LOADED_ABOVE_4G`).
pub(crate) fn load(
    ram: &GuestMemoryMmap,
    source: &Source<'_>,
    kernel: Span,
    reach: Reach,
    room: Room,
) -> Result<Initrd, Error> {
    let len = source.len();
    let places = places(kernel, reach, room);
    let Some(addr) = places.iter().find_map(|span| highest_place(*span, len)) else {
        let room = places.into_iter().map(free_bytes).max().unwrap_or_default();
        let needed_bytes = needed_bytes(len, kernel, reach);
        return Err(Error::InitrdTooLarge { path: source.path(), len, room, needed_bytes });
    };
    source.copy_to(ram, addr, 0, len)?;
    Ok(Initrd { addr, len })
}

/// Where the kernel takes an initrd, best first.
fn places(kernel: Span, reach: Reach, room: Room) -> Vec<Span> {
    let (Reach::Below(limit) | Reach::Anywhere { preferred: limit }) = reach;
    let limit = limit.min(room.low_end);
    let mut places = vec![
        Span { start: kernel.end, end: limit },
        Span { start: layout::HIGH_RAM_BASE, end: kernel.start.min(limit) },
    ];
    if matches!(reach, Reach::Anywhere { .. }) {
        places.push(Span { start: kernel.end, end: room.low_end });
        places.extend(room.high);
    }
    places
}

/// Memory of a guest in which an initrd of `len` bytes has a place; none if no amount gives it one.
fn needed_bytes(len: u64, kernel: Span, reach: Reach) -> Option<u64> {
    let limit = match reach {
        Reach::Below(limit) => limit.min(layout::RAM_BELOW_4G_END),
        Reach::Anywhere { .. } => layout::RAM_BELOW_4G_END,
    };
    let len = len.checked_next_multiple_of(layout::PAGE_SIZE)?;
    let end = kernel.end.checked_next_multiple_of(layout::PAGE_SIZE)?.checked_add(len)?;
    match reach {
        _ if end <= limit => Some(end),
        Reach::Below(_) => None,
        // The memory that does not fit below the device hole lies above 4 GiB.
        Reach::Anywhere { .. } => layout::RAM_BELOW_4G_END.checked_add(len),
    }
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

    const LOW_END: u64 = 16 << 20;

    fn place(len: usize, limit: u64) -> Result<Initrd, Error> {
        place_in(&[(GuestAddress(0), 16 << 20)], len, Reach::Below(limit))
    }

    fn place_in(ranges: &[(GuestAddress, usize)], len: usize, reach: Reach) -> Result<Initrd, Error> {
        let ram = GuestMemoryMmap::from_ranges(ranges).unwrap();
        let image = image(&vec![7; len]);
        let high = ranges.get(1).map(|(start, len)| Span { start: start.0, end: start.0 + *len as u64 });
        let initrd = load(&ram, &Source::new(&image).unwrap(), KERNEL, reach, Room { low_end: LOW_END, high })?;
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
    fn initrd_that_has_no_room_below_goes_above_4_gib_if_the_kernel_knows_how() {
        let ranges = [(GuestAddress(0), 16 << 20), (GuestAddress(4 << 30), 16 << 20)];
        let anywhere = Reach::Anywhere { preferred: 0x80_0000 };

        assert_eq!(place_in(&ranges, 5000, anywhere).unwrap().addr, 0x7F_E000);
        assert_eq!(place_in(&ranges, 0x30_0000, anywhere).unwrap().addr, 0x10_0000);
        assert_eq!(place_in(&ranges, 0xA0_0000, anywhere).unwrap().addr, KERNEL.end);
        assert_eq!(place_in(&ranges, 0xF0_0000, anywhere).unwrap().addr, (4 << 30) + 0x10_0000);
        let refused = place_in(&ranges, 0xF0_0000, Reach::Below(0x80_0000)).unwrap_err();
        assert!(matches!(refused, Error::InitrdTooLarge { room: 0x30_0000, needed_bytes: None, .. }));
        let refused = place_in(&ranges[..1], 0xF0_0000, anywhere).unwrap_err();
        assert!(matches!(refused, Error::InitrdTooLarge { needed_bytes: Some(0x150_0000), .. }));
    }

    #[test]
    fn memory_that_an_initrd_needs_is_known() {
        let gib = 1 << 30;
        let anywhere = Reach::Anywhere { preferred: 2 * gib };

        assert_eq!(needed_bytes(gib, KERNEL, Reach::Below(2 * gib)), Some(KERNEL.end + gib));
        assert_eq!(needed_bytes(2 * gib, KERNEL, Reach::Below(2 * gib)), None);
        assert_eq!(needed_bytes(2 * gib, KERNEL, anywhere), Some(KERNEL.end + 2 * gib));
        assert_eq!(needed_bytes(3 * gib, KERNEL, anywhere), Some(6 * gib));
        assert_eq!(needed_bytes(u64::MAX, KERNEL, anywhere), None);
    }

    #[test]
    fn initrd_without_room_is_refused_with_the_room_there_is() {
        let error = place(0xA0_0001, 16 << 20).unwrap_err();
        assert!(matches!(error, Error::InitrdTooLarge { len: 0xA0_0001, room: 0xA0_0000, .. }));
        assert!(matches!(place(1, 0), Err(Error::InitrdTooLarge { room: 0, .. })));
    }
}
