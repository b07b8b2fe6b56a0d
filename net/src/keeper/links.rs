//! Looks after the taps while the VM runs: reports their link states to the VMM, puts a tap back on its bridge when it
//! was taken off, and restores the settings of the plan.
//!
//! NetworkManager and systemd-networkd detach interfaces that they consider their own, some seconds after a start. A
//! notification only triggers a look: it is old when it is read, and those of our own set-up show the tap without its
//! bridge as well. A tap that is on another bridge now was moved on purpose and stays there.
//!
//! Repairs are rate-limited ([`Allowance`]) and never cease. A tap that finds a new bridge of that name, or that others
//! have attached meanwhile, is put back as often as at first.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::time::{Instant, sleep_until};

use super::NotKept;
use super::messages::Reply;
use super::pace::{Allowance, Grant, REFILL};
use crate::error::Error;
use crate::identity::alias::TapAlias;
use crate::kernel::ethtool;
use crate::kernel::link::index_of;
use crate::kernel::link::{self, LinkState};
use crate::kernel::rtnl::{self, Attachment};
use crate::plan::Plan;
use crate::spec::IfName;
use crate::step::{Applied, AttachTap, Step};
use crate::survey;

/// Pause before a message goes again to a VMM that does not read. Its end of the socket has room for hundreds of
/// messages.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// The taps of a VM.
pub(super) struct Taps<'a> {
    socket: &'a OwnedFd,
    taps: Vec<KeptTap>,
    /// None of the VM's taps is in another namespace.
    all_here: bool,
}

/// A tap of this network namespace.
struct KeptTap {
    card: usize,
    index: u32,
    /// Its attachment to its bridge, if minivmm put it there.
    attached: Option<Attached>,
    /// Its bridge at the last look.
    master: Option<u32>,
    /// The interface has been removed.
    gone: bool,
    /// The link state that the VMM was told last.
    told: Option<LinkState>,
    /// The link state that it should know. Differs from `told` while the socket has no room.
    state: Option<LinkState>,
}

struct Attached {
    bridge: IfName,
    attachment: Attachment,
    /// The number of the bridge that it was last on.
    home: Option<u32>,
    allowance: Allowance,
    place: Place,
    /// The bridge may have forgotten where the guest's address is.
    doubted: bool,
}

/// The state of a tap that minivmm attached.
///
/// ```text
/// [on bridge] --detached, and the bridge has gone--> [no bridge]
///      ^------a bridge of that name appeared------------'
/// [on bridge] --detached or changed too often--> [resting], [changed] --time passes--> [on bridge]
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    OnBridge,
    NoBridge,
    /// On none, until there may be another repair.
    Resting,
    /// On its bridge, with a setting that is not the plan's.
    Changed(&'static str),
}

impl<'a> Taps<'a> {
    /// Looks after the taps of a plan that has been applied to the host, and reports to the VMM behind `socket`.
    pub(super) fn new(plan: &Plan, made: &Applied, socket: &'a OwnedFd) -> Self {
        let taps = made.taps.iter().filter_map(|(&card, tap)| {
            let attached = plan.steps.iter().find_map(|step| Attached::by(step, card));
            Some(KeptTap { card, index: tap.index?, attached, master: None, gone: false, told: None, state: None })
        });
        let taps: Vec<KeptTap> = taps.collect();
        let all_here = taps.len() == made.taps.len();
        Self { socket, taps, all_here }
    }

    /// Has the tap of a card keep another alias than the plan's.
    pub(super) fn keep_alias(&mut self, card: usize, alias: &TapAlias) {
        let own = self.taps.iter_mut().filter(|tap| tap.card == card);
        for attached in own.filter_map(|tap| tap.attached.as_mut()) {
            attached.attachment.alias = alias.clone();
        }
    }

    /// Looks at every tap as it is now.
    pub(super) async fn look(&mut self, made: &Applied) {
        for tap in &mut self.taps {
            tap.check(made, self.socket).await;
        }
    }

