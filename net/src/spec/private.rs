//! `nat` and `host`: networks of our own, which are made with their first card and removed with their last.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::card::CardSpec;
use super::fields::{IfName, Switch};
use super::forward::{Forward, ForwardList};
use super::guard::GuardSpec;
use super::limits::LimitSpec;
use super::network::{NetworkName, Subnet};
use super::reach::{Place, ReachList, ReachSpec};
use super::search::SearchSpec;
use crate::identity::alias::Mode;

/// Prefixes of the names of our networks' bridges: with a way out, and without one.
pub const NETWORK_PREFIXES: [&str; 2] = ["mvn-", "mvh-"];

/// `nat`: a new tap on a bridge of ours, whose guests reach the world through the host's addresses (NAT).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatSpec {
    /// The network: VMs that name the same one reach each other.
    pub nat: NetworkName,
    /// Its subnet; a free private one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Subnet>,
    /// On if it has IPv6 as well.
    #[serde(default)]
    pub ipv6: Switch,
    /// Ports of the host that lead to the guest.
    #[serde(default)]
    pub forward: ForwardList,
    /// The domains in which the guest looks up short names.
    #[serde(default, skip_serializing_if = "SearchSpec::is_default")]
    pub search: SearchSpec,
    /// The destinations that the guest may reach.
    #[serde(flatten)]
    pub reach: ReachSpec,
    /// Restrictions on the guest.
    #[serde(flatten)]
    pub guard: GuardSpec,
    /// Limits of the guest in the host's connection tracking.
    #[serde(flatten)]
    pub limits: LimitSpec,
    /// The card.
    #[serde(flatten)]
    pub card: CardSpec,
}

/// `host`: a new tap on a bridge of ours, whose guests reach each other and the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSpec {
    /// The network: VMs that name the same one reach each other.
    pub host: NetworkName,
    /// Its subnet; a free private one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Subnet>,
    /// On if it has IPv6 as well.
    #[serde(default)]
    pub ipv6: Switch,
    /// `host` or `none`; the host is in reach if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<ReachList>,
    /// Restrictions on the guest.
    #[serde(flatten)]
    pub guard: GuardSpec,
    /// Limits of the guest in the host's connection tracking.
    #[serde(flatten)]
    pub limits: LimitSpec,
    /// The card.
    #[serde(flatten)]
    pub card: CardSpec,
}

/// The network of our own that a card asks for.
#[derive(Clone, Copy, Debug)]
pub struct Private<'a> {
    /// [`Mode::Nat`] or [`Mode::Host`].
    pub mode: Mode,
    /// Its name.
    pub name: &'a NetworkName,
    /// Its subnet, if the user gives one.
    pub subnet: Option<Subnet>,
    /// On if it has IPv6 as well.
    pub ipv6: Switch,
    /// Ports of the host that lead to the guest.
    pub forward: &'a [Forward],
    /// The domains in which the guest looks up short names.
    pub search: &'a SearchSpec,
    /// Places beyond the network that the guest may reach.
    pub reach: ReachList,
    /// On if they include the addresses where a cloud serves credentials.
    pub metadata: Switch,
    /// Restrictions on the guest.
    pub guard: GuardSpec,
    /// Limits of the guest in the host's connection tracking.
    pub limits: LimitSpec,
    /// The card.
    pub card: &'a CardSpec,
}

impl Private<'_> {
    /// The network's bridge: `mvn-NAME` or `mvh-NAME`.
    pub fn bridge(&self) -> IfName {
        let [nat, host] = NETWORK_PREFIXES;
        IfName::of_network(if self.mode == Mode::Nat { nat } else { host }, self.name.as_str())
    }
}

impl NatSpec {
    /// The network it asks for, in the form common to both modes.
    pub(crate) fn private(&self) -> Private<'_> {
        let (mode, forward, search) = (Mode::Nat, self.forward.as_slice(), &self.search);
        let Self { subnet, ipv6, guard, limits, reach: ReachSpec { metadata, .. }, .. } = *self;
        let reach = self.reach.places();
        Private {
            mode,
            name: &self.nat,
            subnet,
            ipv6,
            forward,
            search,
            reach,
            metadata,
            guard,
            limits,
            card: &self.card,
        }
    }
}

impl HostSpec {
    /// The network it asks for, in the form common to both modes.
    pub(crate) fn private(&self) -> Private<'_> {
        let Self { subnet, ipv6, guard, limits, .. } = *self;
        let reach = self.reach.unwrap_or(ReachList::of(&[Place::Host]));
        // Nothing is forwarded, and a metadata address of the host itself counts as the host.
        let (mode, forward, metadata) = (Mode::Host, &[][..], Switch::On);
        // Names outside the network do not resolve.
        let search = const { &SearchSpec::Only(Vec::new()) };
        Private {
            mode,
            name: &self.host,
            subnet,
            ipv6,
            forward,
            search,
            reach,
            metadata,
            guard,
            limits,
            card: &self.card,
        }
    }
}

impl fmt::Display for NatSpec {
    /// The flag without the card's own keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_network(f, "nat", &self.nat, self.subnet, self.ipv6)?;
        if !self.forward.is_empty() {
            write!(f, ",forward={}", self.forward)?;
        }
        if !self.search.is_default() {
            write!(f, ",search={}", self.search)?;
        }
        write!(f, "{}{}{}", self.reach, self.guard, self.limits)
    }
}

impl fmt::Display for HostSpec {
    /// The flag without the card's own keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_network(f, "host", &self.host, self.subnet, self.ipv6)?;
        if let Some(reach) = self.reach {
            write!(f, ",reach={reach}")?;
        }
        write!(f, "{}{}", self.guard, self.limits)
    }
}

fn write_network(
    f: &mut fmt::Formatter<'_>,
    mode: &str,
    name: &NetworkName,
    subnet: Option<Subnet>,
    ipv6: Switch,
) -> fmt::Result {
    f.write_str(mode)?;
    if !name.is_default() {
        write!(f, "={name}")?;
    }
    if let Some(subnet) = subnet {
        write!(f, ",subnet={subnet}")?;
    }
    if ipv6 == Switch::On { f.write_str(",ipv6=on") } else { Ok(()) }
}
