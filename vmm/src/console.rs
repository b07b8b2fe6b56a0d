//! The guest's serial port on the host: where its output goes and where its input comes from.
//!
//! Output is buffered by [`output`] and written by the control loop, so a vCPU never waits in a system call of the
//! console. What happens to a reader that is too slow depends on where the console is: on stdio and in a file the guest
//! waits (nothing is lost, and a stop still works); on a pty, where usually no program is listening, the excess is
//! dropped. Input is read by the control loop, no faster than the guest takes it.

pub(crate) mod input;
pub(crate) mod output;
pub(crate) mod terminal;

use crate::cli::ConsoleSpec;
use crate::folder::Folder;
use crate::logger;
use input::{Input, Keys};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use output::{Output, WhenFull};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use terminal::RawMode;

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file that cannot be written.
    #[error("Cannot open {} for the console", path.display())]
    OpenFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No pseudoterminal.
    #[error("Cannot open a pseudoterminal for the console")]
    OpenPty(#[source] io::Error),
    /// stdin or stdout cannot be used.
    #[error("Cannot use stdin and stdout for the console")]
    Stdio(#[source] io::Error),
}

/// An open console.
pub(crate) struct Console {
    /// Where output goes.
    pub(crate) output: Output,
    /// Where input comes from.
    pub(crate) input: Input,
    stdin: Stdin,
    /// Keeps the pty's other end open.
    _other_end: Option<OwnedFd>,
}

/// The terminal on stdin, if there is one.
enum Stdin {
    /// None.
    NoTerminal,
    /// It is raw, and what is typed is for the guest.
    Raw { _raw: RawMode },
    /// Another job has it: one in the background that touched it would be stopped.
    Away,
}

impl Console {
    /// Opens what `spec` names, with the file of [`open_file`]. A terminal on stdin becomes raw until the console is
    /// dropped.
    ///
    /// # Errors
    /// If a pseudoterminal cannot be opened.
    pub(crate) fn open(spec: &ConsoleSpec, file: Option<File>) -> Result<Self, Error> {
        match spec {
            ConsoleSpec::Stdio => stdio().map_err(Error::Stdio),
            ConsoleSpec::Pty => pty().map_err(Error::OpenPty),
            ConsoleSpec::None | ConsoleSpec::File(_) => to_file(file).map_err(Error::Stdio),
        }
    }

    /// The process is about to pause: gives the terminal back.
    pub(crate) fn pause(&mut self) {
        if let Stdin::Raw { .. } = self.stdin {
            self.input = Input::none();
            self.stdin = Stdin::Away;
        }
    }

    /// Takes the terminal again, if this is the job that has it: the shell or another job has set it up for itself
    /// meanwhile.
    pub(crate) fn resume(&mut self) {
        if matches!(self.stdin, Stdin::NoTerminal) {
            return;
        }
        if !terminal::is_foreground(io::stdin().as_fd()) {
            // Another job's by now: to put it back would change that one's.
            terminal::forget();
            return self.pause();
        }
        self.pause();
        match take_terminal() {
            Ok((stdin, input)) => (self.stdin, self.input) = (stdin, input),
            // Without it the guest has no input, and runs on.
            Err(err) => log::debug!("The terminal cannot be used: {err}"),
        }
    }

    /// Returns whether to [`resume`](Self::resume) now and then: a shell that brings a job to the foreground says
    /// nothing to one that runs.
    pub(crate) fn waits_for_terminal(&self) -> bool {
        matches!(self.stdin, Stdin::Away)
    }
}

/// Opens the file that `spec` names, if it does. A FIFO waits for its reader: so this comes before signals are blocked.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn open_file(spec: &ConsoleSpec) -> Result<Option<File>, Error> {
    let ConsoleSpec::File(path) = spec else { return Ok(None) };
    let file = Folder::of(path).and_then(|(folder, name)| folder.create(&name));
    file.map(Some).map_err(|source| Error::OpenFile { path: path.clone(), source })
}

fn to_file(file: Option<File>) -> io::Result<Console> {
    let when_full = if file.is_some() { WhenFull::Wait } else { WhenFull::Drop };
    let output = Output::new(file, when_full)?;
    Ok(Console { output, input: Input::none(), stdin: Stdin::NoTerminal, _other_end: None })
}

fn stdio() -> io::Result<Console> {
    let output = Output::new(Some(stdout()?), WhenFull::Wait)?;
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let input = match stdin.as_fd().try_clone_to_owned() {
            Ok(fd) => Input::new(File::from(fd), Keys::Plain),
            // stdin is closed: as good as empty.
            Err(_) => Input::none(),
        };
        return Ok(Console { output, input, stdin: Stdin::NoTerminal, _other_end: None });
    }
    let (stdin, input) =
        if terminal::is_foreground(stdin.as_fd()) { take_terminal()? } else { (Stdin::Away, Input::none()) };
    Ok(Console { output, input, stdin, _other_end: None })
}

/// Makes the terminal on stdin raw.
fn take_terminal() -> io::Result<(Stdin, Input)> {
    let stdin = io::stdin();
    let fd = stdin.as_fd().try_clone_to_owned()?;
    let raw = RawMode::enter(stdin.as_fd())?;
    Ok((Stdin::Raw { _raw: raw }, Input::new(File::from(fd), Keys::Escaped)))
}

/// stdout as a file of our own. A terminal is opened anew, to be non-blocking without being so for everybody who shares
/// it.
fn stdout() -> io::Result<File> {
    let stdout = io::stdout();
    if stdout.is_terminal() {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        if let Ok(file) = OpenOptions::new().write(true).custom_flags(flags).open("/proc/self/fd/1") {
            return Ok(file);
        }
    }
    Ok(File::from(stdout.as_fd().try_clone_to_owned()?))
}

fn pty() -> io::Result<Console> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let path = ptsname_r(&master)?;
    let other_end = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path)?;
    let mut termios = tcgetattr(&other_end)?;
    cfmakeraw(&mut termios);
    tcsetattr(&other_end, SetArg::TCSANOW, &termios)?;
    fcntl(&master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
    let master = OwnedFd::from(master);
    logger::tell(&format!("minivmm: console on {path}"));
    let input = Input::new(File::from(master.try_clone()?), Keys::Plain);
    let output = Output::new(Some(File::from(master)), WhenFull::Drop)?;
    Ok(Console { output, input, stdin: Stdin::NoTerminal, _other_end: Some(other_end.into()) })
}
