//! A card on a network of ours, as far as rules depend on it. Plain data.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::identity::alias::Mode;
use crate::identity::mac::MacAddr;
use crate::services::Ipv6Network;
use crate::spec::{Forward, IfName, LimitSpec, ReachList, Subnet, Switch};

/// A card on a network of ours, as far as rules depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// The card.
    pub card: usize,
    /// [`Mode::Nat`] or [`Mode::Host`].
    pub mode: Mode,
    /// The network's bridge.
    pub bridge: IfName,
    /// The guest's MAC address.
    pub mac: MacAddr,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Its IPv6 address that others know, if it has one. The guest may use others on its network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
    /// The gateway's MAC address.
    pub gateway_mac: MacAddr,
    /// The network's addresses.
    pub subnet: Subnet,
    /// Its IPv6 network, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Network>,
    /// Ports of the host that lead to the guest.
    pub forward: Vec<Forward>,
    /// The places that the guest reaches beyond its network.
    pub reach: ReachList,
    /// On if they include the addresses at which clouds hand out credentials.
    pub metadata: Switch,
    /// On if the guest may use its own MAC and addresses only.
    pub antispoof: Switch,
    /// On if other VMs are out of reach.
    pub isolate: Switch,
    /// On if its port sends frames back to where they came from.
    pub hairpin: Switch,
    /// Limits on the host's resources that the guest may take.
    pub limits: LimitSpec,
}
