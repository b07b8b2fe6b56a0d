//! Forwarding between a network of ours and the interfaces that lead out.
//!
//! The kernel looks at the setting of the interface through which a packet came in, so a way out takes the network's bridge and,
//! for the answers, every interface that leads somewhere. Those that did not forward are written on the bridge before they are
//! changed. IPv6 has no such setting of an interface (before Linux 6.17): there the whole host forwards, and those that learn
//! their way out from router advertisements are told to go on doing so, which is written down as well. Whoever removes the bridge puts them back, or writes them on another bridge of ours that still needs them.

use std::collections::BTreeSet;
use std::io;

use crate::alias::{Mode, NetworkAlias};
use crate::facts::Link;
use crate::rtnl::Rtnl;
use crate::spec::IfName;
use crate::survey;
use crate::sysctl::{self, Conf};

/// The setting.
const KEY: &str = "forwarding";

/// Whether an interface can lead to other machines: neither a network of ours nor loopback. Bridges of ours with an uplink can.
pub(crate) fn may_lead(link: &Link) -> bool {
    !link.is_our_network() && link.name != "lo"
}

/// Whether what comes in by a link is passed on, if it is IPv4.
pub(crate) fn forwards(link: &str) -> bool {
    sysctl::is(Conf::Ipv4, link, KEY, "1")
}

/// Lets packets pass between `bridge`, a network of ours, and these interfaces. Those that did not forward are written on the bridge.
pub(crate) async fn enable(rtnl: &Rtnl, bridge: &IfName, uplinks: &[IfName]) -> io::Result<()> {
    let silent: Vec<&IfName> = uplinks.iter().filter(|uplink| !forwards(uplink.as_str())).collect();
    if !silent.is_empty() {
        let links = links(rtnl).await?;
        if let Some((ours, mut alias)) = links.iter().find(|link| link.name == bridge.as_str()).and_then(network) {
            let indexes = links.iter().filter(|link| silent.iter().any(|uplink| uplink.as_str() == link.name));
            alias.settle(forwards("all"));
            alias.forward.extend(indexes.map(|link| link.index));
            rtnl.set_alias(&ours.name, &alias.to_string()).await?;
        }
    }
    for link in silent.into_iter().chain([bridge]) {
        sysctl::set_if_there(Conf::Ipv4, link.as_str(), KEY, "1")?;
    }
    Ok(())
}

/// Lets IPv6 packets pass through a host that does not forward them; these uplinks take router advertisements all the same.
pub(crate) async fn enable6(rtnl: &Rtnl, bridge: &IfName, uplinks: &[IfName]) -> io::Result<()> {
    let links = links(rtnl).await?;
    let Some((ours, mut alias)) = links.iter().find(|link| link.name == bridge.as_str()).and_then(network) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let indexes = links.iter().filter(|link| uplinks.iter().any(|uplink| uplink.as_str() == link.name));
    alias.accept_ra.extend(indexes.map(|link| link.index));
    alias.forward6 = true;
    rtnl.set_alias(&ours.name, &alias.to_string()).await?;
    for link in uplinks {
        sysctl::set_if_there(Conf::Ipv6, link.as_str(), "accept_ra", "2")?;
    }
    sysctl::set(Conf::Ipv6, "all", KEY, "1")
}

/// Puts back what was changed for `bridge`, which is about to go.
pub(crate) async fn release(rtnl: &Rtnl, bridge: &Link, links: &[Link]) -> io::Result<()> {
    let Some((_, mut alias)) = network(bridge).filter(|(_, alias)| alias.forward6 || !alias.forward.is_empty()) else {
        return Ok(());
    };
    alias.settle(forwards("all"));
    let mut others = links.iter().filter(|link| link.index != bridge.index).filter_map(network);
    if let Some((heir, mut inherited)) = others.find(|(_, other)| other.mode == Mode::Nat) {
        inherited.settle(forwards("all"));
        inherited.forward.extend(alias.forward);
        inherited.accept_ra.extend(alias.accept_ra);
        inherited.forward6 |= alias.forward6;
        return rtnl.set_alias(&heir.name, &inherited.to_string()).await;
    }
    if alias.forward6 {
        sysctl::set_if_there(Conf::Ipv6, "all", KEY, "0")?;
        for link in links.iter().filter(|link| alias.accept_ra.contains(&link.index)) {
            sysctl::set_if_there(Conf::Ipv6, &link.name, "accept_ra", "1")?;
        }
    }
    restore(&alias.forward, links)
}

fn restore(indexes: &BTreeSet<u32>, links: &[Link]) -> io::Result<()> {
    for link in links.iter().filter(|link| indexes.contains(&link.index)) {
        sysctl::set_if_there(Conf::Ipv4, &link.name, KEY, "0")?;
    }
    Ok(())
}

/// Every link.
pub(crate) async fn links(rtnl: &Rtnl) -> io::Result<Vec<Link>> {
    Ok(rtnl.links().await?.iter().filter_map(survey::link).collect())
}

/// A bridge of ours that makes a network, with what is written on it.
fn network(link: &Link) -> Option<(&Link, NetworkAlias)> {
    let alias = link.alias.as_deref().filter(|_| link.is_our_bridge())?;
    NetworkAlias::parse(alias).map(|alias| (link, alias))
}
