//! A port whose frames come late, or not at all.

use super::Impairment;
use super::bucket::Bucket;
use super::line::Line;
use super::splitmix::SplitMix64;
use super::wire::{self, HEADERS_MAX};
use crate::virtio::alarm::Alarm;
use crate::virtio::device::Memory;
use crate::virtio::iovec::{IoVecs, MAX_PER_CALL};
use crate::virtio::net::budget::Budget;
use crate::virtio::net::offload::Offloads;
use crate::virtio::net::port::FramePort;
use crate::virtio::net::{HEADER_LEN, MAX_FRAME, MAX_HEADER_LEN};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// A queue that found no room is asked again after this time.
const TRY_AGAIN: Duration = Duration::from_micros(200);

/// State that the queues of a card share.
pub(super) struct Shares {
    /// The rates at which frames may pass to and from the guest.
    pub(super) buckets: [Option<Arc<Mutex<Bucket>>>; 2],
    /// The memory that waiting frames may take.
    pub(super) budget: Budget,
}

/// One queue of a card.
pub(super) struct Impaired {
    inner: Arc<dyn FramePort>,
    /// Readable when there is something to receive, or time to look.
    epoll: Epoll,
    header_len: AtomicUsize,
    touches_frames: bool,
    state: Mutex<State>,
}

struct State {
    alarm: Alarm,
    to_guest: DelayedPath,
    from_guest: DelayedPath,
    /// An empty list: where there are no buffers, all of a frame goes to the spill.
    nowhere: IoVecs,
    /// A frame on its way to or from the port, with a start that is ours.
    passing: IoVecs,
    buffer: Vec<u8>,
}

/// One direction.
struct DelayedPath {
    line: Line,
    bucket: Option<Arc<Mutex<Bucket>>>,
}

impl DelayedPath {
    /// Returns whether a frame may pass.
    fn open(&self, now: Instant) -> Result<(), Instant> {
        self.bucket.as_ref().map_or(Ok(()), |bucket| lock(bucket).open(now))
    }

    /// A frame of `bytes` on the wire has passed.
    fn spend(&self, bytes: usize, now: Instant) {
        if let Some(bucket) = &self.bucket {
            lock(bucket).spend(bytes, now);
        }
    }
}

