//! DHCPv4 messages (RFC 2131 2, RFC 2132): a checked view of a client's message, and the writer of answers.
//!
//! Options in the `file` and `sname` fields (option 52) are not read: no client puts there what a server must know.

use std::net::Ipv4Addr;

use crate::services::frame::{Octets, be16};

/// Octets before the options: the fixed fields and the magic cookie.
const FIXED_BYTES: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];

/// The shortest message that every relay and client takes, from BOOTP (RFC 1542 2.1).
const MESSAGE_MIN_BYTES: usize = 300;

/// The longest message that a client must take unless it says otherwise (RFC 2132 9.10), with headers of IP and UDP.
const DATAGRAM_BYTES: u16 = 576;
const HEADER_BYTES: usize = 28;

/// `op`, `htype`, and the broadcast bit of `flags`.
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const ETHERNET: u8 = 1;
const BROADCAST_FLAG: u16 = 0x8000;

/// Option codes (RFC 2132).
pub(super) mod option {
    pub(in super::super) const PAD: u8 = 0;
    pub(in super::super) const SUBNET_MASK: u8 = 1;
    pub(in super::super) const ROUTER: u8 = 3;
    pub(in super::super) const DNS_SERVER: u8 = 6;
    pub(in super::super) const HOST_NAME: u8 = 12;
    pub(in super::super) const DOMAIN_NAME: u8 = 15;
    pub(in super::super) const INTERFACE_MTU: u8 = 26;
    pub(in super::super) const BROADCAST_ADDRESS: u8 = 28;
    pub(in super::super) const REQUESTED_ADDRESS: u8 = 50;
    pub(in super::super) const LEASE_TIME: u8 = 51;
    pub(in super::super) const MESSAGE_TYPE: u8 = 53;
    pub(in super::super) const SERVER_ID: u8 = 54;
    pub(in super::super) const MESSAGE_MAX: u8 = 57;
    pub(in super::super) const RENEWAL_TIME: u8 = 58;
    pub(in super::super) const REBINDING_TIME: u8 = 59;
    pub(in super::super) const CLIENT_ID: u8 = 61;
    pub(in super::super) const DOMAIN_SEARCH: u8 = 119;
    pub(in super::super) const END: u8 = 255;
}

/// Option 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::services) enum Kind {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Decline = 4,
    Ack = 5,
    Nak = 6,
    Release = 7,
    Inform = 8,
}

impl Kind {
    fn of(number: u8) -> Option<Self> {
        let all = [
            Self::Discover,
            Self::Offer,
            Self::Request,
            Self::Decline,
            Self::Ack,
            Self::Nak,
            Self::Release,
            Self::Inform,
        ];
        // The discriminants are the numbers of the option.
        all.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// A message of a client on its own Ethernet, not behind a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::services) struct Message<'a> {
    pub(in crate::services) kind: Kind,
    pub(super) xid: [u8; 4],
    flags: u16,
    /// `ciaddr`: the address that the client uses; unspecified if it has none.
    pub(super) client_address: Ipv4Addr,
    pub(in crate::services) mac: Octets,
    pub(super) requested: Option<Ipv4Addr>,
    pub(super) server_id: Option<Ipv4Addr>,
    client_id: Option<&'a [u8]>,
    /// Octets that an answer may have.
    bytes_max: usize,
}

impl<'a> Message<'a> {
    /// The message in `bytes`, if it is one from such a client.
    pub(in crate::services) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (fixed, options) = bytes.split_at_checked(FIXED_BYTES)?;
        let whole = fixed.starts_with(&[REQUEST, ETHERNET, 6]) && fixed.ends_with(&COOKIE) && fixed[24..28] == [0; 4];
        let option = |code| find(options, code);
        let kind = option(option::MESSAGE_TYPE).filter(|_| whole).and_then(|value| match value {
            [number] => Kind::of(*number),
            _ => None,
        })?;
        let max = option(option::MESSAGE_MAX).and_then(|value| be16(value, 0)).unwrap_or(0).max(DATAGRAM_BYTES);
        Some(Self {
            kind,
            xid: *fixed[4..].first_chunk()?,
            flags: be16(fixed, 10)?,
            client_address: address(&fixed[12..16])?,
            mac: *fixed[28..].first_chunk()?,
            requested: option(option::REQUESTED_ADDRESS).and_then(address),
            server_id: option(option::SERVER_ID).and_then(address),
            client_id: option(option::CLIENT_ID),
            bytes_max: usize::from(max) - HEADER_BYTES,
        })
    }

