//! IPv6 for one card: how its guest finds its prefix, its gateway and its resolver by itself.

pub(super) mod advertiser;
pub(super) mod dhcpv6;
pub(super) mod solicitation;

use super::{DOMAIN, dns};

/// Our domain as DNS messages and options carry it.
fn domain() -> Vec<u8> {
    dns::name_value(DOMAIN).unwrap_or_default()
}
