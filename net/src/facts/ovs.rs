//! Open vSwitch as far as a plan depends on it: its bridges, their datapaths, and why it may be unusable. Plain data.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::spec::IfName;

/// The program that configures it.
pub(crate) const PROGRAM: &str = "ovs-vsctl";

/// Timeout for the database and for the switch itself, in seconds. The database answers in milliseconds, a busy switch
/// in a second. The VMM waits longer for its keeper.
pub(crate) const TIMEOUT_S: u32 = 8;

/// The state of Open vSwitch on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OvsFact {
    /// No card of the request needs it.
    #[default]
    NotAsked,
    /// It cannot be used.
    Trouble(OvsError),
    /// It can be used.
    There {
        /// Its bridges.
        bridges: Vec<String>,
        /// Datapaths of the bridges that a request names.
        datapaths: BTreeMap<String, Datapath>,
        /// Ports of ours that no process uses.
        left_behind: Vec<IfName>,
    },
}

/// How an Open vSwitch bridge moves frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Datapath {
    /// By the kernel's module, which gets a tap's frames after the rules on the tap (`netdev_frame_hook`,
    /// net/openvswitch/vport-netdev.c).
    #[default]
    Kernel,
    /// By traffic control for known flows (`other_config:hw-offload`), also without hardware for it. It comes before
    /// the rules on the tap, and frames that it passes on to another tap skip the rules there (`nf_skip_egress`,
    /// net/core/dev.c).
    TrafficControl,
    /// By `ovs-vswitchd` (`datapath_type=netdev`). Its packet socket gets a copy of a tap's frames before any rule, as
    /// the guest sent them: not segmented, and with incomplete checksums.
    User,
}

impl Datapath {
    /// True if rules on a tap see all frames between the tap and the bridge.
    pub fn heeds_rules(self) -> bool {
        self == Self::Kernel
    }

    /// True if it accepts frames that are still to be segmented or checksummed.
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

/// Reasons why Open vSwitch does not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OvsError {
    /// The program is not installed.
    #[error("Open vSwitch is not installed: there is no {PROGRAM} in PATH")]
    Missing,
    /// The database cannot be reached.
    #[error("Cannot reach the database of Open vSwitch: {0}")]
    Unreachable(String),
    /// The database answers, but no switch acts on it.
    #[error("Cannot reach Open vSwitch: it has not answered for {TIMEOUT_S} s")]
    Silent,
    /// Any other error, in the words of the program or the kernel.
    #[error("Open vSwitch failed: {0}")]
    Failed(String),
}

impl OvsError {
    /// A hint for the user.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Missing => "install it (apt install openvswitch-switch), or use --net bridge=NAME",
            Self::Unreachable(_) => {
                "start it (systemctl start openvswitch-switch), and run minivmm as a user who may open its socket; set \
                 OVS_RUNDIR if that is not in /var/run/openvswitch"
            }
            Self::Silent => "check that ovs-vswitchd runs: systemctl status ovs-vswitchd",
            Self::Failed(text) if text.contains("No such device") => {
                "run minivmm in the network namespace in which ovs-vswitchd runs"
            }
            Self::Failed(_) => return None,
        };
        Some(hint.to_owned())
    }
}
