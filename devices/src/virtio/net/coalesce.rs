//! Notification coalescing (virtio 1.3 5.1.6.5.7): an interrupt that the driver wants is held back until enough frames
//! have come together, or the first of them has waited long enough.
//!
//! Used buffers are published as ever; only the interrupt waits. What the driver has suppressed is not held back at
//! all, so a driver that polls costs no timer. Nothing waits for what is held back when the driver may be unable
//! to go on without: half a ring of buffers of which it does not know is enough.
//!
//! The interrupt for a single frame that was sent is held back unasked, for a moment, where that has paid lately: a
//! frame that answers it comes with an interrupt of its own, and drivers look at both rings then. Linux does, as long
//! as it transmits by NAPI.

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::virtio::payoff::Payoff;
use crate::virtio::ring::Ring;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_NOTF_COAL_RX_SET, VIRTIO_NET_CTRL_NOTF_COAL_TX_SET, VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET,
    VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET, VIRTIO_NET_F_NOTF_COAL, VIRTIO_NET_F_VQ_NOTF_COAL,
};

/// The longest that an interrupt can be held back; a driver that asks for more is refused. A frame that comes a second
/// late helps no one, and drivers give a device up after a few.
const LONGEST_USECS: u32 = 1_000_000;

/// Interrupts are not held back for less: setting a timer and waking up for it costs more than the interrupt.
const SHORTEST_USECS: u32 = 10;

/// How long the interrupt for a single frame is held back unasked. A driver needs it to free the frame, which makes
/// room in its sender's buffer: nothing that cannot wait while there is one.
const UNASKED: Duration = Duration::from_millis(10);

/// So often in a row that may have been in vain before it is done rarely: it is long for a sender that waits for each
/// frame to be freed.
const UNASKED_FAILURES_MAX: u8 = 4;

/// `struct virtio_net_ctrl_coal`: how many frames may come together, and how long the first of them may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Params {
    /// 0 and 1: every frame is announced.
    pub(super) max_packets: u32,
    /// In microseconds; 0: every frame is announced.
    pub(super) max_usecs: u32,
}

impl Params {
    /// Reads the structure.
    pub(super) fn from_bytes(bytes: [u8; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self { max_packets: u32::from_le_bytes([a, b, c, d]), max_usecs: u32::from_le_bytes([e, f, g, h]) }
    }

    /// The structure as the driver reads it.
    pub(super) fn to_bytes(self) -> [u8; 8] {
        (u64::from(self.max_packets) | u64::from(self.max_usecs) << 32).to_le_bytes()
    }

    /// Returns whether the device can do as it is asked.
    fn are_possible(self) -> bool {
        self.max_usecs <= LONGEST_USECS
    }

    fn hold_back(self) -> bool {
        self.max_usecs >= SHORTEST_USECS && self.max_packets > 1
    }
}

/// The two kinds of queues that have parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Queues with an even index.
    Receive,
    /// Queues with an odd index.
    Transmit,
}

impl Direction {
    fn of(queue: u16) -> Self {
        if queue.is_multiple_of(2) { Self::Receive } else { Self::Transmit }
    }
}

/// A command of class VIRTIO_NET_CTRL_NOTF_COAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// Set the parameters of all queues of a direction.
    SetAll(Direction, Params),
    /// Set those of one queue.
    Set(u16, Params),
    /// Read those of one queue.
    Get(u16),
}

impl Request {
    /// Reads the data of `command`; `None` if it is unknown, short or long.
    pub(super) fn parse(command: u32, data: &[u8]) -> Option<Self> {
        match command {
            VIRTIO_NET_CTRL_NOTF_COAL_TX_SET => {
                Some(Self::SetAll(Direction::Transmit, Params::from_bytes(data.try_into().ok()?)))
            }
            VIRTIO_NET_CTRL_NOTF_COAL_RX_SET => {
                Some(Self::SetAll(Direction::Receive, Params::from_bytes(data.try_into().ok()?)))
            }
            VIRTIO_NET_CTRL_NOTF_COAL_VQ_SET => {
                let (queue, params) = read_queue(data)?;
                Some(Self::Set(queue, Params::from_bytes(params.try_into().ok()?)))
            }
            VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET => {
                let (queue, rest) = read_queue(data)?;
                rest.is_empty().then_some(Self::Get(queue))
            }
            _ => None,
        }
    }

