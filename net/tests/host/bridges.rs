//! `bridge=`: the settings of a card's tap, and that the bridge keeps its own.

use std::os::fd::AsRawFd;

use net::{Keeper, MacAddr, NetSpec, Request};

use crate::Case;
use crate::lan::{Monitor, bridge_with_uplink, empty_bridge, exists, link, names, sh, snapshot, until};
use crate::vmm::Vmm;

pub(crate) const CASES: &[Case] = &[
    ("bridge_tap_is_attached_up_and_has_a_host_side_address", tap_is_attached),
    ("bridge_address_never_changes", bridge_address_never_changes),
    ("bridge_mtu_is_matched", mtu_is_matched),
    ("bridge_port_tells_the_vmm_what_it_needs", port_tells_the_vmm),
    ("bridge_with_eight_cards_and_many_queues", eight_cards),
    ("bridge_is_created_and_removed", created_and_removed),
    ("bridge_created_takes_part_in_a_spanning_tree", spanning_tree),
    ("bridge_left_behind_takes_the_spanning_tree_of_the_next_vm", spanning_tree_left_out),
    ("bridge_created_goes_with_the_last_of_two_vms", goes_with_the_last),
    ("bridge_created_by_many_vms_at_once_is_one", many_at_once),
    ("bridge_created_survives_with_a_foreign_port", survives_with_a_foreign_port),
    ("bridge_of_somebody_else_is_never_removed", somebody_elses_bridge),
    ("bridge_takes_a_detached_tap_back", detached_tap),
    ("bridge_made_anew_takes_its_taps_back", bridge_made_anew),
    ("bridge_change_on_purpose_is_respected", moved_tap),
];

fn tap_is_attached() {
    bridge_with_uplink("br0");
    let vmm = Vmm::spawn("web", &["bridge=br0,mac=52:54:00:12:34:56"]);
    assert_eq!(vmm.taps(), ["vmtap0"]);
    let tap = link("vmtap0");
    assert_eq!(tap["master"], "br0");
    assert_eq!(tap["address"], "fe:54:00:12:34:56");
    assert_eq!(tap["mtu"], 1500);
    assert_eq!(tap["qdisc"], "noqueue");
    assert_eq!(tap["ifalias"], "minivmm vm=web card=0 mode=bridge net=br0");
    assert!(tap["flags"].as_array().unwrap().contains(&"UP".into()));
    let info = &tap["linkinfo"]["info_data"];
    assert_eq!(info["type"], "tap");
    assert_eq!(info["vnet_hdr"], true);
    assert_eq!(info["pi"], false);
    assert_eq!(info["persist"], false);
    assert_eq!(tap["linkinfo"]["info_slave_data"]["state"], "forwarding");
    vmm.stop();
}

fn bridge_address_never_changes() {
    bridge_with_uplink("br0");
    empty_bridge("br1");
    empty_bridge("br2");
    // Two ports of other programs, one with an address below those of our taps, one above.
    sh("ip link set up0 address 02:00:00:00:00:01");
    sh("ip link add up2 address fe:ff:ff:ff:ff:fe type veth peer name peer2");
    sh("ip link set up2 master br2");
    let addresses = || ["br0", "br1", "br2"].map(|bridge| link(bridge)["address"].clone());
    let before = addresses();
    assert_eq!([&before[0], &before[2]], ["02:00:00:00:00:01", "fe:ff:ff:ff:ff:fe"]);
    let vmm = Vmm::start("web", &["bridge=br0", "bridge=br1", "bridge=br2"]);
    assert_eq!(addresses(), before);
    vmm.stop();
    assert_eq!(addresses(), before);
}

