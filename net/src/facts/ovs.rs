//! Open vSwitch as far as a plan depends on it: its bridges, how they move frames, and why it may not be of use. Plain data.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::spec::IfName;

/// The program that changes it.
pub(crate) const PROGRAM: &str = "ovs-vsctl";

/// How long the database, and the switch itself, may take, in seconds. It takes some milliseconds, and a busy switch a second. The VMM waits
/// longer for its keeper.
pub(crate) const PATIENCE_S: u32 = 8;

/// What there is of Open vSwitch on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OvsFact {
    /// Nobody wants to know.
    #[default]
    NotAsked,
    /// It cannot be used.
    Trouble(OvsError),
    /// It can.
    There {
        /// Its bridges.
        bridges: Vec<String>,
        /// How those of them move frames that a request names.
        datapaths: BTreeMap<String, Datapath>,
        /// Ports of ours that nobody uses.
        left_behind: Vec<IfName>,
    },
}

/// How a bridge of Open vSwitch moves frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Datapath {
    /// By the kernel's module, which gets what comes in through a tap after the rules on the tap (`netdev_frame_hook`,
    /// net/openvswitch/vport-netdev.c).
    #[default]
    Kernel,
    /// By traffic control for flows that are known (`other_config:hw-offload`), also without hardware for it. It comes before rules on
    /// the tap, and what it passes on to another one skips the rules there (`nf_skip_egress`, net/core/dev.c).
    TrafficControl,
    /// By `ovs-vswitchd` (`datapath_type=netdev`). Its packet socket gets a copy of what comes in through a tap before any rule, as the guest
    /// has left it: nobody segments it or completes its checksums.
    User,
}

impl Datapath {
    /// Whether rules on a tap see all frames that get from there to the bridge and back.
    pub fn heeds_rules(self) -> bool {
        self == Self::Kernel
    }

    /// Whether it takes frames that are not ready for the wire.
    pub(crate) fn completes_frames(self) -> bool {
        self != Self::User
    }
}

impl fmt::Display for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "the kernel",
            Self::TrafficControl => "traffic control (other_config:hw-offload)",
            Self::User => "a process (datapath_type=netdev)",
        })
    }
}

/// Why Open vSwitch does not do what is asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OvsError {
    /// No program.
    #[error("Open vSwitch is not installed: there is no {PROGRAM} in PATH")]
    Missing,
    /// No database.
    #[error("The database of Open vSwitch cannot be reached ({0})")]
    Unreachable(String),
    /// The database is there, and nobody acts on it.
    #[error("Open vSwitch has not answered for {PATIENCE_S} s")]
    Silent,
    /// Anything else.
    #[error("Open vSwitch says: {0}")]
    Said(String),
}

impl OvsError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Missing => "install it (apt install openvswitch-switch), or use --net bridge=NAME",
            Self::Unreachable(_) => {
                "start it (systemctl start openvswitch-switch), and run minivmm as a user who may open its socket; OVS_RUNDIR says \
                 where that is if it is not in /var/run/openvswitch"
            }
            Self::Silent => "see whether ovs-vswitchd runs: systemctl status ovs-vswitchd",
            Self::Said(text) if text.contains("No such device") => {
                "run minivmm in the network namespace in which ovs-vswitchd runs"
            }
            Self::Said(_) => return None,
        };
        Some(hint.to_owned())
    }
}
