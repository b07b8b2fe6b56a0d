//! An amount of memory on the command line: `512M`, `2G`.

use std::fmt;
use std::str::FromStr;

/// Bytes of a mebibyte.
pub(crate) const MIB: u64 = 1 << 20;
/// Bytes of a gibibyte.
const GIB: u64 = 1 << 30;
/// No stock kernel with an initramfs starts in less.
const MIN_BYTES: u64 = 64 * MIB;
/// Memory comes in pages.
const PAGE_BYTES: u64 = 4096;

/// An amount of guest memory: at least 64 MiB, whole pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemSize(u64);

/// Text that is no amount of memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSize {
    /// Not a number with a unit.
    #[error("Memory is a number with a unit, such as 512M or 2G")]
    Syntax,
    /// Too little.
    #[error("A guest needs at least 64 MiB of memory")]
    TooSmall,
    /// More than 64 bits.
    #[error("No machine has that much memory")]
    TooLarge,
    /// Not whole pages.
    #[error("Memory is a multiple of 4K")]
    Uneven,
}

impl MemSize {
    /// The amount in bytes.
    pub(crate) fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for MemSize {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match &text[digits.len()..].to_ascii_uppercase()[..] {
            "K" | "KIB" => 10,
            "M" | "MIB" => 20,
            "G" | "GIB" => 30,
            "T" | "TIB" => 40,
            _ => return Err(BadSize::Syntax),
        };
        if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
            return Err(BadSize::Syntax);
        }
        // Only digits are left, so the one possible error is too many of them.
        let number: u64 = digits.parse().map_err(|_| BadSize::TooLarge)?;
        let bytes = number.checked_mul(1 << shift).ok_or(BadSize::TooLarge)?;
        if bytes < MIN_BYTES {
            return Err(BadSize::TooSmall);
        }
        if !bytes.is_multiple_of(PAGE_BYTES) {
            return Err(BadSize::Uneven);
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MemSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = [(GIB, "GiB"), (MIB, "MiB"), (1 << 10, "KiB")]
            .into_iter()
            .find(|(unit, _)| self.0.is_multiple_of(*unit))
            .map_or((self.0, "bytes"), |(unit, name)| (self.0 / unit, name));
        write!(f, "{number} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in
            [("64M", 64 * MIB), ("2g", 2 * GIB), ("1T", 1 << 40), ("65536K", 64 * MIB), ("3GiB", 3 * GIB)]
        {
            assert_eq!(text.parse(), Ok(MemSize(bytes)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", BadSize::Syntax),
            ("512", BadSize::Syntax),
            ("M", BadSize::Syntax),
            ("-1G", BadSize::Syntax),
            ("1.5G", BadSize::Syntax),
            ("1X", BadSize::Syntax),
            ("63M", BadSize::TooSmall),
            ("0G", BadSize::TooSmall),
            ("65537K", BadSize::Uneven),
            ("99999999999999T", BadSize::TooLarge),
            ("99999999999999999999999T", BadSize::TooLarge),
        ] {
            assert_eq!(text.parse::<MemSize>(), Err(reason), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_whole_unit() {
        assert_eq!(MemSize(3 * GIB).to_string(), "3 GiB");
        assert_eq!(MemSize(1536 * MIB).to_string(), "1536 MiB");
    }
}
