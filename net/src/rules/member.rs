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
    /// The guest's address on the wire.
    pub mac: MacAddr,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// That of IPv6 by which others know it, if it has one. It may use others on its network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
    /// The gateway's address on the wire.
    pub gateway_mac: MacAddr,
    /// The network's addresses.
    pub subnet: Subnet,
    /// Its IPv6 network, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Network>,
    /// Ports of the host that lead to the guest.
    pub forward: Vec<Forward>,
    /// Where the guest gets beyond its network.
    pub reach: ReachList,
    /// On if that includes the addresses where a cloud tells credentials.
    pub metadata: Switch,
    /// Whether the guest can only be itself.
    pub antispoof: Switch,
    /// Whether other VMs are out of reach.
    pub isolate: Switch,
    /// Whether its port sends frames back to where they came from.
    pub hairpin: Switch,
    /// What the guest may take of the host.
    pub limits: LimitSpec,
}
