//! The text of refusals, and that a refusal leaves nothing behind.

use net::{Error, Keeper, KeeperError, Request};

use crate::Case;
use crate::lan::{bridge_with_uplink, empty_bridge, link, sh, snapshot, until};
use crate::vmm::{Vmm, itself};

pub(crate) const CASES: &[Case] = &[
    ("refusal_of_names_says_what_they_are", names),
    ("refusal_of_an_address_says_who_has_it", addresses),
    ("refusal_of_a_held_tap", held_tap),
    ("refusal_of_descriptors_that_are_no_taps", descriptors),
    ("refusal_of_threads", threads),
    ("refusal_of_the_kernel_for_want_of_cap_net_admin", without_cap_net_admin),
    ("refusal_of_the_kernel_for_want_of_dev_net_tun", without_permission),
    ("address_of_a_vm_that_ended_is_free_again", restarted),
];

/// The refusal of a VMM called "web" with one card, without its first word.
fn refusal(spec: &str) -> String {
    let before = snapshot();
    let vmm = Vmm::spawn("web", &[spec]);
    let line = vmm.line();
    assert_eq!(vmm.end(), "");
    assert_eq!(snapshot(), before);
    line.strip_prefix("failed ").unwrap_or_else(|| panic!("{line}")).to_owned()
}

fn names() {
    assert_eq!(
        refusal("bridge=br0"),
        "Bridge br0 does not exist | add create=on to have minivmm make it: --net bridge=br0,create=on | usage"
    );
    bridge_with_uplink("br0");
    sh("ip tuntap add tap0 mode tap");
    sh("ip tuntap add tun0 mode tun");
    for (spec, message) in [
        (
            "bridge=br1",
            "Bridge br1 does not exist | add create=on to have minivmm make it (--net bridge=br1,create=on), or use \
             one that exists: br0 | usage",
        ),
        (
            "bridge=up0",
            "up0 is not a bridge, it is a link of kind veth | give the name of a bridge; `ip link show type bridge` \
             lists them | usage",
        ),
        (
            "bridge=tap0,create=on",
            "tap0 is not a bridge, it is a tap | give the name of a bridge; `ip link show type bridge` lists them | \
             usage",
        ),
        (
            "bridge=br0,mtu=9000",
            "mtu=9000 is more than br0 carries, which is 1500 | give mtu=1500 or less, or raise the link first: \
             ip link set br0 mtu 9000 | usage",
        ),
        (
            "tap=tap9",
            "Tap tap9 does not exist | make it first (ip tuntap add tap9 mode tap), or use --net bridge=NAME, which \
             needs no tap of yours | usage",
        ),
        ("tap=br0", "br0 is not a tap, it is a bridge | give the name of a tap; `ip tuntap show` lists them | usage"),
        (
            "tap=tun0",
            "tun0 is not a tap, it is a tun device (layer 3) | give the name of a tap; `ip tuntap show` lists them | \
             usage",
        ),
        (
            "tap=tap0,queues=2",
            "Tap tap0 has one queue, and queues=2 needs more | leave queues= out, or make the tap with several \
             queues: ip tuntap add tap0 mode tap multi_queue | usage",
        ),
    ] {
        assert_eq!(refusal(spec), message);
    }
}

fn addresses() {
    const HINT: &str = "give the card another address with mac=, or the VM another name with --name | usage";
    bridge_with_uplink("br0");
    sh("ip link set peer0 address 1a:00:00:00:00:01");
    let refused = |mac: &str, by: &str| {
        assert_eq!(
            refusal(&format!("bridge=br0,mac={mac}")),
            format!("MAC address {mac} is already used by {by} | {HINT}")
        );
    };
    refused("1a:00:00:00:00:01", "interface peer0 of this host");
    sh("bridge fdb add 1a:00:00:00:00:02 dev up0 master dynamic");
    refused("1a:00:00:00:00:02", "a machine behind port up0 of bridge br0");
    sh("ip neigh add 10.0.0.5 lladdr 1a:00:00:00:00:02 dev br0");
    refused("1a:00:00:00:00:02", "a machine with address 10.0.0.5 behind port up0 of bridge br0");
    let other = Vmm::start("other", &["bridge=br0,mac=1a:00:00:00:00:03"]);
    refused("1a:00:00:00:00:03", "the guest behind tap vmtap0");
    other.stop();
}

