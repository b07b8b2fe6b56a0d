//! A minivmm under test: started with flags, watched through its console, waited for with deadlines.
//!
//! Made for scenarios, so everything that does not come about panics with a sentence and what the guest last said. The
//! machine's console is minivmm's standard output; nothing here polls or sleeps. Dropping a [`Vm`] kills it.

use crate::guest;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything a guest does by itself may take: booting in an emulated processor takes 10 s, on a loaded machine
/// 30.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// The kernel keeps this many bytes of its command line, terminator included (COMMAND_LINE_SIZE on x86).
const CMDLINE_MAX_BYTES: usize = 2048;
/// How much of a console is shown.
const TAIL_BYTES: usize = 4000;

/// Everything started so far, for the report of a failure.
static STARTED: Mutex<Vec<Watched>> = Mutex::new(Vec::new());

#[derive(Clone)]
struct Watched {
    command: String,
    console: Arc<Stream>,
    log: Arc<Stream>,
}

/// The flags of a machine to start.
#[derive(Debug, Clone)]
pub struct Builder {
    minivmm: PathBuf,
    flags: Vec<String>,
    cmdline: Vec<String>,
    patience: Duration,
}

impl Builder {
    /// A machine without any flag.
    pub fn new(minivmm: &Path) -> Self {
        Self { minivmm: minivmm.to_path_buf(), flags: Vec::new(), cmdline: Vec::new(), patience: PATIENCE }
    }

    /// `--kernel`.
    #[must_use]
    pub fn kernel(self, path: impl AsRef<Path>) -> Self {
        self.flag("--kernel", path.as_ref().display())
    }

    /// `--initrd`.
    #[must_use]
    pub fn initrd(self, path: impl AsRef<Path>) -> Self {
        self.flag("--initrd", path.as_ref().display())
    }

    /// `--cpus`.
    #[must_use]
    pub fn cpus(self, count: u32) -> Self {
        self.flag("--cpus", count)
    }

    /// `--mem`.
    #[must_use]
    pub fn mem(self, size: &str) -> Self {
        self.flag("--mem", size)
    }

    /// One more `--net`.
    #[must_use]
    pub fn net(self, spec: impl std::fmt::Display) -> Self {
        self.flag("--net", spec)
    }

    /// One more `--disk`.
    #[must_use]
    pub fn disk(self, spec: impl std::fmt::Display) -> Self {
        self.flag("--disk", spec)
    }

    /// `--name`.
    #[must_use]
    pub fn name(self, name: &str) -> Self {
        self.flag("--name", name)
    }

    /// Any other flag with its value.
    #[must_use]
    pub fn flag(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.flags.extend([name.to_owned(), value.to_string()]);
        self
    }

    /// One more word on the kernel's command line.
    #[must_use]
    pub fn parameter(mut self, word: &str) -> Self {
        self.cmdline.push(word.to_owned());
        self
    }

    /// The script that the guest runs once it is up; afterwards it powers off.
    #[must_use]
    pub fn script(self, script: &str) -> Self {
        self.parameter(&guest::script_parameter(script))
    }

    /// How long anything that the machine does by itself may take, [`PATIENCE`] unless given.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The command line, as a user would type it.
    pub fn command_line(&self) -> String {
        let mut line = "minivmm".to_owned();
        for word in self.arguments() {
            line.push(' ');
            let plain = !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || "'\"$&|;<>()*?".contains(c));
            line.push_str(&if plain { word } else { format!("'{word}'") });
        }
        line
    }

    /// Starts it.
    pub fn start(&self) -> Vm {
        Vm::start(Command::new(&self.minivmm).args(self.arguments()), self.patience)
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = self.flags.clone();
        let cmdline = self.cmdline.join(" ");
        // minivmm's own defaults, some 100 bytes, have to fit too.
        assert!(cmdline.len() + 256 < CMDLINE_MAX_BYTES, "The script is too long for a kernel command line");
        if !cmdline.is_empty() {
            arguments.extend(["--cmdline".to_owned(), cmdline]);
        }
        arguments
    }
}

/// A running or ended machine.
pub struct Vm {
    pid: Pid,
    stdin: Arc<Mutex<ChildStdin>>,
    watched: Watched,
    end: Arc<(Mutex<Option<ExitStatus>>, Condvar)>,
    patience: Duration,
}

