//! A plan's refusals. Each names object and reason; [`Refusal::hint`] says what to do. Depends on facts, not on plans.

mod host_limit;

use std::net::Ipv4Addr;
use std::os::fd::RawFd;

use crate::facts::ovs::{Datapath, OvsError};
use crate::identity::mac::MacAddr;
use crate::kernel::nft::Translation;
use crate::kernel::rtnl::USER_HZ;
use crate::spec::{IfName, NetworkName, Protocol, Subnet};

pub use host_limit::{ALIAS_BYTES_MAX, BRIDGE_PORTS_MAX, HostLimit, IPV6_MTU_MIN};

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
    /// No interface has the uplink's name.
    #[error("Uplink {name} does not exist")]
    NoUplink {
        /// The name.
        name: IfName,
    },
    /// The name belongs to something that cannot be a port of a bridge.
    #[error("{name} cannot be an uplink, it is {kind}")]
    NotAnUplink {
        /// The name.
        name: IfName,
        /// Its kind.
        kind: String,
    },
    /// A station of a radio network may send from its own address only.
    #[error("{name} cannot be an uplink, it is a wireless card, and access points take its own address only")]
    WirelessUplink {
        /// The name.
        name: IfName,
    },
    /// A port of something else.
    #[error("{name} is a port of {master} already")]
    UplinkOfOther {
        /// The uplink.
        name: IfName,
        /// Its master.
        master: String,
    },
    /// A device on top of it takes frames before a bridge sees them.
    #[error("{name} cannot be an uplink while {by} is on it, which is {kind} and takes frames before the bridge")]
    UplinkInUse {
        /// The uplink.
        name: IfName,
        /// The device on top of it.
        by: String,
        /// That device's kind.
        kind: String,
    },
    /// The host would lose its addresses or routes.
    #[error("{name} has {}, and a port of a bridge cannot use them", holdings_text(addresses, *.default_route))]
    UplinkHasAddresses {
        /// The uplink.
        name: IfName,
        /// Its addresses.
        addresses: Vec<String>,
        /// True if the default route leads through it.
        default_route: bool,
    },
    /// Routes through objects that belong to the interface.
    #[error("Routes through {name} use nexthop objects, which cannot be moved")]
    NexthopObjects {
        /// The uplink.
        name: IfName,
    },
    /// A bridge that minivmm did not make.
    #[error("Bridge {name} exists, and minivmm did not make it")]
    ForeignBridge {
        /// The bridge.
        name: IfName,
    },
    /// A bridge of ours with another uplink, or none.
    #[error("Bridge {name} exists, and {}", uplink_text(uplink.as_deref()))]
    OtherUplink {
        /// The bridge.
        name: IfName,
        /// Its uplink.
        uplink: Option<String>,
    },
    /// No interface has the mirror's name.
    #[error("mirror={name} does not exist")]
    NoMirror {
        /// The name.
        name: IfName,
    },
    /// Frames cannot leave by it, or would come back to this host or another VM.
    #[error("mirror={name} cannot have copies of frames, it is {kind}")]
    NotAMirror {
        /// The name.
        name: IfName,
        /// Its kind.
        kind: String,
    },
    /// A copy would come to the card and be copied again.
    #[error("mirror={name} leads to bridge {bridge}, where the card is: copies would be copied for ever")]
    MirrorLoop {
        /// The name.
        name: IfName,
        /// The card's bridge.
        bridge: String,
    },
    /// The card's frames go there anyway.
    #[error("mirror={name} is the interface that the card is on")]
    MirrorOfItself {
        /// The name.
        name: IfName,
    },
    /// The interface is down.
    #[error("mirror={name} is down")]
    MirrorDown {
        /// The name.
        name: IfName,
    },
    /// The rules would have to be in another network namespace.
    #[error("mirror= is for taps of this network namespace")]
    MirrorElsewhere,
    /// A kernel that cannot limit rates on a tap.
    #[error("The kernel of this host cannot limit rates on a tap")]
    NoRates,
    /// A kernel older than Linux 5.16, or without `CONFIG_NETFILTER_EGRESS`.
    #[error("The kernel of this host cannot mirror the frames that leave by an interface")]
    NoMirrors,
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
    /// No interface has the name.
    #[error("Interface {name} does not exist")]
    NoInterface {
        /// The name.
        name: IfName,
        /// The interfaces that could be meant.
        interfaces: Vec<String>,
    },
    /// It carries no Ethernet frames, or leads nowhere.
    #[error("{name} cannot carry a macvtap, it is {kind}")]
    NotForMacvtap {
        /// The interface.
        name: IfName,
        /// Its kind.
        kind: String,
    },
    /// A port of a bridge or bond hands its frames to that.
    #[error("{name} is a port of {master}, which takes all its frames")]
    HasMaster {
        /// The interface.
        name: IfName,
        /// Its master.
        master: String,
        /// True if the master is a bridge.
        is_bridge: bool,
    },
    /// A radio card.
    #[error("{name} is a Wi-Fi card, and access points take frames from its own address only")]
    Wireless {
        /// The interface.
        name: IfName,
    },
    /// Nothing passes an interface that is down.
    #[error("{name} is down")]
    LowerDown {
        /// The interface.
        name: IfName,
    },
    /// A device or card has the interface for itself, or this card wants it so and is not alone.
    #[error("{name} is used by {by}{}", if *.alone { " alone (mode=passthru)" } else { "" })]
    MacvtapBusy {
        /// The interface.
        name: IfName,
        /// The device or card that uses it.
        by: String,
        /// True if it has the interface for itself.
        alone: bool,
    },
    /// No interface has the tap's name.
    #[error("Tap {name} does not exist")]
    NoTap {
        /// The name.
        name: IfName,
    },
    /// The name belongs to something else.
    #[error("{name} is not a tap, it is {kind}")]
    NotATap {
        /// The name.
        name: IfName,
        /// Its kind.
        kind: String,
    },
    /// A tap that can have one queue only.
    #[error("Tap {name} has one queue, and queues={queues} needs more")]
    SingleQueueTap {
        /// The tap.
        name: IfName,
        /// The requested number of queues.
        queues: u16,
    },
    /// Another process or card has the tap open.
    #[error("Tap {name} is held by another process or card")]
    TapBusy {
        /// The tap.
        name: IfName,
    },
    /// Another card has the descriptor.
    #[error("fd={fd} belongs to another card of this VM")]
    FdTaken {
        /// The descriptor.
        fd: RawFd,
    },
    /// The number is not an open descriptor.
    #[error("fd={fd} is not open in this process")]
    FdClosed {
        /// The descriptor.
        fd: RawFd,
    },
    /// A descriptor of something else: a file, a socket.
    #[error("fd={fd} is not a tap")]
    FdNotATap {
        /// The descriptor.
        fd: RawFd,
    },
    /// A layer-3 tun, or a tap that prefixes packet information.
    #[error("fd={fd} does not carry plain Ethernet frames")]
    FdNotFrames {
        /// The descriptor.
        fd: RawFd,
    },
    /// A tap without the header that carries checksum and segmentation requests.
    #[error("fd={fd} is a tap without virtio-net headers")]
    FdWithoutHeader {
        /// The descriptor.
        fd: RawFd,
    },
    /// The queues of one card belong to two taps.
    #[error("fd= mixes queues of the taps {first} and {second}")]
    FdsOfTwoTaps {
        /// One tap.
        first: String,
        /// Another.
        second: String,
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
    /// The survey found no name for a new macvtap.
    #[error("There is no name for a new macvtap")]
    NoSpareName,
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
                "have it filter, after giving its other ports their VLANs: ip link set {name} type bridge vlan_filtering 1"
            ),
            Self::PortTranslated { by, .. } => {
                let show = match by.table.strip_prefix("nat of ") {
                    Some(program) => format!("{program} -t nat -S {}", by.chain),
                    None => format!("nft -a list chain {} {}", by.table, by.chain),
                };
                format!("forward another port, or remove the rule (docker ps shows published ports); {show} \
                 shows it")
            }
            Self::Limit(limit) => limit.hint(),
            Self::NoDefaultVlan { name } => {
                format!("put the guest in a VLAN, with vlan=ID or trunk=LIST; `bridge vlan show` lists those \
                 of {name}'s ports")
            }
            Self::NoVlans => {
                "leave vlan= and trunk= out, or boot a kernel with CONFIG_BRIDGE_VLAN_FILTERING, as those of distributions are"
                    .to_owned()
            }
            Self::NoUplink { .. } => "give the name of a network card; `ip link` lists them".to_owned(),
            Self::NotAnUplink { .. } => "give the name of an Ethernet card".to_owned(),
            Self::WirelessUplink { .. } => "use --net nat, which needs no bridge on the card".to_owned(),
            Self::UplinkOfOther { master, .. } => {
                format!("use that bridge if it is one (--net bridge={master}), or free the card first")
            }
            Self::UplinkInUse { by, .. } => {
                format!("use that as uplink (uplink={by}), or remove it first: ip link del {by}")
            }
            Self::UplinkHasAddresses { .. } => {
                "add move-addresses=on to have them on the bridge while VMs use it".to_owned()
            }
            Self::NexthopObjects { .. } => "leave uplink= out, and make the bridge yourself".to_owned(),
            Self::ForeignBridge { name } => {
                format!("leave uplink= out and put the card on it yourself (ip link set IFACE master {name}), or use another name")
            }
            Self::OtherUplink { .. } => "give the bridge another name, or end its VMs first".to_owned(),
            Self::NoMirror { .. } => "give the name of an interface; `ip link` lists them".to_owned(),
            Self::NotAMirror { .. } => "give an Ethernet card, a bridge, or an end of a veth pair".to_owned(),
            Self::MirrorLoop { .. } | Self::MirrorOfItself { .. } => "give an interface that does not lead to the card".to_owned(),
            Self::MirrorDown { name } => format!("raise it: ip link set {name} up"),
            Self::MirrorElsewhere => "leave mirror= out, or run minivmm where the tap is".to_owned(),
            Self::NoRates => {
                "leave vhost=on out, or load what is missing: modprobe -a sch_tbf ifb nft_fwd_netdev".to_owned()
            }
            Self::NoMirrors => {
                "use capture=FILE, or boot Linux 5.16 or later with CONFIG_NETFILTER_EGRESS, as those of distributions are"
                    .to_owned()
            }
            Self::MacUsed { .. } => {
                "give the card another address with mac=, or the VM another name with --name".to_owned()
            }
            Self::PolicyCard { .. } => {
                "cards are counted from 0 in the order of --net; leave cards out for all of them".to_owned()
            }
            Self::PolicyElsewhere { .. } => "leave --policy out, or give the VM a tap of this network namespace".to_owned(),
            Self::AroundRules { bridge, datapath, .. } => {
                let fix = match datapath {
                    Datapath::TrafficControl => {
                        "have the kernel move them (ovs-vsctl set Open_vSwitch . other_config:hw-offload=false, and restart ovs-vswitchd)"
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
            Self::NoOvsBridge { name, bridges } if bridges.is_empty() => format!("make it first: ovs-vsctl add-br {name}"),
            Self::NoOvsBridge { name, bridges } => {
                format!("use one that exists ({}), or make it first: ovs-vsctl add-br {name}", bridges.join(", "))
            }
            Self::NoInterface { interfaces, .. } if interfaces.is_empty() => {
                "give the name of an interface; `ip link` lists them".to_owned()
            }
            Self::NoInterface { interfaces, .. } => format!("use one that exists: {}", interfaces.join(", ")),
            Self::NotForMacvtap { .. } => {
                "give the name of an interface that carries Ethernet frames to other machines; `ip link` lists them".to_owned()
            }
            Self::HasMaster { master, is_bridge: true, .. } => format!("put the card on the bridge: --net bridge={master}"),
            Self::HasMaster { master, .. } => format!("use that: --net macvtap={master}"),
            Self::Wireless { .. } => "use --net nat, or an interface with a wire".to_owned(),
            Self::LowerDown { name } => format!("raise it first: ip link set {name} up"),
            Self::MacvtapBusy { alone: true, .. } => "free the interface, or use another".to_owned(),
            Self::MacvtapBusy { .. } => "free the interface, or share it: mode=bridge".to_owned(),
            Self::NoTap { name } => format!(
                "make it first (ip tuntap add {name} mode tap), or use --net bridge=NAME, which needs no tap of yours"
            ),
            Self::NotATap { .. } => "give the name of a tap; `ip tuntap show` lists them".to_owned(),
            Self::SingleQueueTap { name, .. } => format!(
                "leave queues= out, or make the tap with several queues: ip tuntap add {name} mode tap multi_queue"
            ),
            Self::TapBusy { .. } => "stop the process that holds it, or use another tap".to_owned(),
            Self::FdTaken { .. } => "give each card descriptors of its own".to_owned(),
            Self::FdClosed { .. } => "have the parent process leave the descriptor open across exec".to_owned(),
            Self::FdNotATap { .. } => {
                "pass a descriptor of /dev/net/tun after TUNSETIFF, or of a macvtap's /dev/tapN".to_owned()
            }
            Self::FdNotFrames { .. } => "open the tap with IFF_TAP and IFF_NO_PI".to_owned(),
            Self::FdWithoutHeader { .. } => "open the tap with IFF_VNET_HDR".to_owned(),
            Self::FdsOfTwoTaps { .. } => "give each tap a --net flag of its own".to_owned(),
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
            Self::NoSpareName => "this is a bug in minivmm: the survey skipped the name".to_owned(),
            Self::NoSpareMac => "this is a bug in minivmm: the survey skipped the address".to_owned(),
        }
    }
}

/// An interface's addresses and routes that would be lost, in words.
fn holdings_text(addresses: &[String], default_route: bool) -> String {
    let route = if default_route { Some("the default route") } else { None };
    let texts: Vec<&str> = addresses.iter().map(String::as_str).chain(route).collect();
    if texts.is_empty() { "routes".to_owned() } else { texts.join(", ") }
}

/// The uplink of a bridge of ours, in words.
fn uplink_text(uplink: Option<&str>) -> String {
    uplink.map_or_else(|| "has no uplink".to_owned(), |uplink| format!("its uplink is {uplink}"))
}

/// A bridge's spanning tree, in words.
fn stp_text(delay_s: Option<u8>) -> String {
    match delay_s {
        Some(delay_s) => format!("its spanning tree has a forward delay of {delay_s} s"),
        None => "takes part in no spanning tree".to_owned(),
    }
}
