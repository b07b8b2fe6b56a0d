//! Where the line that says "ready" goes: a descriptor that the caller has left open, or stderr.
//!
//! On stderr it cannot be mistaken for another line: it is the only one that begins with `{`.
#![expect(unsafe_code, reason = "a descriptor that is known by its number")]

use crate::console::terminal;
use crate::event;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags};
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Bytes that a writable pipe takes without blocking (POSIX: PIPE_BUF).
const PIECE_BYTES: usize = 4096;

/// How long the reader may take for each piece: the control loop waits.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The descriptor of `--ready-fd`, closed once the line is written.
pub(crate) struct ReadyFd(File);

/// A number that is no descriptor for the line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadReadyFd {
    /// Nothing there.
    #[error("--ready-fd {0} is not open in this process")]
    Closed(RawFd),
    /// Open for reading.
    #[error("--ready-fd {0} cannot be written to")]
    ReadOnly(RawFd),
}

impl BadReadyFd {
    /// Advice to the user.
    pub(crate) fn hint(&self) -> String {
        "Leave it open across exec, for writing: 7>ready.json with --ready-fd 7".to_owned()
    }
}

impl ReadyFd {
    /// Takes the descriptor `number` over, which is not one of the standard streams. To be called before the process
    /// opens any of its own, so that an open number is one that was inherited.
    ///
    /// # Errors
    /// It is not open for writing.
    pub(crate) fn inherit(number: RawFd) -> Result<Self, BadReadyFd> {
        // SAFETY: F_GETFL takes no argument; a number that is not open is refused.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFL) };
        if flags < 0 {
            return Err(BadReadyFd::Closed(number));
        }
        if flags & libc::O_ACCMODE == libc::O_RDONLY {
            return Err(BadReadyFd::ReadOnly(number));
        }
        // SAFETY: it is open and was inherited, so that nothing in this process owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        // Fails for no open descriptor.
        let _ = fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        Ok(Self(File::from(fd)))
    }
}

/// Where the line goes.
pub(crate) enum Channel {
    /// To a descriptor of the caller's choice.
    Fd(ReadyFd),
    /// Among the log lines.
    Stderr,
}

impl Channel {
    /// Writes `line`, and closes the descriptor.
    ///
    /// # Errors
    /// Its reader has left, or makes no room in time.
    pub(crate) fn write(self, line: &str) -> io::Result<()> {
        match self {
            Self::Fd(ReadyFd(file)) => write(&file, &format!("{line}\n")),
            Self::Stderr => write(io::stderr().lock(), &format!("{line}{}", terminal::line_end())),
        }
    }
}

fn write(mut to: impl Write + AsFd, line: &str) -> io::Result<()> {
    for piece in line.as_bytes().chunks(PIECE_BYTES) {
        if event::poll(&mut [PollFd::new(to.as_fd(), PollFlags::POLLOUT)], Some(TIMEOUT))? == 0 {
            return Err(ErrorKind::TimedOut.into());
        }
        to.write_all(piece)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::IntoRawFd;

    #[test]
    fn line_arrives_whole_and_the_descriptor_is_closed() {
        let (mut reader, writer) = io::pipe().unwrap();
        let fd = ReadyFd::inherit(OwnedFd::from(writer).into_raw_fd()).unwrap();
        let line = "x".repeat(3 * PIECE_BYTES);

        Channel::Fd(fd).write(&line).unwrap();

        let mut got = String::new();
        reader.read_to_string(&mut got).unwrap();
        assert_eq!(got, line + "\n");
    }

    #[test]
    fn reader_who_makes_no_room_is_given_up() {
        let (_reader, writer) = io::pipe().unwrap();
        let fd = ReadyFd::inherit(OwnedFd::from(writer).into_raw_fd()).unwrap();

        assert_eq!(Channel::Fd(fd).write(&"x".repeat(1 << 20)).unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn number_that_cannot_be_written_to_is_refused() {
        let (reader, _writer) = io::pipe().unwrap();
        let number = OwnedFd::from(reader).into_raw_fd();

        assert_eq!(ReadyFd::inherit(number).err(), Some(BadReadyFd::ReadOnly(number)));
        assert_eq!(ReadyFd::inherit(RawFd::MAX).err(), Some(BadReadyFd::Closed(RawFd::MAX)));
    }
}
