//! A plan's refusals. Each names object and reason; [`Refusal::hint`] says what to do. Depends on facts, not on plans.

mod host_limit;
mod macvtap;
mod mirror;
mod tap;
mod uplink;

use std::net::Ipv4Addr;

use crate::facts::ovs::{Datapath, OvsError};
use crate::identity::mac::MacAddr;
use crate::kernel::nft::Translation;
use crate::kernel::rtnl::USER_HZ;
use crate::spec::{IfName, NetworkName, Protocol, Subnet};

pub use host_limit::{ALIAS_BYTES_MAX, BRIDGE_PORTS_MAX, HostLimit, IPV6_MTU_MIN};
pub use macvtap::MacvtapRefusal;
pub use mirror::MirrorRefusal;
pub use tap::TapRefusal;
pub use uplink::UplinkRefusal;

/// The reasons why cards cannot be had on this host. Nothing has been changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No interface has the bridge's name.
    #[error("Bridge {name} does not exist")]
    NoBridge {
        /// The name.
        name: IfName,
        /// The bridges there are.
        bridges: Vec<String>,
    },
    /// The name belongs to something else.
    #[error("{name} is not a bridge, it is {kind}")]
    NotABridge {
        /// The name.
        name: IfName,
        /// Its kind.
        kind: String,
    },
    /// An existing bridge whose spanning tree is not what `stp=` asks for.
    #[error("Bridge {name} exists, and {}", stp_text(*.delay_s))]
    OtherStp {
        /// The bridge.
        name: IfName,
        /// Its forward delay in seconds, if it takes part in a spanning tree.
        delay_s: Option<u8>,
        /// The requested delay, in seconds.
        wanted_s: u8,
    },
    /// A bridge of another program, without VLAN filtering.
    #[error("Bridge {name} does not filter VLANs, and minivmm did not make it")]
    NoVlanFiltering {
        /// The bridge.
        name: IfName,
    },
    /// A bridge that filters VLANs and has no default VLAN.
    #[error(
        "Bridge {name} filters VLANs and has no default one (vlan_default_pvid=0), so no frame would pass the card"
    )]
    NoDefaultVlan {
        /// The bridge.
        name: IfName,
    },
    /// The kernel's bridges have no VLANs (`CONFIG_BRIDGE_VLAN_FILTERING`).
    #[error("The kernel of this host has no VLAN filtering on bridges")]
    NoVlans,
    /// A setting that would have to be changed while `/proc/sys` is read-only.
    #[error("{setting} is to be {value}, and /proc/sys is read-only here")]
    LockedSetting {
        /// The setting.
        setting: String,
        /// Its value.
        value: u32,
    },
    /// A kernel that cannot limit rates on a tap.
    #[error("The kernel of this host cannot limit rates on a tap")]
    NoRates,
    /// The card's MAC address is in use.
    #[error("MAC address {mac} is already used by {by}")]
    MacUsed {
        /// The address.
        mac: MacAddr,
        /// Its user.
        by: String,
    },
    /// A policy with rules for a card that does not exist.
    #[error("The policy has a rule for card {card}, and the VM has {count}")]
    PolicyCard {
        /// The card.
        card: usize,
        /// The number of cards.
        count: usize,
    },
    /// A tap on which no rule can be put.
    #[error("The tap of card {card} is in another network namespace, where a policy cannot be enforced")]
    PolicyElsewhere {
        /// The card.
        card: usize,
    },
    /// A feature that needs rules on the tap, which frames of this bridge bypass.
    #[error(
        "{wish} cannot work on Open vSwitch bridge {bridge}: {datapath} moves its frames, around the rules on a tap"
    )]
    AroundRules {
        /// The requested feature.
        wish: &'static str,
        /// The bridge.
        bridge: IfName,
        /// The data path that moves its frames.
        datapath: Datapath,
    },
    /// An MTU above that of the link.
    #[error("mtu={mtu} is more than {link} carries, which is {link_mtu}")]
    MtuAboveLink {
        /// The requested MTU, in bytes.
        mtu: u16,
        /// The bridge or tap.
        link: String,
        /// The link's MTU, in bytes.
        link_mtu: u16,
    },
    /// An uplink.
    #[error(transparent)]
    Uplink(#[from] UplinkRefusal),
    /// An interface to mirror frames to.
    #[error(transparent)]
    Mirror(#[from] MirrorRefusal),
    /// An interface for a macvtap.
    #[error(transparent)]
    Macvtap(#[from] MacvtapRefusal),
    /// A tap or its descriptors.
    #[error(transparent)]
    Tap(#[from] TapRefusal),
    /// A limit of the host.
    #[error(transparent)]
    Limit(#[from] HostLimit),
    /// Open vSwitch is missing, or does not answer.
    #[error(transparent)]
    Ovs(#[from] OvsError),
    /// Open vSwitch has no bridge of the name.
    #[error("Open vSwitch has no bridge {name}")]
    NoOvsBridge {
        /// The name.
        name: IfName,
        /// The bridges it has.
        bridges: Vec<String>,
    },
    /// The name of a network's bridge belongs to something else.
    #[error("The bridge of this network would be {name}, and that is {kind}, which minivmm did not make")]
    BridgeNameTaken {
        /// The name.
        name: IfName,
        /// Its kind.
        kind: String,
    },
    /// A network that exists with other addresses.
    #[error("Network {name} exists with subnet {subnet}, and subnet={wanted} asks for another")]
    OtherSubnet {
        /// The network.
        name: NetworkName,
        /// Its subnet.
        subnet: Subnet,
        /// The requested subnet.
        wanted: Subnet,
    },
    /// The requested subnet is in use.
    #[error("subnet={subnet} overlaps {by}")]
    SubnetTaken {
        /// The requested subnet.
        subnet: Subnet,
        /// Its user.
        by: String,
        /// A free subnet.
        free: Option<Subnet>,
    },
    /// Every private address is routed somewhere.
    #[error("There is no private subnet that this host has no route to")]
    NoFreeSubnet,
    /// The network has no free address.
    #[error("Network {name} has no address left in {subnet}")]
    NetworkFull {
        /// The network.
        name: NetworkName,
        /// Its addresses.
        subnet: Subnet,
    },
    /// The port is in use.
    #[error("{} port {port} of this host is taken", .protocol.name())]
    PortTaken {
        /// Its protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
    },
    /// Rules of other programs redirect the port.
    #[error("{} port {port} of this host is translated by a rule in chain {} of table {} ({})", .protocol.name(),
        .by.chain, .by.table, .by.rule)]
    PortTranslated {
        /// Its protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
        /// The rule.
        by: Box<Translation>,
    },
    /// `forward=` with an address that no interface has.
    #[error("{address} is not an address of this host")]
    NotOurAddress {
        /// The address.
        address: Ipv4Addr,
    },
    /// The survey found no address for a new bridge.
    #[error("There is no address for a new bridge")]
    NoSpareMac,
}

/// The hint for a setting that cannot be written because `/proc/sys` is read-only.
pub(crate) fn locked_hint(setting: &str) -> String {
    let words = if setting.ends_with(".forwarding") && setting.starts_with("net.ipv4") {
        "net.ipv4.ip_forward"
    } else {
        setting
    };
    format!(
        "set it from outside (a container: docker run --sysctl {words}=1), or mount /proc/sys to be written to \
         (--privileged)"
    )
}

impl Refusal {
    /// The hint for the user.
    pub fn hint(&self) -> String {
        match self {
            Self::NoBridge { name, bridges } if bridges.is_empty() => {
                format!("add create=on to have minivmm make it: --net bridge={name},create=on")
            }
            Self::NoBridge { name, bridges } => format!(
                "add create=on to have minivmm make it (--net bridge={name},create=on), or use one that exists: {}",
                bridges.join(", ")
            ),
            Self::LockedSetting { setting, .. } => locked_hint(setting),
            Self::NotABridge { .. } => "give the name of a bridge; `ip link show type bridge` lists them".to_owned(),
            Self::OtherStp { name, wanted_s, .. } => format!(
                "leave stp= and forward-delay= out, or set it yourself: \
                 ip link set {name} type bridge stp_state 1 forward_delay {}",
                u32::from(*wanted_s).saturating_mul(USER_HZ)
            ),
            Self::NoVlanFiltering { name } => format!(
                "have it filter, after giving its other ports their VLANs: ip link set {name} type bridge \
                 vlan_filtering 1"
            ),
            Self::PortTranslated { by, .. } => {
                let show = match by.table.strip_prefix("nat of ") {
                    Some(program) => format!("{program} -t nat -S {}", by.chain),
                    None => format!("nft -a list chain {} {}", by.table, by.chain),
                };
                format!("forward another port, or remove the rule (docker ps shows published ports); {show} shows it")
            }
            Self::Limit(limit) => limit.hint(),
            Self::Uplink(refusal) => refusal.hint(),
            Self::Mirror(refusal) => refusal.hint(),
            Self::Macvtap(refusal) => refusal.hint(),
            Self::Tap(refusal) => refusal.hint(),
            Self::NoDefaultVlan { name } => {
                format!(
                    "put the guest in a VLAN, with vlan=ID or trunk=LIST; `bridge vlan show` lists those of {name}'s \
                     ports"
                )
            }
            Self::NoVlans => {
                "leave vlan= and trunk= out, or boot a kernel with CONFIG_BRIDGE_VLAN_FILTERING, as those of \
                 distributions are"
                    .to_owned()
            }
            Self::NoRates => {
                "leave vhost=on out, or load what is missing: modprobe -a sch_tbf ifb nft_fwd_netdev".to_owned()
            }
            Self::MacUsed { .. } => {
                "give the card another address with mac=, or the VM another name with --name".to_owned()
            }
            Self::PolicyCard { .. } => {
                "cards are counted from 0 in the order of --net; leave cards out for all of them".to_owned()
            }
            Self::PolicyElsewhere { .. } => {
                "leave --policy out, or give the VM a tap of this network namespace".to_owned()
            }
            Self::AroundRules { bridge, datapath, .. } => {
                let fix = match datapath {
                    Datapath::TrafficControl => {
                        "have the kernel move them (ovs-vsctl set Open_vSwitch . other_config:hw-offload=false, and \
                         restart ovs-vswitchd)"
                            .to_owned()
                    }
                    _ => format!("have the kernel move them (ovs-vsctl set Bridge {bridge} datapath_type=system)"),
                };
                format!("leave it out and use flows of Open vSwitch, or {fix}")
            }
            Self::MtuAboveLink { mtu, link, link_mtu } => {
                format!("give mtu={link_mtu} or less, or raise the link first: ip link set {link} mtu {mtu}")
            }
            Self::Ovs(error) => error.hint().unwrap_or_else(|| "see ovs-vsctl show".to_owned()),
            Self::NoOvsBridge { name, bridges } if bridges.is_empty() => {
                format!("make it first: ovs-vsctl add-br {name}")
            }
            Self::NoOvsBridge { name, bridges } => {
                format!("use one that exists ({}), or make it first: ovs-vsctl add-br {name}", bridges.join(", "))
            }
            Self::BridgeNameTaken { name, .. } => {
                format!("give the network another name, or remove that interface: ip link del {name}")
            }
            Self::OtherSubnet { .. } => {
                "leave subnet= out, give the network another name, or end its other VMs first".to_owned()
            }
            Self::SubnetTaken { free: Some(free), .. } => format!("leave subnet= out, or give subnet={free}"),
            Self::SubnetTaken { free: None, .. } => "give a subnet that is routed nowhere".to_owned(),
            Self::NoFreeSubnet => "give a subnet that guests may use with subnet=A.B.C.D/LEN".to_owned(),
            Self::NetworkFull { .. } => {
                "end a VM of it, or use a network of another name, larger with subnet=A.B.C.D/16".to_owned()
            }
            Self::PortTaken { protocol, port } => {
                let flag = if *protocol == Protocol::Tcp { 't' } else { 'u' };
                format!(
                    "forward another port, or stop the process that has it: ss -{flag}lnp 'sport = {port}' shows it"
                )
            }
            Self::NotOurAddress { .. } => "give one that `ip address` shows, or none for all of them".to_owned(),
            Self::NoSpareMac => "this is a bug in minivmm: the survey skipped the address".to_owned(),
        }
    }
}

/// A bridge's spanning tree, in words.
fn stp_text(delay_s: Option<u8>) -> String {
    match delay_s {
        Some(delay_s) => format!("its spanning tree has a forward delay of {delay_s} s"),
        None => "takes part in no spanning tree".to_owned(),
    }
}
