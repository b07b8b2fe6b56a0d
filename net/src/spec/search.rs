//! `search=`: the domains in which a guest looks up short names, beside that of the VMs.
//!
//! ```text
//! search=host                unless given: those of the host's resolv.conf, as they are at each answer
//! search=corp.example+lab    these
//! search=off                 none
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::fields::{FieldError, deserialize_as_flag_text};

/// Most domains of a list: the number that every C library accepts (resolv.conf(5)).
pub const DOMAINS_MAX: usize = 6;

/// Most characters of a list, with one between two domains, for the same reason.
pub const SEARCH_MAX_CHARS: usize = 256;

/// The longest name and label as text, without the length bytes on the wire (RFC 1035 2.3.4).
const NAME_MAX_CHARS: usize = 253;
const LABEL_MAX_CHARS: usize = 63;

/// A domain name: labels of letters, digits, hyphens and underscores, without a trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(String);

impl DomainName {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DomainName {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_label = |label: &str| {
            let fits = (1..=LABEL_MAX_CHARS).contains(&label.len());
            fits && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        let is_name = name.len() <= NAME_MAX_CHARS && name.split('.').all(is_label);
        if is_name { Ok(Self(name.to_owned())) } else { Err(FieldError::Search(text.to_owned())) }
    }
}

impl TryFrom<String> for DomainName {
    type Error = FieldError;

    fn try_from(text: String) -> Result<Self, FieldError> {
        text.parse()
    }
}

impl From<DomainName> for String {
    fn from(name: DomainName) -> Self {
        name.0
    }
}

/// The first domains that fit a list, without duplicates.
pub(crate) fn bounded(names: impl IntoIterator<Item = DomainName>) -> Vec<DomainName> {
    let (mut list, mut chars) = (Vec::<DomainName>::new(), 0);
    for name in names {
        if list.iter().any(|known| known.0.eq_ignore_ascii_case(&name.0)) {
            continue;
        }
        chars += name.0.len() + usize::from(chars > 0);
        if list.len() == DOMAINS_MAX || chars > SEARCH_MAX_CHARS {
            break;
        }
        list.push(name);
    }
    list
}

/// The domains of a card.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SearchSpec {
    /// The domains of the host.
    #[default]
    Host,
    /// These domains; none if empty.
    Only(Vec<DomainName>),
}

impl SearchSpec {
    /// Returns true for the default.
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::Host
    }
}

impl FromStr for SearchSpec {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        match text {
            "host" => Ok(Self::Host),
            "off" => Ok(Self::Only(Vec::new())),
            _ => {
                let names = text.split('+').map(str::parse).collect::<Result<Vec<DomainName>, _>>()?;
                let list = bounded(names.clone());
                if list == names { Ok(Self::Only(list)) } else { Err(FieldError::Search(text.to_owned())) }
            }
        }
    }
}

impl fmt::Display for SearchSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Only(names) if names.is_empty() => f.write_str("off"),
            Self::Only(names) => f.write_str(&names.iter().map(DomainName::as_str).collect::<Vec<_>>().join("+")),
        }
    }
}

impl Serialize for SearchSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

deserialize_as_flag_text!(SearchSpec);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_reads_back_and_a_dot_at_the_end_goes() {
        for (text, written) in
            [("host", "host"), ("off", "off"), ("corp.example.+lab", "corp.example+lab"), ("_x.a-b", "_x.a-b")]
        {
            assert_eq!(text.parse::<SearchSpec>().unwrap().to_string(), written);
        }
    }

    #[test]
    fn what_is_no_name_or_too_much_is_refused() {
        let long = vec!["a".repeat(60); 5].join(".");
        for text in [
            "",
            ".",
            "a..b",
            "a b",
            "a+",
            "münchen",
            "a\u{0}",
            "a+A",
            "a+b+c+d+e+f+g",
            &"a".repeat(64),
            &long,
            &[&long[..200], "b.c"].join("+").repeat(2),
        ] {
            assert!(text.parse::<SearchSpec>().is_err(), "{text}");
        }
    }
}