    /// Acts on a notification of the kernel.
    pub(super) async fn note(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>, made: &Applied) {
        for tap in &mut self.taps {
            let forgotten = match &message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(entry)) => tap.is_forgotten(entry),
                NetlinkPayload::Overrun(_) => true,
                _ => false,
            };
            if let Some(attached) = &mut tap.attached {
                attached.doubted |= forgotten;
            }
            let concerned = match &message.payload {
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
                ) => tap.is_concerned(link),
                // The socket's buffer overflowed.
                _ => forgotten,
            };
            if concerned {
                tap.check(made, self.socket).await;
            }
        }
    }

    /// Waits until there is something to do without a notification: the VMM's socket may have room again for a pending
    /// state, or a tap that was taken off too often may be put back.
    pub(super) async fn wait(&self) {
        let behind = self.taps.iter().any(|tap| tap.told != tap.state).then(|| Instant::now() + TELL_AGAIN);
        let resting = self.taps.iter().filter_map(KeptTap::next_repair).min();
        match behind.into_iter().chain(resting).min() {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Does the work that [`wait`](Self::wait) has waited for.
    pub(super) async fn catch_up(&mut self, made: &Applied) {
        let now = Instant::now();
        for tap in &mut self.taps {
            tap.tell(self.socket);
            if tap.next_repair().is_some_and(|due| due <= now) {
                tap.check(made, self.socket).await;
            }
        }
    }

    /// Returns whether every tap of the VM has been removed.
    pub(super) fn are_gone(&self) -> bool {
        self.all_here && !self.taps.is_empty() && self.taps.iter().all(|tap| tap.gone)
    }

    /// The promises about taps that are not kept at present.
    pub(super) fn not_kept(&self) -> impl Iterator<Item = NotKept> {
        self.taps.iter().filter_map(|tap| Some(NotKept { card: tap.card, text: tap.not_kept()? }))
    }
}

impl KeptTap {
    fn not_kept(&self) -> Option<String> {
        if self.gone {
            return Some("Its interface has been removed".to_owned());
        }
        self.attached.as_ref()?.not_kept()
    }

    fn is_concerned(&self, link: &LinkMessage) -> bool {
        let index = Some(link.header.index);
        let awaited = self.attached.as_ref().filter(|attached| attached.place != Place::OnBridge);
        index == Some(self.index)
            || index == self.master
            || awaited.is_some_and(|attached| rtnl::name(link) == Some(attached.bridge.as_str()))
    }

    /// Returns whether this entry has the bridge send the guest's frames to the tap.
    fn is_forgotten(&self, entry: &NeighbourMessage) -> bool {
        let pinned = self.attached.as_ref().and_then(|attached| attached.attachment.pinned);
        entry.header.family == AddressFamily::Bridge
            && entry.header.ifindex == self.index
            && pinned.is_some_and(|mac| survey::link_layer_address(entry) == Some(mac.octets()))
    }

    /// When it may be put in order again.
    fn next_repair(&self) -> Option<Instant> {
        let attached = self.attached.as_ref()?;
        matches!(attached.place, Place::Resting | Place::Changed(_)).then(|| attached.allowance.next())
    }

    /// Looks at the tap as it is now, attaches it if it is on no bridge, and reports its link state to the VMM.
    async fn check(&mut self, made: &Applied, socket: &OwnedFd) {
        let mut tap = match made.rtnl.link(self.index).await {
            Ok(tap) => tap,
            Err(error) => return log::warn!("Cannot read the state of the tap of card {}: {error}", self.card),
        };
        self.gone = tap.is_none();
        if let (Some(found), Some(attached)) = (&tap, &mut self.attached) {
            match rtnl::master(found) {
                None => {
                    // However short it was: other machines may have forgotten where the guest is, and its announcement
                    // tells them.
                    self.state = self.told.map(|told| LinkState { up: false, ..told });
                    attached.put_back(self.card, made).await;
                    self.tell(socket);
                    tap = made.rtnl.link(self.index).await.unwrap_or(tap);
                }
                Some(master) => attached.settle(found, master, made).await,
            }
        }
        self.state = Some(self.state_of(tap.as_ref(), made).await);
        self.tell(socket);
    }

    /// The link state of `tap` for the VMM.
    async fn state_of(&mut self, tap: Option<&LinkMessage>, made: &Applied) -> LinkState {
        let Some(tap) = tap else { return LinkState::DOWN };
        self.master = rtnl::master(tap);
        let master = match self.master {
            Some(index) => made.rtnl.link(index).await.ok().flatten(),
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
                // The VMM has gone, which the socket reports next.
                log::debug!("{}", Error::from(error).report().message);
                self.told = Some(state);
            }
        }
    }
}

