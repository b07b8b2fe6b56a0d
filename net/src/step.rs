//! The changes that a plan can consist of. Knows how to make and undo each on the host; not why a plan has it, nor who
//! applies it.
//!
//! A kind of step is one file: its data, `apply`, `undo` and the words for both. A new one takes a file and a line in
//! the list below. Each step's own undo takes back what it applied; where the kernel does that with another object (the
//! settings of a bridge of ours go with the bridge), the file says with which.

mod admit_in_docker;
mod adopt_tap;
mod applied;
mod apply_policy;
mod attach_tap;
mod create_bridge;
mod create_macvtap;
mod create_ovs_port;
mod create_tables;
mod create_tap;
mod enable_forwarding;
mod enable_forwarding6;
mod filter_vlans;
mod give_gateway;
mod give_gateway6;
mod join_vlans;
mod kind;
mod limit_rates;
mod mirror_frames;
mod open_services;
mod open_tap;
mod open_vhost;
mod pin_address;
mod raise;
mod remove_left_behind;
mod remove_ovs_port;
mod reserve_ports;
mod route_loopback;
mod share_bridge;
mod start_stp;
mod take_uplink;
mod text;

use std::fmt;

use serde::Serialize;

use crate::error::Error;
use crate::spec::IfName;
pub use admit_in_docker::AdmitInDocker;
pub use adopt_tap::AdoptTap;
pub(crate) use applied::Applied;
pub use apply_policy::ApplyPolicy;
pub use attach_tap::AttachTap;
pub use create_bridge::CreateBridge;
pub use create_macvtap::CreateMacvtap;
pub use create_ovs_port::CreateOvsPort;
pub use create_tables::CreateTables;
pub use create_tap::CreateTap;
pub use enable_forwarding::EnableForwarding;
pub use enable_forwarding6::EnableForwarding6;
pub use filter_vlans::FilterVlans;
pub use give_gateway::GiveGateway;
pub use give_gateway6::GiveGateway6;
pub use join_vlans::JoinVlans;
use kind::Kind as _;
pub use limit_rates::LimitRates;
pub use mirror_frames::MirrorFrames;
pub use open_services::OpenServices;
pub use open_tap::OpenTap;
pub use open_vhost::OpenVhost;
pub use pin_address::PinAddress;
pub use raise::Raise;
pub use remove_left_behind::RemoveLeftBehind;
pub use remove_ovs_port::RemoveOvsPort;
pub use reserve_ports::ReservePorts;
pub use route_loopback::RouteLoopback;
pub use share_bridge::ShareBridge;
pub use start_stp::StartStp;
pub use take_uplink::TakeUplink;

/// Makes the enum of steps from the list of kinds.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident,)+) => {
        /// One change of the host.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize)]
        #[serde(tag = "step", rename_all = "kebab-case")]
        pub enum Step {
            $($(#[$doc])* $kind($kind),)+
        }

        /// The names of all kinds.
        pub const KINDS: &[&str] = &[$(stringify!($kind)),+];

        impl Step {
            /// The name of its kind.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Self::$kind(_) => stringify!($kind),)+
                }
            }

            /// Changes the host.
            pub(crate) async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
                match self {
                    $(Self::$kind(step) => step.apply(made).await,)+
                }
            }

            /// Undoes [`apply`](Self::apply), even if it failed half-way.
            pub(crate) async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
                match self {
                    $(Self::$kind(step) => step.undo(made).await,)+
                }
            }

            /// Describes its undo in words.
            pub fn undo_text(&self) -> String {
                match self {
                    $(Self::$kind(step) => step.undo_text(),)+
                }
            }
        }

        impl fmt::Display for Step {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$kind(step) => step.fmt(f),)+
                }
            }
        }

        $(impl From<$kind> for Step {
            fn from(step: $kind) -> Self {
                Self::$kind(step)
            }
        })+
    };
}

kinds! {
    /// Make a bridge that is ours.
    CreateBridge,
    /// Share a bridge that another VM made, and the duty to remove it.
    ShareBridge,
    /// Make an interface of the host a port of a bridge of ours.
    TakeUplink,
    /// Have a port of a bridge carry VLANs beside those that it carries.
    JoinVlans,
    /// Have a new bridge take part in a spanning tree.
    StartStp,
    /// Have a bridge of ours keep VLANs apart.
    FilterVlans,
    /// Set the address that a bridge has, so that it does not follow its ports.
    PinAddress,
    /// Make a bridge of ours the gateway of a network.
    GiveGateway,
    /// Let packets pass between a network of ours and the rest of the world.
    EnableForwarding,
    /// Make a bridge of ours the IPv6 gateway of a network.
    GiveGateway6,
    /// Let IPv6 packets pass through the host.
    EnableForwarding6,
    /// Let packets of the host's loopback address reach guests of a network of ours.
    RouteLoopback,
    /// Take the host's ports that lead to a guest.
    ReservePorts,
    /// Make the nftables of a VM, which go with keeper and VMM.
    CreateTables,
    /// Have Docker's rules let the cards behind NAT through, in the chain that Docker leaves to others.
    AdmitInDocker,
    /// Have the kernel copy the frames of cards, for as long as the keeper lives.
    MirrorFrames,
    /// Enforce a policy on a card until keeper and VMM have gone.
    ApplyPolicy,
    /// Have the kernel limit the rates of cards.
    LimitRates,
    /// Open the socket on which a card's services answer.
    OpenServices,
    /// Make a tap named by the kernel, which goes with its last descriptor.
    CreateTap,
    /// Open the kernel's vhost-net.
    OpenVhost,
    /// Make the card's new tap a port of a bridge and raise it.
    AttachTap,
    /// Remove a macvtap of ours that is out of use.
    RemoveLeftBehind,
    /// Make a macvtap, open its queues and raise it.
    CreateMacvtap,
    /// Remove a port of ours in Open vSwitch that is out of use.
    RemoveOvsPort,
    /// Make a tap and have Open vSwitch take it as a port.
    CreateOvsPort,
    /// Open a tap that exists.
    OpenTap,
    /// Take over the descriptors of an open tap.
    AdoptTap,
    /// Raise an interface.
    Raise,
}

impl Step {
    /// The bridge that this step prepares.
    pub(crate) fn bridge(&self) -> Option<&IfName> {
        match self {
            Self::CreateBridge(CreateBridge { bridge, .. })
            | Self::ShareBridge(ShareBridge { bridge })
            | Self::PinAddress(PinAddress { bridge, .. }) => Some(bridge),
            _ => None,
        }
    }
}
