//! Ports of Open vSwitch, managed with its own program `ovs-vsctl`, which knows every version's database protocol and
//! socket.
//!
//! A port is a record of the database, which outlives the tap, the keeper and the host. So it names the boot and
//! network namespace that it was made in (`external-ids:minivmm`), and has a random name that a socket claims (see
//! [`crate::facts::claim`]). The next VM on Open vSwitch, or `net gc`, removes an unclaimed port.
//!
//! No argument passes a shell, and values that are not plain words are quoted for the program.

use std::fmt;

use serde::Serialize;

use crate::facts::ovs::{Datapath, OvsError};
use crate::identity::alias::TapAlias;
use crate::identity::mac::MacAddr;
use crate::spec::{IfName, IfaceId, VlanId};
use crate::survey::ovs::{MARK, Place, run};

/// A port to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OvsPort {
    /// Its name, and that of its tap.
    pub tap: IfName,
    /// The bridge.
    pub bridge: IfName,
    /// How the bridge moves frames.
    pub datapath: Datapath,
    /// The VLAN that it is an untagged member of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanId>,
    /// Its name for an SDN controller (`iface-id`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iface_id: Option<IfaceId>,
    /// The guest's address.
    pub mac: MacAddr,
    /// The tap's MTU in bytes.
    pub mtu: u16,
    /// Queue pairs.
    pub queues: u16,
    /// The tap's alias.
    pub alias: TapAlias,
}

impl fmt::Display for OvsPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tap, bridge, vlan, iface_id, mac, mtu, queues, .. } = self;
        write!(
            f,
            "create tap {tap} with {queues} queue pairs and mtu {mtu}, and add it to Open vSwitch bridge {bridge} with "
        )?;
        write!(f, "attached-mac {mac}")?;
        if let Some(id) = iface_id {
            write!(f, " and iface-id {id}")?;
        }
        match vlan {
            Some(vlan) => write!(f, " in VLAN {vlan}"),
            None => Ok(()),
        }
    }
}

/// Removes a port; one that has gone already is fine.
pub(crate) fn remove(port: &IfName) -> Result<(), OvsError> {
    // Only the record would stay. The switch drops a tap that has gone by itself, so there is no need to wait for it.
    run(&["--no-wait", "--if-exists", "del-port", port.as_str()]).map(drop)
}

/// Adds the port in one transaction, and checks that the switch has taken it.
pub(crate) fn add(port: &OvsPort) -> Result<(), OvsError> {
    let OvsPort { tap, bridge, vlan, iface_id, mac, alias, .. } = port;
    let here = Place::here().map_err(|error| OvsError::Failed(error.to_string()))?;
    let mut words = ["--may-exist", "add-port", bridge.as_str(), tap.as_str()].map(str::to_owned).to_vec();
    words.extend(vlan.map(|vlan| format!("tag={vlan}")));
    words.extend(["--", "set", "Interface", tap.as_str()].map(str::to_owned));
    words.extend([
        external_id("attached-mac", mac),
        external_id("vm-id", &alias.vm),
        external_id("iface-status", &"active"),
    ]);
    words.push(external_id(MARK, &here.mark()));
    words.extend(iface_id.as_ref().map(|id| external_id("iface-id", id)));
    run(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
    let state = run(&["get", "Interface", tap.as_str(), "ofport", "error"])?;
    let mut lines = state.lines();
    let (number, error) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    match number.parse::<u32>() {
        Ok(_) => Ok(()),
        Err(_) => Err(OvsError::Failed(error.trim_matches('"').to_owned())),
    }
}

/// A setting as the program reads it. No value has quotes or backslashes in it.
fn external_id(key: &str, value: &impl fmt::Display) -> String {
    format!("external-ids:{key}=\"{value}\"")
}
