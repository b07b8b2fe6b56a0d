//! Steps in words: what each does, and what takes it back.

use std::fmt;

use super::{Step, VHOST};
use crate::host::docker;
use crate::host::macvtap::Macvtap;
use crate::host::mirror::Mirror;
use crate::host::rates::Shape;
use crate::rules;
use crate::spec::{Connections, IfName, MacvtapMode};

impl Step {
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
                write!(f, "create the nftables {} minivmm-{vm} for card {}", families.join(" and "), cards.join(", "))?;
                for member in members {
                    let connections = member.limits.connections.map_or(0, Connections::get);
                    write!(f, ", card {} reaching {}", member.card, member.reach)?;
                    write!(f, " with at most {connections} connections")?;
                }
                Ok(())
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
