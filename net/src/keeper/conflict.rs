//! Other machines with an address of a guest: told once with both parties, and counted.
//!
//! ```text
//! MAC      the bridge learns it behind another port (RTM_NEWNEIGH)
//! IPv4     somebody with another MAC says by ARP that he has it: to all, or to a probe of ours (RFC 5227 2.1.1)
//! ```
//!
//! The probe goes out as the VM starts to run, so that nobody waits for an answer. ARP is heard on the bridge, by a socket whose filter passes
//! conflicts only, and which costs other frames nothing. Known are `addresses=` and leases; a guest that may have any address has none that
//! could be taken from it. What is in a VLAN that the bridge itself is not in is not heard.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::task::Poll;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv, send};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::wire::Reply;
use crate::link::Conflict;
use crate::lookout;
use crate::mac::{MAC_LEN, MacAddr};
use crate::plan::Plan;
use crate::rtnl::{self, Rtnl};
use crate::step::{Host, Step, index_of};
use crate::survey;

/// Conflicts of a card that are logged, each once. Beyond that they are counted.
const LOGGED_MAX: usize = 16;

/// How long nobody is listened to after conflicts, so that a flood of them costs little.
const PAUSE: Duration = Duration::from_millis(100);

/// Frames that are read in one go.
const FRAMES_MAX: usize = 64;

/// Bytes of a frame with ARP, and where its sender's addresses are.
const ARP_BYTES: usize = 42;
const SENDER_MAC_AT: usize = 22;
const SENDER_IP_AT: usize = 28;

/// The cards of a VM that are on bridges.
pub(super) struct Conflicts {
    cards: Vec<Watched>,
    /// When ARP is listened to again.
    again: Instant,
}

struct Watched {
    card: usize,
    mac: MacAddr,
    tap: u32,
    /// Where ARP about its addresses comes, if it has some: a packet socket in the clothes of another, which tokio can wait for.
    arp: Option<UnixStream>,
    logged: BTreeSet<Conflict>,
    macs: u64,
    addresses: u64,
}

impl Conflicts {
    /// Watches the cards of a plan that has been applied to `host`, and asks who has their addresses.
    pub(super) fn new(plan: &Plan, host: &Host) -> Self {
        let cards = plan.steps.iter().filter_map(|step| {
            let Step::AttachTap { card, bridge, pinned, .. } = step else { return None };
            let (tap, mac) = (host.taps.get(card)?.index?, plan.cards.get(*card)?.mac);
            // Without a guard the guest may well have another MAC itself.
            let addresses = if pinned.is_some() { addresses(plan, *card) } else { Vec::new() };
            let arp = (!addresses.is_empty()).then(|| listen(bridge.as_str(), mac, &addresses));
            let arp = arp
                .and_then(|arp| arp.inspect_err(|error| log::info!("ARP on {bridge} cannot be heard: {error}")).ok());
            Some(Watched { card: *card, mac, tap, arp, logged: BTreeSet::new(), macs: 0, addresses: 0 })
        });
        Self { cards: cards.collect(), again: Instant::now() }
    }

    /// Waits until somebody claims an address of a guest. Returns the place of its card here.
    pub(super) async fn claimed(&self) -> usize {
        tokio::time::sleep_until(self.again).await;
        std::future::poll_fn(|context| {
            let ready = self.cards.iter().position(|card| {
                card.arp.as_ref().is_some_and(|arp| matches!(arp.poll_read_ready(context), Poll::Ready(Ok(()))))
            });
            ready.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Hears who it is, and tells the VMM behind `socket`.
    pub(super) fn hear(&mut self, idx: usize, socket: &OwnedFd) {
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

impl Watched {
    fn read(&mut self, socket: &OwnedFd) {
        let mut frame = [0; ARP_BYTES];
        for _ in 0..FRAMES_MAX {
            let Some(arp) = &self.arp else { return };
            let receive = || Ok(recv(arp.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT)?);
            let Ok(ARP_BYTES) = arp.try_io(Interest::READABLE, receive) else { return };
            let mac = frame.get(SENDER_MAC_AT..).and_then(|rest| rest.first_chunk::<MAC_LEN>());
            let ip = frame.get(SENDER_IP_AT..).and_then(|rest| rest.first_chunk::<4>());
            let (Some(mac), Some(ip)) = (mac, ip) else { return };
            self.addresses += 1;
            self.tell(Conflict::Address { ip: Ipv4Addr::from(*ip), mac: *mac }, socket);
        }
    }

    fn tell(&mut self, conflict: Conflict, socket: &OwnedFd) {
        if self.logged.len() < LOGGED_MAX && !self.logged.contains(&conflict) {
            log::warn!("The guest of card {} ({}) is not alone: {conflict}", self.card, self.mac);
            self.logged.insert(conflict);
        }
        let Self { card, macs, addresses, .. } = *self;
        // Whoever has no room now gets the sum with the next one.
        let _ = Reply::Conflicts { card, macs, addresses }.try_send(std::os::fd::AsFd::as_fd(socket));
    }
}

/// The IPv4 addresses that the guest of a card has and nobody else may have.
fn addresses(plan: &Plan, wanted: usize) -> Vec<Ipv4Addr> {
    let of = |step: &Step| match step {
        Step::CreateTables { members, guards, .. } => {
            let leased = members.iter().filter(|member| member.card == wanted).map(|member| member.address);
            let listed = guards.iter().filter(|guard| guard.card == wanted).flat_map(|guard| &guard.addresses);
            let listed = listed.filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
            leased.chain(listed).collect()
        }
        _ => Vec::new(),
    };
    plan.steps.iter().flat_map(of).collect()
}

/// A socket that hears who else says to have these addresses, after all have been asked.
fn listen(bridge: &str, mac: MacAddr, addresses: &[Ipv4Addr]) -> io::Result<UnixStream> {
    let socket = lookout::open_arp(index_of(bridge)?, mac, addresses)?;
    let own = nix::ifaddrs::getifaddrs()?
        .find(|interface| {
            interface.interface_name == bridge && interface.address.is_some_and(|it| it.as_link_addr().is_some())
        })
        .and_then(|interface| interface.address?.as_link_addr()?.addr());
    if let Some(own) = own {
        for ip in addresses {
            // The bridge itself asks, without an address, who has this one.
            let head = [&[0xff; 6][..], &own, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &own, &[0; 4]].concat();
            let probe = [&head[..], &[0; 6], &ip.octets()].concat();
            if let Err(errno) = send(socket.as_raw_fd(), &probe, MsgFlags::MSG_DONTWAIT) {
                log::debug!("Nobody is asked for {ip} on {bridge}: {errno}");
            }
        }
    }
    super::child::pollable(&socket)
}
