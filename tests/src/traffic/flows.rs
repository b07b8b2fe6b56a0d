//! TCP flows that all send and receive at the same time, and how long each of them had to wait.

use super::{PATIENCE, Pattern};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

/// A flow writes this much at once at most, and reads more.
const WRITE_BYTES: usize = 4 << 10;
const READ_BYTES: usize = 32 << 10;
/// Every flow has a turn in this time. It leaves the processor something to do besides: hundreds of flows that send as
/// fast as they can wait for each other, and then a flow that is lost looks like one that waits.
const TURN: Duration = Duration::from_millis(100);
/// How often flows that wait look whether they have waited for ever.
const WAIT_MS: u16 = 1000;
/// The limit of a flow's bytes under way: hundreds of them must not make a queue in which one waits for seconds.
const SEND_BUFFER_BYTES: usize = 8 << 10;

/// The results of the flows, seen from one end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How many there were.
    pub flows: usize,
    /// Those that ended with an error, received what was not sent, or waited for ever; with the first reason.
    pub broken: usize,
    /// Why the first of them broke.
    pub reason: Option<String>,
    /// The bytes received in all of them.
    pub bytes: u64,
    /// The bytes received in the flow that received least.
    pub least_bytes: u64,
    /// The longest time in which some flow received nothing, in milliseconds.
    pub longest_pause_ms: u128,
}

/// Accepts `count` flows and serves them until the other end has had enough.
///
/// # Errors
/// If they do not come.
pub fn listen(listener: &TcpListener, count: usize) -> io::Result<Report> {
    let streams: io::Result<Vec<_>> = (0..count).map(|_| listener.accept().map(|(stream, _)| stream)).collect();
    serve(streams?, SocketAddrOf::Peer, None)
}

/// Opens `count` flows and keeps them busy until `stop` ends: a pipe to which nothing is written.
///
/// # Errors
/// If they cannot be opened.
pub fn connect(address: SocketAddr, count: usize, stop: impl AsFd) -> io::Result<Report> {
    let streams: io::Result<Vec<_>> = (0..count).map(|_| TcpStream::connect_timeout(&address, PATIENCE)).collect();
    serve(streams?, SocketAddrOf::Own, Some(stop.as_fd()))
}

/// Whose port tells a flow from the others.
#[derive(Debug, Clone, Copy)]
enum SocketAddrOf {
    Own,
    Peer,
}

fn serve(streams: Vec<TcpStream>, key: SocketAddrOf, stop: Option<BorrowedFd<'_>>) -> io::Result<Report> {
    let pattern = Pattern::new(READ_BYTES);
    let flows: io::Result<Vec<_>> = streams.into_iter().map(|stream| Flow::new(stream, key)).collect();
    let mut flows = flows?;
    let mut stopped = false;
    while flows.iter().any(Flow::is_open) {
        let begin = Instant::now();
        let mut fds: Vec<_> = flows.iter().map(|flow| PollFd::new(flow.stream.as_fd(), flow.interest())).collect();
        if let Some(stop) = &stop {
            fds.push(PollFd::new(stop.as_fd(), PollFlags::POLLIN));
        }
        poll(&mut fds, WAIT_MS)?;
        let mut ready: Vec<_> = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::all())).collect();
        // A pipe whose writer has gone is at its end for good.
        stopped |= stop.is_some() && ready.pop().is_some_and(|stop| !stop.is_empty());
        for (flow, ready) in flows.iter_mut().zip(ready) {
            flow.turn(ready, stopped, &pattern);
        }
        thread::sleep(TURN.saturating_sub(begin.elapsed()));
    }
    Ok(Report {
        flows: flows.len(),
        broken: flows.iter().filter(|flow| flow.fault.is_some()).count(),
        reason: flows.iter().find_map(|flow| flow.fault.as_ref().map(io::Error::to_string)),
        bytes: flows.iter().map(|flow| flow.received).sum(),
        least_bytes: flows.iter().map(|flow| flow.received).min().unwrap_or_default(),
        longest_pause_ms: flows.iter().map(|flow| flow.longest_pause.as_millis()).max().unwrap_or_default(),
    })
}

