//! The link: whether the cable is in, how fast it is, and that the guest is to tell the network where it is (virtio 1.3
//! 5.1.4, 5.1.6.5.4).
//!
//! ```text
//!        the host or the user takes it away        both have it up          100 ms ... 1.5 s later
//!   [up] ----------------------------------> [down] --------------> [back] ----------------------> [back, ANNOUNCE]
//!     ^                                                               |  ^-----------ACK--------------'
//!     '----------------------------three times------------------------'
//! ```
//!
//! ANNOUNCE does not come together with the carrier: Linux obeys it before it opens its queues, and the announcement
//! would be lost. It is set only for a driver that runs and has negotiated it: one that starts later announces itself.
//!
//! Set from the thread that hears of the host's interface and of the user's wishes; read by the workers for every
//! frame, and by vCPUs as configuration. The link outlives the card, so a guest that restarts finds it as it is.

use crate::virtio::interrupt::Interrupts;
use crate::virtio::net::offload::bit;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP,
};
use vmm_sys_util::eventfd::EventFd;

/// Speed and duplex that are not known.
const UNKNOWN_SPEED: u32 = 0xffff_ffff;
const UNKNOWN_DUPLEX: u8 = 0xff;

/// When a guest whose link has come back is to announce itself: soon, and again for a guest that was slow to see the
/// carrier or a switch that was.
const ANNOUNCE_AFTER: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_millis(1500)];

/// The carrier of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// They pass.
    Up,
    /// They are dropped, in both directions.
    Down,
}

/// The duplex mode of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duplex {
    /// One at a time.
    Half,
    /// Both.
    Full,
}

/// The state of the host's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkState {
    /// Its carrier.
    pub carrier: Carrier,
    /// Mbit/s, up to 2^31 - 1; `None` if unknown.
    pub speed: Option<u32>,
    /// `None` if unknown.
    pub duplex: Option<Duplex>,
}

/// The link of one card. Clones are the same link.
#[derive(Clone)]
pub struct Link(Arc<Shared>);

/// Relaxed throughout: each value stands for itself, and a driver that must not miss a change gets an interrupt after
/// it.
struct Shared {
    up: AtomicBool,
    announce: AtomicBool,
    speed: AtomicU32,
    duplex: AtomicU8,
    causes: Mutex<Causes>,
}

/// The causes of the link's state, and the driver that a change concerns.
struct Causes {
    host: Carrier,
    user: Carrier,
    driver: Option<Driver>,
    back: Option<Back>,
}

/// A link that has come back and is not announced often enough.
struct Back {
    since: Instant,
    announced: usize,
}

impl Back {
    fn next(&self) -> Option<Instant> {
        ANNOUNCE_AFTER.get(self.announced).map(|after| self.since + *after)
    }
}

/// A driver that runs.
pub(super) struct Driver {
    /// Where it is told.
    pub(super) interrupts: Arc<Interrupts>,
    /// The features that it has negotiated.
    pub(super) features: u64,
    /// Wakes the worker of each queue pair: a frame that waits for room in the port of a link that went down will find
    /// none.
    pub(super) workers: Vec<EventFd>,
}

impl Default for Link {
    /// A link that is up, of unknown speed.
    fn default() -> Self {
        Self(Arc::new(Shared {
            up: AtomicBool::new(true),
            announce: AtomicBool::new(false),
            speed: AtomicU32::new(UNKNOWN_SPEED),
            duplex: AtomicU8::new(UNKNOWN_DUPLEX),
            causes: Mutex::new(Causes { host: Carrier::Up, user: Carrier::Up, driver: None, back: None }),
        }))
    }
}

impl Link {
    /// The host's interface is like this from now on.
    pub fn follow(&self, host: LinkState) {
        let speed = host.speed.filter(|speed| i32::try_from(*speed).is_ok()).unwrap_or(UNKNOWN_SPEED);
        let duplex = match host.duplex {
            Some(Duplex::Half) => 0,
            Some(Duplex::Full) => 1,
            None => UNKNOWN_DUPLEX,
        };
        let changed = self.0.speed.swap(speed, Ordering::Relaxed) != speed;
        let changed = self.0.duplex.swap(duplex, Ordering::Relaxed) != duplex || changed;
        let mut causes = self.causes();
        causes.host = host.carrier;
        self.settle(&mut causes, changed);
    }

    /// The user wants it like this from now on: down whatever the host says, or as the host says.
    pub fn switch(&self, user: Carrier) {
        let mut causes = self.causes();
        causes.user = user;
        self.settle(&mut causes, false);
    }

