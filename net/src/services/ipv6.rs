//! IPv6 for one card: the guest finds its prefix, its gateway and its resolver by itself.

pub(super) mod advertiser;
pub(super) mod dhcpv6;
pub(super) mod solicitation;
