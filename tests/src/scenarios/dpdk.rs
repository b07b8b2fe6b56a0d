//! DPDK's poll-mode driver on the card: a driver that is not Linux's, in a stock guest, by way of `uio_pci_generic`. It
//! leaves MSI-X off, so the link reaches it by the card's interrupt pin.
//!
//! The scenario types testpmd's commands into the guest's console and reads what it answers.

use super::Scenario;
use crate::lan::{Lan, sh};
use crate::stage::Stage;
use crate::vm::Vm;
use std::cell::Cell;
use std::net::UdpSocket;

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario { name: "dpdk::a_poll_mode_driver_gets_modes_vlans_rss_restarts_and_the_link", run: poll_mode }];

/// Frames that the host sends for each question.
const FRAMES: u64 = 100;
/// Other traffic that a guest may see meanwhile.
const NOISE: u64 = 40;
/// Flows that are spread over the queues, and the datagrams of each.
const FLOWS: u16 = 64;
const DATAGRAMS: u64 = 4;
/// Entries of the card's indirection table, and how many of them a command of testpmd takes.
const TABLE: u16 = 128;
const TABLE_PART: usize = 12;
const RESTARTS: usize = 10;
/// The card's slot, and an address that is not its own.
const SLOT: &str = "0000:00:01.0";
const STRANGER: &str = "02:00:00:00:00:99";
const GROUP: &str = "01:00:5e:01:02:03";

/// testpmd on a console.
struct Testpmd<'a> {
    vm: &'a Vm,
    questions: Cell<u32>,
    frames: Cell<u64>,
}

impl Testpmd<'_> {
    /// Types commands and returns what the console has said until they were done.
    fn ask(&self, commands: &str) -> String {
        let number = self.questions.replace(self.questions.get() + 1);
        let before = self.vm.console().len();
        // It echoes what it reads behind its prompt, a line at a time, and takes this one for a comment.
        self.vm.type_in(&format!("{commands}\n# question {number}.\n"));
        self.vm.wait_for(&format!("testpmd> # question {number}."));
        self.vm.console().split_off(before)
    }

    /// The number behind the last `name:` of what `command` says.
    fn number(&self, command: &str, name: &str) -> u64 {
        number(&self.ask(command), name)
    }

    /// The frames received after `commands`, while `send` runs. Each question takes seconds, as the driver polls on the
    /// same processor.
    fn received(&self, commands: &str, send: impl FnOnce()) -> u64 {
        if !commands.is_empty() {
            self.count(&format!("{commands}\nshow port stats 0"));
        }
        send();
        self.count("show port stats 0")
    }

    /// The frames received since the last look.
    fn count(&self, command: &str) -> u64 {
        let frames = self.number(command, "RX-packets");
        // Less than before where the counts were cleared in between.
        frames.saturating_sub(self.frames.replace(frames))
    }

    /// Waits for the link to be as told; each question takes the guest a while.
    fn wait_for_link(&self, state: &str) {
        let answer = (0..100).map(|_| self.ask("show port info 0")).find(|answer| answer.contains(state));
        assert!(answer.is_some(), "testpmd does not see {state}");
    }
}

fn poll_mode(stage: &Stage) {
    let Some(guest) = stage.dpdk_guest() else { stage.skip("dpdk-testpmd is not installed: apt-get install dpdk-dev") };
    let lan = Lan::new();
    let vm = stage
        .bare_vm()
        .kernel(guest.bzimage)
        .initrd(guest.initramfs)
        .mem("640M")
        .name("dpdk")
        .parameter("hugepages=64")
        .net(format!("{},queues=2", lan.net()))
        .script(&format!(
            "cd /sys/bus/pci; echo irq=$(cat devices/{SLOT}/irq); echo {SLOT} >devices/{SLOT}/driver/unbind
             echo 1af4 1041 >drivers/uio_pci_generic/new_id; mkdir /hp; mount -t hugetlbfs none /hp
             chmod go-w / /usr /usr/bin; cd /usr/bin; export LD_LIBRARY_PATH=/usr/bin
             dpdk-testpmd --lcores '(0,1)@0' --huge-dir /hp --iova-mode=pa -a {SLOT} -d ./librte_net_virtio.so.23 \
                 -d ./librte_mempool_ring.so.23 -- -i --rxq=2 --txq=2 --rss-udp --forward-mode=rxonly \\
                 --total-num-mbufs=4096 </dev/console
             echo testpmd=$?; echo {SLOT} >/sys/bus/pci/drivers/uio_pci_generic/unbind
             echo {SLOT} >/sys/bus/pci/drivers/virtio-pci/bind; ip addr add {}9/24 dev eth0; ip link set eth0 up
             ping -c 3 -w 20 {} >/dev/null; echo ping=$?",
            lan.address().trim_end_matches('1'),
            lan.address()
        ))
        .start();
    assert_ne!(vm.value("irq"), "0", "the card has no interrupt pin");
    vm.wait_for("testpmd> ");
    let testpmd = Testpmd { vm: &vm, questions: Cell::new(0), frames: Cell::new(0) };

    let info = testpmd.ask("show port info 0\nstart");
    let mac = info.split("MAC address: ").nth(1).and_then(|text| text.split_whitespace().next()).expect("an address");
    assert!(info.contains("Link status: up") && info.contains("net_virtio"), "{info}");
    link(&testpmd, stage);
    modes(&testpmd, &lan, mac);
    vlans(&testpmd, &lan, mac);
    rss(&testpmd, &lan, mac);
    let restarts = format!("stop\n{}start", "port stop 0\nport start 0\n".repeat(RESTARTS));
    testpmd.ask(&restarts);
    let received = testpmd.received("clear port stats all", || flood(&lan, lan.bridge(), mac));
    println!("after {RESTARTS} restarts: {received} of {FRAMES} frames");
    assert!(received >= FRAMES, "frames are missing after restarts: {received}");

    vm.type_in("quit\n");
    assert_eq!(vm.value("testpmd").trim(), "0", "exit code of testpmd");
    assert_eq!(vm.value("ping").trim(), "0", "ping by the kernel's driver, afterwards");
    assert_eq!(vm.wait_exit(), 0);
}

