//! Security groups: rules on a guest's tap for the connections it may make and receive. They depend on neither host nor
//! keeper.
//!
//! ```toml
//! [default]
//! ingress = "drop"       # connections to the guest that no rule matches
//! egress = "accept"      # connections from the guest that no rule matches
//!
//! [[ingress]]
//! protocol = "tcp"
//! ports = [22, "8000-8010"]
//! source = ["192.0.2.0/24", "2001:db8::/32"]
//! ```
//!
//! In each direction the first matching rule decides. Rules are for packets that open a connection: packets of an
//! accepted connection pass in both directions, and so do ICMP errors that quote it. A policy comes from a TOML file, a
//! JSON file or the socket of a keeper, in the same form.
//!
//! `rules` describes the enforcement.

mod active;
mod client;
mod fields;
pub(crate) mod rules;

use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;

pub(crate) use active::ActivePolicy;
pub use client::{AskError, ask};
pub(crate) use client::{LINE_MAX, NOT_PERMITTED, PolicyReply, PolicyRequest};
pub use fields::{Cidr, CidrList, PortList, PortRange};

/// Most rules of both directions together. Each packet that opens a connection passes through them one by one.
pub const RULES_MAX: usize = 1000;

/// Most bytes of a policy as text, in a file and on the socket: a thousand rules with a few addresses each.
pub const POLICY_BYTES_MAX: usize = 256 * 1024;

/// The connections that a VM may make and receive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, try_from = "RawPolicy")]
pub struct Policy {
    /// The actions for packets that no rule matches.
    #[serde(rename = "default")]
    pub defaults: Defaults,
    /// Rules for connections to the guest.
    pub ingress: Vec<PolicyRule>,
    /// Rules for connections from the guest.
    pub egress: Vec<PolicyRule>,
}

/// The actions for packets that no rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    /// To the guest: dropped by default.
    pub ingress: Action,
    /// From the guest: accepted by default.
    pub egress: Action,
}

/// The fate of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It passes, and so do all packets of the same connection.
    #[default]
    Accept,
    /// It is dropped without an answer.
    Drop,
}

/// The protocol that a rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, and ICMPv6 on IPv6.
    Icmp,
    /// All protocols above IP.
    #[default]
    Any,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyRule {
    /// The protocol.
    pub protocol: PolicyProtocol,
    /// Destination ports; all if empty.
    #[serde(skip_serializing_if = "PortList::is_empty")]
    pub ports: PortList,
    /// Source addresses; all if empty.
    #[serde(skip_serializing_if = "CidrList::is_empty")]
    pub source: CidrList,
    /// Destination addresses; all if empty.
    #[serde(skip_serializing_if = "CidrList::is_empty")]
    pub destination: CidrList,
    /// The action for matching packets.
    pub action: Action,
    /// The cards it applies to, counted from 0 in the order of `--net`; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cards: Option<Vec<usize>>,
}

/// An invalid policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Ports with a protocol that has none.
    #[error(
        "Rule {number} of {direction} has ports, which are those of tcp or udp: give protocol = \"tcp\" or \
         \"udp\" with them"
    )]
    PortsWithoutProtocol {
        /// The list of rules.
        direction: &'static str,
        /// The rule in it, counted from 1.
        number: usize,
    },
    /// Addresses that no packet has together.
    #[error(
        "Rule {number} of {direction} has IPv4 on one side and IPv6 on the other, and no packet has both: \
         give addresses of the same family"
    )]
    TwoFamilies {
        /// The list of rules.
        direction: &'static str,
        /// The rule in it, counted from 1.
        number: usize,
    },
    /// More than [`RULES_MAX`].
    #[error("It has {0} rules, and a policy has at most 1000: join some by giving lists of ports and addresses")]
    TooMany(usize),
}

/// A policy before its rules are checked.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
struct RawPolicy {
    #[serde(rename = "default")]
    defaults: Defaults,
    ingress: Vec<PolicyRule>,
    egress: Vec<PolicyRule>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { ingress: Action::Drop, egress: Action::Accept }
    }
}

impl TryFrom<RawPolicy> for Policy {
    type Error = PolicyError;

    fn try_from(raw: RawPolicy) -> Result<Self, PolicyError> {
        let RawPolicy { defaults, ingress, egress } = raw;
        let count = ingress.len().saturating_add(egress.len());
        if count > RULES_MAX {
            return Err(PolicyError::TooMany(count));
        }
        for (direction, rules) in [("ingress", &ingress), ("egress", &egress)] {
            for (idx, rule) in rules.iter().enumerate() {
                rule.check(direction, idx + 1)?;
            }
        }
        Ok(Self { defaults, ingress, egress })
    }
}

impl Policy {
    /// Refuses rules for cards that a VM with `count` cards does not have.
    pub(crate) fn check_cards(&self, count: usize) -> Result<(), Refusal> {
        let named = self.ingress.iter().chain(&self.egress).filter_map(|rule| rule.cards.as_ref()).flatten();
        match named.copied().find(|card| *card >= count) {
            Some(card) => Err(Refusal::PolicyCard { card, count }),
            None => Ok(()),
        }
    }
}

impl PolicyRule {
    fn check(&self, direction: &'static str, number: usize) -> Result<(), PolicyError> {
        if !self.ports.is_empty() && !matches!(self.protocol, PolicyProtocol::Tcp | PolicyProtocol::Udp) {
            return Err(PolicyError::PortsWithoutProtocol { direction, number });
        }
        let possible =
            [self.source.has_ip4() && self.destination.has_ip4(), self.source.has_ip6() && self.destination.has_ip6()];
        if possible.contains(&true) { Ok(()) } else { Err(PolicyError::TwoFamilies { direction, number }) }
    }

    /// True if it applies to this card.
    fn is_for(&self, card: usize) -> bool {
        self.cards.as_ref().is_none_or(|cards| cards.contains(&card))
    }
}

#[cfg(test)]
mod tests;
