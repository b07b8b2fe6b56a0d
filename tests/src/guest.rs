//! The default guest of `images`: its files, and its kernel parameters.

use images::kernel::Series;
use images::place;
use std::path::{Path, PathBuf};

/// How the guest's ready line starts; JSON follows.
pub const READY: &str = "minivmm-ready ";
/// How the line after the end of its script starts; the exit code follows.
pub const SCRIPT_EXIT: &str = "minivmm-exit ";

/// The Debian kernel series that there are guests for, the default one first.
pub const SERIES: [Series; 2] = [Series::V6_12, Series::V6_1];

/// The files of one guest.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The kernel as the distribution ships it.
    pub bzimage: PathBuf,
    /// The same kernel, unpacked: an ELF with a PVH note.
    pub vmlinux: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
}

impl Guest {
    /// The guest of a kernel series in `folder`.
    pub fn at(folder: &Path, series: Series) -> Self {
        let files = place::guest_dir(folder, series);
        Self {
            bzimage: files.join("vmlinuz"),
            vmlinux: folder.join(format!("vmlinux-{}", series.name())),
            initramfs: files.join("initramfs"),
        }
    }
}

/// The kernel parameter that has the guest run `script`.
pub fn script_parameter(script: &str) -> String {
    format!("minivmm.run={}", base64(script.as_bytes()))
}

/// RFC 4648 section 4, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        for position in 0..4 {
            let index = (word >> (18 - 6 * position)) & 0x3f;
            // Six bits always index an alphabet of 64.
            let letter = ALPHABET.get(index as usize).copied().unwrap_or(b'=');
            text.push(if position <= group.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_gives_the_vectors_of_the_rfc() {
        let vectors =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")];
        for (plain, coded) in vectors {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
