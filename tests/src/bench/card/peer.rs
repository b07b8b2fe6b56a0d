//! The host's side of a run: frames written to and read from taps by plain `writev` and `readv`, and a thread that
//! sends frames back.

use super::frame::{HEADERS_BYTES, PAYLOAD_AT, PEER_MAC, Shape, headers};
use super::tap::{HEADER_BYTES, Tap};
use crate::bench::clock;
use nix::poll::{PollFd, PollFlags, poll};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// Flows of a writer: enough to give every one of 4 queues some.
const FLOWS: u16 = 64;
/// How often one that waits looks whether it shall end.
const WAIT_MS: u16 = 20;
/// The guest has that many receive buffers of that size and uses them in turns, so the plain reader does too.
const BUFFER_BYTES: usize = 4096;
const BUFFERS: usize = 256;
/// As many as the longest frame takes.
const FRAME_BUFFERS: usize = 17;
/// Where the host's stamp is: behind the guest's number.
const STAMP_AT: usize = PAYLOAD_AT + 8;

/// Writes frames, one after the other, of many flows.
pub(super) struct Writer {
    tap: Tap,
    heads: Vec<[u8; HEADERS_BYTES]>,
    head_bytes: usize,
    rest: Vec<u8>,
    next: usize,
}

impl Writer {
    /// Frames of one shape, from one address to another.
    pub(super) fn new(tap: Tap, shape: Shape, from: [u8; 6], to: [u8; 6]) -> Self {
        Self {
            tap,
            heads: (0..FLOWS).map(|flow| headers(from, to, shape, flow)).collect(),
            head_bytes: HEADERS_BYTES.min(HEADER_BYTES + shape.bytes),
            rest: vec![0; (HEADER_BYTES + shape.bytes).saturating_sub(HEADERS_BYTES)],
            next: 0,
        }
    }

    /// Writes a number of frames.
    ///
    /// # Errors
    /// If the kernel refuses one.
    pub(super) fn write(&mut self, frames: u64) -> io::Result<()> {
        for _ in 0..frames {
            let head = &self.heads[self.next % self.heads.len()][..self.head_bytes];
            self.next += 1;
            let written = self.tap.queue.write_vectored(&[IoSlice::new(head), IoSlice::new(&self.rest)])?;
            if written != head.len() + self.rest.len() {
                return Err(io::Error::other("a frame was cut"));
            }
        }
        Ok(())
    }
}

/// Reads what waits in a tap into buffers as a guest has them. Returns how many frames were for `to`.
///
/// # Errors
/// If the tap cannot be read.
pub(super) fn drain(tap: &mut Tap, to: [u8; 6]) -> io::Result<u64> {
    let mut buffers = vec![[0_u8; BUFFER_BYTES]; BUFFERS];
    let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
    let (mut frames, mut at) = (0, 0);
    loop {
        if at + FRAME_BUFFERS > BUFFERS {
            at = 0;
        }
        match tap.queue.read_vectored(&mut slices[at..at + FRAME_BUFFERS]) {
            Ok(len) => {
                frames += u64::from(slices[at][HEADER_BYTES..HEADER_BYTES + 6] == to);
                at += len.div_ceil(BUFFER_BYTES);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(frames),
            Err(error) => return Err(error),
        }
    }
}

/// A thread that sends every UDP frame which comes for the peer back to its sender, with the time of its arrival in it.
/// It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Starts it.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(super) fn start(mut tap: Tap) -> io::Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let is_over = stop.clone();
        let thread = thread::Builder::new().name("echo".to_owned()).spawn(move || {
            let mut frame = [0; 2048];
            while !is_over.load(Ordering::Relaxed) {
                match tap.queue.read(&mut frame) {
                    Ok(len) => send_back(&mut tap, &mut frame[..len]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        // Whatever the reason it returns for, the next read shows what there is.
                        let _ready = poll(&mut [PollFd::new(tap.queue.as_fd(), PollFlags::POLLIN)], WAIT_MS);
                    }
                    // The guest then reports frames that do not come back.
                    Err(_) => return,
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _panicked = thread.join();
        }
    }
}

fn send_back(tap: &mut Tap, frame: &mut [u8]) {
    let now = clock::ticks();
    if frame.len() < STAMP_AT + 8 || frame[HEADER_BYTES..HEADER_BYTES + 6] != PEER_MAC {
        return;
    }
    frame.copy_within(HEADER_BYTES + 6..HEADER_BYTES + 12, HEADER_BYTES);
    frame[HEADER_BYTES + 6..HEADER_BYTES + 12].copy_from_slice(&PEER_MAC);
    frame[STAMP_AT..STAMP_AT + 8].copy_from_slice(&now.to_le_bytes());
    // The guest notices a frame that does not come back.
    let _lost = tap.queue.write(frame);
}
