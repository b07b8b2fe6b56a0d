//! The scenarios: what a user does with minivmm, end to end, each one a test with a name.
//!
//! A scenario runs as a process of its own, `tests scenario NAME`, in fresh namespaces ([`crate::namespace`]), on a KVM
//! that boots Linux. It fails by panicking. What it prints on standard output is its report, shown at the end of a run.
//! Scenarios are tests and written like tests: they panic where an expectation is not met.
#![allow(clippy::expect_used, reason = "scenarios are tests")]

mod bad_input;
mod boot;
mod bridge;
mod card;
mod datagrams;
mod debian;
mod disk;
mod docs;
mod dpdk;
mod ecn;
mod fio;
mod flows;
mod impair;
mod large;
mod memory;
mod nat;
mod ovs;
mod policy;
mod queues;
mod ready;
mod resets;
mod rss;
mod selftests;
mod stop;
mod vhost;
mod vlans;

use crate::stage::Stage;

/// One scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name: subject and expectation.
    pub name: &'static str,
    /// The test.
    pub run: fn(&Stage),
}

/// All scenarios, in the order of the files.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    [
        boot::SCENARIOS,
        bridge::SCENARIOS,
        card::SCENARIOS,
        datagrams::SCENARIOS,
        disk::SCENARIOS,
        docs::SCENARIOS,
        dpdk::SCENARIOS,
        ecn::SCENARIOS,
        flows::SCENARIOS,
        impair::SCENARIOS,
        large::SCENARIOS,
        memory::SCENARIOS,
        nat::SCENARIOS,
        ovs::SCENARIOS,
        policy::SCENARIOS,
        queues::SCENARIOS,
        ready::SCENARIOS,
        resets::SCENARIOS,
        rss::SCENARIOS,
        stop::SCENARIOS,
        vhost::SCENARIOS,
        vlans::SCENARIOS,
        bad_input::SCENARIOS,
    ]
    .into_iter()
    .flatten()
}

/// Scenarios that take too long for every run: only for a filter that names their subject.
pub fn on_request() -> impl Iterator<Item = &'static Scenario> {
    [debian::SCENARIOS, dpdk::ON_REQUEST, fio::SCENARIOS, selftests::SCENARIOS].into_iter().flatten()
}

/// Tells a scenario with a root disk of Debian packages from one with the disk of the kernel's own tests.
pub fn takes_debian(scenario: &Scenario) -> bool {
    scenario.name.starts_with("debian::")
}