fn mtu_is_matched() {
    bridge_with_uplink("br0");
    for name in ["peer0", "up0", "br0"] {
        sh(&format!("ip link set {name} mtu 9000"));
    }
    let specs = ["bridge=br0", "bridge=br0,mtu=1400"].map(|spec| spec.parse::<NetSpec>().unwrap());
    let mut keeper = Keeper::start(&Request {
        vm_name: "web".to_owned(),
        vcpus: 1,
        cards: specs.to_vec(),
        policy: None,
        steering: None,
    })
    .unwrap();
    let ports = keeper.ports().unwrap();
    assert_eq!([ports[0].mtu, ports[1].mtu], [9000, 1400]);
    for name in ["vmtap0", "vmtap1", "br0"] {
        assert_eq!(link(name)["mtu"], 9000);
    }
    drop(ports);
    keeper.stop().unwrap();
    assert_eq!(link("br0")["mtu"], 9000);
}

fn port_tells_the_vmm() {
    bridge_with_uplink("br0");
    let cards = vec!["bridge=br0,queues=3".parse().unwrap()];
    let mut keeper =
        Keeper::start(&Request { vm_name: "web".to_owned(), vcpus: 1, cards, policy: None, steering: None }).unwrap();
    let (ports, timing) = keeper.ports_timed().unwrap();
    assert_eq!(ports.len(), 1);
    assert_eq!(ports[0].tap_name, "vmtap0");
    assert_eq!(ports[0].bridge.as_deref(), Some("br0"));
    assert_eq!(ports[0].mac, MacAddr::for_vm("web", 0));
    assert_eq!(ports[0].fds.len(), 3);
    assert_eq!(link("vmtap0")["linkinfo"]["info_data"]["numqueues"], 3);
    assert!(timing.apply_us > 0);
    for fd in &ports[0].fds {
        let number = fd.as_raw_fd();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let flags = i32::from_str_radix(flags, 8).unwrap();
        assert_ne!(flags & nix::libc::O_NONBLOCK, 0);
        assert_ne!(flags & nix::libc::O_CLOEXEC, 0);
    }
    drop(ports);
    keeper.stop().unwrap();
}

fn eight_cards() {
    bridge_with_uplink("br0");
    let before = snapshot();
    let mut specs = vec!["bridge=br0"; 7];
    specs.push("bridge=br0,queues=64");
    let vmm = Vmm::spawn("web", &specs);
    let taps: Vec<String> = (0..8).map(|idx| format!("vmtap{idx}")).collect();
    assert_eq!(vmm.taps(), taps);
    assert_eq!(link("vmtap7")["linkinfo"]["info_data"]["numqueues"], 64);
    vmm.stop();
    assert_eq!(snapshot(), before);
}

fn created_and_removed() {
    let before = snapshot();
    let vmm = Vmm::start("web", &["bridge=lan,create=on,mtu=4000", "bridge=lan,create=on"]);
    let bridge = link("lan");
    assert_eq!(bridge["linkinfo"]["info_kind"], "bridge");
    assert_eq!(bridge["mtu"], 4000);
    assert_eq!(bridge["group"], "28022");
    assert_eq!(bridge["ifalias"], "minivmm: goes with its last port");
    assert!(bridge["flags"].as_array().unwrap().contains(&"UP".into()));
    assert_eq!(link("vmtap0")["master"], "lan");
    assert_eq!(link("vmtap1")["master"], "lan");
    vmm.stop();
    assert_eq!(snapshot(), before);
}

fn spanning_tree() {
    let before = snapshot();
    let flag = "bridge=lan,create=on,stp=on,forward-delay=2";
    let first = Vmm::start("first", &[flag]);
    let second = Vmm::start("second", &[flag]);
    let bridge = &link("lan")["linkinfo"]["info_data"];
    assert_eq!(bridge["stp_state"], 1);
    assert_eq!(bridge["forward_delay"], 200);
    for tap in ["vmtap0", "vmtap1"] {
        until(|| link(tap)["linkinfo"]["info_slave_data"]["state"] == "forwarding");
    }
    first.stop();
    second.stop();
    assert_eq!(snapshot(), before);
}

