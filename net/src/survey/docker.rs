//! Looks for the tables in which Docker drops forwarded traffic, and leaves a chain to others.

use crate::facts::docker::{CHAIN, DockerTables};
use crate::kernel::nft::{Family, NftError, NftSocket, Policy, TableName};

/// The tables in which Docker drops; none for a user who may not look.
pub(crate) fn survey() -> DockerTables {
    let look = || {
        let mut socket = NftSocket::open()?;
        let mut drops = |family| {
            let (table, policy) = (table(family), Some(Policy::Drop));
            Ok::<_, NftError>(
                socket.policy_of(&table, CHAIN)?.is_some() && socket.policy_of(&table, "FORWARD")? == policy,
            )
        };
        Ok::<_, NftError>(DockerTables { ip4: drops(Family::Ip)?, ip6: drops(Family::Ip6)? })
    };
    look().inspect_err(|error| log::debug!("Cannot look for Docker's chains: {error}")).unwrap_or_default()
}

/// The table of a family that Docker and iptables share.
pub(crate) fn table(family: Family) -> TableName {
    TableName { family, name: "filter".to_owned() }
}
