//! The grammar of `--disk`: `path=FILE[,readonly=on|off][,serial=TEXT]`.
//!
//! One serde struct whose fields are the keys, as in `net::spec`, so that a configuration file gives the same value.

use devices::virtio::blk::DiskSerial;
use devices::virtio::blk::disk::Access;
use net::spec::Switch;
use serde::Deserialize;
use serde::de::value::{Error as SerdeError, MapDeserializer};
use serde::de::{self, Deserializer};
use std::path::PathBuf;
use std::str::FromStr;

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskSpec {
    /// A raw image or block device.
    pub(crate) path: PathBuf,
    /// Whether the guest may only read.
    #[serde(default)]
    readonly: Switch,
    /// What the guest sees as the disk's serial number.
    #[serde(default, deserialize_with = "read_serial")]
    pub(crate) serial: DiskSerial,
}

/// Text that is no disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadDisk {
    /// A part without `=`.
    #[error("{0:?} is not KEY=VALUE: a disk is path=FILE[,readonly=on][,serial=TEXT]")]
    NoValue(String),
    /// An empty path.
    #[error("path= needs a file name")]
    NoPath,
    /// A wrong key or value.
    #[error("{0}")]
    Value(String),
}

impl DiskSpec {
    /// How the guest may use it.
    pub(crate) fn access(&self) -> Access {
        match self.readonly {
            Switch::On => Access::ReadOnly,
            Switch::Off => Access::ReadWrite,
        }
    }
}

fn read_serial<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DiskSerial, D::Error> {
    let text = String::deserialize(deserializer)?;
    DiskSerial::try_from(&*text).map_err(de::Error::custom)
}

impl FromStr for DiskSpec {
    type Err = BadDisk;

    fn from_str(text: &str) -> Result<Self, BadDisk> {
        let pairs = text
            .split(',')
            .map(|part| part.split_once('=').ok_or_else(|| BadDisk::NoValue(part.to_owned())))
            .collect::<Result<Vec<_>, _>>()?;
        let spec = Self::deserialize(MapDeserializer::new(pairs.into_iter()))
            .map_err(|err: SerdeError| BadDisk::Value(err.to_string()))?;
        if spec.path.as_os_str().is_empty() {
            return Err(BadDisk::NoPath);
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_alone_is_a_writable_disk() {
        let spec: DiskSpec = "path=a.img".parse().unwrap();
        assert_eq!((spec.access(), spec.serial), (Access::ReadWrite, DiskSerial::default()));
    }

    #[test]
    fn all_keys_are_read() {
        let spec: DiskSpec = "path=/x/y,readonly=on,serial=abc-1".parse().unwrap();
        assert_eq!(spec.path, PathBuf::from("/x/y"));
        assert_eq!((spec.access(), spec.serial), (Access::ReadOnly, DiskSerial::try_from("abc-1").unwrap()));
    }

    #[test]
    fn wrong_keys_and_values_are_refused() {
        for (text, part) in [
            ("", "KEY=VALUE"),
            ("a.img", "KEY=VALUE"),
            ("path=", "file name"),
            ("readonly=on", "path"),
            ("path=a,path=b", "duplicate"),
            ("path=a,ro=on", "unknown"),
            ("path=a,readonly=yes", "on"),
            ("path=a,serial=123456789012345678901", "20"),
            ("path=a,serial=ä", "printable"),
        ] {
            let message = text.parse::<DiskSpec>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
