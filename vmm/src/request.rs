//! Requests to a running VM over the socket that holds its name, and the replies.
//!
//! A caller connects, sends one request and gets one reply; both are a line of JSON.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Longest request in bytes, with its end of line.
pub(crate) const LONGEST: usize = 4096;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// The counters of every device.
    Counters,
    /// The known properties of every card.
    Network,
    /// Takes the cable of a card out, or puts it back.
    Link {
        /// Which.
        card: CardName,
        /// The state asked for.
        state: WantedLink,
    },
}

/// The state of a link that the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WantedLink {
    /// As the host has it.
    Up,
    /// No frames pass.
    Down,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    /// It is done.
    Done,
    /// The counters asked for.
    Counters(serde_json::Value),
    /// The cards, as in the ready line.
    Network(serde_json::Value),
    /// It cannot be done: a sentence.
    Refused(String),
}

/// The place of a card among the `--net` flags, written `net0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct CardName(pub(crate) usize);

/// Text that is not the name of a card.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Cards are called net0, net1 and so on, in the order of the --net flags")]
pub(crate) struct BadCardName;

impl FromStr for CardName {
    type Err = BadCardName;

    fn from_str(text: &str) -> Result<Self, BadCardName> {
        let digits = text.strip_prefix("net").filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        digits.and_then(|digits| digits.parse().ok()).map(Self).ok_or(BadCardName)
    }
}

impl TryFrom<String> for CardName {
    type Error = BadCardName;

    fn try_from(text: String) -> Result<Self, BadCardName> {
        text.parse()
    }
}

impl From<CardName> for String {
    fn from(name: CardName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for CardName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        for (request, text) in [
            (Request::Counters, r#""counters""#),
            (Request::Network, r#""network""#),
            (
                Request::Link { card: CardName(1), state: WantedLink::Down },
                r#"{"link":{"card":"net1","state":"down"}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        }
    }

    #[test]
    fn cards_have_the_names_of_the_log() {
        assert_eq!("net12".parse(), Ok(CardName(12)));
        for bad in ["", "net", "eth0", "net-1", "net+1", "net1x", "net99999999999999999999"] {
            assert_eq!(bad.parse::<CardName>(), Err(BadCardName), "{bad}");
        }
    }
}
