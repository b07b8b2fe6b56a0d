//! Files that are made where the user says, in a folder where others may write as well.
//!
//! The folder is opened once, so that a file and its neighbour are in the same one whatever becomes of its path.
//! The last part of a path is never followed if it is a symbolic link, which another user of a shared folder may have
//! put there; links that lead to the folder are the user's own choice. A file that is made can be read by its user
//! only.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, openat};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The mode of a file that was made: its user alone may read and write it.
const FILE_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// Write permission of others, in the mode of a folder.
const WRITE_BY_OTHERS: u32 = 0o022;

/// A folder.
#[derive(Debug)]
pub(crate) struct Folder(File);

impl Folder {
    /// The folder of the file at `path`, and the file's name in it.
    ///
    /// # Errors
    /// If there is no such folder, or the path names no file.
    pub(crate) fn of(path: &Path) -> io::Result<(Self, OsString)> {
        let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(parent)?;
        Ok((Self(folder), name.to_owned()))
    }

    /// Makes the file `name`, or empties it. A FIFO waits for its reader.
    ///
    /// # Errors
    /// If it cannot be written, is a symbolic link, or is another user's in a folder where others may write.
    pub(crate) fn create(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = openat(&self.0, name, flags, FILE_MODE).map(File::from).map_err(|errno| match errno {
            Errno::ELOOP => io::Error::other("It is a symbolic link, which another user may have put there"),
            errno => errno.into(),
        })?;
        let (metadata, folder) = (file.metadata()?, self.0.metadata()?);
        let trusted = [geteuid().as_raw(), folder.uid()].contains(&metadata.uid());
        if metadata.is_file() {
            if !trusted && folder.mode() & WRITE_BY_OTHERS != 0 {
                return Err(io::Error::other("It is another user's, in a folder where others may write"));
            }
            file.set_len(0)?;
        } else {
            // Once it is open, whoever writes to it must not wait.
            fcntl(&file, FcntlArg::F_SETFL(OFlag::O_WRONLY | OFlag::O_NONBLOCK))?;
        }
        Ok(file)
    }

    /// Opens the file `name` to read what has been written to it.
    ///
    /// # Errors
    /// If it cannot be read, or is a symbolic link.
    pub(crate) fn open(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        Ok(File::from(openat(&self.0, name, flags, Mode::empty())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn create(path: &Path) -> io::Result<File> {
        let (folder, name) = Folder::of(path)?;
        folder.create(&name)
    }

    #[test]
    fn file_is_its_users_alone_and_an_old_one_is_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        drop(create(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::write(&path, "old").unwrap();
        drop(create(&path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn link_is_not_followed_but_one_to_the_folder_is() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "precious").unwrap();
        symlink(&target, &link).unwrap();
        assert_eq!(
            create(&link).unwrap_err().to_string(),
            "It is a symbolic link, which another user may have put there"
        );
        assert_eq!(fs::read(&target).unwrap(), b"precious");
        let other = tempfile::tempdir().unwrap();
        symlink(folder.path(), other.path().join("way")).unwrap();
        assert!(create(&other.path().join("way/file")).is_ok());
        assert!(create(Path::new("/")).is_err());
    }

    #[test]
    fn file_of_another_user_in_a_shared_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "theirs").unwrap();
        // Only root can make a file another user's.
        if std::os::unix::fs::chown(&path, Some(65534), None).is_ok() {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
            assert!(create(&path).is_err());
            assert_eq!(fs::read(&path).unwrap(), b"theirs");
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
            assert!(create(&path).is_ok());
        }
    }
}
