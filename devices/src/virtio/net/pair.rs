//! One queue pair: what its worker waits for and does.
//!
//! The port's descriptor is watched edge-triggered: while the guest has no buffers, or no frame waits to be sent,
//! nothing has to be switched off and on again. After every edge the port is read until it is empty. The kernel's taps
//! tell that there is room again only to those who asked after they had met a full queue, so after such a write the
//! port is asked.
//!
//! Where frames come one at a time, to read until the port is empty is a system call for each in vain. After some of
//! these, a port that stays readable is watched level-triggered and read once, until anything else happens.

use crate::virtio::alarm::Alarm;
use crate::virtio::device::Activation;
use crate::virtio::net::Turn;
use crate::virtio::net::counters::Counters;
use crate::virtio::net::ctrl::CtrlQueue;
use crate::virtio::net::drain::Drain;
use crate::virtio::net::lane::Lane;
use crate::virtio::net::port::FramePort;
use crate::virtio::net::rx::Rx;
use crate::virtio::net::tx::Tx;
use crate::virtio::threads::Job;
use crate::virtio::worker::{Fault, Service, Source};
use event_manager::{EventOps, EventSet, Events};
use std::os::fd::RawFd;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

const RX_DOORBELL: u32 = 0;
const TX_DOORBELL: u32 = 1;
const PORT: u32 = 2;
const CHANGED: u32 = 3;
const CTRL_DOORBELL: u32 = 4;
const ALARM: u32 = 5;
const INBOX: u32 = 6;

/// A queue pair and its port.
pub(super) struct Pair {
    /// Receive side.
    pub(super) rx: Lane<Rx>,
    /// Transmit side.
    pub(super) tx: Lane<Tx>,
    /// Its counters.
    pub(super) counters: Arc<Counters>,
    /// Where frames go.
    pub(super) port: Arc<dyn FramePort>,
    /// Signalled when the port was attached or detached, interrupts are held back in another way, or the link went or
    /// came back.
    pub(super) changed: EventFd,
    /// The request to empty the queue before it goes out of use.
    pub(super) drain: Arc<Drain>,
    /// Goes off when something is due that was put off.
    pub(super) alarm: Alarm,
    /// Signalled when another pair has received a frame for this one, if pairs steer.
    pub(super) inbox: Option<Arc<EventFd>>,
    /// The control queue, if this pair serves it.
    pub(super) ctrl: Option<Lane<CtrlQueue>>,
    /// How the port is watched.
    pub(super) watch: Watch,
}

/// How the port is watched for frames to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watch {
    /// Edge-triggered; the number of edges in a row that came with one frame.
    Edge(u8),
    /// Level-triggered; the number of frames since the port was last read until it was empty.
    Level(u8),
}

impl Watch {
    /// Single frames in a row after which one is expected.
    const SINGLES: u8 = 4;
    /// Frames after which the port is read until it is empty, to see whether they still come one at a time.
    const LOOK_EVERY: u8 = 4;
}

impl Pair {
    /// Stops serving queue `idx`. Frames for it wait in the port meanwhile: detaching the port would hand its flows to
    /// the other queues, as virtio 1.3 5.1.6.5.5 would have it, but lose what already waits.
    pub(super) fn stop_queue(&mut self, idx: u16) {
        match &mut self.ctrl {
            _ if idx == self.rx.idx() => self.rx.stop(),
            _ if idx == self.tx.idx() => self.tx.stop(),
            Some(ctrl) if idx == ctrl.idx() => ctrl.stop(),
            _ => {}
        }
    }

    /// Serves the queue of `activation` again, beginning with what waited meanwhile.
    ///
    /// # Errors
    /// If the guest broke the ring.
    pub(super) fn restart_queue(&mut self, activation: Activation, events: &mut EventOps) -> Result<(), Fault> {
        let idx = activation.queues.first().map(|queue| queue.idx);
        match &mut self.ctrl {
            _ if idx == Some(self.rx.idx()) => self.rx.restart(activation)?,
            _ if idx == Some(self.tx.idx()) => self.tx.restart(activation)?,
            Some(ctrl) if idx == Some(ctrl.idx()) => ctrl.restart(activation)?,
            _ => {}
        }
        self.control()?;
        self.receive()?;
        self.transmit(events)?;
        self.set_alarm()
    }