impl Vm {
    /// Starts a VMM whose standard output is the guest's console, and which is to do everything within `patience`.
    pub fn start(command: &mut Command, patience: Duration) -> Self {
        let line = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{line} did not start: {error}"));
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            unreachable!("all three were asked for")
        };
        let watched =
            Watched { command: line, console: Stream::watch(stdout, patience), log: Stream::watch(stderr, patience) };
        lock(&STARTED).push(watched.clone());
        let pid = Pid::from_raw(child.id().cast_signed());
        let end = Arc::new((Mutex::new(None), Condvar::new()));
        let vm = Self { pid, stdin: Arc::new(Mutex::new(stdin)), watched, end: Arc::clone(&end), patience };
        thread::spawn(move || note_end(child, &end));
        vm
    }

    /// Waits until the guest's console has `text`.
    pub fn wait_for(&self, text: &str) {
        self.watched.console.wait_for(text);
    }

    /// Waits for the guest's ready line and returns what it says.
    pub fn wait_for_ready(&self) -> serde_json::Value {
        let line = self.watched.console.wait_for_line(guest::READY);
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("The ready line {line:?} is not JSON: {error}"))
    }

    /// Waits for the end of the guest's script and returns its exit code.
    pub fn wait_for_script(&self) -> i32 {
        let line = self.watched.console.wait_for_line(guest::SCRIPT_EXIT);
        line.trim().parse().unwrap_or_else(|error| panic!("The script's exit code {line:?} is none: {error}"))
    }

    /// Waits for the end of minivmm and returns its exit code.
    pub fn wait_exit(&self) -> i32 {
        let status = self.wait_status();
        status.code().unwrap_or_else(|| panic!("minivmm ended with {status}"))
    }

    /// The rest of the first line on the console that starts with `start`, or nothing if the machine ends or `patience`
    /// runs out before it.
    pub fn said_within(&self, start: &str, patience: Duration) -> Option<String> {
        self.watched.console.line_within(start, patience).ok()
    }

    /// minivmm's exit code, or nothing if a signal or the end of `patience` comes first.
    pub fn exit_within(&self, patience: Duration) -> Option<i32> {
        self.status_within(patience)?.code()
    }

    /// Everything the guest has said on its console.
    pub fn console(&self) -> String {
        self.watched.console.text()
    }

    /// Returns whether the guest has said `text` on its console.
    pub fn console_contains(&self, text: &str) -> bool {
        self.console().contains(text)
    }

    /// The guest's output between `NAME=` and the end of that line.
    pub fn value(&self, name: &str) -> String {
        self.watched.console.wait_for_line(&format!("{name}="))
    }

    /// Like [`Vm::value`], for what takes longer than anything that guests do by themselves.
    pub fn value_within(&self, name: &str, patience: Duration) -> String {
        let start = format!("{name}=");
        let line = self.watched.console.line_within(&start, patience);
        line.unwrap_or_else(|why| panic!("{start:?} was not said: {why}"))
    }

    /// Everything minivmm has written to its standard error.
    pub fn log(&self) -> String {
        self.watched.log.text()
    }

    /// Waits until minivmm says that every card has an address, and returns what it says.
    pub fn ready_line(&self) -> serde_json::Value {
        let line = self.watched.log.wait_for_line("{");
        serde_json::from_str(&format!("{{{line}")).unwrap_or_else(|error| panic!("{{{line} is not JSON: {error}"))
    }

    /// Waits until minivmm's standard error has `text`.
    pub fn wait_for_log(&self, text: &str) {
        self.watched.log.wait_for(text);
    }

    /// Types into the guest's console.
    pub fn type_in(&self, text: &str) {
        lock(&self.stdin).write_all(text.as_bytes()).unwrap_or_else(|error| panic!("minivmm takes no input: {error}"));
    }

    /// Connects the console to a user until minivmm ends, and returns its exit code. What is read from `input` after
    /// that is lost: a read cannot be called off.
    pub fn connect(self, mut input: impl Read + Send + 'static, output: impl Write + Send + 'static) -> i32 {
        lock(&self.watched.console.state).copy = Some(Box::new(output));
        let keyboard = Arc::clone(&self.stdin);
        thread::spawn(move || {
            let mut piece = [0; 256];
            while let Ok(count @ 1..) = input.read(&mut piece) {
                if lock(&keyboard).write_all(piece.get(..count).unwrap_or_default()).is_err() {
                    return;
                }
            }
        });
        self.watched.console.wait_for_end();
        self.wait_exit()
    }

    /// The names of minivmm's threads.
    pub fn threads(&self) -> Vec<String> {
        let supervisor = self.pid.as_raw().cast_unsigned();
        let tasks = format!("/proc/{}/task", vmm_of(supervisor).unwrap_or(supervisor));
        let tasks = std::fs::read_dir(&tasks).unwrap_or_else(|error| panic!("{tasks} cannot be read: {error}"));
        // A thread that ends meanwhile has no name.
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.map(|name| name.trim_end().to_owned()).collect()
    }

    /// Sends minivmm a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).unwrap_or_else(|error| panic!("minivmm cannot be signalled: {error}"));
    }

    fn wait_status(&self) -> ExitStatus {
        let patience = self.patience;
        self.status_within(patience).unwrap_or_else(|| panic!("minivmm did not end within {patience:?}"))
    }

    fn status_within(&self, patience: Duration) -> Option<ExitStatus> {
        let (end, changed) = &*self.end;
        let status = changed.wait_timeout_while(lock(end), patience, |status| status.is_none());
        *status.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if lock(&self.end.0).is_none() {
            // It may end this very moment.
            let _gone = kill(self.pid, Signal::SIGKILL);
            self.wait_status();
        }
    }
}