impl Impaired {
    /// `port`, the card's queue with number `queue`, with what its card's queues share.
    ///
    /// # Errors
    /// If the host has no epoll or timer left.
    pub(super) fn new(
        port: Arc<dyn FramePort>,
        queue: u64,
        impairment: &Impairment,
        Shares { buckets: [bucket_in, bucket_out], budget }: Shares,
        mem: Memory,
    ) -> io::Result<Self> {
        let alarm = Alarm::new()?;
        let epoll = Epoll::new()?;
        for fd in [port.fd(), alarm.as_raw_fd()] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))?;
        }
        let line = |part| Line::new(SplitMix64::new(impairment.seed, part), impairment, budget.clone());
        let state = State {
            alarm,
            to_guest: DelayedPath { line: line(queue * 2), bucket: bucket_in },
            from_guest: DelayedPath { line: line(queue * 2 + 1), bucket: bucket_out },
            nowhere: IoVecs::new(mem.clone()),
            passing: IoVecs::new(mem),
            buffer: vec![0; MAX_HEADER_LEN + MAX_FRAME],
        };
        Ok(Self {
            inner: port,
            epoll,
            header_len: AtomicUsize::new(HEADER_LEN),
            touches_frames: impairment.touches_frames(),
            state: Mutex::new(state),
        })
    }

    /// The state as of `now`, with all that is due on its way out.
    fn state(&self, now: Instant) -> io::Result<MutexGuard<'_, State>> {
        let mut state = lock(&self.state);
        if state.alarm.is_due(now) {
            state.alarm.acknowledge()?;
        }
        self.send_due(&mut state, now)?;
        Ok(state)
    }

    /// Sends what is due. What the port does not take is lost, as on a wire, unless it is only full.
    fn send_due(&self, state: &mut State, now: Instant) -> io::Result<()> {
        let State { alarm, from_guest, passing, .. } = state;
        while let Some(frame) = from_guest.line.due(now) {
            if let Err(later) = from_guest.open(now) {
                return alarm.set(Some(later));
            }
            passing.clear();
            passing.put_in_front(frame);
            match self.inner.transmit(passing) {
                Err(err) if err.kind() == ErrorKind::WouldBlock => return alarm.set(Some(now + TRY_AGAIN)),
                Err(err) => log::debug!("Cannot send a delayed frame: {err}"),
                Ok(_) => from_guest.spend(self.wire_bytes(frame, frame.len()).unwrap_or(frame.len()), now),
            }
            from_guest.line.pop();
        }
        alarm.set(from_guest.line.next_due())
    }

    /// Bytes that a frame of `len` with its virtio header, which begins with `start`, has on the wire after it was
    /// segmented; None if that cannot be told.
    fn wire_bytes(&self, start: &[u8], len: usize) -> Option<usize> {
        let header_len = self.header_len.load(Ordering::Relaxed);
        let (vnet, frame) = start.split_at_checked(header_len)?;
        wire::bytes(vnet, &frame[..frame.len().min(HEADERS_MAX)], len.saturating_sub(header_len))
    }

    /// Bytes at the start of a frame that are looked at.
    fn start_len(&self) -> usize {
        self.header_len.load(Ordering::Relaxed) + HEADERS_MAX
    }

    /// Receives frames that are only slowed down or lost. Their start is looked at before the guest can change it.
    fn receive_straight(
        &self,
        state: &mut State,
        into: &mut IoVecs,
        spill: &mut [u8],
        now: Instant,
    ) -> io::Result<usize> {
        loop {
            let State { alarm, to_guest, passing, .. } = state;
            if let Err(later) = to_guest.open(now) {
                alarm.set(Some(later))?;
                return Err(ErrorKind::WouldBlock.into());
            }
            let len = if to_guest.bucket.is_none() {
                self.inner.receive(into, spill)?
            } else {
                let mut start = [0; MAX_HEADER_LEN + HEADERS_MAX];
                let (len, known) =
                    receive_with_start(&*self.inner, passing, into, spill, &mut start[..self.start_len()])?;
                // What cannot be segmented is not.
                to_guest.spend(self.wire_bytes(&start[..known], len).unwrap_or(len), now);
                len
            };
            if to_guest.line.next_delay().is_some() {
                return Ok(len);
            }
        }
    }

    /// Receives frames that are late.
    fn receive_delayed(
        &self,
        state: &mut State,
        into: &mut IoVecs,
        spill: &mut [u8],
        now: Instant,
    ) -> io::Result<usize> {
        let State { alarm, to_guest, nowhere, buffer, .. } = state;
        let ended = loop {
            if to_guest.line.is_full() {
                break None;
            }
            match self.inner.receive(nowhere, buffer) {
                Ok(len) => {
                    if let Some(delay) = to_guest.line.next_delay() {
                        // Without room it is lost, as on a wire.
                        to_guest.line.push(buffer[..len].to_vec(), delay, now);
                    }
                }
                Err(err) => break Some(err),
            }
        };
        let Some(frame) = to_guest.line.due(now) else {
            alarm.set(to_guest.line.next_due())?;
            return Err(ended.unwrap_or_else(|| ErrorKind::WouldBlock.into()));
        };
        if let Err(later) = to_guest.open(now) {
            alarm.set(Some(later))?;
            return Err(ErrorKind::WouldBlock.into());
        }
        let direct = into.spill_offset().min(frame.len());
        into.copy_in(0, &frame[..direct]);
        spill.iter_mut().zip(&frame[direct..]).for_each(|(to, from)| *to = *from);
        let len = frame.len();
        to_guest.spend(self.wire_bytes(frame, len).unwrap_or(len), now);
        to_guest.line.pop();
        Ok(len)
    }
}

impl FramePort for Impaired {
    fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn receive(&self, into: &mut IoVecs, spill: &mut [u8]) -> io::Result<usize> {
        let now = Instant::now();
        let mut state = self.state(now)?;
        if state.to_guest.line.is_straight() {
            self.receive_straight(&mut state, into, spill, now)
        } else {
            self.receive_delayed(&mut state, into, spill, now)
        }
    }

