//! The things a plan can consist of, each with what it does and what takes it back.
//!
//! `undo` may run after `apply` failed half-way, twice, and after somebody else has removed the thing: it then finds
//! nothing to do and succeeds.

mod applied;
mod text;

use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use serde::Serialize;

use crate::error::Error;
use crate::gc::vacate_if_unused;
use crate::host::docker::{self, Admission};
use crate::host::forwarding;
use crate::host::macvtap::{self, Macvtap};
use crate::host::mirror::Mirror;
use crate::host::ovs::{self, OvsPort};
use crate::host::ports;
use crate::host::rates::Shape;
use crate::host::uplink;
use crate::identity::alias::{NetworkAlias, TapAlias, UplinkAlias};
use crate::identity::mac::MacAddr;
use crate::kernel::rtnl::{Attachment, Ipv4Setting, Rtnl};
use crate::kernel::sysctl::{self, Conf};
use crate::kernel::tun::{self, QueueMode, TapKind};
use crate::kernel::vlan::PortVlans;
use crate::policy::Policy;
use crate::policy::rules::Judged;
use crate::refusal::Refusal;
use crate::rules::Member;
use crate::rules::guard::Guard;
use crate::services::{Ipv6Network, PREFIX_LEN, ServiceSpec};
use crate::spec::{Forward, ForwardDelay, IfName, NETWORK_PREFIXES, Subnet, Switch};
use applied::open_tap;
pub(crate) use applied::{Host, Tap, create_tap, index_of};

/// The kernel's vhost-net: each opening is an instance, which serves one queue pair.
const VHOST: &str = "/dev/vhost-net";

