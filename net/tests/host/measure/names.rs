//! Our DNS and dnsmasq, queried by one guest in one run, with the same resolvers: lost and slow answers of both.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::guest::Namespace;
use crate::lan::{sh, until};
use crate::names::{question, start_with};
use crate::services::Resolver;

/// The address of dnsmasq: one of the host that the guest reaches.
const DNSMASQ: &str = "192.0.2.53";

/// The resolvers behind both: one that answers, one that never does, and one that has no TCP.
const GOOD: &str = "127.0.0.1";
const DEAD: &str = "127.0.0.9";
const WITHOUT_TCP: &str = "127.0.0.8";

/// An answer is slow if it takes longer.
const SLOW: Duration = Duration::from_millis(1000);

/// Timeout for answers.
const PATIENCE: Duration = Duration::from_secs(6);

/// Questions at once, one after the other, and connections.
const BURST: u16 = 1000;
const SERIES: u16 = 8;
const CONNECTIONS: u16 = 40;

/// A forwarding dnsmasq.
struct Dnsmasq(Child);

impl Dnsmasq {
    fn start(resolvers: &[&str]) -> Self {
        let servers = resolvers.iter().map(|address| format!("--server={address}"));
        let child = Command::new("dnsmasq")
            .args(["--conf-file=/dev/null", "--keep-in-foreground", "--user=root", "--no-resolv", "--no-hosts"])
            .args(["--pid-file", "--bind-interfaces", "--cache-size=0", "--log-facility=-"])
            .arg(format!("--listen-address={DNSMASQ}"))
            .args(servers)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("dnsmasq");
        // A question that dnsmasq answers itself, whatever its resolvers do. A trial bind would take its port away.
        let line = format!("@{DNSMASQ} +tries=1 +time=1 chaos txt version.bind");
        until(|| Command::new("dig").args(line.split(' ')).output().is_ok_and(|output| output.status.success()));
        Self(child)
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A report on answers to questions.
fn report(asked: u16, mut times: Vec<Duration>) -> Value {
    times.sort_unstable();
    let millis = |time: Option<&Duration>| time.map(|time| (time.as_secs_f64() * 1e4).round() / 10.0);
    json!({
        "asked": asked,
        "lost": usize::from(asked) - times.len(),
        "slow": times.iter().filter(|time| **time > SLOW).count(),
        "p50_ms": millis(times.get(times.len() / 2)),
        "max_ms": millis(times.last()),
    })
}

pub(super) fn names() -> Value {
    sh("ip link set lo up");
    sh(&format!("ip addr add {DNSMASQ}/32 dev lo"));
    let _good = Resolver::start(GOOD, "192.0.2.33");
    let _dead = UdpSocket::bind((DEAD, 53)).expect("a port");
    without_tcp();
    let compare = |resolvers: &[&str], ask: fn(&Namespace, &str) -> Value| {
        let (vmm, guest, gateway, _folder) = start_with("nat,reach=host+world", resolvers);
        let _dnsmasq = Dnsmasq::start(resolvers);
        let both = json!({ "minivmm": ask(&guest, &gateway), "dnsmasq": ask(&guest, DNSMASQ) });
        vmm.stop();
        both
    };
    json!({
        "at_once": compare(&[GOOD], at_once),
        "first_of_two_dead": compare(&[DEAD, GOOD], one_by_one),
        "connections": compare(&[GOOD], connections),
        "resolver_without_tcp": compare(&[WITHOUT_TCP], connections),
    })
}

fn without_tcp() {
    let resolver = UdpSocket::bind((WITHOUT_TCP, 53)).expect("a port");
    thread::spawn(move || {
        let mut bytes = [0; 1500];
        while let Ok((len, from)) = resolver.recv_from(&mut bytes) {
            bytes[2] |= 0x80;
            let _ = resolver.send_to(&bytes[..len], from);
        }
    });
}

fn socket(guest: &Namespace, server: &str) -> UdpSocket {
    let socket = guest.within(|| UdpSocket::bind("0.0.0.0:0").expect("a port"));
    socket.connect((server, 53)).expect("a way");
    socket.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    socket
}

/// The arrival times of answers without an error, from `begin` on; `most` at most.
fn answers(socket: &UdpSocket, begin: Instant, most: u16) -> Vec<Duration> {
    let mut bytes = [0; 1500];
    let heard = std::iter::from_fn(|| socket.recv(&mut bytes).ok().map(|_| (bytes[3] & 15, begin.elapsed())));
    heard.take(most.into()).filter(|(code, _)| *code == 0).map(|(_, time)| time).collect()
}

fn at_once(guest: &Namespace, server: &str) -> Value {
    let socket = socket(guest, server);
    socket.send(&question(9999, "warm")).expect("to the server");
    answers(&socket, Instant::now(), 1);
    let (reader, begin) = (socket.try_clone().expect("a descriptor"), Instant::now());
    let reader = thread::spawn(move || answers(&reader, begin, BURST));
    for id in 0..BURST {
        socket.send(&question(id, &format!("x{id}"))).expect("to the server");
    }
    report(BURST, reader.join().expect("answers"))
}

fn one_by_one(guest: &Namespace, server: &str) -> Value {
    let times = (0..SERIES).flat_map(|id| {
        let socket = socket(guest, server);
        let begin = Instant::now();
        socket.send(&question(id, &format!("y{id}"))).expect("to the server");
        answers(&socket, begin, 1)
    });
    report(SERIES, times.collect())
}

fn connections(guest: &Namespace, server: &str) -> Value {
    let begin = Instant::now();
    let streams: Vec<Option<TcpStream>> =
        (0..CONNECTIONS).map(|_| guest.within(|| TcpStream::connect((server, 53)).ok())).collect();
    let ask = |(id, stream): (u16, &Option<TcpStream>)| {
        let message = question(id, &format!("z{id}"));
        let len = u16::try_from(message.len()).ok()?.to_be_bytes();
        stream.as_ref()?.write_all(&[&len[..], &message].concat()).ok()
    };
    let asked: Vec<Option<()>> = (0..CONNECTIONS).zip(&streams).map(ask).collect();
    let hear = |(mut stream, _): (&TcpStream, ())| {
        let left = PATIENCE.saturating_sub(begin.elapsed()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left)).ok()?;
        let mut head = [0; 6];
        stream.read_exact(&mut head).ok()?;
        (head[5] & 15 == 0).then(|| begin.elapsed())
    };
    let open = streams.iter().zip(asked).filter_map(|(stream, asked)| Some((stream.as_ref()?, asked?)));
    report(CONNECTIONS, open.filter_map(hear).collect())
}
