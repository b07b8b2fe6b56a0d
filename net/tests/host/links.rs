//! The link states of its cards that the VMM is told.

use std::time::Instant;

use net::link::Duplex;
use net::{Keeper, LinkState, News, Port, Request};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Case;
use crate::lan::{bridge_with_uplink, empty_bridge, sh};
use crate::vmm::DEADLINE;

pub(crate) const CASES: &[Case] = &[
    ("link_follows_the_tap", tap),
    ("link_follows_the_state_of_the_port", port_state),
    ("link_follows_the_bridge", bridge),
    ("link_waits_for_the_spanning_tree", spanning_tree),
    ("link_goes_down_and_comes_back_with_a_tap_that_is_put_back", put_back),
    ("link_of_a_moved_tap_follows_its_new_bridge", moved),
    ("link_of_a_tap_alone_needs_no_bridge", tap_alone),
    ("link_of_an_inherited_tap_follows_it", inherited),
    ("link_is_told_for_each_card", two_cards),
];

struct Vm {
    keeper: Keeper,
    ports: Vec<Port>,
}

impl Vm {
    /// A VM whose cards have all been reported as up.
    fn start(cards: &[&str]) -> Self {
        let specs = cards.iter().map(|card| card.parse().unwrap()).collect();
        let mut keeper =
            Keeper::start(&Request { vm_name: "web".to_owned(), vcpus: 1, cards: specs, policy: None, steering: None })
                .unwrap();
        let ports = keeper.ports().unwrap();
        let vm = Self { keeper, ports };
        for card in 0..cards.len() {
            assert_eq!(vm.news(), (card, true));
        }
        vm
    }

    /// The keeper's next message: a card, and true if its link is up.
    fn news(&self) -> (usize, bool) {
        let (card, state) = self.full_news();
        (card, state.up)
    }

    fn full_news(&self) -> (usize, LinkState) {
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            let mut fds = [PollFd::new(self.keeper.socket().unwrap(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(1000u16)).unwrap();
            match self.keeper.news() {
                Some(News::Link { card, state }) => return (card, state),
                Some(News::Conflicts { .. }) => panic!("nobody else is there"),
                Some(News::Ended) => panic!("the keeper has ended"),
                Some(News::Mtu { .. } | News::NotKept(_)) | None => {}
            }
        }
        panic!("the keeper said nothing in time");
    }

    fn stop(self) {
        drop(self.ports);
        self.keeper.stop().unwrap();
    }
}

/// Each command changes the link state of card 0.
fn turn(vm: &Vm, commands: &[(&str, bool)]) {
    for (command, up) in commands {
        sh(command);
        assert_eq!(vm.news(), (0, *up), "{command}");
    }
}

fn tap() {
    bridge_with_uplink("br0");
    let vm = Vm::start(&["bridge=br0"]);
    turn(&vm, &[("ip link set vmtap0 down", false), ("ip link set vmtap0 up", true)]);
    turn(&vm, &[("ip link set vmtap0 carrier off", false), ("ip link set vmtap0 carrier on", true)]);
    vm.stop();
}

fn port_state() {
    bridge_with_uplink("br0");
    let vm = Vm::start(&["bridge=br0"]);
    turn(&vm, &[("bridge link set dev vmtap0 state 0", false), ("bridge link set dev vmtap0 state 3", true)]);
    vm.stop();
}

fn bridge() {
    bridge_with_uplink("br0");
    let vm = Vm::start(&["bridge=br0"]);
    turn(&vm, &[("ip link set br0 down", false), ("ip link set br0 up", true)]);
    vm.stop();
}

fn spanning_tree() {
    sh("ip link add br0 type bridge stp_state 1 forward_delay 200");
    sh("ip link set br0 up");
    let cards = vec!["bridge=br0".parse().unwrap()];
    let mut keeper =
        Keeper::start(&Request { vm_name: "web".to_owned(), vcpus: 1, cards, policy: None, steering: None }).unwrap();
    let ports = keeper.ports().unwrap();
    let vm = Vm { keeper, ports };
    assert_eq!(vm.news(), (0, false));
    assert_eq!(vm.news(), (0, true));
    vm.stop();
}

fn put_back() {
    bridge_with_uplink("br0");
    let vm = Vm::start(&["bridge=br0"]);
    sh("ip link set vmtap0 nomaster");
    assert_eq!((vm.news(), vm.news()), ((0, false), (0, true)));
    sh("ip link del br0");
    assert_eq!(vm.news(), (0, false));
    empty_bridge("br0");
    assert_eq!(vm.news(), (0, true));
    vm.stop();
}

fn moved() {
    bridge_with_uplink("br0");
    sh("ip link add br1 type bridge");
    let vm = Vm::start(&["bridge=br0"]);
    turn(&vm, &[("ip link set vmtap0 master br1", false), ("ip link set br1 up", true)]);
    vm.stop();
}

fn tap_alone() {
    sh("ip tuntap add tap0 mode tap");
    let vm = Vm::start(&["tap=tap0"]);
    turn(&vm, &[("ip link set tap0 down", false), ("ip link set tap0 up", true)]);
    empty_bridge("br0");
    sh("ip link set br0 down");
    turn(&vm, &[("ip link set tap0 master br0", false), ("ip link set tap0 nomaster", true)]);
    vm.stop();
}

fn inherited() {
    use std::os::fd::AsRawFd;
    empty_bridge("br0");
    let maker = Vm::start(&["bridge=br0"]);
    let fd = maker.ports[0].fds[0].as_raw_fd();
    let vm = Vm::start(&[&format!("fd={fd},mac=52:54:00:00:00:01")]);
    turn(&vm, &[("ip link set br0 down", false), ("ip link set br0 up", true)]);
    vm.stop();
    maker.stop();
}

fn two_cards() {
    bridge_with_uplink("br0");
    let vm = Vm::start(&["bridge=br0", "bridge=br0"]);
    sh("ip link set vmtap1 down");
    let (card, state) = vm.full_news();
    assert_eq!((card, state), (1, LinkState { up: false, speed: Some(10_000), duplex: Some(Duplex::Full) }));
    sh("ip link set vmtap1 up");
    assert_eq!(vm.news(), (1, true));
    vm.stop();
}
