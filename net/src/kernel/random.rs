//! Random numbers of the kernel (getrandom(2)).
#![expect(unsafe_code, reason = "getrandom has no safe wrapper in the crates used here")]

use std::io;

/// Unpredictable octets. At most 256 come whole.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: the kernel writes at most `N` octets, for which there is room.
    let len = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
    if len < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes) }
}
