//! The card under a stock driver, besides sending and receiving.

use super::Scenario;
use crate::lan::{Lan, sh};
use crate::stage::Stage;
use std::fs::File;
use std::net::TcpListener;
use std::path::Path;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "card::a_running_vm_is_asked_for_its_counters_and_to_take_a_cable_out", run: asked },
    Scenario { name: "card::a_guest_sees_its_link_go_and_announces_itself_when_it_is_back", run: link },
    Scenario { name: "card::a_guest_has_the_queues_rings_and_offloads_that_were_asked_for", run: keys },
    Scenario { name: "card::a_kernel_without_msi_is_interrupted_by_pins", run: pins },
    Scenario { name: "card::a_guest_receives_only_what_its_modes_and_addresses_let_in", run: addresses },
    Scenario { name: "card::a_guest_receives_only_the_vlans_it_has_added_unless_it_is_promiscuous", run: vlans },
];

/// Frames that the host sends for each question.
const FRAMES: u32 = 100;
/// Other traffic that a guest may see meanwhile: its own TCP connection, ARP, neighbour discovery.
const NOISE: u32 = 40;

/// Prelude of the guests' scripts: `rx` prints the frames received, `turn PORT` waits until the host has had its turn.
fn words(host: &str) -> String {
    format!(
        "rx() {{ cat /sys/class/net/eth0/statistics/rx_packets; }}
         turn() {{ nc {host} $1 </dev/null >/dev/null; }}\n"
    )
}

fn keys(stage: &Stage) {
    let lan = Lan::new();
    let host = lan.address();
    let offloads = "tx-checksumming|tcp-segmentation-offload|tx-udp-segmentation|rx-gro-hw";
    let vm = stage
        .vm()
        .cpus(2)
        .net(lan.net())
        .net(format!("{},queues=3,ring=4096,offload=csum", lan.net()))
        .net(format!("{},queues=1,ring=64,offload=off", lan.net()))
        .script(&format!(
            "for card in eth0 eth1 eth2; do
                 ethtool -K $card tx-udp-segmentation on 2>/dev/null
                 echo $card-pairs=$(ethtool -l $card | awk '/^Combined/ {{ printf $2 \" \" }}')
                 echo $card-ring=$(ethtool -g $card | awk '/^(RX|TX):/ {{ printf $2 \" \" }}')
                 echo $card-offloads=$(ethtool -k $card | awk -F'[: ]+' '/^({offloads}):/ {{ printf $1 \"=\" $2 \" \" }}')
                 ping -c 1 -I $card {host} >/dev/null; echo $card-ping=$?
             done"
        ))
        .start();

    for (card, pairs, ring, checksum, segmentation) in [
        ("eth0", "2 2", "256 256 256 256", "on", "on"),
        ("eth1", "3 2", "4096 4096 4096 4096", "on", "off"),
        ("eth2", "1 1", "64 64 64 64", "off", "off"),
    ] {
        let value = |name: &str| vm.value(&format!("{card}-{name}")).trim().to_owned();
        let offloads = value("offloads");
        println!("{card}: pairs {}, rings {}, {offloads}", value("pairs"), value("ring"));
        assert_eq!((value("pairs").as_str(), value("ring").as_str()), (pairs, ring), "{card}");
        for (name, state) in [
            ("tx-checksumming", checksum),
            ("tcp-segmentation-offload", segmentation),
            ("tx-udp-segmentation", segmentation),
            ("rx-gro-hw", segmentation),
        ] {
            assert!(offloads.contains(&format!("{name}={state}")), "{card}: {name} is not {state}");
        }
        assert_eq!(value("ping"), "0", "{card}: ping");
    }
    assert_eq!(vm.wait_exit(), 0);
}