    /// The feature that has to be negotiated for it.
    pub(super) fn feature(self) -> u32 {
        match self {
            Self::SetAll(..) => VIRTIO_NET_F_NOTF_COAL,
            Self::Set(..) | Self::Get(_) => VIRTIO_NET_F_VQ_NOTF_COAL,
        }
    }

    /// Returns whether it may change the parameters of queue `idx`.
    pub(super) fn changes(self, idx: u16) -> bool {
        match self {
            Self::SetAll(direction, _) => direction == Direction::of(idx),
            Self::Set(queue, _) => queue == idx,
            Self::Get(_) => false,
        }
    }
}

/// `vq_index`, and what follows it and a reserved field.
fn read_queue(data: &[u8]) -> Option<(u16, &[u8])> {
    let ([low, high, _, _], rest) = data.split_first_chunk()?;
    Some((u16::from_le_bytes([*low, *high]), rest))
}

/// The parameters of all receive and transmit queues. The control queue's worker changes them, and each queue's worker
/// reads its own. Reads are relaxed: a worker is woken after a change, and a change seen late only holds one interrupt
/// back by the old rule.
#[derive(Default)]
pub(super) struct Settings {
    queues: Vec<Slot>,
    /// Held by whoever changes something: a queue that is enabled while all are set gets the new parameters.
    changing: Mutex<()>,
    /// The parameters of a queue after a reset: the last that were set for all of its direction.
    receive: AtomicU64,
    transmit: AtomicU64,
}

#[derive(Default)]
struct Slot {
    params: AtomicU64,
    enabled: AtomicBool,
}

impl Settings {
    /// For the queues 0 to `queues` - 1: nothing is held back, and none is enabled.
    pub(super) fn new(queues: usize) -> Self {
        Self { queues: (0..queues).map(|_| Slot::default()).collect(), ..Self::default() }
    }

    /// The parameters of a queue; `None` if it is not enabled.
    pub(super) fn get(&self, queue: u16) -> Option<Params> {
        self.enabled(queue).map(Slot::params)
    }

    /// Does what `request` says. Returns whether it can be done.
    pub(super) fn obey(&self, request: Request) -> bool {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        match request {
            Request::SetAll(_, params) | Request::Set(_, params) if !params.are_possible() => false,
            Request::SetAll(direction, params) => {
                self.set_all(direction, params);
                true
            }
            Request::Set(queue, params) => self.set(queue, params),
            Request::Get(queue) => self.enabled(queue).is_some(),
        }
    }

    /// Changes those of one queue. Returns whether it is enabled.
    fn set(&self, queue: u16, params: Params) -> bool {
        let slot = self.enabled(queue);
        slot.map(|slot| slot.set(params)).is_some()
    }

    /// Changes those of all queues of one direction, also of those that will be enabled later.
    fn set_all(&self, direction: Direction, params: Params) {
        self.default_of(direction).store(u64::from_le_bytes(params.to_bytes()), Ordering::Relaxed);
        for (_, slot) in (0..).zip(&self.queues).filter(|(idx, _)| Direction::of(*idx) == direction) {
            slot.set(params);
        }
    }

