//! The host VM: a stock Debian kernel with AMD-V of its own, inside QEMU.
//!
//! It gives a machine without hardware virtualization a `/dev/kvm` that boots Linux guests, with every kernel module,
//! and it keeps whatever a test does to its network away from the machine outside. Inside, the outer machine's root is
//! visible at the same paths: read through 9p, written to memory that is gone at power-off. One folder, the results
//! share, is written through to the outside, also at the same path.
//!
//! Commands run through the agent (`agent`), one [`HostVm::run`] each, with separate standard output and error, an exit
//! code and a deadline. A host VM that stops answering is reported as such, with the tail of its console; dropping the
//! [`HostVm`] ends its QEMU in every case.
//!
//! It has one CPU on purpose: with two, QEMU's emulation loses interrupts of nested guests. Time measured inside is
//! worth only what a ratio between two things in the same run is worth.

pub mod agent;
pub mod initramfs;
pub mod keep;
pub mod kernel;
pub mod qemu;
pub mod wire;

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use wire::{Command, Frame, Message, Status};

/// How long a host VM may take from the start of QEMU to the agent's first word. It takes 5 s on an idle machine.
const BOOT_DEADLINE: Duration = Duration::from_secs(180);
/// The time beyond a command's own timeout before the host VM counts as hung.
const ANSWER_GRACE: Duration = Duration::from_secs(60);
/// How long powering off may take before QEMU is killed.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(30);
/// How often the host VM's processor is woken. One with two guests of its own stood still once until the next command
/// came in; a lost timer interrupt would explain that, which has not been shown.
const BEAT: Duration = Duration::from_millis(200);
/// Input goes in in pieces of at most this size.
const INPUT_PIECE_BYTES: usize = 4096;
/// How long a host VM may leave the control channel unread.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);
/// How much of the console goes into an error.
const CONSOLE_TAIL_BYTES: usize = 3000;

