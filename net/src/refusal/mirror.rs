//! Interfaces that frames of a card cannot be mirrored to.

use crate::spec::IfName;

/// Why `mirror=` cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MirrorRefusal {
    /// No interface has the mirror's name.
    #[error("mirror={name} does not exist")]
    Missing {
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
    Loop {
        /// The name.
        name: IfName,
        /// The card's bridge.
        bridge: String,
    },
    /// The card's frames go there anyway.
    #[error("mirror={name} is the interface that the card is on")]
    OfItself {
        /// The name.
        name: IfName,
    },
    /// The interface is down.
    #[error("mirror={name} is down")]
    Down {
        /// The name.
        name: IfName,
    },
    /// The rules would have to be in another network namespace.
    #[error("mirror= is for taps of this network namespace")]
    Elsewhere,
    /// A kernel older than Linux 5.16, or without `CONFIG_NETFILTER_EGRESS`.
    #[error("The kernel of this host cannot mirror the frames that leave by an interface")]
    NoEgressHook,
}

impl MirrorRefusal {
    /// The hint for the user.
    pub(super) fn hint(&self) -> String {
        match self {
            Self::Missing { .. } => "give the name of an interface; `ip link` lists them".to_owned(),
            Self::NotAMirror { .. } => "give an Ethernet card, a bridge, or an end of a veth pair".to_owned(),
            Self::Loop { .. } | Self::OfItself { .. } => "give an interface that does not lead to the card".to_owned(),
            Self::Down { name } => format!("raise it: ip link set {name} up"),
            Self::Elsewhere => "leave mirror= out, or run minivmm where the tap is".to_owned(),
            Self::NoEgressHook => {
                "use capture=FILE, or boot Linux 5.16 or later with CONFIG_NETFILTER_EGRESS, as those of \
                 distributions are"
                    .to_owned()
            }
        }
    }
}
