//! Cards with an address of their own on an interface of the host: who is in reach, and what is left.

use net::gc::{self, Removed};
use net::{Keeper, News, Port, Request};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Case;
use crate::guest::Namespace;
use crate::lan::{exists, link, names, sh, snapshot, until};
use crate::vmm::Vmm;

pub(crate) const CASES: &[Case] = &[
    ("macvtap_reaches_the_outside_and_is_reached", outside),
    ("macvtap_has_the_mtu_of_its_interface", mtu),
    ("macvtap_reaches_its_siblings_in_mode_bridge_only", siblings),
    ("macvtap_does_not_reach_the_host_nor_the_host_it", host),
    ("macvtap_passthru_has_the_interface_and_gives_its_address_back", passthru),
    ("macvtap_hears_the_guests_address", address),
    ("macvtap_frames_are_mirrored_by_their_direction", mirrored),
    ("macvtap_link_follows_its_interface", link_state),
    ("macvtap_leaves_nothing", endings),
    ("macvtap_leaves_nothing_when_killed_during_set_up", killed_during_set_up),
    ("macvtap_whose_keeper_was_killed_stays_until_the_vmm_ends", keeper_killed),
    ("macvtap_left_behind_is_taken_away_by_the_next_vm", next_start),
    ("macvtaps_of_many_vms_start_at_once", many),
    ("macvtap_is_refused_where_it_cannot_be", refusals),
];

/// An interface `up0` with a machine behind it that has 192.0.2.1 and fd00::1; the host has 192.0.2.254.
fn lan() -> Namespace {
    let outside = Namespace::behind("up0", "192.0.2.1/24", "192.0.2.254/24");
    outside.sh("ip addr add fd00::1/64 dev eth0 nodad");
    until(|| link("up0")["operstate"] == "UP");
    outside
}

/// A VM with a guest that has 192.0.2.N and fd00::N.
fn vm(name: &str, spec: &str, number: u8) -> (Vmm, Namespace) {
    let (vm, guest) = Vmm::start_bridged(name, spec);
    guest.sh(&format!("ip addr add 192.0.2.{number}/24 dev eth0"));
    guest.sh(&format!("ip addr add fd00::{number}/64 dev eth0 nodad"));
    (vm, guest)
}

fn reaches(from: &Namespace, address: &str) {
    until(|| from.attempt(&format!("ping -n -c 1 -W 1 {address}")).0);
}

fn does_not_reach(from: &Namespace, address: &str) {
    let (ok, text) = from.attempt(&format!("ping -n -c 2 -i 0.2 -W 1 {address}"));
    assert!(!ok, "{text}");
}

fn outside() {
    let outside = lan();
    let (vmm, guest) = vm("web", "macvtap=up0", 2);
    for address in ["192.0.2.1", "fd00::1"] {
        reaches(&guest, address);
    }
    for address in ["192.0.2.2", "fd00::2"] {
        reaches(&outside, address);
    }
    vmm.stop();
}

fn mtu() {
    let outside = lan();
    sh("ip link set up0 mtu 9000");
    outside.sh("ip link set eth0 mtu 9000");
    let (vmm, guest) = vm("web", "macvtap=up0", 2);
    guest.sh("ip link set eth0 mtu 9000");
    reaches(&guest, "192.0.2.1");
    guest.sh("ping -n -c 1 -W 10 -M do -s 8972 192.0.2.1");
    outside.sh("ping -n -c 1 -W 10 -M do -s 8972 192.0.2.2");
    vmm.stop();
}

fn siblings() {
    let outside = lan();
    for (mode, talk) in [("bridge", true), ("private", false), ("vepa", false)] {
        let spec = format!("macvtap=up0,mode={mode}");
        let (first, guest) = vm("first", &spec, 2);
        let (second, other) = vm("second", &spec, 3);
        reaches(&guest, "192.0.2.1");
        reaches(&outside, "192.0.2.3");
        if talk {
            reaches(&guest, "192.0.2.3");
            reaches(&other, "fd00::2");
        } else {
            does_not_reach(&guest, "192.0.2.3");
        }
        first.stop();
        second.stop();
    }
}

fn host() {
    let _outside = lan();
    let (vmm, guest) = vm("web", "macvtap=up0", 2);
    reaches(&guest, "192.0.2.1");
    does_not_reach(&guest, "192.0.2.254");
    vmm.stop();
}

