//! The errors of a plan that meets the host, each with its hint. Knows the errors of every object of the host, and no
//! step.
//!
//! The plan refuses what it can see beforehand. Only an attempt shows the rest: modules that the kernel does not load,
//! privileges, limits of the process, and hosts that change meanwhile. Each errno that can still occur has a hint that
//! names the module, the setting or the limit.

mod errno;
mod keeper;
#[cfg(test)]
mod tests;

use std::io;

use serde::{Deserialize, Serialize};

use crate::facts::ovs::OvsError;
use crate::host::bridge::BridgeError;
use crate::host::ports::PortError;
use crate::host::rates::RateError;
use crate::host::tap::TapError;
use crate::host::uplink::MoveError;
use crate::kernel::nft::NftError;
use crate::refusal::{Refusal, TapRefusal};
use crate::spec::{IfName, Protocol};

pub use keeper::KeeperError;

/// Why the cards of a VM could not be made, kept or taken away.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plan refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The keeper failed, and has undone its steps.
    #[error("{}", .0.message)]
    Reported(Report),
    /// The keeper cannot be started or reached.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The event loop cannot be made.
    #[error("Cannot start an event loop")]
    Runtime(#[source] io::Error),
    /// The keeper's netlink connection.
    #[error("Cannot open an rtnetlink socket")]
    Connect(#[source] io::Error),
    /// The kernel did not answer the survey.
    #[error("Cannot read the interfaces of this host")]
    Survey(#[source] io::Error),
    /// `/dev/net/tun`.
    #[error("Cannot open /dev/net/tun")]
    OpenTun(#[source] io::Error),
    /// `/dev/vhost-net`.
    #[error("Cannot open /dev/vhost-net")]
    OpenVhost(#[source] io::Error),
    /// `TUNSETIFF` for a new tap.
    #[error("Cannot create a tap")]
    CreateTap(#[source] io::Error),
    /// `TUNSETIFF` for a tap that exists.
    #[error("Cannot open tap {tap}")]
    OpenTap {
        /// The tap.
        tap: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The descriptor of a tap cannot be prepared.
    #[error("Cannot prepare the inherited tap {tap}")]
    AdoptTap {
        /// The tap.
        tap: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A plan whose steps are out of order: a defect in minivmm.
    #[error("Cannot find the tap of card {card} in this network namespace")]
    NoTap {
        /// The card.
        card: usize,
    },
    /// `RTM_SETLINK` with bridge, address and MTU.
    #[error("Cannot attach tap {tap} to bridge {bridge}")]
    AttachTap {
        /// The tap.
        tap: String,
        /// The bridge.
        bridge: IfName,
        /// The kernel's error.
        source: io::Error,
    },
    /// `RTM_NEWLINK` of a macvtap, and its settings.
    #[error("Cannot create a macvtap on {lower}")]
    CreateMacvtap {
        /// The interface.
        lower: IfName,
        /// The kernel's error.
        source: io::Error,
    },
    /// The character device of a macvtap.
    #[error("Cannot open the device of macvtap {tap}")]
    OpenMacvtap {
        /// The macvtap.
        tap: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// Adding a port to Open vSwitch.
    #[error("Cannot add a port to Open vSwitch bridge {bridge}")]
    AddOvsPort {
        /// The bridge.
        bridge: IfName,
        /// The cause.
        source: OvsError,
    },
    /// Removing a port from Open vSwitch.
    #[error("Cannot remove Open vSwitch port {port}")]
    RemoveOvsPort {
        /// The port.
        port: IfName,
        /// The cause.
        source: OvsError,
    },
    /// `RTM_NEWLINK` of a bridge.
    #[error("Cannot create bridge {bridge}")]
    CreateBridge {
        /// The bridge.
        bridge: IfName,
        /// The kernel's error.
        source: io::Error,
    },
    /// `RTM_SETLINK` with `IFLA_BR_STP_STATE`.
    #[error("Cannot enable STP on bridge {bridge}")]
    StartStp {
        /// The bridge.
        bridge: IfName,
        /// The kernel's error.
        source: io::Error,
    },
    /// `RTM_SETLINK` with `IFLA_BR_VLAN_FILTERING`.
    #[error("Cannot enable VLAN filtering on bridge {bridge}")]
    FilterVlans {
        /// The bridge.
        bridge: IfName,
        /// The kernel's error.
        source: io::Error,
    },
    /// `RTM_SETLINK` with the VLANs of an uplink.
    #[error("Cannot add VLANs to {link}")]
    JoinVlans {
        /// The port.
        link: IfName,
        /// The kernel's error.
        source: io::Error,
    },
    /// Making an interface the port of a bridge of ours.
    #[error("Cannot take {uplink} as uplink")]
    TakeUplink {
        /// The interface.
        uplink: String,
        /// The cause.
        source: MoveError,
    },
    /// Giving an interface back the addresses and routes that its bridge took over.
    #[error("Cannot give {uplink} back the addresses and routes that bridge {bridge} has from it")]
    GiveBack {
        /// The bridge.
        bridge: String,
        /// The interface.
        uplink: String,
        /// The cause.
        source: MoveError,
    },
    /// `RTM_SETLINK` with the bridge's own address.
    #[error("Cannot pin the MAC address of bridge {bridge}")]
    PinAddress {
        /// The bridge.
        bridge: IfName,
        /// The kernel's error.
        source: io::Error,
    },
    /// `RTM_SETLINK` with up.
    #[error("Cannot set {link} up")]
    Raise {
        /// The interface.
        link: IfName,
        /// The kernel's error.
        source: io::Error,
    },
    /// `RTM_SETLINK` with down.
    #[error("Cannot set {link} down")]
    Lower {
        /// The interface.
        link: IfName,
        /// The kernel's error.
        source: io::Error,
    },
    /// `RTM_DELLINK`.
    #[error("Cannot remove {link}")]
    Remove {
        /// The interface.
        link: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The address, alias or settings of a network's bridge.
    #[error("Cannot set up bridge {bridge} as a gateway")]
    GiveGateway {
        /// The bridge.
        bridge: IfName,
        /// The kernel's error.
        source: io::Error,
    },
    /// The sysctls of `net.ipv4.conf`.
    #[error("Cannot set the forwarding sysctls for bridge {bridge}")]
    Forwarding {
        /// The bridge.
        bridge: IfName,
        /// The kernel's error.
        source: io::Error,
    },
    /// The socket that reserves a port of the host.
    #[error("Cannot reserve {} port {port} of this host", .protocol.name())]
    ReservePort {
        /// Its protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
        /// The kernel's error.
        source: io::Error,
    },
    /// The VM's tables.
    #[error("Cannot change the nftables of this VM")]
    Nftables(#[source] NftError),
    /// The chains of other programs.
    #[error("Cannot read the nftables of this host")]
    ReadNftables(#[source] NftError),
    /// The tables' descriptor cannot be handed to the VMM.
    #[error("Cannot hand the nf_tables socket to the VMM")]
    ShareTables(#[source] io::Error),
    /// The rules in `DOCKER-USER`, Docker's chain for rules of other programs.
    #[error("Cannot change the rules of VMs in Docker's chain DOCKER-USER")]
    Docker(#[source] NftError),
    /// The rate limit of a card on vhost-net.
    #[error("Cannot limit the rates of a card on its tap")]
    LimitRates(#[source] RateError),
    /// The VM's mirror table.
    #[error("Cannot mirror frames to another interface")]
    Mirror(#[source] NftError),
    /// The tables of a policy.
    #[error("Cannot enforce the policy")]
    Policy(#[source] NftError),
    /// The packet socket of a card's services.
    #[error("Cannot open a packet socket on tap {tap}")]
    OpenServices {
        /// The tap.
        tap: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A teardown that left something behind.
    #[error("{}", list(.0))]
    Teardown(Vec<Report>),
}

/// An error as it crosses the socket between keeper and VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The whole chain of causes on one line.
    pub message: String,
    /// The hint for the user.
    pub hint: Option<String>,
    /// True if the command line asked for something that cannot be had.
    pub usage: bool,
}

impl Error {
    /// The hint for the user: the meaning that an errno has for the step, or else its general one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused(refusal) => Some(refusal.hint()),
            Self::Reported(report) => report.hint.clone(),
            Self::Teardown(reports) => reports.iter().find_map(|report| report.hint.clone()),
            error => error.own_hint().or_else(|| errno::hint(error.errno()?).map(str::to_owned)),
        }
    }

    fn own_hint(&self) -> Option<String> {
        let hint = match self {
            Self::Keeper(error) => return error.hint(),
            Self::AddOvsPort { source, .. } | Self::RemoveOvsPort { source, .. } => return source.hint(),
            Self::Policy(source) if lacks_egress_hook(source) => {
                "it takes Linux 5.16 with CONFIG_NETFILTER_EGRESS; a policy is enforced as a whole or not at all"
            }
            Self::Nftables(source) if source.has_no_owners() => {
                "it takes Linux 5.12, whose nftables go with their owner: use --net bridge=NAME without antispoof= and \
                 isolate=, or boot a later kernel"
            }
            Self::Nftables(source)
            | Self::ReadNftables(source)
            | Self::Docker(source)
            | Self::Mirror(source)
            | Self::Policy(source) => return source.hint(),
            Self::GiveBack { .. } => "no address is lost: once the cause is gone, minivmm net gc gives them back",
            error => return error.hint_of(error.errno()?),
        };
        Some(hint.to_owned())
    }

    /// The hint for a step that the kernel refuses with this errno.
    fn hint_of(&self, errno: i32) -> Option<String> {
        let hint = match (self, errno) {
            (Self::OpenTun(_), libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                "load the driver: modprobe tun (in a container, pass the device /dev/net/tun in)"
            }
            (Self::OpenTun(_), libc::EACCES | libc::EPERM) => {
                "run as root, or let this user open it: setfacl -m u:$USER:rw /dev/net/tun"
            }
            (Self::OpenVhost(_), libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                "load the driver: modprobe vhost_net (in a container, pass the device /dev/vhost-net in); or leave \
                 vhost=on out"
            }
            (Self::OpenVhost(_), libc::EACCES | libc::EPERM) => {
                "run as root, or let this user open it: setfacl -m u:$USER:rw /dev/vhost-net"
            }
            (Self::OpenTap { tap, .. }, libc::EPERM) => {
                return Some(format!(
                    "run as the tap's owner, or make it anew: ip tuntap add {tap} mode tap user $USER"
                ));
            }
            (Self::CreateMacvtap { lower, .. }, errno) => return hint_of_macvtap(lower, errno),
            (Self::OpenMacvtap { .. }, libc::EPERM | libc::EACCES) => {
                "run as root; a container has to be allowed to make and use devices of this kind (--device-cgroup-rule \
                 'c *:* rmw')"
            }
            (Self::TakeUplink { .. }, libc::EBUSY | libc::EOPNOTSUPP) => {
                "this card cannot be a port of a bridge, or something else takes its frames; use --net nat"
            }
            (Self::CreateBridge { .. }, libc::EOPNOTSUPP) => "load the driver: modprobe bridge (CONFIG_BRIDGE)",
            (Self::CreateBridge { .. } | Self::AttachTap { .. }, libc::EEXIST | libc::EBUSY | libc::ELOOP) => {
                "something else changes the interfaces at the same moment: try again, and see `ip link`"
            }
            // EXFULL: the bridge has no free port number.
            (Self::AttachTap { .. }, libc::EXFULL) => {
                "the bridge has as many ports as the kernel gives it: use another"
            }
            (Self::AttachTap { .. } | Self::JoinVlans { .. } | Self::FilterVlans { .. }, libc::EOPNOTSUPP) => {
                "the kernel lacks a setting of bridge ports: VLANs take CONFIG_BRIDGE_VLAN_FILTERING, isolate= takes \
                 Linux 4.18"
            }
            (Self::AttachTap { .. } | Self::CreateBridge { .. }, libc::EINVAL) => {
                "the interface takes no such MTU or setting: see `dmesg` for the reason, and try without mtu= and \
                 isolate="
            }
            (Self::StartStp { .. }, libc::ERANGE | libc::EINVAL | libc::EOPNOTSUPP) => {
                "the kernel takes no such spanning tree here: leave stp= and forward-delay= out"
            }
            (Self::GiveGateway { .. }, libc::EEXIST) => "another interface or VM has the address: use another subnet=",
            (Self::GiveGateway { .. }, libc::ENOENT | libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT | libc::EINVAL) => {
                "the bridge has no IP: its MTU may be too small (68 for IPv4, 1280 for IPv6), or IPv6 be switched off"
            }
            (Self::GiveGateway { .. } | Self::Forwarding { .. }, libc::EROFS) => {
                "/proc/sys is read-only, as in most containers: run it privileged, or set it on the host (for NAT: \
                 sysctl -w net.ipv4.ip_forward=1)"
            }
            (Self::ReservePort { .. }, libc::EACCES | libc::EPERM) => {
                "a port below net.ipv4.ip_unprivileged_port_start takes CAP_NET_BIND_SERVICE: forward a higher port, \
                 or run as root"
            }
            (Self::ReservePort { .. }, libc::EAFNOSUPPORT) => "the host has no IPv6: leave ipv6=on out",
            (Self::OpenServices { .. }, libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => {
                "packet sockets take the module af_packet: modprobe af_packet (CONFIG_PACKET)"
            }
            (Self::OpenServices { .. }, libc::EPERM | libc::EACCES) => {
                "answering DHCP on a tap takes CAP_NET_RAW: run as root"
            }
            (Self::Connect(_), libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => {
                "the process may not open netlink sockets: a seccomp filter or RestrictAddressFamilies= must allow \
                 AF_NETLINK"
            }
            (Self::Raise { .. }, libc::ERFKILL) => "the radio is switched off: rfkill unblock all",
            (Self::Raise { .. }, libc::ENODEV) => "the interface has gone meanwhile: see `ip link`",
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// The kernel's errno, if it is behind this error.
    fn errno(&self) -> Option<i32> {
        let causes = std::iter::successors(std::error::Error::source(self), |cause| cause.source());
        causes.filter_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error()).last()
    }

    /// True if the user asked for something that cannot be had, and not if the host failed to provide it.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Refused(_) => true,
            Self::Reported(report) => report.usage,
            _ => false,
        }
    }

    /// True if the host changed between survey and step, so that a new plan may well succeed.
    pub(crate) fn is_stale_plan(&self) -> bool {
        match self {
            Self::CreateBridge { source, .. } => source.raw_os_error() == Some(libc::EEXIST),
            Self::CreateMacvtap { source, .. } => matches!(source.raw_os_error(), Some(libc::ENODEV | libc::EEXIST)),
            Self::AttachTap { source, .. }
            | Self::StartStp { source, .. }
            | Self::FilterVlans { source, .. }
            | Self::PinAddress { source, .. }
            | Self::GiveGateway { source, .. } => source.raw_os_error() == Some(libc::ENODEV),
            _ => false,
        }
    }

    /// This error as one line, ready to be sent.
    pub(crate) fn report(&self) -> Report {
        Report { message: error_chain(self), hint: self.hint(), usage: self.is_usage() }
    }
}

/// An error and its causes on one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

impl Error {
    /// The error of a bridge of ours that was not removed, or whose uplink was not restored.
    pub(crate) fn of_bridge(bridge: &IfName, error: BridgeError) -> Self {
        match error {
            BridgeError::Link(source) => Self::Remove { link: bridge.to_string(), source },
            BridgeError::GiveBack { uplink, source } => Self::GiveBack { bridge: bridge.to_string(), uplink, source },
        }
    }
}

impl From<TapError> for Error {
    fn from(error: TapError) -> Self {
        match error {
            TapError::Device(source) => Self::OpenTun(source),
            TapError::Create(source) => Self::CreateTap(source),
            TapError::Busy { name } => Refusal::from(TapRefusal::Busy { name }).into(),
            TapError::Open { tap, source } => Self::OpenTap { tap, source },
        }
    }
}

impl From<PortError> for Error {
    fn from(error: PortError) -> Self {
        match error {
            PortError::Taken { protocol, port } => Refusal::PortTaken { protocol, port }.into(),
            PortError::NotOurAddress { address } => Refusal::NotOurAddress { address }.into(),
            PortError::Socket { protocol, port, source } => Self::ReservePort { protocol, port, source },
        }
    }
}

fn list(reports: &[Report]) -> String {
    let messages: Vec<&str> = reports.iter().map(|report| report.message.as_str()).collect();
    messages.join("; ")
}

/// True if the kernel has no egress hook of family netdev, on which half of a policy depends.
fn lacks_egress_hook(source: &NftError) -> bool {
    let NftError::Refused { object, source } = source else { return false };
    let refused = matches!(source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EINVAL));
    refused && !object.starts_with("rule ")
}

fn hint_of_macvtap(lower: &IfName, errno: i32) -> Option<String> {
    match errno {
        libc::EOPNOTSUPP => Some("load the driver: modprobe macvtap".to_owned()),
        libc::EBUSY => Some(format!(
            "{lower} already hands its frames to something else, such as an ipvlan or Open vSwitch: use another \
             interface"
        )),
        libc::EINVAL => Some(format!(
            "a macvlan or macvtap of another network namespace may be on {lower}, in mode passthru or beside one: use \
             another interface or mode"
        )),
        libc::EADDRINUSE => Some(format!(
            "a macvlan or macvtap of another network namespace has this address on {lower}: give the card another \
             with mac="
        )),
        _ => None,
    }
}
