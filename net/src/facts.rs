//! The host's network as far as a plan depends on it. Plain data: it knows neither its reader nor the plan.
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
    /// The neighbour table. It only names the owner of an address in [`Facts::fdb`]: an entry here outlives its machine
    /// by minutes, so on its own it would refuse every VM that is started again.
    pub neighbours: Vec<Neighbour>,
    /// Addresses, routes and settings of IP; empty unless a card joins a network of ours.
    pub ip: IpFacts,
    /// Ports of the host that other programs translate; empty unless a card forwards ports.
    pub translations: Vec<Translation>,
    /// Addresses and routes of the interfaces that a request names as uplinks.
    pub uplinks: Vec<UplinkFact>,
    /// Kinds of the descriptors that a request names, in any order.
    pub fds: Vec<FdFact>,
    /// Random addresses, enough for the bridges that a plan may create.
    pub spare_macs: Vec<MacAddr>,
    /// The state of Open vSwitch.
    pub ovs: OvsFact,
    /// Random names, enough for the links that a plan may create and that do not go by themselves.
    pub spare_names: Vec<IfName>,
    /// The keeper's limit on open descriptors (`RLIMIT_NOFILE`), if there is one.
    pub descriptors: Option<u64>,
    /// Names of links that a VMM or a keeper still uses.
    pub claimed: BTreeSet<String>,
    /// Names of the request's interfaces that are radio cards.
    pub wireless: BTreeSet<String>,
}

/// The host's IP configuration, on which networks of ours depend.
#[derive(Clone, Debug, Default)]
pub struct IpFacts {
    /// Every IPv4 address of this host.
    pub addresses: Vec<Address>,
    /// Every IPv4 route, of all tables.
    pub routes: Vec<Route>,
    /// The links with routes that forward packets (`net.ipv4.conf.IFACE.forwarding`).
    pub forwarding: BTreeSet<u32>,
    /// True if the kernel has no IPv6, or has it switched off (`ipv6.disable=1`).
    pub lacks_ipv6: bool,
    /// True if the host forwards IPv6 (`net.ipv6.conf.all.forwarding`).
    pub forwards6: bool,
    /// Kernel settings that apply to a new network of ours.
    pub settings: Settings,
    /// The links with an IPv6 default route that accept router advertisements only while the host does not forward.
    pub advertised6: BTreeSet<u32>,
    /// The tables in which Docker drops forwarded traffic that no rule accepts.
    pub docker: DockerTables,
    /// True if bridged frames pass the rules for routed packets (`net.bridge.bridge-nf-call-iptables`).
    pub bridged_as_routed: bool,
    /// Limit on tracked connections (`net.netfilter.nf_conntrack_max`); none as long as the host tracks none.
    pub connections_max: Option<u32>,
    /// The IPv4 name servers that the host asks.
    pub resolvers: Vec<Ipv4Addr>,
}

/// Kernel settings that apply to a new network of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// True if they cannot be written: `/proc/sys` is read-only.
    pub locked: bool,
    /// True if a new interface forwards IPv4 (`net.ipv4.conf.default.forwarding`).
    pub forwarding: bool,
    /// True if a new interface has no IPv6 (`net.ipv6.conf.default.disable_ipv6`, or a kernel without it).
    pub without_ipv6: bool,
}

/// The addresses and routes of an interface that a bridge would take over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UplinkFact {
    /// The interface.
    pub link: u32,
    /// Its addresses with their prefix lengths, except IPv6 link-local ones.
    pub addresses: Vec<String>,
    /// Seconds until the first of them expires, if one does.
    pub lifetime_s: Option<u32>,
    /// Number of routes through it, except the kernel's own local and link-local ones.
    pub routes: usize,
    /// True if one of them is a default route.
    pub default_route: bool,
    /// True if one of them uses a nexthop object (`ip nexthop`).
    pub nexthop_objects: bool,
    /// True if it is a radio card.
    pub wireless: bool,
}

/// An IPv4 address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: Ipv4Addr,
    /// Prefix length of its network.
    pub prefix_len: u8,
    /// The interface that has it.
    pub link: u32,
}

