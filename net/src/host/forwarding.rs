//! Forwarding between a network of ours and the interfaces that lead out.
//!
//! The kernel looks at the setting of the interface through which a packet came in, so a way out takes the network's
//! bridge and, for the answers, every interface that leads somewhere. Those that did not forward are written on the
//! bridge before they are changed ([`NetworkAlias`]). IPv6 has no such setting of an interface (before Linux 6.17):
//! there the whole host forwards ([`ipv6`]). The removal of the bridge puts everything back, or hands it to the alias
//! of another bridge of ours that still needs it.
//!
//! A host that forwards for us is no router between its own networks: see [`fence`]. Where the admin has it forward
//! anyhow, it is left alone.

pub(crate) mod fence;
pub(crate) mod ipv6;

use std::collections::BTreeSet;
use std::io;

use crate::facts::Link;
use crate::identity::alias::{ALIAS_MAX, Mode, NetworkAlias};
use crate::kernel::rtnl::Rtnl;
use crate::kernel::sysctl::{self, Conf, FORWARDING};
use crate::spec::IfName;
use crate::survey;

/// The IP version that is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    /// IPv4, interface by interface.
    Ipv4,
    /// IPv6, by the whole host.
    Ipv6,
}

/// Returns whether an interface can lead to other machines: it is neither a network of ours nor loopback. Bridges of
/// ours with an uplink can.
pub(crate) fn may_lead(link: &Link) -> bool {
    !link.is_our_network() && link.name != "lo"
}

/// Lets packets pass between `bridge`, a network of ours, and these interfaces. Those that did not forward are written
/// on the bridge.
pub(crate) async fn enable(rtnl: &Rtnl, links: &[Link], bridge: &IfName, uplinks: &[IfName]) -> io::Result<()> {
    let silent: Vec<&IfName> = uplinks.iter().filter(|uplink| !sysctl::forwards(uplink.as_str())).collect();
    let ours = links.iter().find(|link| link.name == bridge.as_str()).and_then(network);
    if let Some((ours, mut alias)) = ours.filter(|_| !silent.is_empty()) {
        let indexes = links.iter().filter(|link| silent.iter().any(|uplink| uplink.as_str() == link.name));
        alias.settle(sysctl::forwards("all"));
        alias.forward.extend(indexes.map(|link| link.index));
        // Drop the indexes of links that have gone.
        alias.forward.retain(|index| links.iter().any(|link| link.index == *index));
        write(rtnl, ours, &alias).await?;
    }
    for link in silent.into_iter().chain([bridge]) {
        sysctl::set_if_there(Conf::Ipv4, link.as_str(), FORWARDING, "1")?;
    }
    Ok(())
}

/// Has `to` be put back as `from` is, whose place it takes: a bridge that has its uplink's settings.
pub(crate) async fn inherit(rtnl: &Rtnl, from: u32, to: u32) -> io::Result<()> {
    let links = survey::links(rtnl).await?;
    for (ours, mut alias) in links.iter().filter_map(network) {
        let before = alias.clone();
        for set in [&mut alias.forward, &mut alias.accept_ra, &mut alias.other_ra] {
            if set.contains(&from) {
                set.insert(to);
            }
        }
        if alias != before {
            write(rtnl, ours, &alias).await?;
        }
    }
    Ok(())
}

/// Puts back what was changed in these families for `bridge`, which no VM is on, or has another network of ours that
/// leads out put it back later. It is then removed from the bridge's alias, so that this may be repeated.
pub(crate) async fn release(rtnl: &Rtnl, bridge: &Link, links: &[Link], families: &[Family]) -> io::Result<()> {
    let Some((_, mut kept)) = network(bridge) else { return Ok(()) };
    let mut part = NetworkAlias::new(kept.mode, kept.net.clone());
    part.forward_all = kept.forward_all;
    for family in families {
        match family {
            Family::Ipv4 => kept.move_ipv4_to(&mut part),
            Family::Ipv6 => kept.move_ipv6_to(&mut part),
        }
    }
    if !part.forward6 && part.forward.is_empty() {
        return Ok(());
    }
    part.settle(sysctl::forwards("all"));
    let mut others = links.iter().filter(|link| link.index != bridge.index).filter_map(network);
    if let Some((heir, mut inherited)) = others.find(|(_, other)| other.mode == Mode::Nat) {
        inherited.settle(part.forward_all);
        inherited.take_over(part);
        write(rtnl, heir, &inherited).await?;
    } else {
        if part.forward6 {
            ipv6::put_back(&part, links)?;
        }
        restore(&part.forward, links)?;
    }
    write(rtnl, bridge, &kept).await
}

fn restore(indexes: &BTreeSet<u32>, links: &[Link]) -> io::Result<()> {
    for link in links.iter().filter(|link| indexes.contains(&link.index)) {
        sysctl::set_if_there(Conf::Ipv4, &link.name, FORWARDING, "0")?;
    }
    Ok(())
}

/// Writes the settings to put back into the alias of a bridge of ours.
async fn write(rtnl: &Rtnl, bridge: &Link, alias: &NetworkAlias) -> io::Result<()> {
    let text = alias.to_string();
    if text.len() > ALIAS_MAX {
        return Err(io::Error::other(format!(
            "what {} interfaces were before does not fit into the {ALIAS_MAX} bytes of a bridge's alias",
            alias.forward.len() + alias.accept_ra.len() + alias.other_ra.len()
        )));
    }
    rtnl.set_alias(&bridge.name, &text).await
}

/// A bridge of ours that makes a network, with its parsed alias.
pub(crate) fn network(link: &Link) -> Option<(&Link, NetworkAlias)> {
    let alias = link.alias.as_deref().filter(|_| link.is_our_bridge())?;
    NetworkAlias::parse(alias).map(|alias| (link, alias))
}
