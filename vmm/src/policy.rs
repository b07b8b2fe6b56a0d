//! The file of a policy: TOML, or JSON with the same keys.

use net::Policy;
use net::policy::POLICY_BYTES_MAX;
use std::fs::File;
use std::io::{self, Read};
use std::str::FromStr;

/// A policy that was read from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PolicyFile(pub(crate) Policy);

/// Why a file gives no policy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadPolicy {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// More than a keeper takes.
    #[error("{path}: it has more than {} KiB", POLICY_BYTES_MAX >> 10)]
    TooLong {
        /// Which.
        path: String,
    },
    /// It is no policy.
    #[error("{path}: line {line}: {message}")]
    Value {
        /// Which.
        path: String,
        /// Where, from 1.
        line: usize,
        /// Why.
        message: String,
    },
}

impl FromStr for PolicyFile {
    type Err = BadPolicy;

    /// Reads the file at this path.
    fn from_str(path: &str) -> Result<Self, BadPolicy> {
        let most = u64::try_from(POLICY_BYTES_MAX).unwrap_or(u64::MAX);
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(most + 1).read_to_string(&mut text));
        read.map_err(|source| BadPolicy::Read { path: path.to_owned(), source })?;
        if text.len() > POLICY_BYTES_MAX {
            return Err(BadPolicy::TooLong { path: path.to_owned() });
        }
        let bad = |(line, message)| BadPolicy::Value { path: path.to_owned(), line, message };
        policy(&text).map(Self).map_err(bad)
    }
}

/// The policy that a text says; or the line, from 1, where it does not say one, and why.
fn policy(text: &str) -> Result<Policy, (usize, String)> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|err| {
            let message = err.to_string();
            let place = format!(" at line {} column {}", err.line(), err.column());
            (err.line().max(1), message.strip_suffix(&place).unwrap_or(&message).to_owned())
        });
    }
    toml::from_str(text).map_err(|err: toml::de::Error| {
        let start = err.span().map_or(0, |span| span.start);
        (text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1, err.message().replace('\n', " "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = "
            [default]
            egress = \"drop\"

            [[ingress]]
            protocol = \"tcp\"
            ports = [22, \"80-89\"]
            source = \"192.0.2.0/24\"
        ";
        let json = r#" {"default": {"egress": "drop"},
            "ingress": [{"protocol": "tcp", "ports": [22, "80-89"], "source": ["192.0.2.0/24"]}]}"#;
        assert_eq!(policy(toml).unwrap(), policy(json).unwrap());
    }

    #[test]
    fn empty_file_is_the_default() {
        assert_eq!(policy("").unwrap(), Policy::default());
        assert_eq!("/dev/null".parse::<PolicyFile>().unwrap().0, Policy::default());
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, line, part) in [
            ("[[ingress]]\nprotocol = \"tcp\"\nport = 22", 3, "unknown field `port`"),
            ("[[ingress]]\n\nsource = [\"192.0.2.1/24\"]", 3, "write 192.0.2.0/24"),
            ("[[ingress]]\nports = 0", 2, "is not a port"),
            ("[[ingress]]\nports = 80", 1, "Rule 1 of ingress has ports"),
            ("egres = []", 1, "unknown field `egres`"),
            ("[default]\ningress = \"reject\"", 2, "unknown variant `reject`"),
            ("[[ingress]\n", 1, ""),
            ("{\n \"ingress\": [{\n  \"ports\": 0}]}", 3, "is not a port"),
            ("{\n \"ingress\": [}", 2, "expected value"),
        ] {
            let (at, message) = policy(text).unwrap_err();
            assert!(message.contains(part) && !message.contains(" at line "), "{text}: {message}");
            assert_eq!((at, message.lines().count()), (line, 1), "{text}: {message}");
        }
    }

    #[test]
    fn file_that_cannot_be_read_is_named() {
        for (path, part) in [("/none", "/none: No such file"), ("/dev/zero", "/dev/zero: it has more than 256 KiB")] {
            let error = path.parse::<PolicyFile>().unwrap_err().to_string();
            assert!(error.starts_with(part), "{error}");
        }
    }
}
