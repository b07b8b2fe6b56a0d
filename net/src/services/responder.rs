//! The services without sockets, clocks or threads: frames and the time in, frames and orders out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use super::counters::{Count, Counters};
use super::dns::relay::{Answer, Client, Relay, Via};
use super::dns::{self, Code, Query, Subject};
use super::frame::{BROADCAST, Datagram, Frame, IPV6_BYTES, Link, Packet, Protocol, UDP_BYTES, be16, udp};
use super::ipv6::advertiser::Advertiser;
use super::ipv6::dhcpv6;
use super::streams::{Asked, Streams};
use super::{Event, Names, Random, Search, ServiceSpec, Upstream, dhcp};
use crate::spec::DomainName;

/// Octets of DNS that one datagram to the guest may have at most, whatever its MTU.
pub(super) const DNS_MAX_BYTES: usize = 4096;

/// Work to do after a call. The caller empties it.
#[derive(Debug, Default)]
pub struct Output {
    /// Frames for the guest: at most one for each frame, upstream answer or slot that the call is about, and a few for
    /// each connection.
    pub frames: Vec<Frame>,
    /// Orders for the upstream sockets, in this order.
    pub upstream: Vec<Upstream>,
    /// Events since the last call.
    pub events: Vec<Event>,
}

/// The services of one card.
///
/// Frames, answers and the time go in, [`Output`] comes out; its owner does the rest, on one thread. It holds the
/// questions that wait for an answer (at most [`UPSTREAM_SLOTS`](super::UPSTREAM_SLOTS)), a few connections, and
/// nothing else that a guest can make grow.
pub struct Responder {
    spec: ServiceSpec,
    names: Box<dyn Names>,
    relay: Relay,
    streams: Streams,
    advertiser: Advertiser,
    random: Random,
    counters: &'static Counters,
}

impl Responder {
    /// The services that `spec` describes, from `now` on. `random` gives unpredictable numbers.
    pub fn new(
        spec: ServiceSpec,
        names: Box<dyn Names>,
        mut random: Random,
        counters: &'static Counters,
        now: Instant,
    ) -> Self {
        let frame_max = usize::from(spec.mtu).saturating_sub(IPV6_BYTES + UDP_BYTES).min(DNS_MAX_BYTES);
        let (relay, advertiser) = (Relay::new(frame_max, now), Advertiser::new(now));
        let seed = (0..4).fold(0, |seed, _| seed << 16 | u64::from(random()));
        let streams = Streams::new(&spec, seed, now);
        Self { spec, names, relay, streams, advertiser, random, counters }
    }

    /// Sets the resolvers for outside names, in this order. There are none at first.
    pub fn set_resolvers(&mut self, servers: Vec<SocketAddr>) {
        self.relay.set_servers(servers);
    }

    /// Sets the host's search domains. If the spec names no others, the guest learns them by an advertisement soon, and
    /// by DHCP when it asks.
    pub fn set_search(&mut self, names: Vec<DomainName>, now: Instant) {
        if let Search::Host(known) = &mut self.spec.search
            && *known != names
        {
            *known = names;
            self.advertiser.hurry(now);
        }
    }

    /// Sets the MTU. The guest learns it by an advertisement soon, and by DHCP when it asks.
    pub fn set_mtu(&mut self, mtu: u16, now: Instant) {
        self.spec.mtu = mtu;
        self.advertiser.hurry(now);
    }

    /// Answers a frame of the guest: any bytes.
    pub fn on_frame(&mut self, frame: &[u8], now: Instant, out: &mut Output) {
        self.counters.add(Count::Frames);
        let handled = Packet::parse(frame).and_then(|packet| match packet.protocol {
            Protocol::Udp => self.on_datagram(&Datagram::parse(&packet)?, now, out),
            Protocol::Tcp => self.on_segment(&packet, frame, now, out),
            Protocol::Icmpv6 => self.on_neighbour(&packet, now, out),
        });
        if handled.is_none() {
            self.counters.add(Count::Ignored);
        }
    }

    /// Takes bytes from the socket of a slot: any bytes.
    pub fn on_upstream(&mut self, slot: usize, bytes: &[u8], now: Instant, out: &mut Output) {
        let answer = self.relay.on_answer(slot, bytes, now, &mut self.random, &mut out.upstream);
        self.answer_dns(answer, now, out);
        self.streams.turn(now, &mut out.frames);
    }

