//! Interfaces that a macvtap cannot be on.

use crate::spec::IfName;

/// Why `macvtap=` cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacvtapRefusal {
    /// No interface has the name.
    #[error("Interface {name} does not exist")]
    Missing {
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
    Down {
        /// The interface.
        name: IfName,
    },
    /// A device or card has the interface for itself, or this card wants it so and is not alone.
    #[error("{name} is used by {by}{}", if *.alone { " alone (mode=passthru)" } else { "" })]
    Busy {
        /// The interface.
        name: IfName,
        /// The device or card that uses it.
        by: String,
        /// True if it has the interface for itself.
        alone: bool,
    },
    /// The survey found no name for a new macvtap.
    #[error("There is no name for a new macvtap")]
    NoSpareName,
}

impl MacvtapRefusal {
    /// The hint for the user.
    pub(super) fn hint(&self) -> String {
        match self {
            Self::Missing { interfaces, .. } if interfaces.is_empty() => {
                "give the name of an interface; `ip link` lists them".to_owned()
            }
            Self::Missing { interfaces, .. } => format!("use one that exists: {}", interfaces.join(", ")),
            Self::NotForMacvtap { .. } => {
                "give the name of an interface that carries Ethernet frames to other machines; `ip link` lists them"
                    .to_owned()
            }
            Self::HasMaster { master, is_bridge: true, .. } => {
                format!("put the card on the bridge: --net bridge={master}")
            }
            Self::HasMaster { master, .. } => format!("use that: --net macvtap={master}"),
            Self::Wireless { .. } => "use --net nat, or an interface with a wire".to_owned(),
            Self::Down { name } => format!("raise it first: ip link set {name} up"),
            Self::Busy { alone: true, .. } => "free the interface, or use another".to_owned(),
            Self::Busy { .. } => "free the interface, or share it: mode=bridge".to_owned(),
            Self::NoSpareName => "this is a bug in minivmm: the survey skipped the name".to_owned(),
        }
    }
}
