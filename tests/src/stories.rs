//! The stories: what a user does with minivmm, end to end, each one a test with a name.
//!
//! A story runs as a process of its own, `tests story NAME`, in fresh namespaces ([`crate::namespace`]), on a KVM that
//! boots Linux. It fails by panicking. What it prints on standard output is its report, shown at the end of a run.
//! Stories are tests and written like tests: they panic where an expectation is not met.
#![allow(clippy::expect_used, reason = "stories are tests")]

mod bad_input;
mod boot;
mod bridge;
mod card;
mod datagrams;
mod disk;
mod docs;
mod dpdk;
mod ecn;
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
mod stop;
mod vhost;
mod vlans;

use crate::stage::Stage;

/// One story.
#[derive(Clone, Copy)]
pub struct Story {
    /// Its name: subject and expectation.
    pub name: &'static str,
    /// What happens.
    pub tell: fn(&Stage),
}

/// All stories, in the order of the files.
pub fn all() -> impl Iterator<Item = &'static Story> {
    [
        boot::STORIES,
        bridge::STORIES,
        card::STORIES,
        datagrams::STORIES,
        disk::STORIES,
        docs::STORIES,
        dpdk::STORIES,
        ecn::STORIES,
        flows::STORIES,
        impair::STORIES,
        large::STORIES,
        memory::STORIES,
        nat::STORIES,
        ovs::STORIES,
        policy::STORIES,
        queues::STORIES,
        ready::STORIES,
        resets::STORIES,
        rss::STORIES,
        stop::STORIES,
        vhost::STORIES,
        vlans::STORIES,
        bad_input::STORIES,
    ]
    .into_iter()
    .flatten()
}
