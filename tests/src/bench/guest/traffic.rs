//! The tests: iperf3's client for streams and datagrams, one connection of our own for requests and responses.

use serde_json::Value;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where the guest echoes.
pub(in crate::bench) const ECHO_PORT: u16 = 7;
/// Where it sends datagrams back.
pub(in crate::bench) const DATAGRAM_PORT: u16 = 9;
/// Where its iperf3 listens.
pub(super) const IPERF_PORT: u16 = 5201;
/// The network namespace of a machine beyond the host.
pub(super) const OUTSIDE: &str = "outside";
/// Payload of a small datagram in bytes: with all headers it makes the smallest frame, and iperf3 wants this much.
const SMALL_BYTES: u32 = 16;
/// Beyond the test's own time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes in a GB.
const GB: f64 = 1e9;

/// Ports of a guest's servers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) iperf: u16,
    pub(super) echo: u16,
}

/// Where a guest's servers are.
#[derive(Debug, Clone)]
pub(in crate::bench) struct Peer {
    /// For the host.
    pub(super) address: String,
    /// For the namespace [`OUTSIDE`].
    pub(super) from_outside: String,
    pub(super) ports: Ports,
}

/// The result of a test.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moved {
    /// In the test's unit.
    pub(super) amount: f64,
    /// Its duration.
    pub(super) seconds: f64,
    /// Processor time of the VMM with its virtual processors, in seconds.
    pub(super) cpu: f64,
    /// Without them.
    pub(super) vmm_cpu: f64,
}

/// One test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    /// TCP in some connections.
    Tcp(Direction, Place, u8),
    /// Small UDP datagrams, counted where they arrive.
    Udp(Direction),
    /// One byte there and one back, one at a time.
    Requests,
}

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    FromGuest,
    ToGuest,
}

/// Who the guest's peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Host,
    Outside,
}

impl Test {
    /// All of them.
    pub(super) const ALL: [Self; 9] = [
        Self::Tcp(Direction::ToGuest, Place::Host, 1),
        Self::Tcp(Direction::ToGuest, Place::Host, 4),
        Self::Tcp(Direction::FromGuest, Place::Host, 1),
        Self::Tcp(Direction::FromGuest, Place::Host, 4),
        Self::Tcp(Direction::ToGuest, Place::Outside, 1),
        Self::Tcp(Direction::FromGuest, Place::Outside, 1),
        Self::Udp(Direction::ToGuest),
        Self::Udp(Direction::FromGuest),
        Self::Requests,
    ];

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp(Direction::ToGuest, Place::Host, 1) => "tcp to guest",
            Self::Tcp(Direction::ToGuest, Place::Host, _) => "tcp to guest x4",
            Self::Tcp(Direction::FromGuest, Place::Host, 1) => "tcp to host",
            Self::Tcp(Direction::FromGuest, Place::Host, _) => "tcp to host x4",
            Self::Tcp(Direction::ToGuest, Place::Outside, _) => "tcp from outside",
            Self::Tcp(Direction::FromGuest, Place::Outside, _) => "tcp to outside",
            Self::Udp(Direction::ToGuest) => "udp to guest",
            Self::Udp(Direction::FromGuest) => "udp to host",
            Self::Requests => "requests",
        }
    }

    /// The unit of its numbers.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Tcp(..) => "GB",
            Self::Udp(_) => "datagrams",
            Self::Requests => "trips",
        }
    }

    /// Runs it against a guest.
    ///
    /// # Errors
    /// If iperf3 fails or says something unexpected, or the echo does not answer.
    pub(super) fn run(self, peer: &Peer, time: Duration) -> io::Result<Moved> {
        let (amount, seconds) =
            match self {
                Self::Tcp(direction, place, connections) => {
                    let sum =
                        iperf(peer, time, direction, place, &["-P", &connections.to_string()])?["sum_received"].take();
                    (figure(&sum, "bytes")? / GB, figure(&sum, "seconds")?)
                }
                Self::Udp(direction) => {
                    let sum =
                        iperf(peer, time, direction, Place::Host, &["-u", "-b", "0", "-l", &SMALL_BYTES.to_string()])?
                            ["sum"]
                            .take();
                    (figure(&sum, "packets")? - figure(&sum, "lost_packets")?, figure(&sum, "seconds")?)
                }
                Self::Requests => request(peer, time)?,
            };
        Ok(Moved { amount, seconds, cpu: 0.0, vmm_cpu: 0.0 })
    }
}

impl Peer {
    /// Its address for the host.
    pub(in crate::bench) fn address(&self) -> &str {
        &self.address
    }

    /// Connects to a port of the guest, once it is there.
    ///
    /// # Errors
    /// If it is not there in time.
    pub(in crate::bench) fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let address: SocketAddr = format!("{}:{port}", self.address).parse().map_err(io::Error::other)?;
        let begin = Instant::now();
        loop {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => return Ok(stream),
                Err(error) if begin.elapsed() > PATIENCE => return Err(error),
                // Refused at once while no server listens.
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}

/// The `end` of iperf3's report.
fn iperf(peer: &Peer, time: Duration, direction: Direction, place: Place, words: &[&str]) -> io::Result<Value> {
    let (mut command, address) = match place {
        Place::Host => (Command::new("timeout"), &peer.address),
        Place::Outside => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", OUTSIDE, "timeout"]);
            (command, &peer.from_outside)
        }
    };
    command.args([&(time + PATIENCE).as_secs().to_string(), "iperf3", "-c", address, "-J"]);
    command.args(["-p", &peer.ports.iperf.to_string()]);
    command.args(["-t", &time.as_secs().to_string()]).args(words);
    if direction == Direction::FromGuest {
        command.arg("-R");
    }
    let output = command.stdin(Stdio::null()).output()?;
    let mut report: Value = serde_json::from_slice(&output.stdout).map_err(io::Error::other)?;
    match report.get("error") {
        Some(error) => Err(io::Error::other(format!("iperf3: {error}"))),
        None => Ok(report["end"].take()),
    }
}

fn figure(sum: &Value, key: &str) -> io::Result<f64> {
    sum[key].as_f64().ok_or_else(|| io::Error::other(format!("iperf3 reports no {key}")))
}

/// Trips and seconds.
fn request(peer: &Peer, time: Duration) -> io::Result<(f64, f64)> {
    let mut stream = peer.connect(peer.ports.echo)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (begin, mut trips, mut byte) = (Instant::now(), 0_u32, [b'x']);
    while begin.elapsed() < time {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        trips += 1;
    }
    Ok((trips.into(), begin.elapsed().as_secs_f64()))
}
