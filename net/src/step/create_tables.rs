//! Makes the nftables of a VM: address translation, guards and reach. They go with keeper and VMM, if not before.

use std::fmt;

use serde::Serialize;

use super::Applied;
use super::kind::Kind;
use crate::error::Error;
use crate::rules::guard::Guard;
use crate::rules::{self, Member};
use crate::spec::Connections;

/// Make the nftables of a VM, which go with keeper and VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CreateTables {
    /// The VM.
    pub vm: String,
    /// Its cards on networks of ours.
    pub members: Vec<Member>,
    /// Its cards on bridges of the host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub guards: Vec<Guard>,
}

impl Kind for CreateTables {
    async fn apply(&self, made: &mut Applied) -> Result<(), Error> {
        let Self { vm, members, guards } = self;
        let taps = &made.taps;
        let tables = rules::tables(vm, members, guards, |card| taps.get(&card)?.name.parse().ok());
        match made.owner().and_then(|owner| owner.add(tables)) {
            // These cards also work without tables: on kernels without nftables, or without owners of tables.
            Err(error) if members.is_empty() && guards.iter().all(Guard::is_open) => {
                let error = Error::Nftables(error).report().message;
                log::warn!("BPDUs of guests on bridges are not dropped: {error}");
                Ok(())
            }
            result => result.map_err(Error::Nftables),
        }
    }

    async fn undo(&self, made: &mut Applied) -> Result<(), Error> {
        made.remove_tables(|name| rules::FAMILIES.iter().any(|family| *name == rules::name(&self.vm, *family)))
            .map_err(Error::Nftables)
    }

    fn undo_text(&self) -> String {
        "remove them".to_owned()
    }
}

impl fmt::Display for CreateTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, members, guards } = self;
        let cards = members.iter().map(|member| member.card).chain(guards.iter().map(|guard| guard.card));
        let cards: Vec<String> = cards.map(|card| card.to_string()).collect();
        let name = |card: usize| format!("tap{card}").parse().ok();
        let tables = rules::tables(vm, members, guards, name);
        let families: Vec<String> = tables.iter().map(|table| table.name.family.to_string()).collect();
        write!(f, "create the nftables {} minivmm-{vm} for card {}", families.join(" and "), cards.join(", "))?;
        for member in members {
            let connections = member.limits.connections.map_or(0, Connections::get);
            write!(f, ", card {} reaching {}", member.card, member.reach)?;
            write!(f, " with at most {connections} connections")?;
        }
        Ok(())
    }
}
