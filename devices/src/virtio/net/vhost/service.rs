//! The rest of a card while the kernel moves its frames: the control queue, the link, rings that the driver breaks, and
//! interrupts of a driver that leaves MSI-X off.
//!
//! One thread for the whole card, which sleeps unless something of that happens.

use crate::virtio::alarm::Alarm;
use crate::virtio::interrupt::Interrupts;
use crate::virtio::net::counters::Counters;
use crate::virtio::net::ctrl::CtrlQueue;
use crate::virtio::net::lane::Lane;
use crate::virtio::net::link::Link;
use crate::virtio::net::port::FramePort;
use crate::virtio::net::vhost::instance::Instance;
use crate::virtio::threads::Job;
use crate::virtio::worker::{Fault, Service, Source};
use event_manager::EventOps;
use std::io;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

const CHANGED: u32 = 0;
const CTRL_DOORBELL: u32 = 1;
const ALARM: u32 = 2;
/// The token of queue 0's event for a broken ring; those of the other queues follow.
const FIRST_QUEUE: u32 = 16;
/// The token of queue 0's event for an interrupt; those of the other queues follow.
const FIRST_CALL: u32 = 1 << 16;

/// A queue pair, its tap queue and its instance of vhost-net.
pub(super) struct Pair {
    /// The instance, with the rings set.
    pub(super) instance: Arc<Instance>,
    /// Where its frames go.
    pub(super) port: Arc<dyn FramePort>,
    /// Signalled by the kernel when the driver has broken the receive or the transmit queue.
    pub(super) broken: [EventFd; 2],
    /// Signalled by the kernel when the driver is to be interrupted for one of the two, unless it uses MSI-X.
    pub(super) called: [EventFd; 2],
    /// True if the instance moves frames.
    pub(super) moves: bool,
}

impl Pair {
    /// Has the instance move frames, or not.
    fn set(&mut self, moves: bool) -> io::Result<()> {
        if self.moves == moves {
            return Ok(());
        }
        if moves {
            self.instance.attach(self.port.fd())?
        } else {
            self.instance.detach()?
        }
        self.moves = moves;
        Ok(())
    }
}

/// The thread's service.
pub(super) struct VhostService {
    /// The pairs that the driver has enabled.
    pub(super) pairs: Vec<Pair>,
    /// How the driver is interrupted if it leaves MSI-X off.
    pub(super) interrupts: Arc<Interrupts>,
    /// While it is down, no frames are moved.
    pub(super) link: Link,
    /// Signalled when a pair was attached or detached, or the link went or came back.
    pub(super) changed: EventFd,
    /// Goes off when a command is due that had to wait.
    pub(super) alarm: Alarm,
    /// The control queue, if the driver has one.
    pub(super) ctrl: Option<Lane<CtrlQueue>>,
    /// The counters of the control queue.
    pub(super) counters: Arc<Counters>,
}

impl VhostService {
    /// Has those instances move frames whose tap queue is attached, if the link is up. Frames wait in the rings
    /// meanwhile, and as many as the tap has room for.
    fn settle(&mut self) -> Result<(), Fault> {
        let up = self.link.is_up();
        let attached = match self.ctrl.as_mut().and_then(Lane::serving) {
            Some(ctrl) => ctrl.attached(),
            None => vec![true],
        };
        let wanted = attached.into_iter().chain(std::iter::repeat(false));
        for (pair, attached) in self.pairs.iter_mut().zip(wanted) {
            pair.set(up && attached)
                .map_err(|source| Fault::Host { operation: "connect vhost-net with the tap", source })?;
        }
        Ok(())
    }

    fn control(&mut self) -> Result<(), Fault> {
        let Some(lane) = &mut self.ctrl else { return Ok(()) };
        let Some(queue) = lane.serving() else { return Ok(()) };
        let turn = queue.serve()?;
        let deadline = queue.deadline();
        lane.come_again(turn)?;
        self.alarm.set(deadline).map_err(no_timer)
    }

    /// The kernel has something for the driver in the queue of `token`.
    fn called(&self, token: u32) {
        let Ok(queue) = u16::try_from(token - FIRST_CALL) else { return };
        if let Some(pair) = self.pairs.get(usize::from(queue / 2)) {
            // Empty when another wake-up took it along.
            let _ = pair.called[usize::from(queue % 2)].read();
            self.interrupts.signal_queue(queue);
        }
    }

    /// The driver has broken the queue of `token`. The other queues go on until the reset.
    fn broken(&self, token: u32) -> Result<(), Fault> {
        let queue = token.checked_sub(FIRST_QUEUE).and_then(|idx| u16::try_from(idx).ok());
        queue.map_or(Ok(()), |queue| Err(Fault::Guest { queue, reason: "vhost-net cannot read it" }))
    }
}

impl Service for VhostService {
    const JOB: Job = Job::Vhost;

    fn sources(&self) -> Vec<Source> {
        let mut sources = vec![Source::readable(&self.changed, CHANGED), Source::readable(&self.alarm, ALARM)];
        sources.extend(self.ctrl.as_ref().map(|ctrl| Source::signalled(ctrl.doorbell(), CTRL_DOORBELL)));
        let broken = self.pairs.iter().flat_map(|pair| &pair.broken);
        sources.extend((FIRST_QUEUE..).zip(broken).map(|(token, broken)| Source::readable(broken, token)));
        let called = self.pairs.iter().flat_map(|pair| &pair.called);
        sources.extend((FIRST_CALL..).zip(called).map(|(token, called)| Source::readable(called, token)));
        sources
    }

    fn begin(&mut self, _events: &mut EventOps) -> Result<(), Fault> {
        self.settle()?;
        self.control()
    }

    fn serve(&mut self, token: u32, _events: &mut EventOps) -> Result<(), Fault> {
        match token {
            CHANGED => {
                // Empty when another wake-up took it along.
                let _ = self.changed.read();
                self.settle()
            }
            CTRL_DOORBELL => {
                if let Some(ctrl) = &mut self.ctrl {
                    self.counters.ctrl_doorbells.add(ctrl.answer_doorbell());
                }
                self.control()
            }
            ALARM => {
                self.alarm.acknowledge().map_err(no_timer)?;
                self.control()
            }
            FIRST_CALL.. => {
                self.called(token);
                Ok(())
            }
            _ => self.broken(token),
        }
    }
}

fn no_timer(source: io::Error) -> Fault {
    Fault::Host { operation: "set a timer", source }
}
