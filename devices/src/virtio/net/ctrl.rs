//! The control queue (virtio 1.3 5.1.6.5): a command becomes an acknowledgement.

mod command;

use crate::virtio::chain::Chain;
use crate::virtio::device::Memory;
use crate::virtio::net::Turn;
use crate::virtio::net::coalesce::{Request, Settings};
use crate::virtio::net::config::MacRegister;
use crate::virtio::net::counters::Counters;
use crate::virtio::net::drain::{self, Drain};
use crate::virtio::net::filter::{self, Switch};
use crate::virtio::net::lane::Side;
use crate::virtio::net::limiter::Limiter;
use crate::virtio::net::link::Link;
use crate::virtio::net::offload::{self, Offloads, bit};
use crate::virtio::net::port::FramePort;
use crate::virtio::net::rss::{Receiving, RssSettings, Shared, Steering};
use crate::virtio::ring::Ring;
use crate::virtio::worker::Fault;
pub(super) use command::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use virtio_bindings::virtio_net::{VIRTIO_NET_ERR, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_OK};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// Longest command that is understood: class, command and two address tables of this many addresses together.
const MAX_COMMAND: usize = 2 + 2 * 4 + 6 * 1024;

/// One queue of the interface, and how to tell its worker that something about it was changed.
pub(super) struct PairSwitch {
    /// The queue.
    pub(super) port: Arc<dyn FramePort>,
    /// Signalled after that.
    pub(super) changed: EventFd,
    /// How its worker empties it before it is detached; `None` if it is not a worker of ours.
    pub(super) drain: Option<Arc<Drain>>,
    /// True if the interface uses it.
    pub(super) attached: bool,
}

impl PairSwitch {
    /// Attaches or detaches the queue. Returns whether that was done.
    fn set(&mut self, attached: bool) -> bool {
        if let Err(err) = self.port.set_attached(attached) {
            log::warn!("Cannot {} a queue: {err}", if attached { "attach" } else { "detach" });
            return false;
        }
        self.attached = attached;
        self.tell();
        true
    }

    /// Has the worker look.
    fn tell(&self) {
        if let Err(err) = self.changed.write(1) {
            log::warn!("Cannot wake a worker: {err}");
        }
    }
}

/// The state that commands act on.
pub(super) struct Control {
    /// All queue pairs that the driver has enabled, in order.
    pub(super) pairs: Vec<PairSwitch>,
    /// The pairs in use: a prefix of `pairs`.
    pub(super) active: u16,
    /// The negotiated feature bits.
    pub(super) features: u64,
    /// The frames that the receive queues let in.
    pub(super) filter: Arc<filter::Shared>,
    /// Where the driver reads the card's address.
    pub(super) mac: Arc<MacRegister>,
    /// The offloads that the guest is given.
    pub(super) offloads: Offloads,
    /// How interrupts are held back.
    pub(super) coalescing: Arc<Settings>,
    /// How often the host is asked for changes; the same one after a reset, so that a reset does not help.
    pub(super) limiter: Arc<Mutex<Limiter>>,
    /// Where the driver reads whether it is to announce the guest.
    pub(super) link: Link,
    /// The receive queues' hashes.
    pub(super) receiving: Arc<Shared>,
    /// The program that lets the kernel choose receive queues, if there is one.
    pub(super) steering: Option<Arc<Steering>>,
    /// On if the kernel chooses the queue.
    pub(super) program: Switch,
}

impl Control {
    /// Does what `command` says. Returns whether it was done.
    pub(super) fn execute(&mut self, command: Command) -> bool {
        if self.features & bit(command.feature()) == 0 {
            return false;
        }
        match command {
            Command::Mode(mode, on) => self.filter.change(|filter| filter.set_mode(mode, on)),
            Command::Tables(unicast, multicast) => self.filter.change(|filter| filter.set_tables(&unicast, &multicast)),
            Command::Mac(mac) => self.set_mac(mac),
            Command::Vlan(vlan, on) => self.filter.change(|filter| filter.set_vlan(vlan, on)),
            Command::Announced => {
                self.link.announced();
                true
            }
            Command::Pairs(pairs) => self.change_pairs(pairs),
            Command::Rss(settings) => self.set_rss(settings),
            Command::Hash(settings) => {
                self.receiving.change(|_| Receiving::reporting(settings));
                self.steer_automatically()
            }
            Command::GuestOffloads(features) => self.set_guest_offloads(features),
            Command::Coalescing(request) => self.coalesce(request),
        }
    }

