//! The guest's serial port on the host: where its output goes and where its input comes from.
//!
//! Output is buffered by [`output`] and written by the control loop, so a vCPU never waits in a system call of the console. What
//! happens to a reader that is too slow depends on where the console is: on stdio and in a file the guest waits (nothing is
//! lost, and a stop still works); on a pty, where usually nobody is listening, the excess is dropped.
//! Input is read by the control loop, no faster than the guest takes it.

pub(crate) mod input;
pub(crate) mod output;
pub(crate) mod terminal;

use crate::cli::ConsoleSpec;
use crate::logger;
use input::{Input, Keys};
use output::{Output, WhenFull};
use rustix::fs::OFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::OptionalActions;
use std::fs::{File, OpenOptions};
use std::io;
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
    /// Keeps the terminal raw, or the pty's other end open.
    _keep: Keep,
}

enum Keep {
    Nothing,
    Terminal { _raw: RawMode },
    Pty { _other_end: OwnedFd },
}

impl Console {
    /// Opens what `spec` names. A terminal on stdin becomes raw until the console is dropped.
    ///
    /// # Errors
    /// If a file or pseudoterminal cannot be opened.
    pub(crate) fn open(spec: &ConsoleSpec) -> Result<Self, Error> {
        match spec {
            ConsoleSpec::Stdio => stdio().map_err(Error::Stdio),
            ConsoleSpec::Pty => pty().map_err(Error::OpenPty),
            ConsoleSpec::None => nowhere().map_err(Error::Stdio),
            ConsoleSpec::File(path) => {
                let open_error = |source| Error::OpenFile { path: path.clone(), source };
                let file = File::create(path).map_err(open_error)?;
                Ok(Self {
                    output: Output::new(Some(file), WhenFull::Wait).map_err(open_error)?,
                    input: Input::none(),
                    _keep: Keep::Nothing,
                })
            }
        }
    }
}

fn nowhere() -> io::Result<Console> {
    Ok(Console { output: Output::new(None, WhenFull::Drop)?, input: Input::none(), _keep: Keep::Nothing })
}

fn stdio() -> io::Result<Console> {
    let output = Output::new(Some(stdout()?), WhenFull::Wait)?;
    let stdin = io::stdin();
    if !rustix::termios::isatty(&stdin) {
        let input = match stdin.as_fd().try_clone_to_owned() {
            Ok(fd) => Input::new(File::from(fd), Keys::Plain),
            // stdin is closed: as good as empty.
            Err(_) => Input::none(),
        };
        return Ok(Console { output, input, _keep: Keep::Nothing });
    }
    // A job in the background may not touch the terminal; it would be stopped.
    if !terminal::is_foreground(stdin.as_fd()) {
        return Ok(Console { output, input: Input::none(), _keep: Keep::Nothing });
    }
    let fd = stdin.as_fd().try_clone_to_owned()?;
    let raw = RawMode::enter(stdin.as_fd())?;
    Ok(Console { output, input: Input::new(File::from(fd), Keys::Escaped), _keep: Keep::Terminal { _raw: raw } })
}

/// stdout as a file of our own. A terminal is opened anew, to be non-blocking without being so for everybody who shares it.
fn stdout() -> io::Result<File> {
    let stdout = io::stdout();
    if rustix::termios::isatty(&stdout) {
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
        let anew =
            OpenOptions::new().write(true).custom_flags(i32::try_from(flags).unwrap_or(0)).open("/proc/self/fd/1");
        if let Ok(file) = anew {
            return Ok(file);
        }
    }
    Ok(File::from(stdout.as_fd().try_clone_to_owned()?))
}

fn pty() -> io::Result<Console> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let path = rustix::pty::ptsname(&master, Vec::new())?.to_string_lossy().into_owned();
    let noctty = i32::try_from(OFlags::NOCTTY.bits()).unwrap_or(0);
    let other_end = OpenOptions::new().read(true).write(true).custom_flags(noctty).open(&path)?;
    let mut termios = rustix::termios::tcgetattr(&other_end)?;
    termios.make_raw();
    rustix::termios::tcsetattr(&other_end, OptionalActions::Now, &termios)?;
    rustix::fs::fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK)?;
    logger::tell(&format!("minivmm: console on {path}"));
    let input = Input::new(File::from(master.try_clone()?), Keys::Plain);
    let output = Output::new(Some(File::from(master)), WhenFull::Drop)?;
    Ok(Console { output, input, _keep: Keep::Pty { _other_end: other_end.into() } })
}
