//! A port whose frames come late, or not at all.

use super::Impairment;
use super::bucket::Bucket;
use super::dice::Dice;
use super::line::Line;
use crate::virtio::device::Memory;
use crate::virtio::iovec::IoVecs;
use crate::virtio::net::alarm::Alarm;
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

/// Headers that a segment repeats, if the frame does not say how long they are: Ethernet, IPv4 and TCP.
const SEGMENT_HEADERS: usize = 54;

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
    to_guest: Way,
    from_guest: Way,
    /// An empty list: where there are no buffers, all of a frame goes to the spill.
    nowhere: IoVecs,
    /// A frame of ours on its way to the port.
    leaving: IoVecs,
    buffer: Vec<u8>,
}

/// One direction.
struct Way {
    line: Line,
    bucket: Option<Arc<Mutex<Bucket>>>,
}

impl Way {
    /// Whether a frame may pass.
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
    /// `port`, the card's queue with number `queue`, with the two buckets that its card's queues share: to and from the guest.
    ///
    /// # Errors
    /// If the host has no epoll or timer left.
    pub(super) fn new(
        port: Arc<dyn FramePort>,
        queue: u64,
        impairment: &Impairment,
        [bucket_in, bucket_out]: [Option<Arc<Mutex<Bucket>>>; 2],
        mem: Memory,
    ) -> io::Result<Self> {
        let alarm = Alarm::new()?;
        let epoll = Epoll::new()?;
        for fd in [port.fd(), alarm.as_raw_fd()] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))?;
        }
        let Impairment { delay, jitter, loss_ppm, seed, .. } = *impairment;
        let line = |part| Line::new(Dice::new(seed, part), delay, jitter, loss_ppm);
        let state = State {
            alarm,
            to_guest: Way { line: line(queue * 2), bucket: bucket_in },
            from_guest: Way { line: line(queue * 2 + 1), bucket: bucket_out },
            nowhere: IoVecs::new(mem.clone()),
            leaving: IoVecs::new(mem),
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
        let State { alarm, from_guest, leaving, .. } = state;
        while let Some(frame) = from_guest.line.due(now) {
            if let Err(later) = from_guest.open(now) {
                return alarm.set(Some(later));
            }
            leaving.clear();
            leaving.put_in_front(frame);
            match self.inner.transmit(leaving) {
                Err(err) if err.kind() == ErrorKind::WouldBlock => return alarm.set(Some(now + TRY_AGAIN)),
                Err(err) => log::debug!("Failed to send a delayed frame: {err}"),
                Ok(_) => from_guest.spend(self.wire_bytes(frame, frame.len()), now),
            }
            from_guest.line.pop();
        }
        alarm.set(from_guest.line.next_due())
    }

    /// Bytes that a frame of `len` with its header, which begins with `head`, has on the wire after it was segmented.
    fn wire_bytes(&self, head: &[u8], len: usize) -> usize {
        let len = len.saturating_sub(self.header_len.load(Ordering::Relaxed));
        let field = |at: usize| {
            let bytes = head.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
            usize::from(u16::from_le_bytes(bytes))
        };
        // `hdr_len` and `gso_size` (virtio 1.3 5.1.6); both are hints that the guest may have made up.
        let (headers, size) = (field(2), field(4));
        let headers = if (1..=256).contains(&headers) { headers } else { SEGMENT_HEADERS };
        let Some(segments) =
            len.saturating_sub(headers).checked_add(size.saturating_sub(1)).and_then(|n| n.checked_div(size))
        else {
            return len;
        };
        len + segments.saturating_sub(1) * headers
    }

    /// Receives frames that are only slowed down or lost.
    fn receive_straight(
        &self,
        state: &mut State,
        into: &mut IoVecs,
        spill: &mut [u8],
        now: Instant,
    ) -> io::Result<usize> {
        loop {
            let State { alarm, to_guest, .. } = state;
            if let Err(later) = to_guest.open(now) {
                alarm.set(Some(later))?;
                return Err(ErrorKind::WouldBlock.into());
            }
            let len = self.inner.receive(into, spill)?;
            let mut head = [0; HEADER_LEN];
            let direct = into.spill_offset().min(HEADER_LEN);
            into.copy_out(0, &mut head);
            head[direct..].iter_mut().zip(spill.iter()).for_each(|(to, from)| *to = *from);
            to_guest.spend(self.wire_bytes(&head, len), now);
            if to_guest.line.fate().is_some() {
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
                    if let Some(delay) = to_guest.line.fate() {
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
        to_guest.spend(self.wire_bytes(frame, len), now);
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
        let State { alarm, from_guest, .. } = &mut *state;
        if !from_guest.line.is_straight() {
            if from_guest.line.is_full() {
                return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
            }
            if let Some(delay) = from_guest.line.fate() {
                let mut bytes = vec![0; len];
                frame.copy_out(0, &mut bytes);
                from_guest.line.push(bytes, delay, now);
                alarm.set(from_guest.line.next_due())?;
            }
            return Ok(len);
        }
        if let Err(later) = from_guest.open(now) {
            alarm.set(Some(later))?;
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut head = [0; HEADER_LEN];
        frame.copy_out(0, &mut head);
        let bytes = self.wire_bytes(&head, len);
        let sent = if from_guest.line.fate_ahead().is_some() { self.inner.transmit(frame) } else { Ok(len) };
        match &sent {
            // It comes again, and meets the same fate.
            Err(err) if err.kind() == ErrorKind::WouldBlock => alarm.set(Some(now + TRY_AGAIN))?,
            _ => {
                from_guest.line.fate();
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
