//! The grammar of `--disk`: `path=FILE[,readonly=on|off][,serial=TEXT][,queues=N][,block-size=BYTES][,format=raw]`.
//!
//! One serde struct whose fields are the keys, as in `net::spec`, so that a configuration file gives the same value.

use devices::virtio::blk::disk::{Access, BlockSize};
use devices::virtio::blk::{DiskSerial, QueueCount};
use net::spec::Switch;
use serde::Deserialize;
use serde::de::value::{Error as SerdeError, MapDeserializer};
use serde::de::{self, Deserializer};
use std::path::PathBuf;
use std::str::FromStr;

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct DiskSpec {
    /// A raw image or block device.
    pub(crate) path: PathBuf,
    /// On for a disk that the guest may only read.
    #[serde(default)]
    readonly: Switch,
    /// The disk's serial number in the guest.
    #[serde(default, deserialize_with = "read_serial")]
    pub(crate) serial: DiskSerial,
    /// How many queues it has; without it as many as vCPUs, up to 4.
    #[serde(default, deserialize_with = "read_queues")]
    pub(crate) queues: Option<QueueCount>,
    /// Bytes of a logical block; without it those of the block device, or 512.
    #[serde(default, deserialize_with = "read_block_size")]
    pub(crate) block_size: Option<BlockSize>,
    /// The format of the file, if it is not to be looked at.
    #[serde(default, deserialize_with = "read_format")]
    pub(crate) format: Option<Format>,
}

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Format {
    /// The disk's sectors, whatever they look like.
    Raw,
}

/// The keys: the fields of [`DiskSpec`].
const KEYS: &[&str] = &["path", "readonly", "serial", "queues", "block-size", "format"];

/// Text that is no disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadDisk {
    /// A part without `=`.
    #[error("{0:?} is not KEY=VALUE: a disk is path=FILE[,readonly=on][,serial=TEXT][,block-size=BYTES][,format=raw]")]
    NoValue(String),
    /// An empty path.
    #[error("path= needs a file name")]
    NoPath,
    /// A key that a disk does not have.
    #[error("A disk takes no key {0:?}: {advice}", advice = net::spec::advice(.0, KEYS))]
    UnknownKey(String),
    /// A wrong value, or the same key twice.
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

/// A number, as a file has it, or text, as a flag has it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Quantity<N> {
    Number(N),
    Text(String),
}

fn read_block_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BlockSize>, D::Error> {
    let size = match Quantity::<u32>::deserialize(deserializer)? {
        Quantity::Number(bytes) => bytes.try_into(),
        Quantity::Text(text) => text.parse(),
    };
    size.map(Some).map_err(de::Error::custom)
}

fn read_queues<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<QueueCount>, D::Error> {
    let count = match Quantity::<u16>::deserialize(deserializer)? {
        Quantity::Number(count) => count.try_into(),
        Quantity::Text(text) => text.parse(),
    };
    count.map(Some).map_err(de::Error::custom)
}

fn read_format<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Format>, D::Error> {
    Format::deserialize(deserializer).map(Some)
}

impl FromStr for DiskSpec {
    type Err = BadDisk;

    fn from_str(text: &str) -> Result<Self, BadDisk> {
        let pairs = text
            .split(',')
            .map(|part| part.split_once('=').ok_or_else(|| BadDisk::NoValue(part.to_owned())))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some((key, _)) = pairs.iter().find(|(key, _)| !KEYS.contains(key)) {
            return Err(BadDisk::UnknownKey((*key).to_owned()));
        }
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
    fn block_size_and_format_are_read() {
        let spec: DiskSpec = "path=a,block-size=4096,format=raw".parse().unwrap();
        assert_eq!((spec.block_size, spec.format), (Some(4096.try_into().unwrap()), Some(Format::Raw)));
        let spec: DiskSpec = "path=a".parse().unwrap();
        assert_eq!((spec.block_size, spec.format), (None, None));
        let spec: DiskSpec = toml::from_str("path = \"a\"\nblock-size = 4096").unwrap();
        assert_eq!(spec.block_size, Some(4096.try_into().unwrap()));
    }

    #[test]
    fn queues_are_read() {
        let spec: DiskSpec = "path=a,queues=2".parse().unwrap();
        assert_eq!(spec.queues, Some(2.try_into().unwrap()));
        let spec: DiskSpec = toml::from_str("path = \"a\"\nqueues = 16").unwrap();
        assert_eq!(spec.queues, Some(16.try_into().unwrap()));
    }

    #[test]
    fn wrong_keys_and_values_are_refused() {
        for (text, part) in [
            ("", "KEY=VALUE"),
            ("a.img", "KEY=VALUE"),
            ("path=", "file name"),
            ("readonly=on", "path"),
            ("path=a,path=b", "duplicate"),
            ("path=a,ro=on", "takes no key \"ro\": it takes path, readonly, "),
            ("path=a,quues=2", "takes no key \"quues\": did you mean queues=?"),
            ("path=a,readonly=yes", "on"),
            ("path=a,serial=123456789012345678901", "20"),
            ("path=a,serial=ä", "printable"),
            ("path=a,block-size=8192", "512, 1024, 2048 or 4096"),
            ("path=a,block-size=4k", "512, 1024, 2048 or 4096"),
            ("path=a,queues=0", "1 to 16"),
            ("path=a,queues=17", "1 to 16"),
            ("path=a,format=qcow2", "raw"),
        ] {
            let message = text.parse::<DiskSpec>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
