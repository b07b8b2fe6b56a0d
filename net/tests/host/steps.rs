//! Every kind of step, cancelled where it waits for the kernel, and then whole: its own undo takes back what it has
//! done.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;

use net::rehearsal::{Cut, Rehearsal, rehearse};
use net::step::KINDS;
use net::{Keeper, Policy, Request};

use crate::Case;
use crate::guest::Namespace;
use crate::kills::state::State;
use crate::kills::{POLICY, prepare};
use crate::lan::{empty_bridge, exists, sh};
use crate::ovs::Switch;
use crate::rates;

pub(crate) const CASES: &[Case] =
    &[("step_that_is_cut_short_is_taken_back_by_its_own_undo", every_kind_but_those_of_vlans)];

/// For kernels whose bridges have VLANs.
pub(crate) const VLAN_CASES: &[Case] =
    &[("step_for_vlans_that_is_cut_short_is_taken_back_by_its_own_undo", kinds_of_vlans)];

/// Kinds for bridges with VLANs.
const OF_VLANS: [&str; 2] = ["FilterVlans", "JoinVlans"];

/// Cards whose plans have the other kinds of steps that need no more than the host of `kills`.
const PLAIN: &[&[&str]] = &[
    &["nat,ipv6=on,forward=tcp:127.0.0.1:8080:80"],
    &["host=lab"],
    &["bridge=lan,create=on,stp=on,forward-delay=2"],
    &["bridge=lan,create=on,uplink=nic0"],
    &["bridge=lan,create=on,uplink=wan0,move-addresses=on"],
    &["bridge=bare"],
    &["bridge=br0,mirror=nic0"],
    &["bridge=br0,vhost=on,rate=4M/4M"],
    &["macvtap=nic0,mode=private,queues=2"],
    &["macvtap=nic0,mode=passthru"],
    &["ovs=b0,iface-id=pod,queues=2"],
    &["tap=mine0"],
];

/// Cards on a bridge that is to filter, and on one that does already.
const IN_VLANS: &[&[&str]] = &[
    &["bridge=lan,create=on,vlan=100"],
    &["bridge=lan,create=on,trunk=10+20,native=5", "bridge=lan,vlan=20"],
    &["bridge=lan,create=on,uplink=nic0,vlan=100"],
    &["bridge=filtering,trunk=10-20"],
    &["bridge=filtering,vlan=7,antispoof=on"],
];

/// A host, and the steps seen on it.
struct Stage {
    switch: Option<Switch>,
    _neighbours: Vec<Namespace>,
    before: State,
    /// The kinds of steps that have run, and those of them that have been cancelled.
    seen: BTreeSet<&'static str>,
    cut: BTreeSet<&'static str>,
}

impl Stage {
    fn set() -> Self {
        rates::device();
        let switch = Switch::start();
        switch.be_the_only_one();
        let neighbours = prepare();
        // A bridge and a tap that have been used once, which changes for good how the kernel lists them.
        empty_bridge("bare");
        sh("ip link set bare address 02:00:00:00:be:01");
        sh("ip tuntap add mine0 mode tap vnet_hdr");
        sh("ip link set mine0 master bare up");
        sh("ip link set mine0 nomaster down");
        Self::of(Some(switch), neighbours.into())
    }

    /// A host with a bridge that filters and an interface, without Open vSwitch.
    fn with_vlans() -> Self {
        sh("ip link add nic0 type veth peer name nic1");
        sh("ip link set nic0 up");
        sh("ip link set nic1 up");
        sh("ip link add filtering type bridge vlan_filtering 1");
        sh("ip link set filtering address 02:00:00:00:be:02 up");
        // A bridge and a tap that have been used once, which changes for good how the kernel lists them.
        sh("ip tuntap add mine0 mode tap vnet_hdr");
        sh("ip link set mine0 master filtering up");
        sh("ip link set mine0 nomaster down");
        Self::of(None, Vec::new())
    }

    fn of(switch: Option<Switch>, neighbours: Vec<Namespace>) -> Self {
        let before = State::look(switch.as_ref());
        Self { switch, _neighbours: neighbours, before, seen: BTreeSet::new(), cut: BTreeSet::new() }
    }