fn spanning_tree_left_out() {
    let before = snapshot();
    // A keeper can also be killed between the bridge and its tree.
    let mut killed = Vmm::start("web", &["bridge=lan,create=on"]);
    killed.kill_keeper();
    killed.kill();
    assert_eq!(killed.end(), "");
    let next = Vmm::start("web", &["bridge=lan,create=on,stp=on,forward-delay=2"]);
    let bridge = &link("lan")["linkinfo"]["info_data"];
    assert_eq!((&bridge["stp_state"], &bridge["forward_delay"]), (&1.into(), &200.into()));
    next.stop();
    assert_eq!(snapshot(), before);
}

fn goes_with_the_last() {
    let before = snapshot();
    for first_leaves_first in [true, false] {
        let first = Vmm::start("first", &["bridge=lan,create=on"]);
        let second = Vmm::start("second", &["bridge=lan"]);
        let (leaver, stayer) = if first_leaves_first { (first, second) } else { (second, first) };
        leaver.stop();
        assert!(exists("lan"));
        stayer.stop();
        assert_eq!(snapshot(), before);
    }
}

fn many_at_once() {
    let before = snapshot();
    let vmms: Vec<Vmm> = (0..12).map(|idx| Vmm::spawn(&format!("vm{idx}"), &["bridge=lan,create=on"])).collect();
    for vmm in &vmms {
        let tap = &vmm.taps()[0];
        assert_eq!(link(tap)["master"], "lan");
    }
    for vmm in vmms {
        vmm.stop();
    }
    assert_eq!(snapshot(), before);
}

fn survives_with_a_foreign_port() {
    let vmm = Vmm::start("web", &["bridge=lan,create=on"]);
    sh("ip link add up0 type veth peer name peer0");
    sh("ip link set up0 master lan");
    vmm.stop();
    assert_eq!(names(), ["lan", "peer0", "up0"]);
}

fn somebody_elses_bridge() {
    empty_bridge("br0");
    Vmm::start("web", &["bridge=br0,create=on"]).stop();
    assert_eq!(names(), ["br0"]);
}

fn detached_tap() {
    bridge_with_uplink("br0");
    let vmm = Vmm::start("web", &["bridge=br0"]);
    let monitor = Monitor::start();
    for _ in 0..3 {
        sh("ip link set vmtap0 nomaster");
        monitor.wait_for(|line| line.contains(" vmtap0:") && !line.contains(" master "));
        monitor.wait_for(|line| line.contains(" vmtap0:") && line.contains(" master br0 "));
    }
    let tap = link("vmtap0");
    assert_eq!(tap["linkinfo"]["info_slave_data"]["state"], "forwarding");
    let mut vmm = vmm;
    assert_eq!(vmm.order("stop"), "stopped");
    assert_eq!(vmm.end(), "warn: Tap vmtap0 was taken off bridge br0 and has been put back\n".repeat(3));
}

fn bridge_made_anew() {
    empty_bridge("br0");
    let mut vmm = Vmm::start("web", &["bridge=br0"]);
    let monitor = Monitor::start();
    sh("ip link del br0");
    monitor.wait_for(|line| line.contains(" vmtap0:") && !line.contains(" master "));
    empty_bridge("br0");
    monitor.wait_for(|line| line.contains(" vmtap0:") && line.contains(" master br0 "));
    assert_eq!(vmm.order("stop"), "stopped");
    assert_eq!(names(), ["br0"]);
}

fn moved_tap() {
    bridge_with_uplink("br0");
    empty_bridge("br1");
    let mut vmm = Vmm::start("web", &["bridge=br0", "bridge=br0"]);
    let monitor = Monitor::start();
    sh("ip link set vmtap0 master br1");
    // The keeper reads its news in order: when it has put the second tap back, it has left the first alone.
    sh("ip link set vmtap1 nomaster");
    monitor.wait_for(|line| line.contains(" vmtap1:") && !line.contains(" master "));
    monitor.wait_for(|line| line.contains(" vmtap1:") && line.contains(" master br0 "));
    assert_eq!(link("vmtap0")["master"], "br1");
    assert_eq!(vmm.order("stop"), "stopped");
}
