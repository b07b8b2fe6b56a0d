//! Ports of Open vSwitch, by its own program `ovs-vsctl`: it knows the protocol of every version's database, and where that is.
//!
//! A port is a record of the database, which outlives the tap, the keeper and the host. So it says who made it: in which boot and
//! network namespace (`external-ids:minivmm`), and under a random name that a socket claims (see [`crate::facts::claim`]). One that nobody claims
//! is taken away by the next VM on Open vSwitch, or `net gc`.
//!
//! Nothing passes a shell, and every value that is not a plain word is quoted as the program wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use serde::Serialize;
use serde_json::Value;

use crate::error::Error;
use crate::facts::claim;
use crate::identity::alias::TapAlias;
use crate::identity::mac::MacAddr;
use crate::spec::{IfName, IfaceId, VlanId};
use crate::step::{Host, create_tap};

const PROGRAM: &str = "ovs-vsctl";

/// How long the database, and the switch itself, may take, in seconds. It takes some milliseconds, and a busy switch a second. The VMM waits
/// longer for its keeper.
const PATIENCE_S: u32 = 8;

/// The key of `external-ids` by which a port is known to be ours.
const MARK: &str = "minivmm";

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
    /// What a controller knows it by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iface_id: Option<IfaceId>,
    /// The guest's address.
    pub mac: MacAddr,
    /// The tap's MTU in bytes.
    pub mtu: u16,
    /// Queue pairs.
    pub queues: u16,
    /// What is written on the tap.
    pub alias: TapAlias,
}

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

/// Looks at Open vSwitch, and closer at the bridges in `wanted` that it has.
pub(crate) fn survey(wanted: &BTreeSet<&IfName>) -> OvsFact {
    let look = || {
        let bridges = bridges()?;
        let wanted = wanted.iter().map(|name| name.as_str()).filter(|wanted| bridges.iter().any(|name| name == wanted));
        let datapaths = wanted.map(|name| Ok((name.to_owned(), datapath(name)?))).collect::<Result<_, _>>()?;
        Ok(OvsFact::There { bridges, datapaths, left_behind: left_behind()? })
    };
    look().unwrap_or_else(OvsFact::Trouble)
}

fn bridges() -> Result<Vec<String>, OvsError> {
    Ok(run(&["list-br"])?.lines().map(str::to_owned).collect())
}

/// How a bridge moves frames. One that stands for a VLAN of another is not in the table of bridges.
fn datapath(bridge: &str) -> Result<Datapath, OvsError> {
    let parent = run(&["br-to-parent", bridge])?;
    let offload = ["--if-exists", "get", "Open_vSwitch", ".", "other_config:hw-offload"];
    let text = run(&[&["get", "Bridge", parent.trim(), "datapath_type", "--"], &offload[..]].concat())?;
    Ok(datapath_of(&text))
}

/// The same, from its type and whether flows go to traffic control, a line each.
fn datapath_of(text: &str) -> Datapath {
    let mut lines = text.lines().map(|line| line.trim_matches('"'));
    let (kind, offload) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    match (kind, offload) {
        ("" | "system", "true") => Datapath::TrafficControl,
        ("" | "system", _) => Datapath::Kernel,
        _ => Datapath::User,
    }
}

/// Ports of ours that nobody uses.
pub(crate) fn left_behind() -> Result<Vec<IfName>, OvsError> {
    let text = run(&["--format=json", "--columns=name,external_ids", "list", "Interface"])?;
    // Read after the ports: a claim comes before its port.
    let claimed = claim::taken().map_err(|error| OvsError::Said(error.to_string()))?;
    let here = Place::here().map_err(|error| OvsError::Said(error.to_string()))?;
    Ok(marked(&text)
        .into_iter()
        .filter(|(name, mark)| here.is_left_behind(name, mark, &claimed))
        .map(|(name, _)| name)
        .collect())
}

/// Removes a port; one that has gone already is fine.
pub(crate) fn remove(port: &IfName) -> Result<(), OvsError> {
    // The record is what stays; the switch lets go of a tap that has gone by itself, and need not be waited for.
    run(&["--no-wait", "--if-exists", "del-port", port.as_str()]).map(drop)
}

/// Adds the port, all at once, and sees whether the switch has taken it.
fn add(port: &OvsPort) -> Result<(), OvsError> {
    let OvsPort { tap, bridge, vlan, iface_id, mac, alias, .. } = port;
    let here = Place::here().map_err(|error| OvsError::Said(error.to_string()))?;
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
        Err(_) => Err(OvsError::Said(error.trim_matches('"').to_owned())),
    }
}

/// A setting as the program reads it. No value has quotes or backslashes in it.
fn external_id(key: &str, value: &impl fmt::Display) -> String {
    format!("external-ids:{key}=\"{value}\"")
}