    fn transmit(&self, frame: &IoVecs) -> io::Result<usize> {
        let now = Instant::now();
        let mut state = self.state(now)?;
        let len = usize::try_from(frame.len_bytes()).unwrap_or(usize::MAX);
        let State { alarm, from_guest, passing, .. } = &mut *state;
        if !from_guest.line.is_straight() {
            if from_guest.line.is_full() {
                return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
            }
            if let Some(delay) = from_guest.line.next_delay() {
                let mut bytes = vec![0; len];
                frame.copy_out(0, &mut bytes);
                if from_guest.bucket.is_some() && self.wire_bytes(&bytes, len).is_none() {
                    return Err(io::Error::from_raw_os_error(libc::EINVAL));
                }
                if !from_guest.line.push(bytes, delay, now) {
                    return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
                }
                alarm.set(from_guest.line.next_due())?;
            }
            return Ok(len);
        }
        if let Err(later) = from_guest.open(now) {
            alarm.set(Some(later))?;
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut start = [0; MAX_HEADER_LEN + HEADERS_MAX];
        let start = &mut start[..self.start_len().min(len)];
        let mut bytes = len;
        let mut leaving = frame;
        if from_guest.bucket.is_some() {
            // What is counted is what is sent, whatever the guest writes meanwhile.
            frame.copy_out(0, start);
            bytes = self.wire_bytes(start, len).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
            passing.replace_start(frame, start);
            leaving = passing;
        }
        let sent = if from_guest.line.fate_ahead().is_some() { self.inner.transmit(leaving) } else { Ok(len) };
        match &sent {
            // It comes again, and meets the same fate.
            Err(err) if err.kind() == ErrorKind::WouldBlock => alarm.set(Some(now + TRY_AGAIN))?,
            _ => {
                from_guest.line.next_delay();
                from_guest.spend(bytes, now);
            }
        }
        sent
    }

    fn probe_offloads(&self) -> Offloads {
        let able = self.inner.probe_offloads();
        if self.touches_frames { able & Offloads::CSUM } else { able }
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.inner.set_offloads(offloads)
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        self.inner.set_attached(attached)?;
        if attached {
            // epoll hooks a tap queue only while it is attached. It may be watched already, or not at all.
            let _ = self.epoll.ctl(ControlOperation::Delete, self.inner.fd(), EpollEvent::default());
            self.epoll.ctl(ControlOperation::Add, self.inner.fd(), EpollEvent::new(EventSet::IN, 0))?;
        }
        Ok(())
    }

    fn set_header_len(&self, bytes: usize) -> io::Result<()> {
        self.inner.set_header_len(bytes)?;
        self.header_len.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn set_steering(&self, program: Option<BorrowedFd>) -> io::Result<()> {
        self.inner.set_steering(program)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Receives a frame as [`FramePort::receive`] does, with a copy of what `start` has room for that the guest could not
/// change. Returns the frame's length and how much of `start` it has filled. `passing` is a list to work with.
pub(in crate::virtio::net) fn receive_with_start(
    port: &dyn FramePort,
    passing: &mut IoVecs,
    into: &mut IoVecs,
    spill: &mut [u8],
    start: &mut [u8],
) -> io::Result<(usize, usize)> {
    let direct = into.spill_offset();
    let ours = direct.min(start.len());
    // A list of more pieces than the kernel takes would be cut at another place.
    let len = if into.count() + 1 < MAX_PER_CALL {
        passing.replace_start(into, &start[..ours]);
        let len = port.receive(passing, spill)?;
        start[..ours].copy_from_slice(passing.front());
        into.copy_in(0, &start[..ours.min(len)]);
        len
    } else {
        let len = port.receive(into, spill)?;
        into.copy_out(0, &mut start[..ours]);
        len
    };
    // The kernel has put what comes after the buffers into memory of ours.
    start[ours..].iter_mut().zip(spill.iter()).for_each(|(to, from)| *to = *from);
    Ok((len, start.len().min(len)))
}