    fn enable(&self, queue: u16) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = self.queues.get(usize::from(queue)) {
            let default = self.default_of(Direction::of(queue)).load(Ordering::Relaxed);
            slot.params.store(default, Ordering::Relaxed);
            slot.enabled.store(true, Ordering::Relaxed);
        }
    }

    fn disable(&self, queue: u16) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = self.queues.get(usize::from(queue)) {
            slot.enabled.store(false, Ordering::Relaxed);
        }
    }

    fn enabled(&self, queue: u16) -> Option<&Slot> {
        self.queues.get(usize::from(queue)).filter(|slot| slot.enabled.load(Ordering::Relaxed))
    }

    fn default_of(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::Receive => &self.receive,
            Direction::Transmit => &self.transmit,
        }
    }
}

impl Slot {
    fn params(&self) -> Params {
        Params::from_bytes(self.params.load(Ordering::Relaxed).to_le_bytes())
    }

    fn set(&self, params: Params) {
        self.params.store(u64::from_le_bytes(params.to_bytes()), Ordering::Relaxed);
    }
}

/// When one queue interrupts its driver; by default whenever it wants.
#[derive(Default)]
pub(super) struct Coalescer {
    settings: Arc<Settings>,
    queue: u16,
    /// Frames since the last interrupt was sent, or not wanted.
    frames: u32,
    /// Since when an interrupt is held back.
    held_since: Option<Instant>,
    /// The chance that the driver sees a frame's buffer without the interrupt; `None` where none is held back unasked.
    unasked: Option<Payoff>,
}

impl Coalescer {
    /// For `queue`, which the driver has enabled.
    pub(super) fn new(settings: Arc<Settings>, queue: u16) -> Self {
        settings.enable(queue);
        Self { settings, queue, ..Self::default() }
    }

    /// The same, with interrupts for single frames held back unasked.
    pub(super) fn sparing(self) -> Self {
        Self { unasked: Some(Payoff::new(UNASKED_FAILURES_MAX)), ..self }
    }

    /// A frame was received or sent.
    pub(super) fn count(&mut self) {
        self.frames = self.frames.saturating_add(1);
    }

    /// Publishes what is in the used ring, and interrupts the driver when it is time.
    pub(super) fn notify(&mut self, ring: &mut Ring) {
        match self.settings.get(self.queue) {
            Some(params) if params.hold_back() => self.notify_in_time(ring, params),
            _ if self.unasked.is_some() => self.notify_unless_seen(ring),
            _ => self.notify_now(ring),
        }
    }

    /// Before more frames are counted: forgets an interrupt that is held back and not wanted any more.
    pub(super) fn reconsider(&mut self, ring: &mut Ring) {
        if self.held_since.is_some() && !ring.interrupt_is_wanted() {
            self.learn(true, true);
            self.begin_anew();
        }
    }

    /// Publishes, and interrupts the driver if it wants that.
    pub(super) fn notify_now(&mut self, ring: &mut Ring) {
        self.begin_anew();
        ring.notify();
    }

