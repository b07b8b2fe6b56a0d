//! Uplinks that a bridge of ours cannot have.

use crate::spec::IfName;

/// Why an interface cannot be the uplink of a bridge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UplinkRefusal {
    /// No interface has the uplink's name.
    #[error("Uplink {name} does not exist")]
    Missing {
        /// The name.
        name: IfName,
    },
    /// The name belongs to something that cannot be a port of a bridge.
    #[error("{name} cannot be an uplink, it is {kind}")]
    NotAnUplink {
        /// The name.
        name: IfName,
        /// Its kind.
        kind: String,
    },
    /// A station of a radio network may send from its own address only.
    #[error("{name} cannot be an uplink, it is a wireless card, and access points take its own address only")]
    Wireless {
        /// The name.
        name: IfName,
    },
    /// A port of something else.
    #[error("{name} is a port of {master} already")]
    PortOfOther {
        /// The uplink.
        name: IfName,
        /// Its master.
        master: String,
    },
    /// A device on top of it takes frames before a bridge sees them.
    #[error("{name} cannot be an uplink while {by} is on it, which is {kind} and takes frames before the bridge")]
    InUse {
        /// The uplink.
        name: IfName,
        /// The device on top of it.
        by: String,
        /// That device's kind.
        kind: String,
    },
    /// The host would lose its addresses or routes.
    #[error("{name} has {}, and a port of a bridge cannot use them", holdings_text(addresses, *.default_route))]
    HasAddresses {
        /// The uplink.
        name: IfName,
        /// Its addresses.
        addresses: Vec<String>,
        /// True if the default route leads through it.
        default_route: bool,
    },
    /// Routes through objects that belong to the interface.
    #[error("Routes through {name} use nexthop objects, which cannot be moved")]
    NexthopObjects {
        /// The uplink.
        name: IfName,
    },
    /// A bridge that minivmm did not make.
    #[error("Bridge {name} exists, and minivmm did not make it")]
    ForeignBridge {
        /// The bridge.
        name: IfName,
    },
    /// A bridge of ours with another uplink, or none.
    #[error("Bridge {name} exists, and {}", uplink_text(uplink.as_deref()))]
    OtherUplink {
        /// The bridge.
        name: IfName,
        /// Its uplink.
        uplink: Option<String>,
    },
}

impl UplinkRefusal {
    /// The hint for the user.
    pub(super) fn hint(&self) -> String {
        match self {
            Self::Missing { .. } => "give the name of a network card; `ip link` lists them".to_owned(),
            Self::NotAnUplink { .. } => "give the name of an Ethernet card".to_owned(),
            Self::Wireless { .. } => "use --net nat, which needs no bridge on the card".to_owned(),
            Self::PortOfOther { master, .. } => {
                format!("use that bridge if it is one (--net bridge={master}), or free the card first")
            }
            Self::InUse { by, .. } => {
                format!("use that as uplink (uplink={by}), or remove it first: ip link del {by}")
            }
            Self::HasAddresses { .. } => "add move-addresses=on to have them on the bridge while VMs use it".to_owned(),
            Self::NexthopObjects { .. } => "leave uplink= out, and make the bridge yourself".to_owned(),
            Self::ForeignBridge { name } => {
                format!(
                    "leave uplink= out and put the card on it yourself (ip link set IFACE master {name}), or use another \
                     name"
                )
            }
            Self::OtherUplink { .. } => "give the bridge another name, or end its VMs first".to_owned(),
        }
    }
}

/// An interface's addresses and routes that would be lost, in words.
fn holdings_text(addresses: &[String], default_route: bool) -> String {
    let route = if default_route { Some("the default route") } else { None };
    let texts: Vec<&str> = addresses.iter().map(String::as_str).chain(route).collect();
    if texts.is_empty() { "routes".to_owned() } else { texts.join(", ") }
}

/// The uplink of a bridge of ours, in words.
fn uplink_text(uplink: Option<&str>) -> String {
    uplink.map_or_else(|| "has no uplink".to_owned(), |uplink| format!("its uplink is {uplink}"))
}
