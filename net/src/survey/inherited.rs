//! Descriptors that a request names by number.
#![allow(unsafe_code)] // A number becomes a descriptor.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Duplicates of those of `numbers` that are open in this process.
pub(crate) fn duplicates(numbers: &[RawFd]) -> BTreeMap<RawFd, OwnedFd> {
    numbers.iter().filter_map(|&number| Some((number, duplicate(number).ok()?))).collect()
}

fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes the least number that the new descriptor may have; the kernel refuses a number that
    // is not open.
    let fd = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just put this descriptor into our table, and no other code knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    fn open_numbers_are_duplicated_and_others_left_out() {
        let file = File::open("/dev/null").unwrap();
        let number = file.as_raw_fd();

        let duplicates = duplicates(&[number, RawFd::MAX]);

        assert_eq!(duplicates.keys().collect::<Vec<_>>(), [&number]);
        assert_ne!(duplicates[&number].as_raw_fd(), number);
    }
}
