//! Keeps a plan's promises about the host while the VM runs: a way out for the networks of ours that its cards are on.
//!
//! ```text
//! [waiting] --a route, a setting, a link--> [due] --look: what is off?--> switch it on --> [pause] --> [waiting]
//! ```
//!
//! A notification only triggers a look, as in [`super::links`]: the state of the host is what counts. Looks are far
//! between, so that a host that changes all the time costs little: a pause after each is at least 100 ms and a hundred
//! times the processor time of the look (see [`super::pace`]), so they take a hundredth of a processor at most.
//! Notifications meanwhile wait in a small buffer, beyond which the kernel drops them (see
//! [`crate::kernel::rtnl::notices`]). The routes, of which there can be a million, are read only where an interface
//! does not forward, and only after something was dropped: new ones tell where they lead to.
//!
//! A program that switches off again what has been put right is taken to mean it (see [`switches`]): one warning, and
//! `doctor`, say what stops.

mod switches;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;
use tokio::time::{Instant, sleep_until};

use super::NotKept;
use super::pace::Look;
use crate::error::Error;
use crate::facts::Link;
use crate::host::forwarding;
use crate::host::forwarding::fence::Fence;
use crate::host::lock::NamespaceLock;
use crate::identity::alias::Mode;
use crate::kernel::rtnl::Rtnl;
use crate::kernel::rtnl::notices::{Forwarding, Heard, Notices, Scope};
use crate::kernel::sysctl::{self, Conf};
use crate::plan::Plan;
use crate::spec::IfName;
use crate::step::{Applied, CreateTables, Step};
use crate::survey;
use switches::{Switch, Switches};

/// The switch of the host for IPv6.
const IPV6: Switch = (Conf::Ipv6, Scope::All);

/// The state of the host that is kept for a VM.
pub(super) struct Upkeep {
    /// The bridges of networks with a way out.
    networks: BTreeSet<IfName>,
    /// The cards on them.
    cards: Vec<usize>,
    /// One of the networks that has IPv6.
    ipv6: Option<IfName>,
    /// Notifications of routes and settings; none for a VM that needs no way out.
    notices: Option<Notices>,
    /// Interfaces that have led to other machines by IPv4, if they are known.
    leading: Option<BTreeSet<u32>>,
    /// Interfaces of new routes since the last loss of notifications: they were looked at.
    heard: BTreeSet<u32>,
    /// The switches that are needed, as far as they are known.
    switches: Switches,
    /// Links as they were when they were looked at, but for taps: name and alias.
    links: BTreeMap<u32, (String, Option<String>)>,
    /// The switches that other programs insist on having off, in words.
    not_kept: Option<String>,
    /// Something has happened since the last look.
    due: bool,
    /// When the next look may be.
    next: Instant,
}

/// Switches that are off and ought to be on.
#[derive(Default)]
struct Off {
    /// Networks of this VM, with the number of the bridge.
    networks: Vec<(u32, IfName)>,
    /// Interfaces that lead to other machines.
    uplinks: Vec<(u32, IfName)>,
    /// IPv6 of the host.
    ipv6: bool,
}

impl Off {
    fn switches(&self) -> Vec<Switch> {
        let links = self.networks.iter().chain(&self.uplinks).map(|(index, _)| (Conf::Ipv4, Scope::Link(*index)));
        links.chain(self.ipv6.then_some(IPV6)).collect()
    }

    /// Removes the switches that are left off, and those that are useless without them.
    fn without(mut self, is_left: impl Fn(Switch) -> bool) -> Self {
        if self.networks.iter().any(|(index, _)| is_left((Conf::Ipv4, Scope::Link(*index)))) {
            // They would lead nowhere.
            self.uplinks.clear();
        }
        self.networks.retain(|(index, _)| !is_left((Conf::Ipv4, Scope::Link(*index))));
        self.uplinks.retain(|(index, _)| !is_left((Conf::Ipv4, Scope::Link(*index))));
        self.ipv6 &= !is_left(IPV6);
        self
    }

    fn is_empty(&self) -> bool {
        self.networks.is_empty() && self.uplinks.is_empty() && !self.ipv6
    }
}

impl Upkeep {
    /// Begins for a plan that has been applied.
    pub(super) fn new(plan: &Plan) -> Self {
        let (networks, cards, ipv6) = ways_out(plan);
        let subscribe = || {
            let failed =
                |error| log::error!("Cannot subscribe to route notifications, so new ways out go unnoticed: {error}");
            Notices::subscribe().map_err(failed).ok()
        };
        let notices = if networks.is_empty() { None } else { subscribe() };
        // Events from before the subscription.
        let (due, next) = (notices.is_some(), Instant::now());
        let (links, switches) = (BTreeMap::new(), Switches::default());
        let heard = BTreeSet::new();
        Self { networks, cards, ipv6, not_kept: None, notices, leading: None, heard, switches, links, due, next }
    }

