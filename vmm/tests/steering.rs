//! Receive-side scaling end to end on real taps: the keeper makes a tap with several queues and loads the program, a
//! card on these queues is driven by a driver on plain memory, and frames that come over a bridge have to arrive where
//! the driver's table and key lead, with the kernel's choice and without.
//!
//! Every case runs in a process and a network namespace of its own. Needs root; skipped by name otherwise.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "steering/driver.rs"]
mod driver;
#[path = "steering/flows.rs"]
mod flows;

use devices::virtio::net::{FramePort, Link, Net, NetConfig, Offloads, Program, Steering, Tap, steering_program};
use driver::Driver;
use flows::{Flow, Settings, flows};
use libtest_mimic::{Arguments, Failed, Trial};
use net::{Keeper, Port, Request, SteeringProgram};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, ExitCode};
use std::sync::Arc;

/// Feature bits (virtio 1.3 5.1.3).
const CTRL_VQ: u64 = 1 << 17;
const MQ: u64 = 1 << 22;
const HASH_REPORT: u64 = 1 << 57;
const RSS: u64 = 1 << 60;

/// Queue pairs of the card.
const PAIRS: u16 = 4;
const FLOWS: u32 = 1000;

/// Control commands (virtio 1.3 5.1.6.5).
const VQ_PAIRS_SET: [u8; 2] = [4, 0];
const RSS_CONFIG: [u8; 2] = [4, 1];
const HASH_CONFIG: [u8; 2] = [4, 2];

const CASES: [(&str, fn()); 5] = [
    ("flows_arrive_where_the_kernel_steers_them", || flows_arrive(Steers::Kernel, CTRL_VQ | MQ | RSS)),
    ("flows_arrive_where_the_kernel_steers_them_with_hashes", || {
        flows_arrive(Steers::Kernel, CTRL_VQ | MQ | RSS | HASH_REPORT)
    }),
    ("flows_arrive_where_workers_steer_them", || flows_arrive(Steers::Workers, CTRL_VQ | MQ | RSS)),
    ("flows_arrive_where_workers_steer_them_with_hashes", || {
        flows_arrive(Steers::Workers, CTRL_VQ | MQ | RSS | HASH_REPORT)
    }),
    ("hashes_are_reported_without_steering_and_reset_takes_all_back", hashes_without_steering),
];

/// Who chooses the queue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Steers {
    Kernel,
    Workers,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [role, name] = &args[..]
        && role == "case"
    {
        CASES.iter().find(|(case, _)| case == name).unwrap().1();
        return ExitCode::SUCCESS;
    }
    let may = Command::new("unshare").args(["--net", "true"]).status().is_ok_and(|status| status.success());
    if !may {
        CASES.iter().for_each(|(name, _)| println!("skipped {name}: needs root, to make network namespaces"));
    }
    let trial = |(name, _): (&'static str, fn())| Trial::test(name, move || run(name)).with_ignored_flag(!may);
    libtest_mimic::run(&Arguments::from_args(), CASES.into_iter().map(trial).collect()).exit_code()
}

fn run(name: &str) -> Result<(), Failed> {
    let output = Command::new("unshare").arg("--net").arg(std::env::current_exe()?).args(["case", name]).output()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    println!("{text}");
    if output.status.success() { Ok(()) } else { Err(format!("{}\n{text}", output.status).into()) }
}

/// A card on a bridge, and another port of the bridge to send from.
struct Lan {
    keeper: Keeper,
    card: Port,
    sender: Port,
}

impl Lan {
    fn new() -> Self {
        // The kernel's own solicitations would be unexpected frames, and its filters drop what has no
        // checksum. A kernel without one of them has no file for it.
        for (file, value) in [
            ("ipv6/conf/all/disable_ipv6", "1"),
            ("ipv6/conf/default/disable_ipv6", "1"),
            ("bridge/bridge-nf-call-iptables", "0"),
            ("bridge/bridge-nf-call-ip6tables", "0"),
        ] {
            let _ = std::fs::write(format!("/proc/sys/net/{file}"), value);
        }
        let made = Command::new("ip").args(["link", "add", "br0", "type", "bridge", "mcast_snooping", "0"]).status();
        assert!(
            made.unwrap().success()
                && Command::new("ip").args(["link", "set", "br0", "up"]).status().unwrap().success()
        );
        let Program { instructions, map_fd_at, map_bytes } = steering_program();
        let cards = [format!("bridge=br0,queues={PAIRS}"), "bridge=br0,queues=1".to_owned()];
        let mut keeper = Keeper::start(&Request {
            vm_name: "steering".to_owned(),
            vcpus: 1,
            cards: cards.iter().map(|card| card.parse().unwrap()).collect(),
            policy: None,
            steering: Some(SteeringProgram { instructions, map_fd_at, map_bytes }),
        })
        .unwrap();
        let [card, sender] = keeper.ports().unwrap().try_into().unwrap();
        Self { keeper, card, sender }
    }

    fn net(&self, steers: Steers) -> Net {
        let taps =
            self.card.fds.iter().map(|fd| Arc::new(Tap::new(fd.try_clone().unwrap()).unwrap()) as Arc<dyn FramePort>);
        let config = NetConfig {
            name: "net0".to_owned(),
            mac: self.card.mac.octets(),
            mtu: self.card.mtu,
            ring: 256,
            offloads: Offloads::NONE,
            link: Link::default(),
        };
        let net = Net::new(config, taps.collect()).unwrap();
        let steering = self.card.steering.as_ref().expect("root may load programs");
        match steers {
            Steers::Kernel => {
                net.with_steering(Steering::new(steering.program.try_clone().unwrap(), &steering.map).unwrap())
            }
            Steers::Workers => net,
        }
    }

