//! The messages between the outer machine and the agent in the host VM.
//!
//! A frame is: id (u32), kind (u8), length (u32), payload; integers little-endian. The id says which command a frame
//! belongs to, so that several run at once. The same frames go between `tests exec` and a kept host VM.

use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// The id of frames that belong to no command.
pub const READY_ID: u32 = 0;
/// The largest payload; output is cut into pieces well below it.
const PAYLOAD_MAX_BYTES: u32 = 1 << 20;

/// A command to run in the host VM.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment variables on top of the agent's own.
    pub env: Vec<(String, String)>,
    /// Where it starts; `None` is `/`.
    pub dir: Option<String>,
    /// True if its standard input comes in [`Message::Stdin`]; otherwise it is empty.
    pub takes_input: bool,
    /// When the agent kills it, in milliseconds.
    pub timeout_ms: u64,
}

impl Command {
    /// A command of these words, started in `/`.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// It exited with this code; 127 if it could not be started.
    Code(i32),
    /// It was killed by this signal.
    Signal(i32),
    /// It was killed because its time was up.
    TimedOut,
}

impl Status {
    /// The exit code a shell would show; 124 for a timeout, as from `timeout(1)`.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
            Self::Signal(signal) => u8::try_from((128 + signal) & 0xff).unwrap_or(u8::MAX),
            Self::TimedOut => 124,
        }
    }
}

/// A message.
#[derive(Debug)]
pub enum Message {
    /// Agent: I am up. Sent once.
    Ready,
    /// Run this command under the frame's id.
    Run(Command),
    /// Agent: the command wrote this to its standard output.
    Stdout(Vec<u8>),
    /// Agent: the command wrote this to its standard error.
    Stderr(Vec<u8>),
    /// Agent: the command ended; nothing follows under this id.
    Exit(Status),
    /// The command reads this from its standard input; nothing at all is the input's end.
    Stdin(Vec<u8>),
    /// Power off.
    Shutdown,
    /// Nothing but an interrupt for the host VM's processor.
    Beat,
}

/// One message with the id of the command it belongs to.
#[derive(Debug)]
pub struct Frame {
    /// The command's id, or [`READY_ID`].
    pub id: u32,
    /// The message.
    pub message: Message,
}

impl Frame {
    /// Writes the frame in one piece.
    ///
    /// # Errors
    /// Whatever the writer says.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        let (kind, payload) = match &self.message {
            Message::Ready => (0u8, Vec::new()),
            Message::Run(command) => (1, serde_json::to_vec(command)?),
            Message::Stdout(bytes) => (2, bytes.clone()),
            Message::Stderr(bytes) => (3, bytes.clone()),
            Message::Exit(status) => (4, serde_json::to_vec(status)?),
            Message::Shutdown => (5, Vec::new()),
            Message::Beat => (6, Vec::new()),
            Message::Stdin(bytes) => (7, bytes.clone()),
        };
        let length = u32::try_from(payload.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut bytes = Vec::with_capacity(9 + payload.len());
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.push(kind);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&payload);
        to.write_all(&bytes)?;
        to.flush()
    }

    /// Reads one frame.
    ///
    /// # Errors
    /// `UnexpectedEof` at the end of the channel, `InvalidData` for what is not a frame.
    pub fn read(from: &mut dyn Read) -> io::Result<Self> {
        let mut id = [0; 4];
        let mut kind = [0; 1];
        let mut length = [0; 4];
        from.read_exact(&mut id)?;
        from.read_exact(&mut kind)?;
        from.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        if length > PAYLOAD_MAX_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut payload = Vec::new();
        from.take(u64::from(length)).read_to_end(&mut payload)?;
        if payload.len() as u64 != u64::from(length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let message = match kind[0] {
            0 => Message::Ready,
            1 => Message::Run(serde_json::from_slice(&payload)?),
            2 => Message::Stdout(payload),
            3 => Message::Stderr(payload),
            4 => Message::Exit(serde_json::from_slice(&payload)?),
            5 => Message::Shutdown,
            6 => Message::Beat,
            7 => Message::Stdin(payload),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        Ok(Self { id: u32::from_le_bytes(id), message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through_the_wire(message: Message) -> Frame {
        let mut bytes = Vec::new();
        Frame { id: 7, message }.write(&mut bytes).unwrap();
        Frame::read(&mut bytes.as_slice()).unwrap()
    }

    #[test]
    fn a_command_arrives_as_it_was_sent() {
        let mut command = Command::new(["echo", "ä"]);
        command.env = vec![("NAME".to_owned(), "value".to_owned())];
        command.timeout_ms = 5;

        let frame = through_the_wire(Message::Run(command));

        assert_eq!(frame.id, 7);
        assert!(matches!(frame.message, Message::Run(command)
            if command.argv == ["echo", "ä"] && command.env[0].1 == "value" && command.timeout_ms == 5));
    }

    #[test]
    fn output_of_any_bytes_arrives_whole() {
        let bytes: Vec<u8> = (0..=255).collect();

        let frame = through_the_wire(Message::Stderr(bytes.clone()));

        assert!(matches!(frame.message, Message::Stderr(arrived) if arrived == bytes));
    }

    #[test]
    fn a_frame_cut_short_is_an_error() {
        let mut bytes = Vec::new();
        Frame { id: 1, message: Message::Stdout(vec![0; 100]) }.write(&mut bytes).unwrap();
        bytes.pop();

        let error = Frame::read(&mut bytes.as_slice()).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused() {
        let mut bytes = vec![0, 0, 0, 0, 2];
        bytes.extend(u32::MAX.to_le_bytes());

        let error = Frame::read(&mut bytes.as_slice()).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn statuses_show_as_in_a_shell() {
        assert_eq!(Status::Code(3).shell_code(), 3);
        assert_eq!(Status::Signal(9).shell_code(), 137);
        assert_eq!(Status::TimedOut.shell_code(), 124);
    }
}
