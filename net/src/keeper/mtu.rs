//! Announces the MTU of the way out to guests on networks of ours when it changes: an uplink's MTU shrinks, or a VPN
//! becomes the way out.
//!
//! The kernel follows by itself with what it forwards: packets that are too large are answered with the size that fits,
//! and the rules clamp the segment size of TCP to that of the route. The guests' own idea comes from the services, by
//! an advertisement at once and by DHCP when the lease is renewed. Bridge and taps keep their MTU: traffic between
//! siblings has not become smaller. A card with `mtu=` keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;

use super::messages::Reply;
use super::pace::Pace;
use crate::kernel::rtnl::Rtnl;
use crate::plan::Plan;
use crate::request::Request;
use crate::services::Reach;
use crate::step::{OpenServices, Step};
use crate::survey;

/// Least MTU of a network in bytes (RFC 791 3.2; RFC 8200 5): below that the kernel fragments.
const MTU_MIN: u16 = 576;
const MTU_MIN_IPV6: u16 = 1280;

/// The cards behind NAT without an MTU of their own.
pub(super) struct Mtus {
    cards: Vec<Card>,
    /// The MTU of each link but taps, in bytes.
    links: BTreeMap<u32, u32>,
    pace: Pace,
}

struct Card {
    card: usize,
    /// Bytes that the network itself carries.
    own: u16,
    least: u16,
    /// The MTU that its services tell.
    told: u16,
}

impl Mtus {
    /// The MTUs of a plan that has been applied.
    pub(super) fn new(plan: &Plan, request: &Request) -> Self {
        let follows = |card: &usize| request.cards.get(*card).is_some_and(|spec| spec.card().mtu.is_none());
        let cards = plan.steps.iter().filter_map(|step| match step {
            Step::OpenServices(OpenServices { card, spec }) if spec.reach == Reach::Outside && follows(card) => {
                let least = if spec.ipv6.is_some() { MTU_MIN_IPV6 } else { MTU_MIN };
                Some(Card { card: *card, own: spec.mtu, least, told: spec.mtu })
            }
            _ => None,
        });
        Self { cards: cards.collect(), links: BTreeMap::new(), pace: Pace::later() }
    }

    /// Takes note of a notification of the kernel.
    pub(super) fn note(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) {
        let changed = match &message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => self.is_new(link),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                self.links.remove(&link.header.index).is_some()
            }
            // The socket's buffer overflowed.
            NetlinkPayload::Overrun(_) => true,
            _ => false,
        };
        if changed {
            self.pace.mark();
        }
    }

    /// Takes note that there may be other routes.
    pub(super) fn note_routes(&mut self) {
        self.pace.mark();
    }

    /// Waits until there is something to look at.
    pub(super) async fn wait(&self) {
        if self.cards.is_empty() {
            std::future::pending::<()>().await;
        }
        self.pace.wait().await;
    }

    /// Looks, and tells the VMM behind `socket`.
    pub(super) async fn look(&mut self, rtnl: &Rtnl, socket: &OwnedFd) {
        let look = self.pace.begin();
        let carried = self.carried(rtnl).await;
        self.pace.end(&look);
        match carried {
            Ok(carried) => self.tell(carried, socket),
            Err(error) => log::warn!("Cannot read the MTU of the way out: {error}"),
        }
    }

    fn is_new(&mut self, link: &LinkMessage) -> bool {
        let Some(link) = survey::link(link) else { return false };
        // Taps come and go with every VM, and lead nowhere.
        let is_tap = link.tun.is_some_and(|tun| tun.tap);
        !is_tap && self.links.insert(link.index, link.mtu) != Some(link.mtu)
    }

    /// Bytes that every way out carries; none without a way out.
    async fn carried(&mut self, rtnl: &Rtnl) -> io::Result<Option<u32>> {
        let ways: BTreeSet<u32> = survey::ip::ways_out(rtnl).await?;
        for way in &ways {
            match rtnl.link(*way).await? {
                Some(link) => _ = self.is_new(&link),
                None => _ = self.links.remove(way),
            }
        }
        Ok(ways.iter().filter_map(|way| self.links.get(way)).min().copied())
    }

    fn tell(&mut self, carried: Option<u32>, socket: &OwnedFd) {
        for card in &mut self.cards {
            let carried = carried.map_or(card.own, |bytes| u16::try_from(bytes).unwrap_or(u16::MAX));
            let mtu = carried.max(card.least).min(card.own);
            if mtu == card.told {
                continue;
            }
            match (Reply::Mtu { card: card.card, mtu }).try_send(socket.as_fd()) {
                Ok(true) => {
                    log::info!("The MTU of the way out of card {} is {mtu} now, which its guest is told", card.card);
                    card.told = mtu;
                }
                // It has no room, or has gone, which the socket reports next.
                Ok(false) | Err(_) => self.pace.mark(),
            }
        }
    }
}