/// An IPv4 route that leads somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination network.
    pub destination: Ipv4Addr,
    /// Prefix length of the destination.
    pub prefix_len: u8,
    /// The router, if there is one.
    pub gateway: Option<Ipv4Addr>,
    /// The outgoing interface.
    pub link: Option<u32>,
    /// True if it leads to another machine, not to this one.
    pub unicast: bool,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
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
    /// The interface it is made on (for a VLAN or macvlan), if that is in the same namespace.
    pub lower: Option<u32>,
    /// The other end of a pair, if that is in the same namespace.
    pub peer: Option<u32>,
    /// True if it is administratively up.
    pub up: bool,
    /// Its device group.
    pub group: u32,
    /// Its alias, a text that any privileged program can set.
    pub alias: Option<String>,
    /// Its mode, if it is a macvlan or macvtap.
    pub macvlan: Option<MacvlanMode>,
    /// Properties of a tun or tap; none for other kinds.
    pub tun: Option<TunFact>,
    /// Properties of a bridge; defaults for other kinds.
    pub bridge: BridgeFact,
}

/// Properties of a bridge in rtnetlink (`IFLA_BR_*`, linux/if_link.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BridgeFact {
    /// True if it filters VLANs; none if the kernel cannot.
    pub vlan_filtering: Option<bool>,
    /// The VLAN that every new port is untagged in, 0 if none.
    pub default_pvid: u16,
    /// Its forward delay in seconds, if it takes part in a spanning tree.
    pub stp_delay_s: Option<u8>,
}

/// The mode of a macvlan or macvtap, as far as it concerns others on the same interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacvlanMode {
    /// It has the interface to itself.
    Passthru,
    /// It shares the interface.
    Shared,
}

/// Properties of a tun or tap in rtnetlink (`IFLA_TUN_*`, linux/if_link.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunFact {
    /// True for a tap, which carries Ethernet frames.
    pub tap: bool,
    /// True if it was made with `IFF_MULTI_QUEUE`.
    pub multi_queue: bool,
    /// Queues that a process has open.
    pub queues_open: u32,
}

/// A MAC address that a bridge knows behind one of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// The address.
    pub mac: RawMac,
    /// The port's interface index.
    pub port: u32,
    /// The bridge's interface index.
    pub bridge: u32,
}

/// A machine that the host has spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC address.
    pub mac: RawMac,
    /// Its IP address.
    pub ip: IpAddr,
    /// The interface through which it was reached.
    pub link: u32,
}

/// The kind of an inherited descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdFact {
    /// The descriptor.
    pub fd: RawFd,
    /// Its kind.
    pub kind: FdKind,
}

impl Facts {
    /// The interface with this name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The facts about an uplink that a request names.
    pub fn uplink(&self, link: &Link) -> Option<&UplinkFact> {
        self.uplinks.iter().find(|fact| fact.link == link.index)
    }

    /// The interface with this index.
    pub fn link_at(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// True for a macvtap of ours whose VMM and keeper were both killed.
    pub fn is_left_behind(&self, link: &Link) -> bool {
        link.is_our_macvtap() && !self.claimed.contains(&link.name)
    }

    /// The name of an interface, or its index if it has gone.
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
    /// True if it is a bridge.
    pub fn is_bridge(&self) -> bool {
        self.kind.as_deref() == Some("bridge")
    }

    /// True for a bridge that minivmm made, which is removed with its last port.
    pub fn is_our_bridge(&self) -> bool {
        self.is_bridge() && self.group == OUR_GROUP
    }

    /// True for a bridge of ours that makes a network. The name decides: the keeper that made the bridge may have been
    /// killed before it wrote the alias.
    pub fn is_our_network(&self) -> bool {
        self.is_our_bridge() && NETWORK_PREFIXES.iter().any(|prefix| self.name.starts_with(prefix))
    }

    /// Its uplink, if it is a bridge of ours with one.
    pub fn uplink(&self) -> Option<UplinkAlias> {
        self.alias.as_deref().filter(|_| self.is_our_bridge()).and_then(UplinkAlias::parse)
    }

    /// True for a macvtap that minivmm made.
    pub fn is_our_macvtap(&self) -> bool {
        self.kind.as_deref() == Some("macvtap") && self.group == OUR_GROUP
    }

    /// Its kind, in words.
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