impl Attached {
    /// The attachment that `step` makes, if it is for the tap of `card`.
    fn by(step: &Step, card: usize) -> Option<Self> {
        match step {
            Step::AttachTap(step) if step.card == card => {
                let AttachTap { bridge, .. } = step;
                let (attachment, allowance) = (step.attachment(), Allowance::full());
                let home = index_of(bridge.as_str()).ok();
                Some(Self {
                    bridge: bridge.clone(),
                    attachment,
                    home,
                    allowance,
                    place: Place::OnBridge,
                    doubted: false,
                })
            }
            _ => None,
        }
    }

    /// Attaches the tap of `card`, which is on no bridge.
    async fn put_back(&mut self, card: usize, made: &Applied) {
        let name = made.taps.get(&card).map_or("", |tap| tap.name.as_str());
        let found = index_of(self.bridge.as_str()).ok();
        if found.is_some() && found != self.home {
            self.allowance.rearm();
            self.home = found;
        }
        let grant = if found.is_some() { self.allowance.take() } else { Grant::Granted };
        if let Grant::Later { first } = grant {
            if first {
                let seconds = REFILL.as_secs();
                log::error!(
                    "Tap {name} is taken off bridge {} again and again, and is put back every {seconds} s only",
                    self.bridge
                );
            }
            self.place = Place::Resting;
            return;
        }
        match made.attach(card, &self.bridge, &self.attachment).await {
            Ok(()) => {
                self.place = Place::OnBridge;
                if grant == Grant::Granted {
                    log::warn!("Tap {name} was taken off bridge {} and has been put back", self.bridge);
                }
            }
            Err(error) => {
                if self.place != Place::NoBridge {
                    log::error!("Tap {name} was taken off its bridge: {}", error.report().message);
                }
                self.place = Place::NoBridge;
            }
        }
    }

    /// Restores the plan's settings of its tap, which is on `master` and looks like `tap`.
    async fn settle(&mut self, tap: &LinkMessage, master: u32, made: &Applied) {
        if matches!(self.place, Place::Resting | Place::NoBridge) {
            // Another program has attached it, and wants it there.
            self.allowance.rearm();
            self.place = Place::OnBridge;
        }
        if index_of(self.bridge.as_str()).ok() != Some(master) {
            return;
        }
        self.home = Some(master);
        let Some(changed) = self.changed(tap, master, made).await else {
            self.place = Place::OnBridge;
            return;
        };
        let name = rtnl::name(tap).unwrap_or_default();
        match self.allowance.take() {
            Grant::Later { first } => {
                if first {
                    log::error!("The {changed} of tap {name} changes again and again");
                }
                self.place = Place::Changed(changed);
            }
            grant => match made.rtnl.restore_port(tap.header.index, &self.attachment).await {
                Ok(()) => {
                    self.place = Place::OnBridge;
                    if grant == Grant::Granted {
                        log::warn!("The {changed} of tap {name} was changed and has been restored");
                    }
                }
                Err(error) => {
                    if self.place != Place::Changed(changed) {
                        log::error!("Cannot restore the {changed} of tap {name}: {error}");
                    }
                    self.place = Place::Changed(changed);
                }
            },
        }
    }

    /// A setting of the tap that is not the plan's, if there is one.
    async fn changed(&mut self, tap: &LinkMessage, master: u32, made: &Applied) -> Option<&'static str> {
        if let Some(changed) = self.attachment.changed_on(tap) {
            return Some(changed);
        }
        let mac = self.attachment.pinned.filter(|_| std::mem::take(&mut self.doubted))?;
        let entries = made.rtnl.fdb(master).await.ok()?;
        let is_own = |entry: &NeighbourMessage| {
            entry.header.ifindex == tap.header.index && survey::link_layer_address(entry) == Some(mac.octets())
        };
        (!entries.iter().any(is_own)).then_some("address entry")
    }

    fn not_kept(&self) -> Option<String> {
        let bridge = &self.bridge;
        match self.place {
            Place::OnBridge => None,
            Place::NoBridge => Some(format!("Its tap is on no bridge, as {bridge} is gone")),
            Place::Resting => Some(format!("Its tap is taken off bridge {bridge} again and again")),
            Place::Changed(what) => Some(format!("The {what} of its tap on bridge {bridge} is not as it was set")),
        }
    }
}