/// One change of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// Make a bridge that is ours.
    CreateBridge {
        /// Its name.
        bridge: IfName,
        /// Its own address, set so that it never follows its ports.
        mac: MacAddr,
        /// Its MTU in bytes.
        mtu: u16,
    },
    /// Take part in a bridge that another VM made, and with it in the duty to remove it.
    ShareBridge {
        /// Its name.
        bridge: IfName,
    },
    /// Make an interface of the host a port of a bridge of ours.
    TakeUplink {
        /// The bridge.
        bridge: IfName,
        /// The interface.
        uplink: IfName,
        /// What is written on the bridge.
        alias: UplinkAlias,
        /// The addresses that go to the bridge.
        addresses: Vec<String>,
        /// How many routes do.
        routes: usize,
    },
    /// Have a port of a bridge carry VLANs beside those that it carries.
    JoinVlans {
        /// The port.
        link: IfName,
        /// The VLANs.
        vlans: PortVlans,
    },
    /// Have a new bridge take part in a spanning tree.
    StartStp {
        /// The bridge.
        bridge: IfName,
        /// How long a new port waits, twice.
        delay: ForwardDelay,
    },
    /// Have a bridge of ours keep VLANs apart.
    FilterVlans {
        /// The bridge.
        bridge: IfName,
    },
    /// Set the address that a bridge has, so that it does not follow its ports.
    PinAddress {
        /// The bridge.
        bridge: IfName,
        /// Its address.
        mac: MacAddr,
    },
    /// Make a bridge of ours the gateway of a network.
    GiveGateway {
        /// The bridge.
        bridge: IfName,
        /// The network's addresses.
        subnet: Subnet,
        /// What is written on the bridge.
        alias: NetworkAlias,
    },
    /// Let packets pass between a network of ours and the rest of the world.
    EnableForwarding {
        /// The network's bridge.
        bridge: IfName,
        /// The interfaces that did not forward.
        uplinks: Vec<IfName>,
    },
    /// Make a bridge of ours the IPv6 gateway of a network.
    GiveGateway6 {
        /// The bridge.
        bridge: IfName,
        /// The network.
        network: Ipv6Network,
    },
    /// Let IPv6 packets pass through the host.
    EnableForwarding6 {
        /// The network's bridge.
        bridge: IfName,
        /// The interfaces that go on taking router advertisements.
        uplinks: Vec<IfName>,
    },
    /// Let what comes from the host's loopback address go to guests of a network of ours.
    RouteLoopback {
        /// The network's bridge.
        bridge: IfName,
    },
    /// Take the host's ports that lead to a guest.
    HoldPorts {
        /// The card.
        card: usize,
        /// The ports.
        forward: Vec<Forward>,
        /// Whether those of all addresses are also those of IPv6.
        ipv6: Switch,
    },
    /// Make the nftables of a VM, gone with keeper and VMM.
    CreateTables {
        /// The VM.
        vm: String,
        /// Its cards on networks of ours.
        members: Vec<Member>,
        /// Its cards on bridges of the host.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        guards: Vec<Guard>,
    },
    /// Have Docker's rules let the cards behind NAT through, in the chain that Docker leaves to others.
    AdmitInDocker {
        /// The VM.
        vm: String,
        /// Its cards.
        admissions: Vec<Admission>,
        /// Bridges of containers, to which they do not lead.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        containers: Vec<IfName>,
    },
    /// Have the kernel copy the frames of cards, for as long as the keeper lives.
    MirrorFrames {
        /// The VM.
        vm: String,
        /// The cards.
        mirrors: Vec<Mirror>,
    },
    /// Have a policy hold for a card, gone with keeper and VMM.
    JudgeCard {
        /// The VM.
        vm: String,
        /// The card.
        card: usize,
        /// Its tap, if it was there before.
        #[serde(skip_serializing_if = "Option::is_none")]
        tap: Option<IfName>,
        /// Whether services of ours give the guest its address.
        served: Switch,
        /// The policy.
        policy: Policy,
    },
    /// Have the kernel hold the rates of cards.
    HoldRates {
        /// The VM.
        vm: String,
        /// The cards.
        shapes: Vec<Shape>,
    },
    /// Open the socket on which a card's services answer.
    OpenServices {
        /// The card.
        card: usize,
        /// What they say.
        spec: ServiceSpec,
    },
    /// Make a tap named by the kernel, gone with its last descriptor.
    CreateTap {
        /// The card it is for.
        card: usize,
        /// Queue pairs.
        queues: u16,
    },
    /// Open the kernel's vhost-net.
    OpenVhost {
        /// The card it is for.
        card: usize,
        /// Queue pairs, each of which takes an instance of its own.
        queues: u16,
    },
    /// Make the card's new tap a port of a bridge and raise it.
    AttachTap {
        /// The card.
        card: usize,
        /// The bridge.
        bridge: IfName,
        /// The tap's own address.
        mac: MacAddr,
        /// The tap's MTU in bytes.
        mtu: u16,
        /// What is written on it.
        alias: TapAlias,
        /// The only address behind it, if that is to be so.
        #[serde(skip_serializing_if = "Option::is_none")]
        pinned: Option<MacAddr>,
        /// Whether no frame passes between it and other isolated ports.
        isolated: Switch,
        /// Whether frames go back to where they came from.
        hairpin: Switch,
        /// The VLANs that it is in, if that is to differ from what the bridge gives every port.
        #[serde(skip_serializing_if = "Option::is_none")]
        vlans: Option<PortVlans>,
    },
    /// Remove a macvtap of ours that nobody uses.
    RemoveLeftBehind {
        /// Its name.
        link: IfName,
    },
    /// Make a macvtap, open its queues and raise it.
    CreateMacvtap {
        /// The card it is for.
        card: usize,
        /// What it is to be.
        #[serde(flatten)]
        macvtap: Macvtap,
    },
    /// Remove a port of ours in Open vSwitch that nobody uses.
    RemoveOvsPort {
        /// Its name.
        port: IfName,
    },
    /// Make a tap and have Open vSwitch take it as a port.
    CreateOvsPort {
        /// The card it is for.
        card: usize,
        /// What it is to be.
        #[serde(flatten)]
        port: OvsPort,
    },
    /// Open a tap that exists.
    OpenTap {
        /// The card it is for.
        card: usize,
        /// Its name.
        tap: IfName,
        /// Queue pairs.
        queues: u16,
        /// Whether it was made for several queues, which every opening has to say.
        multi_queue: bool,
    },
    /// Take over the descriptors of an open tap.
    AdoptTap {
        /// The card they are for.
        card: usize,
        /// The tap's name.
        tap: String,
        /// The descriptors in queue order.
        fds: Vec<RawFd>,
    },
    /// Raise an interface.
    Raise {
        /// Its name.
        link: IfName,
    },
}

