//! Measurements of NAT against a bridge, with namespaces for guests. They are no tests, and run in none.
//!
//! ```text
//! host measure trips         one byte there and back over UDP, on a bridge and behind NAT in turns, on one processor
//! host measure connections   100,000 TCP connections through one NAT, open at the same time
//! host measure names         our DNS and dnsmasq: many questions at once, a dead resolver, many connections, no TCP
//! ```
//!
//! A guest's frames pass one thread that copies them between two taps. It stands for the VMM and is the same for both,
//! so only the difference of round trips means something. Each prints a line of JSON.

mod names;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdout, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use serde_json::json;

use crate::guest::{Namespace, configure};
use crate::lan::{link, sh, until};
use crate::vmm::{DEADLINE, Vmm, itself};

/// Blocks of round trips for each, in turns, and trips in a block. The first block warms up.
const BLOCKS: usize = 41;
const TRIPS: usize = 500;

/// Connections, all through one address of the host.
const CONNECTIONS: usize = 100_000;
/// Processes that hold them, each with a port of the server, and the first of these.
const HOLDERS: u16 = 20;
const FIRST_PORT: u16 = 5001;

/// The role.
pub(crate) fn run(args: &[String]) -> ExitCode {
    if args.first().is_some_and(|what| what == "hold") {
        hold(&args[1..]);
        return ExitCode::SUCCESS;
    }
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
    match args.first().map(String::as_str) {
        Some("trips") => println!("{}", trips()),
        Some("connections") => println!("{}", connections()),
        Some("names") => println!("{}", names::names()),
        _ => {
            eprintln!("measure trips | connections | names");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// A guest behind NAT, and the world, as `nat` has them.
fn behind_nat(world: &str) -> (Namespace, Vmm, Namespace) {
    sh("ip link set lo up");
    let outside = Namespace::behind("up0", &format!("{world}/24"), "198.51.100.2/24");
    sh(&format!("ip route add default via {world}"));
    // More than the default limit of a guest.
    let (vmm, guest) = Vmm::start_with_guest("nat", &format!("nat,connections={}", 2 * CONNECTIONS));
    let alias = link("vmtap0")["ifalias"].as_str().unwrap().to_owned();
    let lease = alias.split("ip4=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    configure(&guest, &lease, &format!("{}.1", lease.rsplit_once('.').unwrap().0));
    (outside, vmm, guest)
}

/// The same on a bridge.
fn on_a_bridge() -> (Namespace, Vmm, Namespace) {
    let outside = Namespace::behind("up1", "192.0.2.1/24", "203.0.113.1/30");
    for line in [
        "ip addr flush dev up1",
        "ip link add br0 type bridge mcast_snooping 0",
        "ip link set br0 up",
        "ip link set up1 master br0",
    ] {
        sh(line);
    }
    until(|| link("br0")["operstate"] == "UP");
    let (vmm, guest) = Vmm::start_bridged("bridge", "bridge=br0");
    guest.sh("ip addr add 192.0.2.5/24 dev eth0");
    (outside, vmm, guest)
}

fn trips() -> serde_json::Value {
    // Waking another processor takes several times the measured time, and which processors are involved differs from
    // run to run.
    let mut processor = CpuSet::new();
    processor.set(sched_getcpu().expect("a processor")).expect("its number");
    sched_setaffinity(Pid::from_raw(0), &processor).expect("a processor for all");
    let (world, first, behind) = behind_nat("198.51.100.1");
    let (outside, second, on) = on_a_bridge();
    let sockets = [(&world, &behind, "198.51.100.1:7"), (&outside, &on, "192.0.2.1:7")].map(|(far, near, to)| {
        let server = far.within(|| UdpSocket::bind("0.0.0.0:7").expect("a port"));
        thread::spawn(move || {
            let mut byte = [0];
            while let Ok((_, from)) = server.recv_from(&mut byte) {
                let _ = server.send_to(&byte, from);
            }
        });
        let client = near.within(|| UdpSocket::bind("0.0.0.0:0").expect("a port"));
        client.connect(to).expect("a way");
        client.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        client
    });
    let mut samples = [Vec::new(), Vec::new()];
    for block in 0..BLOCKS {
        for (socket, samples) in sockets.iter().zip(&mut samples) {
            for _ in 0..TRIPS {
                let begin = Instant::now();
                socket.send(b"x").expect("to the server");
                socket.recv(&mut [0]).expect("back again");
                if block > 0 {
                    samples.push(begin.elapsed());
                }
            }
        }
    }
    let [nat, bridge] = samples.map(|mut times| {
        times.sort_unstable();
        [times[times.len() / 2], times[times.len() / 10]].map(micros)
    });
    first.stop();
    second.stop();
    json!({
        "trips": (BLOCKS - 1) * TRIPS,
        "nat_us": { "p50": nat[0], "p10": nat[1] },
        "bridge_us": { "p50": bridge[0], "p10": bridge[1] },
        "added_us": { "p50": nat[0] - bridge[0], "p10": nat[1] - bridge[1] },
    })
}

fn micros(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 10.0
}

fn connections() -> serde_json::Value {
    let (world, vmm, guest) = behind_nat("198.51.100.1");
    guest.within(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535")).expect("ports");
    let before = (tracked(), kernel_memory());
    let begin = Instant::now();
    let mut holders: Vec<Holder> = (0..HOLDERS).map(|idx| Holder::start(&world, &guest, FIRST_PORT + idx)).collect();
    let counts: Vec<[usize; 2]> = holders.iter_mut().map(Holder::counts).collect();
    let opened = begin.elapsed();
    let after = (tracked(), kernel_memory());
    // Each of them still carries a byte each way.
    let begin = Instant::now();
    holders.iter_mut().for_each(Holder::go_on);
    let carried: Vec<[usize; 2]> = holders.iter_mut().map(Holder::counts).collect();
    let used = begin.elapsed();
    holders.into_iter().for_each(Holder::end);
    vmm.stop();
    let sum = |counts: &[[usize; 2]], idx: usize| counts.iter().map(|count| count[idx]).sum::<usize>();
    json!({
        "connections": sum(&counts, 0),
        "failed_to_open": sum(&counts, 1),
        "failed_to_carry": sum(&carried, 1),
        "tracked": after.0 - before.0,
        "seconds_to_open": opened.as_secs_f64(),
        "seconds_to_use_each": used.as_secs_f64(),
        "kernel_mib_with_both_ends": after.1.saturating_sub(before.1) / 1024,
    })
}

/// A process that holds a share of the connections: one process may have few descriptors.
struct Holder {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Holder {
    fn start(world: &Namespace, guest: &Namespace, port: u16) -> Self {
        let mut command = itself(&["measure", "hold", world.path(), guest.path(), &port.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process");
        let lines = BufReader::new(child.stdout.take().expect("stdout"));
        Self { child, lines }
    }

    /// Its next line: the number of connections that succeeded, and of those that failed.
    fn counts(&mut self) -> [usize; 2] {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        let numbers: Vec<usize> = line.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        numbers.try_into().expect("two numbers")
    }

    fn go_on(&mut self) {
        self.child.stdin.as_mut().expect("stdin").write_all(b"\n").expect("a process that reads");
    }

    fn end(mut self) {
        self.go_on();
        assert!(self.child.wait().expect("its end").success());
    }
}

/// The role of such a process.
fn hold(args: &[String]) {
    let [world, guest] = [&args[0], &args[1]].map(|path| Namespace::at(path));
    let port = args[2].parse().expect("a port");
    let (near, far, failed) = open(&world, &guest, port, CONNECTIONS / usize::from(HOLDERS));
    println!("{} {failed}", near.len());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a word");
    let carried = near.iter().zip(&far).filter(|(near, far)| carries(near, far)).count();
    println!("{carried} {}", near.len() - carried);
    std::io::stdin().read_line(&mut line).expect("a word");
}

/// Opens connections to a port: both ends in the same order, and the number of failures.
fn open(world: &Namespace, guest: &Namespace, port: u16, count: usize) -> (Vec<TcpStream>, Vec<TcpStream>, usize) {
    let listener = world.within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("a port"));
    let to: SocketAddr = ([198, 51, 100, 1], port).into();
    let (mut near, mut far, mut failed) = (Vec::new(), Vec::new(), 0);
    guest.within(|| {
        for _ in 0..count {
            match TcpStream::connect_timeout(&to, DEADLINE) {
                Ok(stream) => {
                    // Connections are opened one at a time, so the next to be accepted is its other end.
                    near.push(stream);
                    far.push(listener.accept().expect("the other end").0);
                }
                Err(_) => failed += 1,
            }
        }
    });
    (near, far, failed)
}

/// True if a byte passes each way.
fn carries(near: &TcpStream, far: &TcpStream) -> bool {
    let pass = |mut from: &TcpStream, mut to: &TcpStream| {
        let mut byte = [0];
        to.set_read_timeout(Some(DEADLINE)).is_ok()
            && from.write_all(b"x").is_ok()
            && to.read_exact(&mut byte).is_ok()
            && byte == *b"x"
    };
    let _ = setsockopt(near, sockopt::TcpNoDelay, &true);
    pass(near, far) && pass(far, near)
}

/// Connections that the host tracks.
fn tracked() -> u64 {
    sh("sysctl -n net.netfilter.nf_conntrack_count").trim().parse().expect("a number")
}

/// Memory of the kernel's own objects, in KiB.
fn kernel_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("Slab:")).expect("a line");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}
