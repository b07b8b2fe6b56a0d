//! Looks after the taps while the VM runs: tells the VMM what becomes of their links, and puts a tap back on its bridge when
//! somebody took it off.
//!
//! NetworkManager and systemd-networkd do that to interfaces they think are theirs, some seconds after a start. A
//! notification only makes us look: notifications are old news when they are read, and the ones of our own set-up
//! show the tap without its bridge as well. A tap that is on another bridge now was moved on purpose and stays there.

use std::os::fd::{AsFd, OwnedFd};

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;

use super::wire::Reply;
use crate::ethtool;
use crate::link::{self, LinkState};
use crate::plan::Plan;
use crate::rtnl::{self, Attachment};
use crate::spec::IfName;
use crate::step::{Host, Step};

/// How often one tap is put back. Whoever takes it off more often means it.
const REATTACH_MAX: u32 = 16;

/// The taps of a VM.
pub(super) struct Watch<'a> {
    socket: &'a OwnedFd,
    taps: Vec<Watched>,
}

/// A tap of this network namespace.
struct Watched {
    card: usize,
    index: u32,
    /// What keeps it on its bridge, if we put it there.
    attached: Option<Attached>,
    /// What it was a port of when it was looked at.
    master: Option<u32>,
    /// What the VMM knows of its link.
    told: Option<LinkState>,
    /// What it ought to know: something else while its end of the socket has no room.
    state: Option<LinkState>,
}

struct Attached {
    bridge: IfName,
    attachment: Attachment,
    reattached: u32,
    place: Place,
}

/// What is known of a tap that we attached.
///
/// ```text
/// [on bridge] --detached, and the bridge has gone--> [no bridge]
///      ^------a bridge of that name appeared------------'
/// [on bridge] --detached too often--> [given up]
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    OnBridge,
    NoBridge,
    GivenUp,
}

impl<'a> Watch<'a> {
    /// Watches the taps of a plan that has been applied to `host`, and reports to the VMM behind `socket`.
    pub(super) fn new(plan: &Plan, host: &Host, socket: &'a OwnedFd) -> Self {
        let taps = host.taps.iter().filter_map(|(&card, tap)| {
            let attached = plan.steps.iter().find_map(|step| Attached::by(step, card));
            Some(Watched { card, index: tap.index?, attached, master: None, told: None, state: None })
        });
        Self { socket, taps: taps.collect() }
    }

    /// Looks at every tap as it is now.
    pub(super) async fn look(&mut self, host: &Host) {
        for tap in &mut self.taps {
            tap.check(host, self.socket).await;
        }
    }

    /// Acts on a notification of the kernel.
    pub(super) async fn note(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>, host: &Host) {
        for tap in &mut self.taps {
            let concerned = match &message.payload {
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
                ) => tap.is_concerned(link),
                // The kernel had more news than the socket could hold.
                NetlinkPayload::Overrun(_) => true,
                _ => false,
            };
            if concerned {
                tap.check(host, self.socket).await;
            }
        }
    }

    /// Whether the VMM has not been told everything.
    pub(super) fn is_behind(&self) -> bool {
        self.taps.iter().any(|tap| tap.told != tap.state)
    }

    /// Tells the VMM what it has not been told, as far as it has room for that.
    pub(super) fn catch_up(&mut self) {
        for tap in &mut self.taps {
            tap.tell(self.socket);
        }
    }
}

impl Watched {
    fn is_concerned(&self, link: &LinkMessage) -> bool {
        let index = Some(link.header.index);
        let awaited = self.attached.as_ref().filter(|attached| attached.place == Place::NoBridge);
        index == Some(self.index)
            || index == self.master
            || awaited.is_some_and(|attached| rtnl::name(link) == Some(attached.bridge.as_str()))
    }

    /// Looks at the tap as it is now, attaches it if it is nowhere, and tells the VMM what became of its link.
    async fn check(&mut self, host: &Host, socket: &OwnedFd) {
        let mut tap = match host.rtnl.link(self.index).await {
            Ok(tap) => tap,
            Err(error) => return log::warn!("Cannot look at the tap of card {}: {error}", self.card),
        };
        let astray = tap.as_ref().is_some_and(|tap| rtnl::master(tap).is_none());
        if let Some(attached) = self.attached.as_mut().filter(|attached| astray && attached.place != Place::GivenUp) {
            // However short it was: other machines may have forgotten where the guest is, and its announcement tells them.
            self.state = self.told.map(|told| LinkState { up: false, ..told });
            attached.put_back(self.card, host).await;
            self.tell(socket);
            tap = host.rtnl.link(self.index).await.unwrap_or(tap);
        }
        self.state = Some(self.state_of(tap.as_ref(), host).await);
        self.tell(socket);
    }

    /// What the VMM is to know of `tap`.
    async fn state_of(&mut self, tap: Option<&LinkMessage>, host: &Host) -> LinkState {
        let Some(tap) = tap else { return LinkState::DOWN };
        self.master = rtnl::master(tap);
        let master = match self.master {
            Some(index) => host.rtnl.link(index).await.ok().flatten(),
            None => None,
        };
        let at_home = self.master.is_some() || self.attached.is_none();
        let (speed, duplex) = rtnl::name(tap).map_or((None, None), ethtool::speed);
        LinkState { up: at_home && link::passes(tap, master.as_ref()), speed, duplex }
    }

    fn tell(&mut self, socket: &OwnedFd) {
        let Some(state) = self.state.filter(|state| self.told != Some(*state)) else { return };
        match (Reply::Link { card: self.card, state }).try_send(socket.as_fd()) {
            Ok(true) => self.told = Some(state),
            Ok(false) => {}
            Err(error) => {
                // The VMM has gone, which the socket tells next.
                log::debug!("{}", error.report().message);
                self.told = Some(state);
            }
        }
    }
}

impl Attached {
    /// What `step` attaches, if it is the tap of `card`.
    fn by(step: &Step, card: usize) -> Option<Self> {
        match step {
            Step::AttachTap { card: attached, bridge, .. } if *attached == card => {
                let attachment = step.attachment()?;
                Some(Self { bridge: bridge.clone(), attachment, reattached: 0, place: Place::OnBridge })
            }
            _ => None,
        }
    }

    /// Attaches the tap of `card`, which is on no bridge.
    async fn put_back(&mut self, card: usize, host: &Host) {
        let name = host.taps.get(&card).map_or("", |tap| tap.name.as_str());
        if self.reattached == REATTACH_MAX {
            log::error!("Tap {name} was taken off bridge {} {REATTACH_MAX} times: leave it off", self.bridge);
            self.place = Place::GivenUp;
            return;
        }
        match host.attach(card, &self.bridge, &self.attachment).await {
            Ok(()) => {
                self.reattached += 1;
                self.place = Place::OnBridge;
                log::warn!("Tap {name} was taken off bridge {}: put it back", self.bridge);
            }
            Err(error) => {
                self.place = Place::NoBridge;
                log::error!("Tap {name} was taken off its bridge: {}", error.report().message);
            }
        }
    }
}
