//! The grammar of `--net`: `MODE=ARG[,key=value...]`. It does not look at the host.
//!
//! The modes and keys are the table in [`keys`].
//!
//! Each mode is one struct that contains [`CardSpec`], and its fields are the keys: a flag, a table of a configuration
//! file and an API body with the same keys give the same value. A flag is split into keys and texts here and then
//! deserialized like the others. The crate serde-aco does the same for other VMMs, but its errors, such as
//! `Ignored("quues")` or `ExpectedBool`, do not name the key, and it silently accepts a duplicate key.

mod capture;
mod card;
mod fields;
mod forward;
mod guard;
mod impair;
pub mod keys;
mod limits;
mod macvtap;
mod network;
mod offload;
mod ovs;
mod private;
mod reach;
mod search;
mod stp;
mod uplink;
mod vlan;

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use capture::{CaptureSize, CaptureSpec, Snaplen};
pub use card::CardSpec;
pub use fields::{FdList, FieldError, IfName, MTU_MIN, Mtu, QUEUES_MAX, Queues, RingSize, Switch};
pub use forward::{FORWARDED_PORTS_MAX, Forward, ForwardList, Protocol};
pub use guard::{ADDRESSES_MAX, AddressList, GuardSpec};
pub use impair::{Burst, Delay, ImpairSpec, Loss, RatePair, Seed};
pub use limits::{Connections, LimitSpec, NewConnections};
pub use macvtap::{MacvtapMode, MacvtapSpec};
pub(crate) use network::mask;
pub use network::{NetworkName, Subnet};
pub use offload::{Offload, OffloadList};
pub use ovs::{IfaceId, OvsSpec};
pub use private::{HostSpec, NETWORK_PREFIXES, NatSpec, Private};
pub use reach::{Place, ReachList, ReachSpec};
pub(crate) use search::bounded;
pub use search::{DOMAINS_MAX, DomainName, SEARCH_MAX_CHARS, SearchSpec};
pub use stp::{ForwardDelay, StpSpec};
pub use uplink::UplinkSpec;
pub use vlan::{VlanId, VlanList, VlanRange, VlanSpec};

/// Largest edit distance at which a known key is suggested for an unknown one.
const SUGGEST_DISTANCE: usize = 2;

/// One card: where its frames go on the host, and what the guest sees of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum NetSpec {
    /// A new tap on a bridge.
    Bridge(BridgeSpec),
    /// A new tap on a network of our own with a way out.
    Nat(NatSpec),
    /// A new tap on a network of our own without a way out.
    Host(HostSpec),
    /// A new macvtap on an interface of the host.
    Macvtap(MacvtapSpec),
    /// A new tap on an Open vSwitch bridge.
    Ovs(OvsSpec),
    /// An existing tap.
    Tap(TapSpec),
    /// An open tap.
    Fd(FdSpec),
}

/// `bridge=`: a new tap that is a port of the bridge for as long as the VM runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeSpec {
    /// The bridge.
    pub bridge: IfName,
    /// On to create the bridge if it is missing.
    #[serde(default)]
    pub create: Switch,
    /// The uplink of the bridge, if it is created.
    #[serde(flatten)]
    pub uplink: UplinkSpec,
    /// The spanning tree of the bridge, if it is created.
    #[serde(flatten)]
    pub stp: StpSpec,
    /// The VLANs of the tap.
    #[serde(flatten)]
    pub vlans: VlanSpec,
    /// The guest's addresses; any if empty.
    #[serde(default, skip_serializing_if = "AddressList::is_empty")]
    pub addresses: AddressList,
    /// Restrictions on the guest.
    #[serde(flatten)]
    pub guard: GuardSpec,
    /// The card.
    #[serde(flatten)]
    pub card: CardSpec,
}

/// `tap=`: a tap that another program made and keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapSpec {
    /// The tap.
    pub tap: IfName,
    /// The card.
    #[serde(flatten)]
    pub card: CardSpec,
}

/// `fd=`: descriptors of one open tap, inherited from the parent process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdSpec {
    /// The descriptors in queue order.
    pub fd: FdList,
    /// The card.
    #[serde(flatten)]
    pub card: CardSpec,
}

/// The key that opens a spec, and the reader of its table.
struct ModeKey {
    key: &'static str,
    /// Its value if none is given.
    alone: Option<&'static str>,
    read: fn(Value) -> Result<NetSpec, serde_json::Error>,
}

impl ModeKey {
    const fn new(key: &'static str, read: fn(Value) -> Result<NetSpec, serde_json::Error>) -> Self {
        Self { key, alone: None, read }
    }