    /// When [`announce`](Self::announce) has something to do, if ever.
    pub fn next_announcement(&self) -> Option<Instant> {
        self.causes().back.as_ref().and_then(Back::next)
    }

    /// Asks the guest to announce itself if the time for that has come.
    pub fn announce(&self, now: Instant) {
        let mut causes = self.causes();
        let Causes { driver: Some(driver), back: Some(back), .. } = &mut *causes else { return };
        if back.next().is_none_or(|next| next > now) {
            return;
        }
        back.announced += 1;
        if !self.0.announce.swap(true, Ordering::Relaxed) {
            driver.interrupts.signal_config();
        }
    }

    /// Returns whether frames pass.
    pub(super) fn is_up(&self) -> bool {
        self.0.up.load(Ordering::Relaxed)
    }

    /// The `status` field.
    pub(super) fn status(&self) -> u16 {
        let bits =
            [(self.is_up(), VIRTIO_NET_S_LINK_UP), (self.0.announce.load(Ordering::Relaxed), VIRTIO_NET_S_ANNOUNCE)];
        let status = bits.iter().filter(|(set, _)| *set).fold(0, |status, (_, bit)| status | bit);
        // Both bits are in the lower half.
        u16::try_from(status).unwrap_or(0)
    }

    /// The `speed` field, in Mbit/s.
    pub(super) fn speed(&self) -> u32 {
        self.0.speed.load(Ordering::Relaxed)
    }

    /// The `duplex` field.
    pub(super) fn duplex(&self) -> u8 {
        self.0.duplex.load(Ordering::Relaxed)
    }

    /// Changes concern `driver` from now on.
    pub(super) fn start(&self, driver: Driver) {
        self.causes().driver = Some(driver);
    }

    /// Changes concern no driver any more.
    pub(super) fn stop(&self) {
        let mut causes = self.causes();
        (causes.driver, causes.back) = (None, None);
        self.0.announce.store(false, Ordering::Relaxed);
    }

    /// The driver has announced the guest.
    pub(super) fn announced(&self) {
        self.0.announce.store(false, Ordering::Relaxed);
    }

    /// Makes the link what its causes say. `changed`: something else that the driver can read did.
    fn settle(&self, causes: &mut Causes, changed: bool) {
        let up = causes.host == Carrier::Up && causes.user == Carrier::Up;
        let turned = self.0.up.swap(up, Ordering::Relaxed) != up;
        let Some(driver) = &causes.driver else { return };
        if turned {
            // What was asked for on the old link is asked for anew on the next.
            self.0.announce.store(false, Ordering::Relaxed);
            let needed = bit(VIRTIO_NET_F_STATUS) | bit(VIRTIO_NET_F_GUEST_ANNOUNCE);
            let announces = up && driver.features & needed == needed;
            causes.back = announces.then(|| Back { since: Instant::now(), announced: 0 });
        }
        if (turned || changed) && driver.features & bit(VIRTIO_NET_F_STATUS) != 0 {
            driver.interrupts.signal_config();
        }
        if turned {
            for worker in &driver.workers {
                if let Err(err) = worker.write(1) {
                    log::warn!("Cannot wake a worker: {err}");
                }
            }
        }
    }

    fn causes(&self) -> MutexGuard<'_, Causes> {
        self.0.causes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    const UP: LinkState = LinkState { carrier: Carrier::Up, speed: Some(10_000), duplex: Some(Duplex::Full) };
    const DOWN: LinkState = LinkState { carrier: Carrier::Down, ..UP };
    const LINK_UP: u16 = 1;
    const ANNOUNCE: u16 = 2;

    struct Guest {
        link: Link,
        interrupts: Arc<Interrupts>,
        worker: EventFd,
    }

    /// A guest that has negotiated `features` and whose host has said [`UP`].
    fn guest(features: &[u32]) -> Guest {
        let link = Link::default();
        link.follow(UP);
        let interrupts = Arc::new(Interrupts::new(Vec::new(), 0));
        let worker = EventFd::new(EFD_NONBLOCK).unwrap();
        let features = features.iter().fold(0, |bits, feature| bits | bit(*feature));
        let workers = vec![worker.try_clone().unwrap()];
        link.start(Driver { interrupts: interrupts.clone(), features, workers });
        Guest { link, interrupts, worker }
    }

