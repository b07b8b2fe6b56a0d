//! The grammar of `--smbios`: `KEY=TEXT`, one string of the machine's SMBIOS tables. The text is all that follows: it
//! may have commas.

use boot::SystemInfo;
use serde::{Deserialize, Deserializer, de};
use std::str::FromStr;

/// The keys.
const KEYS: &str = "vendor, product, version, serial, uuid, sku, family and oem";

/// Hexadecimal digits in the groups of a UUID.
const UUID_GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

/// One string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SmbiosSpec {
    /// The machine's vendor.
    Vendor(String),
    /// Its product name.
    Product(String),
    /// Its version.
    Version(String),
    /// Its serial number.
    Serial(String),
    /// Its UUID.
    Uuid([u8; 16]),
    /// Its stock-keeping unit.
    Sku(String),
    /// Its family.
    Family(String),
    /// One more OEM string.
    Oem(String),
}

/// Text that is no such string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSmbios {
    /// No key, or another one.
    #[error("{0:?} is not KEY=TEXT with one of the keys {KEYS}")]
    Key(String),
    /// A key without text.
    #[error("{0}= needs a text")]
    Empty(String),
    /// A UUID in another form.
    #[error("{0:?} is not a UUID, such as 01234567-89ab-cdef-0123-456789abcdef")]
    Uuid(String),
}

impl SmbiosSpec {
    /// Puts it into `info`. Of a string given twice the later one counts; OEM strings add up.
    pub(crate) fn apply(&self, info: &mut SystemInfo) {
        match self.clone() {
            Self::Vendor(text) => info.vendor = text,
            Self::Product(text) => info.product = text,
            Self::Version(text) => info.version = text,
            Self::Serial(text) => info.serial = text,
            Self::Uuid(uuid) => info.uuid = uuid,
            Self::Sku(text) => info.sku = text,
            Self::Family(text) => info.family = text,
            Self::Oem(text) => info.oem.push(text),
        }
    }
}

impl FromStr for SmbiosSpec {
    type Err = BadSmbios;

    fn from_str(text: &str) -> Result<Self, BadSmbios> {
        let bad_key = || BadSmbios::Key(text.to_owned());
        let (key, value) = text.split_once('=').ok_or_else(bad_key)?;
        let spec = match key {
            "vendor" => Self::Vendor(value.to_owned()),
            "product" => Self::Product(value.to_owned()),
            "version" => Self::Version(value.to_owned()),
            "serial" => Self::Serial(value.to_owned()),
            "uuid" => Self::Uuid(uuid(value).ok_or_else(|| BadSmbios::Uuid(value.to_owned()))?),
            "sku" => Self::Sku(value.to_owned()),
            "family" => Self::Family(value.to_owned()),
            "oem" => Self::Oem(value.to_owned()),
            _ => return Err(bad_key()),
        };
        if value.is_empty() { Err(BadSmbios::Empty(key.to_owned())) } else { Ok(spec) }
    }
}

impl<'de> Deserialize<'de> for SmbiosSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    let groups: Vec<&str> = text.split('-').collect();
    let digits = groups.concat();
    if groups.iter().map(|group| group.len()).ne(UUID_GROUPS) || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    Some(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_all_that_follows_the_key() {
        let mut info = SystemInfo::default();
        for text in ["serial=ds=nocloud;s=http://10.0.0.1/", "oem=io.systemd.credential:a=1,2", "oem=b", "serial=x"] {
            text.parse::<SmbiosSpec>().unwrap().apply(&mut info);
        }
        assert_eq!(info.serial, "x");
        assert_eq!(info.oem, ["io.systemd.credential:a=1,2", "b"]);
    }

    #[test]
    fn uuid_is_read_in_the_order_in_which_it_is_written() {
        let spec: SmbiosSpec = "uuid=01234567-89AB-cdef-0123-456789abcdef".parse().unwrap();
        assert_eq!(spec, SmbiosSpec::Uuid(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef_u128.to_be_bytes()));
    }

    #[test]
    fn wrong_keys_and_values_are_refused() {
        for (text, part) in [
            ("", "KEY=TEXT"),
            ("serial", "KEY=TEXT"),
            ("colour=red", "vendor, product"),
            ("serial=", "needs a text"),
            ("uuid=1", "not a UUID"),
            ("uuid=01234567-89ab-cdef-0123-456789abcdeg", "not a UUID"),
            ("uuid=0123456-789ab-cdef-0123-456789abcdef", "not a UUID"),
        ] {
            let message = text.parse::<SmbiosSpec>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
