//! TCP to the resolver (RFC 7766): the connections of a guest, each a stream of questions and answers with their
//! lengths before them.
//!
//! ```text
//!   SYN --> [connection] --a whole question--> [waiting] --its answer--> ... --> closed by the guest, or idle too long
//!              | nonsense, too slow: reset
//!   SYN beyond CONNECTIONS --> reset
//! ```
//!
//! smoltcp implements the protocol itself. It gets the guest's packets to this port and nothing else. Without
//! connections it takes no memory. With them, memory is bounded: [`CONNECTIONS`] times its two buffers, and
//! [`BACKLOGS_MAX_BYTES`] of answers.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration as StackDuration, Instant as StackInstant};
use smoltcp::wire::{HardwareAddress, IpCidr};

use super::frame::{ETHERNET_BYTES, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Frame, Octets, Packet, be16};
use super::{PREFIX_LEN, ServiceSpec, dns};

/// Connections at a time. A stub resolver has one or two, but a guest can have many of them.
const CONNECTIONS: usize = 64;

/// Questions of a connection that may wait for answers. The next ones wait in the guest.
const PIPELINE: usize = 8;

/// Octets of the longest question. Those that are passed on are shorter still.
const QUESTION_MAX_BYTES: usize = 2046;

/// Octets of the buffers of a connection.
const RECEIVE_BYTES: usize = 4096;
const SEND_BYTES: usize = 16 * 1024;

/// Octets of answers beyond which no further question of the connection is read.
const BACKLOG_BYTES: usize = 64 * 1024;

/// Octets of answers of all connections. Beyond it, the connection of the next answer ends.
const BACKLOGS_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Time limit of a connection without a whole question, or without taking its answers (RFC 7766 6.2.3).
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Frames of one turn. The rest goes out in the next, this much later.
const FRAMES_MAX: usize = 32;
const BREATH: Duration = Duration::from_millis(1);

/// The smallest MTU that the stack can work with (RFC 791 3.2).
const MTU_MIN: usize = 576;

/// Control bits of a segment, and where they are.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const CONTROL_AT: usize = 13;

/// A connection's number, which no other one ever has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamId(u64);

/// A question that came over a connection.
pub(super) struct Asked {
    pub(super) stream: StreamId,
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
    pub(super) mac: Octets,
    pub(super) message: Vec<u8>,
}

struct Connection {
    id: StreamId,
    handle: SocketHandle,
    client: SocketAddr,
    server: SocketAddr,
    mac: Octets,
    /// Questions that wait for their answers.
    waiting: usize,
    /// Octets that the send buffer has no room for.
    backlog: VecDeque<u8>,
    /// The time at which it has been idle for too long.
    deadline: Instant,
}

/// The connections of a guest.
pub(super) struct Streams {
    interface: Interface,
    wire: Wire,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    next_id: u64,
    birth: Instant,
    /// The time of the last turn.
    turned: Instant,
    gateway_mac: Octets,
}

impl Streams {
    /// Starts without connections. `seed` is an unpredictable number.
    pub(super) fn new(spec: &ServiceSpec, seed: u64, now: Instant) -> Self {
        let mut wire = Wire { mtu: usize::from(spec.mtu).max(MTU_MIN), incoming: None, outgoing: Vec::new() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, StackInstant::ZERO);
        let ipv4 = IpCidr::new(spec.ipv4.gateway.into(), spec.ipv4.prefix_len);
        let ipv6 = spec.ipv6.into_iter().flat_map(|network| [network.gateway, network.link_local]);
        let addresses = [ipv4].into_iter().chain(ipv6.map(|address| IpCidr::new(address.into(), PREFIX_LEN)));
        interface.update_ip_addrs(|own| {
            for address in addresses {
                // The list has room for all addresses of a network of ours.
                let _ = own.push(address);
            }
        });
        let (sockets, connections) = (SocketSet::new(Vec::new()), Vec::new());
        let gateway_mac = spec.gateway_mac.octets();
        Self { interface, wire, sockets, connections, next_id: 0, birth: now, turned: now, gateway_mac }
    }

