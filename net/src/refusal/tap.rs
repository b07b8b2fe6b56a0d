//! Taps and descriptors that a card cannot have.

use std::os::fd::RawFd;

use crate::spec::IfName;

/// Why `tap=` or `fd=` cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TapRefusal {
    /// No interface has the tap's name.
    #[error("Tap {name} does not exist")]
    Missing {
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
    SingleQueue {
        /// The tap.
        name: IfName,
        /// The requested number of queues.
        queues: u16,
    },
    /// Another process or card has the tap open.
    #[error("Tap {name} is held by another process or card")]
    Busy {
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
}

impl TapRefusal {
    /// The hint for the user.
    pub(super) fn hint(&self) -> String {
        match self {
            Self::Missing { name } => format!(
                "make it first (ip tuntap add {name} mode tap), or use --net bridge=NAME, which needs no tap of yours"
            ),
            Self::NotATap { .. } => "give the name of a tap; `ip tuntap show` lists them".to_owned(),
            Self::SingleQueue { name, .. } => format!(
                "leave queues= out, or make the tap with several queues: ip tuntap add {name} mode tap multi_queue"
            ),
            Self::Busy { .. } => "stop the process that holds it, or use another tap".to_owned(),
            Self::FdTaken { .. } => "give each card descriptors of its own".to_owned(),
            Self::FdClosed { .. } => "have the parent process leave the descriptor open across exec".to_owned(),
            Self::FdNotATap { .. } => {
                "pass a descriptor of /dev/net/tun after TUNSETIFF, or of a macvtap's /dev/tapN".to_owned()
            }
            Self::FdNotFrames { .. } => "open the tap with IFF_TAP and IFF_NO_PI".to_owned(),
            Self::FdWithoutHeader { .. } => "open the tap with IFF_VNET_HDR".to_owned(),
            Self::FdsOfTwoTaps { .. } => "give each tap a --net flag of its own".to_owned(),
        }
    }
}