impl Step {
    /// The bridge that this step prepares.
    pub(crate) fn bridge(&self) -> Option<&IfName> {
        match self {
            Self::CreateBridge { bridge, .. } | Self::ShareBridge { bridge } | Self::PinAddress { bridge, .. } => {
                Some(bridge)
            }
            _ => None,
        }
    }

    /// What a tap gets with its bridge, if this step attaches one.
    pub(crate) fn attachment(&self) -> Option<Attachment> {
        let Self::AttachTap { mac, mtu, alias, pinned, isolated, hairpin, vlans, .. } = self else { return None };
        let (alias, vlans) = (alias.clone(), vlans.clone());
        let (pinned, isolated, hairpin) = (*pinned, *isolated, *hairpin);
        Some(Attachment { mac: *mac, mtu: *mtu, alias, pinned, isolated, hairpin, vlans })
    }

    pub(crate) async fn apply(&self, host: &mut Host) -> Result<(), Error> {
        match self {
            Self::CreateBridge { bridge, mac, mtu } => (host.rtnl.create_bridge(bridge.as_str(), *mac, *mtu).await)
                .map_err(|source| Error::CreateBridge { bridge: bridge.clone(), source }),
            Self::ShareBridge { .. } => Ok(()),
            Self::TakeUplink { bridge, uplink, alias, .. } => (uplink::take(&host.rtnl, bridge.as_str(), alias).await)
                .map_err(|source| Error::TakeUplink { uplink: uplink.to_string(), source }),
            Self::JoinVlans { link, vlans } => join_vlans(&host.rtnl, link, vlans).await,
            Self::StartStp { bridge, delay } => start_stp(&host.rtnl, bridge, *delay).await,
            Self::FilterVlans { bridge } => filter_vlans(&host.rtnl, bridge).await,
            Self::PinAddress { bridge, mac } => (host.rtnl.set_address(bridge.as_str(), *mac).await)
                .map_err(|source| Error::PinAddress { bridge: bridge.clone(), source }),
            Self::CreateTap { card, queues } => {
                let (tap, index) = create_tap(tun::TAP_PATTERN, *queues)?;
                host.taps.insert(*card, tap);
                if let Err(error) = host.rtnl.bypass_queueing(index).await {
                    // A kernel without traffic control; the tap works, and costs more.
                    log::debug!("The tap of card {card} keeps its queueing discipline: {error}");
                }
                Ok(())
            }
            Self::OpenVhost { card, queues } => {
                let open = || Ok(OwnedFd::from(File::options().read(true).write(true).open(VHOST)?));
                let fds = (0..*queues).map(|_| open()).collect::<io::Result<_>>().map_err(Error::OpenVhost)?;
                host.vhosts.insert(*card, fds);
                Ok(())
            }
            Self::AttachTap { card, bridge, .. } => match self.attachment() {
                Some(attachment) => host.attach(*card, bridge, &attachment).await,
                None => Ok(()),
            },
            Self::GiveGateway { bridge, subnet, alias } => (give_gateway(&host.rtnl, bridge, *subnet, alias).await)
                .map_err(|source| Error::GiveGateway { bridge: bridge.clone(), source }),
            Self::EnableForwarding { bridge, uplinks } => host.forward(bridge, uplinks).await,
            Self::GiveGateway6 { bridge, network } => (give_gateway6(&host.rtnl, bridge, network).await)
                .map_err(|source| Error::GiveGateway { bridge: bridge.clone(), source }),
            Self::EnableForwarding6 { bridge, .. } => host.forward6(bridge).await,
            Self::RouteLoopback { bridge } => {
                (host.rtnl.set_ipv4(bridge.as_str(), Ipv4Setting::RouteLocalnet, Switch::On).await)
                    .map_err(|source| Error::Forwarding { bridge: bridge.clone(), source })
            }
            Self::HoldPorts { card, forward, ipv6 } => {
                host.ports.insert(*card, ports::hold(forward, *ipv6)?);
                Ok(())
            }
            Self::CreateTables { vm, members, guards } => host.create_tables(vm, members, guards),
            Self::AdmitInDocker { vm, admissions, containers } => host.admit(vm, admissions, containers).await,
            Self::MirrorFrames { vm, mirrors } => host.mirror(vm, mirrors),
            Self::JudgeCard { vm, card, tap, served, policy } => {
                let (tap, kind) = match tap {
                    Some(tap) => (tap.clone(), TapKind::Tap),
                    None => host.judged_tap(*card)?,
                };
                let judged = Judged { card: *card, tap, kind, served: *served == Switch::On };
                host.judge(vm, policy, vec![judged]).map_err(Error::Policy)?;
                host.forget_frames(*card);
                Ok(())
            }
            Self::HoldRates { vm, shapes } => host.hold_rates(vm, shapes).await,
            Self::OpenServices { card, spec } => host.open_services(*card, spec),
            Self::RemoveLeftBehind { link } => match macvtap::remove_if_left_behind(&host.rtnl, link.as_str()).await {
                Ok(_) => Ok(()),
                Err(source) => Err(Error::Remove { link: link.to_string(), source }),
            },
            Self::CreateMacvtap { card, macvtap } => host.create_macvtap(*card, macvtap).await,
            Self::RemoveOvsPort { port } => {
                ovs::remove(port).map_err(|source| Error::RemoveOvsPort { port: port.clone(), source })
            }
            Self::CreateOvsPort { card, port } => host.create_ovs_port(*card, port).await,
            Self::OpenTap { card, tap, queues, multi_queue } => {
                let mode = if *multi_queue { QueueMode::Multi } else { QueueMode::Single };
                let tap = open_tap(tap, *queues, mode)?;
                host.taps.insert(*card, tap);
                Ok(())
            }
            Self::AdoptTap { card, tap, fds } => {
                let tap = host.adopt(tap, fds)?;
                host.taps.insert(*card, tap);
                Ok(())
            }
            Self::Raise { link } => {
                (host.rtnl.raise(link.as_str()).await).map_err(|source| Error::Raise { link: link.clone(), source })
            }
        }
    }

