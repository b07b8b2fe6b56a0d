//! Copies of all frames of a card at another interface (`mirror=`). nftables makes them on the card's tap, so that they
//! work with vhost-net as well, cost the VMM nothing, and end with the keeper.
//!
//! A large frame (TSO) is copied whole, and segmented if the interface cannot do that itself. Mirroring never blocks:
//! dropped copies show in the interface's drop counter (`ip -s link`). While the interface is gone nothing is copied.
//!
//! The copies could also be written to a packet socket by the card's workers, which look at frames for `capture=`
//! anyhow: that would cost a system call for each frame, and would miss all frames of a card on vhost-net.

use serde::Serialize;

use crate::kernel::nft::{
    Base, Batch, Chain, ChainType, Command, Family, Hook, NftError, NftSocket, Policy, Rule, Statement, Table,
    TableName,
};
use crate::kernel::tun::TapKind;
use crate::spec::IfName;

/// Before all rules that drop on the way in, and after all of them on the way out: the copies are the frames on the
/// wire.
const FIRST: i32 = -1000;
const LAST: i32 = 1000;

/// A card whose frames are copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mirror {
    /// The card.
    pub card: usize,
    /// The interface that sends the copies.
    pub to: IfName,
}

/// Failure to set up copies.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MirrorError {
    /// The kernel has no hook on the way out (Linux 5.16, `CONFIG_NETFILTER_EGRESS`).
    #[error("The kernel has no egress hook of family netdev")]
    NoHook,
    /// Anything else.
    #[error(transparent)]
    Nft(#[from] NftError),
}

/// The VM's table of copies. `tap` gives the tap of a card. No VM's name has a slash, so that no other table has this
/// name.
pub(crate) fn table(vm: &str, mirrors: &[Mirror], tap: impl Fn(usize) -> Option<(IfName, TapKind)>) -> Table {
    let mut table = Table {
        name: TableName { family: Family::Netdev, name: format!("minivmm-{vm}/mirror") },
        counters: Vec::new(),
        sets: Vec::new(),
        chains: Vec::new(),
    };
    for Mirror { card, to } in mirrors {
        let Some((tap, kind)) = tap(*card) else { continue };
        let (into_host, out_of_host) = match kind {
            TapKind::Tap => ("from-guest", "to-guest"),
            TapKind::Macvtap => ("to-guest", "from-guest"),
        };
        let ways = [(into_host, Hook::Ingress(tap.clone()), FIRST), (out_of_host, Hook::Egress(tap), LAST)];
        for (way, hook, priority) in ways {
            let name = format!("card{card}-{way}");
            let copy = Rule::new().with(Statement::CountIn(name.clone())).with(Statement::Dup(to.clone()));
            table.counters.push(name.clone());
            let base = Base { chain_type: ChainType::Filter, hook, priority, policy: Policy::Accept };
            table.chains.push(Chain { name, base: Some(base), rules: vec![copy] });
        }
    }
    table
}

/// Has the kernel make the copies for as long as the socket lives.
pub(crate) fn open(table: Table) -> Result<NftSocket, MirrorError> {
    let mut socket = NftSocket::open()?;
    socket.apply(&Batch { commands: vec![Command::AddTable(table)] }).map_err(MirrorError::of)?;
    Ok(socket)
}

impl MirrorError {
    /// Tells a kernel without the hook from other failures to add the table.
    fn of(error: NftError) -> Self {
        let no_hook =
            matches!(&error, NftError::Refused { source, .. } if source.raw_os_error() == Some(libc::EOPNOTSUPP));
        if no_hook || error.has_no_owners() { Self::NoHook } else { Self::Nft(error) }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn refused(object: &str, errno: i32) -> MirrorError {
        MirrorError::of(NftError::Refused { object: object.to_owned(), source: io::Error::from_raw_os_error(errno) })
    }

    #[test]
    fn kernel_before_5_16_has_no_hook_for_copies() {
        let (table, chain) =
            ("table netdev minivmm-web/mirror", "chain card0-to-guest of table netdev minivmm-web/mirror");
        // Without the hook, and, before 5.12, without owners of tables.
        for (object, errno) in [(chain, libc::EOPNOTSUPP), (table, libc::EINVAL)] {
            assert!(matches!(refused(object, errno), MirrorError::NoHook), "{object}: {errno}");
        }
        for (object, errno) in [(chain, libc::ENOENT), (chain, libc::EPERM), (table, libc::EPERM)] {
            assert!(matches!(refused(object, errno), MirrorError::Nft(_)), "{object}: {errno}");
        }
    }
}
