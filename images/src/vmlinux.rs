//! The ELF kernel inside a bzImage. Unpacking is left to the compressors' own tools, which a machine that handles
//! kernel packages has anyway.

use crate::bzimage::{Method, Refusal, payload};
use crate::error::Error;
use crate::publish::publish;
use crate::tools;
use std::fs;
use std::path::Path;

/// Unpacks the ELF kernel of `bzimage` into `out`.
///
/// # Errors
/// [`Error::NotBzImage`], and what reading, writing and the tools give.
pub fn extract(bzimage: &Path, out: &Path) -> Result<(), Error> {
    let refuse = |reason| Error::NotBzImage { path: bzimage.to_owned(), reason };
    let image = fs::read(bzimage).map_err(Error::file("read", bzimage))?;
    let payload = payload(&image).map_err(refuse)?;
    let vmlinux = match payload.method {
        Method::Stored => payload.data.to_vec(),
        Method::Tool(tool) => tools::filter(tools::tool(tool)?.arg("-dc"), payload.data)?,
    };
    let announced = usize::try_from(payload.unpacked_bytes).is_ok_and(|bytes| bytes == vmlinux.len());
    if !vmlinux.starts_with(b"\x7fELF") || !announced {
        return Err(refuse(Refusal::NotElf));
    }
    publish(out, &vmlinux)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bzimage::tests::bzimage;

    #[test]
    fn stored_kernel_is_extracted() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("bz"), dir.path().join("vmlinux"));
        fs::write(&from, bzimage(b"\x7fELFkernel\x0a\0\0\0")).unwrap();
        extract(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"\x7fELFkernel");
    }

    #[test]
    fn wrong_size_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("bz");
        fs::write(&from, bzimage(b"\x7fELFkernel\x0b\0\0\0")).unwrap();
        let error = extract(&from, &dir.path().join("vmlinux")).unwrap_err();
        assert!(matches!(error, Error::NotBzImage { reason: Refusal::NotElf, .. }));
    }
}
