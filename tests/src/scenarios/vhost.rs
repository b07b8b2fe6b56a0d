//! Cards on the kernel's vhost-net: the same network for the guest, moved by other threads.

use super::Scenario;
use crate::lan::{Lan, sh};
use crate::probe::machine::{Config, Vmm};
use crate::probe::peer::PeerLan;
use crate::probe::{Outcome, Verdict};
use crate::stage::Stage;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "vhost::a_guest_moves_data_both_ways_by_threads_of_the_kernel", run: data_both_ways },
    Scenario { name: "vhost::a_hostile_driver_harms_neither_the_machine_nor_the_host", run: hostile },
    Scenario { name: "vhost::a_card_holds_its_rates_and_is_mirrored", run: rates },
    Scenario { name: "vhost::a_card_survives_resets_pairs_and_links_that_change_under_load", run: changes },
];

/// The amount that goes to the guest and back.
const TRANSFER_MIB: usize = 64;

/// Feature bits without service on vhost-net: receive modes, VLANs, coalescing of two kinds, resets of single queues,
/// hash reports, receive-side scaling.
const NOT_OFFERED: [usize; 8] = [18, 19, 20, 52, 53, 40, 57, 60];
/// And some that it has: partial checksums, segmentation, mergeable buffers, status, control queue, multiqueue,
/// indirect descriptors, event index.
const OFFERED: [usize; 8] = [0, 11, 15, 16, 17, 22, 28, 29];

fn data_both_ways(stage: &Stage) {
    let lan = Lan::new();
    let host = lan.address();
    let links_before = lan.links();
    let (down, up) = (listener(&lan), listener(&lan));
    let minivmm = stage.minivmm().display().to_string();
    let vm = stage
        .vm()
        .cpus(2)
        .name("vhost")
        .net(format!("{},queues=2,vhost=on", lan.net()))
        .script(&format!(
            "echo address=$(ip -4 -o addr show dev eth0 | sed 's/.*inet //; s,/.*,,')
             echo features=$(cat /sys/class/net/eth0/device/features)
             echo pairs=$(ethtool -l eth0 | awk '/^Combined/ {{ printf $2 \" \" }}')
             ping -c 3 {host} >/dev/null; echo ping=$?
             nc {host} {} </dev/null >/tmp/data; echo sum=$(sha256sum </tmp/data); nc {host} {} </tmp/data >/dev/null",
            port(&down),
            port(&up)
        ))
        .start();

    let (address, features, pairs) = (vm.value("address"), vm.value("features"), vm.value("pairs"));
    assert_eq!((pairs.trim(), vm.value("ping").as_str()), ("2 2", "0"), "queue pairs, exit code of the ping");
    assert!(!address.is_empty(), "the guest has no address");
    let has = |bit: &usize| features.as_bytes().get(*bit) == Some(&b'1');
    assert!(OFFERED.iter().all(has) && !NOT_OFFERED.iter().any(has), "features {features}");
    let (own, kernel) = (vm.threads(), kernel_threads());
    println!("{address}, threads of minivmm: {}; vhost-net has {kernel} threads", own.join(" "));
    assert!(!own.iter().any(|name| name == "net0-0" || name == "net0-1"), "workers of queue pairs");
    assert_eq!(kernel, 2, "threads of vhost-net");

    let data =
        sh(&format!("head -c {TRANSFER_MIB}M /dev/urandom | base64 -w 0 | head -c {TRANSFER_MIB}M")).into_bytes();
    let sent = stage.file("sent");
    std::fs::write(&sent, &data).expect("a file to compare with");
    down.accept().expect("the guest connects").0.write_all(&data).expect("sending to the guest");
    let sum = vm.value("sum");
    let mut returned = Vec::new();
    let mut connection = up.accept().expect("the guest connects back").0;
    let counters: serde_json::Value =
        serde_json::from_str(&sh(&format!("{minivmm} counters vhost"))).expect("JSON from minivmm counters");
    connection.read_to_end(&mut returned).expect("receiving from the guest");
    drop(connection);
    println!("{TRANSFER_MIB} MiB each way, SHA-256 {sum}; counters {}", counters["net0"]);
    assert_eq!(sum.split_whitespace().next(), sh(&format!("sha256sum {}", sent.display())).split_whitespace().next());
    assert!(returned == data, "{} bytes came back, not those that were sent", returned.len());
    assert!(counters["net0"]["ctrl.ok"].as_u64() > Some(0), "commands of the guest");
    assert!(counters["net0"].get("rx.0.frames").is_none(), "a count that is not kept");

    assert_eq!(vm.wait_exit(), 0, "exit code of minivmm");
    assert_eq!(kernel_threads(), 0, "threads of vhost-net after the guest");
    assert_eq!(lan.links(), links_before, "the host's links after the guest");
}

