//! Docker's firewall as far as a plan depends on it. Plain data.

use serde::Serialize;

/// The chain.
pub(crate) const CHAIN: &str = "DOCKER-USER";

/// Where Docker drops, and leaves a place for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DockerTables {
    /// In the table for IPv4.
    pub ip4: bool,
    /// In that for IPv6.
    pub ip6: bool,
}