fn held_tap() {
    for mode in ["tap", "tap multi_queue"] {
        sh(&format!("ip tuntap add tap0 mode {mode}"));
        let holder = Vmm::start("holder", &["tap=tap0"]);
        until(|| link("tap0")["operstate"] == "UP");
        assert_eq!(
            refusal("tap=tap0"),
            "Tap tap0 is held by another process or card | stop the process that holds it, or use another tap | usage"
        );
        holder.stop();
        sh(&format!("ip tuntap del tap0 mode {mode}"));
    }
}

fn descriptors() {
    assert_eq!(
        refusal("fd=77"),
        "fd=77 is not open in this process | have the parent process leave the descriptor open across exec | usage"
    );
    let file = std::fs::File::open("/dev/null").unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&file);
    let cards = vec![format!("fd={number}").parse().unwrap()];
    let mut keeper =
        Keeper::start(&Request { vm_name: "web".to_owned(), vcpus: 1, cards, policy: None, steering: None }).unwrap();
    assert_eq!(keeper.ports().unwrap_err().to_string(), format!("fd={number} is not a tap"));
}

fn threads() {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || receiver.recv());
    let cards = vec!["bridge=br0".parse().unwrap()];
    let error = Keeper::start(&Request { vm_name: "web".to_owned(), vcpus: 1, cards, policy: None, steering: None })
        .unwrap_err();
    assert!(matches!(error, Error::Keeper(KeeperError::Threads { threads: 2 })));
    assert_eq!(error.to_string(), "Cannot fork the network keeper: this process has 2 threads, and may have one");
    drop(sender);
    let _ = thread.join();
}

fn without_cap_net_admin() {
    empty_bridge("br0");
    let before = snapshot();
    let mut command = std::process::Command::new("setpriv");
    command.args(["--bounding-set=-net_admin", "--"]).arg(itself(&[]).get_program());
    command.args(["vmm", "web", "bridge=br0"]);
    let vmm = Vmm::from_command(command);
    assert_eq!(
        vmm.line(),
        "failed Cannot pin the MAC address of bridge br0: Operation not permitted (os error 1) | this needs \
         CAP_NET_ADMIN: run as root, or use --net tap=NAME with a tap that root made for this user | host"
    );
    assert_eq!(vmm.end(), "");
    assert_eq!(snapshot(), before);
}

fn without_permission() {
    bridge_with_uplink("br0");
    // Hosts with udev let every user open the device, so this case has its own.
    let script = "mount -t tmpfs none /dev/net && mknod -m 600 /dev/net/tun c 10 200 && \
                  exec setpriv --reuid=65534 --regid=65534 --clear-groups -- \"$@\"";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(itself(&[]).get_program());
    command.args(["vmm", "web", "bridge=br0"]);
    let vmm = Vmm::from_command(command);
    let line = vmm.line();
    assert!(
        line.starts_with("failed Cannot open /dev/net/tun: Permission denied (os error 13) | run as root, or let"),
        "{line}"
    );
    assert!(line.ends_with(" | host"), "{line}");
}

fn restarted() {
    bridge_with_uplink("br0");
    let spec = "bridge=br0,mac=52:54:00:00:00:01";
    Vmm::start("web", &[spec]).stop();
    // The host's neighbour entry for the guest that has just ended.
    sh("ip neigh add 10.0.0.5 lladdr 52:54:00:00:00:01 dev br0 nud reachable");
    Vmm::start("web", &[spec]).stop();
}