/// Bytes that go each way at a rate, and what may pass at once.
const SLOW_BYTES: usize = 4 << 20;
const BURST_BYTES: usize = 64 << 10;

fn rates(stage: &Stage) {
    let lan = Lan::new();
    let (host, listener) = (lan.address(), listener(&lan));
    sh("ip link add mon0 type veth peer name mon1 && ip link set mon0 up && ip link set mon1 up");
    let at = port(&listener);
    let vm = stage
        .vm()
        .name("slow")
        .net(format!("{},vhost=on,rate=20M/10M,mirror=mon0", lan.net()))
        .script(&format!("nc {host} {at} </dev/null >/tmp/data; nc {host} {at} </tmp/data >/dev/null"))
        .start();
    let data: Vec<u8> = (0..SLOW_BYTES).map(|at| (at * 31 % 251).to_le_bytes()[0]).collect();
    let accept = || listener.accept().expect("the guest connects").0;
    let mut guest = accept();
    let begin = Instant::now();
    guest.write_all(&data).expect("sending to the guest");
    drop(guest);
    // It connects again once it has all of it.
    let mut guest = accept();
    let (to_guest, begin) = (begin.elapsed(), Instant::now());
    let mut back = Vec::new();
    guest.read_to_end(&mut back).expect("receiving from the guest");
    let from_guest = begin.elapsed();
    let counters = sh("nft list counters table netdev minivmm-slow/mirror");
    println!("{SLOW_BYTES} bytes at 20 Mbit/s in {to_guest:.2?}, back at 10 Mbit/s in {from_guest:.2?}; {counters}");
    println!("{}", sh("tc -s qdisc show dev $(ls /sys/class/net | grep mvifb)"));
    assert!(back == data, "{} bytes came back, not those that were sent", back.len());
    let least =
        |bits_per_s: usize| Duration::from_secs_f64(((SLOW_BYTES - BURST_BYTES) * 8) as f64 / bits_per_s as f64);
    assert!(to_guest >= least(20_000_000) && from_guest >= least(10_000_000), "faster than that");
    let mirrored: Vec<usize> = counters.split("bytes ").skip(1).map(first_number).collect();
    assert!(mirrored.len() == 2 && mirrored.iter().all(|bytes| *bytes > SLOW_BYTES), "mirrored bytes: {mirrored:?}");
    // The guest's end waits for this.
    drop(guest);
    assert_eq!(vm.wait_exit(), 0, "exit code of minivmm");
    assert_eq!(
        sh("ls /sys/class/net | grep -c mvifb || true").trim(),
        "0",
        "interfaces where frames waited, after the guest"
    );
}

fn first_number(text: &str) -> usize {
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or_default()
}

/// How often the guest resets its card.
const RESETS: u32 = 5;

