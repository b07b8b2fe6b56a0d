//! Questions for other servers: as many at a time as there are slots, each asked under an identifier of its own.
//!
//! ```text
//!   ask --> [queue] --a free slot, in turn--> [waiting] --> [free]  the client gets it, cut to what it takes
//!             | too full, too old: dropped     |    ^  too late, refused, SERVFAIL:
//!             v (SERVFAIL on a connection)     '----'  the next server, a new identifier and a new socket
//!                                              after the last attempt: SERVFAIL, or what the last server said
//! ```
//!
//! The server that answered last is asked first, so a dead one costs one wait and not one for each question. Now and
//! then the first of the list gets a copy of a question, and no client waits for its answer. If it answers, it is the
//! first to be asked again.
//!
//! A guest can have [`SLOTS`] questions out at a time and [`Budget`] of them in a second, and [`QUEUE_MAX`] waiting
//! here.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::message::{self, Code, Query, Question};
use crate::services::Random;
use crate::services::frame::Octets;
use crate::services::streams::StreamId;

/// Questions that may be with a resolver. The host has no more sockets open for a guest than this.
pub(in crate::services) const SLOTS: usize = 64;

/// Questions that wait for a slot: a guest that looks up a thousand names at once. Each is at most
/// [`QUESTION_MAX_BYTES`] long.
const QUEUE_MAX: usize = 1024;

/// The time for which they wait. A stub resolver has given up by then.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// Questions in a second, and as many at once, that a guest can have the host ask.
const RATE_PER_S: u32 = 2000;

/// Interval of copies to the first server while another one is asked first.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// Attempts for a question, and the timeout of each. A stub resolver gives up after 5 s.
const ATTEMPTS: usize = 3;
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);

/// Octets of the longest question that is passed on: it fits every path.
const QUESTION_MAX_BYTES: usize = 1232;

/// The client that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::services) struct Client {
    pub(in crate::services) mac: Octets,
    pub(in crate::services) address: SocketAddr,
    /// The one of our addresses that it asked.
    pub(in crate::services) server: SocketAddr,
    /// Its transport.
    pub(in crate::services) via: Via,
}

/// The transport by which a client asks and gets its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::services) enum Via {
    Datagram,
    Stream(StreamId),
}

/// The transport to a resolver: the client's own, so that long answers come whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One datagram each way.
    Udp,
    /// A connection for one question and its answer, each with its length before it (RFC 7766 8).
    Tcp,
}

/// An order to the owner of the sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// Send `message` to `server` from a new socket, in place of the slot's old one. Its answer is for
    /// [`Responder::on_upstream`](crate::services::Responder::on_upstream).
    Ask {
        /// One of the [`UPSTREAM_SLOTS`](crate::services::UPSTREAM_SLOTS).
        slot: usize,
        /// The resolver.
        server: SocketAddr,
        /// The transport.
        transport: Transport,
        /// The message.
        message: Vec<u8>,
    },
    /// Close the slot's socket.
    Forget {
        /// The slot.
        slot: usize,
    },
}

/// An answer for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::services) struct Answer {
    pub(in crate::services) client: Client,
    pub(in crate::services) message: Vec<u8>,
}

/// The questions that wait for their answers.
pub(in crate::services) struct Relay {
    slots: [Option<Waiting>; SLOTS],
    queue: VecDeque<Queued>,
    budget: Budget,
    servers: Vec<SocketAddr>,
    /// The one of them that answered last.
    preferred: usize,
    /// The last time when the first one was asked although another one is preferred.
    probed: Option<Instant>,
    /// Octets of DNS that one frame to the client can hold.
    frame_max: usize,
}

struct Queued {
    client: Client,
    /// The client's message as it came.
    query: Vec<u8>,
    deadline: Instant,
}

struct Waiting {
    /// None for a copy, whose answer only shows that a server is alive.
    client: Option<Client>,
    /// The client's message as it came.
    query: Vec<u8>,
    id: u16,
    /// The server of the first attempt, and the one of this.
    first: usize,
    server: usize,
    transport: Transport,
    /// Attempts that were made.
    attempts: usize,
    deadline: Instant,
}

/// A limit on the questions that a guest can have the host ask in a second.
struct Budget {
    left: u32,
    counted: Instant,
}

impl Budget {
    fn full(now: Instant) -> Self {
        Self { left: RATE_PER_S, counted: now }
    }

    /// Takes a question from the budget; false if none is left.
    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.counted).as_millis();
        let earned = u32::try_from(passed).unwrap_or(u32::MAX).saturating_mul(RATE_PER_S / 1000);
        if earned > 0 {
            (self.left, self.counted) = (self.left.saturating_add(earned).min(RATE_PER_S), now);
        }
        let taken = self.left.checked_sub(1);
        self.left = taken.unwrap_or(0);
        taken.is_some()
    }
}

