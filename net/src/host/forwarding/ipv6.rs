//! IPv6 through a host that does not forward it.
//!
//! There is one switch for the whole host, `net.ipv6.conf.all.forwarding`, and the kernel does more with it than its
//! name says: it sets the same for every interface and for later ones, and one that forwards takes no router
//! advertisements. So this switches it on in three steps, each of which another process can go on from:
//!
//! ```text
//! [off] --written: who forwarded, who is to take advertisements--> [switching]
//! [switching] --accept_ra=2, all.forwarding=1, each interface and `default` as they were--> [on]
//! [on] --all.forwarding=0, those that forward then as they were, accept_ra=1--> [off]
//! ```
//!
//! In between each interface has the value that its admin gave it, and changes made meanwhile stay. An admin who has
//! the host forward meanwhile is recognised by `default`, and keeps it.

use std::collections::BTreeSet;
use std::io;

use super::{may_lead, network, write};
use crate::facts::Link;
use crate::identity::alias::NetworkAlias;
use crate::kernel::rtnl::Rtnl;
use crate::kernel::sysctl::{self, Conf, FORWARDING};
use crate::spec::IfName;
use crate::survey;

/// The setting for router advertisements: 1 takes them while the interface does not forward, 2 always.
const ACCEPT_RA: &str = "accept_ra";

/// True if the host forwards by its admin's wish, and not because of the alias of a bridge of ours.
pub(crate) fn is_wanted_by_others(alias: &NetworkAlias) -> bool {
    !alias.default6 && alias.switching6.is_none() && is("default", FORWARDING, "1")
}

/// Lets IPv6 packets pass through a host that does not forward them. Its interfaces go on taking router advertisements,
/// also later ones.
pub(crate) async fn enable(rtnl: &Rtnl, links: &[Link], bridge: &IfName) -> io::Result<()> {
    if sysctl::forwards6() {
        return Ok(());
    }
    let own = || links.iter().find(|link| link.name == bridge.as_str()).and_then(network);
    // The alias may exist already, and other programs have switched forwarding off.
    let written = links.iter().filter_map(network).find(|(_, alias)| alias.forward6);
    let Some((ours, mut alias)) = written.or_else(own) else { return Err(io::ErrorKind::NotFound.into()) };
    let routers = |link: &&Link| !link.is_our_network() && is(&link.name, FORWARDING, "1");
    let routers: BTreeSet<u32> = links.iter().filter(routers).map(|link| link.index).collect();
    alias.default6 = is("default", FORWARDING, "1");
    let taking = note_advertised(&mut alias, links, &routers);
    alias.forward6 = true;
    alias.switching6 = Some(routers.clone());
    write(rtnl, ours, &alias).await?;
    for link in taking {
        sysctl::set_if_there(Conf::Ipv6, &link.name, ACCEPT_RA, "2")?;
    }
    if alias.later_ra {
        sysctl::set(Conf::Ipv6, "default", ACCEPT_RA, "2")?;
    }
    sysctl::set(Conf::Ipv6, "all", FORWARDING, "1")?;
    if !alias.default6 {
        sysctl::set(Conf::Ipv6, "default", FORWARDING, "0")?;
    }
    // Includes an interface that appeared meanwhile, and took the setting that `default` had for a moment.
    let now = survey::links(rtnl).await?;
    let came = |link: &Link| !links.iter().any(|known| known.index == link.index);
    let hosts = now.iter().filter(|link| !link.is_our_network() && !routers.contains(&link.index));
    for link in hosts.filter(|link| !(alias.default6 && came(link))) {
        sysctl::set_if_there(Conf::Ipv6, &link.name, FORWARDING, "0")?;
    }
    alias.switching6 = None;
    write(rtnl, ours, &alias).await
}

/// Notes the interfaces to put back, and returns those that must go on taking router advertisements. It notes those
/// themselves, or, where later interfaces must go on as well, the few that take advertisements in any case.
fn note_advertised<'a>(alias: &mut NetworkAlias, links: &'a [Link], routers: &BTreeSet<u32>) -> Vec<&'a Link> {
    let hosts = || links.iter().filter(|link| may_lead(link) && !routers.contains(&link.index));
    let taking: Vec<&Link> = hosts().filter(|link| is(&link.name, ACCEPT_RA, "1")).collect();
    if !alias.later_ra {
        let new = !alias.forward6;
        if new && !alias.default6 && is("default", ACCEPT_RA, "1") {
            let anyhow = links.iter().filter(|link| is(&link.name, ACCEPT_RA, "2"));
            alias.other_ra = anyhow.map(|link| link.index).collect();
            alias.later_ra = true;
        } else {
            alias.accept_ra.extend(taking.iter().map(|link| link.index));
        }
    }
    taking
}

/// Has the host forward IPv6 no longer, and interfaces take router advertisements as they did.
pub(super) fn put_back(alias: &NetworkAlias, links: &[Link]) -> io::Result<()> {
    let others = || links.iter().filter(|link| !link.is_our_network());
    if sysctl::forwards6() && !is_wanted_by_others(alias) {
        let routes = |link: &&Link| match &alias.switching6 {
            Some(before) => before.contains(&link.index),
            None => is(&link.name, FORWARDING, "1"),
        };
        let routers: Vec<&Link> = others().filter(routes).collect();
        sysctl::set(Conf::Ipv6, "all", FORWARDING, "0")?;
        if alias.default6 {
            sysctl::set(Conf::Ipv6, "default", FORWARDING, "1")?;
        }
        for link in routers {
            sysctl::set_if_there(Conf::Ipv6, &link.name, FORWARDING, "1")?;
        }
    }
    let told = |link: &&Link| {
        let told =
            if alias.later_ra { !alias.other_ra.contains(&link.index) } else { alias.accept_ra.contains(&link.index) };
        told && is(&link.name, ACCEPT_RA, "2")
    };
    for link in others().filter(told) {
        sysctl::set_if_there(Conf::Ipv6, &link.name, ACCEPT_RA, "1")?;
    }
    if alias.later_ra && is("default", ACCEPT_RA, "2") {
        sysctl::set(Conf::Ipv6, "default", ACCEPT_RA, "1")?;
    }
    Ok(())
}

fn is(link: &str, key: &str, value: &str) -> bool {
    sysctl::is(Conf::Ipv6, link, key, value)
}
