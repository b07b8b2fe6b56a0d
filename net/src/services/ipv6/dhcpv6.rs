//! Stateless DHCPv6 (RFC 8415 18.3.6): options for a guest that makes its addresses itself.

use std::net::Ipv6Addr;

use crate::services::frame::be16;
use crate::services::{ServiceSpec, search};

/// Ports of a server and of a client (RFC 8415 7.2).
pub(crate) const SERVER_PORT: u16 = 547;
pub(crate) const CLIENT_PORT: u16 = 546;

/// All servers of a link (RFC 8415 7.1).
pub(in crate::services) const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// Message types.
const REPLY: u8 = 7;
const INFORMATION_REQUEST: u8 = 11;

/// Option codes.
const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const ADDRESS_OPTIONS: [u16; 3] = [3, 4, 25];
const OPTION_REQUEST: u16 = 6;
const DNS_SERVERS: u16 = 23;
const DOMAIN_LIST: u16 = 24;
const REFRESH_TIME: u16 = 32;

/// Octets of the longest identifier (RFC 8415 11.1).
const ID_MAX_BYTES: usize = 130;

/// Time after which to ask again, in seconds. The shortest that a client accepts is 600.
const REFRESH_S: u32 = 3600;

/// An identifier made of an Ethernet address: DUID-LL (RFC 8415 11.4).
const DUID_LINK_LAYER: [u8; 4] = [0, 3, 0, 1];

/// A client's information request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Request<'a> {
    transaction: [u8; 3],
    client_id: Option<&'a [u8]>,
    server_id: Option<&'a [u8]>,
    /// Codes of the wanted options; all if not given.
    wanted: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    /// The information request in `bytes`; none for a message that asks for addresses, too.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (&[kind, a, b, c], mut options) = bytes.split_first_chunk()?;
        if kind != INFORMATION_REQUEST {
            return None;
        }
        let mut request = Self { transaction: [a, b, c], client_id: None, server_id: None, wanted: None };
        while !options.is_empty() {
            let (code, len) = (be16(options, 0)?, usize::from(be16(options, 2)?));
            let (value, rest) = options.get(4..)?.split_at_checked(len)?;
            match code {
                CLIENT_ID if len <= ID_MAX_BYTES => request.client_id = Some(value),
                SERVER_ID => request.server_id = Some(value),
                OPTION_REQUEST => request.wanted = Some(value),
                code if code == CLIENT_ID || ADDRESS_OPTIONS.contains(&code) => return None,
                _ => {}
            }
            options = rest;
        }
        Some(request)
    }

    fn wants(&self, code: u16) -> bool {
        self.wanted.is_none_or(|codes| codes.chunks_exact(2).any(|pair| pair == code.to_be_bytes()))
    }
}

/// The answer to a client's message, if it gets one.
pub(in crate::services) fn reply(spec: &ServiceSpec, bytes: &[u8]) -> Option<Vec<u8>> {
    let network = spec.ipv6.as_ref()?;
    let request = Request::parse(bytes)?;
    let own_id = [&DUID_LINK_LAYER[..], &spec.gateway_mac.octets()].concat();
    if request.server_id.is_some_and(|id| id != own_id) {
        return None;
    }
    let mut reply = vec![REPLY];
    reply.extend(request.transaction);
    push(&mut reply, SERVER_ID, &own_id);
    if let Some(id) = request.client_id {
        push(&mut reply, CLIENT_ID, id);
    }
    let offered: [(u16, &[u8]); 3] = [
        (DNS_SERVERS, &network.gateway.octets()),
        (DOMAIN_LIST, &search::plain(spec)),
        (REFRESH_TIME, &REFRESH_S.to_be_bytes()),
    ];
    for (code, value) in offered {
        if request.wants(code) {
            push(&mut reply, code, value);
        }
    }
    Some(reply)
}

fn push(message: &mut Vec<u8>, code: u16, value: &[u8]) {
    let Ok(len) = u16::try_from(value.len()) else { return };
    message.extend(code.to_be_bytes());
    message.extend(len.to_be_bytes());
    message.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::tests::spec;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const OWN_ID: [u8; 10] = [0, 3, 0, 1, 2, 0, 0, 0, 0, 1];

    fn request(options: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = vec![INFORMATION_REQUEST, 1, 2, 3];
        for (code, value) in options {
            push(&mut message, *code, value);
        }
        message
    }

    #[test]
    fn client_is_told_resolver_and_domain() {
        let reply = reply(&spec(), &request(&[(CLIENT_ID, b"it"), (OPTION_REQUEST, &[0, 23, 0, 24])])).unwrap();

        let mut expected = vec![REPLY, 1, 2, 3];
        let resolver = "fd00:9:8::1".parse::<std::net::Ipv6Addr>().unwrap().octets();
        let options: [(u16, &[u8]); 4] =
            [(SERVER_ID, &OWN_ID), (CLIENT_ID, b"it"), (DNS_SERVERS, &resolver), (DOMAIN_LIST, b"\x07minivmm\x00")];
        for (code, value) in options {
            push(&mut expected, code, value);
        }
        assert_eq!(reply, expected);
    }

    #[test]
    fn what_is_not_for_a_stateless_server_is_not_answered() {
        let mut solicit = request(&[]);
        solicit[0] = 1;
        let cases: [(&str, Vec<u8>); 6] = [
            ("solicit", solicit),
            ("addresses", request(&[(3, &[0; 12])])),
            ("another server", request(&[(SERVER_ID, b"other")])),
            ("an endless identifier", request(&[(CLIENT_ID, &[0; 131])])),
            ("cut", request(&[(CLIENT_ID, b"it")])[..9].to_vec()),
            ("nothing", Vec::new()),
        ];
        for (what, message) in cases {
            assert_eq!(reply(&spec(), &message), None, "{what}");
        }
    }

    #[test]
    fn server_that_is_named_answers() {
        assert!(reply(&spec(), &request(&[(SERVER_ID, &OWN_ID)])).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_get_a_short_answer_or_none(bytes in vec(any::<u8>(), 0..300)) {
            for bytes in [bytes.clone(), [&[INFORMATION_REQUEST], &bytes[..]].concat()] {
                prop_assert!(reply(&spec(), &bytes).is_none_or(|reply| reply.len() < 300));
            }
        }
    }
}
