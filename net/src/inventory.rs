//! The links of this host as far as VMs use them, for whoever asks which VM has what.
//!
//! Reads one link dump, which any user may. A tap that minivmm made says whose it is; one that somebody else made does not.
//! What the rules of a VM have dropped is for root to know.

use std::collections::BTreeMap;

use rtnetlink::packet_route::link::LinkMessage;

use crate::alias::TapAlias;
use crate::error::Error;
use crate::link::passes;
use crate::nft::{NftError, NftSocket};
use crate::rtnl::{self, Rtnl};
use crate::rules;
use crate::survey;

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whether it passes frames on, and its bridge does.
    pub up: bool,
    /// What it is a port of.
    pub master: Option<String>,
    /// Whose it is, if minivmm made it for a card.
    pub card: Option<TapAlias>,
}

/// Every link of this network namespace, by its name.
///
/// # Errors
/// The kernel does not say what there is.
pub fn inventory() -> Result<BTreeMap<String, Entry>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let links = runtime.map_err(Error::Runtime)?.block_on(async {
        let rtnl = Rtnl::connect().map_err(Error::Connect)?;
        rtnl.links().await.map_err(Error::Survey)
    })?;
    Ok(links.iter().filter_map(|link| Some((rtnl::name(link)?.to_owned(), entry(link, &links)))).collect())
}

/// Packets that the rules of a VM have dropped, by reason; only reasons that there were.
///
/// # Errors
/// The kernel does not say so, as to users without `CAP_NET_ADMIN`.
pub fn dropped(vm: &str) -> Result<BTreeMap<String, u64>, NftError> {
    let mut socket = NftSocket::open()?;
    let mut dropped = BTreeMap::new();
    for family in rules::FAMILIES {
        for counter in socket.named_counters(&rules::name(vm, family))? {
            if counter.counts.packets > 0 {
                *dropped.entry(counter.name).or_insert(0) += counter.counts.packets;
            }
        }
    }
    Ok(dropped)
}

fn entry(link: &LinkMessage, links: &[LinkMessage]) -> Entry {
    let index = rtnl::master(link);
    let master = links.iter().find(|other| Some(other.header.index) == index);
    let alias = survey::link(link).and_then(|link| link.alias);
    Entry {
        up: passes(link, master),
        master: master.and_then(rtnl::name).map(str::to_owned),
        card: alias.and_then(|alias| TapAlias::parse(&alias)),
    }
}
