//! Reads the state of Open vSwitch through its own program `ovs-vsctl`, which knows the protocol and the place of every
//! version's database. No shell is involved.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::facts::claim;
use crate::facts::ovs::{Datapath, OvsError, OvsFact, PROGRAM, TIMEOUT_S};
use crate::spec::IfName;

/// The key of `external-ids` that marks a port as ours.
pub(crate) const MARK: &str = "minivmm";

/// Reads the state of Open vSwitch, with the datapaths of those bridges in `wanted` that it has.
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

/// The datapath of a bridge. A bridge that stands for a VLAN of another one is not in the table of bridges.
fn datapath(bridge: &str) -> Result<Datapath, OvsError> {
    let parent = run(&["br-to-parent", bridge])?;
    let offload = ["--if-exists", "get", "Open_vSwitch", ".", "other_config:hw-offload"];
    let text = run(&[&["get", "Bridge", parent.trim(), "datapath_type", "--"], &offload[..]].concat())?;
    Ok(datapath_of(&text))
}

/// The same, from two lines: the bridge's type, and `true` if flows go to traffic control.
fn datapath_of(text: &str) -> Datapath {
    let mut lines = text.lines().map(|line| line.trim_matches('"'));
    let (kind, offload) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    match (kind, offload) {
        ("" | "system", "true") => Datapath::TrafficControl,
        ("" | "system", _) => Datapath::Kernel,
        _ => Datapath::User,
    }
}

/// Ports of ours that no process uses.
pub(crate) fn left_behind() -> Result<Vec<IfName>, OvsError> {
    let text = run(&["--format=json", "--columns=name,external_ids", "list", "Interface"])?;
    // Read after the ports: a claim comes before its port.
    let claimed = claim::taken().map_err(|error| OvsError::Failed(error.to_string()))?;
    let here = Place::here().map_err(|error| OvsError::Failed(error.to_string()))?;
    Ok(marked(&text)
        .into_iter()
        .filter(|(name, mark)| here.is_left_behind(name, mark, &claimed))
        .map(|(name, _)| name)
        .collect())
}

/// Runs the program and returns what it prints.
pub(crate) fn run(words: &[&str]) -> Result<String, OvsError> {
    let output = Command::new(PROGRAM).arg(format!("--timeout={TIMEOUT_S}")).args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => OvsError::Missing,
        _ => OvsError::Failed(format!("cannot run {PROGRAM}: {error}")),
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
        OvsError::Failed(line.to_owned())
    })
}

/// Names and marks of our ports, in a table that the program prints as JSON
/// (RFC 7047 5.1: a map is `["map", [[key, value], ...]]`).
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

/// The place where a port was made: a boot of the host, and a network namespace, by the number of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    boot: String,
    namespace: String,
}

impl Place {
    pub(crate) fn here() -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let namespace = fs::metadata("/proc/self/ns/net")?.ino().to_string();
        Ok(Self { boot, namespace })
    }

    pub(crate) fn mark(&self) -> String {
        format!("{}/{}", self.boot, self.namespace)
    }

    /// True if no process can have the port any more. A port of this boot but another namespace may have one.
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