impl Relay {
    /// A relay that gives answers of up to `frame_max` octets.
    pub(in crate::services) fn new(frame_max: usize, now: Instant) -> Self {
        Self {
            slots: [const { None }; SLOTS],
            queue: VecDeque::new(),
            budget: Budget::full(now),
            servers: Vec::new(),
            preferred: 0,
            probed: None,
            frame_max,
        }
    }

    /// Sets the servers to ask from now on, in this order.
    pub(in crate::services) fn set_servers(&mut self, servers: Vec<SocketAddr>) {
        (self.servers, self.preferred, self.probed) = (servers, 0, None);
    }

    /// Passes a question on. Returns an answer that can be given at once.
    pub(in crate::services) fn ask(
        &mut self,
        question: &Question<'_>,
        client: Client,
        now: Instant,
        random: &mut Random,
        out: &mut Vec<Upstream>,
    ) -> Option<Answer> {
        let query = question.message();
        if self.servers.is_empty() || query.len() > QUESTION_MAX_BYTES {
            return Some(Answer { client, message: question.refuse(Code::ServFail) });
        }
        if client.via == Via::Datagram && self.is_known(client, query) {
            return None;
        }
        if self.queue.len() >= QUEUE_MAX {
            // A client that asks by datagram asks again; on a connection nothing gets lost.
            let refused = Answer { client, message: question.refuse(Code::ServFail) };
            return (client.via != Via::Datagram).then_some(refused);
        }
        self.queue.push_back(Queued { client, query: query.to_vec(), deadline: now + QUEUE_TIMEOUT });
        self.fill(now, random, out);
        None
    }

    /// Takes bytes from the socket of a slot.
    pub(in crate::services) fn on_answer(
        &mut self,
        slot: usize,
        bytes: &[u8],
        now: Instant,
        random: &mut Random,
        out: &mut Vec<Upstream>,
    ) -> Option<Answer> {
        let waiting = self.slots.get_mut(slot)?.take()?;
        let Some(Query::Question(question)) = Query::parse(&waiting.query) else { return None };
        let max = match waiting.client.map(|client| client.via) {
            Some(Via::Stream(_)) => usize::from(u16::MAX),
            _ => question.udp_max().min(self.frame_max),
        };
        let Some(message) = question.relayed(bytes, waiting.id, max) else {
            // Not an answer to this question: that may still come.
            self.slots[slot] = Some(waiting);
            return None;
        };
        if message::is_failure(bytes) {
            if waiting.client.is_some() && waiting.attempts < self.servers.len().min(ATTEMPTS) {
                self.attempt(slot, waiting, now, random, out);
                return None;
            }
        } else {
            self.preferred = waiting.server;
        }
        out.push(Upstream::Forget { slot });
        self.fill(now, random, out);
        let client = waiting.client?;
        let cut = matches!(client.via, Via::Stream(_)) && waiting.transport == Transport::Udp;
        // A client asks over a connection to get the whole answer.
        let message = if cut && message::is_cut(bytes) { question.refuse(Code::ServFail) } else { message };
        Some(Answer { client, message })
    }

    /// Takes note that the socket of a slot failed: there is no server, or no route to it.
    pub(in crate::services) fn on_failure(
        &mut self,
        slot: usize,
        now: Instant,
        random: &mut Random,
        out: &mut Vec<Upstream>,
    ) -> Option<Answer> {
        let mut waiting = self.slots.get_mut(slot)?.take()?;
        self.prefer_another_than(waiting.server);
        if waiting.client.is_some() && waiting.attempts < self.servers.len().min(ATTEMPTS) {
            self.attempt(slot, waiting, now, random, out);
            return None;
        }
        if waiting.transport == Transport::Tcp {
            // There are resolvers without TCP.
            (waiting.transport, waiting.first, waiting.attempts) = (Transport::Udp, self.preferred, ATTEMPTS - 1);
            self.attempt(slot, waiting, now, random, out);
            return None;
        }
        let answer = give_up(slot, &waiting, out);
        self.fill(now, random, out);
        answer
    }

