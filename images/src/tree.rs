//! The files of a guest's root, in memory: one description that becomes an initramfs or a disk. Promises that parents
//! precede their children and that the order does not depend on how it was built. Holds no owners, times or device
//! nodes: everything belongs to root, nothing has an age, and the guest's `/dev` is a devtmpfs.

use crate::error::Error;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// One name in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory, mode 0755.
    Directory,
    /// A file that can be run, mode 0755.
    Program(Vec<u8>),
    /// Any other file, mode 0644.
    File(Vec<u8>),
    /// A symbolic link with its target.
    Symlink(String),
}

impl Entry {
    /// The permission bits of `st_mode`.
    pub fn permissions(&self) -> u32 {
        match self {
            Self::Directory | Self::Program(_) => 0o755,
            Self::File(_) => 0o644,
            Self::Symlink(_) => 0o777,
        }
    }
}

/// A root directory's contents by path, without a leading slash.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// Puts an entry, with the directories above it. A later one of the same path wins.
    pub fn put(&mut self, path: &str, entry: Entry) {
        let path = path.trim_start_matches('/');
        for (slash_idx, _) in path.match_indices('/') {
            self.entries.entry(path[..slash_idx].to_owned()).or_insert(Entry::Directory);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// The entries, each directory before what is in it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// Returns whether the path is taken.
    pub fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path.trim_start_matches('/'))
    }

    /// Writes the tree below an existing, empty directory.
    ///
    /// # Errors
    /// [`Error::File`] with the path that failed.
    pub fn write_below(&self, dir: &Path) -> Result<(), Error> {
        for (name, entry) in self.iter() {
            let path = dir.join(name);
            match entry {
                Entry::Directory => fs::create_dir(&path).map_err(Error::file("create", &path))?,
                Entry::Program(data) | Entry::File(data) => {
                    fs::write(&path, data).map_err(Error::file("write", &path))?;
                }
                Entry::Symlink(target) => {
                    symlink(target, &path).map_err(Error::file("create", &path))?;
                    continue;
                }
            }
            let mode = fs::Permissions::from_mode(entry.permissions());
            fs::set_permissions(&path, mode).map_err(Error::file("set the mode of", &path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first() {
        let mut tree = Tree::default();
        tree.put("/usr/share/x", Entry::File(b"1".to_vec()));
        tree.put("usr-local", Entry::Directory);
        let names: Vec<_> = tree.iter().map(|(path, _)| path).collect();
        assert_eq!(names, ["usr", "usr-local", "usr/share", "usr/share/x"]);
    }

    #[test]
    fn later_entry_wins_and_keeps_its_directory() {
        let mut tree = Tree::default();
        tree.put("bin/ls", Entry::Symlink("busybox".into()));
        tree.put("bin/ls", Entry::Program(vec![1]));
        assert_eq!(tree.iter().count(), 2);
        assert!(tree.contains("/bin/ls"));
    }

    #[test]
    fn tree_on_disk_has_the_modes() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = Tree::default();
        tree.put("bin/run", Entry::Program(b"x".to_vec()));
        tree.put("bin/link", Entry::Symlink("run".into()));
        tree.write_below(dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join("bin/link")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }
}
