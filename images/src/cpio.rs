//! The initramfs archive: a [`Tree`] as cpio "newc" (kernel:
//! Documentation/driver-api/early-userspace/buffer-format.rst). Promises the same bytes for the same tree: inode
//! numbers count from one, owners and times are zero. Writes no hard links, no device nodes and no compression.

use crate::error::Error;
use crate::tree::{Entry, Tree};

/// The name that ends an archive.
const TRAILER: &str = "TRAILER!!!";
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// The archive of a tree.
///
/// # Errors
/// [`Error::TooLarge`] for a file whose size does not fit the header's 32 bits.
pub fn archive(tree: &Tree) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    for (ino, (path, entry)) in (1_u32..).zip(tree.iter()) {
        let (kind, data): (u32, &[u8]) = match entry {
            Entry::Directory => (S_IFDIR, &[]),
            Entry::Program(data) | Entry::File(data) => (S_IFREG, data),
            Entry::Symlink(target) => (S_IFLNK, target.as_bytes()),
        };
        member(&mut out, path, ino, kind | entry.permissions(), data)?;
    }
    member(&mut out, TRAILER, 0, 0, &[])?;
    Ok(out)
}

fn member(out: &mut Vec<u8>, path: &str, ino: u32, mode: u32, data: &[u8]) -> Result<(), Error> {
    let too_large = |len_bytes| Error::TooLarge { path: path.to_owned(), len_bytes };
    let len = u32::try_from(data.len()).map_err(|_| too_large(data.len()))?;
    let name_len = u32::try_from(path.len() + 1).map_err(|_| too_large(path.len()))?;
    // magic, ino, mode, uid, gid, nlink, mtime, filesize, device numbers of the file and of the node, namesize, check
    let fields = [ino, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    align(out);
    out.extend_from_slice(data);
    align(out);
    Ok(())
}

/// Headers and data start at multiples of four bytes of the archive.
fn align(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_tree_is_the_trailer() {
        let bytes = archive(&Tree::default()).unwrap();
        assert_eq!(bytes.len(), (110 + TRAILER.len() + 1_usize).next_multiple_of(4));
        assert!(bytes.starts_with(b"070701"));
    }

    #[test]
    fn file_has_its_mode_size_and_aligned_data() {
        let mut tree = Tree::default();
        tree.put("init", Entry::Program(b"hello".to_vec()));
        let bytes = archive(&tree).unwrap();
        assert_eq!(&bytes[6..14], b"00000001");
        assert_eq!(&bytes[14..22], b"000081ed");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[94..102], b"00000005");
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..121], b"hello");
        assert_eq!(&bytes[124..130], b"070701");
    }

    #[test]
    fn same_tree_gives_same_bytes() {
        let mut one = Tree::default();
        one.put("a/b", Entry::File(vec![1; 77]));
        one.put("c", Entry::Symlink("a".into()));
        let mut other = Tree::default();
        other.put("c", Entry::Symlink("a".into()));
        other.put("a/b", Entry::File(vec![1; 77]));
        assert_eq!(archive(&one).unwrap(), archive(&other).unwrap());
    }
}
