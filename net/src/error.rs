//! The errors of a plan that meets the host. Knows the errors of every object of the host, and no step.

mod hints;

use std::io;

use serde::{Deserialize, Serialize};

use crate::facts::ovs::OvsError;
use crate::host::bridge::BridgeError;
use crate::host::ports::PortError;
use crate::host::rates::RateError;
use crate::host::tap::TapError;
use crate::host::uplink::MoveError;
use crate::kernel::nft::NftError;
use crate::refusal::Refusal;
use crate::spec::{IfName, Protocol};

/// Why the cards of a VM could not be made, kept or taken away.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plan refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The keeper failed, and has undone its steps.
    #[error("{}", .0.message)]
    Keeper(Report),
    /// A fork copies only the calling thread, and would leave the other threads' locks locked for ever.
    #[error("Cannot fork the network keeper: this process has {threads} threads, and may have one")]
    Threads {
        /// Threads of the process.
        threads: u64,
    },
    /// `/proc/self/task` cannot be read.
    #[error("Cannot count the threads of this process")]
    CountThreads(#[source] io::Error),
    /// The socket pair cannot be made.
    #[error("Cannot open a socket to the network keeper")]
    Socket(#[source] io::Error),
    /// The keeper cannot be forked.
    #[error("Cannot fork the network keeper")]
    Fork(#[source] io::Error),
    /// The event loop cannot be made.
    #[error("Cannot start an event loop")]
    Runtime(#[source] io::Error),
    /// An error on the socket between VMM and keeper.
    #[error("Cannot exchange messages with the network keeper")]
    Exchange(#[source] io::Error),
    /// The keeper does not answer, most likely because the kernel does not answer it.
    #[error("Cannot reach the network keeper: it has not answered for {seconds} s")]
    Silent {
        /// The timeout in seconds.
        seconds: i64,
    },
    /// The VMM has gone, or no longer wants its network.
    #[error("Cannot make the network: the VM has ended")]
    Unwanted,
    /// The keeper was killed, or died.
    #[error("Cannot reach the network keeper: it has ended")]
    Gone,
    /// A message that is not of the protocol.
    #[error("Cannot read a message of the network keeper: it is malformed or out of order")]
    Protocol,
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
    /// The hint for the user.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused(refusal) => Some(refusal.hint()),
            Self::Keeper(report) => report.hint.clone(),
            Self::Teardown(reports) => reports.iter().find_map(|report| report.hint.clone()),
            error => hints::of(error),
        }
    }

    /// True if the user asked for something that cannot be had, and not if the host failed to provide it.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Refused(_) => true,
            Self::Keeper(report) => report.usage,
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

    fn source_errno(&self) -> Option<i32> {
        std::error::Error::source(self)?.downcast_ref::<io::Error>()?.raw_os_error()
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
            TapError::Busy { name } => Refusal::TapBusy { name }.into(),
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
