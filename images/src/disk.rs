//! Root disks: an ext4 file system in a sparse file, filled by `mkfs.ext4 -d`, so no loop device, no mount and no root
//! is needed. Every disk has a UUID of its own and the label `minivmm`.

use crate::error::Error;
use crate::tools;
use crate::tree::Tree;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The file system's block; a page of the guest.
const BLOCK_BYTES: u64 = 4096;
/// Below this an ext4 with a journal and the default root does not fit.
const LEAST_BYTES: u64 = 8 << 20;

/// The size of a disk in bytes, a multiple of the 4 KiB block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSize(u64);

impl DiskSize {
    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl std::str::FromStr for DiskSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad_size = || Error::BadSize { text: text.to_owned() };
        let (digits, shift) = match text.strip_suffix(['K', 'M', 'G', 'T']) {
            Some(digits) if text.ends_with('K') => (digits, 10),
            Some(digits) if text.ends_with('M') => (digits, 20),
            Some(digits) if text.ends_with('G') => (digits, 30),
            Some(digits) => (digits, 40),
            None => (text, 0),
        };
        let number: u64 = digits.parse().map_err(|_| bad_size())?;
        let bytes = number.checked_mul(1 << shift).filter(|bytes| *bytes >= LEAST_BYTES).ok_or_else(bad_size)?;
        if bytes % BLOCK_BYTES == 0 { Ok(Self(bytes)) } else { Err(bad_size()) }
    }
}

/// The contents of a disk.
#[derive(Debug)]
pub enum Contents {
    /// A tree made here.
    Tree(Tree),
    /// A directory of this machine.
    Dir(PathBuf),
}

/// Makes the disk image, replacing `out` at once.
///
/// # Errors
/// A file cannot be made, or `mkfs.ext4` fails.
pub fn make(size: DiskSize, contents: &Contents, out: &Path) -> Result<(), Error> {
    let parent = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let work = tempfile::Builder::new().prefix(".disk").tempdir_in(parent);
    let work = work.map_err(Error::file("create a directory in", parent))?;
    let dir = match contents {
        Contents::Dir(dir) => {
            fs::read_dir(dir).map_err(Error::file("list", dir))?;
            dir.clone()
        }
        Contents::Tree(tree) => {
            let dir = work.path().join("root");
            fs::create_dir(&dir).map_err(Error::file("create", &dir))?;
            tree.write_below(&dir)?;
            dir
        }
    };
    let image = work.path().join("image");
    let mut mkfs = mkfs(work.path())?;
    mkfs.args(["-q", "-F", "-b", "4096", "-L", "minivmm", "-m", "0", "-E", "root_owner=0:0", "-d"]);
    mkfs.arg(&dir).arg(&image).arg((size.bytes() / BLOCK_BYTES).to_string());
    tools::output(&mut mkfs)?;
    fs::rename(&image, out).map_err(Error::file("replace", out))
}

/// `mkfs.ext4`, in a user namespace where the caller is root if it is not: files keep the owner that mkfs sees.
fn mkfs(own: &Path) -> Result<Command, Error> {
    let owner = fs::metadata(own).map_err(Error::file("inspect", own))?.uid();
    if owner == 0 {
        return tools::tool("mkfs.ext4");
    }
    let mut command = tools::tool("unshare")?;
    command.arg("--map-root-user").arg(tools::find("mkfs.ext4")?);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!("1G".parse::<DiskSize>().unwrap().bytes(), 1 << 30);
        assert_eq!("64M".parse::<DiskSize>().unwrap().bytes(), 64 << 20);
        assert_eq!("16777216".parse::<DiskSize>().unwrap().bytes(), 16 << 20);
    }

    #[test]
    fn bad_sizes_are_refused() {
        for text in ["", "G", "1X", "-1G", "4M", "16777217", "99999999999T", "1.5G"] {
            assert!(text.parse::<DiskSize>().is_err(), "{text}");
        }
    }
}