struct Flow {
    stream: TcpStream,
    /// Where in the pattern it begins: the same at both ends, another one for each flow.
    offset: u64,
    sent: u64,
    received: u64,
    last_received: Instant,
    longest_pause: Duration,
    /// True while there is more to send, and to receive.
    sends: bool,
    receives: bool,
    fault: Option<io::Error>,
}

impl Flow {
    fn new(stream: TcpStream, key: SocketAddrOf) -> io::Result<Self> {
        let address = match key {
            SocketAddrOf::Own => stream.local_addr()?,
            SocketAddrOf::Peer => stream.peer_addr()?,
        };
        stream.set_nonblocking(true)?;
        setsockopt(&stream, sockopt::SndBuf, &SEND_BUFFER_BYTES)?;
        Ok(Self {
            stream,
            offset: u64::from(address.port()),
            sent: 0,
            received: 0,
            last_received: Instant::now(),
            longest_pause: Duration::ZERO,
            sends: true,
            receives: true,
            fault: None,
        })
    }

    fn is_open(&self) -> bool {
        self.fault.is_none() && (self.sends || self.receives)
    }

    fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, self.receives);
        flags.set(PollFlags::POLLOUT, self.sends);
        flags
    }

    fn turn(&mut self, ready: PollFlags, stopped: bool, pattern: &Pattern) {
        if !self.is_open() {
            return;
        }
        if let Err(error) = self.serve(ready, stopped, pattern)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.fault = Some(error);
        }
    }

    fn serve(&mut self, ready: PollFlags, stopped: bool, pattern: &Pattern) -> io::Result<()> {
        if self.receives {
            self.longest_pause = self.longest_pause.max(self.last_received.elapsed());
            if self.longest_pause > PATIENCE {
                return Err(io::Error::other(format!("silent after {} bytes", self.received)));
            }
        }
        if self.receives && ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            self.receive(pattern)?;
        }
        // Who accepted goes on until the other one ends.
        if self.sends && (stopped || !self.receives) {
            self.sends = false;
            self.stream.shutdown(Shutdown::Write)?;
        } else if self.sends && ready.contains(PollFlags::POLLOUT) {
            let piece = pattern.at(self.offset + self.sent, WRITE_BYTES);
            self.sent += self.stream.write(piece)? as u64;
        }
        Ok(())
    }

    fn receive(&mut self, pattern: &Pattern) -> io::Result<()> {
        let mut buffer = [0; READ_BYTES];
        let count = self.stream.read(&mut buffer)?;
        let piece = buffer.get(..count).unwrap_or_default();
        if piece != pattern.at(self.offset + self.received, count) {
            return Err(io::Error::other(format!("other bytes than sent after {}", self.received)));
        }
        self.last_received = Instant::now();
        self.received += count as u64;
        self.receives = count > 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_end_when_the_pipe_does_and_have_all_moved_data() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopper) = io::pipe().unwrap();
        let connector = thread::spawn(move || connect(address, 20, stop).unwrap());
        let mut streams = Vec::new();
        for _ in 0..20 {
            streams.push(listener.accept().unwrap().0);
        }
        drop(stopper);
        let here = serve(streams, SocketAddrOf::Peer, None).unwrap();
        let there = connector.join().unwrap();
        for report in [here, there] {
            assert_eq!((report.flows, report.broken, report.reason), (20, 0, None));
        }
    }

    #[test]
    fn a_flow_with_other_bytes_is_broken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut stranger = TcpStream::connect(address).unwrap();
        stranger.write_all(&[0; 64]).unwrap();
        let report = listen(&listener, 1).unwrap();
        assert_eq!(report.broken, 1);
        assert_eq!(report.reason.as_deref(), Some("other bytes than sent after 0"));
    }
}