    fn send(&self, flow: &Flow, id: u32) {
        let mut sender = File::from(self.sender.fds[0].try_clone().unwrap());
        sender.write_all(&[&[0; 12], &flow.frame(self.card.mac.octets(), id)[..]].concat()).unwrap();
    }

    fn end(self) {
        drop((self.card, self.sender));
        self.keeper.stop().unwrap();
    }
}

/// Sends every flow and checks where it arrives, and with which hash.
fn exchange(lan: &Lan, driver: &mut Driver, settings: &Settings, flows: &[Flow]) -> BTreeMap<u16, u32> {
    let mut queues = BTreeMap::new();
    for (batch, flows) in (0_u32..).step_by(32).zip(flows.chunks(32)) {
        (batch..).zip(flows).for_each(|(id, flow)| lan.send(flow, id));
        for arrived in driver.receive(flows.len()) {
            let id = flows::id(&arrived.frame);
            let flow = &flows[usize::try_from(id - batch).unwrap()];
            assert_eq!(arrived.queue, settings.queue(flow), "Flow {id}: {flow:?}");
            assert_eq!(arrived.frame, flow.frame(lan.card.mac.octets(), id), "Flow {id}");
            if let Some(hash) = arrived.hash {
                assert_eq!(hash, settings.hash(flow).unwrap_or_default(), "Flow {id}: {flow:?}");
            }
            *queues.entry(arrived.queue).or_default() += 1;
        }
    }
    queues
}

fn flows_arrive(steers: Steers, features: u64) {
    let lan = Lan::new();
    let mut net = lan.net(steers);
    let mut driver = Driver::start(&mut net, features, PAIRS);

    // Before anything is configured: the first queue, and no hash.
    let all = flows(FLOWS);
    let early = exchange(&lan, &mut driver, &Settings::one_queue(), &all[..32]);
    assert_eq!(early, BTreeMap::from([(0, 32)]));

    // A table that uses all queues unevenly, and one that leaves two of them out.
    for settings in
        [Settings::new(0x3f, |i| [0, 1, 2, 3, 3, 1, 3, 2][i % 8], 1), Settings::new(0x3f, |i| [2, 0][i % 2], 0)]
    {
        assert_eq!(driver.command(RSS_CONFIG, &settings.config(PAIRS)), 0);
        let queues = exchange(&lan, &mut driver, &settings, &all);
        println!("{} flows by table and Toeplitz: {queues:?}, none elsewhere", all.len());
        assert!(queues.values().all(|count| *count > 0));
    }

    // Only addresses, and only IPv6: the ports and IPv4 do not count.
    let settings = Settings::new(0x08, |i| [0, 1, 2, 3][i % 4], 2);
    assert_eq!(driver.command(RSS_CONFIG, &settings.config(PAIRS)), 0);
    exchange(&lan, &mut driver, &settings, &all[..200]);

    // What is malformed changes nothing.
    let good = settings.config(PAIRS);
    for bad in [&good[..good.len() - 1], &settings.config(PAIRS + 1)[..], &settings.config(0)[..]] {
        assert_eq!(driver.command(RSS_CONFIG, bad), 1);
    }
    exchange(&lan, &mut driver, &settings, &all[..64]);

    // The last command counts: one pair, whatever the table said.
    assert_eq!(driver.command(VQ_PAIRS_SET, &1_u16.to_le_bytes()), 0);
    let late = exchange(&lan, &mut driver, &Settings { table: vec![0], unclassified: 0, ..settings }, &all[..200]);
    assert_eq!(late, BTreeMap::from([(0, 200)]));

    let steered = driver::count(&net, ".steered");
    assert_eq!(steers == Steers::Workers, steered > 0, "{steered} frames were passed on by workers");
    assert_eq!(driver::count(&net, ".steered_lost"), 0);
    driver.stop(&mut net);
    drop(net);
    lan.end();
}

fn hashes_without_steering() {
    let lan = Lan::new();
    let mut net = lan.net(Steers::Kernel);
    let mut driver = Driver::start(&mut net, CTRL_VQ | HASH_REPORT, 1);
    let all = flows(FLOWS);
    let settings = Settings::one_queue();
    exchange(&lan, &mut driver, &settings, &all[..32]);
    let settings = Settings { types: 0x3f, ..settings };
    assert_eq!(driver.command(RSS_CONFIG, &settings.config(1)), 1, "RSS was not negotiated");
    assert_eq!(driver.command(HASH_CONFIG, &settings.hash_config()), 0);
    exchange(&lan, &mut driver, &settings, &all);
    println!("{} flows: every hash is the computed one", all.len());
    driver.stop(&mut net);

    // The tap is as it was: the header is short again, and the first queue gets everything.
    lan.send(&all[0], 7);
    let mut frame = [0; 2048];
    driver::wait_readable(&lan.card.fds[0]);
    let len = File::from(lan.card.fds[0].try_clone().unwrap()).read(&mut frame).unwrap();
    assert_eq!(frame[12..len], all[0].frame(lan.card.mac.octets(), 7));
    drop(net);
    lan.end();
}
