//! The things a plan can consist of, each with what it does and what takes it back.
//!
//! `undo` may run after `apply` failed half-way, twice, and after somebody else has removed the thing: it then finds
//! nothing to do and succeeds.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use serde::Serialize;

use crate::alias::{NetworkAlias, TapAlias, UplinkAlias};
use crate::docker::{self, Admission, Placed};
use crate::error::Error;
use crate::forwarding;
use crate::gc::remove_bridge_if_unused;
use crate::guard::Guard;
use crate::hold;
use crate::mac::MacAddr;
use crate::macvtap::{self, Macvtap};
use crate::mirror::{self, Mirror, MirrorError};
use crate::nft::{NftError, NftSocket};
use crate::ovs::{self, OvsPort};
use crate::policy::rules::Judged;
use crate::policy::{InForce, Policy};
use crate::refusal::Refusal;
use crate::rtnl::{Attachment, Rtnl};
use crate::rules::{self, Member};
use crate::services::{self, Ipv6Network, PREFIX_LEN, ServiceSpec};
use crate::shape::{self, Shape, ShapeError};
use crate::spec::{Forward, ForwardDelay, IfName, MacvtapMode, Subnet, Switch};
use crate::survey;
use crate::sysctl::{self, Conf};
use crate::tables::Tables;
use crate::tun::{self, QueueMode, TapKind};
use crate::uplink;
use crate::vlan::PortVlans;

/// The kernel's vhost-net: each opening is an instance, which serves one queue pair.
const VHOST: &str = "/dev/vhost-net";

/// Frames that wait in a queue of a tap at most: its length by default is half of that.
const QUEUED_MAX: usize = 1000;

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
        /// Its guarded cards on bridges of the host.
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

/// What steps work on, and what they leave for each other.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) rtnl: Rtnl,
    /// Taps by card.
    pub(crate) taps: BTreeMap<usize, Tap>,
    /// Descriptors of vhost-net by card, until they are handed over.
    pub(crate) vhosts: BTreeMap<usize, Vec<OwnedFd>>,
    /// Sockets that hold ports, by card.
    pub(crate) ports: BTreeMap<usize, Vec<OwnedFd>>,
    /// The sockets of services with what they say, by card, until they are handed over.
    pub(crate) services: BTreeMap<usize, (ServiceSpec, OwnedFd)>,
    /// The owner of the VM's tables, if it has some.
    pub(crate) tables: Option<Tables>,
    /// The policy that holds for its cards, if there is one.
    pub(crate) in_force: Option<InForce>,
    /// Rules of the VM in tables of Docker's.
    pub(crate) admitted: Vec<Placed>,
    /// The owner of the table that has frames copied, if there is one.
    pub(crate) mirrors: Option<NftSocket>,
    /// What says that a card's macvtap or port is in use, by card.
    pub(crate) claims: BTreeMap<usize, OwnedFd>,
    /// The owner of the table that has frames wait, if there is one.
    pub(crate) rates: Option<NftSocket>,
    /// Descriptors that the VMM inherited for `fd=`, by number.
    pub(crate) inherited: BTreeMap<RawFd, OwnedFd>,
}

/// A tap of a card.
#[derive(Debug)]
pub(crate) struct Tap {
    pub(crate) name: String,
    /// Its interface number, none if it may be in another namespace.
    pub(crate) index: Option<u32>,
    /// The driver that it is of.
    pub(crate) kind: TapKind,
    /// Its queues, until they are handed over.
    pub(crate) fds: Vec<OwnedFd>,
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

