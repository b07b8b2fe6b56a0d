//! VLANs on a bridge: who is in one meets who else is in it, and a guest on a trunk sees the tags.

use super::Scenario;
use crate::codes;
use crate::lan::sh;
use crate::stage::Stage;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "vlans::guests_meet_who_is_in_their_vlan", run: guests_meet },
    Scenario { name: "vlans::cards_in_vlans_have_all_that_cards_have", run: cases },
    Scenario { name: "vlans::bridge_of_somebody_else_is_refused_until_it_filters", run: somebody_elses_bridge },
];

/// A script that runs until its VM is stopped.
const STAY: &str = "echo up=1; sleep 600";

fn guests_meet(stage: &Stage) {
    let links_before = sh("ip link; bridge vlan");
    let guest = |name: &str, keys: &str, script: &str| {
        let vm = stage.vm().name(name).net(format!("bridge=lan,create=on,{keys}")).parameter("minivmm.net=off");
        vm.script(&format!("ip link set eth0 up\n{script}")).start()
    };
    let red = guest("red", "vlan=100", &format!("ip addr add 10.9.0.1/24 dev eth0; {STAY}"));
    let blue_script =
        format!("ip addr add 10.9.0.2/24 dev eth0; ping -c 2 -W 2 10.9.0.1 >/dev/null; echo red=$?; {STAY}");
    let blue = guest("blue", "vlan=200", &blue_script);
    assert_eq!((red.value("up"), blue.value("up")), ("1".to_owned(), "1".to_owned()));
    assert_eq!(blue.value("red"), "1", "a ping from VLAN 200 to VLAN 100");

    let trunk_script = format!(
        "ip link add link eth0 name red0 type vlan id 100; ip link set red0 up; ip addr add 10.9.0.3/24 dev red0
         ping -c 3 10.9.0.1 >/dev/null; echo red=$?; echo tagged=$(cat /sys/class/net/red0/statistics/rx_packets)
         ping -c 2 -W 2 10.9.0.2 >/dev/null; echo red_to_blue=$?
         ip addr del 10.9.0.3/24 dev red0; ip addr add 10.9.0.3/24 dev eth0
         ping -c 3 10.9.0.2 >/dev/null; echo native=$?; {STAY}"
    );
    let trunk = guest("trunk", "trunk=100-198,native=200", &trunk_script);
    assert_eq!(trunk.value("red"), "0", "a ping with the tag of VLAN 100");
    let tagged: u32 = trunk.value("tagged").parse().expect("a number");
    assert!(tagged >= 3, "{tagged} frames with a tag");
    assert_eq!(trunk.value("red_to_blue"), "1", "a ping with the tag of VLAN 100 to VLAN 200");
    assert_eq!(trunk.value("native"), "0", "a ping without a tag, in VLAN 200");
    let mut members: Vec<Vec<u64>> = members().into_values().collect();
    members.sort();
    println!("tagged frames {tagged}, members {members:?}");
    assert_eq!(members, [vec![100], [(100..=198).collect(), vec![200]].concat(), vec![200]]);
    for vm in [red, blue, trunk] {
        vm.signal(Signal::SIGTERM);
        assert_eq!(vm.wait_exit(), 0, "exit code of a VM that was stopped");
    }
    assert_eq!(sh("ip link; bridge vlan"), links_before, "the host's links after the guests");
}

fn somebody_elses_bridge(stage: &Stage) {
    sh("ip link add lan type bridge; ip link set lan up");
    let vm = || stage.vm().name("web").net("bridge=lan,vlan=7").script(STAY).start();
    let refused = vm();
    assert_eq!(refused.wait_exit(), codes::USAGE, "exit code of a refusal");
    let log = refused.log();
    println!("{log}");
    let hint = "ip link set lan type bridge vlan_filtering 1";
    assert!(log.contains(hint), "the log has no hint: {log}");

    sh(hint);
    let vm = vm();
    assert_eq!(vm.value("up"), "1");
    assert_eq!(members().into_values().collect::<Vec<_>>(), [[7]]);
    vm.signal(Signal::SIGTERM);
    assert_eq!(vm.wait_exit(), 0, "exit code of a VM that was stopped");
    sh("ip link del lan");
}

/// The cases of the network that take a kernel with VLANs, with guests that are namespaces.
fn cases(stage: &Stage) {
    let program = stage.file("host-cases");
    sh(&format!("cp {} {}", stage.host_cases().display(), program.display()));
    let report = sh(&format!("{} vlan 2>&1 || true", program.display()));
    println!("{}", report.trim());
    let passed = |name: &str| report.lines().any(|line| line.starts_with(name) && line.ends_with("... ok"));
    assert!(report.contains("test result: ok.") && report.contains("; 0 failed;"), "{report}");
    for name in ["test mode_vlan_", "test vlans_by_the_hundred_", "test guarded_trunk_", "test step_for_vlans_"] {
        assert!(passed(name), "{report}");
    }
}

/// The taps on bridges and the VLANs of each.
fn members() -> BTreeMap<String, Vec<u64>> {
    let ports: Value = serde_json::from_str(&sh("bridge -j vlan")).expect("JSON");
    let ports = ports.as_array().expect("a list").iter();
    let members = ports.map(|port| {
        let vlans = port["vlans"].as_array().expect("a list").iter();
        let range = |vlan: &Value| {
            let first = vlan["vlan"].as_u64().expect("a number");
            first..=vlan["vlanEnd"].as_u64().unwrap_or(first)
        };
        (port["ifname"].as_str().expect("a name").to_owned(), vlans.flat_map(range).collect())
    });
    members.filter(|(name, _)| name.starts_with("vmtap")).collect()
}