    /// Returns whether `command` may be executed.
    ///
    /// # Errors
    /// When it may, if not now.
    fn admit(&self, command: &Command) -> Result<(), Instant> {
        let calls = match command {
            _ if self.features & bit(command.feature()) == 0 => 0,
            Command::Pairs(pairs) if self.has_pairs(*pairs) => {
                let gathers = *pairs < self.active && self.steering.is_some();
                let switches = u32::from(self.program == Switch::On).max(if gathers { 2 } else { 0 });
                u32::from(pairs.abs_diff(self.active)) + switches
            }
            Command::Rss(settings) if self.has_pairs(settings.pairs()) => {
                let wanted = Switch::from(self.steering.as_ref().is_some_and(|steering| steering.serves(settings)));
                u32::from(settings.pairs().abs_diff(self.active)) + u32::from(self.program != wanted)
            }
            Command::Hash(_) => u32::from(self.program == Switch::On),
            Command::GuestOffloads(features) => u32::from(Offloads::for_guest(*features) != self.offloads),
            _ => 0,
        };
        if calls == 0 {
            return Ok(());
        }
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner).take(calls, Instant::now())
    }

    /// The answer to `command`, which was executed.
    fn result(&self, command: &Command) -> Vec<u8> {
        match command {
            Command::Coalescing(Request::Get(queue)) => {
                self.coalescing.get(*queue).unwrap_or_default().to_bytes().to_vec()
            }
            _ => Vec::new(),
        }
    }

    fn coalesce(&self, request: Request) -> bool {
        let done = self.coalescing.obey(request);
        let queues = (0_u16..).step_by(2);
        for (_, pair) in queues.zip(&self.pairs).filter(|(idx, _)| request.changes(*idx) || request.changes(*idx + 1)) {
            // What is held back may be due by the new rule.
            pair.tell();
        }
        done
    }

    fn has_pairs(&self, pairs: u16) -> bool {
        (1..=self.pairs.len()).contains(&usize::from(pairs))
    }

    fn set_mac(&self, mac: [u8; 6]) -> bool {
        // A group address belongs to no card (IEEE 802.3 3.2.3).
        let own = mac[0] & 1 == 0 && mac != [0; 6] && self.mac.may_become(mac);
        if own {
            self.mac.set(mac);
            self.filter.change(|filter| filter.set_mac(mac));
        }
        own
    }

    /// Uses the first `pairs`, among which the kernel chooses. Returns whether that was done; if not, it chooses among
    /// as many as before.
    fn change_pairs(&mut self, pairs: u16) -> bool {
        if !self.has_pairs(pairs) {
            return false;
        }
        if pairs < self.active {
            self.gather();
        }
        let done = self.set_pairs(pairs);
        self.steer_automatically() && done
    }

    /// Leads all frames to the first queue, if the kernel can be told so, until another choice is made: a queue can
    /// then be emptied for good.
    fn gather(&mut self) {
        self.receiving.change(Receiving::unsteered);
        if let Some(steering) = &self.steering {
            steering.gather();
            self.set_program(Switch::On);
        }
    }

    fn set_pairs(&mut self, pairs: u16) -> bool {
        if !self.has_pairs(pairs) {
            return false;
        }
        let done = self.attach_first(pairs);
        if done {
            self.active = pairs;
        } else {
            // The driver goes on with what it had: a flow on a queue that it does not use would be lost.
            self.attach_first(self.active);
        }
        done
    }

    /// Attaches the first `count` queues, and empties and detaches the others. Returns whether all are as wanted.
    fn attach_first(&mut self, count: u16) -> bool {
        self.empty_from(count);
        let wanted = (0..).map(|idx: u16| idx < count);
        let changes = self.pairs.iter_mut().zip(wanted).filter(|(switch, wanted)| switch.attached != *wanted);
        changes.fold(true, |all, (switch, wanted)| switch.set(wanted) && all)
    }

    /// Has the queues from `count` on emptied by their workers.
    fn empty_from(&mut self, count: u16) {
        let draining = self.pairs.iter().skip(count.into()).filter(|pair| pair.attached);
        let draining: Vec<_> = draining.filter_map(|pair| Some((pair.drain.clone()?, pair))).collect();
        if draining.is_empty() {
            return;
        }
        for (drain, pair) in &draining {
            drain.request();
            pair.tell();
        }
        let deadline = Instant::now() + drain::TIMEOUT;
        draining.iter().for_each(|(drain, _)| drain.wait(deadline));
    }

    /// Attaches the pairs that are to be used before frames are steered to them, and detaches others afterwards.
    fn set_rss(&mut self, settings: RssSettings) -> bool {
        let pairs = settings.pairs();
        if !self.set_pairs(pairs.max(self.active)) {
            return false;
        }
        if self.let_kernel_steer(&settings) {
            let reports = self.features & bit(VIRTIO_NET_F_HASH_REPORT) != 0;
            let hash = settings.hash;
            self.receiving.change(|_| if reports { Receiving::reporting(hash) } else { Receiving::default() });
        } else {
            self.receiving.change(|_| Receiving::steering(settings));
        }
        self.set_pairs(pairs)
    }

    /// Returns whether the kernel steers by `settings` from now on. If not, it steers as it likes.
    fn let_kernel_steer(&mut self, settings: &RssSettings) -> bool {
        match &self.steering {
            Some(steering) if steering.serves(settings) => {
                steering.set(settings);
                self.set_program(Switch::On)
            }
            _ => {
                self.set_program(Switch::Off);
                false
            }
        }
    }

    /// Leaves the choice of queues to the kernel. Returns whether that was done.
    fn steer_automatically(&mut self) -> bool {
        self.receiving.change(Receiving::unsteered);
        self.set_program(Switch::Off)
    }

    /// Attaches the program to the interface, or detaches it. Returns whether it is as wanted.
    fn set_program(&mut self, wanted: Switch) -> bool {
        let (Some(pair), Some(steering)) = (self.pairs.first(), &self.steering) else { return wanted == Switch::Off };
        if wanted == self.program {
            return true;
        }
        let program = if wanted == Switch::On { Some(steering.program()) } else { None };
        match pair.port.set_steering(program) {
            Ok(()) => {
                self.program = wanted;
                true
            }
            Err(err) => {
                log::warn!("Cannot change what chooses receive queues: {err}");
                false
            }
        }
    }

    fn set_guest_offloads(&mut self, features: u64) -> bool {
        if features & !(self.features & offload::GUEST_FEATURES) != 0 {
            return false;
        }
        let offloads = Offloads::for_guest(features);
        if offloads == self.offloads {
            return true;
        }
        let port = self.pairs.first().map(|switch| &switch.port);
        match port.map(|port| port.set_offloads(offloads)) {
            Some(Ok(())) => {
                self.offloads = offloads;
                true
            }
            Some(Err(err)) => {
                log::warn!("Cannot change the offloads: {err}");
                false
            }
            None => false,
        }
    }
}