fn passthru() {
    let outside = lan();
    let before = snapshot();
    let mac = link("up0")["address"].clone();
    let (vmm, guest) = vm("web", "macvtap=up0,mode=passthru,mac=02:00:00:00:00:07", 2);
    assert_eq!(link("up0")["address"], "02:00:00:00:00:07");
    reaches(&guest, "192.0.2.1");
    // Its guest may take an unused address.
    guest.sh("ip link set eth0 address 02:00:00:00:00:08");
    reaches(&guest, "192.0.2.1");
    reaches(&outside, "192.0.2.2");
    reaches(&outside, "fd00::2");
    vmm.stop();
    assert_eq!(link("up0")["address"], mac);
    assert_eq!(snapshot(), before);

    // No keeper is left to restore the address: the kernel does, with the macvtap.
    let mut vmm = Vmm::start("web", &["macvtap=up0,mode=passthru"]);
    kill_both(&mut vmm);
    assert_ne!(link("up0")["address"], mac);
    assert!(matches!(&gc::collect().unwrap().removed[..], [Removed::Macvtap(_)]));
    assert_eq!(snapshot(), before);
}

fn start(spec: &str) -> (Keeper, Port) {
    let cards = vec![spec.parse().unwrap()];
    let mut keeper =
        Keeper::start(&Request { vm_name: "web".to_owned(), vcpus: 1, cards, policy: None, steering: None }).unwrap();
    let port = keeper.ports().unwrap().remove(0);
    (keeper, port)
}

fn address() {
    use std::io::Write;
    let outside = lan();
    let (keeper, port) = start("macvtap=up0");
    let address_listener = port.address_listener.as_ref().unwrap();
    // Incoming frames are not the guest's: ARP asks for it, and no machine answers.
    assert!(!outside.attempt("ping -n -c 1 -W 1 192.0.2.77").0);
    assert_eq!(address_listener.look(), None);

    let mut frame = vec![0; 12 + 60];
    frame[12..18].fill(0xff);
    frame[18..24].copy_from_slice(&port.mac.octets());
    frame[24..34].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame[34..40].copy_from_slice(&port.mac.octets());
    frame[40..44].copy_from_slice(&[192, 0, 2, 9]);
    std::fs::File::from(port.fds[0].try_clone().unwrap()).write_all(&frame).unwrap();

    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(address_listener), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(20_000u16)).unwrap(), 1);
    assert_eq!(address_listener.look(), Some([192, 0, 2, 9].into()));
    drop(port);
    keeper.stop().unwrap();
}

fn mirrored() {
    let _outside = lan();
    sh("ip link add mon0 type veth peer name mon1");
    sh("ip link set mon0 up");
    let (vmm, guest) = vm("web", "macvtap=up0,mirror=mon0", 2);
    reaches(&guest, "192.0.2.1");
    // At least the request and its answer.
    until(|| {
        let counters = sh("nft list counters table netdev minivmm-web/mirror");
        !counters.contains("packets 0 ") && counters.contains("card0-from-guest") && counters.contains("card0-to-guest")
    });
    vmm.stop();
}

