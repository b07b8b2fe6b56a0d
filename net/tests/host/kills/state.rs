//! The host state that a start changes, as the host's own programs print it.
//!
//! Few programs are run for it: in an emulated host, starting one takes longer than its output is worth.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::lan::{sh, snapshot};
use crate::ovs::Switch;

/// The columns of Open vSwitch's database that hold neither counters nor momentary state.
const OVS: &str = "-- --columns=_uuid,name,ports,external_ids,other_config list Bridge \
                   -- --columns=_uuid,name,interfaces,tag,trunks,vlan_mode,external_ids list Port \
                   -- --columns=_uuid,name,type,options,mac,ofport_request,external_ids list Interface";

/// Timeout for another keeper to notice a change and act on it.
const SETTLING: Duration = Duration::from_secs(5);

/// All state that a start changes, by the program that prints it.
pub(crate) struct State(Vec<(&'static str, String)>);

impl State {
    /// The state of this namespace, and of an Open vSwitch.
    pub(crate) fn look(switch: Option<&Switch>) -> Self {
        let mut looks = vec![
            ("ip -d link, bridge link, bridge fdb", snapshot()),
            ("ip addr, ip rule, ip route", sorted(&batch("ip", &["addr", "rule", "route show table all"]))),
            ("ip -6 rule", sh("ip -6 rule")),
            ("bridge vlan", sh("bridge vlan")),
            ("nft list ruleset", sh("nft -s list ruleset")),
            ("sysctl", settings()),
        ];
        if let Some(switch) = switch {
            switch.settle();
            looks.push(("ovs-vsctl", switch.ctl(OVS).expect("a list of records")));
        }
        Self(looks)
    }

    /// Fails if the host's state differs.
    pub(crate) fn assert_still(&self, switch: Option<&Switch>, what: &str) {
        if let Some(difference) = self.difference(switch) {
            panic!("{difference} after {what}");
        }
    }

    /// Waits until the host is as it was: another keeper may still be acting on a change.
    pub(crate) fn await_again(&self, switch: Option<&Switch>, what: &str) {
        let start = Instant::now();
        while let Some(difference) = self.difference(switch) {
            assert!(start.elapsed() < SETTLING, "{difference} after {what}");
        }
    }

    /// The difference in the host's state, if any.
    fn difference(&self, switch: Option<&Switch>) -> Option<String> {
        let looks = self.0.iter().zip(Self::look(switch).0);
        looks
            .filter(|((_, before), (_, after))| before != after)
            .map(|((look, before), (_, after))| {
                let (new, gone) = (lines_beyond(&after, before), lines_beyond(before, &after));
                format!("{look}\nnew:\n{new}\ngone:\n{gone}\n")
            })
            .next()
    }
}

/// The output of a program that reads its command lines from stdin.
fn batch(program: &str, lines: &[&str]) -> String {
    let mut command = Command::new(program);
    let pipes = command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = pipes.spawn().expect(program);
    let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    child.stdin.take().expect("stdin").write_all(text.as_bytes()).expect("a program that reads");
    let output = child.wait_with_output().expect(program);
    assert!(output.status.success(), "{program} {lines:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Addresses and routes that have been moved need not come back in the same order.
fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// The settings of all interfaces, of future ones, of bridges and of connection tracking, and whether this is a router.
fn settings() -> String {
    let mut lines = vec![setting(Path::new("/proc/sys/net/ipv4/ip_forward"))];
    for folder in
        ["/proc/sys/net/ipv4/conf", "/proc/sys/net/ipv6/conf", "/proc/sys/net/bridge", "/proc/sys/net/netfilter"]
    {
        collect_settings(Path::new(folder), &mut lines);
    }
    lines.sort_unstable();
    lines.concat()
}

fn collect_settings(folder: &Path, lines: &mut Vec<String>) {
    // A kernel without IPv6 or bridge filters has none.
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect_settings(&path, lines);
        } else if !path.ends_with("nf_conntrack_count") {
            lines.push(setting(&path));
        }
    }
}

/// A setting with its value; without the value if it cannot be read, or has never been set.
fn setting(path: &Path) -> String {
    format!("{} = {}\n", path.display(), fs::read_to_string(path).unwrap_or_default().trim())
}

/// The lines of a text that are missing from another.
fn lines_beyond(text: &str, other: &str) -> String {
    let known: std::collections::BTreeSet<&str> = other.lines().collect();
    text.lines().filter(|line| !known.contains(line)).collect::<Vec<_>>().join("\n")
}