    const fn named(key: &'static str, read: fn(Value) -> Result<NetSpec, serde_json::Error>) -> Self {
        Self { key, alone: Some(network::DEFAULT_NAME), read }
    }
}

const MODES: &[ModeKey] = &[
    ModeKey::new("bridge", |value| serde_json::from_value(value).map(NetSpec::Bridge)),
    ModeKey::named("nat", |value| serde_json::from_value(value).map(NetSpec::Nat)),
    ModeKey::named("host", |value| serde_json::from_value(value).map(NetSpec::Host)),
    ModeKey::new("macvtap", |value| serde_json::from_value(value).map(NetSpec::Macvtap)),
    ModeKey::new("ovs", |value| serde_json::from_value(value).map(NetSpec::Ovs)),
    ModeKey::new("tap", |value| serde_json::from_value(value).map(NetSpec::Tap)),
    ModeKey::new("fd", |value| serde_json::from_value(value).map(NetSpec::Fd)),
];

/// The reason why a text or a table is not a card. The message says what to do, because it is printed as is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The spec is empty.
    #[error(
        "The network of a card is missing: give bridge=NAME, nat, host, macvtap=IFACE, ovs=BRIDGE, tap=NAME or fd=N"
    )]
    Empty,
    /// No mode key.
    #[error("{0:?} does not say what the card is connected to: {advice}", advice = mode_advice(.0))]
    NoMode(String),
    /// Two mode keys.
    #[error("{first}= and {second}= contradict each other, a card has one network: give a --net flag for each")]
    TwoModes {
        /// The mode that came first.
        first: &'static str,
        /// The mode that came later.
        second: &'static str,
    },
    /// Two commas in a row, or one at the end.
    #[error("There is nothing between two commas or after the last one: write key=value there, or leave the comma out")]
    EmptyItem,
    /// A key without `=value`.
    #[error("{0} has no value: write {0}=VALUE")]
    NoValue(String),
    /// The same key twice.
    #[error("{0}= is given twice: keep one of them")]
    Duplicate(String),
    /// A key that the mode does not have.
    #[error("{mode}= takes no key {key:?}: {}", advice(key, known))]
    UnknownKey {
        /// The mode.
        mode: &'static str,
        /// The given key.
        key: String,
        /// The keys of the mode.
        known: Vec<&'static str>,
    },
    /// A key of other modes that this mode cannot support.
    #[error("{mode}= takes no key {key:?}: {reason}")]
    NotThere {
        /// The mode.
        mode: &'static str,
        /// The given key.
        key: String,
        /// The reason, or the alternative.
        reason: &'static str,
    },
    /// A value that its key does not take.
    #[error("{0}")]
    Value(String),
    /// `queues=` differs from the number of descriptors.
    #[error("queues={queues} contradicts fd={fds}, which has one queue pair for each descriptor: leave queues= out")]
    QueuesOfFds {
        /// The value of `queues=`.
        queues: u16,
        /// The value of `fd=`.
        fds: FdList,
    },
    /// VLANs both for a guest that sees tags and for one that does not.
    #[error(
        "vlan= and trunk= contradict each other: write trunk={trunk},native={vlan} for both, or leave one of them out"
    )]
    TwoVlans {
        /// The value of `vlan=`.
        vlan: VlanId,
        /// The value of `trunk=`.
        trunk: VlanList,
    },
    /// A spanning tree on the bridge that takes over the host's addresses.
    #[error(
        "stp=on and move-addresses=on contradict each other, the host would be cut off while the port waits: leave \
         one of them out"
    )]
    CutOff,
    /// A key that only works without vhost-net.
    #[error(
        "{0}= and vhost=on contradict each other, the kernel's vhost-net moves frames as they come: leave one of \
         them out"
    )]
    Vhost(&'static str),
    /// A place outside in `reach=` of a network without a way out.
    #[error("reach={0} is not possible with host=, which has no way out: give reach=host or reach=none, or nat=")]
    NoWayOut(ReachList),
    /// A key that has no effect by itself.
    #[error("{key}= does nothing by itself: give {needed} with it, or leave it out")]
    Idle {
        /// The given key.
        key: &'static str,
        /// The key that it needs.
        needed: &'static str,
    },
}

impl NetSpec {
    /// The settings of the card itself.
    pub fn card(&self) -> &CardSpec {
        match self {
            Self::Bridge(spec) => &spec.card,
            Self::Nat(spec) => &spec.card,
            Self::Host(spec) => &spec.card,
            Self::Macvtap(spec) => &spec.card,
            Self::Ovs(spec) => &spec.card,
            Self::Tap(spec) => &spec.card,
            Self::Fd(spec) => &spec.card,
        }
    }