    pub(crate) async fn undo(&self, host: &mut Host) -> Result<(), Error> {
        match self {
            Self::CreateBridge { bridge, .. } | Self::ShareBridge { bridge } => {
                let vacated = vacate_if_unused(&host.rtnl, bridge, &host.vacated).await?;
                host.vacated.extend(vacated);
                Ok(())
            }
            Self::TakeUplink { .. }
            | Self::JoinVlans { .. }
            | Self::StartStp { .. }
            | Self::FilterVlans { .. }
            | Self::PinAddress { .. }
            | Self::AttachTap { .. }
            | Self::GiveGateway { .. }
            | Self::EnableForwarding { .. }
            | Self::GiveGateway6 { .. }
            | Self::EnableForwarding6 { .. }
            | Self::RouteLoopback { .. }
            | Self::RemoveOvsPort { .. }
            | Self::RemoveLeftBehind { .. } => Ok(()),
            Self::HoldPorts { card, .. } => {
                host.ports.remove(card);
                Ok(())
            }
            Self::CreateTables { .. } => host.remove_tables().map_err(Error::Nftables),
            Self::AdmitInDocker { .. } => docker::withdraw(&std::mem::take(&mut host.admitted)).map_err(Error::Docker),
            Self::HoldRates { shapes, .. } => host.release_rates(shapes).await,
            Self::MirrorFrames { .. } => {
                host.mirrors = None;
                Ok(())
            }
            // All cards of a VM are undone together.
            Self::JudgeCard { .. } => host.remove_tables().map_err(Error::Policy),
            Self::OpenServices { card, .. } => {
                host.services.remove(card);
                Ok(())
            }
            Self::CreateOvsPort { card, port } => {
                let gone = ovs::remove(&port.tap);
                host.remove_tap(*card).await?;
                gone.map_err(|source| Error::RemoveOvsPort { port: port.tap.clone(), source })
            }
            Self::CreateTap { card, .. } | Self::CreateMacvtap { card, .. } => host.remove_tap(*card).await,
            Self::OpenTap { card, .. } | Self::AdoptTap { card, .. } => {
                host.taps.remove(card);
                Ok(())
            }
            Self::OpenVhost { card, .. } => {
                host.vhosts.remove(card);
                Ok(())
            }
            Self::Raise { link } => match host.rtnl.lower(link.as_str()).await {
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
                result => result.map_err(|source| Error::Raise { link: link.clone(), source }),
            },
        }
    }
}

