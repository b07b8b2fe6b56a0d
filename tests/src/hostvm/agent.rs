//! The agent in the host VM: runs the commands that come over the control channel.
//!
//! It is this same binary, started by the initramfs. A command gets a process group of its own, two or three pipes;
//! when its time is up the group is killed. What a command leaves running in the background stays, and keeps no one
//! waiting. The agent ends when it is told to, or when the outer end of the channel closes; the host VM then powers
//! off.

use super::wire::{Command, Frame, Message, READY_ID, Status};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The name of the virtio-serial port that carries the control channel.
pub const PORT_NAME: &str = "minivmm.control";
/// Output goes out in pieces of at most this size.
const PIECE_BYTES: usize = 32 << 10;
/// How long the rest of a finished command's output is waited for, in case a background process holds its pipes.
const DRAIN_DEADLINE: Duration = Duration::from_millis(500);

type Channel = Arc<Mutex<File>>;
/// The commands that take input, by id.
type Inputs = Arc<Mutex<HashMap<u32, ChildStdin>>>;

/// Serves the control channel until the outer end says or shows that it is over.
///
/// # Errors
/// If the port cannot be found or opened.
pub fn serve() -> io::Result<()> {
    let mut incoming = OpenOptions::new().read(true).write(true).open(port()?)?;
    let channel: Channel = Arc::new(Mutex::new(incoming.try_clone()?));
    let inputs = Inputs::default();
    say(&channel, READY_ID, Message::Ready);
    loop {
        match Frame::read(&mut incoming) {
            Ok(Frame { id, message: Message::Run(command) }) => {
                let channel = Arc::clone(&channel);
                let inputs = Arc::clone(&inputs);
                thread::spawn(move || {
                    forget_outer_names();
                    let status = run(&channel, &inputs, id, &command);
                    lock(&inputs).remove(&id);
                    say(&channel, id, Message::Exit(status));
                });
            }
            Ok(Frame { id, message: Message::Stdin(bytes) }) => feed(&inputs, id, &bytes),
            Ok(Frame { message: Message::Shutdown, .. }) | Err(_) => return Ok(()),
            Ok(_) => {}
        }
    }
}

/// Finds the port by the name QEMU gave it: the device nodes themselves are only numbered.
fn port() -> io::Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name"))?.trim_end() == PORT_NAME {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "No virtio-serial port for the control channel"))
}

/// Files that appear outside after their name was looked up here would stay invisible in the overlay.
fn forget_outer_names() {
    // Not vital: a command that meets a stale name fails visibly.
    let _stale = fs::write("/proc/sys/vm/drop_caches", "2");
}

fn say(channel: &Channel, id: u32, message: Message) {
    let mut to = lock(channel);
    // With the outer end gone the reading side ends the agent.
    let _gone = Frame { id, message }.write(&mut *to);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands input to its command. A command that leaves it unread keeps the others waiting, so it is for keys, not for
/// files.
fn feed(inputs: &Inputs, id: u32, bytes: &[u8]) {
    let mut inputs = lock(inputs);
    let Some(input) = inputs.get_mut(&id) else { return };
    if bytes.is_empty() || input.write_all(bytes).is_err() {
        inputs.remove(&id);
    }
}

fn run(channel: &Channel, inputs: &Inputs, id: u32, command: &Command) -> Status {
    let deadline = Instant::now() + Duration::from_millis(command.timeout_ms);
    let mut child = match start(command) {
        Ok(child) => child,
        Err(error) => {
            let program = command.argv.first().map_or("", String::as_str);
            say(channel, id, Message::Stderr(format!("Starting {program:?} failed: {error}\n").into_bytes()));
            return Status::Code(127);
        }
    };
    let group = Pid::from_raw(child.id().cast_signed());
    if let Some(input) = child.stdin.take() {
        lock(inputs).insert(id, input);
    }
    let (drained, all_drained) = mpsc::channel();
    if let Some(pipe) = child.stdout.take() {
        forward(channel, id, pipe, Message::Stdout, drained.clone());
    }
    if let Some(pipe) = child.stderr.take() {
        forward(channel, id, pipe, Message::Stderr, drained.clone());
    }
    drop(drained);
    let (ended, end) = mpsc::channel();
    thread::spawn(move || ended.send(child.wait()));
    let status = match end.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(status) => status.map_or(Status::Code(127), describe),
        Err(_) => {
            // It may have ended this very moment; then there is nothing to kill.
            let _gone = killpg(group, Signal::SIGKILL);
            let _status = end.recv();
            Status::TimedOut
        }
    };
    // Both forwarders drop their senders at the end of their pipes.
    let _timeout = all_drained.recv_timeout(DRAIN_DEADLINE);
    status
}

fn start(command: &Command) -> io::Result<Child> {
    let (program, arguments) = command.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    std::process::Command::new(program)
        .args(arguments)
        .envs(command.env.iter().map(|(name, value)| (name, value)))
        .current_dir(command.dir.as_deref().unwrap_or("/"))
        .stdin(if command.takes_input { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
}

fn describe(status: ExitStatus) -> Status {
    match (status.code(), status.signal()) {
        (Some(code), _) => Status::Code(code),
        (None, Some(signal)) => Status::Signal(signal),
        (None, None) => Status::Code(127),
    }
}

fn forward(
    channel: &Channel,
    id: u32,
    mut pipe: impl Read + Send + 'static,
    wrap: fn(Vec<u8>) -> Message,
    drained: Sender<()>,
) {
    let channel = Arc::clone(channel);
    thread::spawn(move || {
        let mut piece = vec![0; PIECE_BYTES];
        while let Ok(count) = pipe.read(&mut piece) {
            if count == 0 {
                break;
            }
            say(&channel, id, wrap(piece.get(..count).unwrap_or_default().to_vec()));
        }
        drop(drained);
    });
}
