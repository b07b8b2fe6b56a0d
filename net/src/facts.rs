//! The host's network as far as a plan depends on it: plain data. Knows neither how it is read nor what a plan makes of it.
//!
//! The survey reads it from the kernel, tests write it by hand.

pub(crate) mod claim;
pub(crate) mod docker;
pub(crate) mod ovs;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;

use crate::facts::docker::DockerTables;
use crate::facts::ovs::OvsFact;
use crate::identity::alias::{OUR_GROUP, UplinkAlias};
use crate::identity::mac::{MacAddr, RawMac};
use crate::kernel::nft::Translation;
use crate::kernel::tun::FdKind;
use crate::spec::{IfName, NETWORK_PREFIXES};

/// The host's network at one moment.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Every interface of the network namespace.
    pub links: Vec<Link>,
    /// Addresses behind the ports of the bridges that a request names.
    pub fdb: Vec<FdbEntry>,
    /// Neighbour table. It only lends a name to a machine whose address is in [`Facts::fdb`]: an entry here outlives
    /// the machine by minutes, so that alone it would refuse every VM that is started again.
    pub neighbours: Vec<Neighbour>,
    /// IPv4, if a card is to be on a network of ours; else nothing.
    pub ip: IpFacts,
    /// Ports of the host that others lead elsewhere, if ports of it are to lead to a guest; else nothing.
    pub translations: Vec<Translation>,
    /// What the interfaces have that a request names as uplinks.
    pub uplinks: Vec<UplinkFact>,
    /// What is behind the descriptors that a request names, in any order.
    pub fds: Vec<FdFact>,
    /// Random addresses, enough for the bridges that a plan may create.
    pub spare_macs: Vec<MacAddr>,
    /// What there is of Open vSwitch.
    pub ovs: OvsFact,
    /// Random names, enough for the links that do not go by themselves and that a plan may create.
    pub spare_names: Vec<IfName>,
    /// Descriptors that the keeper may have (`RLIMIT_NOFILE`), if that is limited.
    pub descriptors: Option<u64>,
    /// Names of links that a VMM or a keeper still uses.
    pub claimed: BTreeSet<String>,
    /// The names of those of a request's interfaces that are radio cards.
    pub wireless: BTreeSet<String>,
}

/// What networks of ours depend on.
#[derive(Clone, Debug, Default)]
pub struct IpFacts {
    /// Every address of this host.
    pub addresses: Vec<Address>,
    /// Every route, of all tables.
    pub routes: Vec<Route>,
    /// The links with routes that pass on packets for others (`net.ipv4.conf.IFACE.forwarding`).
    pub forwarding: BTreeSet<u32>,
    /// True if the kernel has no IPv6, or has it switched off (`ipv6.disable=1`).
    pub lacks_ipv6: bool,
    /// Whether the host forwards IPv6 (`net.ipv6.conf.all.forwarding`).
    pub forwards6: bool,
    /// Settings of the kernel that networks of ours meet.
    pub settings: Settings,
    /// The links with an IPv6 default route that take router advertisements as long as the host does not forward.
    pub advertised6: BTreeSet<u32>,
    /// Where Docker drops what nobody has let through, and leaves a place for others.
    pub docker: DockerTables,
    /// Whether what is bridged passes the rules for what is routed (`net.bridge.bridge-nf-call-iptables`).
    pub bridged_as_routed: bool,
    /// Connections that the host tracks at most (`net.netfilter.nf_conntrack_max`); none if it has not tracked any yet.
    pub connections_max: Option<u32>,
    /// The name servers that the host asks.
    pub resolvers: Vec<Ipv4Addr>,
}

/// Settings of the kernel as a network of ours meets them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// They cannot be written: `/proc/sys` is read-only.
    pub locked: bool,
    /// A new interface forwards IPv4 (`net.ipv4.conf.default.forwarding`).
    pub forwarding: bool,
    /// A new interface has no IPv6 (`net.ipv6.conf.default.disable_ipv6`, or a kernel without it).
    pub without_ipv6: bool,
}

/// What an interface has that a bridge would take over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UplinkFact {
    /// The interface.
    pub link: u32,
    /// Its addresses with their prefix lengths, but for link-local ones of IPv6.
    pub addresses: Vec<String>,
    /// When the first of them ends, in seconds, if one does.
    pub lifetime_s: Option<u32>,
    /// Routes through it, but for those that come and go with addresses by themselves.
    pub routes: usize,
    /// Whether one of them leads to all that no other leads to.
    pub default_route: bool,
    /// Whether one of them leads through an object of its own (`ip nexthop`).
    pub nexthop_objects: bool,
    /// It is a radio.
    pub wireless: bool,
}

/// An IPv4 address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: Ipv4Addr,
    /// Bits that the machines beside it share.
    pub prefix_len: u8,
    /// The interface that has it.
    pub link: u32,
}