    /// When [`notify`](Self::notify) has to be called at the latest; `None` if nothing is held back.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let since = self.held_since?;
        let params = self.settings.get(self.queue).filter(|params| params.hold_back());
        Some(since + params.map_or(UNASKED, |params| Duration::from_micros(params.max_usecs.into())))
    }

    /// The queue was reset; what was held back is not sent any more.
    pub(super) fn stop(&mut self) {
        self.settings.disable(self.queue);
        self.begin_anew();
    }

    /// The queue was enabled again.
    pub(super) fn restart(&mut self) {
        self.settings.enable(self.queue);
    }

    fn notify_in_time(&mut self, ring: &mut Ring, params: Params) {
        ring.publish();
        if !ring.interrupt_is_wanted() {
            self.begin_anew();
            return;
        }
        let now = Instant::now();
        let since = *self.held_since.get_or_insert(now);
        let waited = now.duration_since(since) >= Duration::from_micros(params.max_usecs.into());
        if waited || self.frames >= params.max_packets || ring.unannounced() >= ring.size() / 2 {
            self.begin_anew();
            ring.interrupt();
        }
    }

    fn notify_unless_seen(&mut self, ring: &mut Ring) {
        ring.publish();
        let held_since = self.held_since;
        if !ring.interrupt_is_wanted() {
            if held_since.is_some() {
                self.learn(true, true);
            }
            self.begin_anew();
            return;
        }
        let alone = ring.unannounced() == 1;
        match held_since {
            Some(since) if alone && since.elapsed() < UNASKED => return,
            Some(_) => self.learn(true, false),
            None if alone && self.unasked.as_ref().is_some_and(Payoff::is_expected) => {
                self.held_since = Some(Instant::now());
                return;
            }
            None if alone => self.learn(false, false),
            None => {}
        }
        self.begin_anew();
        ring.interrupt();
    }

    fn learn(&mut self, taken: bool, succeeded: bool) {
        if let Some(payoff) = &mut self.unasked {
            payoff.learn(taken, succeeded);
        }
    }

    fn begin_anew(&mut self) {
        self.frames = 0;
        self.held_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::chain::Chain;
    use crate::virtio::test_driver::{Desc, QUEUE_SIZE, TestDriver};

    const SECOND: u32 = LONGEST_USECS;

    /// Queue 0 with `frames` buffers available and the given parameters.
    struct Fixture {
        driver: TestDriver,
        ring: Ring,
        settings: Arc<Settings>,
        coalescer: Coalescer,
    }

    impl Fixture {
        fn new(frames: u16, max_packets: u32, max_usecs: u32) -> Self {
            Self::with(frames, false, both(max_packets, max_usecs))
        }

        /// The same with EVENT_IDX: [`Self::used_event`] is 0.
        fn with_event_idx(frames: u16, params: Params) -> Self {
            Self::with(frames, true, params)
        }

        fn with(frames: u16, event_idx: bool, params: Params) -> Self {
            let mut driver = TestDriver::new();
            for _ in 0..frames {
                driver.add(&[Desc::writable(0x8000, 64)]);
            }
            let (mut active, mem, interrupts) = driver.activate();
            virtio_queue::QueueT::set_event_idx(&mut active.queue, event_idx);
            let ring = Ring::new(active, mem, interrupts).unwrap().0;
            let settings = Arc::new(Settings::new(2));
            let coalescer = Coalescer::new(settings.clone(), 0);
            assert!(settings.obey(Request::Set(0, params)));
            Self { driver, ring, settings, coalescer }
        }

        /// One that holds interrupts for single frames back unasked.
        fn sparing(frames: u16) -> Self {
            let fixture = Self::with_event_idx(frames, both(0, 0));
            Self { coalescer: fixture.coalescer.sparing(), ..fixture }
        }

        /// The driver has seen `used` frames, and waits for the next.
        fn used_event(&mut self, used: u8) {
            self.driver.write(0x2004 + 2 * u64::from(QUEUE_SIZE), &[used, 0]);
            self.coalescer.reconsider(&mut self.ring);
        }

        /// Waits until what is held back is due.
        fn wait(&mut self) {
            let deadline = self.coalescer.deadline().unwrap();
            while Instant::now() < deadline {
                std::hint::spin_loop();
            }
            self.coalescer.notify(&mut self.ring);
        }

        /// One frame and the end of its burst. Returns the interrupts so far.
        fn frame(&mut self) -> u32 {
            let head = self.ring.pop(&mut Chain::default()).unwrap().unwrap();
            self.ring.push_used(head, 64);
            self.coalescer.count();
            self.coalescer.notify(&mut self.ring);
            self.driver.interrupts_seen()
        }
    }

    fn both(max_packets: u32, max_usecs: u32) -> Params {
        Params { max_packets, max_usecs }
    }

    #[test]
    fn every_frame_is_announced_unless_both_parameters_are_set() {
        for (max_packets, max_usecs) in [(0, 0), (64, 0), (0, 500), (1, 500), (64, SHORTEST_USECS - 1)] {
            let mut fixture = Fixture::new(2, max_packets, max_usecs);
            assert_eq!((fixture.frame(), fixture.frame()), (1, 2), "{max_packets} {max_usecs}");
            assert_eq!(fixture.coalescer.deadline(), None);
        }
    }

    #[test]
    fn frames_are_visible_at_once_and_announced_together() {
        let mut fixture = Fixture::new(6, 3, SECOND);
        assert_eq!((fixture.frame(), fixture.frame()), (0, 0));
        assert_eq!(fixture.driver.used().len(), 2);
        assert!(fixture.coalescer.deadline().is_some());
        assert_eq!(fixture.frame(), 1);
        assert_eq!(fixture.coalescer.deadline(), None);
        assert_eq!((fixture.frame(), fixture.frame(), fixture.frame()), (1, 1, 2));
    }

    #[test]
    fn frame_that_has_waited_long_enough_is_announced() {
        let mut fixture = Fixture::new(1, 64, 2000);
        assert_eq!(fixture.frame(), 0);
        fixture.wait();
        assert_eq!((fixture.driver.interrupts_seen(), fixture.coalescer.deadline()), (1, None));
    }

    #[test]
    fn driver_that_wants_no_interrupts_has_none_held_back() {
        let mut fixture = Fixture::new(3, 2, SECOND);
        fixture.driver.write(0x2000, &[1, 0]);
        assert_eq!(fixture.frame(), 0);
        assert_eq!(fixture.coalescer.deadline(), None);
        fixture.driver.write(0x2000, &[0, 0]);
        assert_eq!((fixture.frame(), fixture.frame()), (0, 1));
    }

    #[test]
    fn driver_that_has_seen_the_frames_meanwhile_is_not_interrupted() {
        let mut fixture = Fixture::with_event_idx(3, both(2, SECOND));
        assert_eq!(fixture.frame(), 0);
        // used_event: the driver waits for the frame after the next.
        fixture.driver.write(0x2004 + 2 * u64::from(QUEUE_SIZE), &[2, 0]);
        assert_eq!(fixture.frame(), 0);
        assert_eq!(fixture.coalescer.deadline(), None);
        assert_eq!(fixture.frame(), 0);
        assert!(fixture.coalescer.deadline().is_some());
    }

    #[test]
    fn single_frames_that_the_driver_sees_in_time_cost_no_interrupts() {
        let mut fixture = Fixture::sparing(10);
        for seen in 1..=10 {
            assert_eq!(fixture.frame(), 0);
            assert_eq!(fixture.driver.used().len(), usize::from(seen));
            assert!(fixture.coalescer.deadline().is_some());
            fixture.used_event(seen);
            assert_eq!(fixture.coalescer.deadline(), None);
        }
    }

    #[test]
    fn single_frame_that_the_driver_does_not_see_is_announced_after_a_moment() {
        let mut fixture = Fixture::sparing(1);
        assert_eq!(fixture.frame(), 0);
        fixture.wait();
        assert_eq!((fixture.driver.interrupts_seen(), fixture.coalescer.deadline()), (1, None));
    }

    #[test]
    fn second_frame_that_the_driver_does_not_see_announces_both() {
        let mut fixture = Fixture::sparing(2);
        assert_eq!((fixture.frame(), fixture.frame()), (0, 1));
        assert_eq!(fixture.coalescer.deadline(), None);
    }

    #[test]
    fn single_frames_are_announced_at_once_where_to_wait_was_in_vain() {
        let mut fixture = Fixture::sparing(12);
        for seen in [2, 4, 6, 8] {
            fixture.frame();
            fixture.frame();
            fixture.used_event(seen);
        }
        assert_eq!(fixture.driver.interrupts_seen(), 4);
        assert_eq!((fixture.frame(), fixture.coalescer.deadline()), (5, None));
    }

    #[test]
    fn half_a_ring_is_announced_whatever_the_parameters() {
        let mut fixture = Fixture::new(QUEUE_SIZE - 1, u32::MAX, SECOND);
        let interrupts: Vec<_> = (1..QUEUE_SIZE).map(|_| fixture.frame()).collect();
        assert_eq!(interrupts.iter().position(|seen| *seen == 1), Some(usize::from(QUEUE_SIZE / 2 - 1)));
    }

    #[test]
    fn new_parameters_count_for_what_is_held_back() {
        let mut fixture = Fixture::new(3, 15, SECOND);
        assert_eq!((fixture.frame(), fixture.frame()), (0, 0));
        fixture.settings.obey(Request::SetAll(Direction::Receive, both(2, SECOND)));
        fixture.coalescer.notify(&mut fixture.ring);
        assert_eq!(fixture.driver.interrupts_seen(), 1);

        assert_eq!(fixture.frame(), 1);
        fixture.settings.obey(Request::SetAll(Direction::Receive, both(0, 0)));
        fixture.coalescer.notify(&mut fixture.ring);
        assert_eq!(fixture.driver.interrupts_seen(), 2);
    }

    /// The example of virtio 1.3 5.1.6.5.7.
    #[test]
    fn last_parameters_that_were_set_for_a_queue_apply() {
        let settings = Settings::new(4);
        (0..4).for_each(|queue| settings.enable(queue));
        assert!(settings.obey(Request::SetAll(Direction::Receive, both(1, 1))));
        assert!(settings.obey(Request::Set(0, both(2, 2))));
        assert_eq!((settings.get(0), settings.get(2)), (Some(both(2, 2)), Some(both(1, 1))));
        assert!(settings.obey(Request::Set(1, both(4, 4))));
        assert_eq!((settings.get(1), settings.get(3)), (Some(both(4, 4)), Some(both(0, 0))));
        assert!(settings.obey(Request::SetAll(Direction::Transmit, both(5, 5))));
        assert_eq!((settings.get(1), settings.get(3)), (Some(both(5, 5)), Some(both(5, 5))));
    }

    #[test]
    fn queue_that_was_reset_begins_with_what_was_set_for_all() {
        let settings = Arc::new(Settings::new(2));
        let mut coalescer = Coalescer::new(settings.clone(), 1);
        settings.obey(Request::SetAll(Direction::Transmit, both(7, 70)));
        settings.obey(Request::Set(1, both(8, 80)));
        coalescer.stop();
        assert!(!settings.obey(Request::Set(1, both(9, 90))) && !settings.obey(Request::Get(1)));
        coalescer.restart();
        assert_eq!(settings.get(1), Some(both(7, 70)));
    }

    #[test]
    fn queues_that_are_not_enabled_and_waits_that_are_too_long_are_refused() {
        let settings = Settings::new(2);
        settings.enable(0);
        for queue in [1, 2, 0xffff] {
            assert!(!settings.obey(Request::Set(queue, both(2, 20))) && !settings.obey(Request::Get(queue)));
        }
        assert!(!settings.obey(Request::Set(0, both(2, LONGEST_USECS + 1))));
        assert!(!settings.obey(Request::SetAll(Direction::Receive, both(2, u32::MAX))));
        assert_eq!(settings.get(0), Some(both(0, 0)));
    }

    #[test]
    fn requests_are_read() {
        let params = [3, 0, 0, 0, 0, 1, 0, 0];
        assert_eq!(Request::parse(0, &params), Some(Request::SetAll(Direction::Transmit, both(3, 256))));
        assert_eq!(Request::parse(1, &params), Some(Request::SetAll(Direction::Receive, both(3, 256))));
        let queue = [&[2, 1, 0xff, 0xff][..], &params].concat();
        assert_eq!(Request::parse(2, &queue), Some(Request::Set(0x102, both(3, 256))));
        assert_eq!(Request::parse(3, &queue[..4]), Some(Request::Get(0x102)));
        for (command, len) in [(0, 7), (1, 9), (2, 11), (2, 4), (3, 3), (3, 12), (4, 8)] {
            assert_eq!(Request::parse(command, &[0; 12][..len]), None, "{command} {len}");
        }
    }
}
