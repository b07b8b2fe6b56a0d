//! The thread that runs a card's services: sockets and the clock around a [`Responder`].
//!
//! It sleeps until a frame passes the socket's filter, a resolver answers, work is due, or it is told to stop.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socket};

use super::counters::{Count, Counters};
use super::exchange::Exchange;
use super::mtu::MtuReceiver;
use super::resolv::{Resolution, ResolvConf};
use super::responder::DNS_MAX_BYTES;
use super::{Event, Names, Output, Responder, ServiceSpec, Transport, UPSTREAM_SLOTS, Upstream};
use crate::kernel::random;

/// Octets of a frame that are received. No frame that gets an answer is longer. A longer one is cut, so its length is
/// false, and it is ignored.
const FRAME_MAX_BYTES: usize = 2048;

/// Frames that are answered before resolvers and the clock get their turn.
const BURST: usize = 32;

/// Resources that the services run on.
pub struct Setup {
    /// The services.
    pub spec: ServiceSpec,
    /// The socket of [`open_socket`](super::open_socket).
    pub socket: OwnedFd,
    /// Resolves the names of the network's VMs.
    pub names: Box<dyn Names>,
    /// The file that names the host's resolvers, `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The counters.
    pub counters: &'static Counters,
    /// The receiver of MTU changes.
    pub mtu: MtuReceiver,
}

/// Runs the services until `stop` becomes readable. Takes no privilege. `on_event` is told of events, from this thread,
/// after the frames that go with them have been sent.
///
/// # Errors
/// The host cannot wait for descriptors any more, or has no random numbers. Failures of single frames or resolvers are
/// counted.
pub fn run(setup: Setup, stop: BorrowedFd<'_>, on_event: &mut dyn FnMut(Event)) -> io::Result<()> {
    let Setup { spec, socket, names, resolv_conf, counters, mtu } = setup;
    // Checked once, here: later there is no caller to tell.
    random()?;
    let numbers = Box::new(|| random().unwrap_or(0));
    let responder = Responder::new(spec, names, numbers, counters, Instant::now());
    let mut services = Services {
        responder,
        socket,
        upstream: [const { None }; UPSTREAM_SLOTS],
        resolv_conf: ResolvConf::new(resolv_conf),
        counters,
        mtu,
        output: Output::default(),
    };
    loop {
        let Some(ready) = services.wait(stop)? else { return Ok(()) };
        services.turn(&ready);
        for event in services.output.events.drain(..) {
            on_event(event);
        }
    }
}

/// An unpredictable number.
fn random() -> io::Result<u16> {
    random::bytes().map(u16::from_ne_bytes)
}

struct Services {
    responder: Responder,
    socket: OwnedFd,
    upstream: [Option<Asking>; UPSTREAM_SLOTS],
    resolv_conf: ResolvConf,
    counters: &'static Counters,
    mtu: MtuReceiver,
    output: Output,
}

/// The socket of an upstream question.
enum Asking {
    Datagram(UdpSocket),
    Stream(Exchange),
}

/// Work that is ready.
struct Ready {
    frames: bool,
    mtu: bool,
    slots: Vec<usize>,
}

impl Services {
    /// Waits for work; none once the services are to stop.
    fn wait(&mut self, stop: BorrowedFd<'_>) -> io::Result<Option<Ready>> {
        let timeout = self.timeout();
        let asking = self.upstream.iter().enumerate();
        let open: Vec<(usize, &Asking)> =
            asking.filter_map(|(slot, asking)| asking.as_ref().map(|asking| (slot, asking))).collect();
        let input = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let own = [input(stop), input(self.socket.as_fd()), input(self.mtu.fd())];
        let mut fds: Vec<PollFd<'_>> = own.into_iter().chain(open.iter().map(|(_, asking)| asking.poll_fd())).collect();
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let [stopped, frames, mtu, upstream @ ..] = ready.as_slice() else { return Ok(None) };
        let slots = open.iter().zip(upstream).filter(|(_, ready)| **ready).map(|((slot, _), _)| *slot).collect();
        Ok((!stopped).then_some(Ready { frames: *frames, mtu: *mtu, slots }))
    }

