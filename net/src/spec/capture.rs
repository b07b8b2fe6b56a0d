//! The capture of a card's frames in a file: `capture=`, `snaplen=`, `capture-size=`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::fields::{FieldError, deserialize_as_flag_text, scaled, whole_number};

/// Longest frame: 64 KiB of IP behind an Ethernet header with a tag.
const SNAP_MAX: u32 = 65_553;
/// The size limit of a file in bytes: its default, minimum and maximum.
const SIZE_DEFAULT: u64 = 1 << 30;
const SIZE_MIN: u64 = 64 << 10;
const SIZE_MAX: u64 = 1 << 40;

/// A capture; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CaptureSpec {
    /// The pcapng file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<PathBuf>,
    /// Bytes kept of each frame; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snaplen: Option<Snaplen>,
    /// The size in bytes at which the file begins anew; 1 GiB if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture_size: Option<CaptureSize>,
}

impl CaptureSpec {
    /// A given key that has no effect without `capture=`.
    pub(super) fn idle_key(&self) -> Option<&'static str> {
        match self {
            Self { capture: None, snaplen: Some(_), .. } => Some("snaplen"),
            Self { capture: None, capture_size: Some(_), .. } => Some("capture-size"),
            _ => None,
        }
    }

    /// Bytes kept of each frame.
    pub fn snap_bytes(&self) -> u32 {
        self.snaplen.map_or(SNAP_MAX, |snaplen| snaplen.0)
    }

    /// The size in bytes at which the file begins anew.
    pub fn size_bytes(&self) -> u64 {
        self.capture_size.map_or(SIZE_DEFAULT, |size| size.0)
    }
}

impl fmt::Display for CaptureSpec {
    /// The end of a flag that gives this spec, with a comma before each key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.capture {
            write!(f, ",capture={}", path.display())?;
        }
        if let Some(snaplen) = self.snaplen {
            write!(f, ",snaplen={snaplen}")?;
        }
        if let Some(size) = self.capture_size {
            write!(f, ",capture-size={size}")?;
        }
        Ok(())
    }
}

/// A snap length in bytes, from an Ethernet header to the longest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snaplen(u32);

impl FromStr for Snaplen {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        match whole_number(text).and_then(|bytes| u32::try_from(bytes).ok()) {
            Some(bytes @ 14..=SNAP_MAX) => Ok(Self(bytes)),
            _ => Err(FieldError::Snaplen(text.to_owned())),
        }
    }
}

impl fmt::Display for Snaplen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The size limit of a file in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureSize(u64);

impl FromStr for CaptureSize {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let bytes = scaled(text, &[("", 1), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30)]);
        match bytes {
            Some(bytes @ SIZE_MIN..=SIZE_MAX) => Ok(Self(bytes)),
            _ => Err(FieldError::CaptureSize(text.to_owned())),
        }
    }
}

impl fmt::Display for CaptureSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Serialize for Snaplen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for CaptureSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

deserialize_as_flag_text!(Snaplen, CaptureSize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_range() {
        assert_eq!(("64K".parse(), "1G".parse()), (Ok(CaptureSize(65_536)), Ok(CaptureSize(1 << 30))));
        for text in ["", "K", "63K", "2000G", "1T", "-1M", "1.5M"] {
            assert!(text.parse::<CaptureSize>().is_err(), "{text}");
        }
        assert_eq!(("14".parse(), "65553".parse()), (Ok(Snaplen(14)), Ok(Snaplen(SNAP_MAX))));
        for text in ["", "13", "65554", "+20", "1K"] {
            assert!(text.parse::<Snaplen>().is_err(), "{text}");
        }
    }
}