/// Gives a bridge of ours its address and its name as a network.
async fn give_gateway(rtnl: &Rtnl, bridge: &IfName, subnet: Subnet, alias: &NetworkAlias) -> io::Result<()> {
    rtnl.set_alias(bridge.as_str(), &alias.to_string()).await?;
    // Without addresses of its own the host is not there for guests that speak IPv6, which have none but link-local ones.
    sysctl::set_if_there(Conf::Ipv6, bridge.as_str(), "disable_ipv6", "1")?;
    // Guests reach each other by themselves; a packet that comes back to its network has been translated.
    rtnl.set_ipv4(bridge.as_str(), Ipv4Setting::SendRedirects, Switch::Off).await?;
    rtnl.add_address(index_of(bridge.as_str())?, subnet.gateway().into(), subnet.prefix_len()).await
}

/// Gives a bridge of ours its IPv6 addresses, and none of its own making.
async fn give_gateway6(rtnl: &Rtnl, bridge: &IfName, network: &Ipv6Network) -> io::Result<()> {
    // 1: no address is generated (IN6_ADDR_GEN_MODE_NONE).
    sysctl::set(Conf::Ipv6, bridge.as_str(), "addr_gen_mode", "1")?;
    // What guests advertise is not for the host.
    sysctl::set(Conf::Ipv6, bridge.as_str(), "accept_ra", "0")?;
    // A gateway that leads out is a router, and says so to whoever asks for its address. Where the host does not
    // forward yet it becomes one with the host:
    // before that, the kernel would drop the routes that the host has from other routers.
    if forwarding::ipv6::forwards() && bridge.as_str().starts_with(NETWORK_PREFIXES[0]) {
        sysctl::set(Conf::Ipv6, bridge.as_str(), "forwarding", "1")?;
    }
    sysctl::set(Conf::Ipv6, bridge.as_str(), "disable_ipv6", "0")?;
    let link = index_of(bridge.as_str())?;
    for ip in [network.link_local, network.gateway] {
        rtnl.add_address6(link, ip, PREFIX_LEN).await?;
    }
    Ok(())
}

async fn start_stp(rtnl: &Rtnl, bridge: &IfName, delay: ForwardDelay) -> Result<(), Error> {
    let start = async { rtnl.start_stp(index_of(bridge.as_str())?, delay).await };
    start.await.map_err(|source| Error::StartStp { bridge: bridge.clone(), source })
}

async fn join_vlans(rtnl: &Rtnl, link: &IfName, vlans: &PortVlans) -> Result<(), Error> {
    let join = async { rtnl.join_vlans(index_of(link.as_str())?, vlans).await };
    join.await.map_err(|source| Error::JoinVlans { link: link.clone(), source })
}

async fn filter_vlans(rtnl: &Rtnl, bridge: &IfName) -> Result<(), Error> {
    let filter = async { rtnl.filter_vlans(index_of(bridge.as_str())?).await };
    filter.await.map_err(|source| match source.raw_os_error() {
        Some(libc::EOPNOTSUPP) => Refusal::NoVlans.into(),
        _ => Error::FilterVlans { bridge: bridge.clone(), source },
    })
}