fn link_state() {
    let _outside = lan();
    let (keeper, port) = start("macvtap=up0");
    let news = || loop {
        let mut fds = [PollFd::new(keeper.socket().unwrap(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(20_000u16)).unwrap(), 1, "no news");
        match keeper.news() {
            Some(News::Link { state, .. }) => return state.up,
            Some(News::Ended) => panic!("the keeper has ended"),
            Some(_) | None => {}
        }
    };
    assert!(news());
    sh("ip link set up0 down");
    assert!(!news());
    sh("ip link set up0 up");
    assert!(news());
    sh("ip link del up0");
    assert!(!news());
    drop(port);
    keeper.stop().unwrap();
}

fn kill_both(vmm: &mut Vmm) {
    vmm.kill_keeper();
    assert_eq!(vmm.line(), "keeper gone");
    vmm.kill();
    assert_eq!(vmm.end(), "");
}

fn endings() {
    let _outside = lan();
    let before = snapshot();
    let specs = &["macvtap=up0,queues=2", "macvtap=up0,mode=private"];
    Vmm::start("web", specs).stop();
    assert_eq!(snapshot(), before);

    let mut vmm = Vmm::start("web", specs);
    assert_eq!(vmm.order("stop with ports open"), "stopped");
    assert_eq!(vmm.end(), "");
    assert_eq!(snapshot(), before);

    let mut vmm = Vmm::start("web", specs);
    vmm.kill();
    assert_eq!(vmm.end(), "");
    assert_eq!(snapshot(), before);

    let mut vmm = Vmm::start("web", specs);
    let mut other = Vmm::start("other", &["macvtap=up0"]);
    kill_both(&mut vmm);
    assert_eq!(names().len(), 4);
    assert_eq!(gc::collect().unwrap().removed.len(), 2);
    assert_eq!(names().len(), 2);
    assert_eq!(other.order("stop"), "stopped");
    assert_eq!(snapshot(), before);
    assert_eq!(gc::collect().unwrap().removed, []);
}

fn killed_during_set_up() {
    let _outside = lan();
    let before = snapshot();
    for kill_after_us in (0..9000).step_by(450) {
        let mut vmm = Vmm::spawn("web", &["macvtap=up0", "macvtap=up0,queues=2"]);
        let start = std::time::Instant::now();
        until(|| start.elapsed().as_micros() >= kill_after_us);
        vmm.kill();
        vmm.end();
        assert_eq!(snapshot(), before, "killed after {kill_after_us} us");
    }
}

fn keeper_killed() {
    let _outside = lan();
    let mut vmm = Vmm::start("web", &["macvtap=up0"]);
    vmm.kill_keeper();
    assert_eq!(vmm.line(), "keeper gone");
    assert_eq!(gc::collect().unwrap().removed, []);
    vmm.kill();
    assert_eq!(vmm.end(), "");
    assert_eq!(gc::collect().unwrap().removed.len(), 1);
    assert_eq!(names(), ["up0"]);
}

fn next_start() {
    let _outside = lan();
    let before = snapshot();
    for spec in ["macvtap=up0", "macvtap=up0,mode=passthru"] {
        let mut vmm = Vmm::start("web", &[spec]);
        kill_both(&mut vmm);
        let left = names();
        assert_eq!(left.len(), 2);
        let next = Vmm::start("web", &[spec]);
        assert_eq!(names().len(), 2);
        assert_ne!(names(), left);
        next.stop();
        assert_eq!(snapshot(), before);
    }
}

fn many() {
    let _outside = lan();
    let before = snapshot();
    let vms: Vec<Vmm> = (0..16).map(|idx| Vmm::spawn(&format!("vm{idx}"), &["macvtap=up0"])).collect();
    for vm in &vms {
        let taps = vm.taps();
        assert!(exists(&taps[0]));
        let alias = link(&taps[0])["ifalias"].as_str().unwrap().to_owned();
        assert!(alias.ends_with(" card=0 mode=macvtap net=up0"), "{alias}");
    }
    for vm in vms {
        vm.stop();
    }
    assert_eq!(snapshot(), before);
}

fn refusals() {
    let _outside = lan();
    sh("ip link add br0 type bridge");
    sh("ip link add port0 type veth peer name down0");
    sh("ip link set port0 master br0 up");
    sh("ip link add link up0 name own0 type macvlan mode private");
    let refusal = |specs: &[&str]| {
        let before = snapshot();
        let vmm = Vmm::spawn("web", specs);
        let line = vmm.line();
        assert_eq!(vmm.end(), "");
        assert_eq!(snapshot(), before);
        line.strip_prefix("failed ").unwrap_or_else(|| panic!("{line}")).to_owned()
    };
    let none = refusal(&["macvtap=eth9"]);
    assert!(none.starts_with("Interface eth9 does not exist | use one that exists: "), "{none}");
    for (spec, message) in [
        (
            "macvtap=lo",
            "lo cannot carry a macvtap, it is the loopback interface | give the name of an interface that carries Ethernet \
             frames to other machines; `ip link` lists them | usage",
        ),
        (
            "macvtap=port0",
            "port0 is a port of br0, which takes all its frames | put the card on the bridge: --net bridge=br0 | usage",
        ),
        ("macvtap=down0", "down0 is down | raise it first: ip link set down0 up | usage"),
        ("macvtap=up0,mode=passthru", "up0 is used by own0 | free the interface, or share it: mode=bridge | usage"),
        (
            "macvtap=up0,mtu=9000",
            "mtu=9000 is more than up0 carries, which is 1500 | give mtu=1500 or less, or raise the link first: ip link set \
             up0 mtu 9000 | usage",
        ),
    ] {
        assert_eq!(refusal(&[spec]), message);
    }
    sh("ip link del own0");
    let used = "up0 is used by another card alone (mode=passthru) | free the interface, or use another | usage";
    assert_eq!(refusal(&["macvtap=up0,mode=passthru", "macvtap=up0"]), used);
    let alone = Vmm::spawn("alone", &["macvtap=up0,mode=passthru"]);
    let taps = alone.taps();
    // Its carrier is reported a moment after it comes up.
    until(|| link(&taps[0])["operstate"] == "UP");
    assert!(refusal(&["macvtap=up0"]).contains(" alone (mode=passthru) | free the interface"));
    alone.stop();
    let mirror = refusal(&["macvtap=up0,mirror=up0"]);
    assert!(mirror.starts_with("mirror=up0 is the interface that the card is on"), "{mirror}");
    let mac = link("up0")["address"].as_str().unwrap().to_owned();
    assert!(refusal(&[&format!("macvtap=up0,mac={mac}")]).contains("is already used by interface up0 of this host"));
}
