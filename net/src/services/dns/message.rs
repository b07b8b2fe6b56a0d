//! DNS messages (RFC 1035 4): a checked view of a question, of an answer to it, and the writer of our own answers.
//!
//! Only the parts that a relay needs are read: header, the one question, and the OPT record (RFC 6891), if there is
//! one.

use std::net::IpAddr;

use crate::services::frame::be16;

/// Octets of the header.
pub(super) const HEADER_BYTES: usize = 12;

/// The longest name, with its length octets and the root (RFC 1035 2.3.4).
const NAME_MAX_BYTES: usize = 255;
const LABEL_MAX_BYTES: u8 = 63;

/// The size that every client accepts over UDP (RFC 1035 2.3.4).
const UDP_MIN_BYTES: usize = 512;

/// The size that we accept: no datagram of this size is ever in fragments (RFC 9715).
const OUR_UDP_BYTES: u16 = 1232;

/// Seconds for which our answers may be cached: VMs come and go.
const TTL_S: u32 = 5;

/// Octets of an OPT record without options.
const OPT_BYTES: usize = 11;

/// Bits of the second 16-bit word.
const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AUTHORITATIVE: u16 = 0x0400;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const CHECKING_DISABLED: u16 = 0x0010;
const RCODE: u16 = 0x000f;

/// Types and classes of records.
pub(super) const TYPE_A: u16 = 1;
pub(super) const TYPE_PTR: u16 = 12;
pub(super) const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
pub(super) const CLASS_INTERNET: u16 = 1;

/// A pointer to the name of the question, which follows the header.
const QUESTION_NAME: u16 = 0xc00c;

/// Response codes (RFC 1035 4.1.1). BADVERS (RFC 6891 9) has bits that only an OPT record has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::services) enum Code {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    Refused = 5,
    BadVers = 16,
}

/// A message that asks something and has at least a header, so it can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::services) enum Query<'a> {
    /// One question.
    Question(Question<'a>),
    /// Anything else, and the answer to it.
    Bad {
        /// The message's identifier.
        id: u16,
        /// Its flags.
        flags: u16,
        /// The error.
        code: Code,
    },
}

/// One question in a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::services) struct Question<'a> {
    message: &'a [u8],
    /// The end of the question, where records begin.
    pub(super) end: usize,
    pub(super) kind: u16,
    pub(super) class: u16,
    flags: u16,
    edns: Option<Edns>,
}

/// The contents of an OPT record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Edns {
    udp_bytes: u16,
    version: u8,
}

impl<'a> Query<'a> {
    /// The query in `message`; none for messages that must not be answered: cut headers, and answers.
    pub(in crate::services) fn parse(message: &'a [u8]) -> Option<Self> {
        let (id, flags) = (be16(message, 0)?, be16(message, 2)?);
        if message.len() < HEADER_BYTES || flags & RESPONSE != 0 {
            return None;
        }
        let code = if flags & OPCODE != 0 { Code::NotImp } else { Code::FormErr };
        let question = Question::parse(message, flags).filter(|_| code != Code::NotImp);
        Some(match question {
            Some(Question { edns: Some(Edns { version: 1.., .. }), .. }) => {
                Self::Bad { id, flags, code: Code::BadVers }
            }
            Some(question) => Self::Question(question),
            None => Self::Bad { id, flags, code },
        })
    }
}

impl<'a> Question<'a> {
    fn parse(message: &'a [u8], flags: u16) -> Option<Self> {
        if be16(message, 4)? != 1 {
            return None;
        }
        let name_end = plain_name_end(message)?;
        let (kind, class) = (be16(message, name_end)?, be16(message, name_end + 2)?);
        let end = name_end + 4;
        let edns = match opt(message, end)? {
            Some(at) => Some(Edns { udp_bytes: be16(message, at + 3)?, version: *message.get(at + 6)? }),
            None => None,
        };
        Some(Self { message, end, kind, class, flags, edns })
    }

    /// The identifier that the answer must have.
    pub(super) fn id(&self) -> u16 {
        be16(self.message, 0).unwrap_or(0)
    }

