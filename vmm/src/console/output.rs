//! Console output: a bounded buffer between the vCPU that writes and the control loop that passes it on.

use crate::event;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Bytes that wait for the host: a boot's worth of kernel messages.
const CAPACITY: usize = 64 << 10;

/// Bytes per write. A pipe that polls as writable takes this many without blocking (POSIX: PIPE_BUF).
const CHUNK: usize = 4096;

/// The shortest time between two writes. The first byte after a silence goes on at once. Those behind it come with an
/// exit of the guest each, and would cost a wake-up each; to a reader ten milliseconds are no time.
const PAUSE: Duration = Duration::from_millis(10);

/// The effect of a guest's write while the buffer is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenFull {
    /// The vCPU waits.
    Wait,
    /// The bytes are dropped.
    Drop,
}

struct Buffer {
    bytes: VecDeque<u8>,
    /// Set when nothing will be written any more: the machine stops, or the reader has gone.
    closed: bool,
}

struct Shared {
    buffer: Mutex<Buffer>,
    room: Condvar,
    /// Signalled when the buffer is no longer empty.
    filled: EventFd,
    when_full: WhenFull,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The control loop's side.
pub(crate) struct Output {
    shared: Arc<Shared>,
    file: Option<File>,
    /// When to write again.
    not_before: Instant,
}

impl Output {
    pub(super) fn new(file: Option<File>, when_full: WhenFull) -> io::Result<Self> {
        let closed = file.is_none();
        let shared = Shared {
            buffer: Mutex::new(Buffer { bytes: VecDeque::new(), closed }),
            room: Condvar::new(),
            filled: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            when_full,
        };
        Ok(Self { shared: Arc::new(shared), file, not_before: Instant::now() })
    }

    /// The serial port's side. One at a time: a new one takes over what [`close`](Self::close) closed.
    pub(crate) fn writer(&self) -> Box<dyn Write + Send> {
        self.shared.lock().closed = self.file.is_none();
        Box::new(Writer(self.shared.clone()))
    }

    /// Readable when there is something to pass on.
    pub(crate) fn filled(&self) -> &EventFd {
        &self.shared.filled
    }

    /// The descriptor to wait for, while there is something to pass on at this time and a reader to take it.
    pub(crate) fn wants_to_write(&self, now: Instant) -> Option<BorrowedFd<'_>> {
        self.unwritten().filter(|_| now >= self.not_before)
    }

    /// When there will be something to pass on, if it only has to wait.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        self.unwritten().map(|_| self.not_before).filter(|time| *time > now)
    }

    /// The reader of what has not been passed on.
    fn unwritten(&self) -> Option<BorrowedFd<'_>> {
        let file = self.file.as_ref()?;
        (!self.shared.lock().bytes.is_empty()).then(|| file.as_fd())
    }

    /// Passes on what fits in one write. Called when the descriptor is writable.
    pub(crate) fn pass_on(&mut self) {
        let Some(file) = &mut self.file else { return };
        let mut chunk = [0; CHUNK];
        let len = {
            let buffer = self.shared.lock();
            let (first, _) = buffer.bytes.as_slices();
            let len = first.len().min(CHUNK);
            chunk[..len].copy_from_slice(&first[..len]);
            len
        };
        match file.write(&chunk[..len]) {
            Ok(written) => {
                let mut buffer = self.shared.lock();
                buffer.bytes.drain(..written.min(len));
                if buffer.bytes.is_empty() {
                    self.not_before = Instant::now() + PAUSE;
                }
                drop(buffer);
                self.shared.room.notify_all();
            }
            Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(err) => {
                log::warn!("The console's output cannot be written any more: {err}");
                self.file = None;
                self.close();
                self.shared.lock().bytes.clear();
            }
        }
    }

    /// Lets a vCPU that waits for room go on; what it writes from now on is dropped.
    pub(crate) fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.room.notify_all();
    }

    /// Passes on what is left, as long as the reader takes something every `timeout`.
    pub(crate) fn finish(&mut self, timeout: Duration) {
        while let Some(fd) = self.unwritten() {
            let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
            match event::poll(&mut fds, Some(timeout)) {
                Ok(0) => break,
                Ok(_) => self.pass_on(),
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
    }
}

struct Writer(Arc<Shared>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut buffer = self.0.lock();
        while buffer.bytes.len() >= CAPACITY && !buffer.closed {
            if self.0.when_full == WhenFull::Drop {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            buffer = self.0.room.wait(buffer).unwrap_or_else(PoisonError::into_inner);
        }
        if buffer.closed {
            return Ok(bytes.len());
        }
        let len = bytes.len().min(CAPACITY - buffer.bytes.len());
        let was_empty = buffer.bytes.is_empty();
        buffer.bytes.extend(&bytes[..len]);
        if was_empty {
            self.0.filled.write(1)?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::thread;

    fn pipe(when_full: WhenFull) -> (Output, File) {
        let (read, write) = std::io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(write));
        (Output::new(Some(file), when_full).unwrap(), File::from(std::os::fd::OwnedFd::from(read)))
    }

    #[test]
    fn bytes_arrive_in_order() {
        let (mut output, mut reader) = pipe(WhenFull::Wait);
        let mut writer = output.writer();

        writer.write_all(b"hello ").unwrap();
        writer.write_all(b"world").unwrap();
        output.finish(Duration::from_secs(5));

        let mut text = [0; 11];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello world");
    }

    #[test]
    fn only_the_first_byte_signals() {
        let (output, _reader) = pipe(WhenFull::Wait);
        let mut writer = output.writer();

        writer.write_all(b"a").unwrap();
        writer.write_all(b"b").unwrap();

        assert_eq!(output.filled().read().unwrap(), 1);
    }

    #[test]
    fn first_byte_goes_on_at_once_and_those_behind_it_together() {
        let (mut output, mut reader) = pipe(WhenFull::Wait);
        let mut writer = output.writer();

        writer.write_all(b"a").unwrap();
        assert!(output.wants_to_write(Instant::now()).is_some());
        output.pass_on();
        writer.write_all(b"b").unwrap();
        let due = output.deadline(output.not_before - PAUSE).unwrap();
        assert!(output.wants_to_write(due - PAUSE).is_none());
        writer.write_all(b"c").unwrap();
        assert!(output.wants_to_write(due).is_some());
        assert_eq!(output.deadline(due), None);
        output.pass_on();

        let mut text = [0; 4];
        assert_eq!(reader.read(&mut text).unwrap(), 3);
        assert_eq!(&text[..3], b"abc");
    }

    #[test]
    fn full_buffer_drops_where_nobody_listens() {
        let (output, _reader) = pipe(WhenFull::Drop);
        let mut writer = output.writer();

        writer.write_all(&[0; CAPACITY]).unwrap();

        assert_eq!(writer.write(b"x").unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn closing_frees_a_writer_that_waits() {
        let (output, _reader) = pipe(WhenFull::Wait);
        let mut writer = output.writer();
        writer.write_all(&[0; CAPACITY]).unwrap();

        let waiting = thread::spawn(move || writer.write(b"x").unwrap());
        output.close();

        assert_eq!(waiting.join().unwrap(), 1);
    }

    #[test]
    fn reader_that_has_gone_is_not_waited_for() {
        let (mut output, reader) = pipe(WhenFull::Wait);
        let mut writer = output.writer();
        drop(reader);
        writer.write_all(b"x").unwrap();

        output.finish(Duration::from_secs(5));
        writer.write_all(&[0; 2 * CAPACITY]).unwrap();

        assert!(output.unwritten().is_none());
    }
}