    /// Takes a segment from a machine of the network to the resolver, in the frame that it came in. None for a segment
    /// that is cut.
    pub(super) fn on_segment(
        &mut self,
        packet: &Packet<'_>,
        frame: &[u8],
        now: Instant,
        out: &mut Vec<Frame>,
    ) -> Option<()> {
        let control = *packet.payload.get(CONTROL_AT)?;
        let client = SocketAddr::new(packet.source, be16(packet.payload, 0)?);
        let server = SocketAddr::new(packet.destination, dns::PORT);
        let known = self.connections.iter().any(|it| it.client == client && it.server == server);
        if control & (SYN | ACK) == SYN && !known && self.connections.len() < CONNECTIONS {
            self.listen(client, server, packet.source_mac, now);
        }
        self.wire.incoming = Some(frame.get(ETHERNET_BYTES..)?.to_vec());
        self.poll(now, packet.source_mac, out);
        Some(())
    }

    /// The whole questions that have come in, as many as may wait. Bytes that cannot form one end their connection.
    pub(super) fn questions(&mut self, now: Instant) -> Vec<Asked> {
        let mut asked = Vec::new();
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket<'_>>(connection.handle);
            while connection.has_room() {
                match whole_question(socket) {
                    Next::Question(message) => {
                        connection.waiting += 1;
                        connection.deadline = now + IDLE_TIMEOUT;
                        let (stream, mac) = (connection.id, connection.mac);
                        asked.push(Asked {
                            stream,
                            client: connection.client,
                            server: connection.server,
                            mac,
                            message,
                        });
                    }
                    Next::Nonsense => {
                        socket.abort();
                        break;
                    }
                    Next::Part => break,
                }
            }
        }
        asked
    }

    /// Answers a question in the next turn. If its connection is over, the answer is dropped.
    pub(super) fn answer(&mut self, stream: StreamId, message: &[u8], now: Instant) {
        let Ok(len) = u16::try_from(message.len()) else { return };
        if self.connections.iter().map(|it| it.backlog.len()).sum::<usize>() > BACKLOGS_MAX_BYTES {
            self.refuse(stream);
            return;
        }
        let Some(connection) = self.connections.iter_mut().find(|it| it.id == stream) else { return };
        connection.waiting = connection.waiting.saturating_sub(1);
        connection.deadline = now + IDLE_TIMEOUT;
        connection.backlog.extend(len.to_be_bytes());
        connection.backlog.extend(message);
    }

    /// Ends a connection whose message gets no answer.
    pub(super) fn refuse(&mut self, stream: StreamId) {
        if let Some(connection) = self.connections.iter().find(|it| it.id == stream) {
            self.sockets.get_mut::<Socket<'_>>(connection.handle).abort();
        }
    }

    /// Sends pending answers, and ends idle connections.
    pub(super) fn turn(&mut self, now: Instant, out: &mut Vec<Frame>) {
        if !self.connections.is_empty() {
            self.write(now);
            self.poll(now, [0; 6], out);
        }
    }

    /// The time at which the next turn is due.
    pub(super) fn deadline(&mut self) -> Option<Instant> {
        let idle = self.connections.iter().map(|it| it.deadline).min()?;
        let unread = self.connections.iter().filter(|it| it.has_room());
        let mut unread = unread.map(|it| self.sockets.get::<Socket<'_>>(it.handle).recv_queue());
        if unread.any(|len| len >= 2) {
            return Some(self.turned + BREATH);
        }
        let due = self.interface.poll_at(self.stack_time(self.turned), &self.sockets);
        let due = due.map(|due| self.birth + Duration::from_micros(due.total_micros().try_into().unwrap_or(0)));
        Some(due.map_or(idle, |due| due.min(idle)).max(self.turned + BREATH))
    }

    fn listen(&mut self, client: SocketAddr, server: SocketAddr, mac: Octets, now: Instant) {
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let mut socket = Socket::new(buffer(RECEIVE_BYTES), buffer(SEND_BYTES));
        socket.set_nagle_enabled(false);
        let idle_ms = u64::try_from(IDLE_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
        socket.set_timeout(Some(StackDuration::from_millis(idle_ms)));
        // Only a port of zero is refused.
        if socket.listen((server.ip(), server.port())).is_err() {
            return;
        }
        let (id, handle) = (StreamId(self.next_id), self.sockets.add(socket));
        self.next_id += 1;
        let (backlog, deadline) = (VecDeque::new(), now + IDLE_TIMEOUT);
        self.connections.push(Connection { id, handle, client, server, mac, waiting: 0, backlog, deadline });
    }

    /// Has the stack work, and forgets the connections that are over.
    fn poll(&mut self, now: Instant, mac: Octets, out: &mut Vec<Frame>) {
        self.turned = now;
        for connection in self.connections.iter().filter(|it| it.deadline <= now) {
            self.sockets.get_mut::<Socket<'_>>(connection.handle).abort();
        }
        let time = self.stack_time(now);
        self.interface.poll(time, &mut self.wire, &mut self.sockets);
        for packet in self.wire.outgoing.drain(..) {
            let connection = self.connections.iter().find(|it| is_for(&packet, it.client));
            let mac = connection.map_or(mac, |it| it.mac);
            let kind =
                if packet.first().is_some_and(|first| first >> 4 == 4) { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
            out.push([&mac[..], &self.gateway_mac, &kind.to_be_bytes(), &packet].concat());
        }
        let sockets = &mut self.sockets;
        self.connections.retain(|connection| {
            let state = sockets.get::<Socket<'_>>(connection.handle).state();
            // An invalid SYN leaves a socket that listens. Late segments are not waited for.
            let lives = !matches!(state, State::Listen | State::Closed | State::TimeWait);
            if !lives {
                sockets.remove(connection.handle);
            }
            lives
        });
    }

    /// Moves answers to the send buffers as far as they have room, and closes connections that the guest has closed.
    fn write(&mut self, now: Instant) {
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket<'_>>(connection.handle);
            while !connection.backlog.is_empty() {
                let sent = socket.send_slice(connection.backlog.as_slices().0).unwrap_or(0);
                if sent == 0 {
                    break;
                }
                connection.backlog.drain(..sent);
                connection.deadline = now + IDLE_TIMEOUT;
            }
            if socket.state() == State::CloseWait && connection.waiting == 0 && connection.backlog.is_empty() {
                socket.close();
            }
        }
    }

    fn stack_time(&self, now: Instant) -> StackInstant {
        let micros = now.saturating_duration_since(self.birth).as_micros();
        StackInstant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }
}

impl Connection {
    /// True if another question may come.
    fn has_room(&self) -> bool {
        self.waiting < PIPELINE && self.backlog.len() < BACKLOG_BYTES
    }
}

/// The next item on a connection.
enum Next {
    Question(Vec<u8>),
    /// Part of a question, or nothing.
    Part,
    Nonsense,
}

fn whole_question(socket: &mut Socket<'_>) -> Next {
    let mut bytes = [0; 2 + QUESTION_MAX_BYTES];
    let there = socket.peek_slice(&mut bytes).unwrap_or(0);
    let Some(len) = bytes.get(..there).and_then(|bytes| be16(bytes, 0)).map(usize::from) else { return Next::Part };
    if !(1..=QUESTION_MAX_BYTES).contains(&len) {
        return Next::Nonsense;
    }
    if there < 2 + len || socket.recv_slice(&mut bytes[..2 + len]).is_err() {
        return Next::Part;
    }
    Next::Question(bytes[2..2 + len].to_vec())
}

/// True if a packet of ours is for this end of a connection.
fn is_for(packet: &[u8], client: SocketAddr) -> bool {
    match client.ip() {
        IpAddr::V4(address) => {
            packet.get(16..20) == Some(&address.octets()) && packet.get(22..24) == Some(&client.port().to_be_bytes())
        }
        IpAddr::V6(address) => {
            packet.get(24..40) == Some(&address.octets()) && packet.get(42..44) == Some(&client.port().to_be_bytes())
        }
    }
}

/// The stack's network interface: at most one packet in, and those out.
struct Wire {
    mtu: usize,
    incoming: Option<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
}

struct Incoming(Vec<u8>);

struct Outgoing<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Incoming, Outgoing<'_>)> {
        let incoming = self.incoming.take()?;
        Some((Incoming(incoming), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Outgoing<'_>> {
        (self.outgoing.len() < FRAMES_MAX).then_some(Outgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // With checksum offload the guest's packets have none.
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = Checksum::Tx;
        capabilities.checksum = checksum;
        capabilities
    }
}

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut packet = vec![0; len];
        let result = write(&mut packet);
        self.0.push(packet);
        result
    }
}

#[cfg(test)]
mod tests;