    fn receive(&mut self) -> Result<(), Fault> {
        let Some(rx) = self.rx.serving() else { return Ok(()) };
        let turn = rx.receive()?;
        self.rx.come_again(turn)
    }

    /// Empties the port if the pair is to go out of use.
    fn leave_if_asked(&mut self) -> Result<(), Fault> {
        if self.drain.is_requested() {
            self.rx.serving().map_or(Ok(()), Rx::vacate)?;
            self.drain.complete();
        }
        Ok(())
    }

    fn transmit(&mut self, events: &EventOps) -> Result<(), Fault> {
        let Some(tx) = self.tx.serving() else { return Ok(()) };
        let turn = tx.transmit()?;
        if tx.waits() {
            self.watch = Watch::Edge(0);
            events.modify(self.port_events()).map_err(unwatched)?;
        }
        self.tx.come_again(turn)
    }

    /// Receives what made the port readable.
    fn receive_announced(&mut self, events: &EventOps) -> Result<(), Fault> {
        let Some(rx) = self.rx.serving() else { return self.watch_edges(events) };
        let one = matches!(self.watch, Watch::Level(frames) if frames < Watch::LOOK_EVERY);
        let turn = if one { rx.receive_one()? } else { rx.receive()? };
        let (taken, waits) = (rx.taken(), rx.is_starved());
        self.rx.come_again(turn)?;
        let alone = taken == 1 && !waits;
        let may_leave_some = self.port.stays_readable() && !self.tx_waits();
        match self.watch {
            Watch::Level(frames) if alone => self.watch = Watch::Level(if one { frames + 1 } else { 0 }),
            Watch::Level(_) => self.watch_edges(events)?,
            Watch::Edge(singles) if alone && singles < Watch::SINGLES => self.watch = Watch::Edge(singles + 1),
            Watch::Edge(_) if alone && may_leave_some => {
                self.watch = Watch::Level(0);
                events.modify(self.port_events()).map_err(unwatched)?;
            }
            Watch::Edge(_) => self.watch = Watch::Edge(0),
        }
        Ok(())
    }

    /// Goes back to edges: for a port that announces what cannot be received now, or more than one frame at a time.
    fn watch_edges(&mut self, events: &EventOps) -> Result<(), Fault> {
        if let Watch::Level(_) = std::mem::replace(&mut self.watch, Watch::Edge(0)) {
            events.modify(self.port_events()).map_err(unwatched)?;
        }
        Ok(())
    }

    fn tx_waits(&mut self) -> bool {
        self.tx.serving().is_some_and(|tx| tx.waits())
    }

    /// Goes on with a frame that found no room in the port.
    fn transmit_waiting(&mut self, events: &EventOps) -> Result<(), Fault> {
        if self.tx_waits() { self.transmit(events) } else { Ok(()) }
    }

    /// Receives into `buffers` and sends `frames` that were not announced. Returns whether there was something to do.
    fn serve_unasked(&mut self, buffers: bool, frames: bool) -> Result<bool, Fault> {
        if buffers {
            self.receive()?;
        }
        if frames && let Some(tx) = self.tx.serving() {
            let turn = tx.transmit()?;
            // To ask for room takes a wake-up.
            let turn = if tx.waits() { Turn::More } else { turn };
            self.tx.come_again(turn)?;
        }
        if buffers || frames {
            self.set_alarm()?;
        }
        Ok(buffers || frames)
    }

    fn control(&mut self) -> Result<(), Fault> {
        let Some(lane) = &mut self.ctrl else { return Ok(()) };
        let Some(queue) = lane.serving() else { return Ok(()) };
        let turn = queue.serve()?;
        lane.come_again(turn)
    }

