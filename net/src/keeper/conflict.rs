//! Other machines with an address of a guest: logged once with both parties, and counted.
//!
//! ```text
//! MAC      the bridge learns it behind another port (RTM_NEWNEIGH)
//! IP       a machine with another MAC claims it, by ARP or neighbour discovery: unasked, or in answer to our question
//! ```
//!
//! The question goes out as the VM starts to run, so the start does not wait for an answer. Sockets on the bridge,
//! whose filters pass nothing else, receive the claims: only ARP and IPv6 that the host itself receives there pay for
//! the filter. Known are `addresses=`, leases, and the IPv6 address that a guest makes of our prefix and its MAC; a
//! guest that may have any address has none that could be taken from it. Not received are claims in a VLAN that the
//! bridge itself is not in, and solicitations that a bridge with a multicast querier passes to subscribed ports only.

pub(super) mod claims;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::task::Poll;
use std::time::Duration;

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::time::Instant;

use super::messages::Reply;
use crate::identity::mac::MacAddr;
use crate::kernel::link::Conflict;
use crate::kernel::link::index_of;
use crate::kernel::rtnl::{self, Rtnl};
use crate::plan::Plan;
use crate::step::{Applied, AttachTap, CreateTables, Step};
use crate::survey;
use claims::{Claim, ConflictListener};

/// Conflicts of a card that are logged, each once. Beyond that they are counted.
const LOGGED_MAX: usize = 16;

/// Pause in listening after conflicts, so that a flood of them costs little.
const PAUSE: Duration = Duration::from_millis(100);

/// Frames that are read in one go.
const FRAMES_MAX: usize = 64;

/// The cards of a VM that are on bridges.
pub(super) struct Conflicts {
    cards: Vec<Card>,
    /// When claims are listened to again.
    again: Instant,
}

struct Card {
    card: usize,
    mac: MacAddr,
    tap: u32,
    /// Listeners for claims of its addresses, if it has some.
    listeners: Vec<ConflictListener>,
    logged: BTreeSet<Conflict>,
    macs: u64,
    addresses: u64,
}

impl Conflicts {
    /// Watches the cards of a plan that has been applied to the host, and asks who has their addresses.
    pub(super) fn new(plan: &Plan, made: &Applied) -> Self {
        let cards = plan.steps.iter().filter_map(|step| {
            let Step::AttachTap(AttachTap { card, bridge, pinned, .. }) = step else { return None };
            let (tap, mac) = (made.taps.get(card)?.index?, plan.cards.get(*card)?.mac);
            // Without a guard the guest may well have another MAC itself.
            let addresses = if pinned.is_some() { addresses(plan, *card) } else { Vec::new() };
            let listeners = listen(bridge.as_str(), mac, &addresses).unwrap_or_else(|error| {
                log::info!("Cannot listen for claims of addresses on {bridge}: {error}");
                Vec::new()
            });
            Some(Card { card: *card, mac, tap, listeners, logged: BTreeSet::new(), macs: 0, addresses: 0 })
        });
        Self { cards: cards.collect(), again: Instant::now() }
    }

    /// Waits until another machine claims an address of a guest. Returns the index of its card here.
    pub(super) async fn claimed(&self) -> usize {
        tokio::time::sleep_until(self.again).await;
        std::future::poll_fn(|context| {
            // Poll all, so that each can wake this task.
            let mut ready = None;
            for (idx, card) in self.cards.iter().enumerate() {
                for listener in &card.listeners {
                    ready = listener.poll(context).then_some(idx).or(ready);
                }
            }
            ready.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Reads the claims, and reports them to the VMM behind `socket`.
    pub(super) fn read(&mut self, idx: usize, socket: &OwnedFd) {
        if let Some(card) = self.cards.get_mut(idx) {
            card.read(socket);
        }
        self.again = Instant::now() + PAUSE;
    }

    /// Acts on a notification of the kernel.
    pub(super) async fn note(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>, rtnl: &Rtnl, socket: &OwnedFd) {
        let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(entry)) = &message.payload else { return };
        // The ports' own addresses are permanent.
        if entry.header.family != AddressFamily::Bridge || entry.header.state == NeighbourState::Permanent {
            return;
        }
        let Some(mac) = survey::link_layer_address(entry) else { return };
        let port = entry.header.ifindex;
        for card in self.cards.iter_mut().filter(|card| card.mac.octets() == mac && card.tap != port) {
            let link = rtnl.link(port).await.ok().flatten();
            let port = link.as_ref().and_then(rtnl::name).map_or_else(|| format!("interface {port}"), str::to_owned);
            card.macs += 1;
            card.tell(Conflict::Mac { port }, socket);
        }
    }
}

impl Card {
    fn read(&mut self, socket: &OwnedFd) {
        for idx in 0..self.listeners.len() {
            for _ in 0..FRAMES_MAX {
                let Some(Claim { ip, mac }) = self.listeners.get(idx).and_then(ConflictListener::next) else { break };
                self.addresses += 1;
                self.tell(Conflict::Address { ip, mac }, socket);
            }
        }
    }

    fn tell(&mut self, conflict: Conflict, socket: &OwnedFd) {
        if self.logged.len() < LOGGED_MAX && !self.logged.contains(&conflict) {
            log::warn!("Address conflict of card {} ({}): {conflict}", self.card, self.mac);
            self.logged.insert(conflict);
        }
        let Self { card, macs, addresses, .. } = *self;
        // If the socket has no room, the next report carries the sum.
        let _ = Reply::Conflicts { card, macs, addresses }.try_send(std::os::fd::AsFd::as_fd(socket));
    }
}

/// The IP addresses that only the guest of a card may have.
fn addresses(plan: &Plan, wanted: usize) -> Vec<IpAddr> {
    let of = |step: &Step| match step {
        Step::CreateTables(CreateTables { members, guards, .. }) => {
            let members = members.iter().filter(|member| member.card == wanted);
            let given = members.flat_map(|member| [Some(member.address.into()), member.address6.map(IpAddr::from)]);
            let listed = guards.iter().filter(|guard| guard.card == wanted).flat_map(|guard| &guard.addresses);
            given.flatten().chain(listed.copied()).collect()
        }
        _ => Vec::new(),
    };
    plan.steps.iter().flat_map(of).collect()
}

/// Asks from the bridge for all of these addresses, and listens for other machines that claim them.
pub(super) fn listen(bridge: &str, mac: MacAddr, addresses: &[IpAddr]) -> io::Result<Vec<ConflictListener>> {
    if addresses.is_empty() {
        return Ok(Vec::new());
    }
    let own = nix::ifaddrs::getifaddrs()?
        .filter(|interface| interface.interface_name == bridge)
        .find_map(|interface| MacAddr::new(interface.address?.as_link_addr()?.addr()?).ok());
    let own = own.ok_or_else(|| io::Error::other("it has no MAC address"))?;
    ConflictListener::open(index_of(bridge)?, own, mac, addresses)
}
