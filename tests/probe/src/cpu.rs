//! The few instructions that Rust has no words for: ports, sized memory-mapped accesses, the time stamp counter.
//!
//! The functions are safe to call although a wrong address would be fatal: the probe runs alone on its machine, and an
//! access that is not backed ends in the exception report, not in undefined behaviour elsewhere. Memory-mapped
//! accesses are written as one `mov` each, so that the width on the bus is exactly the one in the name and every
//! hypervisor's emulator knows the instruction.

use core::arch::asm;

macro_rules! port_access {
    ($read:ident, $write:ident, $int:ty, $reg:tt, $width:literal) => {
        #[doc = concat!("Reads ", $width, " bits from an I/O port.")]
        pub(crate) fn $read(port: u16) -> $int {
            let value: $int;
            // SAFETY: The I/O bitmap opens every port to ring 3 (entry.rs); the instruction touches no memory.
            unsafe { asm!(concat!("in ", $reg, ", dx"), in("dx") port, out($reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }

        #[doc = concat!("Writes ", $width, " bits to an I/O port.")]
        pub(crate) fn $write(port: u16, value: $int) {
            // SAFETY: The I/O bitmap opens every port to ring 3 (entry.rs). Not `nomem`: the device may act on memory.
            unsafe { asm!(concat!("out dx, ", $reg), in("dx") port, in($reg) value, options(nostack, preserves_flags)) };
        }
    };
}

port_access!(in8, out8, u8, "al", "8");
port_access!(in16, out16, u16, "ax", "16");
port_access!(in32, out32, u32, "eax", "32");

macro_rules! memory_access {
    ($read:ident, $write:ident, $int:ty, $class:ident, $modifier:literal, $width:literal) => {
        #[doc = concat!("Reads ", $width, " bits at a physical address, with one instruction of that width.")]
        pub(crate) fn $read(address: u64) -> $int {
            let value: $int;
            // SAFETY: All physical addresses are mapped one to one for ring 3 (paging.rs); a hole ends in the fault
            // report.
            unsafe { asm!(concat!("mov {value", $modifier, "}, [{address}]"), value = out($class) value, address = in(reg) address, options(nostack, preserves_flags)) };
            value
        }

        #[doc = concat!("Writes ", $width, " bits at a physical address, with one instruction of that width.")]
        pub(crate) fn $write(address: u64, value: $int) {
            // SAFETY: As above; callers pass device registers or memory of the arena, which holds no Rust object.
            unsafe { asm!(concat!("mov [{address}], {value", $modifier, "}"), value = in($class) value, address = in(reg) address, options(nostack, preserves_flags)) };
        }
    };
}

memory_access!(read8, write8, u8, reg_byte, "", "8");
memory_access!(read16, write16, u16, reg, ":x", "16");
memory_access!(read32, write32, u32, reg, ":e", "32");
memory_access!(read64, write64, u64, reg, ":r", "64");

/// Orders all earlier memory accesses before all later ones, for the rings shared with a device.
pub(crate) fn fence() {
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

/// The time stamp counter, in ticks of an unknown frequency between 1 and 6 GHz.
pub(crate) fn ticks() -> u64 {
    // SAFETY: CR4.TSD is clear (entry.rs), so ring 3 may read the counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// A bound for waiting: about one second on a common processor, never less than a third of one.
pub(crate) const SECOND_TICKS: u64 = 2_000_000_000;

/// A bound for what has to happen: generous, because on a loaded host the device's thread may have to wait for its
/// turn.
pub(crate) const PATIENCE_TICKS: u64 = 15 * SECOND_TICKS;

/// Waits until `done` holds, for at most `limit` ticks. Returns whether it did.
pub(crate) fn wait(limit: u64, mut done: impl FnMut() -> bool) -> bool {
    let start = ticks();
    loop {
        if done() {
            return true;
        }
        if ticks().wrapping_sub(start) > limit {
            return false;
        }
        core::hint::spin_loop();
    }
}