    /// The whole message: header, question, and all else.
    pub(super) fn message(&self) -> &'a [u8] {
        self.message
    }

    /// Labels of the name from the left, as they were written.
    pub(super) fn labels(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.message.get(HEADER_BYTES..).unwrap_or(&[]);
        std::iter::from_fn(move || {
            let (len, tail) = rest.split_first().filter(|(len, _)| **len != 0)?;
            let (label, tail) = tail.split_at_checked(usize::from(*len))?;
            rest = tail;
            Some(label)
        })
    }

    /// Octets that the client accepts in one datagram.
    pub(super) fn udp_max(&self) -> usize {
        self.edns.map_or(0, |edns| usize::from(edns.udp_bytes)).max(UDP_MIN_BYTES)
    }

    /// An answer of ours with nothing in it but `code`.
    pub(in crate::services) fn refuse(&self, code: Code) -> Vec<u8> {
        self.answer(code, 0, &[])
    }

    /// An answer of ours with one record of the question's type for each of `values`, as many as fit.
    pub(super) fn authoritative(&self, code: Code, values: &[Vec<u8>]) -> Vec<u8> {
        self.answer(code, AUTHORITATIVE, values)
    }

    fn answer(&self, code: Code, flags: u16, values: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = header(self.id(), self.flags, flags, code);
        bytes[5] = 1;
        bytes.extend(self.message.get(HEADER_BYTES..self.end).unwrap_or(&[]));
        let mut count: u16 = 0;
        for value in values {
            let Ok(len) = u16::try_from(value.len()) else { continue };
            if bytes.len() + 12 + value.len() + OPT_BYTES > self.udp_max() {
                break;
            }
            for field in [QUESTION_NAME, self.kind, self.class] {
                bytes.extend(field.to_be_bytes());
            }
            bytes.extend(TTL_S.to_be_bytes());
            bytes.extend(len.to_be_bytes());
            bytes.extend(value);
            count += 1;
        }
        bytes[6..8].copy_from_slice(&count.to_be_bytes());
        if self.edns.is_some() {
            push_opt(&mut bytes, 0);
        }
        bytes
    }

    /// Another server's answer to this question, if it is one, with the client's identifier and cut to `max` octets.
    pub(super) fn relayed(&self, answer: &[u8], id: u16, max: usize) -> Option<Vec<u8>> {
        let flags = be16(answer, 2)?;
        if be16(answer, 0)? != id || flags & RESPONSE == 0 || flags & OPCODE != 0 || !self.is_echoed_in(answer, flags) {
            return None;
        }
        let mut bytes = answer.to_vec();
        bytes[..2].copy_from_slice(&self.id().to_be_bytes());
        if bytes.len() > max {
            bytes.truncate(self.end);
            bytes[2..4].copy_from_slice(&(flags | TRUNCATED).to_be_bytes());
            bytes[4..HEADER_BYTES].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
            if self.edns.is_some() {
                push_opt(&mut bytes, 0);
            }
        }
        Some(bytes)
    }

    /// True if `answer` repeats the question. A server that did not understand it may leave it out.
    fn is_echoed_in(&self, answer: &[u8], flags: u16) -> bool {
        match be16(answer, 4) {
            Some(1) => {
                let question = self.message.get(HEADER_BYTES..self.end).unwrap_or(&[]);
                answer.get(HEADER_BYTES..self.end).is_some_and(|echo| echo.eq_ignore_ascii_case(question))
            }
            Some(0) => answer.len() == HEADER_BYTES && flags & RCODE != 0,
            _ => false,
        }
    }
}

/// True if the response code of a message says that the server could not or would not answer.
pub(super) fn is_failure(answer: &[u8]) -> bool {
    let code = be16(answer, 2).unwrap_or(0) & RCODE;
    [Code::ServFail as u16, Code::NotImp as u16, Code::Refused as u16].contains(&code)
}

/// True if a message was cut because there was no room for all of it.
pub(super) fn is_cut(answer: &[u8]) -> bool {
    be16(answer, 2).is_some_and(|flags| flags & TRUNCATED != 0)
}

/// The answer to a message that is not a question of ours.
pub(in crate::services) fn bad(id: u16, flags: u16, code: Code) -> Vec<u8> {
    let mut bytes = header(id, flags, 0, code);
    if code as u16 > RCODE {
        push_opt(&mut bytes, u8::try_from(code as u16 >> 4).unwrap_or(0));
    }
    bytes
}

/// A header with counts of zero.
fn header(id: u16, asked: u16, flags: u16, code: Code) -> Vec<u8> {
    let kept = asked & (OPCODE | RECURSION_DESIRED | CHECKING_DISABLED);
    let flags = RESPONSE | RECURSION_AVAILABLE | kept | flags | (code as u16 & RCODE);
    [&id.to_be_bytes()[..], &flags.to_be_bytes(), &[0; 8]].concat()
}

/// Adds an OPT record, which is the only additional one, with the upper bits of the response code.
fn push_opt(bytes: &mut Vec<u8>, code: u8) {
    bytes.push(0);
    bytes.extend(TYPE_OPT.to_be_bytes());
    bytes.extend(OUR_UDP_BYTES.to_be_bytes());
    bytes.extend([code, 0, 0, 0, 0, 0]);
    bytes[11] = 1;
}

/// The end of the name after the header, if it has no pointers: there is nothing yet to point to.
fn plain_name_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER_BYTES;
    loop {
        match *message.get(at)? {
            0 => break,
            len @ 1..=LABEL_MAX_BYTES => at += 1 + usize::from(len),
            _ => return None,
        }
    }
    let end = at + 1;
    (end - HEADER_BYTES <= NAME_MAX_BYTES).then_some(end)
}

/// The place of the OPT record among the records from `at` on; the outer none for a message that is malformed or has
/// two.
///
/// Every record has eleven octets at least, so a message bounds the loop, whatever its counts say.
fn opt(message: &[u8], mut at: usize) -> Option<Option<usize>> {
    let mut found = None;
    for count_at in [6, 8, 10] {
        for _ in 0..be16(message, count_at)? {
            let name_end = any_name_end(message, at)?;
            if be16(message, name_end)? == TYPE_OPT {
                // It belongs to the root and into the additional section (RFC 6891 6.1.1).
                if found.is_some() || count_at != 10 || name_end != at + 1 {
                    return None;
                }
                found = Some(at);
            }
            at = name_end + 10 + usize::from(be16(message, name_end + 8)?);
        }
    }
    (at <= message.len()).then_some(found)
}

/// The end of a name, which may end with a pointer.
fn any_name_end(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            len @ 1..=LABEL_MAX_BYTES => at += 1 + usize::from(len),
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
}

/// The data of an A or AAAA record.
pub(super) fn address_value(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A name in wire format; none if a part of it is no label.
pub(in crate::services) fn name_value(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let len = u8::try_from(label.len()).ok().filter(|len| (1..=LABEL_MAX_BYTES).contains(len))?;
        bytes.push(len);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= NAME_MAX_BYTES).then_some(bytes)
}