    /// Rehearses a plan as a whole, and cancelled in the middle of each of its steps. Leftovers that the plan removes
    /// for good are put there before.
    fn rehearse(&mut self, cards: &[&str], policy: Option<&str>, left: Left) {
        let policy = policy.map(|text| serde_json::from_str::<Policy>(text).expect("a policy"));
        let cards: Vec<_> = cards.iter().map(|card| card.parse().expect("a card")).collect();
        let request = Request { vm_name: "web".to_owned(), vcpus: 1, cards, policy, steering: None };
        let whole = self.rehearse_once(&request, None, left);
        for (step, (kind, polls)) in whole.done.iter().enumerate() {
            self.seen.insert(kind);
            // A step that never waits is done at the first poll. For one that waits, the number of polls varies.
            let mut polls = *polls;
            while polls > 1 && !self.cut.contains(kind) {
                polls /= 2;
                let cut = self.rehearse_once(&request, Some(Cut { step, polls }), left);
                self.cut.extend(cut.cut.filter(|cut| cut == kind));
            }
            assert!(polls == 1 || self.cut.contains(kind), "{kind}, step {step} of {:?}", request.cards);
        }
    }

    fn rehearse_once(&self, request: &Request, cut: Option<Cut>, left: Left) -> Rehearsal {
        left.put(self.switch.as_ref());
        let what = format!("{:?} with {cut:?}", request.cards);
        let rehearsed = rehearse(request, cut).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!(rehearsed.reports, [], "{what}");
        left.clear(self.switch.as_ref());
        self.before.await_again(self.switch.as_ref(), &format!("{what}: {rehearsed:?}"));
        rehearsed
    }
}

/// The leftovers of a VM that was killed with its keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    Macvtap,
    OvsPort,
}

impl Left {
    fn put(self, switch: Option<&Switch>) {
        match self {
            Self::Nothing => {}
            Self::Macvtap => drop(sh("ip link add link nic0 name vmtap0000left group 28022 type macvtap")),
            Self::OvsPort => {
                let port = "-- set Interface left0 type=internal external_ids:minivmm=earlier/1";
                let switch = switch.expect("a switch");
                switch.ctl(&format!("add-port b0 left0 {port}")).expect("a port");
            }
        }
    }

    /// Removes them if the plan has not got that far.
    fn clear(self, switch: Option<&Switch>) {
        if exists("vmtap0000left") {
            sh("ip link del vmtap0000left");
        }
        if self == Self::OvsPort {
            let switch = switch.expect("a switch");
            switch.ctl("--if-exists del-port left0").expect("a switch");
        }
    }
}

fn every_kind_but_those_of_vlans() {
    let mut stage = Stage::set();
    for cards in PLAIN {
        stage.rehearse(cards, None, Left::Nothing);
    }
    stage.rehearse(&["bridge=br0", "nat"], Some(POLICY), Left::Nothing);
    stage.rehearse(&["macvtap=nic0"], None, Left::Macvtap);
    stage.rehearse(&["ovs=b0"], None, Left::OvsPort);
    beside_another(&mut stage);
    let missing: Vec<_> = KINDS.iter().filter(|kind| !stage.seen.contains(*kind) && !OF_VLANS.contains(kind)).collect();
    assert!(missing.is_empty(), "not rehearsed: {missing:?}");
    println!("{} kinds of steps, {} of them cut short: {:?}", stage.seen.len(), stage.cut.len(), stage.cut);
}

fn kinds_of_vlans() {
    let mut stage = Stage::with_vlans();
    for cards in IN_VLANS {
        stage.rehearse(cards, None, Left::Nothing);
    }
    assert!(OF_VLANS.iter().all(|kind| stage.cut.contains(kind)), "cut short: {:?}", stage.cut);
}

/// A bridge of ours that another VM uses stays as it is, and so does a tap of another process.
fn beside_another(stage: &mut Stage) {
    let cards = ["nat", "bridge=br0"].map(|card| card.parse().expect("a card")).to_vec();
    let request = Request { vm_name: "other".to_owned(), vcpus: 1, cards, policy: None, steering: None };
    let mut other = Keeper::start(&request).expect("a keeper");
    let ports = other.ports().expect("ports");
    let alone = std::mem::replace(&mut stage.before, State::look(stage.switch.as_ref()));
    stage.rehearse(&["nat"], None, Left::Nothing);
    stage.rehearse(&[&format!("fd={}", ports[1].fds[0].as_raw_fd())], None, Left::Nothing);
    drop(ports);
    other.stop().expect("an end");
    alone.await_again(stage.switch.as_ref(), "the other VM");
}
