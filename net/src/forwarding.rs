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

/// Lets packets pass between `bridge`, a network of ours, and these interfaces, which do not forward.
pub(crate) async fn enable(rtnl: &Rtnl, bridge: &IfName, uplinks: &[IfName]) -> io::Result<()> {
    let links = links(rtnl).await?;
    if let Some((ours, mut alias)) = links.iter().find(|link| link.name == bridge.as_str()).and_then(network) {
        let indexes = links.iter().filter(|link| uplinks.iter().any(|uplink| uplink.as_str() == link.name));
        if alias.forward.is_empty() {
            alias.forward_all = forwards("all");
        }
        alias.forward.extend(indexes.map(|link| link.index));
        rtnl.set_alias(&ours.name, &alias.to_string()).await?;
    }
    for link in uplinks.iter().chain([bridge]) {
        write_if_there(Conf::Ipv4, link.as_str(), KEY, "1")?;
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
        write_if_there(Conf::Ipv6, link.as_str(), "accept_ra", "2")?;
    }
    sysctl::write(Conf::Ipv6, "all", KEY, "1")
}

/// Puts back what was changed for `bridge`, which is about to go.
pub(crate) async fn release(rtnl: &Rtnl, bridge: &Link, links: &[Link]) -> io::Result<()> {
    let Some((_, alias)) = network(bridge).filter(|(_, alias)| alias.forward6 || !alias.forward.is_empty()) else {
        return Ok(());
    };
    let mut others = links.iter().filter(|link| link.index != bridge.index).filter_map(network);
    if let Some((heir, mut inherited)) = others.find(|(_, other)| other.mode == Mode::Nat) {
        if !alias.forward.is_empty() {
            inherited.forward.extend(alias.forward);
            inherited.forward_all = alias.forward_all;
        }
        inherited.accept_ra.extend(alias.accept_ra);
        inherited.forward6 |= alias.forward6;
        return rtnl.set_alias(&heir.name, &inherited.to_string()).await;
    }
    if alias.forward6 {
        write_if_there(Conf::Ipv6, "all", KEY, "0")?;
        for link in links.iter().filter(|link| alias.accept_ra.contains(&link.index)) {
            write_if_there(Conf::Ipv6, &link.name, "accept_ra", "1")?;
        }
    }
    // Somebody has switched forwarding on, or off, for the whole host: that is what holds now.
    if forwards("all") == alias.forward_all {
        restore(&alias.forward, links)?;
    }
    Ok(())
}

fn restore(indexes: &BTreeSet<u32>, links: &[Link]) -> io::Result<()> {
    for link in links.iter().filter(|link| indexes.contains(&link.index)) {
        write_if_there(Conf::Ipv4, &link.name, KEY, "0")?;
    }
    Ok(())
}

/// Sets something of a link, unless that has gone.
fn write_if_there(conf: Conf, link: &str, key: &str, value: &str) -> io::Result<()> {
    match sysctl::write(conf, link, key, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn forwards(link: &str) -> bool {
    sysctl::read(Conf::Ipv4, link, KEY).is_ok_and(|value| value == "1")
}

async fn links(rtnl: &Rtnl) -> io::Result<Vec<Link>> {
    Ok(rtnl.links().await?.iter().filter_map(survey::link).collect())
}

/// A bridge of ours that makes a network, with what is written on it.
fn network(link: &Link) -> Option<(&Link, NetworkAlias)> {
    let alias = link.alias.as_deref().filter(|_| link.is_our_bridge())?;
    NetworkAlias::parse(alias).map(|alias| (link, alias))
}
