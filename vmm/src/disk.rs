//! Opens the files behind disks, refuses those that are not raw, and keeps two VMs from writing to the same one.
//!
//! The lock is an open file description lock: exclusive for a writable disk, shared for a read-only one. It is advisory
//! (only programs that ask see it; QEMU does) and ends with the descriptor.

mod signature;

use crate::cli::{DiskFormat, DiskSpec};
use devices::virtio::blk::disk::{Access, BlockSize};
use nix::fcntl::{FcntlArg, fcntl};
use signature::Container;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
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
        /// The access asked for.
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
        /// The kind of file.
        kind: &'static str,
    },
    /// It has no bytes.
    #[error("Disk {} is empty", .0.display())]
    Empty(PathBuf),
    /// It holds a disk in another form than its sectors.
    #[error("Disk {} is {}, not a raw image", path.display(), container.name)]
    NotRaw {
        /// The disk.
        path: PathBuf,
        /// The format that was found.
        container: Container,
    },
    /// Its size is not whole blocks.
    #[error("The size of disk {} ({bytes} bytes) is not a multiple of its block size, {block_bytes}", path.display())]
    Uneven {
        /// The disk.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Bytes of a block.
        block_bytes: u32,
    },
    /// Two disks of the VM are one file, and one of them is writable.
    #[error("Disk {} is given twice", .0.display())]
    Twice(PathBuf),
    /// Another program has locked it.
    #[error("Disk {} is in use by another VM", path.display())]
    Locked {
        /// The disk.
        path: PathBuf,
        /// The access asked for.
        access: Access,
    },
}

impl Error {
    /// Advice to the user.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Missing(path) => {
                return Some(format!("Create it: truncate -s 1G {}", path.display()));
            }
            Self::Empty(path) => return Some(format!("Give it a size: truncate -s 1G {}", path.display())),
            Self::Permission { access: Access::ReadWrite, .. } => "Change its permissions, or add readonly=on",
            Self::Permission { .. } => "Change its permissions",
            Self::NotADisk { .. } => "Use a raw disk image or a block device",
            Self::NotRaw { path, container } => {
                return Some(format!(
                    "Convert it: {}. If these are the disk's own sectors, add format=raw",
                    container.conversion(path)
                ));
            }
            Self::Uneven { path, bytes, block_bytes } => {
                let (path, size) = (path.display(), bytes.next_multiple_of((*block_bytes).into()));
                return Some(format!(
                    "`file {path}` tells what it holds; only a raw image may be extended: truncate -s {size} {path}"
                ));
            }
            Self::Twice(_) => "Give it once, or each time with readonly=on",
            Self::Locked { access: Access::ReadWrite, .. } => {
                "Stop the other VM, use a copy, or let both use it with readonly=on"
            }
            Self::Locked { .. } => "Stop the VM that writes to it, or use a copy",
            Self::Open { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

/// Opens and locks the disks of a VM.
///
/// # Errors
/// If one is missing, may not be opened, is not a raw disk, is there twice, or is in use.
pub(crate) fn open_all(specs: &[DiskSpec]) -> Result<Vec<File>, Error> {
    let mut files: Vec<File> = Vec::new();
    for spec in specs {
        let file = open(spec)?;
        lock(&file, spec.access()).map_err(|errno| lock_error(spec, errno.into(), &file, &files))?;
        files.push(file);
    }
    Ok(files)
}

/// Opens a disk and looks at what it is.
fn open(spec: &DiskSpec) -> Result<File, Error> {
    let (path, access) = (&spec.path, spec.access());
    let failed = |source| open_error(path, access, source);
    let file = OpenOptions::new()
        .read(true)
        .write(access == Access::ReadWrite)
        // A FIFO would block in open; it is refused below.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let kind = if kind.is_dir() {
            "directory"
        } else if kind.is_char_device() {
            "character device"
        } else {
            "pipe or socket"
        };
        return Err(Error::NotADisk { path: path.clone(), kind });
    }
    // The length of a block device is not in its metadata.
    let bytes = (&file).seek(SeekFrom::End(0)).map_err(failed)?;
    if bytes == 0 {
        return Err(Error::Empty(path.clone()));
    }
    // Before the size is judged: nothing may be appended to an image of another format.
    if spec.format != Some(DiskFormat::Raw)
        && let Some(container) = signature::container(&file, bytes).map_err(failed)?
    {
        return Err(Error::NotRaw { path: path.clone(), container });
    }
    let block_size = spec.block_size.map_or_else(|| BlockSize::of(&file), Ok).map_err(failed)?;
    if !bytes.is_multiple_of(block_size.bytes().into()) {
        return Err(Error::Uneven { path: path.clone(), bytes, block_bytes: block_size.bytes() });
    }
    warn_of_other_blocks(&file, path, block_size);
    Ok(file)
}

