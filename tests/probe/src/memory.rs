//! The memory routines the compiler calls, which on a hosted target come from the C library.

use core::arch::asm;

/// C `memcpy`.
///
/// # Safety
/// As in C: both ranges valid for `len` bytes and not overlapping.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(dst: *mut u8, src: *const u8, len: usize) -> *mut u8 {
    // SAFETY: The caller guarantees both ranges; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") dst => _, inout("rsi") src => _, options(nostack, preserves_flags))
    };
    dst
}

/// C `memmove`.
///
/// # Safety
/// As in C: both ranges valid for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(dst: *mut u8, src: *const u8, len: usize) -> *mut u8 {
    if dst.addr().wrapping_sub(src.addr()) >= len {
        // SAFETY: A forward copy never reads what it has written when dst is not inside the source range.
        return unsafe { memcpy(dst, src, len) };
    }
    // SAFETY: The caller guarantees both ranges and len > 0 here; copied from the end, then the flag is cleared again.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") len => _, inout("rdi") dst.wrapping_add(len - 1) => _,
            inout("rsi") src.wrapping_add(len - 1) => _, options(nostack))
    };
    dst
}

/// C `memset`.
///
/// # Safety
/// As in C: the range valid for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(dst: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: The caller guarantees the range; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") dst => _, in("al") byte.to_le_bytes()[0], options(nostack, preserves_flags))
    };
    dst
}

/// C `memcmp`.
///
/// # Safety
/// As in C: both ranges valid for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    for i in 0..len {
        // SAFETY: i < len, and the caller guarantees the range. Volatile, so that the loop is not turned into a call of
        // itself.
        let l = unsafe { left.wrapping_add(i).read_volatile() };
        // SAFETY: As above.
        let r = unsafe { right.wrapping_add(i).read_volatile() };
        if l != r {
            return i32::from(l) - i32::from(r);
        }
    }
    0
}

/// C `bcmp`.
///
/// # Safety
/// As `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    // SAFETY: Same contract.
    unsafe { memcmp(left, right, len) }
}
