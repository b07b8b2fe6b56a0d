//! DNS for one card: the names of the network's own VMs, and a relay to the host's resolvers for all others.
//!
//! ```text
//!   NAME.minivmm, addresses of the network  -> answered here, or NXDOMAIN: such a question never leaves the host
//!   host.minivmm, the gateway's address     -> answered here: the host, by its address on the network
//!   anything else                           -> nat: asked upstream (see [`relay`]);  host-only: REFUSED
//! ```

mod message;
pub(super) mod relay;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use message::{CLASS_INTERNET, TYPE_A, TYPE_AAAA, TYPE_PTR};
pub(super) use message::{Code, Query, Question, bad, name_value};

use super::{DOMAIN, Names, ServiceSpec};

/// The name of the host on each network, which no VM has there.
const HOST: &str = "host";

/// Port of a resolver.
pub(crate) const PORT: u16 = 53;

/// The party that can answer a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// This server: the answer to a question about addresses or names of this network.
    Ours(Vec<u8>),
    /// Another resolver.
    Theirs,
}

/// The answer to `question`, if it is about this network.
pub(super) fn subject(spec: &ServiceSpec, names: &mut dyn Names, question: &Question<'_>) -> Subject {
    let lowered = |label| String::from_utf8_lossy(label).to_ascii_lowercase();
    let labels: Vec<String> = question.labels().map(lowered).collect();
    let Some((last, rest)) = labels.split_last() else { return Subject::Theirs };
    if last == DOMAIN {
        return Subject::Ours(forward(spec, names, question, rest));
    }
    let address = reverse_address(&labels).filter(|_| question.class == CLASS_INTERNET);
    match address.filter(|address| spec.is_on_network(*address)) {
        Some(address) => Subject::Ours(reverse(spec, names, question, address)),
        None => Subject::Theirs,
    }
}

/// The answer to a question about a name under our domain, whose other labels are `labels`.
fn forward(spec: &ServiceSpec, names: &mut dyn Names, question: &Question<'_>, labels: &[String]) -> Vec<u8> {
    if labels.is_empty() {
        return question.authoritative(Code::NoError, &[]);
    }
    let name = labels.join(".");
    let host = || [Some(spec.ipv4.gateway.into()), spec.ipv6.map(|network| network.gateway.into())];
    let addresses = if name == HOST { host().into_iter().flatten().collect() } else { names.lookup(&name) };
    if addresses.is_empty() || question.class != CLASS_INTERNET {
        return question.authoritative(Code::NxDomain, &[]);
    }
    let wanted = addresses.iter().filter(|address| match question.kind {
        TYPE_A => address.is_ipv4(),
        TYPE_AAAA => address.is_ipv6(),
        _ => false,
    });
    question.authoritative(Code::NoError, &wanted.map(message::address_value).collect::<Vec<_>>())
}

/// The answer to a question about an address of our network.
fn reverse(spec: &ServiceSpec, names: &mut dyn Names, question: &Question<'_>, address: IpAddr) -> Vec<u8> {
    let name = if spec.is_gateway(address) { Some(HOST.to_owned()) } else { names.reverse(address) };
    let Some(name) = name.and_then(|name| name_value(&format!("{name}.{DOMAIN}"))) else {
        return question.authoritative(Code::NxDomain, &[]);
    };
    let values = if question.kind == TYPE_PTR { vec![name] } else { Vec::new() };
    question.authoritative(Code::NoError, &values)
}

/// The address that a name under `in-addr.arpa` (RFC 1035 3.5) or `ip6.arpa` (RFC 3596 2.5) stands for, if it is
/// complete.
fn reverse_address(labels: &[String]) -> Option<IpAddr> {
    let [digits @ .., zone, arpa] = labels else { return None };
    match (digits.len(), zone.as_str(), arpa.as_str()) {
        (4, "in-addr", "arpa") => {
            let octet = |idx: usize| digits.get(3 - idx).and_then(|digit| digit.parse::<u8>().ok());
            Some(Ipv4Addr::new(octet(0)?, octet(1)?, octet(2)?, octet(3)?).into())
        }
        (32, "ip6", "arpa") => {
            let bits = digits.iter().rev().try_fold(0_u128, |bits, digit| {
                let nibble = Some(digit).filter(|digit| digit.len() == 1).and_then(|digit| digit.chars().next());
                nibble.and_then(|nibble| nibble.to_digit(16)).map(|nibble| bits << 4 | u128::from(nibble))
            })?;
            Some(Ipv6Addr::from_bits(bits).into())
        }
        _ => None,
    }
}