    /// The time until work is due, rounded up for poll(2).
    fn timeout(&mut self) -> PollTimeout {
        let Some(deadline) = self.responder.next_deadline() else { return PollTimeout::NONE };
        let wait = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
    }

    fn turn(&mut self, ready: &Ready) {
        for &slot in &ready.slots {
            self.hear(slot);
        }
        let now = Instant::now();
        if ready.mtu
            && let Some(mtu) = self.mtu.latest()
        {
            self.responder.set_mtu(mtu, now);
        }
        // Before the first frame as well: advertisements go out by themselves.
        if let Some(Resolution { servers, search }) = self.resolv_conf.changed(now) {
            self.responder.set_resolvers(servers);
            self.responder.set_search(search, now);
        }
        if ready.frames {
            self.serve();
        }
        self.responder.on_time(Instant::now(), &mut self.output);
        self.perform();
    }

    /// Takes a resolver's bytes.
    fn hear(&mut self, slot: usize) {
        let Some(asking) = self.upstream.get_mut(slot).and_then(Option::as_mut) else { return };
        let heard = asking.hear();
        let now = Instant::now();
        match heard {
            Ok(Some(bytes)) => self.responder.on_upstream(slot, &bytes, now, &mut self.output),
            Ok(None) => {}
            Err(_) => self.responder.on_upstream_failure(slot, now, &mut self.output),
        }
        self.perform();
    }

    /// Answers the guest's frames, as many as a turn allows.
    fn serve(&mut self) {
        let mut bytes = [0; FRAME_MAX_BYTES];
        for _ in 0..BURST {
            match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                Ok(len) => {
                    let frame = bytes.get(..len).unwrap_or(&bytes);
                    self.responder.on_frame(frame, Instant::now(), &mut self.output);
                    self.perform();
                }
                // A tap that goes down says so once; it may come up again.
                Err(_) => break,
            }
        }
    }

    /// Sends frames and questions.
    fn perform(&mut self) {
        for frame in self.output.frames.drain(..) {
            // A guest that takes no frames, or a tap that is down, loses them as on any wire.
            if send(self.socket.as_raw_fd(), &frame, MsgFlags::empty()).is_err() {
                self.counters.add(Count::FramesLost);
            }
        }
        // A failed attempt leads to another; each uses up one of the question's few.
        while !self.output.upstream.is_empty() {
            for order in std::mem::take(&mut self.output.upstream) {
                self.obey(order);
            }
        }
    }

    fn obey(&mut self, order: Upstream) {
        match order {
            Upstream::Forget { slot } => self.upstream[slot] = None,
            Upstream::Ask { slot, server, transport, message } => {
                let asking = match transport {
                    Transport::Udp => ask(server, &message).map(Asking::Datagram),
                    Transport::Tcp => Exchange::start(server, &message).map(Asking::Stream),
                };
                if let Err(error) = &asking {
                    log::debug!("Cannot ask resolver {server}: {error}");
                    self.responder.on_upstream_failure(slot, Instant::now(), &mut self.output);
                }
                self.upstream[slot] = asking.ok();
            }
        }
    }
}

impl Asking {
    fn poll_fd(&self) -> PollFd<'_> {
        match self {
            Self::Datagram(socket) => PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            Self::Stream(exchange) => PollFd::new(exchange.as_fd(), exchange.wants()),
        }
    }

    /// A message, if there is one.
    fn hear(&mut self) -> io::Result<Option<Vec<u8>>> {
        let socket = match self {
            Self::Stream(exchange) => return exchange.go_on(),
            Self::Datagram(socket) => socket,
        };
        let mut bytes = [0; DNS_MAX_BYTES + 1];
        match socket.recv(&mut bytes) {
            Ok(len) => Ok(Some(bytes.get(..len).unwrap_or(&bytes).to_vec())),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A socket of its own for one question: the kernel gives it a random port, and takes answers from this server alone.
fn ask(server: SocketAddr, message: &[u8]) -> io::Result<UdpSocket> {
    let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = UdpSocket::from(socket(family, SockType::Datagram, flags, None)?);
    // Not bound: to connect gives it a port.
    socket.connect(server)?;
    socket.send(message)?;
    Ok(socket)
}