/// An IPv4 route that leads somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: Ipv4Addr,
    /// Bits of it that count.
    pub prefix_len: u8,
    /// The router, if there is one.
    pub gateway: Option<Ipv4Addr>,
    /// The interface.
    pub link: Option<u32>,
    /// It leads to another machine, not to this one.
    pub unicast: bool,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind as rtnetlink calls it (`bridge`, `tun`, `veth`), none for hardware and loopback.
    pub kind: Option<String>,
    /// Its own address, none if it has no Ethernet address.
    pub mac: Option<RawMac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The bridge or bond it is a port of.
    pub master: Option<u32>,
    /// What it is made on (a VLAN's or macvlan's interface), if that is in the same namespace.
    pub lower: Option<u32>,
    /// The other end of a pair, if that is in the same namespace.
    pub peer: Option<u32>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its device group.
    pub group: u32,
    /// What somebody has written on it.
    pub alias: Option<String>,
    /// Its mode, if it is a macvlan or macvtap.
    pub macvlan: Option<MacvlanMode>,
    /// What only tun and tap have.
    pub tun: Option<TunFact>,
    /// What only bridges have.
    pub bridge: BridgeFact,
}

/// What rtnetlink says of a bridge (`IFLA_BR_*`, linux/if_link.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BridgeFact {
    /// Whether it keeps VLANs apart; none if the kernel cannot.
    pub vlan_filtering: Option<bool>,
    /// The VLAN that every new port is untagged in, 0 if none.
    pub default_pvid: u16,
    /// Its forward delay in seconds, if it takes part in a spanning tree.
    pub stp_delay_s: Option<u8>,
}

/// The mode of a macvlan or macvtap, as far as others on its interface have to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacvlanMode {
    /// It has the interface for itself.
    Passthru,
    /// It shares it.
    Shared,
}

/// What rtnetlink says of a tun or tap (`IFLA_TUN_*`, linux/if_link.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunFact {
    /// A tap: it carries Ethernet frames.
    pub tap: bool,
    /// It was made with `IFF_MULTI_QUEUE`.
    pub multi_queue: bool,
    /// Queues that a process has open.
    pub queues_open: u32,
}

/// An address that a bridge knows behind one of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// The address.
    pub mac: RawMac,
    /// The port's interface number.
    pub port: u32,
    /// The bridge's interface number.
    pub bridge: u32,
}

/// A machine that the host has spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address on the wire.
    pub mac: RawMac,
    /// Its IP address.
    pub ip: IpAddr,
    /// The interface through which it was reached.
    pub link: u32,
}

/// What an inherited descriptor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdFact {
    /// The descriptor.
    pub fd: RawFd,
    /// What is behind it.
    pub kind: FdKind,
}

impl Facts {
    /// The interface with this name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// What a request's uplink has.
    pub fn uplink(&self, link: &Link) -> Option<&UplinkFact> {
        self.uplinks.iter().find(|fact| fact.link == link.index)
    }

    /// The interface with this number.
    pub fn link_at(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// Whether it is a macvtap of ours whose VMM and keeper were both killed.
    pub fn is_left_behind(&self, link: &Link) -> bool {
        link.is_our_macvtap() && !self.claimed.contains(&link.name)
    }

    /// The name of an interface, or its number if it has gone.
    pub fn name_of(&self, index: u32) -> String {
        match self.links.iter().find(|link| link.index == index) {
            Some(link) => link.name.clone(),
            None => format!("interface {index}"),
        }
    }

    /// The ports of a bridge.
    pub fn ports_of(&self, bridge: &Link) -> impl Iterator<Item = &Link> {
        let index = bridge.index;
        self.links.iter().filter(move |link| link.master == Some(index))
    }
}

impl Link {
    /// Whether it is a bridge.
    pub fn is_bridge(&self) -> bool {
        self.kind.as_deref() == Some("bridge")
    }

    /// Whether it is a bridge that minivmm made, so that the last port takes it away.
    pub fn is_our_bridge(&self) -> bool {
        self.is_bridge() && self.group == OUR_GROUP
    }

    /// Returns whether it is a bridge of ours that makes a network. The keeper that made it may have been killed before
    /// it wrote which one.
    pub fn is_our_network(&self) -> bool {
        self.is_our_bridge() && NETWORK_PREFIXES.iter().any(|prefix| self.name.starts_with(prefix))
    }

    /// Its uplink, if it is a bridge of ours with one.
    pub fn uplink(&self) -> Option<UplinkAlias> {
        self.alias.as_deref().filter(|_| self.is_our_bridge()).and_then(UplinkAlias::parse)
    }

    /// Whether it is a macvtap that minivmm made.
    pub fn is_our_macvtap(&self) -> bool {
        self.kind.as_deref() == Some("macvtap") && self.group == OUR_GROUP
    }

    /// What it is, in a word.
    pub fn kind_text(&self) -> String {
        match (&self.tun, self.kind.as_deref()) {
            (Some(tun), _) if tun.tap => "a tap".to_owned(),
            (Some(_), _) => "a tun device (layer 3)".to_owned(),
            (None, Some("bridge")) => "a bridge".to_owned(),
            (None, Some(kind)) => format!("a link of kind {kind}"),
            (None, None) if self.name == "lo" => "the loopback interface".to_owned(),
            (None, None) => "a network card".to_owned(),
        }
    }
}