fn changes(stage: &Stage) {
    let lan = Lan::new();
    let (host, bridge) = (lan.address(), lan.bridge());
    let minivmm = stage.minivmm().display().to_string();
    let flooded = listener(&lan);
    let vm = stage
        .vm()
        .cpus(2)
        .name("changes")
        .net(format!("{},queues=2,vhost=on", lan.net()))
        .script(&format!(
            "await() {{ until [ $(cat /sys/class/net/eth0/carrier) = $1 ]; do sleep 0.05; done; }}
             reach() {{ ping -c 3 -W 5 {host} >/dev/null; echo $1=$?; }}
             a=$(ip -4 -o addr show dev eth0 | sed 's/.*inet //; s, .*,,'); echo address=${{a%/*}}
             d=$(basename $(readlink /sys/class/net/eth0/device)); cd /sys/bus/virtio/drivers/virtio_net
             nc {host} {} </dev/null >/dev/null
             for n in $(seq {RESETS}); do
                 echo $d >unbind; echo $d >bind; ip link set eth0 up; ip addr add $a dev eth0; sleep 0.3
             done; reach resets
             for n in 1 2 1 2 1 2; do ethtool -L eth0 combined $n || break; sleep 0.2; done; echo last=$n; reach pairs
             ethtool -K eth0 gro off lro off 2>/dev/null; ethtool -K eth0 tso off; reach offloads
             echo ready=1; await 0; echo down=0; await 1; reach link",
            port(&flooded)
        ))
        .start();
    let address = vm.value("address");
    let connection = flooded.accept().expect("the guest connects").0;
    let mut flood =
        Command::new("ping").args(["-q", "-f", &address]).stdout(Stdio::null()).spawn().expect("ping starts");
    drop(connection);
    for name in ["resets", "pairs", "offloads"] {
        assert_eq!(vm.value(name), "0", "ping after {name}");
    }
    assert_eq!(vm.value("last"), "2", "the last number of queue pairs");
    vm.value("ready");
    flood.kill().and_then(|()| flood.wait()).expect("ping is still running");
    assert_eq!(kernel_threads(), 2, "threads of vhost-net");
    sh(&format!("{minivmm} link changes net0 down"));
    assert_eq!(vm.value("down"), "0");
    sh(&format!("ping -c 3 -W 1 -I {bridge} {address} >/dev/null && exit 1 || true"));
    sh(&format!("{minivmm} link changes net0 up"));
    assert_eq!(vm.value("link"), "0", "ping over the link that is back");
    println!("{RESETS} resets under load, 1 and 2 pairs in turns, a link that went and came back");
    assert_eq!(vm.wait_exit(), 0, "exit code of minivmm");
    assert_eq!(kernel_threads(), 0, "threads of vhost-net after the guest");
}

/// The number of attacks that the probe makes at least: every way to break a ring, a buffer, a header and a command.
const CHECKS_MIN: usize = 25;

fn hostile(stage: &Stage) {
    let lan = PeerLan::new().expect("a peer on the bridge");
    let disk = stage.file("disk");
    std::fs::File::create(&disk).and_then(|file| file.set_len(1 << 20)).expect("a disk");
    let run = Vmm::Minivmm(stage.minivmm().to_path_buf())
        .run(&Config {
            probe: &stage.probe(),
            cmdline: "probe=card strict echo vhost",
            card: &lan.on_bridge(),
            keys: ",vhost=on",
            tap: "",
            disks: &[(disk, false)],
        })
        .expect("minivmm starts");
    let is = |verdict: &&Verdict, wanted: fn(&Outcome) -> bool| wanted(&verdict.outcome);
    let bad: Vec<_> = run.verdicts.iter().filter(|v| is(v, |outcome| matches!(outcome, Outcome::Failed(_)))).collect();
    let good = run.verdicts.iter().filter(|v| is(v, |outcome| *outcome == Outcome::Passed)).count();
    println!(
        "{good} checks passed, processor time {:?}; the host's threads of vhost-net: {}",
        run.cpu,
        kernel_threads()
    );
    assert!(bad.is_empty() && run.clean, "{bad:#?}\n{}\n{}", run.console, run.log);
    assert!(good >= CHECKS_MIN, "{:#?}", run.verdicts);
    for told in ["Driver broke queue 0: vhost-net cannot read it", "Driver broke queue 1: vhost-net cannot read it"] {
        assert!(run.log.contains(told), "{told} is not in the log: {}", run.log);
    }
    assert_eq!(kernel_threads(), 0, "threads of vhost-net after the guest");
}

/// Threads of vhost-net on this host; Linux calls each `vhost-` and the number of the thread that made it.
fn kernel_threads() -> usize {
    sh("ps -eLo comm=").lines().filter(|name| name.starts_with("vhost-")).count()
}

fn listener(lan: &Lan) -> TcpListener {
    TcpListener::bind((lan.address(), 0)).expect("a port on the bridge's address")
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("the address of a bound socket").port()
}