/// The control queue and what it controls.
pub(super) struct CtrlQueue {
    ring: Ring,
    chain: Chain,
    control: Control,
    counters: Arc<Counters>,
    /// The command that is being read.
    command: Vec<u8>,
    waiting: Option<Waiting>,
}

/// A command that must not be executed yet; its chain is the queue's `chain`.
struct Waiting {
    head: u16,
    command: Command,
    due: Instant,
}

impl CtrlQueue {
    /// A control queue.
    pub(super) fn new(ring: Ring, control: Control, counters: Arc<Counters>) -> Self {
        Self { ring, chain: Chain::default(), control, counters, command: Vec::new(), waiting: None }
    }

    /// Returns whether the interface uses each of the pairs.
    pub(super) fn attached(&self) -> Vec<bool> {
        self.control.pairs.iter().map(|switch| switch.attached).collect()
    }

    /// When a command is due that has to wait.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting.as_ref().map(|waiting| waiting.due)
    }

    /// Answers every command that is there, up to one that has to wait; at most a ring full, so that a driver that
    /// never stops cannot keep the worker.
    ///
    /// # Errors
    /// If the ring is broken, or a command has no room for its acknowledgement.
    pub(super) fn serve(&mut self) -> Result<Turn, Fault> {
        let turn = self.answer()?;
        self.ring.notify();
        Ok(turn)
    }

    fn answer(&mut self) -> Result<Turn, Fault> {
        for _ in 0..self.ring.size() {
            let Some((head, command)) = self.next_command()? else { return Ok(Turn::Done) };
            if let Some(command) = command {
                if let Err(due) = self.control.admit(&command) {
                    self.waiting = Some(Waiting { head, command, due });
                    return Ok(Turn::Done);
                }
                self.finish(head, command)?;
            } else {
                // The end of a result is unknown, except that nothing follows it.
                let end = u32::try_from(self.chain.writable_len()).unwrap_or(u32::MAX);
                self.refuse(head, end.saturating_sub(1))?;
            }
        }
        Ok(Turn::More)
    }

    /// The command that waited, or the next one and the head of its chain; `None` in its place if it makes no sense.
    fn next_command(&mut self) -> Result<Option<(u16, Option<Command>)>, Fault> {
        if let Some(waiting) = self.waiting.take() {
            return Ok(Some((waiting.head, Some(waiting.command))));
        }
        loop {
            if let Some(head) = self.ring.pop(&mut self.chain)? {
                let command = read_command(self.ring.mem(), &self.chain, &mut self.command);
                let room = self.chain.writable_len();
                return Ok(Some((head, command.filter(|command| room > u64::from(command.result_len())))));
            }
            if !self.ring.enable_doorbell()? {
                return Ok(None);
            }
        }
    }

    fn finish(&mut self, head: u16, command: Command) -> Result<(), Fault> {
        let ack_at = command.result_len();
        if !self.control.execute(command.clone()) {
            return self.refuse(head, ack_at);
        }
        self.counters.ctrl_ok.add(1);
        let mut answer = self.control.result(&command);
        answer.push(VIRTIO_NET_OK.to_le_bytes()[0]);
        self.write(0, &answer)?;
        self.ring.push_used(head, ack_at + 1);
        Ok(())
    }

    fn refuse(&mut self, head: u16, ack_at: u32) -> Result<(), Fault> {
        self.counters.ctrl_refused.add(1);
        self.write(ack_at, &VIRTIO_NET_ERR.to_le_bytes()[..1])?;
        self.ring.push_used(head, ack_at.saturating_add(1));
        Ok(())
    }

    /// Writes to the writable part of the chain from `at` on, however it is cut into buffers.
    fn write(&self, at: u32, bytes: &[u8]) -> Result<(), Fault> {
        let (mut skip, mut left) = (at, bytes);
        for buffer in &self.chain.writable {
            let here = skip.min(buffer.len);
            let room = usize::try_from(buffer.len - here).unwrap_or(usize::MAX);
            let (now, later) = left.split_at(left.len().min(room));
            if self.ring.mem().write_slice(now, GuestAddress(buffer.addr.0 + u64::from(here))).is_err() {
                break;
            }
            (skip, left) = (skip - here, later);
        }
        let no_room = Fault::Guest { queue: CTRL, reason: "a control command has no room for its answer" };
        if left.is_empty() { Ok(()) } else { Err(no_room) }
    }
}

impl Side for CtrlQueue {
    /// Commands that were executed stay in force; one that waits is dropped.
    fn stop(&mut self) {
        self.waiting = None;
    }

    fn restart(&mut self, ring: Ring) {
        self.ring = ring;
    }
}

/// The control queue's number in faults; its index depends on the negotiated features.
const CTRL: u16 = u16::MAX;

/// The command in the readable part of `chain`, however it is cut into buffers; read by way of `bytes`.
fn read_command(mem: &Memory, chain: &Chain, bytes: &mut Vec<u8>) -> Option<Command> {
    let len = usize::try_from(chain.readable_len()).ok().filter(|len| *len <= MAX_COMMAND)?;
    bytes.resize(len, 0);
    let mut at = 0;
    for buffer in &chain.readable {
        let end = at + usize::try_from(buffer.len).ok()?;
        mem.read_slice(bytes.get_mut(at..end)?, buffer.addr).ok()?;
        at = end;
    }
    Command::parse(bytes)
}