    /// Takes note of a notification of the kernel.
    pub(super) fn note(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) {
        match &message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => self.due |= self.is_new(link),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                let index = link.header.index;
                // A number can be that of another link later.
                self.due |= self.links.remove(&index).is_some();
                self.heard.remove(&index);
                if let Some(leading) = &mut self.leading {
                    leading.remove(&index);
                }
            }
            // The socket's buffer overflowed.
            NetlinkPayload::Overrun(_) => self.due = true,
            _ => {}
        }
    }

    /// Returns whether a link has changed since the last look. Taps come and go with every VM; one that leads somewhere
    /// gets a route.
    fn is_new(&self, message: &LinkMessage) -> bool {
        let known = self.links.get(&message.header.index);
        let Some(link) = survey::link(message).filter(|link| !is_tap(link)) else { return false };
        known != Some(&(link.name, link.alias))
    }

    /// Waits until it is time to look.
    pub(super) async fn due(&self) {
        let Some(notices) = &self.notices else { return std::future::pending().await };
        sleep_until(self.next).await;
        if !self.due && notices.ready().await.is_err() {
            std::future::pending().await
        }
    }

    /// Looks, and repairs broken promises. Returns true if there may be another way out.
    pub(super) async fn look(&mut self, made: &mut Applied) -> bool {
        let look = Look::begin();
        let (new, ways_out) = self.listen().unwrap_or_else(|error| {
            log::warn!("Cannot read route notifications: {error}");
            (true, true)
        });
        if !std::mem::take(&mut self.due) && !new {
            self.next = look.next();
            return ways_out;
        }
        if let Err(error) = self.mend(made).await {
            let text = format!("Cannot keep the way out open: {}", error.report().message);
            if self.not_kept.as_ref() != Some(&text) {
                log::warn!("{text}");
            }
            self.not_kept = Some(text);
        }
        self.next = look.next();
        ways_out
    }

    /// The cards whose way out other programs have switched off, or whose way out cannot be repaired.
    pub(super) fn not_kept(&self) -> impl Iterator<Item = NotKept> {
        self.cards.iter().filter_map(|card| Some(NotKept { card: *card, text: self.not_kept.clone()? }))
    }

    async fn mend(&mut self, made: &mut Applied) -> Result<(), Error> {
        let (links, off) = self.off(&made.rtnl).await?;
        let insisted = self.switches.found_off(&off.switches(), Instant::now());
        self.warn(&insisted);
        let left: Vec<Switch> = off.switches().into_iter().filter(|switch| self.switches.is_left(*switch)).collect();
        self.not_kept = self.named(&left).map(|names| format!("Forwarding has been switched off twice ({names})"));
        let off = off.without(|switch| self.switches.is_left(switch));
        if off.is_empty() {
            return made.fence(Fence::of(&links)).map_err(Error::Nftables);
        }
        // Again, as another keeper may have done it meanwhile.
        let _lock = NamespaceLock::take().await;
        let (links, off) = self.off(&made.rtnl).await?;
        let off = off.without(|switch| self.switches.is_left(switch));
        let uplinks: Vec<IfName> = off.uplinks.iter().map(|(_, name)| name.clone()).collect();
        let networks: Vec<&IfName> = match off.networks.iter().map(|(_, name)| name).collect::<Vec<_>>() {
            none if none.is_empty() && !uplinks.is_empty() => self.networks.first().into_iter().collect(),
            networks => networks,
        };
        for network in networks {
            log::debug!("Enabling forwarding between {network} and {} interfaces that lead out", uplinks.len());
            made.forward(network, &uplinks).await?;
        }
        if let Some(network) = self.ipv6.as_ref().filter(|_| off.ipv6) {
            made.forward6(network).await?;
        }
        off.switches().into_iter().for_each(|switch| self.switches.is_on(switch));
        // Links have new aliases now.
        let links = if off.is_empty() { links } else { survey::links(&made.rtnl).await.map_err(Error::Survey)? };
        made.fence(Fence::of(&links)).map_err(Error::Nftables)
    }

    /// Reads the notifications since the last look. Returns whether they call for a look, and whether there may be
    /// another way out.
    fn listen(&mut self) -> io::Result<(bool, bool)> {
        let heard = self.notices.as_ref().map_or_else(|| Ok(Heard::default()), Notices::read)?;
        if heard.lost {
            self.leading = None;
            self.heard.clear();
        }
        // A route is no news where others lead by its interface: a change of that one's switch has its own notice.
        let new = heard.lost || !heard.forwarding.is_empty() || !heard.leading.is_subset(&self.heard);
        self.heard.extend(&heard.leading);
        if let Some(leading) = &mut self.leading {
            leading.extend(heard.leading);
        }
        let now = Instant::now();
        // For IPv6 only the host's switch counts: interfaces keep their admins' settings.
        let counts = |set: &&Forwarding| (set.conf == Conf::Ipv4) != (set.scope == Scope::All);
        let set = heard.forwarding.iter().filter(counts);
        let insisted: Vec<Switch> = set.filter_map(|set| self.switches.note(set, now)).collect();
        self.warn(&insisted);
        Ok((new, heard.ways_out))
    }

    /// Warns of switches that other programs insist on having off.
    fn warn(&self, insisted: &[Switch]) {
        if let Some(names) = self.named(insisted) {
            let networks: Vec<&str> = self.networks.iter().map(IfName::as_str).collect();
            log::warn!(
                "Forwarding has been switched off twice ({names}): it stays off, and guests of {} have no \
                 way out there",
                networks.join(", ")
            );
        }
    }

    /// Switches by their names, those that this VM needs; none if it needs none of them.
    fn named(&self, switches: &[Switch]) -> Option<String> {
        let name = |(conf, scope): &Switch| match (conf, scope) {
            (Conf::Ipv6, _) => self.ipv6.as_ref().map(|_| "net.ipv6.conf.all.forwarding".to_owned()),
            (Conf::Ipv4, Scope::Link(index)) => {
                let known = self.leading.as_ref().is_some_and(|leading| leading.contains(index));
                let (name, _) = self.links.get(index)?;
                let needed = known || self.networks.iter().any(|network| network.as_str() == name);
                needed.then(|| format!("net.ipv4.conf.{name}.forwarding"))
            }
            (Conf::Ipv4, _) => None,
        };
        let names: Vec<String> = switches.iter().filter_map(name).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// Every link, and the switches that are off and should be on.
    async fn off(&mut self, rtnl: &Rtnl) -> Result<(Vec<Link>, Off), Error> {
        let links = survey::links(rtnl).await.map_err(Error::Survey)?;
        let others = links.iter().filter(|link| !is_tap(link));
        self.links = others.map(|link| (link.index, (link.name.clone(), link.alias.clone()))).collect();
        let mut off = Off { ipv6: self.ipv6.is_some() && !sysctl::forwards6(), ..Off::default() };
        let mut silent = Vec::new();
        if sysctl::forwards6() {
            self.switches.is_on(IPV6);
        }
        // A port of a bridge has no packets of its own.
        for link in links.iter().filter(|link| !is_tap(link) || link.master.is_none()) {
            if sysctl::forwards(&link.name) {
                self.switches.is_on((Conf::Ipv4, Scope::Link(link.index)));
                continue;
            }
            let Ok(name) = link.name.parse::<IfName>() else { continue };
            if self.networks.contains(&name) {
                off.networks.push((link.index, name));
            } else if forwarding::may_lead(link) {
                silent.push((link.index, name));
            }
        }
        if !silent.is_empty() {
            let leading = match &mut self.leading {
                Some(leading) => leading,
                unknown => unknown.insert(rtnl.leading().await.map_err(Error::Survey)?),
            };
            off.uplinks = silent.into_iter().filter(|(index, _)| leading.contains(index)).collect();
        }
        Ok((links, off))
    }
}

fn is_tap(link: &Link) -> bool {
    link.tun.is_some_and(|tun| tun.tap)
}

/// The bridges of networks with a way out that cards are on, these cards, and one of the bridges that has IPv6.
fn ways_out(plan: &Plan) -> (BTreeSet<IfName>, Vec<usize>, Option<IfName>) {
    let members = plan.steps.iter().flat_map(|step| match step {
        Step::CreateTables(CreateTables { members, .. }) => members.as_slice(),
        _ => &[],
    });
    let leading: Vec<_> = members.filter(|member| member.mode == Mode::Nat).collect();
    let ipv6 = leading.iter().find(|member| member.ipv6.is_some()).map(|member| member.bridge.clone());
    let cards = leading.iter().map(|member| member.card).collect();
    (leading.iter().map(|member| member.bridge.clone()).collect(), cards, ipv6)
}
