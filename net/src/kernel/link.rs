//! The link of a card: whether the host's interface forwards frames, and its reported speed.
//!
//! A tap passes frames while it is up and has a carrier. As a bridge port, it also needs the bridge up and the port
//! forwarding. While the bridge waits for its spanning tree, the guest sees its link down and holds its first frames
//! back until they can be received.

use std::fmt;
use std::io;
use std::net::IpAddr;

use rtnetlink::packet_route::link::{
    BridgePortState, InfoBridgePort, InfoPortData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use serde::{Deserialize, Serialize};

use crate::identity::mac::RawMac;
use crate::kernel::rtnl::is_up;

/// Another machine with a MAC or IP address of a guest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Conflict {
    /// The guest's MAC.
    Mac {
        /// The bridge port behind which the machine is.
        port: String,
    },
    /// An IP address of the guest.
    Address {
        /// The address.
        ip: IpAddr,
        /// The MAC that claims it.
        mac: RawMac,
    },
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac { port } => write!(f, "its MAC address is used behind port {port} as well"),
            Self::Address { ip, mac: [a, b, c, d, e, g] } => {
                write!(f, "{ip} is used by {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x} as well")
            }
        }
    }
}

/// The index of an interface.
///
/// # Errors
/// No interface has this name.
pub(crate) fn index_of(name: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(name).map_err(io::Error::from)
}

/// The link state of a card's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkState {
    /// True if frames pass.
    pub up: bool,
    /// Mbit/s; none if unknown.
    pub speed: Option<u32>,
    /// None if unknown.
    pub duplex: Option<Duplex>,
}

/// The duplex mode of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Duplex {
    /// One side sends at a time.
    Half,
    /// Both sides send at once.
    Full,
}

impl LinkState {
    /// A link that is down.
    pub(crate) const DOWN: Self = Self { up: false, speed: None, duplex: None };
}

/// True if `tap`, a port of `master` if given, passes frames.
pub(crate) fn passes(tap: &LinkMessage, master: Option<&LinkMessage>) -> bool {
    let up = LinkFlags::Up | LinkFlags::LowerUp;
    // The master's own carrier follows from that of its ports.
    tap.header.flags.contains(up) && forwards(tap) && master.is_none_or(|master| is_up(master) || is_ovs(master))
}

/// True for an Open vSwitch datapath, which passes frames while its interface is down.
fn is_ovs(master: &LinkMessage) -> bool {
    let infos = master.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let is_ovs = |info: &LinkInfo| matches!(info, LinkInfo::Kind(kind) if kind.to_string() == "openvswitch");
    infos.flatten().any(is_ovs)
}

/// True if the bridge port is in forwarding state, or the link is not a bridge port.
fn forwards(port: &LinkMessage) -> bool {
    let infos = port.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let settings = infos.flatten().filter_map(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(settings)) => Some(settings),
        _ => None,
    });
    let mut states = settings.flatten().filter_map(|setting| match setting {
        InfoBridgePort::State(state) => Some(*state),
        _ => None,
    });
    states.all(|state| state == BridgePortState::Forwarding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(flags: LinkFlags) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.flags = flags;
        link
    }

    fn port(state: BridgePortState) -> LinkMessage {
        let mut port = link(LinkFlags::Up | LinkFlags::LowerUp);
        let data = InfoPortData::BridgePort(vec![InfoBridgePort::Priority(32), InfoBridgePort::State(state)]);
        port.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::PortData(data)]));
        port
    }

    #[test]
    fn tap_alone_passes_frames_while_it_is_up_and_has_a_carrier() {
        for (flags, up) in [
            (LinkFlags::Up | LinkFlags::LowerUp, true),
            (LinkFlags::Up, false),
            (LinkFlags::LowerUp, false),
            (LinkFlags::empty(), false),
        ] {
            assert_eq!(passes(&link(flags), None), up, "{flags:?}");
        }
    }

    #[test]
    fn port_passes_frames_while_it_forwards() {
        let bridge = link(LinkFlags::Up);
        for (state, up) in [
            (BridgePortState::Forwarding, true),
            (BridgePortState::Disabled, false),
            (BridgePortState::Listening, false),
            (BridgePortState::Learning, false),
            (BridgePortState::Blocking, false),
        ] {
            assert_eq!(passes(&port(state), Some(&bridge)), up, "{state:?}");
        }
    }

    #[test]
    fn open_vswitch_passes_frames_while_its_interface_is_down() {
        use rtnetlink::packet_route::link::InfoKind;
        let mut master = link(LinkFlags::empty());
        let kind = InfoKind::Other("openvswitch".to_owned());
        master.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
        assert!(passes(&link(LinkFlags::Up | LinkFlags::LowerUp), Some(&master)));
    }

    #[test]
    fn bridge_that_is_down_passes_nothing() {
        let bridge = link(LinkFlags::empty());
        assert!(!passes(&port(BridgePortState::Forwarding), Some(&bridge)));
    }
}
