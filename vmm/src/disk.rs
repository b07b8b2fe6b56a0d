//! Opens the files behind disks, and keeps two VMs from writing to the same one.
//!
//! The lock is an open file description lock: exclusive for a writable disk, shared for a read-only one. It is advisory (only
//! programs that ask see it; QEMU does) and ends with the descriptor.
#![expect(unsafe_code, reason = "fcntl(F_OFD_SETLK) has no safe wrapper in the crates used here")]

use devices::virtio::blk::disk::{Access, SECTOR_BYTES};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no such file.
    #[error("Disk {} does not exist", .0.display())]
    Missing(PathBuf),
    /// The user may not open it.
    #[error("No permission to open disk {}", path.display())]
    Permission {
        /// The disk.
        path: PathBuf,
        /// What was wanted.
        access: Access,
    },
    /// It could not be opened for another reason.
    #[error("Cannot open disk {}", path.display())]
    Open {
        /// The disk.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a regular file or block device.
    #[error("Disk {} is a {kind}", path.display())]
    NotADisk {
        /// The disk.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// It has no bytes.
    #[error("Disk {} is empty", .0.display())]
    Empty(PathBuf),
    /// Its size is not whole sectors.
    #[error("The size of disk {} ({bytes} bytes) is not a multiple of {SECTOR_BYTES}", path.display())]
    Uneven {
        /// The disk.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Another program has locked it.
    #[error("Disk {} is in use by another VM", path.display())]
    Locked {
        /// The disk.
        path: PathBuf,
        /// What was wanted.
        access: Access,
    },
}

impl Error {
    /// What the user can do.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Missing(path) => {
                return Some(format!("Create it: truncate -s 1G {}", path.display()));
            }
            Self::Empty(path) => return Some(format!("Give it a size: truncate -s 1G {}", path.display())),
            Self::Permission { access: Access::ReadWrite, .. } => "Change its permissions, or add readonly=on",
            Self::Permission { .. } => "Change its permissions",
            Self::NotADisk { .. } => "Use a raw disk image or a block device",
            Self::Uneven { path, bytes } => {
                let size = bytes.next_multiple_of(SECTOR_BYTES);
                return Some(format!("If it is a raw image, extend it: truncate -s {size} {}", path.display()));
            }
            Self::Locked { access: Access::ReadWrite, .. } => {
                "Stop the other VM, use a copy, or let both use it with readonly=on"
            }
            Self::Locked { .. } => "Stop the VM that writes to it, or use a copy",
            Self::Open { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

/// Opens and locks the disk at `path`.
///
/// # Errors
/// If it is missing, may not be opened, is not a disk, or is in use.
pub(crate) fn open(path: &Path, access: Access) -> Result<File, Error> {
    let file = OpenOptions::new()
        .read(true)
        .write(access == Access::ReadWrite)
        // A FIFO would block in open; it is refused below.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| open_error(path, access, source))?;
    let metadata = file.metadata().map_err(|source| open_error(path, access, source))?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let kind = if kind.is_dir() {
            "directory"
        } else if kind.is_char_device() {
            "character device"
        } else {
            "pipe or socket"
        };
        return Err(Error::NotADisk { path: path.to_owned(), kind });
    }
    // The length of a block device is not in its metadata.
    let bytes = (&file).seek(SeekFrom::End(0)).map_err(|source| open_error(path, access, source))?;
    if bytes == 0 {
        return Err(Error::Empty(path.to_owned()));
    }
    if !bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(Error::Uneven { path: path.to_owned(), bytes });
    }
    lock(&file, access).map_err(|source| match source.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Error::Locked { path: path.to_owned(), access },
        _ => open_error(path, access, source),
    })?;
    Ok(file)
}

fn open_error(path: &Path, access: Access, source: io::Error) -> Error {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => Error::Missing(path),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Error::Permission { path, access },
        io::ErrorKind::IsADirectory => Error::NotADisk { path, kind: "directory" },
        _ => Error::Open { path, source },
    }
}

#[expect(clippy::cast_possible_truncation, reason = "fcntl's constants 0 and 1 are ints, its structure has shorts")]
fn lock(file: &File, access: Access) -> io::Result<()> {
    let kind = match access {
        Access::ReadWrite => libc::F_WRLCK,
        Access::ReadOnly => libc::F_RDLCK,
    };
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open and the kernel only reads the structure, which outlives the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn image(bytes: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![0; bytes]).unwrap();
        file
    }

    #[test]
    fn whole_sectors_are_accepted() {
        let image = image(1024);
        assert!(open(image.path(), Access::ReadWrite).is_ok());
    }

    #[test]
    fn odd_and_empty_sizes_are_refused() {
        assert!(matches!(open(image(1000).path(), Access::ReadWrite), Err(Error::Uneven { bytes: 1000, .. })));
        assert!(matches!(open(image(0).path(), Access::ReadWrite), Err(Error::Empty(_))));
    }

    #[test]
    fn missing_file_and_directory_are_refused() {
        assert!(matches!(open(Path::new("/nonexistent"), Access::ReadWrite), Err(Error::Missing(_))));
        for access in [Access::ReadWrite, Access::ReadOnly] {
            assert!(matches!(open(Path::new("/"), access), Err(Error::NotADisk { kind: "directory", .. })));
        }
        assert!(matches!(open(Path::new("/dev/null"), Access::ReadOnly), Err(Error::NotADisk { .. })));
    }

    #[test]
    fn a_writer_excludes_everyone_and_readers_share() {
        let image = image(512);

        let writer = open(image.path(), Access::ReadWrite).unwrap();
        assert!(matches!(open(image.path(), Access::ReadWrite), Err(Error::Locked { .. })));
        assert!(matches!(open(image.path(), Access::ReadOnly), Err(Error::Locked { .. })));

        drop(writer);
        let _reader = open(image.path(), Access::ReadOnly).unwrap();
        assert!(open(image.path(), Access::ReadOnly).is_ok());
        assert!(matches!(open(image.path(), Access::ReadWrite), Err(Error::Locked { .. })));
    }
}
