//! What a plan has promised of the host is kept true while the VM runs: a way out for the networks of ours that its cards are on.
//!
//! ```text
//! [waiting] --a route, a setting, a link--> [due] --look: what is off?--> switch it on --> [pause] --> [waiting]
//! ```
//!
//! A notification only makes us look, as in [`super::watch`]: the state of the host is what counts. Looks are far between, so that a host that
//! changes all the time costs little: a pause after each is at least 100 ms and a hundred times what the look took of the processor (see [`super::pace`]), so they take a
//! hundredth of a processor's time at most. What the kernel says meanwhile waits in a small buffer, and beyond that is dropped by the kernel
//! (see [`crate::rtnl::notices`]). The routes, of which there can be a million, are read only where an interface does not forward, and only
//! after something was dropped: new ones tell where they lead to.
//!
//! To be added here is what else of the host is to be kept: a field, its notifications in [`Upkeep::note`], its part of [`Upkeep::look`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::time::{Instant, sleep_until};

use super::pace::Look;
use crate::facts::Link;
use crate::forwarding;
use crate::lock::NamespaceLock;
use crate::plan::Plan;
use crate::rtnl::notices::{Heard, Notices};
use crate::rtnl::{self, Rtnl};
use crate::spec::IfName;
use crate::step::{Host, Step};

/// What is kept of the host for a VM.
pub(super) struct Upkeep {
    /// The bridges of networks with a way out.
    networks: Vec<IfName>,
    /// What tells of routes and settings; none for a VM that needs no way out.
    notices: Option<Notices>,
    /// Interfaces that have led to other machines by IPv4, if they are known.
    leading: Option<BTreeSet<u32>>,
    /// Links as they were when they were looked at, but for taps.
    links: BTreeMap<u32, String>,
    /// Something has happened since the last look.
    due: bool,
    /// When the next look may be.
    next: Instant,
}

impl Upkeep {
    /// For a plan that has been applied.
    pub(super) fn new(plan: &Plan) -> Self {
        let networks: Vec<IfName> = plan.networks_with_way_out().into_iter().cloned().collect();
        let subscribe = || {
            let notices = Notices::subscribe();
            let failed = |error| log::error!("No notifications of routes: a new way out will not be seen: {error}");
            notices.map_err(failed).ok()
        };
        let notices = if networks.is_empty() { None } else { subscribe() };
        // What happened before the subscription.
        let due = !networks.is_empty();
        Self { networks, notices, leading: None, links: BTreeMap::new(), due, next: Instant::now() }
    }

    /// Takes note of a notification of the kernel.
    pub(super) fn note(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) {
        if self.networks.is_empty() {
            return;
        }
        match &message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                let index = link.header.index;
                // Taps come and go with every VM, and lead nowhere.
                let is_tap = || crate::survey::link(link).is_some_and(|link| link.tun.is_some());
                let known = self.links.get(&index).map(String::as_str);
                self.due |= known != rtnl::name(link) && !is_tap();
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                let index = link.header.index;
                // A number can be that of another link later.
                self.links.remove(&index);
                if let Some(leading) = &mut self.leading {
                    leading.remove(&index);
                }
            }
            // The kernel had more news than the socket could hold.
            NetlinkPayload::Overrun(_) => self.due = true,
            _ => {}
        }
    }

    /// Waits until it is time to look.
    pub(super) async fn due(&self) {
        let Some(notices) = &self.notices else { return std::future::pending().await };
        sleep_until(self.next).await;
        if !self.due && notices.ready().await.is_err() {
            std::future::pending().await
        }
    }

    /// Looks, and mends what is not as it was promised.
    pub(super) async fn look(&mut self, host: &Host) {
        let look = Look::begin();
        self.due = false;
        if let Err(error) = self.mend(&host.rtnl).await {
            log::warn!("Cannot keep up the way out of this VM: {error}");
        }
        self.next = look.next();
    }

    async fn mend(&mut self, rtnl: &Rtnl) -> io::Result<()> {
        let heard = self.notices.as_ref().map_or_else(|| Ok(Heard::default()), Notices::read)?;
        if heard.lost {
            self.leading = None;
        }
        self.leading.iter_mut().for_each(|leading| leading.extend(&heard.leading));
        if self.off(rtnl).await?.is_empty() {
            return Ok(());
        }
        // Again, as another keeper may have done it meanwhile.
        let _lock = NamespaceLock::take().await;
        let off = self.off(rtnl).await?;
        let (networks, uplinks): (Vec<IfName>, Vec<IfName>) =
            off.into_iter().partition(|name| self.networks.contains(name));
        let Some(bridge) = networks.first().or_else(|| self.networks.first()) else { return Ok(()) };
        for network in networks.iter().chain([bridge]) {
            forwarding::enable(rtnl, network, &uplinks).await?;
        }
        if !uplinks.is_empty() {
            let names: Vec<&str> = uplinks.iter().map(IfName::as_str).collect();
            log::debug!("{} leads out now: let packets pass between it and {bridge}", names.join(", "));
        }
        Ok(())
    }

    /// What does not forward and ought to: networks of this VM, and interfaces that lead to other machines.
    async fn off(&mut self, rtnl: &Rtnl) -> io::Result<Vec<IfName>> {
        let links = forwarding::links(rtnl).await?;
        let others = links.iter().filter(|link| link.tun.is_none());
        self.links = others.map(|link| (link.index, link.name.clone())).collect();
        let is_own = |link: &Link| self.networks.iter().any(|network| network.as_str() == link.name);
        let wanted = links.iter().filter(|link| is_own(link) || forwarding::may_lead(link));
        let silent: Vec<&Link> = wanted.filter(|link| !forwarding::forwards(&link.name)).collect();
        if silent.iter().all(|link| is_own(link)) {
            return Ok(silent.iter().filter_map(|link| link.name.parse().ok()).collect());
        }
        let leading = match &mut self.leading {
            Some(leading) => leading,
            unknown => unknown.insert(rtnl.leading().await?),
        };
        let off = silent.into_iter().filter(|link| {
            let own = self.networks.iter().any(|network| network.as_str() == link.name);
            own || leading.contains(&link.index)
        });
        Ok(off.filter_map(|link| link.name.parse().ok()).collect())
    }
}

impl Plan {
    /// The bridges of networks of ours with a way out that cards are on, each once.
    fn networks_with_way_out(&self) -> BTreeSet<&IfName> {
        let members = self.steps.iter().flat_map(|step| match step {
            Step::CreateTables { members, .. } => members.as_slice(),
            _ => &[],
        });
        members.filter(|member| member.mode == crate::alias::Mode::Nat).map(|member| &member.bridge).collect()
    }
}
