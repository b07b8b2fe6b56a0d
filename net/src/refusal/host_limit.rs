//! Limits of the host that a start would hit half-way; the plan refuses them in advance.

use crate::spec::IfName;

/// The least MTU of IPv6 in bytes (RFC 8200 5): the kernel has no IPv6 on an interface with less.
pub const IPV6_MTU_MIN: u16 = 1280;

/// The kernel's limit of ports of a bridge: ten-bit numbers without 0 (`BR_MAX_PORTS`, net/bridge/br_private.h).
pub const BRIDGE_PORTS_MAX: usize = (1 << 10) - 1;

/// Bytes of a link's alias (`IFALIASZ` of linux/if.h less the closing zero).
pub const ALIAS_BYTES_MAX: usize = 255;

/// A limit of the host that a plan would exceed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostLimit {
    /// `ipv6=on` on a kernel without IPv6.
    #[error("The kernel of this host has IPv6 switched off, and ipv6=on needs it")]
    NoIpv6,
    /// `ipv6=on` where the MTU is below the IPv6 minimum.
    #[error("ipv6=on needs an MTU of {IPV6_MTU_MIN}, and {link} carries {mtu}")]
    MtuBelowIpv6 {
        /// The network's bridge, or the interface that leads out.
        link: String,
        /// Its MTU in bytes.
        mtu: u16,
    },
    /// A bridge with no free port.
    #[error("Bridge {bridge} has {ports} ports, and the kernel gives a bridge {BRIDGE_PORTS_MAX} at most")]
    BridgeFull {
        /// The bridge.
        bridge: IfName,
        /// The number of ports, with those of the plan.
        ports: usize,
    },
    /// More interfaces to forward on than the bridge's alias can list for the teardown.
    #[error("NAT would switch forwarding on for {count} interfaces, more than can be noted for switching it off again")]
    TooManyUplinks {
        /// Their number.
        count: usize,
    },
    /// More descriptors than the process may open.
    #[error("The cards of this VM take {needed} descriptors, and the limit of this process is {limit}")]
    Descriptors {
        /// The number needed, at least.
        needed: u64,
        /// `RLIMIT_NOFILE`.
        limit: u64,
    },
}

impl HostLimit {
    /// The hint for the user.
    pub fn hint(&self) -> String {
        match self {
            Self::NoIpv6 => {
                "leave ipv6=on out, or boot without ipv6.disable=1 and with CONFIG_IPV6 (modprobe ipv6)".to_owned()
            }
            Self::MtuBelowIpv6 { link, .. } => {
                format!(
                    "leave ipv6=on out, or raise the MTU: ip link set {link} mtu {IPV6_MTU_MIN}, and mtu= of the card"
                )
            }
            Self::BridgeFull { .. } => "put the VM on another bridge".to_owned(),
            Self::TooManyUplinks { .. } => "switch it on yourself: sysctl -w net.ipv4.ip_forward=1".to_owned(),
            Self::Descriptors { needed, .. } => format!(
                "raise the limit (ulimit -Hn {needed}, or LimitNOFILE={needed} in a unit), or ask for fewer queues \
                 and forwarded ports"
            ),
        }
    }
}