    /// True if the client cannot receive a datagram to an address that it does not have yet.
    pub(super) fn wants_broadcast(&self) -> bool {
        self.flags & BROADCAST_FLAG != 0
    }

    /// An answer that has no options but the type, the server, and the client's own identifier (RFC 6842).
    pub(super) fn answer(&self, kind: Kind, server: Ipv4Addr) -> Answer {
        let mut bytes = vec![0; FIXED_BYTES];
        bytes[..3].copy_from_slice(&[REPLY, ETHERNET, 6]);
        bytes[4..8].copy_from_slice(&self.xid);
        bytes[10..12].copy_from_slice(&self.flags.to_be_bytes());
        bytes[28..34].copy_from_slice(&self.mac);
        bytes[FIXED_BYTES - 4..].copy_from_slice(&COOKIE);
        let mut answer = Answer { bytes, bytes_max: self.bytes_max };
        answer.option(option::MESSAGE_TYPE, &[kind as u8]);
        answer.option(option::SERVER_ID, &server.octets());
        if let Some(id) = self.client_id {
            answer.option(option::CLIENT_ID, id);
        }
        answer
    }
}

/// A message to a client, being written.
pub(super) struct Answer {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Answer {
    /// Sets `ciaddr` (RFC 2131 table 3).
    pub(super) fn client_address(&mut self, address: Ipv4Addr) {
        self.bytes[12..16].copy_from_slice(&address.octets());
    }

    /// Sets `yiaddr`.
    pub(super) fn your_address(&mut self, address: Ipv4Addr) {
        self.bytes[16..20].copy_from_slice(&address.octets());
    }

    /// Adds an option, if the client's message has room for it: the more important come first.
    pub(super) fn option(&mut self, code: u8, value: &[u8]) {
        let Ok(len) = u8::try_from(value.len()) else { return };
        // One octet is for the end.
        if self.bytes.len() + 2 + value.len() < self.bytes_max {
            self.bytes.extend([code, len]);
            self.bytes.extend(value);
        }
    }

    /// Adds an option that may be longer than one has room for: the client joins the parts (RFC 3396 5). Returns false
    /// if the client's message has no room for all of it.
    pub(super) fn long_option(&mut self, code: u8, value: &[u8]) -> bool {
        let parts = value.chunks(usize::from(u8::MAX));
        let fits = self.bytes.len() + 2 * parts.len() + value.len() < self.bytes_max;
        if fits {
            parts.for_each(|part| self.option(code, part));
        }
        fits
    }

    /// The message.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.push(option::END);
        if self.bytes.len() < MESSAGE_MIN_BYTES {
            self.bytes.resize(MESSAGE_MIN_BYTES, option::PAD);
        }
        self.bytes
    }
}

/// The value of the first option `code`. Options end at the end option, at the end of the bytes, or where one is cut.
pub(super) fn find(mut options: &[u8], code: u8) -> Option<&[u8]> {
    loop {
        match options {
            [option::END, ..] | [] => return None,
            [option::PAD, rest @ ..] => options = rest,
            [found, len, rest @ ..] => {
                let (value, rest) = rest.split_at_checked(usize::from(*len))?;
                if *found == code {
                    return Some(value);
                }
                options = rest;
            }
            [_] => return None,
        }
    }
}

fn address(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from)
}