    /// Asks again after a timeout; questions without attempts left are answered.
    pub(in crate::services) fn on_time(
        &mut self,
        now: Instant,
        random: &mut Random,
        out: &mut Vec<Upstream>,
    ) -> Vec<Answer> {
        let mut answers = Vec::new();
        for slot in 0..SLOTS {
            let Some(waiting) = self.slots[slot].take_if(|waiting| waiting.deadline <= now) else { continue };
            self.prefer_another_than(waiting.server);
            if waiting.client.is_some() && waiting.attempts < ATTEMPTS && !self.servers.is_empty() {
                self.attempt(slot, waiting, now, random, out);
            } else {
                answers.extend(give_up(slot, &waiting, out));
            }
        }
        while let Some(queued) = self.queue.pop_front_if(|queued| queued.deadline <= now) {
            answers.extend(too_late(&queued));
        }
        self.fill(now, random, out);
        answers
    }

    /// The time at which [`on_time`](Self::on_time) is due.
    pub(in crate::services) fn deadline(&self) -> Option<Instant> {
        let waiting = self.slots.iter().flatten().map(|waiting| waiting.deadline).min();
        let queued = self.queue.front().map(|queued| {
            // With a slot free, it is the budget that is waited for.
            let free = self.slots.iter().any(Option::is_none);
            if free { self.budget.counted + Duration::from_millis(1) } else { queued.deadline }
        });
        waiting.into_iter().chain(queued).min()
    }

    /// True if the client has asked this already.
    fn is_known(&self, client: Client, query: &[u8]) -> bool {
        let mut waiting = self.slots.iter().flatten();
        waiting.any(|waiting| waiting.client == Some(client) && waiting.query == query)
            || self.queue.iter().any(|queued| queued.client == client && queued.query == query)
    }

    /// Asks queued questions, as many as there are slots and budget for.
    fn fill(&mut self, now: Instant, random: &mut Random, out: &mut Vec<Upstream>) {
        for slot in 0..SLOTS {
            if self.queue.is_empty() || self.servers.is_empty() {
                return;
            }
            if self.slots[slot].is_some() {
                continue;
            }
            if !self.budget.take(now) {
                return;
            }
            let Some(Queued { client, query, .. }) = self.queue.pop_front() else { return };
            let transport = if client.via == Via::Datagram { Transport::Udp } else { Transport::Tcp };
            self.probe(slot, &query, now, random, out);
            let first = self.preferred;
            let client = Some(client);
            let waiting = Waiting { client, query, id: 0, first, server: 0, transport, attempts: 0, deadline: now };
            self.attempt(slot, waiting, now, random, out);
        }
    }

    /// Asks the first server as well, in a slot other than `used`, if that is due.
    fn probe(&mut self, used: usize, query: &[u8], now: Instant, random: &mut Random, out: &mut Vec<Upstream>) {
        let due = self.probed.is_none_or(|probed| now.saturating_duration_since(probed) >= PROBE_INTERVAL);
        let free = (0..SLOTS).rev().find(|slot| *slot != used && self.slots[*slot].is_none());
        let Some(slot) = free.filter(|_| due && self.preferred != 0) else { return };
        self.probed = Some(now);
        let (query, transport) = (query.to_vec(), Transport::Udp);
        let copy = Waiting { client: None, query, id: 0, first: 0, server: 0, transport, attempts: 0, deadline: now };
        self.attempt(slot, copy, now, random, out);
    }

    /// Prefers another server than one that has not answered.
    fn prefer_another_than(&mut self, server: usize) {
        if self.preferred == server {
            self.preferred = (server + 1) % self.servers.len().max(1);
        }
    }

    fn attempt(
        &mut self,
        slot: usize,
        mut waiting: Waiting,
        now: Instant,
        random: &mut Random,
        out: &mut Vec<Upstream>,
    ) {
        waiting.server = (waiting.first + waiting.attempts) % self.servers.len().max(1);
        let Some(server) = self.servers.get(waiting.server) else { return };
        waiting.id = random();
        waiting.attempts += 1;
        waiting.deadline = now + ANSWER_TIMEOUT;
        let mut message = waiting.query.clone();
        message[..2].copy_from_slice(&waiting.id.to_be_bytes());
        out.push(Upstream::Ask { slot, server: *server, transport: waiting.transport, message });
        self.slots[slot] = Some(waiting);
    }
}

fn give_up(slot: usize, waiting: &Waiting, out: &mut Vec<Upstream>) -> Option<Answer> {
    out.push(Upstream::Forget { slot });
    failure(waiting.client?, &waiting.query)
}

/// The answer to a question that has waited for a slot for too long; none for a client that may ask again.
fn too_late(queued: &Queued) -> Option<Answer> {
    let client = Some(queued.client).filter(|client| client.via != Via::Datagram)?;
    failure(client, &queued.query)
}

fn failure(client: Client, query: &[u8]) -> Option<Answer> {
    let Some(Query::Question(question)) = Query::parse(query) else { return None };
    Some(Answer { client, message: question.refuse(Code::ServFail) })
}
