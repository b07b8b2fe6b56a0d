//! A file that goes into guest memory: its name for messages, its length, bounded reads.
//!
//! Every read names an offset and a length and is checked against the length at opening. A file that
//! shrinks meanwhile is reported as truncated. Content goes from the file straight into guest memory; the
//! only heap buffers are for headers.

use crate::{Error, huge_pages};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, ReadVolatile};

/// An open file and the name by which the user knows it.
#[derive(Debug)]
pub struct Image {
    /// Opened for reading; must be seekable. Its position is changed.
    pub file: File,
    /// Appears in messages; it is not opened again.
    pub path: PathBuf,
}

/// An [`Image`] that is known to be a non-empty, seekable file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    file: &'a File,
    path: &'a Path,
    len: u64,
}

impl<'a> Source<'a> {
    pub(crate) fn new(image: &'a Image) -> Result<Self, Error> {
        let Image { file, path } = image;
        let read_error = |source| Error::Read { path: path.clone(), source };
        if file.metadata().map_err(read_error)?.is_dir() {
            return Err(Error::Directory { path: path.clone() });
        }
        // Not the length of the metadata, which is 0 for a block device.
        let len = (&mut &*file).seek(SeekFrom::End(0)).map_err(read_error)?;
        if len == 0 {
            return Err(Error::Empty { path: path.clone() });
        }
        Ok(Self { file, path, len })
    }

    /// Length in bytes, at least 1.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.path.to_owned()
    }

    /// Refuses a file whose headers speak of content up to `needed` bytes that it does not have.
    pub(crate) fn check_len(&self, needed: u64) -> Result<(), Error> {
        if needed > self.len {
            return Err(self.truncated(needed));
        }
        Ok(())
    }

    /// Fills `buffer` from `offset`.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        let needed = offset.saturating_add(u64::try_from(buffer.len()).unwrap_or(u64::MAX));
        self.check_len(needed)?;
        self.file.read_exact_at(buffer, offset).map_err(|source| self.read_error(source, needed))
    }

    /// Fills the start of `buffer` with the first bytes of the file and returns how many there were.
    pub(crate) fn read_start(&self, buffer: &mut [u8]) -> Result<usize, Error> {
        let len = usize::try_from(self.len).unwrap_or(usize::MAX).min(buffer.len());
        self.read_at(&mut buffer[..len], 0)?;
        Ok(len)
    }

    /// Copies `len` bytes from `offset` to the guest physical address `destination`.
    pub(crate) fn copy_to(&self, ram: &GuestMemoryMmap, destination: u64, offset: u64, len: u64) -> Result<(), Error> {
        let needed = offset.saturating_add(len);
        self.check_len(needed)?;
        let mut file = self.file;
        file.seek(SeekFrom::Start(offset)).map_err(|source| self.read_error(source, needed))?;
        let count = usize::try_from(len).map_err(|_| self.truncated(needed))?;
        // Slice by slice, because `Bytes::read_exact_volatile_from` of a whole guest memory takes a short read, which
        // is legal on a network file system, for the end of the file.
        for slice in GuestMemoryBackend::get_slices(ram, GuestAddress(destination), count) {
            let mut slice = slice.map_err(|source| Error::GuestMemory { what: "a file", source })?;
            huge_pages::ask(&slice);
            file.read_exact_volatile(&mut slice).map_err(|error| match GuestMemoryError::from(error) {
                GuestMemoryError::IOError(source) => self.read_error(source, needed),
                source => Error::GuestMemory { what: "a file", source },
            })?;
        }
        Ok(())
    }

    fn read_error(&self, source: io::Error, needed: u64) -> Error {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            return self.truncated(needed);
        }
        Error::Read { path: self.path(), source }
    }

    fn truncated(&self, needed: u64) -> Error {
        Error::Truncated { path: self.path(), len: self.len, needed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::image;

    #[test]
    fn empty_file_is_refused() {
        assert!(matches!(Source::new(&image(&[])), Err(Error::Empty { .. })));
    }

    #[test]
    fn directory_is_refused() {
        let image = Image { file: File::open("/").unwrap(), path: "/".into() };
        assert!(matches!(Source::new(&image), Err(Error::Directory { .. })));
    }

    #[test]
    fn pipe_is_refused_because_it_has_no_length() {
        let (reader, _writer) = io::pipe().unwrap();
        let image = Image { file: File::from(std::os::fd::OwnedFd::from(reader)), path: "pipe".into() };
        let error = Source::new(&image).unwrap_err();
        assert_eq!(error.to_string(), "Cannot read pipe");
        assert_eq!(error.hint().unwrap(), "Pass a file, not a pipe");
    }

    #[test]
    fn read_past_the_end_is_a_truncation() {
        let image = image(b"abc");
        let source = Source::new(&image).unwrap();
        assert!(matches!(source.read_at(&mut [0; 2], 2), Err(Error::Truncated { len: 3, needed: 4, .. })));
        assert!(matches!(source.read_at(&mut [0; 2], u64::MAX), Err(Error::Truncated { .. })));
    }

    #[test]
    fn file_that_shrinks_is_a_truncation() {
        let image = image(&[1; 100]);
        let source = Source::new(&image).unwrap();
        image.file.set_len(10).unwrap();
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        assert!(matches!(source.copy_to(&ram, 0, 0, 100), Err(Error::Truncated { .. })));
    }
}