    /// What takes it back at the end, in words.
    pub fn undo_text(&self) -> String {
        match self {
            Self::CreateBridge { bridge, .. } | Self::ShareBridge { bridge } => {
                format!("remove bridge {bridge} if it has no ports left")
            }
            Self::PinAddress { .. } => "nothing, the address is the same".to_owned(),
            Self::CreateTap { .. } => "remove the tap".to_owned(),
            Self::RemoveLeftBehind { .. } | Self::RemoveOvsPort { .. } => "nothing, no VM has it".to_owned(),
            Self::CreateOvsPort { .. } => "remove the port and the tap".to_owned(),
            Self::CreateMacvtap { macvtap: Macvtap { lower, mode: MacvtapMode::Passthru, .. }, .. } => {
                format!("remove the macvtap, which gives {lower} its own address back")
            }
            Self::CreateMacvtap { .. } => "remove the macvtap".to_owned(),
            Self::AttachTap { .. } => "nothing, it goes with the tap".to_owned(),
            Self::TakeUplink { bridge, uplink, addresses, routes, .. } if addresses.is_empty() && *routes == 0 => {
                format!("with bridge {bridge}, release {uplink}")
            }
            Self::TakeUplink { bridge, uplink, .. } => {
                format!("with bridge {bridge}, move them back to {uplink} and release it")
            }
            Self::JoinVlans { link, .. } => format!("nothing, it ends when {link} leaves the bridge"),
            Self::StartStp { bridge, .. }
            | Self::FilterVlans { bridge }
            | Self::GiveGateway { bridge, .. }
            | Self::GiveGateway6 { bridge, .. }
            | Self::RouteLoopback { bridge } => {
                format!("nothing, it goes with bridge {bridge}")
            }
            Self::EnableForwarding { bridge, uplinks } if uplinks.is_empty() => {
                format!("nothing, it goes with bridge {bridge}")
            }
            Self::EnableForwarding { bridge, uplinks } => {
                format!("with bridge {bridge}, forward from {} no longer", names(uplinks))
            }
            Self::EnableForwarding6 { bridge, .. } => format!("with bridge {bridge}, forward IPv6 no longer"),
            Self::HoldPorts { .. } => "close them".to_owned(),
            Self::CreateTables { .. } => "remove them".to_owned(),
            Self::MirrorFrames { .. } => "copy them no longer".to_owned(),
            Self::HoldRates { .. } => "remove the interfaces where frames wait".to_owned(),
            Self::AdmitInDocker { .. } | Self::JudgeCard { .. } => "remove the rules".to_owned(),
            Self::OpenTap { .. } | Self::AdoptTap { .. } | Self::OpenVhost { .. } | Self::OpenServices { .. } => {
                "close it".to_owned()
            }
            Self::Raise { link } => format!("lower {link}"),
        }
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
            Self::EnableForwarding { bridge, uplinks } => (forwarding::enable(&host.rtnl, bridge, uplinks).await)
                .map_err(|source| Error::Forwarding { bridge: bridge.clone(), source }),
            Self::GiveGateway6 { bridge, network } => (give_gateway6(&host.rtnl, bridge, network).await)
                .map_err(|source| Error::GiveGateway { bridge: bridge.clone(), source }),
            Self::EnableForwarding6 { bridge, uplinks } => (forwarding::enable6(&host.rtnl, bridge, uplinks).await)
                .map_err(|source| Error::Forwarding { bridge: bridge.clone(), source }),
            Self::RouteLoopback { bridge } => sysctl::write(Conf::Ipv4, bridge.as_str(), "route_localnet", "1")
                .map_err(|source| Error::Forwarding { bridge: bridge.clone(), source }),
            Self::HoldPorts { card, forward, ipv6 } => {
                host.ports.insert(*card, hold::hold(forward, *ipv6)?);
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
                remove_bridge_if_unused(&host.rtnl, bridge).await
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

impl Host {
    /// A host that nothing has been done to.
    pub(crate) fn new(rtnl: Rtnl, inherited: BTreeMap<RawFd, OwnedFd>) -> Self {
        let (taps, vhosts, ports, services) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (tables, in_force, mirrors, rates) = (None, None, None, None);
        let (admitted, claims) = (Vec::new(), BTreeMap::new());
        Self { rtnl, taps, vhosts, ports, services, tables, in_force, mirrors, rates, admitted, claims, inherited }
    }

    /// Makes a card's tap a port of a bridge; also what puts it back when somebody took it away.
    pub(crate) async fn attach(&self, card: usize, bridge: &IfName, attachment: &Attachment) -> Result<(), Error> {
        let Some(Tap { name, index: Some(index), .. }) = self.taps.get(&card) else { return Ok(()) };
        let attach = async {
            let bridge_index = index_of(bridge.as_str())?;
            self.rtnl.attach(*index, bridge_index, attachment).await
        };
        let tap = name.clone();
        attach.await.map_err(|source| Error::AttachTap { tap, bridge: bridge.clone(), source })
    }

    fn create_tables(&mut self, vm: &str, members: &[Member], guards: &[Guard]) -> Result<(), Error> {
        let taps = &self.taps;
        let tables = rules::tables(vm, members, guards, |card| taps.get(&card)?.name.parse().ok());
        self.owner().and_then(|owner| owner.add(tables)).map_err(Error::Nftables)
    }

    /// What owns the VM's tables.
    pub(crate) fn owner(&mut self) -> Result<&mut Tables, NftError> {
        match &mut self.tables {
            Some(tables) => Ok(tables),
            none => Ok(none.insert(Tables::open()?)),
        }
    }

    fn remove_tables(&mut self) -> Result<(), NftError> {
        self.in_force = None;
        self.tables.take().map_or(Ok(()), Tables::remove)
    }

    /// The tap of a card as a policy can be enforced on it.
    pub(crate) fn judged_tap(&self, card: usize) -> Result<(IfName, TapKind), Refusal> {
        let tap = self.taps.get(&card).filter(|tap| tap.index.is_some());
        tap.and_then(|tap| Some((tap.name.parse().ok()?, tap.kind))).ok_or(Refusal::PolicyElsewhere { card })
    }

    /// Drops what has come for a card whose tap could take frames before anybody judged them. More of them than a tap holds are not there.
    fn forget_frames(&self, card: usize) {
        // The header of virtio-net has to fit.
        let mut head = [0; 64];
        for fd in self.taps.get(&card).into_iter().flat_map(|tap| &tap.fds) {
            // The rest of a frame is gone with its head; an error is that there is none.
            (0..QUEUED_MAX).take_while(|_| nix::unistd::read(fd, &mut head).is_ok()).for_each(drop);
        }
    }

    /// Has a policy hold for more cards of `vm`, which are all of them if it has none yet.
    pub(crate) fn judge(&mut self, vm: &str, policy: &Policy, cards: Vec<Judged>) -> Result<(), NftError> {
        let mut in_force = self.in_force.take().unwrap_or_else(|| InForce::new(policy.clone()));
        in_force.extend(self.owner()?, vm, cards)?;
        self.in_force = Some(in_force);
        Ok(())
    }

    /// Puts a policy in the place of the one before.
    pub(crate) fn replace_policy(&mut self, vm: &str, policy: Policy) -> Result<(), NftError> {
        let Some(mut in_force) = self.in_force.take() else { return Ok(()) };
        let result = self.owner().and_then(|owner| in_force.replace(owner, vm, policy));
        self.in_force = Some(in_force);
        result
    }

    async fn admit(&mut self, vm: &str, admissions: &[Admission], containers: &[IfName]) -> Result<(), Error> {
        let links = self.rtnl.links().await.map_err(Error::Survey)?;
        let links: Vec<_> = links.iter().filter_map(survey::link).collect();
        self.admitted = docker::admit(vm, admissions, containers, &links).map_err(Error::Docker)?;
        Ok(())
    }

    /// Most often the VMM's descriptors are closed and a tap has gone. A VMM that is being killed, or that calls stop() too early,
    /// still has it.
    async fn remove_tap(&mut self, card: usize) -> Result<(), Error> {
        let Some(Tap { name, index: Some(index), .. }) = self.taps.remove(&card) else { return Ok(()) };
        let removed = self.rtnl.remove(index).await.map_err(|source| Error::Remove { link: name, source });
        self.claims.remove(&card);
        removed
    }

    fn mirror(&mut self, vm: &str, mirrors: &[Mirror]) -> Result<(), Error> {
        let table = mirror::table(vm, mirrors, |card| {
            let tap = self.taps.get(&card)?;
            Some((tap.name.parse().ok()?, tap.kind))
        });
        let socket = mirror::open(table).map_err(|error| match error {
            MirrorError::NoHook => Refusal::NoMirrors.into(),
            MirrorError::Nft(source) => Error::Mirror(source),
        })?;
        self.mirrors = Some(socket);
        Ok(())
    }

    async fn hold_rates(&mut self, vm: &str, shapes: &[Shape]) -> Result<(), Error> {
        self.rates = Some(shape::hold(&self.rtnl, vm, shapes, &self.taps).await.map_err(|error| match error {
            ShapeError::Missing => Refusal::NoRates.into(),
            error => Error::HoldRates(error),
        })?);
        Ok(())
    }

    /// The taps are removed by an earlier step, and so undone later than this.
    async fn release_rates(&mut self, shapes: &[Shape]) -> Result<(), Error> {
        self.rates = None;
        let taps = shapes.iter().filter_map(|shape| self.taps.get(&shape.card)?.index);
        shape::release(&self.rtnl, taps).await.map_err(|source| Error::HoldRates(source.into()))
    }

    fn open_services(&mut self, card: usize, spec: &ServiceSpec) -> Result<(), Error> {
        let Some(Tap { name, index: Some(index), .. }) = self.taps.get(&card) else { return Ok(()) };
        let socket = services::open_socket(*index, spec);
        let socket = socket.map_err(|source| Error::OpenServices { tap: name.clone(), source })?;
        self.services.insert(card, (spec.clone(), socket));
        Ok(())
    }

    fn adopt(&mut self, tap: &str, fds: &[RawFd]) -> Result<Tap, Error> {
        let mut queues = Vec::new();
        for fd in fds {
            let queue = self.inherited.get(fd).map_or_else(
                || Err(io::Error::from_raw_os_error(libc::EBADF)),
                |queue| tun::adopt(queue).and_then(|()| queue.try_clone()),
            );
            queues.push(queue.map_err(|source| Error::AdoptTap { tap: tap.to_owned(), source })?);
        }
        let here = queues.first().is_some_and(tun::is_in_our_namespace);
        let index = if here { index_of(tap).ok() } else { None };
        Ok(Tap { name: tap.to_owned(), index, kind: TapKind::Tap, fds: queues })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateBridge { bridge, mac, mtu } => {
                write!(f, "create bridge {bridge} with address {mac} and mtu {mtu}, and raise it")
            }
            Self::ShareBridge { bridge } => write!(f, "share bridge {bridge}, which minivmm made"),
            Self::TakeUplink { bridge, uplink, addresses, routes, .. } => {
                write!(f, "make {uplink} a port of bridge {bridge}")?;
                match addresses.as_slice() {
                    [] if *routes == 0 => Ok(()),
                    [] => write!(f, ", which takes over {routes} routes"),
                    list => write!(f, ", which takes over {} and {routes} routes", list.join(", ")),
                }
            }
            Self::JoinVlans { link, vlans } => write!(f, "have {link} be {vlans} as well"),
            Self::StartStp { bridge, delay } => {
                write!(
                    f,
                    "have bridge {bridge} take part in a spanning tree with a forward delay of {} s",
                    delay.seconds()
                )
            }
            Self::FilterVlans { bridge } => write!(f, "have bridge {bridge} filter VLANs"),
            Self::PinAddress { bridge, mac } => write!(f, "keep the address of bridge {bridge} at {mac}"),
            Self::CreateTap { card, queues } => write!(f, "create a tap with {queues} queue pairs for card {card}"),
            Self::OpenVhost { card, queues } => {
                write!(f, "open {VHOST} for {queues} queue pairs of card {card}")
            }
            Self::AttachTap { card, bridge, mac, mtu, vlans, .. } => {
                write!(f, "attach the tap of card {card} to bridge {bridge} with address {mac} and mtu {mtu}, ")?;
                if let Some(vlans) = vlans {
                    write!(f, "{vlans}, ")?;
                }
                f.write_str("and raise it")
            }
            Self::GiveGateway { bridge, subnet, .. } => {
                write!(f, "give bridge {bridge} the address {}/{}", subnet.gateway(), subnet.prefix_len())
            }
            Self::EnableForwarding { bridge, uplinks } if uplinks.is_empty() => {
                write!(f, "forward packets from {bridge}")
            }
            Self::EnableForwarding { bridge, uplinks } => {
                write!(f, "forward packets from {bridge} and {}", names(uplinks))
            }
            Self::GiveGateway6 { bridge, network } => {
                write!(f, "give bridge {bridge} the addresses {}/64 and {}/64", network.gateway, network.link_local)
            }
            Self::EnableForwarding6 { uplinks, .. } if uplinks.is_empty() => write!(f, "forward IPv6"),
            Self::EnableForwarding6 { uplinks, .. } => {
                write!(f, "forward IPv6, and go on taking router advertisements on {}", names(uplinks))
            }
            Self::RouteLoopback { bridge } => write!(f, "let 127.0.0.0/8 reach the guests of {bridge}"),
            Self::HoldPorts { card, forward, .. } => {
                let texts: Vec<String> = forward.iter().map(ToString::to_string).collect();
                write!(f, "hold the host's ports of {} for card {card}", texts.join(" and "))
            }
            Self::CreateTables { vm, members, guards } => {
                let cards = members.iter().map(|member| member.card).chain(guards.iter().map(|guard| guard.card));
                let cards: Vec<String> = cards.map(|card| card.to_string()).collect();
                let name = |card: usize| format!("tap{card}").parse().ok();
                let tables = rules::tables(vm, members, guards, name);
                let families: Vec<String> = tables.iter().map(|table| table.name.family.to_string()).collect();
                write!(f, "create the nftables {} minivmm-{vm} for card {}", families.join(" and "), cards.join(", "))
            }
            Self::AdmitInDocker { admissions, .. } => {
                let guests: Vec<String> =
                    admissions.iter().map(|it| format!("{} on {}", it.address, it.bridge)).collect();
                write!(f, "let {} through in chain {} of Docker", guests.join(" and "), docker::CHAIN)
            }
            Self::HoldRates { shapes, .. } => {
                let texts = shapes.iter().map(|Shape { card, to_guest, from_guest }| {
                    format!("{}/{} bit/s of card {card}", to_guest.bits_per_s, from_guest.bits_per_s)
                });
                write!(f, "hold {}", texts.collect::<Vec<_>>().join(" and "))
            }
            Self::MirrorFrames { mirrors, .. } => {
                let copy = |mirror: &Mirror| format!("the frames of card {} to {}", mirror.card, mirror.to);
                write!(f, "copy {}", mirrors.iter().map(copy).collect::<Vec<_>>().join(" and "))
            }
            Self::JudgeCard { vm, card, policy, .. } => {
                let rules = policy.ingress.len() + policy.egress.len();
                write!(
                    f,
                    "create the nftables netdev minivmm-{vm}/policy{card}: {rules} rules of the policy for card {card}"
                )
            }
            Self::OpenServices { card, spec } => {
                write!(f, "answer DHCP and DNS of card {card}, which has {}", spec.ipv4.address)
            }
            Self::RemoveLeftBehind { link } => {
                write!(f, "remove macvtap {link}, which a VM that was killed with its keeper left behind")
            }
            Self::CreateMacvtap { card, macvtap: Macvtap { tap, lower, mode, mac, queues, .. } } => write!(
                f,
                "create macvtap {tap} on {lower} in mode {mode} with address {mac} and {queues} queue pairs for card {card}, \
                 and raise it"
            ),
            Self::RemoveOvsPort { port } => {
                write!(f, "remove Open vSwitch port {port}, which a VM that was killed with its keeper left behind")
            }
            Self::CreateOvsPort { card, port } => write!(f, "{port} for card {card}"),
            Self::OpenTap { card, tap, queues, .. } => {
                write!(f, "open tap {tap} with {queues} queue pairs for card {card}")
            }
            Self::AdoptTap { card, tap, fds } => {
                write!(f, "take over tap {tap} through {} descriptors for card {card}", fds.len())
            }
            Self::Raise { link } => write!(f, "raise {link}"),
        }
    }
}

/// Interfaces in a sentence.
fn names(links: &[IfName]) -> String {
    let names: Vec<&str> = links.iter().map(IfName::as_str).collect();
    names.join(", ")
}

/// Gives a bridge of ours its address and its name as a network.
async fn give_gateway(rtnl: &Rtnl, bridge: &IfName, subnet: Subnet, alias: &NetworkAlias) -> io::Result<()> {
    rtnl.set_alias(bridge.as_str(), &alias.to_string()).await?;
    // Without addresses of its own the host is not there for guests that speak IPv6, which have none but link-local ones.
    match sysctl::write(Conf::Ipv6, bridge.as_str(), "disable_ipv6", "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Guests reach each other by themselves; a packet that comes back to its network has been translated.
    sysctl::write(Conf::Ipv4, bridge.as_str(), "send_redirects", "0")?;
    rtnl.add_address(index_of(bridge.as_str())?, subnet.gateway().into(), subnet.prefix_len()).await
}

/// Gives a bridge of ours its IPv6 addresses, and none of its own making.
async fn give_gateway6(rtnl: &Rtnl, bridge: &IfName, network: &Ipv6Network) -> io::Result<()> {
    // 1: no address is generated (IN6_ADDR_GEN_MODE_NONE).
    sysctl::write(Conf::Ipv6, bridge.as_str(), "addr_gen_mode", "1")?;
    sysctl::write(Conf::Ipv6, bridge.as_str(), "disable_ipv6", "0")?;
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

/// Makes a tap and returns it with its interface number.
pub(crate) fn create_tap(name: &str, queues: u16) -> Result<(Tap, u32), Error> {
    let files = open_queues(queues)?;
    let name = tun::create(&files, name, QueueMode::for_queues(queues)).map_err(Error::CreateTap)?;
    let index = index_of(&name).map_err(Error::CreateTap)?;
    let fds = files.into_iter().map(OwnedFd::from).collect();
    Ok((Tap { name, index: Some(index), kind: TapKind::Tap, fds }, index))
}

fn open_tap(tap: &IfName, queues: u16, mode: QueueMode) -> Result<Tap, Error> {
    let files = open_queues(queues)?;
    for file in &files {
        tun::attach(file, tap.as_str(), mode).map_err(|source| match source.raw_os_error() {
            // The survey sees the users of a multi-queue tap only.
            Some(libc::EBUSY) => Refusal::TapBusy { name: tap.clone() }.into(),
            _ => Error::OpenTap { tap: tap.to_string(), source },
        })?;
    }
    let fds = files.into_iter().map(OwnedFd::from).collect();
    Ok(Tap { name: tap.to_string(), index: index_of(tap.as_str()).ok(), kind: TapKind::Tap, fds })
}

fn open_queues(queues: u16) -> Result<Vec<File>, Error> {
    (0..queues).map(|_| tun::open_device()).collect::<io::Result<_>>().map_err(Error::OpenTun)
}

pub(crate) fn index_of(name: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(name).map_err(io::Error::from)
}
