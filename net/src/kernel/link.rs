//! The link of a card: whether the host's interface passes its frames on, and how fast it says it is.
//!
//! A tap passes frames on while it is up and has a carrier, and, where it is a port, while its bridge is up and has the port
//! forward. So it does not while the bridge waits for its spanning tree, which tells the guest to wait with its first words
//! until somebody can hear them.

use std::fmt;
use std::io;
use std::net::IpAddr;

use rtnetlink::packet_route::link::{
    BridgePortState, InfoBridgePort, InfoPortData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use serde::{Deserialize, Serialize};

use crate::identity::mac::RawMac;
use crate::kernel::rtnl::is_up;

/// Another machine with an address of a guest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Conflict {
    /// With its MAC.
    Mac {
        /// Behind this port of its bridge.
        port: String,
    },
    /// With an IP address of it.
    Address {
        /// The address.
        ip: IpAddr,
        /// Who says to have it.
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

/// The number of an interface.
///
/// # Errors
/// There is none with this name.
pub(crate) fn index_of(name: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(name).map_err(io::Error::from)
}

/// What is to be known of a card's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkState {
    /// Whether frames pass.
    pub up: bool,
    /// Mbit/s, none if unknown.
    pub speed: Option<u32>,
    /// None if unknown.
    pub duplex: Option<Duplex>,
}

/// Whether both sides can send at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Duplex {
    /// One at a time.
    Half,
    /// Both.
    Full,
}

impl LinkState {
    /// A link that is down.
    pub(crate) const DOWN: Self = Self { up: false, speed: None, duplex: None };
}

/// Whether `tap`, a port of `master` if that is given, passes frames on.
pub(crate) fn passes(tap: &LinkMessage, master: Option<&LinkMessage>) -> bool {
    let up = LinkFlags::Up | LinkFlags::LowerUp;
    // The master's own carrier follows from its ports'.
    tap.header.flags.contains(up) && forwards(tap) && master.is_none_or(|master| is_up(master) || is_ovs(master))
}

/// Whether it stands for a data path of Open vSwitch, which passes frames on while its interface is down.
fn is_ovs(master: &LinkMessage) -> bool {
    let infos = master.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let is_ovs = |info: &LinkInfo| matches!(info, LinkInfo::Kind(kind) if kind.to_string() == "openvswitch");
    infos.flatten().any(is_ovs)
}

/// Whether a bridge would have the port forward; a link that is no port of a bridge has nobody to forbid it.
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
