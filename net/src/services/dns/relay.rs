//! Questions that others have to answer: as many at a time as there are slots, each asked under an identifier of its own.
//!
//! ```text
//!            ask                      answer to it
//!   [free] --------> [waiting] --------------------------> [free]  the client gets it, cut to what it takes
//!                     |    ^  too late, refused, SERVFAIL:
//!                     '----'  the next server, a new identifier and a new socket
//!                     after the last attempt: SERVFAIL, or what the last server said
//! ```

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::message::{self, Code, Query, Question};
use crate::services::Random;
use crate::services::frame::Octets;
use crate::services::streams::StreamId;

/// Questions that may be waiting. A guest that looks up a thousand names at once waits its turn by asking again; the host has no more
/// sockets open for it than this.
pub(in crate::services) const SLOTS: usize = 64;

/// How often a question is asked, and for how long each time. A stub resolver gives up after 5 s.
const ATTEMPTS: usize = 3;
const PATIENCE: Duration = Duration::from_millis(1500);

/// Octets of the longest question that is passed on: what fits every path.
const QUESTION_MAX_BYTES: usize = 1232;

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::services) struct Client {
    pub(in crate::services) mac: Octets,
    pub(in crate::services) address: SocketAddr,
    /// Which of our addresses it asked.
    pub(in crate::services) server: SocketAddr,
    /// How it asked.
    pub(in crate::services) via: Via,
}

/// How a client asks, and is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::services) enum Via {
    Datagram,
    Stream(StreamId),
}

/// How a resolver is asked: as the client asks us, so that long answers come whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One datagram each way.
    Udp,
    /// A connection for one question and its answer, each with its length before it (RFC 7766 8).
    Tcp,
}

/// What the owner of the sockets is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// Send `message` to `server` from a new socket, in place of the slot's old one. What comes back is for
    /// [`Responder::on_upstream`](crate::services::Responder::on_upstream).
    Ask {
        /// Which of the [`UPSTREAM_SLOTS`](crate::services::UPSTREAM_SLOTS).
        slot: usize,
        /// Whom to ask.
        server: SocketAddr,
        /// How.
        transport: Transport,
        /// What to send.
        message: Vec<u8>,
    },
    /// Close the slot's socket.
    Forget {
        /// Which.
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
    servers: Vec<SocketAddr>,
    /// Octets of DNS that one frame to the client can hold.
    frame_max: usize,
}

struct Waiting {
    client: Client,
    /// The client's message as it came.
    query: Vec<u8>,
    id: u16,
    /// Attempts that were made.
    attempts: usize,
    deadline: Instant,
}

impl Relay {
    /// A relay that gives answers of up to `frame_max` octets.
    pub(in crate::services) fn new(frame_max: usize) -> Self {
        Self { slots: [const { None }; SLOTS], servers: Vec::new(), frame_max }
    }

    /// Whom to ask from now on, in this order.
    pub(in crate::services) fn set_servers(&mut self, servers: Vec<SocketAddr>) {
        self.servers = servers;
    }

    /// Passes a question on; what can be said at once comes back.
    pub(in crate::services) fn ask(
        &mut self,
        question: &Question<'_>,
        client: Client,
        now: Instant,
        random: &mut Random,
        out: &mut Vec<Upstream>,
    ) -> Option<Answer> {
        let query = question.message();
        // Nothing is lost on a connection, so what is asked twice there is meant.
        let again =
            |waiting: &&Waiting| client.via == Via::Datagram && waiting.client == client && waiting.query == query;
        if self.slots.iter().flatten().any(|waiting| again(&waiting)) {
            return None;
        }
        let free = self.slots.iter().position(Option::is_none);
        let Some(slot) = free.filter(|_| !self.servers.is_empty() && query.len() <= QUESTION_MAX_BYTES) else {
            return Some(Answer { client, message: question.refuse(Code::ServFail) });
        };
        let waiting = Waiting { client, query: query.to_vec(), id: 0, attempts: 0, deadline: now };
        self.attempt(slot, waiting, now, random, out);
        None
    }

    /// What came back on the socket of a slot.
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
        let max = match waiting.client.via {
            Via::Datagram => question.udp_max().min(self.frame_max),
            Via::Stream(_) => usize::from(u16::MAX),
        };
        let Some(message) = question.relayed(bytes, waiting.id, max) else {
            // Not an answer to this: it may still come.
            self.slots[slot] = Some(waiting);
            return None;
        };
        if message::is_failure(bytes) && waiting.attempts < self.servers.len().min(ATTEMPTS) {
            self.attempt(slot, waiting, now, random, out);
            return None;
        }
        out.push(Upstream::Forget { slot });
        Some(Answer { client: waiting.client, message })
    }

    /// The socket of a slot failed: nobody is there, or no way leads there.
    pub(in crate::services) fn on_failure(
        &mut self,
        slot: usize,
        now: Instant,
        random: &mut Random,
        out: &mut Vec<Upstream>,
    ) -> Option<Answer> {
        let waiting = self.slots.get_mut(slot)?.take()?;
        if waiting.attempts < self.servers.len().min(ATTEMPTS) {
            self.attempt(slot, waiting, now, random, out);
            return None;
        }
        self.give_up(slot, &waiting, out)
    }

    /// Asks again what has waited too long; those that have been asked often enough are answered.
    pub(in crate::services) fn on_time(
        &mut self,
        now: Instant,
        random: &mut Random,
        out: &mut Vec<Upstream>,
    ) -> Vec<Answer> {
        let mut answers = Vec::new();
        for slot in 0..SLOTS {
            let Some(waiting) = self.slots[slot].take_if(|waiting| waiting.deadline <= now) else { continue };
            if waiting.attempts < ATTEMPTS && !self.servers.is_empty() {
                self.attempt(slot, waiting, now, random, out);
            } else {
                answers.extend(self.give_up(slot, &waiting, out));
            }
        }
        answers
    }

    /// When [`on_time`](Self::on_time) has something to do.
    pub(in crate::services) fn deadline(&self) -> Option<Instant> {
        self.slots.iter().flatten().map(|waiting| waiting.deadline).min()
    }

    fn attempt(
        &mut self,
        slot: usize,
        mut waiting: Waiting,
        now: Instant,
        random: &mut Random,
        out: &mut Vec<Upstream>,
    ) {
        let Some(server) = self.servers.get(waiting.attempts % self.servers.len().max(1)) else { return };
        waiting.id = random();
        waiting.attempts += 1;
        waiting.deadline = now + PATIENCE;
        let mut message = waiting.query.clone();
        message[..2].copy_from_slice(&waiting.id.to_be_bytes());
        let transport = if waiting.client.via == Via::Datagram { Transport::Udp } else { Transport::Tcp };
        out.push(Upstream::Ask { slot, server: *server, transport, message });
        self.slots[slot] = Some(waiting);
    }

    fn give_up(&self, slot: usize, waiting: &Waiting, out: &mut Vec<Upstream>) -> Option<Answer> {
        out.push(Upstream::Forget { slot });
        let Some(Query::Question(question)) = Query::parse(&waiting.query) else { return None };
        Some(Answer { client: waiting.client, message: question.refuse(Code::ServFail) })
    }
}