/// The output of every machine started so far: for the report of a failure.
pub fn last_words() -> String {
    let mut text = String::new();
    for watched in lock(&STARTED).iter() {
        text.push_str(&format!(
            "--- {}\n--- its console ends with:\n{}\n--- its standard error ends with:\n{}\n",
            watched.command,
            tail(&watched.console.text()),
            tail(&watched.log.text())
        ));
    }
    text
}

/// The VMM that a process supervises.
pub fn vmm_of(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let is_vmm = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "vmm\n");
    children.split_whitespace().filter_map(|child| child.parse().ok()).find(is_vmm)
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(TAIL_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text.get(start..).unwrap_or_default()
}

fn note_end(mut child: Child, end: &(Mutex<Option<ExitStatus>>, Condvar)) {
    let status = child.wait().unwrap_or_else(|error| panic!("A child cannot be waited for: {error}"));
    *lock(&end.0) = Some(status);
    end.1.notify_all();
}

/// The output of a pipe, kept whole, with a bell for those who wait for a text in it.
struct Stream {
    state: Mutex<State>,
    changed: Condvar,
    patience: Duration,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
    /// Where everything that comes from now on goes as well.
    copy: Option<Box<dyn Write + Send>>,
}

impl Stream {
    fn watch(mut pipe: impl Read + Send + 'static, patience: Duration) -> Arc<Self> {
        let stream = Arc::new(Self { state: Mutex::default(), changed: Condvar::new(), patience });
        let writer = Arc::clone(&stream);
        thread::spawn(move || {
            let mut piece = [0; 4096];
            loop {
                let count = pipe.read(&mut piece).unwrap_or(0);
                let mut state = lock(&writer.state);
                let piece = piece.get(..count).unwrap_or_default();
                state.bytes.extend_from_slice(piece);
                if let Some(copy) = &mut state.copy {
                    // A user who has gone misses nothing.
                    let _gone = copy.write_all(piece).and_then(|()| copy.flush());
                }
                state.ended = count == 0;
                writer.changed.notify_all();
                if state.ended {
                    return;
                }
            }
        });
        stream
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.state).bytes).into_owned()
    }

    fn wait_for(&self, text: &str) {
        self.wait(text, |seen| seen.contains(text).then_some(()));
    }

    fn wait_for_end(&self) {
        let ended = self.changed.wait_while(lock(&self.state), |state| !state.ended);
        drop(ended);
    }

    /// The rest of the first whole line that starts with `start`.
    fn wait_for_line(&self, start: &str) -> String {
        self.line_within(start, self.patience).unwrap_or_else(|why| panic!("{start:?} was not said: {why}"))
    }

    fn line_within(&self, start: &str, patience: Duration) -> Result<String, &'static str> {
        self.within(patience, |seen| {
            let whole = seen.get(..seen.rfind('\n')?)?;
            whole.lines().find_map(|line| line.trim_end().strip_prefix(start)).map(str::to_owned)
        })
    }

    fn wait<T>(&self, wanted: &str, found: impl Fn(&str) -> Option<T>) -> T {
        // The report of the panic reads the stream too, which is not locked any more.
        self.within(self.patience, found).unwrap_or_else(|why| panic!("{wanted:?} was not said: {why}"))
    }

    /// The result of `found` in all that was said, or why it found nothing.
    fn within<T>(&self, patience: Duration, found: impl Fn(&str) -> Option<T>) -> Result<T, &'static str> {
        let deadline = Instant::now() + patience;
        let mut state = lock(&self.state);
        loop {
            if let Some(value) = found(&String::from_utf8_lossy(&state.bytes)) {
                return Ok(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return Err(if state.ended { "minivmm ended first" } else { "its time is up" });
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
