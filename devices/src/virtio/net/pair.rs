//! One queue pair: what its worker waits for and does.
//!
//! The port's descriptor is watched edge-triggered: while the guest has no buffers, or no frame waits to be sent, nothing has to
//! be switched off and on again. After every edge the port is read until it is empty. The kernel's taps tell that there is room
//! again only to those who asked after they had met a full queue, so after such a write the port is asked.

use crate::virtio::net::Turn;
use crate::virtio::net::ctrl::CtrlQueue;
use crate::virtio::net::port::FramePort;
use crate::virtio::net::rx::Rx;
use crate::virtio::net::tx::Tx;
use crate::virtio::worker::{Fault, Service, Source};
use event_manager::{EventOps, EventSet, Events};
use std::os::fd::RawFd;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

const RX_DOORBELL: u32 = 0;
const TX_DOORBELL: u32 = 1;
const PORT: u32 = 2;
const SWITCH: u32 = 3;
const CTRL_DOORBELL: u32 = 4;

/// The control queue and its doorbell; served by the first pair.
pub(super) struct Ctrl {
    /// The queue.
    pub(super) queue: CtrlQueue,
    /// Its doorbell.
    pub(super) doorbell: EventFd,
}

/// A queue pair and its port.
pub(super) struct Pair {
    /// Receive side.
    pub(super) rx: Rx,
    /// Its doorbell.
    pub(super) rx_doorbell: EventFd,
    /// Transmit side.
    pub(super) tx: Tx,
    /// Its doorbell.
    pub(super) tx_doorbell: EventFd,
    /// Where frames go.
    pub(super) port: Arc<dyn FramePort>,
    /// Signalled when the port was attached or detached.
    pub(super) switched: EventFd,
    /// The control queue, if this pair serves it.
    pub(super) ctrl: Option<Ctrl>,
}

impl Pair {
    fn receive(&mut self) -> Result<(), Fault> {
        let turn = self.rx.receive()?;
        come_again(turn, &self.rx_doorbell)
    }

    fn transmit(&mut self, events: &EventOps) -> Result<(), Fault> {
        let turn = self.tx.transmit()?;
        if self.tx.waits() {
            events.modify(self.port_events()).map_err(unwatched)?;
        }
        come_again(turn, &self.tx_doorbell)
    }

    fn control(&mut self) -> Result<(), Fault> {
        let Some(ctrl) = &mut self.ctrl else { return Ok(()) };
        let turn = ctrl.queue.serve()?;
        come_again(turn, &ctrl.doorbell)
    }

    fn port_events(&self) -> Events {
        let wanted = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        Events::with_data_raw(self.port.fd(), PORT, wanted)
    }

    /// Watches the port anew. epoll hooks a tap queue only while it is attached, so a queue that was detached when it was added
    /// would stay silent.
    fn watch_port(&mut self, events: &mut EventOps) -> Result<(), Fault> {
        // Not watched yet: nothing to remove.
        let _ = events.remove(Events::empty_raw(self.port.fd()));
        events.add(self.port_events()).map_err(unwatched)
    }
}

impl Service for Pair {
    fn sources(&self) -> Vec<Source> {
        let mut sources = vec![
            Source::readable(&self.rx_doorbell, RX_DOORBELL),
            Source::readable(&self.tx_doorbell, TX_DOORBELL),
            Source::readable(&self.switched, SWITCH),
        ];
        sources.extend(self.ctrl.as_ref().map(|ctrl| Source::readable(&ctrl.doorbell, CTRL_DOORBELL)));
        sources
    }

    fn watched_later(&self) -> Option<RawFd> {
        Some(self.port.fd())
    }

    fn begin(&mut self, events: &mut EventOps) -> Result<(), Fault> {
        self.watch_port(events)?;
        self.control()?;
        self.receive()?;
        self.transmit(events)
    }

    fn serve(&mut self, token: u32, events: &mut EventOps) -> Result<(), Fault> {
        match token {
            RX_DOORBELL => {
                drain(&self.rx_doorbell);
                self.receive()
            }
            TX_DOORBELL => {
                drain(&self.tx_doorbell);
                self.transmit(events)
            }
            PORT => {
                self.receive()?;
                if self.tx.waits() { self.transmit(events) } else { Ok(()) }
            }
            SWITCH => {
                drain(&self.switched);
                self.watch_port(events)?;
                self.receive()?;
                self.transmit(events)
            }
            CTRL_DOORBELL => {
                if let Some(ctrl) = &self.ctrl {
                    drain(&ctrl.doorbell);
                }
                self.control()
            }
            _ => Ok(()),
        }
    }
}

fn unwatched(err: event_manager::Error) -> Fault {
    Fault::Host { operation: "watch the tap", source: std::io::Error::other(err) }
}

fn drain(event: &EventFd) {
    // Empty when another wake-up took it along.
    let _ = event.read();
}

/// After a burst that was cut short, rings the queue's own doorbell so that it comes again after the other sources.
fn come_again(turn: Turn, doorbell: &EventFd) -> Result<(), Fault> {
    match turn {
        Turn::Done => Ok(()),
        Turn::More => {
            doorbell.write(1).map_err(|source| Fault::Host { operation: "ring a doorbell of our own", source })
        }
    }
}
