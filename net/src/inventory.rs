//! The links of this host as far as VMs use them, and the packets that their rules have dropped. Changes nothing.
//!
//! Reads one link dump, which any user may. A tap that minivmm made names its VM; other taps do not. Only root may read
//! the packets that the rules of a VM have dropped.

use std::collections::BTreeMap;

use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use serde::Serialize;

use crate::error::Error;
use crate::identity::alias::TapAlias;
use crate::kernel::link::passes;
use crate::kernel::nft::{Family, NftError, NftSocket, TableName};
use crate::kernel::rtnl::{self, Rtnl};
use crate::policy::rules::table_prefix;
use crate::rules;
use crate::survey;

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// True if it passes frames on, and its bridge does.
    pub up: bool,
    /// Its bridge or other master.
    pub master: Option<String>,
    /// Its VM and card, if minivmm made it for one.
    pub card: Option<TapAlias>,
    /// Traffic that the card behind it has received.
    pub received: Traffic,
    /// Traffic that the card behind it has sent.
    pub sent: Traffic,
}

/// Frames that have crossed a link since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// The number of frames; one that the kernel segments later counts as one.
    pub frames: u64,
    /// Their length, without the header before each (`struct virtio_net_hdr`).
    pub bytes: u64,
}

/// Every link of this network namespace, by its name.
///
/// # Errors
/// The kernel does not list its links.
pub fn inventory() -> Result<BTreeMap<String, Entry>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let links = runtime.map_err(Error::Runtime)?.block_on(async {
        let rtnl = Rtnl::connect().map_err(Error::Connect)?;
        rtnl.links_with_statistics().await.map_err(Error::Survey)
    })?;
    Ok(links.iter().filter_map(|link| Some((rtnl::name(link)?.to_owned(), entry(link, &links)))).collect())
}

/// Packets that the rules of a VM have dropped, by reason. Reasons without drops are left out.
///
/// # Errors
/// The kernel does not tell, for example a user without `CAP_NET_ADMIN`.
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
    for table in socket.tables(&table_prefix(vm))? {
        for counter in socket.named_counters(&TableName { family: Family::Netdev, name: table.name })? {
            if counter.counts.packets > 0 {
                *dropped.entry(counter.name).or_insert(0) += counter.counts.packets;
            }
        }
    }
    Ok(dropped)
}

fn entry(message: &LinkMessage, links: &[LinkMessage]) -> Entry {
    let index = rtnl::master(message);
    let master = links.iter().find(|other| Some(other.header.index) == index);
    let link = survey::link(message);
    let (rx, tx) = traffic(message);
    // A tap receives the frames that its card sends. Other links are seen from the card's side.
    let (received, sent) = if link.as_ref().is_some_and(|link| link.tun.is_some()) { (tx, rx) } else { (rx, tx) };
    Entry {
        up: passes(message, master),
        master: master.and_then(rtnl::name).map(str::to_owned),
        card: link.and_then(|link| link.alias).and_then(|alias| TapAlias::parse(&alias)),
        received,
        sent,
    }
}

/// The traffic that a link has received, and that it has sent (`IFLA_STATS64`).
fn traffic(message: &LinkMessage) -> (Traffic, Traffic) {
    let stats = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(*stats),
        _ => None,
    });
    let stats = stats.unwrap_or_default();
    let rx = Traffic { frames: stats.rx_packets, bytes: stats.rx_bytes };
    (rx, Traffic { frames: stats.tx_packets, bytes: stats.tx_bytes })
}