    fn serve_source(&mut self, token: u32, events: &mut EventOps) -> Result<(), Fault> {
        match token {
            RX_DOORBELL => {
                self.counters.rx_doorbells.add(self.rx.answer_doorbell());
                self.receive()
            }
            TX_DOORBELL => {
                self.counters.tx_doorbells.add(self.tx.answer_doorbell());
                self.transmit(events)
            }
            PORT => {
                // Its answer will be looked for before the worker sleeps.
                if let Some(tx) = self.tx.serving() {
                    tx.expect_answer();
                }
                self.receive_announced(events)?;
                self.transmit_waiting(events)
            }
            CHANGED => {
                // Empty when another wake-up took it along.
                let _ = self.changed.read();
                self.leave_if_asked()?;
                self.watch_port(events)?;
                self.receive()?;
                self.transmit(events)
            }
            CTRL_DOORBELL => {
                if let Some(ctrl) = &mut self.ctrl {
                    self.counters.ctrl_doorbells.add(ctrl.answer_doorbell());
                }
                self.control()
            }
            INBOX => {
                // Empty when another wake-up took it along.
                let _ = self.inbox.as_ref().map(|filled| filled.read());
                self.receive()
            }
            ALARM => self.catch_up(),
            _ => Ok(()),
        }
    }

    /// Does what has been put off and is due.
    fn catch_up(&mut self) -> Result<(), Fault> {
        self.alarm.acknowledge().map_err(no_timer)?;
        if let Some(rx) = self.rx.serving() {
            rx.interrupt_in_time();
        }
        if let Some(tx) = self.tx.serving() {
            tx.interrupt_in_time();
        }
        self.control()
    }

    /// Sees to it that what is put off is not forgotten.
    fn set_alarm(&mut self) -> Result<(), Fault> {
        let rx = self.rx.serving().and_then(|rx| rx.deadline());
        let tx = self.tx.serving().and_then(|tx| tx.deadline());
        let ctrl = self.ctrl.as_mut().and_then(Lane::serving).and_then(|ctrl| ctrl.deadline());
        self.alarm.set([rx, tx, ctrl].into_iter().flatten().min()).map_err(no_timer)
    }

    fn port_events(&self) -> Events {
        let wanted = match self.watch {
            Watch::Edge(_) => EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED,
            Watch::Level(_) => EventSet::IN,
        };
        Events::with_data_raw(self.port.fd(), PORT, wanted)
    }

    /// Watches the port anew. epoll hooks a tap queue only while it is attached, so a queue that was detached when it
    /// was added would stay silent.
    fn watch_port(&mut self, events: &mut EventOps) -> Result<(), Fault> {
        // Not watched yet: nothing to remove.
        let _ = events.remove(Events::empty_raw(self.port.fd()));
        self.watch = Watch::Edge(0);
        events.add(self.port_events()).map_err(unwatched)
    }
}

impl Service for Pair {
    const JOB: Job = Job::QueuePair;

    fn sources(&self) -> Vec<Source> {
        let mut sources = vec![
            Source::signalled(self.rx.doorbell(), RX_DOORBELL),
            Source::signalled(self.tx.doorbell(), TX_DOORBELL),
            Source::readable(&self.changed, CHANGED),
            Source::readable(&self.alarm, ALARM),
        ];
        sources.extend(self.inbox.as_ref().map(|filled| Source::readable(filled.as_ref(), INBOX)));
        sources.extend(self.ctrl.as_ref().map(|ctrl| Source::signalled(ctrl.doorbell(), CTRL_DOORBELL)));
        sources
    }

    fn watched_later(&self) -> Option<RawFd> {
        Some(self.port.fd())
    }

    fn begin(&mut self, events: &mut EventOps) -> Result<(), Fault> {
        self.watch_port(events)?;
        self.control()?;
        self.receive()?;
        self.transmit(events)?;
        self.set_alarm()
    }

    fn serve(&mut self, token: u32, events: &mut EventOps) -> Result<(), Fault> {
        self.serve_source(token, events)?;
        self.set_alarm()
    }

    fn poll(&mut self) -> Result<bool, Fault> {
        let buffers = self.rx.serving().map_or(Ok(false), Rx::has_buffers)?;
        let frames = self.tx.serving().map_or(Ok(false), Tx::has_frame)?;
        self.serve_unasked(buffers, frames)
    }

    fn before_sleep(&mut self) -> Result<bool, Fault> {
        let buffers = self.rx.serving().map_or(Ok(false), Rx::ask_for_buffers)?;
        let frames = self.tx.serving().map_or(Ok(false), Tx::ask_for_frames)?;
        self.serve_unasked(buffers, frames)
    }
}

fn no_timer(source: std::io::Error) -> Fault {
    Fault::Host { operation: "set a timer", source }
}

fn unwatched(err: event_manager::Error) -> Fault {
    Fault::Host { operation: "watch the tap", source: std::io::Error::other(err) }
}
