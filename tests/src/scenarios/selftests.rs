//! The kernel's own tests of cards, from `tools/testing/selftests`, in a guest with two cards that are connected to
//! each other on the host; beside QEMU's cards.
//!
//! ```text
//!   guest: eth0 -- tap st0 -- redirected by tc -- tap st1 -- eth1, which is the remote end
//! ```
//!
//! On demand: `./run tests selftests` builds the guest's disk first (`tests/selftests/build`).

use super::Scenario;
use crate::peer::{self, Access, Card, Disk, Machine, Offload, Vmm};
use crate::stage::Stage;
use std::collections::BTreeMap;
use std::time::Duration;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "selftests::drivers_of_queues_stats_checksums_and_hashes", run: drivers },
    Scenario { name: "selftests::min_max_mtu", run: min_max_mtu },
    Scenario { name: "selftests::local_termination", run: local_termination },
    Scenario { name: "selftests::local_termination_vlans", run: local_termination_vlans },
];

/// No test of the kernel's takes longer in an emulated processor.
const PATIENCE: Duration = Duration::from_secs(2400);
const TAPS: [&str; 2] = ["st0", "st1"];
const QUEUES: u32 = 2;

/// The verdicts of a test by the names of its cases.
type Verdicts = BTreeMap<String, String>;

fn drivers(stage: &Stage) {
    beside_qemu(stage, &["queues", "stats", "csum", "toeplitz"]);
}

fn min_max_mtu(stage: &Stage) {
    beside_qemu(stage, &["min_max_mtu"]);
}

fn local_termination(stage: &Stage) {
    beside_qemu(stage, &["local_termination"]);
}

fn local_termination_vlans(stage: &Stage) {
    beside_qemu(stage, &["local_termination_vlans"]);
}

/// Runs tests on both and prints the verdicts beside each other. Panics where a case fails on minivmm, or has a verdict
/// other than a pass that it does not have on QEMU.
fn beside_qemu(stage: &Stage, tests: &[&str]) {
    for tap in TAPS {
        peer::tap(tap);
    }
    peer::connect(TAPS[0], TAPS[1]);
    let [ours, theirs] = Vmm::BOTH.map(|vmm| run(stage, vmm, tests));
    let mut faults = Vec::new();
    println!("{:<90} {:<8} QEMU", "case", "minivmm");
    let none = "-".to_owned();
    for name in ours.keys().chain(theirs.keys().filter(|name| !ours.contains_key(*name))) {
        let (our, their) = (ours.get(name).unwrap_or(&none), theirs.get(name).unwrap_or(&none));
        println!("{name:<90} {our:<8} {their}");
        if our == "FAIL" || (our != "OK" && our != their) {
            faults.push(name.clone());
        }
    }
    assert!(!ours.is_empty(), "no test of the kernel's gave a verdict");
    assert!(faults.is_empty(), "cases that fail, or are left out only here: {faults:?}");
}

fn run(stage: &Stage, vmm: Vmm, tests: &[&str]) -> Verdicts {
    let disk = Disk { path: stage.selftests_disk(), queues: 1, access: Access::ReadOnly };
    let machine = Machine {
        name: "selftests".to_owned(),
        guest: stage.selftests_guest(),
        // Guests with two stand still for minutes where an emulated processor is all that host and guest have.
        cpus: 1,
        mem_mib: 768,
        // csum passes over frames whose checksum is left to the card that receives them, so the remote end takes none.
        cards: [(TAPS[0], Offload::All), (TAPS[1], Offload::Nothing)]
            .map(|(tap, offload)| Card { tap: tap.to_owned(), queues: QUEUES, offload })
            .to_vec(),
        disks: vec![disk],
        parameters: "minivmm.net=off".to_owned(),
        script: format!(
            "mount -t ext4 -o ro /dev/vda /mnt; cd /mnt
             for d in dev proc sys; do mount --rbind /$d $d; done; for d in run tmp; do mount -t tmpfs $d $d; done
             ip link set lo up
             for t in {}; do chroot . /usr/bin/run-here $t 2>&1; done",
            tests.join(" ")
        ),
    };
    let vm = machine.start(vmm, stage.minivmm(), stage.folder());
    for test in tests {
        let code = vm.value_within(&format!("exit-{test}"), PATIENCE);
        println!("{vmm}: {test} ended with {code}");
    }
    let console = vm.console();
    for line in console.lines().filter(|line| line.trim_start().starts_with('#')) {
        println!("{vmm}: {line}");
    }
    assert_eq!(vm.wait_exit(), 0, "exit code of {vmm}");
    console.lines().filter_map(verdict).collect()
}

/// The verdict on a line, as the tests in Python (`ok 1 stats.check_pause # XFAIL why`) and in shell
/// (`TEST: ping  [ OK ]`) give it.
fn verdict(line: &str) -> Option<(String, String)> {
    if let Some(text) = line.strip_prefix("TEST: ") {
        let (name, verdict) = text.trim_end().strip_suffix(']')?.rsplit_once('[')?;
        return Some((name.trim().to_owned(), verdict.trim().to_owned()));
    }
    let (good, text) = line
        .strip_prefix("ok ")
        .map(|text| (true, text))
        .or_else(|| line.strip_prefix("not ok ").map(|text| (false, text)))?;
    let (_, text) = text.split_once(' ')?;
    let (name, remark) = text.split_once('#').unwrap_or((text, ""));
    let directive = remark.split_whitespace().next().filter(|word| ["SKIP", "XFAIL"].contains(word));
    let verdict = directive.unwrap_or(if good { "OK" } else { "FAIL" });
    Some((name.trim().to_owned(), verdict.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Option<(String, String)> {
        verdict(line)
    }

    #[test]
    fn verdicts_of_both_forms_are_read() {
        let named = |name: &str, verdict: &str| Some((name.to_owned(), verdict.to_owned()));
        assert_eq!(of("ok 1 queues.get_queues"), named("queues.get_queues", "OK"));
        assert_eq!(of("not ok 2 csum.ipv4_rx_tcp"), named("csum.ipv4_rx_tcp", "FAIL"));
        assert_eq!(of("ok 1 stats.check_pause # XFAIL pause"), named("stats.check_pause", "XFAIL"));
        assert_eq!(of("ok 3 stats.check_down # SKIP no"), named("stats.check_down", "SKIP"));
        assert_eq!(of("TEST: ping                     [ OK ]"), named("ping", "OK"));
        assert_eq!(of("TEST: eth1: Unicast, promisc   [FAIL]\r"), named("eth1: Unicast, promisc", "FAIL"));
        assert_eq!(of("# Totals: pass:2 fail:0"), None);
    }
}