    /// Takes note that the socket of a slot failed.
    pub fn on_upstream_failure(&mut self, slot: usize, now: Instant, out: &mut Output) {
        let answer = self.relay.on_failure(slot, now, &mut self.random, &mut out.upstream);
        self.answer_dns(answer, now, out);
        self.streams.turn(now, &mut out.frames);
    }

    /// Does the work that is due.
    pub fn on_time(&mut self, now: Instant, out: &mut Output) {
        let answers = self.relay.on_time(now, &mut self.random, &mut out.upstream);
        self.answer_dns(answers, now, out);
        if self.streams.deadline().is_some_and(|due| due <= now) {
            self.serve_streams(now, out);
        } else {
            self.streams.turn(now, &mut out.frames);
        }
        if self.advertiser.deadline() <= now
            && let Some(frame) = self.advertiser.on_time(&self.spec, now, (self.random)())
        {
            self.advertise(frame, out);
        }
    }

    /// The time at which [`on_time`](Self::on_time) is due; never if none.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        let advertisement = self.spec.ipv6.as_ref().map(|_| self.advertiser.deadline());
        self.relay.deadline().into_iter().chain(advertisement).chain(self.streams.deadline()).min()
    }

    /// The counters.
    pub fn counters(&self) -> &Counters {
        self.counters
    }

    /// None for a datagram to no service.
    fn on_datagram(&mut self, datagram: &Datagram<'_>, now: Instant, out: &mut Output) -> Option<()> {
        match datagram.destination.port() {
            dhcp::SERVER_PORT => self.on_dhcp(datagram, out),
            dhcpv6::SERVER_PORT => self.on_dhcpv6(datagram, out),
            dns::PORT => self.on_dns(datagram, now, out),
            _ => None,
        }
    }

    /// None for a segment that is not for the resolver.
    fn on_segment(&mut self, segment: &Packet<'_>, frame: &[u8], now: Instant, out: &mut Output) -> Option<()> {
        if be16(segment.payload, 2)? != dns::PORT || !self.is_guest(segment.source, segment.destination) {
            return None;
        }
        self.streams.on_segment(segment, frame, now, &mut out.frames)?;
        self.serve_streams(now, out);
        Some(())
    }

    /// Passes on and answers the questions that have come over connections.
    fn serve_streams(&mut self, now: Instant, out: &mut Output) {
        for Asked { stream, client, server, mac, message } in self.streams.questions(now) {
            self.counters.add(Count::DnsTcpQuestions);
            let client = Client { mac, address: client, server, via: Via::Stream(stream) };
            if self.on_question(client, &message, now, out).is_none() {
                self.streams.refuse(stream);
            }
        }
        self.streams.turn(now, &mut out.frames);
    }

    /// None for a message that is not a solicitation.
    fn on_neighbour(&mut self, packet: &Packet<'_>, now: Instant, out: &mut Output) -> Option<()> {
        if let Some(frame) = self.advertiser.on_packet(&self.spec, packet, now)? {
            self.advertise(frame, out);
        }
        Some(())
    }

    fn advertise(&self, frame: Frame, out: &mut Output) {
        out.frames.push(frame);
        self.counters.add(Count::Advertisements);
    }

    /// None for a message that is not an information request.
    fn on_dhcpv6(&self, datagram: &Datagram<'_>, out: &mut Output) -> Option<()> {
        let network = self.spec.ipv6.as_ref()?;
        let (IpAddr::V6(client), IpAddr::V6(server)) = (datagram.source.ip(), datagram.destination.ip()) else {
            return None;
        };
        if !client.is_unicast_link_local() || ![dhcpv6::ALL_SERVERS, network.link_local].contains(&server) {
            return None;
        }
        let reply = dhcpv6::reply(&self.spec, datagram.payload)?;
        let ends = [(network.link_local, dhcpv6::SERVER_PORT), (client, dhcpv6::CLIENT_PORT)];
        let [from, to] = ends.map(|(ip, port)| SocketAddr::new(ip.into(), port));
        out.frames.extend(udp(self.link_to(datagram.source_mac), from, to, &reply));
        self.counters.add(Count::Dhcpv6Replies);
        Some(())
    }

    /// None for a message that is not from this card's own client.
    fn on_dhcp(&mut self, datagram: &Datagram<'_>, out: &mut Output) -> Option<()> {
        let message = dhcp::Message::parse(datagram.payload)?;
        if message.mac != self.spec.mac.octets() || !self.takes_dhcp(datagram.destination.ip()) {
            return None;
        }
        match message.kind {
            dhcp::Kind::Release => {
                self.counters.add(Count::DhcpReleases);
                out.events.push(Event::LeaseReleased);
            }
            dhcp::Kind::Decline => {
                self.counters.add(Count::DhcpDeclines);
                out.events.push(Event::LeaseDeclined { ip: self.spec.ipv4.address });
            }
            _ => {}
        }
        let Some(reply) = dhcp::reply(&self.spec, &message) else { return Some(()) };
        let destination = if reply.destination.is_broadcast() { BROADCAST } else { message.mac };
        let ends = [(self.spec.ipv4.gateway, dhcp::SERVER_PORT), (reply.destination, dhcp::CLIENT_PORT)];
        let [from, to] = ends.map(|(ip, port)| SocketAddr::new(ip.into(), port));
        out.frames.extend(udp(self.link_to(destination), from, to, &reply.bytes));
        self.counters.add(match reply.kind {
            dhcp::Kind::Offer => Count::DhcpOffers,
            dhcp::Kind::Nak => Count::DhcpNaks,
            _ => Count::DhcpAcks,
        });
        if reply.kind == dhcp::Kind::Ack && message.kind == dhcp::Kind::Request {
            out.events.push(Event::LeaseAcked { ip: self.spec.ipv4.address });
        }
        Some(())
    }

    fn takes_dhcp(&self, destination: IpAddr) -> bool {
        let network = &self.spec.ipv4;
        [Ipv4Addr::BROADCAST, network.gateway, network.broadcast()].iter().any(|address| destination == *address)
    }

    /// None for a message that must not be answered.
    fn on_dns(&mut self, datagram: &Datagram<'_>, now: Instant, out: &mut Output) -> Option<()> {
        let (source, server) = (datagram.source, datagram.destination);
        // An answer to a port of ours could be answered again.
        let fair = source.port() != dns::PORT && source.port() != 0;
        if !fair || !self.is_guest(source.ip(), server.ip()) {
            return None;
        }
        let client = Client { mac: datagram.source_mac, address: source, server, via: Via::Datagram };
        self.on_question(client, datagram.payload, now, out)
    }

    /// Answers a question or passes it on; none for a message that must not be answered.
    fn on_question(&mut self, client: Client, message: &[u8], now: Instant, out: &mut Output) -> Option<()> {
        let message = match Query::parse(message)? {
            Query::Bad { id, flags, code } => dns::bad(id, flags, code),
            Query::Question(question) => match dns::subject(&self.spec, self.names.as_mut(), &question) {
                Subject::Ours(answer) => answer,
                Subject::Theirs if self.spec.reach.leads_out() => {
                    self.counters.add(Count::DnsForwarded);
                    let answer = self.relay.ask(&question, client, now, &mut self.random, &mut out.upstream);
                    self.answer_dns(answer, now, out);
                    return Some(());
                }
                Subject::Theirs => question.refuse(Code::Refused),
            },
        };
        self.counters.add(Count::DnsLocal);
        self.answer_dns([Answer { client, message }], now, out);
        Some(())
    }

    /// True if a machine of the network other than the gateway speaks to the gateway.
    fn is_guest(&self, source: IpAddr, destination: IpAddr) -> bool {
        self.spec.is_gateway(destination) && self.spec.is_on_network(source) && !self.spec.is_gateway(source)
    }

    fn answer_dns(&mut self, answers: impl IntoIterator<Item = Answer>, now: Instant, out: &mut Output) {
        for Answer { client, message } in answers {
            match client.via {
                Via::Datagram => {
                    out.frames.extend(udp(self.link_to(client.mac), client.server, client.address, &message));
                }
                Via::Stream(stream) => self.streams.answer(stream, &message, now),
            }
            self.counters.add(Count::DnsAnswers);
        }
    }

    fn link_to(&self, destination: [u8; 6]) -> Link {
        Link { source: self.spec.gateway_mac.octets(), destination }
    }
}