fn link(stage: &Stage) {
    let lan = Lan::new();
    let (host, bridge) = (lan.address(), lan.bridge());
    let vm = stage
        .vm()
        .net(lan.net())
        .script(&format!(
            "await() {{ until [ $(cat /sys/class/net/eth0/carrier) = $1 ]; do sleep 0.05; done; }}
             about() {{ ethtool eth0 | sed -n \"s/.*$1: //p\"; }}
             echo mac=$(cat /sys/class/net/eth0/address)
             echo link=$(about Speed) $(about Duplex) $(about 'Link detected')
             await 0; echo down=$(about Speed) $(about 'Link detected')
             await 1; echo up=$(about Speed) $(about 'Link detected')
             await 0; echo bridge-down=$(about 'Link detected')
             await 1; ping -c 3 {host} >/dev/null; echo ping=$?"
        ))
        .start();
    let mac = vm.value("mac");
    assert_eq!(vm.value("link"), "10000Mb/s Full yes");
    let tap = lan.guest_taps().pop().expect("the guest's tap");
    let neighbours = || sh(&format!("ip neigh show dev {bridge}"));

    sh(&format!("ip link set {tap} down"));
    println!("{tap} down: {}", vm.value("down"));
    assert!(vm.value("down").ends_with("no"), "the guest's link is still up");
    // With arp_accept, unsolicited announcements of addresses become entries.
    sh(&format!("echo 1 >/proc/sys/net/ipv4/conf/{bridge}/arp_accept; ip neigh flush dev {bridge}"));
    assert!(!neighbours().contains(&mac), "an entry that was flushed");
    sh(&format!("ip link set {tap} up"));
    println!("{tap} up: {}", vm.value("up"));
    assert_eq!(vm.value("up"), "10000Mb/s yes");
    sh(&format!("timeout 20 sh -c 'until ip neigh show dev {bridge} | grep -q {mac}; do sleep 0.05; done'"));
    println!("announced: {}", neighbours().lines().find(|line| line.contains(&mac)).unwrap_or_default());

    sh(&format!("ip link set {bridge} down"));
    assert_eq!(vm.value("bridge-down"), "no");
    sh(&format!("ip link set {bridge} up"));
    assert_eq!(vm.value("ping"), "0", "ping over the link that is back");
    assert_eq!(vm.wait_exit(), 0);
}

fn asked(stage: &Stage) {
    let lan = Lan::new();
    let host = lan.address();
    let minivmm = stage.minivmm().display().to_string();
    let counters = || -> serde_json::Value {
        serde_json::from_str(&sh(&format!("{minivmm} counters asked"))).expect("JSON from minivmm counters")
    };
    let refused = |command: &str| sh(&format!("{command} 2>&1 && echo obeyed || true"));
    let vm = stage
        .vm()
        .cpus(2)
        .name("asked")
        .net(lan.net())
        .script(&format!(
            "await() {{ until [ $(cat /sys/class/net/eth0/carrier) = $1 ]; do sleep 0.05; done; }}
             ping -c 20 -i 0.1 {host} >/dev/null; echo pinged=$?
             await 0; echo down=0; await 1; ping -c 3 {host} >/dev/null; echo ping=$?"
        ))
        .start();
    assert_eq!(vm.value("pinged"), "0");

    let counted = counters();
    let card = counted["net0"].as_object().expect("the counters of the card");
    for (name, value) in card.iter().filter(|(_, value)| **value != 0) {
        println!("net0 {name}: {value}");
    }
    let sum = |queue: &str, name: &str| -> u64 {
        (0..2).map(|pair| counted["net0"][format!("{queue}.{pair}.{name}")].as_u64().expect("a count")).sum()
    };
    for (queue, name) in [("rx", "frames"), ("tx", "frames"), ("tx", "doorbells"), ("rx", "interrupts")] {
        assert!(sum(queue, name) >= 20, "{queue} {name}: {}", sum(queue, name));
    }
    assert!(sum("rx", "bytes") >= 20 * 98 && counted["rng0"].is_object());

    sh(&format!("{minivmm} link asked net0 down"));
    assert_eq!(vm.value("down"), "0");
    sh(&format!("ping -c 3 -W 1 -I {} 255.255.255.255 -b >/dev/null 2>&1 || true", lan.bridge()));
    let dropped = counters()["net0"].as_object().map(|card| {
        card.iter().filter(|(name, _)| name.ends_with("link_down")).filter_map(|(_, value)| value.as_u64()).sum::<u64>()
    });
    println!("dropped while the cable is out: {dropped:?}");
    assert!(dropped > Some(0), "frames of the host came in without a cable");
    for (command, says) in [
        (format!("{minivmm} link asked net1 down"), "no card net1"),
        (format!("{minivmm} counters nobody"), "No VM with the name nobody"),
        (format!("setpriv --reuid 65534 --clear-groups {minivmm} counters asked"), "Only root"),
    ] {
        let said = refused(&command);
        assert!(said.contains(says) && !said.contains("obeyed"), "{command}: {said}");
    }
    sh(&format!("{minivmm} link asked net0 up"));
    assert_eq!(vm.value("ping"), "0", "ping with the cable back in");
    assert_eq!(vm.wait_exit(), 0);
}

fn pins(stage: &Stage) {
    let lan = Lan::new();
    let host = lan.address();
    let disk = stage.file("disk");
    File::create(&disk).and_then(|file| file.set_len(8 << 20)).expect("a disk image");
    let mut vm = stage.vm().parameter("pci=nomsi").disk(format_args!("path={}", disk.display())).net(lan.net());
    let kernel_path = Path::new("/dev/vhost-net").exists();
    if kernel_path {
        vm = vm.net(format!("{},vhost=on", lan.net()));
    }
    let vm = vm
        .script(&format!(
            "ping -c 5 -i 0.2 -I eth0 {host} >/dev/null; echo ping=$?
             ping -c 5 -i 0.2 -I eth1 {host} >/dev/null; echo vhost-ping=$?
             dd if=/dev/vda of=/dev/null bs=64k count=64 iflag=direct 2>/tmp/e; echo dd=$?
             echo lines=$(grep virtio /proc/interrupts | grep -c fasteoi) of $(grep -c virtio /proc/interrupts)"
        ))
        .start();

    assert_eq!(vm.value("ping"), "0", "ping by a card without MSI-X");
    if kernel_path {
        assert_eq!(vm.value("vhost-ping"), "0", "ping by a card on vhost-net without MSI-X");
    }
    assert_eq!(vm.value("dd"), "0", "reading a disk without MSI-X");
    let lines = vm.value("lines");
    println!("interrupt lines of the devices: {lines}");
    let (fasteoi, all) = lines.split_once(" of ").expect("two numbers");
    assert!(fasteoi == all && all != "0", "not all are lines of the I/O APIC: {lines}");
    assert_eq!(vm.wait_exit(), 0);
}

fn addresses(stage: &Stage) {
    let lan = Lan::new();
    let (host, bridge) = (lan.address(), lan.bridge());
    let stranger = format!("{}250", host.trim_end_matches('1'));
    let (closed, open) = (listener(&lan), listener(&lan));
    // Linux switches receive modes in a work item, some time after the command.
    let vm = stage
        .vm()
        .net(lan.net())
        .script(&format!(
            "{} n=$(rx); turn {}; echo closed=$(($(rx) - n))
             ip link set eth0 promisc on; sleep 2; n=$(rx); turn {}; echo open=$(($(rx) - n)); ip link set eth0 promisc off
             ip link set eth0 address 02:00:00:00:00:55; ip neigh flush dev eth0
             ping -c 3 {host} >/dev/null; echo ping=$?; echo mac=$(cat /sys/class/net/eth0/address)",
            words(&host),
            port(&closed),
            port(&open)
        ))
        .start();

    sh(&format!("ip neigh add {stranger} lladdr 02:00:00:00:00:99 dev {bridge} nud permanent"));
    for listener in [closed, open] {
        let connection = listener.accept();
        flood(&stranger);
        drop(connection);
    }

    let (closed, open): (u32, u32) = (number(&vm.value("closed")), number(&vm.value("open")));
    println!("{FRAMES} frames to another address: {closed} received, {open} in promiscuous mode (with other traffic)");
    assert!(closed < NOISE, "frames to another address were received: {closed}");
    assert!(open >= FRAMES, "promiscuous mode did not let frames in: {open}");
    assert_eq!(vm.value("ping"), "0", "ping from the new address");
    assert_eq!(vm.value("mac"), "02:00:00:00:00:55");
    assert_eq!(vm.wait_exit(), 0);
}

fn vlans(stage: &Stage) {
    let lan = Lan::new();
    let (host, bridge) = (lan.address(), lan.bridge());
    for vlan in [5, 6] {
        sh(&format!(
            "ip link add v{vlan} link {bridge} type vlan id {vlan} && ip addr add 10.78.{vlan}.1/24 dev v{vlan} &&
             ip link set v{vlan} up"
        ));
    }
    let (foreign, promiscuous) = (listener(&lan), listener(&lan));
    let vm = stage
        .vm()
        .net(lan.net())
        .script(&format!(
            "{} ip link add link eth0 name v5 type vlan id 5; ip addr add 10.78.5.2/24 dev v5; ip link set v5 up
             ping -c 3 10.78.5.1 >/dev/null; echo ping=$?; echo mac=$(cat /sys/class/net/eth0/address)
             n=$(rx); turn {}; echo foreign=$(($(rx) - n))
             ip link set eth0 promisc on; sleep 2; n=$(rx); turn {}; echo promiscuous=$(($(rx) - n))",
            words(&host),
            port(&foreign),
            port(&promiscuous)
        ))
        .start();

    assert_eq!(vm.value("ping"), "0", "ping in the guest's VLAN");
    let mac = vm.value("mac");
    sh(&format!("ip neigh add 10.78.6.2 lladdr {mac} dev v6 nud permanent"));
    for listener in [foreign, promiscuous] {
        let connection = listener.accept();
        flood("10.78.6.2");
        drop(connection);
    }

    let (foreign, promiscuous) = (number(&vm.value("foreign")), number(&vm.value("promiscuous")));
    println!(
        "{FRAMES} frames of another VLAN: {foreign} received, {promiscuous} in promiscuous mode (with other traffic)"
    );
    assert!(foreign < NOISE, "frames of another VLAN were received: {foreign}");
    assert!(promiscuous >= FRAMES, "promiscuous mode did not let another VLAN in: {promiscuous}");
    assert_eq!(vm.wait_exit(), 0);
    sh("ip link del v5; ip link del v6");
}

/// Sends [`FRAMES`] frames without an answer.
fn flood(to: &str) {
    // There is no answer, so 1 is its exit code.
    sh(&format!("ping -q -c {FRAMES} -i 0.002 -W 1 {to} || [ $? = 1 ]"));
}

fn listener(lan: &Lan) -> TcpListener {
    TcpListener::bind((lan.address(), 0)).expect("a port on the bridge's address")
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("the address of a bound socket").port()
}

fn number(text: &str) -> u32 {
    text.parse().expect("a number from the guest's shell")
}