/// A failure of a host VM, as opposed to one of a command in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder outside could not be read or written.
    #[error("{action} {path:?} failed")]
    File {
        /// The operation, as a verb form: "Reading".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program of the outer machine could not be started.
    #[error("Program {program:?} could not be started (./run installs it)")]
    Start {
        /// Its name.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// A program of the outer machine failed.
    #[error("Program {program:?} failed: {stderr}")]
    Failed {
        /// Its name.
        program: String,
        /// The text on its standard error.
        stderr: String,
    },
    /// No package of the wanted kernel is known to apt.
    #[error("No package matches {pattern:?}; see `apt-cache search --names-only linux-image`")]
    NoKernelPackage {
        /// The pattern of the names.
        pattern: String,
    },
    /// The initramfs cannot be made.
    #[error("Initramfs of the host VM cannot be made")]
    Images(#[from] images::Error),
    /// The host VM ended before or while a command ran.
    #[error("Host VM ended unexpectedly; its console ends with:\n{console}")]
    Ended {
        /// The console's tail.
        console: String,
    },
    /// The host VM does not answer.
    #[error("Host VM gave no answer for {seconds} s; its console ends with:\n{console}")]
    Hung {
        /// How long was waited.
        seconds: u64,
        /// The console's tail.
        console: String,
    },
    /// The control channel failed.
    #[error("Control channel of the host VM failed")]
    Channel(#[source] io::Error),
}

/// The parameters of a host VM.
#[derive(Debug, Clone)]
pub struct Config {
    /// Memory in MiB.
    pub mem_mib: u32,
    /// The folder that is written through to the outside, at the same path inside; it is created if it is missing.
    pub results: PathBuf,
    /// How its CPU comes about.
    pub accel: qemu::Accel,
}

impl Config {
    /// The usual host VM: emulated, with room for a guest of 6 GiB where `mem_mib` says so.
    pub fn new(results: &Path) -> Self {
        Self { mem_mib: 4096, results: results.to_path_buf(), accel: qemu::Accel::Tcg }
    }
}

/// The result of a command in the host VM.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

type Waiting = Arc<Mutex<HashMap<u32, Sender<Message>>>>;

/// A running host VM.
pub struct HostVm {
    qemu: Child,
    writer: Arc<Mutex<UnixStream>>,
    waiting: Waiting,
    reader: Option<JoinHandle<()>>,
    heart: Option<(Sender<()>, JoinHandle<()>)>,
    next_id: AtomicU32,
    console: PathBuf,
    // Holds the initramfs and the console log.
    _folder: tempfile::TempDir,
}

impl HostVm {
    /// Boots a host VM and returns when its agent answers.
    ///
    /// The first call on a machine downloads the kernel package (about 107 MB) into the cache.
    ///
    /// # Errors
    /// Whatever keeps it from coming up; the error carries the console's tail where there is one.
    pub fn boot(config: &Config) -> Result<Self, Error> {
        let machine = qemu::Machine::prepare(config)?;
        let (ours, theirs) = UnixStream::pair().map_err(Error::Channel)?;
        let qemu = machine.start(theirs)?;
        let console = machine.console();
        let waiting: Waiting = Arc::default();
        let (ready, first_word) = mpsc::channel();
        lock(&waiting).insert(wire::READY_ID, ready);
        let incoming = ours.try_clone().map_err(Error::Channel)?;
        let reader = {
            let waiting = Arc::clone(&waiting);
            thread::spawn(move || dispatch(incoming, &waiting))
        };
        ours.set_write_timeout(Some(WRITE_DEADLINE)).map_err(Error::Channel)?;
        let writer = Arc::new(Mutex::new(ours));
        let (stop, stopped) = mpsc::channel();
        let heart = {
            let writer = Arc::clone(&writer);
            thread::spawn(move || beat(&writer, &stopped))
        };
        let vm = Self {
            qemu,
            writer,
            waiting,
            reader: Some(reader),
            heart: Some((stop, heart)),
            next_id: AtomicU32::new(wire::READY_ID + 1),
            console,
            _folder: machine.into_folder(),
        };
        vm.next(&first_word, Instant::now() + BOOT_DEADLINE, BOOT_DEADLINE)?;
        Ok(vm)
    }

    /// Runs a command to its end and returns what it wrote. After `timeout` the agent kills it and everything in its
    /// process group.
    ///
    /// # Errors
    /// Only the host VM's own failures; a command that cannot be started or fails is an [`Output`].
    pub fn run(&self, command: Command, timeout: Duration) -> Result<Output, Error> {
        let mut output = Output { status: Status::Code(0), stdout: Vec::new(), stderr: Vec::new() };
        output.status = self.stream(command, timeout, &mut |message| match message {
            Message::Stdout(bytes) => output.stdout.extend_from_slice(&bytes),
            Message::Stderr(bytes) => output.stderr.extend_from_slice(&bytes),
            _ => {}
        })?;
        Ok(output)
    }

    /// Runs a command like [`HostVm::run`], handing over its output as it comes.
    ///
    /// # Errors
    /// As for [`HostVm::run`].
    pub fn stream(&self, command: Command, timeout: Duration, sink: &mut dyn FnMut(Message)) -> Result<Status, Error> {
        self.stream_with_input(command, timeout, None, sink)
    }

    /// Runs a command like [`HostVm::stream`], with standard input. What is read from `input` after the command's end
    /// is lost: a read cannot be called off.
    ///
    /// # Errors
    /// As for [`HostVm::run`].
    pub fn stream_with_input(
        &self,
        mut command: Command,
        timeout: Duration,
        input: Option<Box<dyn Read + Send>>,
        sink: &mut dyn FnMut(Message),
    ) -> Result<Status, Error> {
        command.timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        command.takes_input = input.is_some();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel();
        lock(&self.waiting).insert(id, sender);
        let result = self.send(&Frame { id, message: Message::Run(command) }).and_then(|()| {
            if let Some(input) = input {
                let writer = Arc::clone(&self.writer);
                thread::spawn(move || feed(&writer, id, input));
            }
            let patience = timeout.saturating_add(ANSWER_GRACE);
            let deadline = Instant::now() + patience;
            loop {
                match self.next(&receiver, deadline, patience)? {
                    Message::Exit(status) => return Ok(status),
                    other => sink(other),
                }
            }
        });
        lock(&self.waiting).remove(&id);
        result
    }

    /// Powers the host VM off and waits for its QEMU.
    ///
    /// # Errors
    /// [`Error::Hung`] if it had to be killed.
    pub fn shutdown(mut self) -> Result<(), Error> {
        self.send(&Frame { id: wire::READY_ID, message: Message::Shutdown })?;
        let (done, ended) = mpsc::channel::<()>();
        // The reader ends with QEMU's end of the channel.
        let reader = self.reader.take();
        let waiter = thread::spawn(move || {
            let _joined = reader.map(JoinHandle::join);
            drop(done);
        });
        match ended.recv_timeout(SHUTDOWN_DEADLINE) {
            Err(RecvTimeoutError::Disconnected) | Ok(()) => {
                let _joined = waiter.join();
                Ok(())
            }
            Err(RecvTimeoutError::Timeout) => Err(self.hung(SHUTDOWN_DEADLINE)),
        }
    }

    /// The tail of the host VM's console.
    pub fn console_tail(&self) -> String {
        let bytes = std::fs::read(&self.console).unwrap_or_default();
        let start = bytes.len().saturating_sub(CONSOLE_TAIL_BYTES);
        String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned()
    }

    fn send(&self, frame: &Frame) -> Result<(), Error> {
        say(&self.writer, frame).map_err(Error::Channel)
    }

    fn next(&self, from: &Receiver<Message>, deadline: Instant, patience: Duration) -> Result<Message, Error> {
        match from.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(message) => Ok(message),
            Err(RecvTimeoutError::Timeout) => Err(self.hung(patience)),
            Err(RecvTimeoutError::Disconnected) => Err(Error::Ended { console: self.console_tail() }),
        }
    }

    fn hung(&self, waited: Duration) -> Error {
        Error::Hung { seconds: waited.as_secs(), console: self.console_tail() }
    }
}

impl Drop for HostVm {
    fn drop(&mut self) {
        // A QEMU that has ended already cannot be killed, and that is the usual case.
        let _gone = self.qemu.kill();
        let _status = self.qemu.wait();
        if let Some(reader) = self.reader.take() {
            let _joined = reader.join();
        }
        if let Some((stop, heart)) = self.heart.take() {
            drop(stop);
            let _joined = heart.join();
        }
    }
}

fn say(writer: &Mutex<UnixStream>, frame: &Frame) -> io::Result<()> {
    frame.write(&mut *writer.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Passes a command's input on, up to and including its end.
fn feed(writer: &Mutex<UnixStream>, id: u32, mut input: Box<dyn Read + Send>) {
    let mut piece = [0; INPUT_PIECE_BYTES];
    loop {
        // An input that fails has ended.
        let count = input.read(&mut piece).unwrap_or(0);
        let bytes = piece.get(..count).unwrap_or_default().to_vec();
        if say(writer, &Frame { id, message: Message::Stdin(bytes) }).is_err() || count == 0 {
            return;
        }
    }
}

/// Interrupts the host VM's processor every now and then, until the channel or the host VM ends.
fn beat(writer: &Mutex<UnixStream>, stopped: &Receiver<()>) {
    while stopped.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
        if say(writer, &Frame { id: wire::READY_ID, message: Message::Beat }).is_err() {
            return;
        }
    }
}

fn lock(waiting: &Waiting) -> std::sync::MutexGuard<'_, HashMap<u32, Sender<Message>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands every frame to whoever waits for its id, until the channel ends; then no one has to wait any more.
fn dispatch(mut incoming: UnixStream, waiting: &Waiting) {
    while let Ok(frame) = Frame::read(&mut incoming) {
        // No one waits for the rest of a command that was given up.
        if let Some(sender) = lock(waiting).get(&frame.id) {
            let _given_up = sender.send(frame.message);
        }
    }
    lock(waiting).clear();
}