    /// The key that opens the spec.
    pub fn mode(&self) -> &'static str {
        match self {
            Self::Bridge(_) => "bridge",
            Self::Nat(_) => "nat",
            Self::Host(_) => "host",
            Self::Macvtap(_) => "macvtap",
            Self::Ovs(_) => "ovs",
            Self::Tap(_) => "tap",
            Self::Fd(_) => "fd",
        }
    }

    /// The network of our own that the card is on, if any.
    pub fn private(&self) -> Option<Private<'_>> {
        match self {
            Self::Nat(spec) => Some(spec.private()),
            Self::Host(spec) => Some(spec.private()),
            Self::Bridge(_) | Self::Macvtap(_) | Self::Ovs(_) | Self::Tap(_) | Self::Fd(_) => None,
        }
    }

    /// The requested uplink of the card's bridge, if any.
    pub fn uplink(&self) -> Option<&IfName> {
        match self {
            Self::Bridge(spec) => spec.uplink.uplink.as_ref(),
            _ => None,
        }
    }

    /// The interface of the host that the guest shares, if any.
    pub fn shared_interface(&self) -> Option<&IfName> {
        match self {
            Self::Macvtap(spec) => Some(&spec.macvtap),
            _ => None,
        }
    }

    /// True if the link made for the card does not vanish by itself at the end of the VM.
    pub(crate) fn outlives_its_vm(&self) -> bool {
        matches!(self, Self::Macvtap(_) | Self::Ovs(_))
    }

    /// True if only frames for the guest's own MAC address arrive, so that the guest cannot change it.
    pub fn address_is_fixed(&self) -> bool {
        matches!(self, Self::Macvtap(spec) if spec.mode != MacvtapMode::Passthru)
    }

    /// Reads a table of a configuration file or an API body, or a flag that was split into one.
    fn from_table(table: Map<String, Value>) -> Result<Self, SpecError> {
        let mut modes = MODES.iter().filter(|mode| table.contains_key(mode.key));
        let Some(mode) = modes.next() else {
            // A key that no mode has is the likelier typo.
            let slip = table.keys().find(|key| !keys::is_known(key)).or_else(|| table.keys().next());
            return Err(slip.map_or(SpecError::Empty, |key| SpecError::NoMode(key.clone())));
        };
        if let Some(second) = modes.next() {
            return Err(SpecError::TwoModes { first: mode.key, second: second.key });
        }
        let known = keys::of_mode(mode.key);
        if let Some(key) = table.keys().find(|key| *key != mode.key && !known.contains(&key.as_str())) {
            let reason = match mode.key {
                "macvtap" => macvtap::missing_key(key),
                "ovs" => ovs::missing_key(key),
                _ => None,
            };
            if let Some(reason) = reason {
                return Err(SpecError::NotThere { mode: mode.key, key: key.clone(), reason });
            }
            return Err(SpecError::UnknownKey { mode: mode.key, key: key.clone(), known });
        }
        let spec = (mode.read)(Value::Object(table)).map_err(|error| SpecError::Value(error.to_string()))?;
        if let Self::Fd(FdSpec { fd, card: CardSpec { queues: Some(queues), .. } }) = &spec
            && *queues != fd.queues()
        {
            return Err(SpecError::QueuesOfFds { queues: queues.get(), fds: fd.clone() });
        }
        if let Self::Bridge(bridge) = &spec {
            bridge.check()?;
        }
        if let Self::Host(HostSpec { reach: Some(reach), .. }) = &spec
            && (reach.has(Place::World) || reach.has(Place::Private))
        {
            return Err(SpecError::NoWayOut(*reach));
        }
        let CardSpec { vhost, impair, capture, .. } = spec.card();
        // On a tap of our own the kernel enforces rates.
        let refused = match &spec {
            Self::Bridge(_) | Self::Nat(_) | Self::Host(_) => impair.first_key_but_rates(),
            _ => impair.first_key(),
        };
        if let Some(key) = refused.or(capture.capture.as_ref().map(|_| "capture")).filter(|_| *vhost == Switch::On) {
            return Err(SpecError::Vhost(key));
        }
        if let Self::Bridge(BridgeSpec { addresses, guard, .. }) = &spec
            && !addresses.is_empty()
            && guard.antispoof != Some(Switch::On)
        {
            return Err(SpecError::Idle { key: "addresses", needed: "antispoof=on" });
        }
        if let Some((key, needed)) = impair.idle_key() {
            return Err(SpecError::Idle { key, needed });
        }
        if let Some(key) = capture.idle_key() {
            return Err(SpecError::Idle { key, needed: "capture=FILE" });
        }
        Ok(spec)
    }
}