fn link(testpmd: &Testpmd, stage: &Stage) {
    let minivmm = stage.minivmm().display();
    sh(&format!("{minivmm} link dpdk net0 down"));
    testpmd.vm.wait_for("link state change event");
    testpmd.wait_for_link("Link status: down");
    sh(&format!("{minivmm} link dpdk net0 up"));
    testpmd.wait_for_link("Link status: up");
    println!("the link went down and up, by the interrupt pin");
}

fn modes(testpmd: &Testpmd, lan: &Lan, mac: &str) {
    for (mode, to, all) in [
        ("set promisc 0 off\nset allmulti 0 off", mac, true),
        ("", STRANGER, false),
        ("", GROUP, false),
        ("set allmulti 0 on", GROUP, true),
        ("", STRANGER, false),
        ("set promisc 0 on", STRANGER, true),
    ] {
        let received = testpmd.received(mode, || flood(lan, lan.bridge(), to));
        println!("{mode:?}: {received} of {FRAMES} frames to {to}");
        expect(received, all);
    }
}

fn vlans(testpmd: &Testpmd, lan: &Lan, mac: &str) {
    let bridge = lan.bridge();
    for vlan in [5, 6] {
        sh(&format!("ip link add v{vlan} link {bridge} type vlan id {vlan} && ip link set v{vlan} up"));
        sh(&format!("ip route add 10.78.{vlan}.0/24 dev v{vlan} src {}", lan.address()));
    }
    for (mode, vlan, all) in [
        ("set promisc 0 off\nvlan set filter on 0\nrx_vlan add 5 0", "v5", true),
        ("", "v6", false),
        ("set promisc 0 on", "v6", true),
        ("set promisc 0 off\nrx_vlan rm 5 0", "v5", false),
    ] {
        let received = testpmd.received(mode, || flood(lan, vlan, mac));
        println!("{mode:?}: {received} of {FRAMES} frames of {vlan}");
        expect(received, all);
    }
    sh("ip link del v5; ip link del v6");
}

fn rss(testpmd: &Testpmd, lan: &Lan, mac: &str) {
    let to = format!("{}250", lan.address().trim_end_matches('1'));
    sh(&format!("ip neigh replace {to} lladdr {mac} dev {} nud permanent", lan.bridge()));
    let send = || {
        let socket = UdpSocket::bind((lan.address(), 0)).expect("a socket on the bridge's address");
        for port in (0..DATAGRAMS).flat_map(|_| 5000..5000 + FLOWS) {
            socket.send_to(b"flow", (to.as_str(), port)).expect("a datagram is sent");
        }
    };
    let queues = || {
        send();
        // What the card still has is received while testpmd answers the first time.
        let answer = testpmd.ask("show port stats 0\nshow port xstats 0");
        [0, 1].map(|queue| number(&answer, &format!("rx_q{queue}_good_packets")))
    };

    testpmd.ask("clear port xstats 0");
    let spread = queues();
    let entries: Vec<_> = (0..TABLE).map(|entry| format!("({entry},1)")).collect();
    let table = entries.chunks(TABLE_PART).map(|part| format!("port config 0 rss reta {}\n", part.join(",")));
    testpmd.ask(&format!("{}clear port xstats 0", table.collect::<String>()));
    let steered = queues();

    println!("{FLOWS} flows on two queues: {spread:?}; with a table that leads to the second: {steered:?}");
    let all = u64::from(FLOWS) * DATAGRAMS;
    assert!(spread.iter().all(|count| *count > all / 8), "flows are not spread: {spread:?}");
    assert!(steered[0] < NOISE && steered[1] >= all, "flows do not follow the table: {steered:?}");
}

/// The number behind the last `name:` of an answer.
fn number(answer: &str, name: &str) -> u64 {
    let text = answer.rsplit_once(&format!("{name}:")).unwrap_or_else(|| panic!("no {name} in {answer}")).1;
    text.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number from testpmd")
}

/// Sends [`FRAMES`] frames that nothing answers by `interface` to `mac`.
fn flood(lan: &Lan, interface: &str, mac: &str) {
    let network = match interface.strip_prefix('v') {
        Some(vlan) if interface != lan.bridge() => format!("10.78.{vlan}."),
        _ => lan.address().trim_end_matches('1').to_owned(),
    };
    let to = format!("{network}251");
    sh(&format!("ip neigh replace {to} lladdr {mac} dev {interface} nud permanent"));
    // Without answers 1 is its exit code.
    sh(&format!("ping -q -c {FRAMES} -i 0.002 -W 1 -I {interface} {to} || [ $? = 1 ]"));
}

/// Expects all frames, or none but those of others.
fn expect(received: u64, all: bool) {
    if all {
        assert!(received >= FRAMES, "frames are missing: {received}");
    } else {
        assert!(received < NOISE, "frames came that were not asked for: {received}");
    }
}
