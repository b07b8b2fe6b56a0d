//! Docker's firewall as far as a plan depends on it. Plain data.

use serde::Serialize;

/// The chain that Docker leaves to the rules of others.
pub(crate) const CHAIN: &str = "DOCKER-USER";

/// The tables in which Docker drops forwarded traffic, and leaves a chain to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DockerTables {
    /// True for the IPv4 table.
    pub ip4: bool,
    /// True for the IPv6 table.
    pub ip6: bool,
}