/// Says if a partition table counts in other blocks than those that the guest is told: it will not see the partitions.
fn warn_of_other_blocks(file: &File, path: &Path, block_size: BlockSize) {
    // UEFI 2.10, 5.3.2: the header is in block 1.
    let has_gpt = |block_bytes: u32| {
        let mut signature = [0; 8];
        file.read_exact_at(&mut signature, block_bytes.into()).is_ok() && signature == *b"EFI PART"
    };
    let (own, others) = (block_size.bytes(), [512, 4096]);
    let other = others.into_iter().find(|bytes| *bytes != own && has_gpt(*bytes));
    if let Some(other) = other.filter(|_| !has_gpt(own)) {
        let path = path.display();
        log::warn!(
            "The partitions of disk {path} are in blocks of {other} bytes, and the guest's are of {own}: \
             add block-size={other}"
        );
    }
}

fn lock_error(spec: &DiskSpec, source: io::Error, file: &File, others: &[File]) -> Error {
    let path = spec.path.clone();
    match source.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) if others.iter().any(|other| is_same(file, other)) => Error::Twice(path),
        Some(libc::EAGAIN | libc::EACCES) => Error::Locked { path, access: spec.access() },
        _ => open_error(&path, spec.access(), source),
    }
}

/// Returns whether two descriptors lead to one file or one block device, whose nodes may differ.
fn is_same(one: &File, other: &File) -> bool {
    let identity = |file: &File| {
        let metadata = file.metadata().ok()?;
        let is_device = metadata.file_type().is_block_device();
        Some(if is_device { (None, metadata.rdev()) } else { (Some(metadata.dev()), metadata.ino()) })
    };
    identity(one).is_some_and(|identity_of_one| identity(other) == Some(identity_of_one))
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
fn lock(file: &File, access: Access) -> nix::Result<()> {
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
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(drop)
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

    fn spec(path: &Path, keys: &str) -> DiskSpec {
        format!("path={}{keys}", path.display()).parse().unwrap()
    }

    fn open_with(path: &Path, keys: &str) -> Result<Vec<File>, Error> {
        open_all(&[spec(path, keys)])
    }

    #[test]
    fn whole_sectors_are_accepted() {
        assert!(open_with(image(1024).path(), "").is_ok());
        assert!(open_with(image(8192).path(), ",block-size=4096").is_ok());
    }

    #[test]
    fn odd_and_empty_sizes_are_refused() {
        let odd = open_with(image(1000).path(), "");
        assert!(matches!(odd, Err(Error::Uneven { bytes: 1000, block_bytes: 512, .. })));
        let odd = open_with(image(1024).path(), ",block-size=4096");
        assert!(matches!(odd, Err(Error::Uneven { bytes: 1024, block_bytes: 4096, .. })));
        assert!(matches!(open_with(image(0).path(), ""), Err(Error::Empty(_))));
    }

    #[test]
    fn missing_file_and_directory_are_refused() {
        assert!(matches!(open_with(Path::new("/nonexistent"), ""), Err(Error::Missing(_))));
        for keys in ["", ",readonly=on"] {
            assert!(matches!(open_with(Path::new("/"), keys), Err(Error::NotADisk { kind: "directory", .. })));
        }
        assert!(matches!(open_with(Path::new("/dev/null"), ",readonly=on"), Err(Error::NotADisk { .. })));
    }

    #[test]
    fn image_of_another_format_is_refused_before_its_size_is_and_format_raw_takes_it() {
        let file = image(1000);
        file.as_file().write_all_at(b"QFI\xfb\0\0\0\x03", 0).unwrap();

        let refused = open_with(file.path(), "").unwrap_err();
        file.as_file().set_len(1024).unwrap();

        let path = file.path().display();
        assert_eq!(refused.to_string(), format!("Disk {path} is a qcow2 image, not a raw image"));
        let hint = refused.hint().unwrap();
        assert!(hint.contains(&format!("qemu-img convert -f qcow2 -O raw {path} {path}.raw")), "{hint}");
        assert!(hint.contains("format=raw") && !hint.contains("truncate"), "{hint}");
        assert!(matches!(open_with(file.path(), ",readonly=on"), Err(Error::NotRaw { .. })));
        assert!(open_with(file.path(), ",format=raw").is_ok());
    }

    #[test]
    fn a_writer_excludes_everyone_and_readers_share() {
        let image = image(512);
        let open = |keys| open_with(image.path(), keys);

        let writer = open("").unwrap();
        assert!(matches!(open(""), Err(Error::Locked { .. })));
        assert!(matches!(open(",readonly=on"), Err(Error::Locked { .. })));

        drop(writer);
        let _reader = open(",readonly=on").unwrap();
        assert!(open(",readonly=on").is_ok());
        assert!(matches!(open(""), Err(Error::Locked { .. })));
    }

    #[test]
    fn disk_that_is_given_twice_is_called_that_whatever_its_name() {
        let file = image(512);
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(file.path(), &link).unwrap();
        let both = |one, other| open_all(&[spec(file.path(), one), spec(&link, other)]);

        for (one, other) in [("", ""), (",readonly=on", ""), ("", ",readonly=on")] {
            assert!(matches!(both(one, other), Err(Error::Twice(path)) if path == link), "{one} {other}");
        }
        assert!(both(",readonly=on", ",readonly=on").is_ok());
    }
}
