//! The host after VMM and keeper have ended, in whatever way.

use std::time::{Duration, Instant};

use crate::Case;
use crate::lan::{bridge_with_uplink, exists, link, names, sh, snapshot, until};
use crate::vmm::Vmm;

pub(crate) const CASES: &[Case] = &[
    ("end_by_stop_leaves_nothing", by_stop),
    ("end_by_stop_with_ports_open_leaves_nothing", by_stop_with_ports_open),
    ("end_by_drop_leaves_nothing", by_drop),
    ("end_by_sigkill_of_the_vmm_leaves_nothing", by_sigkill),
    ("end_by_sigkill_during_set_up_leaves_nothing", by_sigkill_during_set_up),
    ("end_of_the_keeper_leaves_the_tap_until_the_vmm_ends", keeper_killed),
    ("end_of_both_leaves_our_bridge_to_the_next_vm", both_killed),
    ("end_of_a_refused_set_up_leaves_nothing", refused_half_way),
];

fn by_stop() {
    bridge_with_uplink("br0");
    let before = snapshot();
    Vmm::start("web", &["bridge=br0", "bridge=lan,create=on"]).stop();
    assert_eq!(snapshot(), before);
}

fn by_stop_with_ports_open() {
    bridge_with_uplink("br0");
    let before = snapshot();
    let mut vmm = Vmm::start("web", &["bridge=br0", "bridge=lan,create=on"]);
    assert_eq!(vmm.order("stop with ports open"), "stopped");
    assert_eq!(vmm.end(), "");
    assert_eq!(snapshot(), before);
}

fn by_drop() {
    bridge_with_uplink("br0");
    let before = snapshot();
    let mut vmm = Vmm::start("web", &["bridge=br0", "bridge=lan,create=on"]);
    assert_eq!(vmm.order("drop"), "dropped");
    assert_eq!(vmm.end(), "");
    assert_eq!(snapshot(), before);
}

fn by_sigkill() {
    bridge_with_uplink("br0");
    let before = snapshot();
    let mut vmm = Vmm::start("web", &["bridge=br0,queues=2", "bridge=lan,create=on"]);
    vmm.kill();
    assert_eq!(vmm.end(), "");
    assert_eq!(snapshot(), before);
}

fn by_sigkill_during_set_up() {
    bridge_with_uplink("br0");
    let before = snapshot();
    // From before the fork to after the hand-over: exec takes a millisecond or two, set-up one.
    for kill_after_us in (0..6000).step_by(300) {
        let mut vmm = Vmm::spawn("web", &["bridge=br0", "bridge=lan,create=on"]);
        let start = Instant::now();
        until(|| start.elapsed() >= Duration::from_micros(kill_after_us));
        vmm.kill();
        vmm.end();
        assert_eq!(snapshot(), before, "killed after {kill_after_us} us");
    }
}

fn keeper_killed() {
    bridge_with_uplink("br0");
    let before = snapshot();
    let mut vmm = Vmm::start("web", &["bridge=br0"]);
    vmm.kill_keeper();
    assert_eq!(vmm.line(), "keeper gone");
    assert!(exists("vmtap0"));
    vmm.kill();
    assert_eq!(vmm.end(), "");
    assert_eq!(snapshot(), before);
}

fn both_killed() {
    let before = snapshot();
    let mut vmm = Vmm::start("web", &["bridge=lan,create=on"]);
    vmm.kill_keeper();
    assert_eq!(vmm.line(), "keeper gone");
    vmm.kill();
    assert_eq!(vmm.end(), "");
    assert_eq!(names(), ["lan"]);
    Vmm::start("web", &["bridge=lan,create=on"]).stop();
    assert_eq!(snapshot(), before);
}

fn refused_half_way() {
    // A single-queue tap is found busy only when it is opened: bridge and tap of the first card exist by then.
    sh("ip tuntap add held mode tap vnet_hdr");
    let holder = Vmm::start("holder", &["tap=held"]);
    until(|| link("held")["operstate"] == "UP");
    let before = snapshot();
    let mut vmm = Vmm::spawn("web", &["bridge=lan,create=on", "tap=held"]);
    let line = vmm.line();
    assert!(line.starts_with("failed Tap held is held by another process or card"), "{line}");
    vmm.wait();
    assert_eq!(vmm.end(), "");
    assert_eq!(snapshot(), before);
    holder.stop();
}
