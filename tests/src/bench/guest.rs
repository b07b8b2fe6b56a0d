//! A stock Linux guest on minivmm, on QEMU and on QEMU with vhost-net, in turns: TCP, small UDP packets, requests and
//! responses; with the host, and TCP with a namespace beyond it, which bridges and NAT lead to.
//!
//! All machines are up at once on one bridge and every test goes round them, so that they share whatever else the host
//! does. iperf3 runs on the host and in the guests; requests are single bytes to an echo of busybox. Processor time is
//! that of the VMM's process with its virtual processors, and of vhost's thread, which belongs to it.
//!
//! Where KVM boots no Linux all of this happens in the host VM, whose one emulated processor the guest, the VMM and
//! iperf3 share: there the figures are ratios and nothing else. Run it inside `namespace::isolate`.

mod report;
mod traffic;
mod vm;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use report::{Goals, Report, Row};
pub(super) use traffic::{DATAGRAM_PORT, ECHO_PORT, Peer};
pub(super) use vm::{Contestant, Vm};

use super::Spread;
use crate::bench::clock;
use crate::lan::sh;
use traffic::{Moved, OUTSIDE, Test};

/// The bridge, and the first three numbers of its network.
const BRIDGE: &str = "br0";
const NETWORK: &str = "10.77.0";
/// The network between the host and [`OUTSIDE`], which is a port of the bridge besides.
const ROUTED: &str = "10.78.0";

/// The VMs to start, and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program under test.
    pub minivmm: PathBuf,
    /// Another minivmm, to be measured beside.
    pub before: Option<PathBuf>,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// Its initramfs, with iperf3.
    pub initramfs: PathBuf,
    /// Rounds; the first one is not counted.
    pub runs: u32,
    /// Seconds of each test.
    pub seconds: u32,
    /// Only minivmm, on a bridge and behind NAT; two of each, as one machine may by itself be 5 % faster than the next.
    pub only_nat: bool,
    /// Only tests with this in their names.
    pub filter: String,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
#[error("{what} on {contestant} failed")]
pub struct Error {
    what: &'static str,
    contestant: &'static str,
    source: io::Error,
}

/// Runs the benchmark.
///
/// # Errors
/// If a machine does not come up or a test fails.
pub fn run(plan: &Plan) -> Result<Report, Error> {
    make_networks();
    let mut vms = Vec::new();
    for contestant in Contestant::all(plan) {
        eprintln!("starting {}", contestant.name());
        let failed = |source| Error { what: "the start", contestant: contestant.name(), source };
        let vm = Vm::start(contestant, plan, u8::try_from(vms.len()).unwrap_or(u8::MAX)).map_err(failed)?;
        vms.push((contestant, vm));
    }
    let tests: Vec<Test> = Test::ALL.into_iter().filter(|test| test.name().contains(&plan.filter)).collect();
    let turns = || tests.iter().flat_map(|test| vms.iter().map(move |(contestant, vm)| (test, *contestant, vm)));
    let mut samples: BTreeMap<_, Vec<Moved>> = BTreeMap::new();
    for round in 0..=plan.runs {
        eprintln!("round {round} of {}", plan.runs);
        for (test, contestant, vm) in turns() {
            let failed = |source| Error { what: test.name(), contestant: contestant.name(), source };
            let moved = once(*test, vm, plan.seconds).map_err(failed)?;
            if round > 0 {
                samples.entry((test.name(), contestant.name())).or_default().push(moved);
            }
        }
    }
    // Several machines of one kind are one row, where the first of them comes.
    let rows = turns().filter_map(|(test, contestant, _)| {
        let samples = samples.remove(&(test.name(), contestant.name()))?;
        Some(Row {
            test: test.name(),
            unit: test.unit(),
            contestant: contestant.name(),
            rate: Spread::of(samples.iter().map(|moved| moved.amount / moved.seconds)),
            cpu_us_per_unit: Spread::of(samples.iter().map(|moved| moved.cpu * 1e6 / moved.amount)),
            vmm_cpu_us_per_unit: Spread::of(samples.iter().map(|moved| moved.vmm_cpu * 1e6 / moved.amount)),
        })
    });
    Ok(Report { runs: plan.runs, seconds: plan.seconds, rows: rows.collect(), goals: report::GOALS })
}

/// Makes the bridge, and a machine beyond the host.
pub(super) fn make_networks() {
    sh(&format!(
        "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do ! test -e $f || echo 1 >$f; done;
         ip link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0 &&
         ip addr add {NETWORK}.1/24 dev {BRIDGE} && ip link set {BRIDGE} up &&
         mkdir -p /run/netns && mount -t tmpfs names /run/netns && ip netns add {OUTSIDE} && ip link add out0 type veth peer bridged netns {OUTSIDE} &&
         ip link add out1 type veth peer routed netns {OUTSIDE} && ip link set out0 master {BRIDGE} up &&
         ip addr add {ROUTED}.1/24 dev out1 && ip link set out1 up &&
         ip -n {OUTSIDE} addr add {NETWORK}.2/24 dev bridged && ip -n {OUTSIDE} link set bridged up &&
         ip -n {OUTSIDE} addr add {ROUTED}.2/24 dev routed && ip -n {OUTSIDE} link set routed up"
    ));
}

fn once(test: Test, vm: &Vm, seconds: u32) -> io::Result<Moved> {
    let before = clock::thread_times(vm.pid())?;
    let mut moved = test.run(vm.peer(), Duration::from_secs(seconds.into()))?;
    let after = clock::thread_times(vm.pid())?;
    moved.vmm_cpu = after.other.saturating_sub(before.other).as_secs_f64();
    moved.cpu = moved.vmm_cpu + after.vcpu.saturating_sub(before.vcpu).as_secs_f64();
    Ok(moved)
}
