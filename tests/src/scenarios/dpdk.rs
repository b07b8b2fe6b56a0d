//! DPDK's poll-mode driver on the card: a driver that is not Linux's, in a stock guest, by way of `uio_pci_generic`. It
//! leaves MSI-X off, so the link reaches it by the card's interrupt pin.
//!
//! The scenario types testpmd's commands into the guest's console and reads what it answers. The same runs on QEMU's
//! card, on demand: a difference is a fault of one of the two.

use super::Scenario;
use crate::lan::{Lan, sh};
use crate::peer::{self, Card, Machine, Offload, Vmm};
use crate::stage::Stage;
use crate::vm::Vm;
use std::cell::Cell;
use std::net::UdpSocket;

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario { name: "dpdk::a_poll_mode_driver_gets_modes_vlans_rss_restarts_and_the_link", run: poll_mode }];

pub(super) const ON_REQUEST: &[Scenario] =
    &[Scenario { name: "dpdk::a_poll_mode_driver_gets_the_same_of_qemu", run: poll_mode_on_qemu }];

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
    vmm: Vmm,
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
    tell(stage, Vmm::Minivmm);
}

fn poll_mode_on_qemu(stage: &Stage) {
    tell(stage, Vmm::Qemu);
}

/// Starts the guest: on minivmm with a tap of the bridge that minivmm makes, on QEMU with one that is made here.
fn start(stage: &Stage, vmm: Vmm, lan: &Lan) -> Vm {
    let Some(guest) = stage.dpdk_guest() else { stage.skip("dpdk-testpmd is not installed: apt-get install dpdk-dev") };
    let script = script(lan);
    let parameters = "hugepages=64";
    if vmm == Vmm::Minivmm {
        let vm = stage.bare_vm().kernel(guest.bzimage).initrd(guest.initramfs).mem("640M").name("dpdk");
        return vm.parameter(parameters).net(format!("{},queues=2", lan.net())).script(&script).start();
    }
    let card = Card { tap: "dpdk0".to_owned(), queues: 2, offload: Offload::All };
    peer::tap(&card.tap);
    sh(&format!("ip link set {} master {}", card.tap, lan.bridge()));
    let machine = Machine {
        name: "dpdk".to_owned(),
        guest,
        cpus: 1,
        mem_mib: 640,
        cards: vec![card],
        disks: Vec::new(),
        parameters: parameters.to_owned(),
        script,
    };
    machine.start(vmm, stage.minivmm(), stage.folder())
}

/// Gives the card to testpmd on the console, then to the kernel; then to one that is killed while it
/// receives, then to the
/// kernel again.
fn script(lan: &Lan) -> String {
    format!(
        "cd /sys/bus/pci; s={SLOT}; echo irq=$(cat devices/$s/irq)
         mkdir /hp; mount -t hugetlbfs none /hp; chmod go-w / /usr /usr/bin; export LD_LIBRARY_PATH=/usr/bin
         b() {{ cd /sys/bus/pci; echo $s >devices/$s/driver/unbind; echo $s >drivers/$1/bind; }}
         pmd() {{ b uio_pci_generic; cd /usr/bin; exec dpdk-testpmd --lcores '(0,1)@0' --huge-dir /hp --iova-mode=pa \
             -a $s -d ./librte_net_virtio.so.23 -d ./librte_mempool_ring.so.23 -- -i --rxq=2 --txq=2 --rss-udp \
             --forward-mode=rxonly --total-num-mbufs=4096; }}
         kernel() {{ b virtio-pci; ip addr add {}9/24 dev eth0; ip link set eth0 up
             ping -c 3 -w 20 {} >/dev/null; echo $1=$?; }}
         echo 1af4 1041 >drivers/uio_pci_generic/new_id; (pmd) </dev/console; echo testpmd=$?; kernel ping
         mkfifo /f; (pmd) </f >/log 2>&1 & exec 3>/f; echo start >&3; echo second=
         until grep -q 'RX-packets: [1-9]' /log; do echo 'show port stats 0' >&3; sleep 1; done
         kill -9 $!; wait $!; echo killed=$?; kernel after",
        lan.address().trim_end_matches('1'),
        lan.address()
    )
}

fn tell(stage: &Stage, vmm: Vmm) {
    let lan = Lan::new();
    let vm = start(stage, vmm, &lan);
    assert_ne!(vm.value("irq"), "0", "the card has no interrupt pin");
    vm.wait_for("testpmd> ");
    let testpmd = Testpmd { vm: &vm, vmm, questions: Cell::new(0), frames: Cell::new(0) };

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
    kill(&vm, &lan, mac);
    assert_eq!(vm.wait_exit(), 0);
}

/// Sends frames until the second testpmd has been killed, which it is as soon as it has received some.
fn kill(vm: &Vm, lan: &Lan, mac: &str) {
    vm.value("second");
    while !vm.console_contains("killed=") {
        flood(lan, lan.bridge(), mac);
    }
    assert_eq!(vm.value("killed").trim(), "137", "exit code of a testpmd that was killed");
    assert_eq!(vm.value("after").trim(), "0", "ping by the kernel's driver, after a driver that was killed");
    println!("testpmd was killed while it received; the kernel's driver took over");
}

fn link(testpmd: &Testpmd, stage: &Stage) {
    let set = |state: &str| match testpmd.vmm {
        Vmm::Minivmm => _ = sh(&format!("{} link dpdk net0 {state}", stage.minivmm().display())),
        Vmm::Qemu => peer::set_qemu_link(stage.folder(), if state == "up" { "on" } else { "off" }),
    };
    set("down");
    testpmd.vm.wait_for("link state change event");
    testpmd.wait_for_link("Link status: down");
    set("up");
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