impl BridgeSpec {
    /// Refuses keys that contradict each other.
    fn check(&self) -> Result<(), SpecError> {
        if self.stp.stp == Switch::On && self.create == Switch::Off {
            return Err(SpecError::Idle { key: "stp", needed: "create=on" });
        }
        if self.stp.forward_delay.is_some() && self.stp.stp == Switch::Off {
            return Err(SpecError::Idle { key: "forward-delay", needed: "stp=on" });
        }
        self.uplink.check(self.create, self.stp.stp)?;
        match &self.vlans {
            VlanSpec { vlan: Some(vlan), trunk, .. } if !trunk.is_empty() => {
                Err(SpecError::TwoVlans { vlan: *vlan, trunk: trunk.clone() })
            }
            VlanSpec { native: Some(_), trunk, .. } if trunk.is_empty() => {
                Err(SpecError::Idle { key: "native", needed: "trunk=" })
            }
            _ => Ok(()),
        }
    }
}

impl FromStr for NetSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if text.is_empty() {
            return Err(SpecError::Empty);
        }
        let mut table = Map::new();
        for item in text.split(',') {
            if item.is_empty() {
                return Err(SpecError::EmptyItem);
            }
            let (key, value) = match item.split_once('=') {
                Some(pair) => pair,
                None if table.is_empty() => {
                    let mode = MODES.iter().find(|mode| mode.key == item);
                    let alone = mode.ok_or_else(|| SpecError::NoMode(item.to_owned()))?.alone;
                    (item, alone.ok_or_else(|| SpecError::NoValue(item.to_owned()))?)
                }
                None => return Err(SpecError::NoValue(item.to_owned())),
            };
            if value.is_empty() {
                return Err(SpecError::NoValue(key.to_owned()));
            }
            if table.insert(key.to_owned(), Value::String(value.to_owned())).is_some() {
                return Err(SpecError::Duplicate(key.to_owned()));
            }
        }
        Self::from_table(table)
    }
}

impl<'de> Deserialize<'de> for NetSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let table = Map::deserialize(deserializer)?;
        Self::from_table(table).map_err(de::Error::custom)
    }
}

impl fmt::Display for NetSpec {
    /// The flag that gives this spec, without keys at their defaults.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge(spec) => {
                write!(f, "bridge={}", spec.bridge)?;
                if spec.create == Switch::On {
                    f.write_str(",create=on")?;
                }
                write!(f, "{}{}{}", spec.uplink, spec.stp, spec.vlans)?;
                if !spec.addresses.is_empty() {
                    write!(f, ",addresses={}", spec.addresses)?;
                }
                write!(f, "{}", spec.guard)?;
            }
            Self::Nat(spec) => write!(f, "{spec}")?,
            Self::Host(spec) => write!(f, "{spec}")?,
            Self::Macvtap(MacvtapSpec { macvtap, mode, .. }) => {
                write!(f, "macvtap={macvtap}")?;
                if *mode != MacvtapMode::default() {
                    write!(f, ",mode={mode}")?;
                }
            }
            Self::Ovs(spec) => write!(f, "{spec}")?,
            Self::Tap(spec) => write!(f, "tap={}", spec.tap)?,
            Self::Fd(spec) => write!(f, "fd={}", spec.fd)?,
        }
        write!(f, "{}", self.card())
    }
}

/// Advice on a word that is no mode: the nearest mode, or all of them.
fn mode_advice(word: &str) -> String {
    match keys::nearest_mode(word) {
        Some(usage) => format!("did you mean {usage}?"),
        None => "start with bridge=NAME, nat, host, macvtap=IFACE, ovs=BRIDGE, tap=NAME or fd=N".to_owned(),
    }
}

/// Advice on an unknown key: the nearest known key, or all of them.
pub fn advice<S: AsRef<str>>(key: &str, known: &[S]) -> String {
    let known: Vec<&str> = known.iter().map(AsRef::as_ref).collect();
    let nearest = known.iter().map(|name| (edit_distance(key, name), name)).min();
    match nearest {
        Some((distance, name)) if distance <= SUGGEST_DISTANCE => format!("did you mean {name}=?"),
        _ => format!("it takes {}", known.join(", ")),
    }
}

/// The number of insertions, deletions and replacements that turn `a` into `b`.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replace = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