impl Host {
    /// Makes a card's tap and has Open vSwitch take it as a port.
    pub(crate) async fn create_ovs_port(&mut self, card: usize, wanted: &OvsPort) -> Result<(), Error> {
        let OvsPort { tap, bridge, mac, mtu, queues, alias, .. } = wanted;
        let claim = claim::take(tap).map_err(Error::CreateTap)?;
        let (made, index) = create_tap(tap.as_str(), *queues)?;
        self.taps.insert(card, made);
        self.claims.insert(card, claim);
        if let Err(error) = self.rtnl.bypass_queueing(index).await {
            log::debug!("The tap of card {card} keeps its queueing discipline: {error}");
        }
        let raised = self.rtnl.raise_tap(index, mac.host_side(), *mtu, alias).await;
        raised.map_err(|source| Error::Raise { link: tap.clone(), source })?;
        add(wanted).map_err(|source| Error::AddOvsPort { bridge: bridge.clone(), source })
    }
}

/// Runs the program and returns what it prints.
fn run(words: &[&str]) -> Result<String, OvsError> {
    let output = Command::new(PROGRAM).arg(format!("--timeout={PATIENCE_S}")).args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => OvsError::Missing,
        _ => OvsError::Said(format!("{PROGRAM} cannot be run: {error}")),
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    if output.status.signal() == Some(libc::SIGALRM) {
        return Err(OvsError::Silent);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().last().unwrap_or_default();
    let line = line.trim_start_matches(PROGRAM).trim_start_matches(':').trim();
    Err(if line.contains("database connection failed") {
        OvsError::Unreachable(line.to_owned())
    } else {
        OvsError::Said(line.to_owned())
    })
}

/// Names and marks of our ports, in a table that the program prints as JSON (RFC 7047 5.1: a map is `["map", [[key, value], ...]]`).
fn marked(text: &str) -> Vec<(IfName, String)> {
    let table: Value = serde_json::from_str(text).unwrap_or_default();
    let rows = table["data"].as_array().into_iter().flatten();
    let mark = |row: &Value| {
        let mut pairs = row[1][1].as_array()?.iter();
        let pair = pairs.find(|pair| pair[0] == MARK)?;
        Some((row[0].as_str()?.parse().ok()?, pair[1].as_str()?.to_owned()))
    };
    rows.filter_map(mark).collect()
}

/// Where a port was made: a boot of the host, and a network namespace, by the number of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    boot: String,
    namespace: String,
}

impl Place {
    fn here() -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let namespace = fs::metadata("/proc/self/ns/net")?.ino().to_string();
        Ok(Self { boot, namespace })
    }

    fn mark(&self) -> String {
        format!("{}/{}", self.boot, self.namespace)
    }

    /// Whether nobody can have the port any more. In another namespace that cannot be known.
    fn is_left_behind(&self, port: &IfName, mark: &str, claimed: &BTreeSet<String>) -> bool {
        let Some((boot, namespace)) = mark.split_once('/') else { return false };
        boot != self.boot || namespace == self.namespace && !claimed.contains(port.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_ports_are_read_from_a_table() {
        let text = r#"{"data":[["b0",["map",[]]],["vmtap01",["map",[["attached-mac","02:00:00:00:00:01"],["minivmm","a/1"]]]],
                     ["tap9",["map",[["iface-id","x"]]]]],"headings":["name","external_ids"]}"#;
        assert_eq!(marked(text), [("vmtap01".parse().unwrap(), "a/1".to_owned())]);
        for text in ["", "[]", r#"{"data":[[1,2],[["map"]],null]}"#] {
            assert_eq!(marked(text), []);
        }
    }

    #[test]
    fn datapath_is_that_of_the_kernel_unless_the_database_says_otherwise() {
        for (text, expected) in [
            ("\"\"\n\n", Datapath::Kernel),
            ("system\n\"false\"\n", Datapath::Kernel),
            ("\"\"\n\"true\"\n", Datapath::TrafficControl),
            ("netdev\n\n", Datapath::User),
            ("netdev\n\"true\"\n", Datapath::User),
        ] {
            assert_eq!(datapath_of(text), expected, "{text}");
        }
    }

    #[test]
    fn port_of_another_boot_or_without_a_claim_is_left_behind() {
        let here = Place { boot: "b".to_owned(), namespace: "7".to_owned() };
        let claimed = BTreeSet::from(["used".to_owned()]);
        for (port, mark, left) in [
            ("used", "b/7", false),
            ("free", "b/7", true),
            ("free", "b/8", false),
            ("used", "a/7", true),
            ("free", "something else", false),
        ] {
            assert_eq!(here.is_left_behind(&port.parse().unwrap(), mark, &claimed), left, "{port} {mark}");
        }
    }
}