    #[test]
    fn link_of_which_nothing_is_known_is_up() {
        let link = Link::default();

        assert_eq!((link.status(), link.speed(), link.duplex()), (LINK_UP, 0xffff_ffff, 0xff));
    }

    #[test]
    fn link_that_comes_back_asks_for_three_announcements_after_the_carrier() {
        let guest = guest(&[VIRTIO_NET_F_STATUS, VIRTIO_NET_F_GUEST_ANNOUNCE]);

        guest.link.follow(DOWN);
        assert_eq!((guest.link.status(), guest.interrupts.config_generation()), (0, 1));
        guest.link.follow(UP);
        assert_eq!((guest.link.status(), guest.interrupts.config_generation()), (LINK_UP, 2));
        assert_eq!(guest.worker.read().unwrap(), 2);

        guest.link.announce(Instant::now());
        assert_eq!(guest.link.status(), LINK_UP);
        for generation in 3..6 {
            guest.link.announce(guest.link.next_announcement().unwrap());
            assert_eq!((guest.link.status(), guest.interrupts.config_generation()), (LINK_UP | ANNOUNCE, generation));
            guest.link.announced();
            assert_eq!(guest.link.status(), LINK_UP);
        }
        assert_eq!(guest.link.next_announcement(), None);
    }

    #[test]
    fn announcement_that_is_not_acknowledged_is_not_asked_for_again() {
        let guest = guest(&[VIRTIO_NET_F_STATUS, VIRTIO_NET_F_GUEST_ANNOUNCE]);
        guest.link.switch(Carrier::Down);
        guest.link.switch(Carrier::Up);

        while let Some(next) = guest.link.next_announcement() {
            guest.link.announce(next);
        }

        assert_eq!((guest.link.status(), guest.interrupts.config_generation()), (LINK_UP | ANNOUNCE, 3));
    }

    #[test]
    fn link_that_goes_again_is_not_announced() {
        let guest = guest(&[VIRTIO_NET_F_STATUS, VIRTIO_NET_F_GUEST_ANNOUNCE]);

        for carrier in [Carrier::Down, Carrier::Up, Carrier::Down] {
            guest.link.switch(carrier);
        }

        assert_eq!(guest.link.next_announcement(), None);
    }

    #[test]
    fn driver_without_the_features_is_neither_interrupted_nor_asked() {
        let guest = guest(&[]);

        guest.link.follow(DOWN);
        guest.link.follow(UP);

        assert_eq!((guest.link.status(), guest.interrupts.config_generation()), (LINK_UP, 0));
        assert_eq!(guest.link.next_announcement(), None);
    }

    #[test]
    fn what_does_not_change_is_not_told() {
        let guest = guest(&[VIRTIO_NET_F_STATUS]);

        guest.link.follow(UP);
        guest.link.switch(Carrier::Up);
        assert_eq!(guest.interrupts.config_generation(), 0);
        assert!(guest.worker.read().is_err());

        guest.link.follow(LinkState { speed: Some(1000), ..UP });
        assert_eq!((guest.link.speed(), guest.interrupts.config_generation()), (1000, 1));
    }

    #[test]
    fn link_is_up_only_if_the_host_and_the_user_have_it_up() {
        let guest = guest(&[VIRTIO_NET_F_STATUS]);
        let mut seen = Vec::new();

        for (host, user) in [(UP, Carrier::Down), (DOWN, Carrier::Down), (DOWN, Carrier::Up), (UP, Carrier::Up)] {
            guest.link.follow(host);
            guest.link.switch(user);
            seen.push(guest.link.is_up());
        }

        assert_eq!(seen, [false, false, false, true]);
    }

    #[test]
    fn reset_forgets_the_announcement_and_not_the_carrier() {
        let guest = guest(&[VIRTIO_NET_F_STATUS, VIRTIO_NET_F_GUEST_ANNOUNCE]);
        guest.link.follow(DOWN);
        guest.link.follow(UP);
        guest.link.announce(guest.link.next_announcement().unwrap());

        guest.link.stop();
        assert_eq!((guest.link.status(), guest.link.next_announcement()), (LINK_UP, None));
        guest.link.follow(DOWN);

        assert_eq!((guest.link.status(), guest.interrupts.config_generation()), (0, 3));
    }

    #[test]
    fn speed_that_the_field_cannot_hold_is_unknown() {
        let link = Link::default();

        link.follow(LinkState { speed: Some(u32::MAX - 1), ..UP });

        assert_eq!(link.speed(), 0xffff_ffff);
    }
}
