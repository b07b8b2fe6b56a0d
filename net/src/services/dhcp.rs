//! The DHCPv4 server of one card (RFC 2131): one address, always the same, for one guest.
//!
//! There is no pool, so there is nothing to remember: every answer follows from the question.
//!
//! ```text
//!   DISCOVER                                  -> OFFER
//!   REQUEST of our offer, or of the address   -> ACK      (selecting, init-reboot, renewing, rebinding)
//!   REQUEST of another address                -> NAK
//!   REQUEST of another server's offer         -> nothing
//!   INFORM                                    -> ACK without an address
//!   RELEASE, DECLINE                          -> nothing
//! ```

mod message;

use std::net::Ipv4Addr;

use message::{Answer, option};
pub(super) use message::{Kind, Message};

use super::{DOMAIN, ServiceSpec, search};
use crate::spec::DOMAINS_MAX;

/// Duration of a lease, in seconds. A guest notices within the hour how its network has changed, and its renewals are
/// no load.
const LEASE_S: u32 = 3600;

/// Times at which a client asks for more time, first its own server, then any (RFC 2131 4.4.5: a half and seven
/// eighths).
const RENEWAL_S: u32 = LEASE_S / 2;
const REBINDING_S: u32 = LEASE_S / 8 * 7;

/// Ports of a server and of a client (RFC 2131 4.1).
pub(crate) const SERVER_PORT: u16 = 67;
pub(crate) const CLIENT_PORT: u16 = 68;

/// The server's answer to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) kind: Kind,
    /// The limited broadcast address if all stations are to hear it.
    pub(super) destination: Ipv4Addr,
    pub(super) bytes: Vec<u8>,
}

/// The answer to `message`, if it gets one.
pub(super) fn reply(spec: &ServiceSpec, message: &Message<'_>) -> Option<Reply> {
    let kind = answer_kind(spec, message)?;
    let gateway = spec.ipv4.gateway;
    let mut answer = message.answer(kind, gateway);
    let address = spec.ipv4.address;
    let destination = match kind {
        Kind::Nak => Ipv4Addr::BROADCAST,
        // A client that informs has an address.
        _ if !message.client_address.is_unspecified() => message.client_address,
        _ if message.wants_broadcast() => Ipv4Addr::BROADCAST,
        _ => address,
    };
    if kind != Kind::Nak {
        if message.kind == Kind::Inform {
            answer.client_address(message.client_address);
        } else {
            answer.your_address(address);
            for (code, seconds) in [
                (option::LEASE_TIME, LEASE_S),
                (option::RENEWAL_TIME, RENEWAL_S),
                (option::REBINDING_TIME, REBINDING_S),
            ] {
                answer.option(code, &seconds.to_be_bytes());
            }
            if message.kind == Kind::Request {
                answer.client_address(message.client_address);
            }
        }
        describe_network(spec, &mut answer);
    }
    Some(Reply { kind, destination, bytes: answer.finish() })
}

/// The kind of the answer by RFC 2131 4.3, if there is one.
fn answer_kind(spec: &ServiceSpec, message: &Message<'_>) -> Option<Kind> {
    let for_us = message.server_id.is_none_or(|server| server == spec.ipv4.gateway);
    let used = message.client_address;
    match message.kind {
        Kind::Discover => Some(Kind::Offer),
        Kind::Request if for_us => {
            // Renewing and rebinding clients name the address that they use, others the one that they want.
            let wanted = if used.is_unspecified() { message.requested? } else { used };
            Some(if wanted == spec.ipv4.address { Kind::Ack } else { Kind::Nak })
        }
        Kind::Inform if !used.is_unspecified() && !used.is_broadcast() && !used.is_multicast() => Some(Kind::Ack),
        _ => None,
    }
}

/// Adds the options that describe the network. All are sent, asked for or not: they fit, and clients skip unknown ones.
fn describe_network(spec: &ServiceSpec, answer: &mut Answer) {
    let network = &spec.ipv4;
    answer.option(option::SUBNET_MASK, &network.mask().octets());
    if spec.reach.leads_out() {
        answer.option(option::ROUTER, &network.gateway.octets());
    }
    answer.option(option::DNS_SERVER, &network.gateway.octets());
    answer.option(option::INTERFACE_MTU, &spec.mtu.to_be_bytes());
    answer.option(option::DOMAIN_NAME, DOMAIN.as_bytes());
    answer.option(option::HOST_NAME, spec.vm_name.as_bytes());
    answer.option(option::BROADCAST_ADDRESS, &network.broadcast().octets());
    // The domains that come first, if there is no room for all. The first alone is in another option already.
    let lists = (2..=DOMAINS_MAX + 1).rev().filter_map(|count| search::compressed(spec, count));
    let _ = lists.into_iter().find(|list| answer.long_option(option::DOMAIN_SEARCH, list));
}

#[cfg(test)]
mod tests;
