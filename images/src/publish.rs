//! Files that appear whole: written beside their place and renamed into it. A second run that makes the same file
//! changes nothing.

use crate::error::Error;
use std::fs;
use std::path::Path;

/// Puts a file in its place at once, unless it is there already.
pub(crate) fn publish(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if fs::read(path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let partial = path.with_file_name(name);
    let written = fs::write(&partial, bytes).map_err(Error::file("write", &partial));
    let moved = written.and_then(|()| fs::rename(&partial, path).map_err(Error::file("replace", path)));
    if moved.is_err() {
        // The failure to report is the one above; what is left of the partial file is a nuisance at most.
        let _ = fs::remove_file(&partial);
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publish_leaves_an_equal_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        publish(&path, b"one").unwrap();
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        publish(&path, b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
        publish(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
